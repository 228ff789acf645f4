//! Gradients of both norms. Moments are computed again, in f64.
#![allow(unsafe_code)]

use super::super::group_norm::{Moments, moments};
use super::super::simd::per_isa;
use super::super::{Machine, TASK_ELEMENTS, for_rows, simd};
use crate::ops::GroupNorm;
use crate::ops::training::{LayerNormGain, LayerNormGradient, NormVector, VectorOf};
use rayon::prelude::*;

/// Mean and reciprocal standard deviation of a row.
fn row_moments(row: &[f32], eps: f32) -> (f64, f64) {
    let d = row.len() as f64;
    let mean = row.iter().map(|&v| f64::from(v)).sum::<f64>() / d;
    let variance = row.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / d;
    (mean, 1.0 / (variance + f64::from(eps)).sqrt())
}

pub fn layer(op: &LayerNormGradient, inputs: &[&[f32]], out: &mut [f32]) {
    let [g, x, gamma] = [0, 1, 2].map(|i| inputs[i]);
    let d = gamma.len();
    for_rows(out, d, |first, rows| {
        for (i, y) in rows.chunks_exact_mut(d).enumerate() {
            let at = (first + i) * d;
            let (g, x) = (&g[at..][..d], &x[at..][..d]);
            let (mean, inverse) = row_moments(x, op.eps);
            let (mut plain, mut along) = (0.0, 0.0);
            for c in 0..d {
                let scaled = f64::from(g[c]) * f64::from(gamma[c]);
                plain += scaled;
                along += scaled * ((f64::from(x[c]) - mean) * inverse);
            }
            let (plain, along) = (plain / d as f64, along / d as f64);
            for c in 0..d {
                let scaled = f64::from(g[c]) * f64::from(gamma[c]);
                let normalised = (f64::from(x[c]) - mean) * inverse;
                y[c] = (inverse * (scaled - plain - normalised * along)) as f32;
            }
        }
    });
}

pub fn layer_gain(op: &LayerNormGain, inputs: &[&[f32]], out: &mut [f32]) {
    let (g, x) = (inputs[0], inputs[1]);
    let d = out.len();
    let rows = (TASK_ELEMENTS / d).max(1) * d;
    let of = |(g, x): (&[f32], &[f32])| {
        let mut sums = vec![0.0f64; d];
        for (g, x) in g.chunks_exact(d).zip(x.chunks_exact(d)) {
            let (mean, inverse) = row_moments(x, op.eps);
            for c in 0..d {
                sums[c] += f64::from(g[c]) * ((f64::from(x[c]) - mean) * inverse);
            }
        }
        sums
    };
    let parts: Vec<Vec<f64>> = g.par_chunks(rows).zip(x.par_chunks(rows)).map(of).collect();
    for (c, y) in out.iter_mut().enumerate() {
        *y = parts.iter().map(|part| part[c]).sum::<f64>() as f32;
    }
}

/// A group norm as its gradients read it, for one image: `xhat = (x - center) inverse + tail`, `w = xhat gain + offset`.
struct Affine {
    center: Vec<f32>,
    inverse: Vec<f32>,
    /// The rounding error of the mean.
    tail: Vec<f32>,
    gain: Vec<f32>,
    offset: Vec<f32>,
}

impl Affine {
    /// `vectors` are gamma, beta and, if the norm has one, the style.
    fn of(op: &GroupNorm, moments: &[Moments], vectors: &[&[f32]], image: usize) -> Affine {
        let (gamma, beta) = (vectors[0], vectors[1]);
        let c = gamma.len();
        let (scale, shift) = match vectors.get(2) {
            Some(style) => style[image * 2 * c..][..2 * c].split_at(c),
            None => (&[][..], &[][..]),
        };
        let style = |part: &[f32], i: usize| part.get(i).copied().unwrap_or(0.0);
        let of = |i: usize| moments[image * op.groups + i / (c / op.groups)];
        Affine {
            center: (0..c).map(|i| of(i).mean as f32).collect(),
            inverse: (0..c).map(|i| of(i).inverse as f32).collect(),
            tail: (0..c).map(|i| ((f64::from(of(i).mean as f32) - of(i).mean) * of(i).inverse) as f32).collect(),
            gain: (0..c).map(|i| gamma[i] * (1.0 + style(scale, i))).collect(),
            offset: (0..c).map(|i| beta[i] * (1.0 + style(scale, i)) + style(shift, i)).collect(),
        }
    }

    /// The normalised row, and the gradient before the activation.
    fn row(&self, machine: &Machine, op: &GroupNorm, x: &[f32], g: &[f32], [xhat, dw, w]: [&mut [f32]; 3]) {
        normalise(machine.isa, x, &self.center, &self.inverse, &self.tail, xhat);
        dw.copy_from_slice(g);
        if let Some(activation) = op.activation {
            scale_and_shift(machine.isa, xhat, &self.gain, &self.offset, w);
            simd::slopes(machine.isa, activation, w, dw);
        }
    }
}

per_isa! {
    /// `(x - center) inverse + tail`, by channel.
    pub fn normalise(x: &[f32], center: &[f32], inverse: &[f32], tail: &[f32], out: &mut [f32]) {
        let c = out.len();
        let (x, center, inverse, tail) = (&x[..c], &center[..c], &inverse[..c], &tail[..c]);
        for i in 0..c {
            out[i] = (x[i] - center[i]) * inverse[i] + tail[i];
        }
    }
}

