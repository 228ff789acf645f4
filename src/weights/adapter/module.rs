//! One adapted module: the tensors of a stem, checked to belong together, and what they change.

use super::Tensor;
use super::form::{Axis, Delta, Form, Read, set_norms};
use super::names::Leaf;
use super::peft::PeftConfig;
use crate::error::Result;
use std::collections::BTreeMap;

/// The tensors of a module by what they are.
pub(super) type Leaves = BTreeMap<Leaf, Tensor>;

/// Which tensor of a module is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Changed {
    Weight,
    Bias,
}

impl Changed {
    pub fn name(self) -> &'static str {
        match self {
            Changed::Weight => "weight",
            Changed::Bias => "bias",
        }
    }
}

/// What becomes of one tensor.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub of: Changed,
    delta: Delta,
    /// The file's own scale, which the user's multiplies.
    pub scale: f32,
    /// What norms become (DoRA).
    magnitude: Option<Tensor>,
}

/// Numbers that a file holds as tensors.
#[derive(Debug)]
pub(super) struct Numbers {
    pub alpha: Option<f32>,
    pub scale: Option<f32>,
}

/// The changes of a module.
///
/// # Errors
/// Factors are missing, or their shapes contradict each other.
pub(super) fn changes(
    leaves: &Leaves,
    numbers: &Numbers,
    config: Option<(&PeftConfig, &str)>,
) -> Result<Vec<Change>, String> {
    use Leaf::*;
    let mut taken = vec![Alpha, Scale];
    let mut take = |leaf: Leaf| {
        taken.push(leaf);
        leaves.get(&leaf).cloned()
    };
    let mut deltas: Vec<(Changed, Delta)> = Vec::new();
    if let Some(form) = product(take(Up), take(Down), take(Mid), "up", "down", false)? {
        deltas.push((Changed::Weight, Delta::Form(form)));
    }
    let first = product(take(HadaW1A), take(HadaW1B), take(HadaT1), "hada_w1_a", "hada_w1_b", true)?;
    let second = product(take(HadaW2A), take(HadaW2B), take(HadaT2), "hada_w2_a", "hada_w2_b", true)?;
    match (first, second) {
        (Some(first), Some(second)) => deltas.push((Changed::Weight, Delta::Hadamard(first, second))),
        (None, None) => {}
        (first, _) => return Err(missing(if first.is_some() { "hada_w2_a" } else { "hada_w1_a" })),
    }
    let first = factor(take(LokrW1), product(take(LokrW1A), take(LokrW1B), None, "lokr_w1_a", "lokr_w1_b", true)?)?;
    let low = product(take(LokrW2A), take(LokrW2B), take(LokrT2), "lokr_w2_a", "lokr_w2_b", true)?;
    match (first, factor(take(LokrW2), low)?) {
        (Some(first), Some(second)) => deltas.push((Changed::Weight, Delta::Kronecker(first, second))),
        (None, None) => {}
        (first, _) => return Err(missing(if first.is_some() { "lokr_w2" } else { "lokr_w1" })),
    }
    let whole =
        [(Diff, Changed::Weight), (NormWeight, Changed::Weight), (DiffBias, Changed::Bias), (NormBias, Changed::Bias)];
    for (leaf, of) in whole {
        deltas.extend(take(leaf).map(|tensor| (of, Delta::Form(Form::Whole(tensor)))));
    }
    let bias = take(UpBias);
    let magnitude = take(Magnitude).or(take(DoraScale));
    if let Some(other) = leaves.keys().find(|leaf| !taken.contains(leaf)) {
        return Err(format!("{} has no use beside the others", leaves[other].key));
    }
    if deltas.iter().filter(|(of, _)| *of == Changed::Weight).count() > 1 {
        return Err("differences of several kinds for one weight".to_owned());
    }

    let mut changes = Vec::new();
    for (of, delta) in deltas {
        delta.shape()?;
        let rank = delta.rank();
        let is_whole = matches!(delta, Delta::Form(Form::Whole(_)));
        let scale = match (numbers, config) {
            _ if is_whole => 1.0,
            (Numbers { scale: Some(scale), .. }, _) => *scale,
            (Numbers { alpha: Some(alpha), .. }, _) => rank.filter(|_| *alpha != 0.0).map_or(1.0, |r| alpha / r as f32),
            (_, Some((config, path))) => config.scale(path, rank),
            _ => 1.0,
        };
        let magnitude = magnitude.clone().filter(|_| of == Changed::Weight);
        changes.push(Change { of, delta, scale, magnitude });
    }
    match (changes.first().map(|change| change.scale), bias) {
        (Some(scale), Some(bias)) => {
            let delta = Delta::Form(Form::Whole(bias));
            changes.push(Change { of: Changed::Bias, delta, scale, magnitude: None });
        }
        (None, Some(bias)) => return Err(format!("{} without lora_A and lora_B", bias.key)),
        (_, None) => {}
    }
    match (changes.is_empty(), magnitude) {
        (true, Some(magnitude)) => Err(format!("{} without a difference", magnitude.key)),
        (true, None) => Err("a scale without a difference".to_owned()),
        _ => Ok(changes),
    }
}

