//! The operations of training. Products run on the GEMM of `linear` and `conv2d`; sums over many elements are in f64, over
//! chunks whose size depends only on the shapes, so that results do not depend on the number of threads.

mod attention;
mod loss;
mod moving;
mod norm;
mod pointwise;
mod product;

use super::Machine;
use super::panels::Panels;
use crate::ops::Training;

/// `turned`: the weight of a product, packed the other way round.
pub fn run(
    machine: &Machine,
    op: &Training,
    inputs: &[&[f32]],
    shapes: &[&[usize]],
    turned: impl FnOnce() -> Panels,
    out: &mut [f32],
) {
    match op {
        Training::AttentionKeys(op) => attention::keys(machine, &op.0, inputs, shapes, out),
        Training::AttentionQueries(op) => attention::queries(machine, &op.0, inputs, shapes, out),
        Training::ConvInput(op) => product::conv_input(machine, op, inputs, shapes, &turned(), out),
        Training::ConvWeight(op) => product::conv_weight(machine, op, inputs, shapes, out),
        Training::DiffusionLoss(op) => loss::diffusion(op, inputs, shapes, out),
        Training::LayerNormGain(op) => norm::layer_gain(op, inputs, out),
        Training::LayerNormGradient(op) => norm::layer(op, inputs, out),
        Training::LinearInput(_) => product::linear_input(machine, inputs, &turned(), out),
        Training::LinearWeight(_) => product::linear_weight(machine, inputs, shapes, out),
        Training::NormGradient(op) => norm::group(machine, &op.0, inputs, shapes, out),
        Training::NormSums(op) => norm::group_sums(machine, &op.0, inputs, shapes, out),
        Training::NormVector(op) => norm::group_vector(op, inputs, out),
        Training::ResizeGradient(op) => moving::resize(op, inputs[0], shapes[0], out),
        Training::Scale(op) => pointwise::scale(op.factor, inputs[0], out),
        Training::Scatter(op) => moving::scatter(op, inputs, shapes, out),
        Training::Slope(op) => pointwise::slope(machine, op, inputs, shapes, out),
        Training::SquaredError(op) => loss::squared(op, inputs, shapes, out),
        Training::Sum(op) => pointwise::sum(machine, op.outer, inputs[0], out),
    }
}
