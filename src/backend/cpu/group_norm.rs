//! Group normalisation in two passes: statistics per group, then one multiply-add per element, with normalisation, gain
//! and style folded into a scale and shift per channel. The mean is subtracted first and not folded into the shift: in
//! a group with little variance the scale is large, and two large terms would cancel.
//!
//! Sums are in f64, over chunks whose size depends only on the shape, so that results do not depend on the number of
//! threads.

use super::amx::Geometry;
use super::{Machine, TASK_ELEMENTS, simd, store_rows};
use crate::ops::GroupNorm;
use rayon::prelude::*;

/// Sums of a chunk of an image, by group.
struct Sums {
    sum: Vec<f64>,
    square: Vec<f64>,
}

/// What is subtracted from an image's channels, multiplied with and added to them.
struct Affine {
    center: Vec<f32>,
    scale: Vec<f32>,
    shift: Vec<f32>,
}

/// `form`: how the output is kept for a product, if it is.
pub fn run(
    machine: &Machine,
    op: &GroupNorm,
    inputs: &[&[f32]],
    shape: &[usize],
    form: Option<&Geometry>,
    out: &mut [f32],
) {
    let (x, gamma, beta) = (inputs[0], inputs[1], inputs[2]);
    let (images, c) = (shape[0], gamma.len());
    let image = x.len() / images;
    let moments = moments(machine, op, x, images, c);
    let affine = |n: usize| {
        let (mut center, mut scale, mut shift) = (vec![0.0f32; c], vec![0.0f32; c], vec![0.0f32; c]);
        for g in 0..op.groups {
            let Moments { mean, inverse } = moments[n * op.groups + g];
            for i in g * (c / op.groups)..(g + 1) * (c / op.groups) {
                let gain = inverse * f64::from(gamma[i]);
                // The rounding error of the mean goes into the shift.
                let rest = f64::from(mean as f32) - mean;
                let (mut a, mut b) = (gain, f64::from(beta[i]) + rest * gain);
                if op.style {
                    let style = &inputs[3][n * 2 * c..];
                    let (s, t) = (1.0 + f64::from(style[i]), f64::from(style[c + i]));
                    (a, b) = (a * s, b * s + t);
                }
                (center[i], scale[i], shift[i]) = (mean as f32, a as f32, b as f32);
            }
        }
        Affine { center, scale, shift }
    };
    let of_images: Vec<Affine> = (0..images).map(affine).collect();
    let positions = image / c;
    store_rows(machine, form, out, c, |first, rows| {
        let count = rows.len() / c;
        let mut done = 0;
        while done < count {
            let row = first + done;
            let same = (count - done).min(positions - row % positions);
            let Affine { center, scale, shift } = &of_images[row / positions];
            let (source, rows) = (&x[row * c..][..same * c], &mut rows[done * c..][..same * c]);
            simd::affine_rows(machine.isa, source, center, scale, shift, op.activation, rows);
            done += same;
        }
    });
}

/// Mean and reciprocal standard deviation of each group of each image.
#[derive(Clone, Copy)]
pub struct Moments {
    pub mean: f64,
    pub inverse: f64,
}

/// Those of `x [images, .., c]`.
pub fn moments(machine: &Machine, op: &GroupNorm, x: &[f32], images: usize, c: usize) -> Vec<Moments> {
    let image = x.len() / images;
    let chunk = (TASK_ELEMENTS / c).max(1) * c;
    let chunks = image.div_ceil(chunk);
    let sums_of = |i: usize| {
        let (n, p) = (i / chunks, i % chunks);
        let rows = &x[n * image + p * chunk..n * image + image.min((p + 1) * chunk)];
        let (mut sum, mut square) = (vec![0.0f64; c], vec![0.0f64; c]);
        simd::accumulate_sums(machine.isa, rows, &mut sum, &mut square);
        Sums { sum: per_group(&sum, op.groups), square: per_group(&square, op.groups) }
    };
    let sums: Vec<Sums> = if images * chunks > 1 {
        (0..images * chunks).into_par_iter().map(sums_of).collect()
    } else {
        vec![sums_of(0)]
    };
    let count = (image / op.groups) as f64;
    let of = |i: usize| {
        let own = &sums[i / op.groups * chunks..][..chunks];
        let g = i % op.groups;
        let mean = own.iter().map(|m| m.sum[g]).sum::<f64>() / count;
        let variance = own.iter().map(|m| m.square[g]).sum::<f64>() / count - mean * mean;
        // Not `max`, which would turn NaN into zero.
        let variance = if variance < 0.0 { 0.0 } else { variance };
        Moments { mean, inverse: 1.0 / (variance + f64::from(op.eps)).sqrt() }
    };
    (0..images * op.groups).map(of).collect()
}

fn per_group(channels: &[f64], groups: usize) -> Vec<f64> {
    channels.chunks_exact(channels.len() / groups).map(|g| g.iter().sum()).collect()
}
