//! Slopes, factors, and sums over what was repeated.

use super::super::{Machine, TASK_ELEMENTS, for_rows, simd};
use crate::ops::training::Slope;
use rayon::prelude::*;

pub fn slope(machine: &Machine, op: &Slope, inputs: &[&[f32]], shapes: &[&[usize]], out: &mut [f32]) {
    let (g, other) = (inputs[0], inputs[1]);
    match *op {
        Slope::Activation(activation) => for_rows(out, 1, |first, y| {
            y.copy_from_slice(&g[first..][..y.len()]);
            simd::slopes(machine.isa, activation, &other[first..][..y.len()], y);
        }),
        Slope::Clamp { low, high } => for_rows(out, 1, |first, y| {
            for ((y, g), x) in y.iter_mut().zip(&g[first..]).zip(&other[first..]) {
                *y = if *x > low && *x < high { *g } else { 0.0 };
            }
        }),
        Slope::ScaleShift => {
            let shape = shapes[0];
            let c = shape[shape.len() - 1];
            let image = g.len() / shape[0];
            for_rows(out, c, |first, rows| {
                for (i, y) in rows.chunks_exact_mut(c).enumerate() {
                    let row = first + i;
                    let scale = &other[row * c / image * 2 * c..][..c];
                    y.iter_mut().zip(&g[row * c..]).zip(scale).for_each(|((y, g), s)| *y = g * (1.0 + s));
                }
            });
        }
    }
}

pub fn scale(factor: f32, x: &[f32], out: &mut [f32]) {
    for_rows(out, 1, |first, y| y.iter_mut().zip(&x[first..]).for_each(|(y, x)| *y = x * factor));
}

/// `x [outer, repeats, inner]` to `[outer, inner]`.
pub fn sum(outer: usize, x: &[f32], out: &mut [f32]) {
    let inner = out.len() / outer;
    for (x, y) in x.chunks_exact(x.len() / outer).zip(out.chunks_exact_mut(inner)) {
        let sums =
            column_sums(x, inner, |row, sums| sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x)));
        y.iter_mut().zip(sums).for_each(|(y, sum)| *y = sum as f32);
    }
}

/// Adds up rows of `width` by `add(row, sums)`, in chunks that are then added in order.
pub fn column_sums(x: &[f32], width: usize, add: impl Fn(&[f32], &mut [f64]) + Sync) -> Vec<f64> {
    let rows = (TASK_ELEMENTS / width).max(1);
    let of = |chunk: &[f32]| {
        let mut sums = vec![0.0; width];
        chunk.chunks_exact(width).for_each(|row| add(row, &mut sums));
        sums
    };
    let parts: Vec<Vec<f64>> = match x.len() <= rows * width {
        true => vec![of(x)],
        false => x.par_chunks(rows * width).map(of).collect(),
    };
    let mut parts = parts.into_iter();
    let mut total = parts.next().unwrap_or_else(|| vec![0.0; width]);
    parts.for_each(|part| total.iter_mut().zip(part).for_each(|(total, sum)| *total += sum));
    total
}