per_isa! {
    /// `x gain + offset`, by channel.
    pub fn scale_and_shift(x: &[f32], gain: &[f32], offset: &[f32], out: &mut [f32]) {
        let c = out.len();
        let (x, gain, offset) = (&x[..c], &gain[..c], &offset[..c]);
        for i in 0..c {
            out[i] = x[i] * gain[i] + offset[i];
        }
    }
}

per_isa! {
    /// Adds a row of gradients, and of gradients times the normalised row.
    pub fn add_sums(dw: &[f32], xhat: &[f32], plain: &mut [f64], along: &mut [f64]) {
        let c = plain.len();
        let (dw, xhat, along) = (&dw[..c], &xhat[..c], &mut along[..c]);
        for i in 0..c {
            let g = f64::from(dw[i]);
            plain[i] += g;
            along[i] += g * f64::from(xhat[i]);
        }
    }
}

per_isa! {
    /// `inverse (gain dw - plain - xhat along)`, by channel.
    pub fn input_gradient(
        dw: &[f32],
        xhat: &[f32],
        gain: &[f32],
        inverse: &[f32],
        plain: &[f32],
        along: &[f32],
        out: &mut [f32],
    ) {
        let c = out.len();
        let (dw, xhat, gain) = (&dw[..c], &xhat[..c], &gain[..c]);
        let (inverse, plain, along) = (&inverse[..c], &plain[..c], &along[..c]);
        for i in 0..c {
            out[i] = inverse[i] * (gain[i] * dw[i] - plain[i] - xhat[i] * along[i]);
        }
    }
}

pub fn group_sums(machine: &Machine, op: &GroupNorm, inputs: &[&[f32]], shapes: &[&[usize]], out: &mut [f32]) {
    let (g, x, vectors) = (inputs[0], inputs[1], &inputs[2..]);
    let (images, c) = (shapes[0][0], vectors[0].len());
    let moments = moments(machine, op, x, images, c);
    let image = x.len() / images;
    for (n, out) in out.chunks_exact_mut(2 * c).enumerate() {
        let affine = Affine::of(op, &moments, vectors, n);
        let (g, x) = (&g[n * image..][..image], &x[n * image..][..image]);
        let rows = (TASK_ELEMENTS / c).max(1) * c;
        let of = |(g, x): (&[f32], &[f32])| {
            let mut sums = vec![0.0f64; 2 * c];
            let [mut xhat, mut dw, mut w] = [0; 3].map(|_| vec![0.0f32; c]);
            for (g, x) in g.chunks_exact(c).zip(x.chunks_exact(c)) {
                affine.row(machine, op, x, g, [&mut xhat, &mut dw, &mut w]);
                let (plain, along) = sums.split_at_mut(c);
                add_sums(machine.isa, &dw, &xhat, plain, along);
            }
            sums
        };
        let parts: Vec<Vec<f64>> = g.par_chunks(rows).zip(x.par_chunks(rows)).map(of).collect();
        for (i, y) in out.iter_mut().enumerate() {
            *y = parts.iter().map(|part| part[i]).sum::<f64>() as f32;
        }
    }
}

pub fn group(machine: &Machine, op: &GroupNorm, inputs: &[&[f32]], shapes: &[&[usize]], out: &mut [f32]) {
    let (g, sums, x, vectors) = (inputs[0], inputs[1], inputs[2], &inputs[3..]);
    let (images, c) = (shapes[0][0], vectors[0].len());
    let moments = moments(machine, op, x, images, c);
    let image = x.len() / images;
    let members = c / op.groups;
    let size = (image / op.groups) as f64;
    for (n, out) in out.chunks_exact_mut(image).enumerate() {
        let affine = Affine::of(op, &moments, vectors, n);
        // The means over a group of what each channel's sums weigh there.
        let mean = |sums: &[f32]| -> Vec<f32> {
            let weighed: Vec<f64> = (0..c).map(|i| f64::from(affine.gain[i]) * f64::from(sums[i])).collect();
            (0..c).map(|i| (weighed[i / members * members..][..members].iter().sum::<f64>() / size) as f32).collect()
        };
        let (plain, along) = sums[n * 2 * c..][..2 * c].split_at(c);
        let (plain, along) = (mean(plain), mean(along));
        for_rows(out, c, |first, rows| {
            let [mut xhat, mut dw, mut w] = [0; 3].map(|_| vec![0.0f32; c]);
            for (r, y) in rows.chunks_exact_mut(c).enumerate() {
                let at = n * image + (first + r) * c;
                affine.row(machine, op, &x[at..][..c], &g[at..][..c], [&mut xhat, &mut dw, &mut w]);
                input_gradient(machine.isa, &dw, &xhat, &affine.gain, &affine.inverse, &plain, &along, y);
            }
        });
    }
}

pub fn group_vector(op: &NormVector, inputs: &[&[f32]], out: &mut [f32]) {
    let (sums, gamma, beta) = (inputs[0], inputs[1], inputs[2]);
    let c = gamma.len();
    if op.of == VectorOf::Style {
        for (sums, y) in sums.chunks_exact(2 * c).zip(out.chunks_exact_mut(2 * c)) {
            for i in 0..c {
                y[i] = gamma[i] * sums[c + i] + beta[i] * sums[i];
                y[c + i] = sums[i];
            }
        }
        return;
    }
    let first = if op.of == VectorOf::Gain { c } else { 0 };
    let styles = inputs.get(3);
    for (i, y) in out.iter_mut().enumerate() {
        let of = |(n, sums): (usize, &[f32])| {
            let scale = styles.map_or(0.0, |style| style[n * 2 * c + i]);
            (1.0 + f64::from(scale)) * f64::from(sums[first + i])
        };
        *y = sums.chunks_exact(2 * c).enumerate().map(of).sum::<f64>() as f32;
    }
}
