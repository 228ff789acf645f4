//! Weights on the device: each in every order that some kernel wants, in parts where the adapter binds less than the
//! whole.

use super::device::Device;
use super::upload::{Order, Uploads, size_bytes};
use crate::backend::launches;
use crate::error::Result;
use crate::ops::{Launch, Operand, Operation, WeightSplit};
use crate::plan::{Origin, Plan, ValueId, WeightSource};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::Ordering;

/// Some rows of a weight's first dimension, or all of them.
pub struct Part {
    pub rows: Range<usize>,
    pub buffer: wgpu::Buffer,
}

pub struct Weights(HashMap<(ValueId, Order), Vec<Part>>);

impl Weights {
    /// Brings every weight over in each order that some launch wants.
    pub fn upload(
        device: &Device,
        plan: &Plan,
        launches: &[(usize, Launch)],
        source: &dyn WeightSource,
    ) -> Result<Weights> {
        let mut weights = Weights(HashMap::new());
        let mut uploads = Uploads::new(device);
        for (id, order) in launches::weights(plan, launches, Order::Stored, Order::packed) {
            let value = &plan.values[id.0];
            let Origin::Weight(name) = &value.origin else { continue };
            let stored = source.load(name)?;
            let bytes = |rows: &Range<usize>| size_bytes(order.elements(&value.shape, rows).len(), value.dtype);
            let count = order.rows(&value.shape);
            let mut most = count;
            if bytes(&(0..count)) > device.adapter.largest_tensor && is_divisible(plan, launches, id, order) {
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
                uploads.send(&buffer, &stored, order, order.elements(&value.shape, &rows), value.dtype)?;
                parts.push(Part { rows, buffer });
            }
            weights.0.insert((id, order), parts);
        }
        uploads.finish()?;
        Ok(weights)
    }

    /// The memory of a part of a weight, or of the whole if it was not divided.
    pub fn part(&self, id: ValueId, order: Order, part: usize) -> &wgpu::Buffer {
        let parts = &self.0[&(id, order)];
        &parts[part.min(parts.len() - 1)].buffer
    }

    /// What tells a step's launch which part it is given, with the parts, if its weight was divided.
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

/// Whether all that read a weight in this order take it in parts, along the dimension by which it is stored.
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
