//! Element-wise operations that were not fused into a neighbour.

use super::{Machine, for_rows, simd};
use crate::ops::Pointwise;

pub fn run(machine: &Machine, op: &Pointwise, inputs: &[&[f32]], shape: &[usize], out: &mut [f32]) {
    let x = inputs[0];
    match op {
        Pointwise::Activation(activation) => for_rows(out, 1, |first, y| {
            y.copy_from_slice(&x[first..][..y.len()]);
            simd::activate(machine.isa, *activation, y);
        }),
        Pointwise::Add => zip_repeating(x, inputs[1], out, |a, b| a + b),
        Pointwise::Multiply => zip_repeating(x, inputs[1], out, |a, b| a * b),
        Pointwise::AddChannels => {
            let (c, image) = (shape[shape.len() - 1], x.len() / shape[0]);
            for_rows(out, c, |first, rows| {
                for (i, y) in rows.chunks_exact_mut(c).enumerate() {
                    let row = first + i;
                    let shift = &inputs[1][row * c / image * c..][..c];
                    y.iter_mut().zip(&x[row * c..]).zip(shift).for_each(|((y, x), s)| *y = x + s);
                }
            });
        }
        Pointwise::ScaleShift => {
            let (c, image) = (shape[shape.len() - 1], x.len() / shape[0]);
            for_rows(out, c, |first, rows| {
                for (i, y) in rows.chunks_exact_mut(c).enumerate() {
                    let row = first + i;
                    let (scale, shift) = inputs[1][row * c / image * 2 * c..][..2 * c].split_at(c);
                    for k in 0..c {
                        y[k] = x[row * c + k] * (1.0 + scale[k]) + shift[k];
                    }
                }
            });
        }
        Pointwise::Clamp { low, high } => for_rows(out, 1, |first, y| {
            y.iter_mut().zip(&x[first..]).for_each(|(y, x)| *y = x.clamp(*low, *high));
        }),
    }
}

/// `out = f(x, y)`, with `y` repeated along `x`.
fn zip_repeating(x: &[f32], y: &[f32], out: &mut [f32], f: impl Fn(f32, f32) -> f32 + Sync) {
    for_rows(out, y.len(), |first, rows| {
        for (i, row) in rows.chunks_exact_mut(y.len()).enumerate() {
            row.iter_mut().zip(&x[(first + i) * y.len()..]).zip(y).for_each(|((o, a), b)| *o = f(*a, *b));
        }
    });
}
