//! Halves of rows, scaled by the other half.

use super::{Machine, for_rows, simd};
use crate::ops::Activation;

pub fn run(machine: &Machine, x: &[f32], c: usize, out: &mut [f32]) {
    for_rows(out, c, |first, rows| {
        for (y, x) in rows.chunks_exact_mut(c).zip(x[first * 2 * c..].chunks_exact(2 * c)) {
            let (value, gate) = x.split_at(c);
            y.copy_from_slice(gate);
            simd::activate(machine.isa, Activation::Gelu, y);
            y.iter_mut().zip(value).for_each(|(y, value)| *y *= value);
        }
    });
}
