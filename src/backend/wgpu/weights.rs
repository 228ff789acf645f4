//! Weights on the device, in every order that a kernel reads, split into parts if they exceed the binding limit.

use super::device::Device;
use super::upload::{Order, Uploads, size_bytes};
use crate::backend::{Weights, launches, not_loaded};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::ops::{Launch, Operand, Operation, WeightSplit};
use crate::plan::{Origin, Plan, Value, ValueId, WeightSource};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Some rows of a weight's first dimension, or all of them.
pub struct Part {
    pub rows: Range<usize>,
    pub buffer: wgpu::Buffer,
}

/// A weight as kernels read it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    tensor: String,
    order: Order,
    dtype: Dtype,
    /// Whether every reader takes it in parts.
    split: bool,
}

/// Weights on the device.
#[derive(Default)]
pub struct WgpuWeights(HashMap<Key, Arc<Vec<Part>>>);

impl Weights for WgpuWeights {
    fn size_bytes(&self) -> u64 {
        self.0.values().flat_map(|parts| parts.iter()).map(|part| part.buffer.size()).sum()
    }

    fn without(&self, is_stale: &dyn Fn(&str) -> bool) -> Arc<dyn Weights> {
        let kept = self.0.iter().filter(|(key, _)| !is_stale(&key.tensor));
        Arc::new(WgpuWeights(kept.map(|(key, parts)| (key.clone(), parts.clone())).collect()))
    }
}

impl WgpuWeights {
    /// Loads every weight in each order that some launch reads, except what is held.
    pub fn load(
        device: &Device,
        plan: &Plan,
        launches: &[(usize, Launch)],
        source: &dyn WeightSource,
        held: Option<&WgpuWeights>,
    ) -> Result<WgpuWeights> {
        let mut weights = WgpuWeights(held.map(|held| held.0.clone()).unwrap_or_default());
        let mut uploads = Uploads::new(device);
        for (id, key) in wanted(device, plan, launches) {
            if weights.0.contains_key(&key) {
                continue;
            }
            let value = &plan.values[id.0];
            let Key { tensor: name, order, split, .. } = &key;
            let stored = source.load(name)?;
            let bytes = |rows: &Range<usize>| size_bytes(order.elements(&value.shape, rows).len(), value.dtype);
            let count = order.rows(&value.shape);
            let mut most = count;
            if *split {
                let least = bytes(&(0..WeightSplit::MULTIPLE));
                most = WeightSplit::MULTIPLE * (device.adapter.largest_tensor / least).max(1) as usize;
            }
            let mut parts = Vec::new();
            for first in (0..count.max(1)).step_by(most.max(1)) {
                let rows = first..count.min(first + most);
                let what = || match rows.len() {
                    all if all == count => format!("tensor {name} {:?}", value.shape),
                    some => format!("a part of {some} rows of tensor {name} {:?}", value.shape),
                };
                let buffer = device.buffer(&what, bytes(&rows))?;
                device.counters.weight_bytes.fetch_add(bytes(&rows), Ordering::Relaxed);
                uploads.send(&buffer, &stored, *order, order.elements(&value.shape, &rows), value.dtype)?;
                parts.push(Part { rows, buffer });
            }
            weights.0.insert(key, Arc::new(parts));
        }
        uploads.finish()?;
        Ok(weights)
    }

    /// The weights of a plan.
    ///
    /// # Errors
    /// One of them was not loaded.
    pub fn of(&self, device: &Device, plan: &Plan, launches: &[(usize, Launch)]) -> Result<PlanWeights> {
        let parts = |(id, key): (ValueId, Key)| {
            let parts = self.0.get(&key).ok_or_else(|| not_loaded(device.adapter.name.clone(), plan, &key.tensor))?;
            Ok(((id, key.order), parts.clone()))
        };
        Ok(PlanWeights(wanted(device, plan, launches).into_iter().map(parts).collect::<Result<_>>()?))
    }
}

/// Every weight of a plan in each order that some launch reads.
fn wanted(device: &Device, plan: &Plan, launches: &[(usize, Launch)]) -> Vec<(ValueId, Key)> {
    let wanted = launches::weights(plan, launches, Order::Stored, Order::packed).into_iter();
    let key = |(id, order): (ValueId, Order)| {
        let Value { shape, dtype, origin } = &plan.values[id.0];
        let Origin::Weight(tensor) = origin else { return None };
        let bytes = size_bytes(order.elements(shape, &(0..order.rows(shape))).len(), *dtype);
        let split = bytes > device.adapter.largest_tensor && is_divisible(plan, launches, id, order);
        Some((id, Key { tensor: tensor.clone(), order, dtype: *dtype, split }))
    };
    wanted.filter_map(key).collect()
}

/// The weights of one plan, by value and order.
pub struct PlanWeights(HashMap<(ValueId, Order), Arc<Vec<Part>>>);

impl PlanWeights {
    /// The memory of a part of a weight, or of the whole weight if it is not split.
    pub fn part(&self, id: ValueId, order: Order, part: usize) -> &wgpu::Buffer {
        let parts = &self.0[&(id, order)];
        &parts[part.min(parts.len() - 1)].buffer
    }

    /// The split and the parts of a launch's weight, if that weight is split.
    pub fn divided(&self, plan: &Plan, step: usize, launch: &Launch) -> Option<(WeightSplit, &[Part])> {
        let step = &plan.steps[step];
        let divisible = step.op.weight_split()?;
        let id = plan.root(step.inputs[divisible.input]);
        let order = order_of(plan, &step.inputs, divisible.input, launch)?;
        let parts = self.0.get(&(id, order)).filter(|parts| parts.len() > 1)?;
        Some((divisible, parts))
    }
}

/// The order in which a launch reads an input, if it does.
fn order_of(plan: &Plan, inputs: &[ValueId], input: usize, launch: &Launch) -> Option<Order> {
    launch.tensors.iter().find_map(|tensor| match *tensor {
        Operand::Input(i) if i == input => Some(Order::Stored),
        Operand::Packed(i) if i == input => Some(Order::packed(plan.shape(inputs[i]))),
        _ => None,
    })
}

/// Whether all readers of a weight in this order can take it in parts along its first dimension.
fn is_divisible(plan: &Plan, launches: &[(usize, Launch)], id: ValueId, order: Order) -> bool {
    let whole = plan.outputs.iter().map(|(_, id)| id).chain(plan.feeds.iter().flat_map(|(from, to)| [from, to]));
    if order == Order::Stored && whole.into_iter().any(|&value| plan.root(value) == id) {
        return false;
    }
    launches.iter().all(|(step, launch)| {
        let step = &plan.steps[*step];
        let own = step.op.weight_split();
        step.inputs.iter().enumerate().all(|(i, &input)| {
            let reads = plan.root(input) == id && order_of(plan, &step.inputs, i, launch) == Some(order);
            let rows = |value: ValueId| order.rows(plan.shape(value));
            !reads || own.is_some_and(|own| own.input == i) && rows(input) == rows(id)
        })
    })
}
