//! Slopes, factors, and sums over what was repeated.
#![allow(unsafe_code)]

use super::super::simd::per_isa;
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
pub fn sum(machine: &Machine, outer: usize, x: &[f32], out: &mut [f32]) {
    let inner = out.len() / outer;
    for (x, y) in x.chunks_exact(x.len() / outer).zip(out.chunks_exact_mut(inner)) {
        let sums = column_sums(machine, x, inner);
        y.iter_mut().zip(sums).for_each(|(y, sum)| *y = sum as f32);
    }
}

/// Adds up rows of `width`, in chunks that are then added in order.
fn column_sums(machine: &Machine, x: &[f32], width: usize) -> Vec<f64> {
    let rows = (TASK_ELEMENTS / width).max(1) * width;
    let of = |chunk: &[f32]| {
        let mut sums = vec![0.0; width];
        add_rows(machine.isa, chunk, &mut sums);
        sums
    };
    let parts: Vec<Vec<f64>> = if x.len() <= rows { vec![of(x)] } else { x.par_chunks(rows).map(of).collect() };
    let add = |mut total: Vec<f64>, part: Vec<f64>| {
        total.iter_mut().zip(part).for_each(|(total, sum)| *total += sum);
        total
    };
    parts.into_iter().reduce(add).unwrap_or_default()
}

per_isa! {
    /// Adds rows to their sums.
    pub fn add_rows(rows: &[f32], sums: &mut [f64]) {
        for row in rows.chunks_exact(sums.len()) {
            sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
        }
    }
}
