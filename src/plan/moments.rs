//! Which steps leave moments of what they write to which later ones.
//!
//! A group norm whose groups do not fit on a chip reads its input twice: once for means and variances, once for the
//! result. Where the input comes from a product, or is two products' outputs side by side, the products have had every
//! number in their hands, and can leave the moments of small units of channels (see [`crate::ops::Moments`]). Nothing of
//! this is in the plan: values and steps stay as they are, and a back end that can do it lowers the steps accordingly.

use super::{Plan, Step, ValueId};
use crate::ops::{Lowering, MatmulUnit, Moments, Op, Operation, elements};
use std::collections::HashMap;

/// Fewer channels than this are no unit: its three numbers would weigh too much beside what they describe.
const LEAST_UNIT: usize = 2;

/// How all steps of a plan become PTX.
#[derive(Clone, Debug)]
pub struct Lowerings {
    /// One for each step.
    pub steps: Vec<Lowering>,
    /// How many numbers steps leave to each other.
    pub numbers: usize,
}

/// Decides who leaves moments to whom: all norms that seek them find them, but those whose input something else writes.
pub fn lowerings(plan: &Plan, matmul: MatmulUnit) -> Lowerings {
    let writers: HashMap<ValueId, usize> = plan.steps.iter().enumerate().map(|(i, step)| (step.output, i)).collect();
    let mut units: HashMap<usize, Moments> = HashMap::new();
    let mut finds: Vec<(usize, Vec<usize>)> = Vec::new();
    for (norm, step) in plan.steps.iter().enumerate() {
        let Some(members) = step.op.seeks(&plan.input_shapes(step), plan.shape(step.output), matmul) else { continue };
        let products = sources(plan, &writers, step);
        let mut first_channel = 0;
        let wanted: Option<Vec<(usize, Moments)>> = products
            .iter()
            .map(|&product| {
                let known = units.get(&product).copied();
                let moments = known.or_else(|| moments(plan, product, matmul))?;
                // Units lie in one group each, also where the groups of another norm or a border are elsewhere.
                let unit = common(common(moments.unit, members), first_channel);
                first_channel += moments.channels;
                (unit >= LEAST_UNIT).then_some((product, Moments { unit, ..moments }))
            })
            .collect();
        if let Some(wanted) = wanted.filter(|wanted| !wanted.is_empty()) {
            units.extend(wanted);
            finds.push((norm, products));
        }
    }
    let mut steps = vec![Lowering::from(matmul); plan.steps.len()];
    let numbers = place(plan, &mut units, &finds);
    for (&product, moments) in &units {
        steps[product].leaves = Some(*moments);
    }
    for (norm, products) in finds {
        steps[norm].finds = products.iter().map(|product| units[product]).collect();
    }
    Lowerings { steps, numbers }
}

/// Gives all moments memory, the same to those that are never needed at one time; returns how many numbers it has.
fn place(plan: &Plan, units: &mut HashMap<usize, Moments>, finds: &[(usize, Vec<usize>)]) -> usize {
    /// Numbers that end where the next may begin.
    const ALIGNMENT: usize = 64;
    let last = |product: usize| {
        let norms = finds.iter().filter(|(_, products)| products.contains(&product)).map(|(norm, _)| *norm);
        let last = norms.max().unwrap_or(product);
        // What the first part leaves to the second is read in every step.
        if product < plan.once && last >= plan.once { usize::MAX } else { last }
    };
    let mut order: Vec<usize> = units.keys().copied().collect();
    order.sort_unstable();
    // Of each that has its place: its last step, its first number and the one behind its last.
    let mut placed: Vec<(usize, usize, usize)> = Vec::new();
    for product in order {
        let Some(moments) = units.get_mut(&product) else { continue };
        let numbers = moments.numbers().next_multiple_of(ALIGNMENT);
        let needed = placed.iter().filter(|(last, ..)| *last >= product);
        let free = |first: usize| needed.clone().all(|&(_, from, to)| first + numbers <= from || to <= first);
        let ends = needed.clone().map(|&(.., to)| to);
        moments.first = ends.chain([0]).filter(|&first| free(first)).min().unwrap_or(0);
        placed.push((last(product), moments.first, moments.first + numbers));
    }
    placed.into_iter().map(|(.., to)| to).max().unwrap_or(0)
}

/// The steps that write a norm's input: one, or two that are put side by side; none if it is no step's output, or more are.
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
        Op::Concat(concat) if concat.axis + 1 == plan.shape(step.output).len() && step.inputs.len() == 2 => {
            let both: Option<Vec<usize>> = step.inputs.iter().map(|&id| writer(id)).collect();
            both.unwrap_or_default()
        }
        _ => vec![last],
    }
}

/// What a step can leave of its output, in units as large as a block allows.
fn moments(plan: &Plan, step: usize, matmul: MatmulUnit) -> Option<Moments> {
    let step = &plan.steps[step];
    let output = plan.shape(step.output);
    let patch = step.op.patch(&plan.input_shapes(step), output, matmul)?;
    let channels = *output.last()?;
    let parts = elements(output) / (output[0] * channels * patch.positions);
    Some(Moments { images: output[0], parts, channels, unit: common(patch.columns, channels), first: 0 })
}

/// The largest common divisor.
fn common(a: usize, b: usize) -> usize {
    if b == 0 { a } else { common(b, a % b) }
}
