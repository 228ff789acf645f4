//! Weights in memory: packed for the products that read them, or as they are stored, in f32.

use super::amx::TileWeights;
use super::panels::{PanelFormat, Panels};
use super::{Packing, winograd};
use crate::backend::Weights;
use crate::error::Result;
use crate::ops::{Op, elements};
use crate::plan::{Plan, Step, ValueId, WeightSource};
use rayon::prelude::*;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Layout of a weight in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// The stored order, in f32.
    Plain,
    /// Packed, for matrix products.
    Packed(Packing),
}

/// A weight of a matrix product.
pub enum Packed {
    Panels(Panels),
    Tiles(TileWeights),
}

#[derive(Clone)]
pub enum Stored {
    Plain(Arc<Vec<f32>>),
    Packed(Arc<Packed>),
}

/// Weights by tensor name and layout.
pub struct CpuWeights(pub HashMap<(String, Layout), Stored>);

impl Weights for CpuWeights {
    fn size_bytes(&self) -> u64 {
        let bytes = |stored: &Stored| match stored {
            Stored::Plain(weight) => size_of_val(&weight[..]) as u64,
            Stored::Packed(weight) => match &**weight {
                Packed::Panels(panels) => panels.size_bytes(),
                Packed::Tiles(tiles) => tiles.size_bytes(),
            },
        };
        self.0.values().map(bytes).sum()
    }

    fn without(&self, is_stale: &dyn Fn(&str) -> bool) -> Arc<dyn Weights> {
        let kept = self.0.iter().filter(|((name, _), _)| !is_stale(name));
        Arc::new(CpuWeights(kept.map(|(key, stored)| (key.clone(), stored.clone())).collect()))
    }
}

impl CpuWeights {
    /// Reads the weights of a plan that are not held, those of matrix products straight into panels.
    pub fn load(
        plan: &Plan,
        source: &dyn WeightSource,
        held: Option<&CpuWeights>,
        packing: Packing,
    ) -> Result<CpuWeights> {
        let mut weights = held.map_or_else(HashMap::new, |held| held.0.clone());
        let mut missing = wanted(plan, packing);
        missing.retain(|(name, _, layout)| !weights.contains_key(&((*name).to_owned(), *layout)));
        let load = |(name, id, layout): (&str, ValueId, Layout)| {
            let weight = source.load(name)?;
            let shape = plan.shape(id);
            let stored = match layout {
                Layout::Plain => Stored::Plain(Arc::new(weight.to_f32())),
                Layout::Packed(packing) => {
                    let (outputs, channels, taps) = (shape[0], shape[1], elements(&shape[2..]));
                    Stored::Packed(Arc::new(match packing {
                        Packing::Panels(format) => {
                            Packed::Panels(Panels::pack(&weight, outputs, channels, taps, format))
                        }
                        Packing::Tiles => Packed::Tiles(TileWeights::pack(&weight, outputs, channels, taps)),
                    }))
                }
            };
            Ok(((name.to_owned(), layout), stored))
        };
        weights.extend(missing.into_par_iter().map(load).collect::<Result<Vec<_>>>()?);
        Ok(CpuWeights(weights))
    }
}

/// Every weight of a plan in each layout that a step reads.
pub fn wanted(plan: &Plan, packing: Packing) -> Vec<(&str, ValueId, Layout)> {
    let mut packed: HashMap<ValueId, Packing> = HashMap::new();
    let mut plain: HashSet<ValueId> = HashSet::new();
    for step in &plan.steps {
        let is_matmul = match &step.op {
            Op::Linear(_) | Op::Conv2d(_) => true,
            Op::Training(op) => op.turns_weight(),
            _ => false,
        };
        for (i, &input) in step.inputs.iter().enumerate() {
            let root = plan.root(input);
            if is_matmul && i == 1 {
                let packing = packing_of(plan, step, packing);
                // Two steps that need different panels share bf16, which serves both.
                let both =
                    |p: &mut Packing| *p = if *p == packing { packing } else { Packing::Panels(PanelFormat::Bf16) };
                packed.entry(root).and_modify(both).or_insert(packing);
            } else {
                plain.insert(root);
            }
        }
    }
    // A weight may also be an output or feed an input.
    for &id in plan.outputs.iter().map(|(_, id)| id).chain(plan.feeds.iter().map(|(from, _)| from)) {
        plain.insert(plan.root(id));
    }
    let mut wanted = Vec::new();
    for (name, id) in plan.weights() {
        wanted.extend(packed.get(&id).map(|&packing| (name, id, Layout::Packed(packing))));
        wanted.extend(plain.contains(&id).then_some((name, id, Layout::Plain)));
    }
    wanted
}

/// How a matrix product's weight is packed. Winograd transforms weights in f32, so its panels hold no pairs.
fn packing_of(plan: &Plan, step: &Step, packing: Packing) -> Packing {
    let [x, weight] = [0, 1].map(|i| plan.shape(step.inputs[i]));
    let transformed = matches!(&step.op, Op::Conv2d(op) if winograd::suits(op, x, weight));
    match packing {
        Packing::Panels(PanelFormat::Bf16Pairs) if transformed || !weight[1].is_multiple_of(2) => {
            Packing::Panels(PanelFormat::Bf16)
        }
        packing => packing,
    }
}
