//! Shared by the GPU back ends: lowering a plan, choosing weight layouts, decoding read-backs.

use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::ops::{Launch, Op, Operand, Operation};
use crate::plan::{KernelUse, Origin, Plan, Step, TensorData, ValueId};

/// The error of a plan that trains: only the CPU has kernels for that.
pub(super) fn refuse_training(backend: String, plan: &Plan) -> Result<()> {
    if !plan.trains() {
        return Ok(());
    }
    let training = plan.steps.iter().find(|step| matches!(step.op, Op::Training(_)));
    let what = training.map_or_else(|| "trained tensors".to_owned(), |step| step.op.name().to_owned());
    Err(Error::Unsupported { what: format!("{}: {what} on {backend}; training runs on the CPU", plan.name) })
}

/// Lowers a plan: all launches with the indices of their steps, and how many of them run once. `lower` returns the launches
/// of a step, given its operation and the shapes of its inputs and
/// outputs.
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

/// The kernels of each step for listings; `entry` is what the device calls the entry point of a launch.
pub(super) fn describe(
    plan: &Plan,
    launches: &[(usize, Launch)],
    entry: impl Fn(&Step, &Launch) -> String,
) -> Vec<Vec<KernelUse>> {
    let mut kernels = vec![Vec::new(); plan.steps.len()];
    for (step, launch) in launches {
        let Launch { grid, threads, choice, .. } = launch;
        kernels[*step].push(KernelUse {
            entry: entry(&plan.steps[*step], launch),
            grid: *grid,
            threads: *threads,
            tile: choice.tile,
            split: choice.split,
            reason: choice.reason.clone().into_owned(),
        });
    }
    kernels
}

/// Every weight in each order that a launch reads: `stored`, or `packed` for the shape of a matmul's weight.
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
    // A weight may also be an output or feed an input.
    for &id in plan.outputs.iter().map(|(_, id)| id).chain(plan.feeds.iter().map(|(from, _)| from)) {
        want(id, stored);
    }
    wanted
}

/// Decodes elements from the device to f32; integers keep their bits.
pub(super) fn to_f32(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        Dtype::F32 | Dtype::U32 => bytemuck::allocation::pod_collect_to_vec(bytes),
        Dtype::F16 => TensorData::F16(bytemuck::allocation::pod_collect_to_vec(bytes).into()).to_f32(),
        Dtype::Bf16 => TensorData::Bf16(bytemuck::allocation::pod_collect_to_vec(bytes).into()).to_f32(),
        other => unreachable!("no value of a plan is {other}"),
    }
}
