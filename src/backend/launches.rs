//! What GPU back ends do alike beside their device: a plan's launches, the weights that these read, and numbers that come
//! back.

use crate::dtype::Dtype;
use crate::ops::{Launch, Op, Operand};
use crate::plan::{Origin, Plan, TensorData, ValueId};

/// All launches of a plan, each with the step that it belongs to, and how many of them run once; `lower` gives those of
/// a step from its operation and the shapes of its inputs and outputs.
pub(super) fn lower(
    plan: &Plan,
    lower: impl Fn(&Op, &[&[usize]], &[&[usize]]) -> Vec<Launch>,
) -> (Vec<(usize, Launch)>, usize) {
    let (mut all, mut once) = (Vec::new(), 0);
    for (i, step) in plan.steps.iter().enumerate() {
        let launches = lower(&step.op, &plan.input_shapes(step), &plan.output_shapes(step));
        all.extend(launches.into_iter().map(|launch| (i, launch)));
        if i < plan.once {
            once = all.len();
        }
    }
    (all, once)
}

/// Every weight in each order that some launch wants: as it is `stored`, or as `packed` says for a product's shape.
pub(super) fn weights<O: Copy + PartialEq>(
    plan: &Plan,
    launches: &[(usize, Launch)],
    stored: O,
    packed: impl Fn(&[usize]) -> O,
) -> Vec<(ValueId, O)> {
    let mut wanted: Vec<(ValueId, O)> = Vec::new();
    let mut want = |id: ValueId, order: O| {
        let root = plan.root(id);
        let is_weight = matches!(plan.values[root.0].origin, Origin::Weight(_));
        if is_weight && !wanted.contains(&(root, order)) {
            wanted.push((root, order));
        }
    };
    for (step, launch) in launches {
        let inputs = &plan.steps[*step].inputs;
        for tensor in &launch.tensors {
            match *tensor {
                Operand::Input(i) => want(inputs[i], stored),
                Operand::Packed(i) => want(inputs[i], packed(plan.shape(inputs[i]))),
                Operand::Output(_) | Operand::Scratch { .. } => {}
            }
        }
    }
    // A weight may also be read or fed as it is.
    for &id in plan.outputs.iter().map(|(_, id)| id).chain(plan.feeds.iter().map(|(from, _)| from)) {
        want(id, stored);
    }
    wanted
}

/// Elements as a device gave them, in single precision; whole numbers keep their bits.
pub(super) fn numbers(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        Dtype::F32 | Dtype::U32 => bytemuck::allocation::pod_collect_to_vec(bytes),
        Dtype::F16 => TensorData::F16(bytemuck::allocation::pod_collect_to_vec(bytes).into()).to_f32(),
        Dtype::Bf16 => TensorData::Bf16(bytemuck::allocation::pod_collect_to_vec(bytes).into()).to_f32(),
        other => unreachable!("no value of a plan is {other}"),
    }
}
