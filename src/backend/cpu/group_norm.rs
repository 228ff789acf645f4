//! Group normalisation in two passes: moments per group, then one multiply-add per element with the normalisation,
//! gain and style of its channel folded together. The mean is subtracted first, not folded into the shift: where a
//! group hardly varies, the gain is large and the two products would cancel.
//!
//! Moments are summed in f64, in pieces whose size depends on the shape alone, so that the result does not depend
//! on the number of threads.

use super::{Machine, TASK_ELEMENTS, for_rows, simd};
use crate::ops::GroupNorm;
use rayon::prelude::*;

/// Sums over a piece of an image, by group.
struct Moments {
    sum: Vec<f64>,
    square: Vec<f64>,
}

pub fn run(machine: &Machine, op: &GroupNorm, inputs: &[&[f32]], shape: &[usize], out: &mut [f32]) {
    let (x, gamma, beta) = (inputs[0], inputs[1], inputs[2]);
    let (images, c) = (shape[0], gamma.len());
    let image = x.len() / images;
    let piece = (TASK_ELEMENTS / c).max(1) * c;
    let pieces = image.div_ceil(piece);
    let moments = |i: usize| {
        let (n, p) = (i / pieces, i % pieces);
        let rows = &x[n * image + p * piece..n * image + image.min((p + 1) * piece)];
        let (mut sum, mut square) = (vec![0.0f64; c], vec![0.0f64; c]);
        simd::accumulate_moments(machine.isa, rows, &mut sum, &mut square);
        Moments { sum: per_group(&sum, op.groups), square: per_group(&square, op.groups) }
    };
    let moments: Vec<Moments> = if images * pieces > 1 {
        (0..images * pieces).into_par_iter().map(moments).collect()
    } else {
        vec![moments(0)]
    };
    let count = (image / op.groups) as f64;
    for n in 0..images {
        let own = &moments[n * pieces..(n + 1) * pieces];
        let (mut center, mut scale, mut shift) = (vec![0.0f32; c], vec![0.0f32; c], vec![0.0f32; c]);
        for g in 0..op.groups {
            let mean = own.iter().map(|m| m.sum[g]).sum::<f64>() / count;
            let variance = own.iter().map(|m| m.square[g]).sum::<f64>() / count - mean * mean;
            // A comparison, not max: that would turn a NaN into zero.
            let variance = if variance < 0.0 { 0.0 } else { variance };
            let inverse = 1.0 / (variance + f64::from(op.eps)).sqrt();
            for i in g * (c / op.groups)..(g + 1) * (c / op.groups) {
                let gain = inverse * f64::from(gamma[i]);
                // What rounding the mean left over goes into the shift.
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
        let source = &x[n * image..][..image];
        for_rows(&mut out[n * image..][..image], c, |first, rows| {
            let source = &source[first * c..][..rows.len()];
            simd::affine_rows(machine.isa, source, &center, &scale, &shift, op.activation, rows);
        });
    }
}

fn per_group(channels: &[f64], groups: usize) -> Vec<f64> {
    channels.chunks_exact(channels.len() / groups).map(|g| g.iter().sum()).collect()
}
