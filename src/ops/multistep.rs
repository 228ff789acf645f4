//! One step of a sampler without noise: DDIM, PLMS, Euler, DPM-Solver++.
//!
//! All of them are sums: the next state is a linear combination of the state, of what the model says now, and of what it
//! said in the last steps. How a sampler weighs these is a row of coefficients, see
//! [`multistep`](crate::diffusion::multistep), so that one operation serves every sampler, and a recorded step is replayed
//! unchanged with another.

use super::reverse::{Reverse, no_rule};
use super::sampler_step::{COEFFICIENTS, SamplerStep, Variance};
use super::{Launch, Noise, Operand, Operation, Scalar, StorageRule, Tiles, count, elements, require};

/// Estimates of earlier steps that are kept.
pub const HISTORY: usize = 4;

/// One step of a linear multistep sampler.
///
/// # Shapes
/// `output [2B | B, P, C]`, `x_t [B, P, C]`, `coefficients [B, 9]`, `history [4, B, P, C]`, the newest first, gives
/// `[5, B, P, C]`: `x_{t-1}`, then the history of the next step.
///
/// # Formula
/// ```text
/// out     = u + s (c - u)                                          with guidance, else c
/// e       = row[0] x_t + row[1] out
/// x_{t-1} = row[2] x_t + row[3] e + row[4] h_1 + row[5] h_2 + row[6] h_3 + row[7] h_4
/// ```
/// The next history is `e, h_1, h_2, h_3`. A history that no coefficient reads must still be finite. `row[8]` is the guidance
/// scale `s`, as for [`SamplerStep`].
///
/// # Source
/// Song et al. 2021 (DDIM), eq. 12; Liu et al. 2022 (PNDM), eq. 12; Lu et al. 2022 (DPM-Solver++), eq. 3.4; Ho &
/// Salimans 2022, eq. 6.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Multistep {
    /// Classifier-free guidance: the model's output holds the unconditional half of the batch first.
    pub guided: bool,
}

impl Operation for Multistep {
    fn name(&self) -> &'static str {
        "multistep"
    }

    fn shape(&self, inputs: &[&[usize]]) -> Result<Vec<usize>, String> {
        count(inputs, 4)?;
        let (output, x_t, row, history) = (inputs[0], inputs[1], inputs[2], inputs[3]);
        require(x_t.len() >= 2, || format!("multistep: x_t {x_t:?}"))?;
        let mut wanted = x_t.to_vec();
        wanted[0] *= if self.guided { 2 } else { 1 };
        let fits = output == wanted && row == [x_t[0], COEFFICIENTS] && history == [&[HISTORY], x_t].concat();
        require(fits, || {
            format!("multistep: output {output:?}, coefficients {row:?}, history {history:?} for x_t {x_t:?}")
        })?;
        Ok([&[HISTORY + 1], x_t].concat())
    }

    fn flops(&self, inputs: &[&[usize]], _: &[usize]) -> u64 {
        (3 + 3 + 11) * elements(inputs[1]) as u64
    }

    fn backward(&self, _: &mut Reverse<'_>) -> Result<(), String> {
        no_rule(self.name())
    }

    fn storage_rule(&self, _: Operand) -> StorageRule {
        StorageRule::F32
    }

    fn wgsl(&self, inputs: &[&[usize]], _: &[usize], _: Tiles) -> Vec<Launch> {
        let count = elements(inputs[1]);
        let image = count / inputs[1][0];
        // With guidance the conditional half follows the unconditional one.
        let conditional = if self.guided { count } else { 0 };
        let tensors = (0..4).map(Operand::Input).chain([Operand::Output(0)]).collect();
        let scalars = [image.into(), conditional.into(), Scalar::from(self.guided)];
        vec![Launch::each("multistep", count, tensors, scalars)]
    }
}

/// The arithmetic of [`Multistep`] for one element: the model's output after guidance, the new entry of the history, and
/// the element of `x_{t-1}`. `unconditional` is ignored without guidance.
#[inline(always)]
pub fn combined(
    rule: Multistep,
    row: &[f32; COEFFICIENTS],
    [unconditional, conditional]: [f32; 2],
    x_t: f32,
    history: [f32; HISTORY],
) -> [f32; 3] {
    let out = if rule.guided { unconditional + row[8] * (conditional - unconditional) } else { conditional };
    let estimate = row[0] * x_t + row[1] * out;
    let present = row[2] * x_t + row[3] * estimate;
    [out, estimate, row[4..8].iter().zip(history).fold(present, |sum, (weight, h)| sum + weight * h)]
}

/// The formula of a sampling loop's step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// With noise, from the posterior of the present step alone.
    Ancestral(SamplerStep),
    /// Without noise, from the last steps.
    Multistep(Multistep),
}

impl From<SamplerStep> for Rule {
    fn from(rule: SamplerStep) -> Rule {
        Rule::Ancestral(rule)
    }
}

impl Rule {
    /// Whether the model's output holds both halves of a batch.
    pub fn guided(self) -> bool {
        match self {
            Rule::Ancestral(rule) => rule.guided,
            Rule::Multistep(rule) => rule.guided,
        }
    }

    /// Where the noise of a step comes from; `None` if there is none.
    pub fn noise(self) -> Option<Noise> {
        match self {
            Rule::Ancestral(rule) => Some(rule.noise),
            Rule::Multistep(_) => None,
        }
    }

    /// Whether the model's output has channels for the variance.
    pub fn learns_variance(self) -> bool {
        matches!(self, Rule::Ancestral(SamplerStep { variance: Variance::LearnedRange, .. }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_coefficient_weighs_what_the_formula_says() {
        let row = [0.5, 2.0, 3.0, 5.0, 7.0, 11.0, 13.0, 17.0, 4.0];
        // out = 1 + 4 (1.5 - 1) = 3, e = 0.5 * 2 + 2 * 3 = 7
        let [out, estimate, next] =
            combined(Multistep { guided: true }, &row, [1.0, 1.5], 2.0, [1.0, 10.0, 100.0, 1000.0]);
        assert_eq!((out, estimate), (3.0, 7.0));
        assert_eq!(next, 3.0 * 2.0 + 5.0 * 7.0 + 7.0 + 110.0 + 1300.0 + 17000.0);
        let [out, ..] = combined(Multistep { guided: false }, &row, [f32::NAN, 1.5], 2.0, [0.0; 4]);
        assert_eq!(out, 1.5);
    }
}
