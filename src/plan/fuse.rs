//! Local rules that join neighbouring steps, so that a tensor is not written and read again between them.
//!
//! Models stay in the paper's words; these rules are the only place that knows what an operation can take along.
//! A rule looks at one step and at the step that produced one of its inputs, which must have no other reader. The
//! joined step stands where the later one stood, where all inputs of both are known.

use super::{Plan, Step, ValueId};
use crate::ops::{Op, Pointwise};

/// Applies all rules to the list, front to back, so that chains grow: convolution, then its shift, then its residual.
pub fn fuse(plan: &mut Plan) {
    apply(plan, true);
}

/// Applies the rules that a plan to be differentiated allows: a linear layer's sums stay, of which the slope of its
/// activation is computed.
pub(super) fn fuse_to_train(plan: &mut Plan) {
    apply(plan, false);
}

fn apply(plan: &mut Plan, activate_layers: bool) {
    let mut readers = vec![0usize; plan.values.len()];
    for step in &plan.steps {
        for &input in &step.inputs {
            readers[plan.root(input).0] += 1;
        }
    }
    let ends = plan.outputs.iter().map(|(_, id)| id).chain(plan.feeds.iter().map(|(from, _)| from));
    for &id in ends.chain(plan.gradients.iter().map(|(_, gradient)| gradient)) {
        readers[plan.root(id).0] += 1;
    }
    let mut once = std::mem::take(&mut plan.steps);
    let each = once.split_off(plan.once);
    plan.steps = fuse_part(plan, once, &readers, activate_layers);
    plan.once = plan.steps.len();
    let mut each = fuse_part(plan, each, &readers, activate_layers);
    plan.steps.append(&mut each);
}

/// The rules within one part: a step that runs once must not be joined to one that is replayed.
fn fuse_part(plan: &Plan, steps: Vec<Step>, readers: &[usize], activate_layers: bool) -> Vec<Step> {
    let mut producer: Vec<Option<usize>> = vec![None; plan.values.len()];
    let mut kept: Vec<Option<Step>> = Vec::with_capacity(steps.len());
    for step in steps {
        let joined = (0..step.inputs.len()).find_map(|which| {
            let input = step.inputs[which];
            let before = producer[input.0].filter(|_| readers[input.0] == 1)?;
            let earlier = kept[before].as_ref().expect("a joined step is no producer any more");
            let keeps_sums = !activate_layers && matches!(earlier.op, Op::Linear(_));
            join(plan, earlier, &step, which, keeps_sums).map(|fused| (before, fused))
        });
        let step = match joined {
            Some((before, fused)) => {
                kept[before] = None;
                fused
            }
            None => step,
        };
        producer[step.output().0] = Some(kept.len());
        kept.push(Some(step));
    }
    kept.into_iter().flatten().collect()
}

/// `later` reads the output of `earlier` as its input `which`: both as one step, if a rule allows it. With `keeps_sums`
/// `earlier` takes no activation.
fn join(plan: &Plan, earlier: &Step, later: &Step, which: usize, keeps_sums: bool) -> Option<Step> {
    let Op::Pointwise(pointwise) = &later.op else { return None };
    let other = later.inputs.get(1 - which).copied();
    let (op, extra) = match pointwise {
        Pointwise::Activation(_) if keeps_sums => return None,
        Pointwise::Activation(activation) => (activate(&earlier.op, *activation)?, None),
        Pointwise::ScaleShift if which == 0 => (style(&earlier.op)?, other),
        Pointwise::AddChannels if which == 0 => (shift(&earlier.op)?, other),
        Pointwise::Add => (residual(plan, earlier, later.output(), other?)?, other),
        _ => return None,
    };
    let mut inputs = earlier.inputs.clone();
    inputs.extend(extra);
    Some(Step { op, inputs, outputs: later.outputs.clone(), label: earlier.label.clone() })
}

fn activate(op: &Op, activation: crate::ops::Activation) -> Option<Op> {
    match op {
        Op::Linear(l) if l.activation.is_none() && !l.residual => {
            Some(crate::ops::Linear { activation: Some(activation), ..l.clone() }.into())
        }
        Op::GroupNorm(g) if g.activation.is_none() => {
            Some(crate::ops::GroupNorm { activation: Some(activation), ..g.clone() }.into())
        }
        Op::Modulate(m) if m.activation.is_none() => Some(crate::ops::Modulate { activation: Some(activation) }.into()),
        _ => None,
    }
}

fn style(op: &Op) -> Option<Op> {
    match op {
        Op::GroupNorm(g) if !g.style && g.activation.is_none() => {
            Some(crate::ops::GroupNorm { style: true, ..g.clone() }.into())
        }
        _ => None,
    }
}

fn shift(op: &Op) -> Option<Op> {
    match op {
        Op::Conv2d(c) if !c.shift && !c.residual => Some(crate::ops::Conv2d { shift: true, ..c.clone() }.into()),
        _ => None,
    }
}

/// Only a sum of equal shapes: a broadcast one would need the residual repeated.
fn residual(plan: &Plan, earlier: &Step, output: ValueId, other: ValueId) -> Option<Op> {
    let wanted = plan.shape(output);
    if plan.shape(other) != wanted || plan.shape(earlier.output()) != wanted {
        return None;
    }
    match &earlier.op {
        Op::Linear(l) if !l.residual => Some(crate::ops::Linear { residual: true, ..l.clone() }.into()),
        Op::Conv2d(c) if !c.residual => Some(crate::ops::Conv2d { residual: true, ..c.clone() }.into()),
        Op::Training(op) => op.with_residual(),
        _ => None,
    }
}
