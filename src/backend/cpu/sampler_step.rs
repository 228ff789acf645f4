//! The diffusion step: [`element`] for every element.

use super::for_rows;
use crate::ops::{SamplerStep, Variance, element, elements};

pub fn run(op: &SamplerStep, inputs: &[&[f32]], shape: &[usize], out: &mut [f32]) {
    let (output, x_t, noise) = (inputs[0], inputs[1], inputs[2]);
    let row: &[f32; 8] = inputs[3].try_into().expect("the shape rule asks for eight coefficients");
    let c = shape[shape.len() - 1];
    let stride = if op.variance == Variance::LearnedRange { 2 * c } else { c };
    // With guidance the conditional half follows the unconditional one.
    let half = if op.guidance.is_some() { elements(shape) / c * stride } else { 0 };
    for_rows(out, c, |first, rows| {
        for (i, y) in rows.chunks_exact_mut(c).enumerate() {
            let position = first + i;
            let conditional = &output[half + position * stride..][..stride];
            let unconditional = &output[position * stride..][..stride];
            for k in 0..c {
                let variance = if stride > c { conditional[c + k] } else { 0.0 };
                let at = position * c + k;
                y[k] = element(op, row, unconditional[k], conditional[k], variance, x_t[at], noise[at]).next;
            }
        }
    });
}
