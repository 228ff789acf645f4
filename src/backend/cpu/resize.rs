//! Doubling, halving and bicubic resize of channels-last pictures, one output row per task.

use crate::ops::{Resize, cubic_taps};
use rayon::prelude::*;

pub fn run(op: &Resize, x: &[f32], from: &[usize], to: &[usize], out: &mut [f32]) {
    let (h, w, c) = (from[1], from[2], from[3]);
    let (out_h, out_w) = (to[1], to[2]);
    let pixel = |n: usize, i: usize, j: usize| &x[((n * h + i) * w + j) * c..][..c];
    let rows = out.par_chunks_mut(out_w * c).enumerate().map(|(r, row)| (r / out_h, r % out_h, row));
    match op {
        Resize::NearestDouble => rows.for_each(|(n, i, row)| {
            for (j, y) in row.chunks_exact_mut(c).enumerate() {
                y.copy_from_slice(pixel(n, i / 2, j / 2));
            }
        }),
        Resize::MeanHalve => rows.for_each(|(n, i, row)| {
            for (j, y) in row.chunks_exact_mut(c).enumerate() {
                let (top, bottom) = (2 * i, 2 * i + 1);
                let (left, right) = (2 * j, 2 * j + 1);
                let (a, b) = (pixel(n, top, left), pixel(n, top, right));
                let (d, e) = (pixel(n, bottom, left), pixel(n, bottom, right));
                for k in 0..c {
                    y[k] = (a[k] + b[k] + d[k] + e[k]) * 0.25;
                }
            }
        }),
        Resize::Bicubic { height, width } => {
            let (down, across) = (cubic_taps(h, *height), cubic_taps(w, *width));
            rows.for_each(|(n, i, row)| {
                // Filters vertically first, then horizontally.
                let mut line = vec![0.0f32; w * c];
                let (top, weights) = &down[i];
                for (k, weight) in weights.iter().enumerate() {
                    let source = &x[(n * h + top + k) * w * c..][..w * c];
                    line.iter_mut().zip(source).for_each(|(y, v)| *y += weight * v);
                }
                for (y, (left, weights)) in row.chunks_exact_mut(c).zip(&across) {
                    y.fill(0.0);
                    for (k, weight) in weights.iter().enumerate() {
                        let source = &line[(left + k) * c..][..c];
                        y.iter_mut().zip(source).for_each(|(y, v)| *y += weight * v);
                    }
                }
            });
        }
    }
}
