//! Linear layers of one input as one step: the queries, keys and values of an attention.
//!
//! Each of them alone is too small to keep a GPU busy. This pass is for back ends whose kernels compute several layers at
//! once; it runs last, when types and statistics are settled.

use super::{Origin, Plan, Step, ValueId};
use crate::ops::{MOST_LAYERS, Op};

/// The plan with the linear layers joined that have the same input, sizes, types and flags.
pub fn join_layers(mut plan: Plan) -> Plan {
    let mut once = std::mem::take(&mut plan.steps);
    let each = once.split_off(plan.once);
    plan.steps = joined(&plan, once);
    plan.once = plan.steps.len();
    let each = joined(&plan, each);
    plan.steps.extend(each);
    plan
}

/// Within one part of the plan. The joined step stands where the first stood: of the others only weights come later.
fn joined(plan: &Plan, steps: Vec<Step>) -> Vec<Step> {
    let mut kept: Vec<Step> = Vec::with_capacity(steps.len());
    for step in steps {
        let first = kept.iter_mut().rev().find(|first| fit(plan, first, &step));
        match first {
            Some(first) => {
                first.inputs.extend(&step.inputs[1..]);
                first.outputs.push(step.output());
                first.label = format!("{}, {}", first.label, step.label.rsplit('.').next().unwrap_or(&step.label));
                if let Op::Linear(op) = &mut first.op {
                    op.also += 1;
                }
            }
            None => kept.push(step),
        }
    }
    kept
}

/// Whether `step` can be computed as a further layer of `first`.
fn fit(plan: &Plan, first: &Step, step: &Step) -> bool {
    let (Op::Linear(a), Op::Linear(b)) = (&first.op, &step.op) else { return false };
    let is_weight = |id: &ValueId| matches!(plan.values[plan.root(*id).0].origin, Origin::Weight(_));
    let alike = |a: ValueId, b: ValueId| {
        let (a, b) = (&plan.values[a.0], &plan.values[b.0]);
        a.shape == b.shape && a.dtype == b.dtype
    };
    let own = 1 + usize::from(a.bias);
    (a.bias, a.activation, a.residual) == (b.bias, b.activation, b.residual)
        && !a.residual
        && b.also == 0
        && a.also + 1 < MOST_LAYERS
        && first.inputs[0] == step.inputs[0]
        && first.outputs.len() == 1 + a.also
        && step.outputs.len() == 1
        && alike(first.output(), step.output())
        && step.inputs[1..].iter().all(is_weight)
        && first.inputs[1..=own].iter().zip(&step.inputs[1..]).all(|(&a, &b)| alike(a, b))
}
