//! The diffusion step: [`element`] for every element.

use super::for_rows;
use crate::noise::Seeds;
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
            _ if rows.iter().all(|row| row[7] == 0.0) => Cow::Owned(vec![0.0; out.len()]),
            Noise::Philox | Noise::TorchCuda(_) => {
                let (seeds, step) = (bytemuck::cast_slice(inputs[3]), inputs[4][0].to_bits());
                Cow::Owned(draw(op.noise, seeds, step, [positions, c], first, out.len()))
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
fn draw(noise: Noise, seeds: &[u32], step: u32, [positions, c]: [usize; 2], first: usize, length: usize) -> Vec<f32> {
    let words = noise.words().expect("noise that is drawn has seeds");
    let of_row = |row: &[u32]| match noise {
        Noise::TorchCuda(dtype) => Seeds::of_torch_cuda(row, dtype),
        _ => Seeds::of_philox(row),
    };
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
        let seeds = of_row(&seeds[words * picture..][..words]);
        if positions == 1 || c == 1 {
            // NHWC and NCHW are the same order here.
            seeds.fill_normal(u64::from(step), from as u64, part);
            continue;
        }
        channel.resize(count, 0.0);
        for k in 0..c {
            seeds.fill_normal(u64::from(step), (k * positions + from) as u64, &mut channel);
            for (pixel, &z) in part.chunks_exact_mut(c).zip(&channel) {
                pixel[k] = z;
            }
        }
    }
    noise
}
