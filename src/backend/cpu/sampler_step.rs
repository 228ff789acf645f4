//! The diffusion step: [`element`] for every element.

use super::for_rows;
use crate::noise::Philox;
use crate::ops::{COEFFICIENTS, Noise, SamplerStep, Variance, element, elements};
use std::borrow::Cow;

pub fn run(op: &SamplerStep, inputs: &[&[f32]], shape: &[usize], out: &mut [f32]) {
    let (output, x_t) = (inputs[0], inputs[1]);
    let (rows, _) = inputs[2].as_chunks::<COEFFICIENTS>();
    let positions = elements(&shape[1..]) / shape[shape.len() - 1];
    let c = shape[shape.len() - 1];
    let stride = if op.variance == Variance::LearnedRange { 2 * c } else { c };
    // With guidance the conditional half follows the unconditional one.
    let half = if op.guided { elements(shape) / c * stride } else { 0 };
    for_rows(out, c, |first, out| {
        let noise = match op.noise {
            Noise::Given => Cow::Borrowed(&inputs[3][first * c..][..out.len()]),
            // The last step has none.
            Noise::Philox if rows.iter().all(|row| row[7] == 0.0) => Cow::Owned(vec![0.0; out.len()]),
            Noise::Philox => {
                let (seeds, step) = (bytemuck::cast_slice(inputs[3]), inputs[4][0].to_bits());
                Cow::Owned(draw(seeds, step, [positions, c], first, out.len()))
            }
        };
        for (i, y) in out.chunks_exact_mut(c).enumerate() {
            let position = first + i;
            let row = &rows[position / positions];
            let conditional = &output[half + position * stride..][..stride];
            let unconditional = &output[position * stride..][..stride];
            for k in 0..c {
                let variance = if stride > c { conditional[c + k] } else { 0.0 };
                let x_t = x_t[position * c + k];
                y[k] = element(op, row, unconditional[k], conditional[k], variance, x_t, noise[i * c + k]).next;
            }
        }
    });
}

/// `length` elements of the step's noise, starting at position `first` of all pictures `[P, C]` in sequence.
fn draw(seeds: &[u32], step: u32, [positions, c]: [usize; 2], first: usize, length: usize) -> Vec<f32> {
    let wide = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    let mut noise = vec![0.0; length];
    let mut channel = Vec::new();
    let mut rest = &mut noise[..];
    let mut position = first;
    while !rest.is_empty() {
        let (picture, from) = (position / positions, position % positions);
        let count = (positions - from).min(rest.len() / c);
        let part;
        (part, rest) = rest.split_at_mut(count * c);
        position += count;
        let seed = &seeds[4 * picture..][..4];
        let generator = Philox::new(wide(seed[0], seed[1]));
        let number = wide(seed[2], seed[3]).wrapping_add(u64::from(step));
        if positions == 1 || c == 1 {
            // NHWC and NCHW are the same order here.
            generator.fill_normal(number, from as u64, part);
            continue;
        }
        channel.resize(count, 0.0);
        for k in 0..c {
            generator.fill_normal(number, (k * positions + from) as u64, &mut channel);
            for (pixel, &z) in part.chunks_exact_mut(c).zip(&channel) {
                pixel[k] = z;
            }
        }
    }
    noise
}
