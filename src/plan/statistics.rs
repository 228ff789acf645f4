//! Group norms that take statistics from the matmuls in front of them.
//!
//! A group norm whose groups do not fit into a block's shared memory reads its input twice: once for means and
//! variances, once for the result. Where the input is the output of a matmul, or the concatenation of two, the
//! matmuls can compute partial [`Statistics`] of it. This pass adds them to a plan as values: a second output of the
//! matmul, further inputs of the norm. It is for back ends whose kernels do this, and runs after [`super::narrow`].

use super::{Origin, Plan, Step, Value, ValueId};
use crate::dtype::Dtype;
use crate::ops::{MatmulUnit, Op, Statistics, elements, output_tile};
use std::collections::HashMap;

/// Fewer channels than this are no unit: an entry would weigh too much beside what it describes.
const LEAST_UNIT: usize = 2;

/// The plan with statistics for all norms that want them, except those whose input something else writes.
pub fn with_statistics(mut plan: Plan, unit: MatmulUnit) -> Plan {
    let writers: HashMap<ValueId, usize> = plan.steps.iter().enumerate().map(|(i, step)| (step.output(), i)).collect();
    let mut layouts: HashMap<usize, Statistics> = HashMap::new();
    let mut readers: Vec<(usize, Vec<usize>)> = Vec::new();
    for (norm, step) in plan.steps.iter().enumerate() {
        let Op::GroupNorm(op) = &step.op else { continue };
        let Some(members) = op.wants_statistics(plan.shape(step.output()), unit) else { continue };
        let products = sources(&plan, &writers, step);
        let mut first_channel = 0;
        let wanted: Option<Vec<(usize, Statistics)>> = products
            .iter()
            .map(|&product| {
                let known = layouts.get(&product).copied();
                let layout = known.or_else(|| layout(&plan, product, unit))?;
                // Units lie in one group each, also where the groups of another norm or a border are elsewhere.
                let unit = common(common(layout.unit, members), first_channel);
                first_channel += layout.channels;
                (unit >= LEAST_UNIT).then_some((product, Statistics { unit, ..layout }))
            })
            .collect();
        if let Some(wanted) = wanted.filter(|wanted| !wanted.is_empty()) {
            layouts.extend(wanted);
            readers.push((norm, products));
        }
    }
    // Only now is it known which units serve all norms that read a matmul's output.
    let mut products: Vec<usize> = layouts.keys().copied().collect();
    products.sort_unstable();
    for product in products {
        let shape = layouts[&product].shape().to_vec();
        plan.values.push(Value { shape, dtype: Dtype::F32, origin: Origin::Computed });
        let value = ValueId(plan.values.len() - 1);
        plan.steps[product].outputs.push(value);
    }
    for (norm, products) in readers {
        let values: Vec<ValueId> = products.iter().map(|&product| plan.steps[product].outputs[1]).collect();
        let step = &mut plan.steps[norm];
        step.inputs.extend(values);
        if let Op::GroupNorm(op) = &mut step.op {
            op.statistics = products.iter().map(|product| layouts[product].channels).collect();
        }
    }
    plan
}

/// The steps that write a norm's input: one, or two whose outputs are concatenated; none if it is no step's output, or
/// of more than two.
fn sources(plan: &Plan, writers: &HashMap<ValueId, usize>, norm: &Step) -> Vec<usize> {
    // The same images and channels, however the positions between them are counted.
    let ends = |id: ValueId| (plan.shape(id).first(), plan.shape(id).last());
    let writer = |id: ValueId| {
        let root = plan.root(id);
        writers.get(&root).copied().filter(|_| ends(root) == ends(id))
    };
    let Some(last) = writer(norm.inputs[0]) else { return Vec::new() };
    let step = &plan.steps[last];
    match &step.op {
        Op::Concat(concat) if concat.axis + 1 == plan.shape(step.output()).len() && step.inputs.len() == 2 => {
            let both: Option<Vec<usize>> = step.inputs.iter().map(|&id| writer(id)).collect();
            both.unwrap_or_default()
        }
        _ => vec![last],
    }
}

/// What a step can leave of its output, in units as large as a block of its kernel allows.
fn layout(plan: &Plan, step: usize, unit: MatmulUnit) -> Option<Statistics> {
    let step = &plan.steps[step];
    let output = plan.shape(step.output());
    let tile = output_tile(&step.op, &plan.input_shapes(step), output, unit)?;
    let channels = *output.last()?;
    let parts = elements(output) / (output[0] * channels * tile.positions);
    Some(Statistics { images: output[0], parts, channels, unit: common(tile.columns, channels) })
}

/// The largest common divisor.
fn common(a: usize, b: usize) -> usize {
    if b == 0 { a } else { common(b, a % b) }
}
