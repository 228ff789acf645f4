//! Gradients of operations that only move elements.

use crate::ops::training::{ResizeGradient, Scatter};
use rayon::prelude::*;

pub fn scatter(op: &Scatter, inputs: &[&[f32]], shapes: &[&[usize]], out: &mut [f32]) {
    let (g, shape) = (inputs[0], shapes[0]);
    out.fill(0.0);
    match *op {
        Scatter::Slice { axis, start, step, size } => {
            let inner: usize = shape[axis + 1..].iter().product();
            let entries = shape[axis] * inner;
            for (part, g) in out.chunks_exact_mut(size * inner).zip(g.chunks_exact(entries)) {
                for (i, g) in g.chunks_exact(inner).enumerate() {
                    part[(start + i * step) * inner..][..inner].copy_from_slice(g);
                }
            }
        }
        Scatter::Lookup { .. } => {
            let ids: &[u32] = bytemuck::cast_slice(inputs[1]);
            let d = shape[2];
            for (&id, g) in ids.iter().zip(g.chunks_exact(d)) {
                out[id as usize * d..][..d].iter_mut().zip(g).for_each(|(sum, g)| *sum += g);
            }
        }
        Scatter::Token { tokens } => {
            let positions: &[u32] = bytemuck::cast_slice(inputs[1]);
            let d = shape[1];
            for (b, (&position, g)) in positions.iter().zip(g.chunks_exact(d)).enumerate() {
                out[(b * tokens + position as usize) * d..][..d].copy_from_slice(g);
            }
        }
        Scatter::Row { .. } => {
            let step: &[u32] = bytemuck::cast_slice(inputs[1]);
            out[step[0] as usize * g.len()..][..g.len()].copy_from_slice(g);
        }
    }
}

pub fn resize(op: &ResizeGradient, g: &[f32], shape: &[usize], out: &mut [f32]) {
    let (h, w, c) = (shape[1], shape[2], shape[3]);
    let pixel = |n: usize, i: usize, j: usize| &g[((n * h + i) * w + j) * c..][..c];
    match *op {
        ResizeGradient::Double => {
            let (height, width) = (h / 2, w / 2);
            out.par_chunks_mut(width * c).enumerate().for_each(|(r, row)| {
                let (n, i) = (r / height, r % height);
                for (j, y) in row.chunks_exact_mut(c).enumerate() {
                    let four = [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(a, b)| pixel(n, 2 * i + a, 2 * j + b));
                    for (k, y) in y.iter_mut().enumerate() {
                        *y = four[0][k] + four[1][k] + four[2][k] + four[3][k];
                    }
                }
            });
        }
        ResizeGradient::Halve { size: [height, width] } => {
            out.par_chunks_mut(width * c).enumerate().for_each(|(r, row)| {
                let (n, i) = (r / height, r % height / 2);
                for (j, y) in row.chunks_exact_mut(c).enumerate() {
                    match i < h && j / 2 < w {
                        true => y.iter_mut().zip(pixel(n, i, j / 2)).for_each(|(y, g)| *y = 0.25 * g),
                        false => y.fill(0.0),
                    }
                }
            });
        }
    }
}
