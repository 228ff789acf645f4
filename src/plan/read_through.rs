//! Steps that only move elements, left to the kernels that read what they write: a skip connection's concatenation, the
//! row of a table of styles or shifts.
//!
//! A kernel that reads two tensors side by side, or a table at the row of the present step, spares a launch and a copy.
//! Such a step is dropped if all its readers can do that. This pass is for back ends with such kernels; it runs behind
//! [`super::with_statistics`], which looks for concatenations.

use super::{Plan, Step, ValueId};
use crate::ops::{Embed, MatmulUnit, Op};
use std::collections::{HashMap, HashSet};

/// The plan without the concatenations and rows that their readers can do without.
pub fn read_through(mut plan: Plan, unit: MatmulUnit) -> Plan {
    let mut readers: HashMap<ValueId, Vec<usize>> = HashMap::new();
    for (i, step) in plan.steps.iter().enumerate() {
        for &input in &step.inputs {
            readers.entry(plan.root(input)).or_default().push(i);
        }
    }
    let ends = plan.outputs.iter().map(|(_, id)| id).chain(plan.feeds.iter().map(|(from, _)| from));
    let kept: HashSet<ValueId> = ends.map(|&id| plan.root(id)).collect();
    let mut dropped = Vec::with_capacity(plan.steps.len());
    for i in 0..plan.steps.len() {
        let output = plan.steps[i].output();
        let readers = readers.get(&output).filter(|_| !kept.contains(&output));
        let without = |&reader: &usize| Some((reader, without(&plan, &plan.steps[i], &plan.steps[reader], unit)?));
        let changed: Option<Vec<(usize, Step)>> = readers.and_then(|readers| readers.iter().map(without).collect());
        dropped.push(changed.is_some());
        changed.into_iter().flatten().for_each(|(reader, step)| plan.steps[reader] = step);
    }
    plan.once -= dropped[..plan.once].iter().filter(|&&is| is).count();
    let mut dropped = dropped.into_iter();
    plan.steps.retain(|_| !dropped.next().unwrap_or(false));
    plan
}

/// The reader of what `mover` writes, as it reads what `mover` reads; `None` if there is no kernel for that.
fn without(plan: &Plan, mover: &Step, reader: &Step, unit: MatmulUnit) -> Option<Step> {
    let output = mover.output();
    let mut places = (0..reader.inputs.len()).filter(|&i| plan.root(reader.inputs[i]) == output);
    let at = places.next().filter(|&i| reader.inputs[i] == output)?;
    let &[first, second] = &mover.inputs[..] else { return None };
    let alike = |id: ValueId| plan.values[id.0].dtype == plan.values[output.0].dtype;
    if places.next().is_some() || !alike(first) {
        return None;
    }
    let shapes = plan.input_shapes(reader);
    let shape = plan.shape(reader.output());
    let op: Op = match (&mover.op, &reader.op, at) {
        (Op::Concat(concat), op, 0) if concat.axis + 1 == plan.shape(output).len() && alike(second) => match op {
            Op::GroupNorm(op) => op.in_parts()?.into(),
            Op::Conv2d(op) => op.in_parts(&shapes, shape, *plan.shape(first).last()?, unit)?.into(),
            _ => return None,
        },
        (Op::Embed(Embed::Row), Op::GroupNorm(op), 3) => op.with_table()?.into(),
        (Op::Embed(Embed::Row), Op::Conv2d(op), _) if at == op.shift_at() => {
            op.with_table(&shapes, shape, unit)?.into()
        }
        _ => return None,
    };
    let mut inputs = reader.inputs.clone();
    inputs[at] = first;
    inputs.push(second);
    Some(Step { op, inputs, ..reader.clone() })
}