fn missing(what: &str) -> String {
    format!("{what} is missing")
}

/// A low-rank matrix of what there is of it.
fn product(
    a: Option<Tensor>,
    b: Option<Tensor>,
    core: Option<Tensor>,
    a_name: &str,
    b_name: &str,
    is_turned: bool,
) -> Result<Option<Form>, String> {
    match (a, b, core) {
        (Some(a), Some(b), None) => Ok(Some(Form::Product { a, b })),
        (Some(a), Some(b), Some(core)) => Ok(Some(Form::Tucker { core, a, b, is_turned })),
        (None, None, None) => Ok(None),
        (None, ..) => Err(missing(a_name)),
        (_, None, _) => Err(missing(b_name)),
    }
}

/// A factor that is whole or of low rank.
fn factor(whole: Option<Tensor>, low: Option<Form>) -> Result<Option<Form>, String> {
    match (whole, low) {
        (Some(whole), Some(_)) => Err(format!("{} is there whole and of low rank", whole.key)),
        (whole, low) => Ok(whole.map(Form::Whole).or(low)),
    }
}

/// A shape without the ones at its end, which a 1x1 convolution has and a linear layer lacks.
fn trimmed(shape: &[usize]) -> &[usize] {
    let length = shape.iter().rposition(|&n| n != 1).map_or(0, |last| last + 1);
    &shape[..length]
}

impl Change {
    /// The rank, where there is one.
    pub fn rank(&self) -> Option<usize> {
        self.delta.rank()
    }

    /// What kind of difference it is.
    pub fn kind(&self) -> &'static str {
        match (&self.delta, &self.magnitude) {
            (_, Some(_)) => "DoRA",
            (Delta::Form(Form::Whole(_)), _) => "whole difference",
            (Delta::Form(Form::Tucker { .. }), _) => "LoCon, Tucker",
            (Delta::Form(Form::Product { b, .. }), _) if b.shape.len() > 2 => "LoCon",
            (Delta::Form(_), _) => "LoRA",
            (Delta::Hadamard(..), _) => "LoHa",
            (Delta::Kronecker(..), _) => "LoKr",
        }
    }

    /// Whether norms are set, so that nothing else may change the weight.
    pub fn is_dora(&self) -> bool {
        self.magnitude.is_some()
    }

    /// Checks that it fits a tensor of this shape.
    ///
    /// # Errors
    /// Its own shape, and what was expected.
    pub fn check(&self, shape: &[usize]) -> Result<(), String> {
        let own = self.delta.shape()?;
        let elements = |shape: &[usize]| shape.iter().product::<usize>();
        // LyCORIS' low-rank factors have a convolution's channels and taps in one dimension.
        let is_flat = own.len() == 2 && shape.len() > 2 && own[0] == shape[0] && own[1] == elements(&shape[1..]);
        if trimmed(&own) != trimmed(shape) && !is_flat || elements(&own) != elements(shape) {
            return Err(format!("makes {own:?}, the base has {shape:?}"));
        }
        match &self.magnitude {
            Some(magnitude) if axis(magnitude, shape).is_none() => {
                let (outputs, inputs) = (shape[0], shape.get(1).copied().unwrap_or(1));
                let found = &magnitude.shape;
                Err(format!("{}: expected {outputs} outputs or [1, {inputs}] inputs, found {found:?}", magnitude.key))
            }
            _ => Ok(()),
        }
    }

    /// Changes a weight of `shape`, to the share that the user wants.
    ///
    /// # Errors
    /// The adapter's file cannot be read.
    pub fn apply(&self, read: Read<'_>, share: f32, weight: &mut [f32], shape: &[usize]) -> Result<()> {
        self.delta.add(read, share * self.scale, weight, shape)?;
        if let Some(magnitude) = &self.magnitude {
            let axis = axis(magnitude, shape).expect("checked when the adapter met its base");
            set_norms(weight, shape, &read(magnitude)?, axis);
        }
        Ok(())
    }
}

/// Which norms a magnitude is of: LyCORIS' has a one in the place of what is summed over, peft's is of outputs.
fn axis(magnitude: &Tensor, shape: &[usize]) -> Option<Axis> {
    let (&[outputs, inputs, ..], elements) = (shape, magnitude.shape.iter().product::<usize>()) else { return None };
    let is_pefts = magnitude.key.contains("lora_magnitude_vector");
    match magnitude.shape[..] {
        [first, ..] if !is_pefts && first == outputs && elements == outputs => Some(Axis::Outputs),
        [1, second, ..] if !is_pefts && second == inputs && elements == inputs => Some(Axis::Inputs),
        _ if is_pefts && elements == outputs => Some(Axis::Outputs),
        _ => None,
    }
}
