//! Weights in the order in which the matrix unit reads them.
//!
//! A weight `[N, C, taps]` becomes `N / 32` panels. A panel holds a step after the other: 32 channels of one tap, the taps of
//! the same channels next to each other, because the pixels below neighbouring taps are the same for the most part and stay
//! in the L1 cache. A step is two tiles of 16 pairs of channels by 16 outputs. Missing outputs and channels are zeros.

use super::super::lanes::AlignedVec;
use super::unit::{BLOCK, DEPTH, SIDE, STEP};
use crate::plan::TensorData;
use half::bf16;
use rayon::prelude::*;

/// A packed weight matrix in bf16.
pub struct TileWeights {
    /// Columns of the product.
    pub outputs: usize,
    /// Input channels.
    pub channels: usize,
    /// Taps of the window; 1 for a linear layer.
    pub taps: usize,
    data: AlignedVec,
}

impl TileWeights {
    /// Packs a stored weight `[outputs, channels, taps]`, rounded to bf16.
    pub fn pack(weight: &TensorData<'_>, outputs: usize, channels: usize, taps: usize) -> TileWeights {
        let steps = channels.div_ceil(DEPTH) * taps;
        let mut data = AlignedVec::zeros(outputs.div_ceil(BLOCK) * steps * STEP / size_of::<f32>());
        let shape = (outputs, channels, taps);
        match weight {
            TensorData::F32(w) => pack(w, shape, bf16::from_f32, &mut data),
            TensorData::F16(w) => pack(w, shape, |x| bf16::from_f32(x.to_f32()), &mut data),
            TensorData::Bf16(w) => pack(w, shape, |x| x, &mut data),
        }
        TileWeights { outputs, channels, taps, data }
    }

    /// Bytes of memory.
    pub fn size_bytes(&self) -> u64 {
        size_of_val(&self.data[..]) as u64
    }

    /// Number of panels.
    pub fn count(&self) -> usize {
        self.outputs.div_ceil(BLOCK)
    }

    /// Steps of a panel.
    pub fn steps(&self) -> usize {
        self.channels.div_ceil(DEPTH) * self.taps
    }

    /// The steps of a panel, [`STEP`] bytes each.
    pub fn panel(&self, number: usize) -> &[u8] {
        let length = self.steps() * STEP;
        &bytemuck::cast_slice(&self.data)[number * length..][..length]
    }
}

/// Packs in parallel; pages of the panels are first touched by the threads that write them.
fn pack<T: Copy + Sync>(
    w: &[T],
    (outputs, channels, taps): (usize, usize, usize),
    round: impl Fn(T) -> bf16 + Sync,
    data: &mut AlignedVec,
) {
    let all: &mut [bf16] = bytemuck::cast_slice_mut(data);
    let length = channels.div_ceil(DEPTH) * taps * STEP / 2;
    all.par_chunks_mut(length).enumerate().for_each(|(number, panel)| {
        let present = BLOCK.min(outputs - number * BLOCK);
        let w = &w[number * BLOCK * channels * taps..][..present * channels * taps];
        // The numbers of taps of nearly all weights, as constants.
        match taps {
            1 => pack_panel(w, channels, 1, &round, panel),
            9 => pack_panel(w, channels, 9, &round, panel),
            taps => pack_panel(w, channels, taps, &round, panel),
        }
    });
}

/// Packs one panel from the weights of its outputs.
#[inline(always)]
fn pack_panel<T: Copy>(w: &[T], channels: usize, taps: usize, round: &impl Fn(T) -> bf16, panel: &mut [bf16]) {
    for (block, steps) in panel.chunks_exact_mut(taps * STEP / 2).enumerate() {
        let first = block * DEPTH;
        let count = DEPTH.min(channels - first);
        for (output, row) in w.chunks_exact(channels * taps).enumerate() {
            let place = output / SIDE * (STEP / 4) + output % SIDE * 2;
            let row = &row[first * taps..][..count * taps];
            for (c, weights) in row.chunks_exact(taps).enumerate() {
                let place = place + c / 2 * DEPTH + c % 2;
                for (tap, &weight) in weights.iter().enumerate() {
                    steps[tap * STEP / 2 + place] = round(weight);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;
    use std::borrow::Cow;

    #[test]
    fn every_weight_has_its_place_and_the_rest_is_zero() {
        for (outputs, channels, taps) in [(33, 70, 1), (17, 32, 9), (64, 40, 4), (3, 1, 25)] {
            let w: Vec<f32> = (0..outputs * channels * taps).map(|i| (i % 1999) as f32 * 0.37 - 350.0).collect();
            let halves: Vec<f16> = w.iter().map(|&x| f16::from_f32(x)).collect();
            let rounded: Vec<bf16> = w.iter().map(|&x| bf16::from_f32(x)).collect();
            let of_halves: Vec<f32> = halves.iter().map(|x| x.to_f32()).collect();
            for (stored, exact) in [
                (TensorData::F32(Cow::Borrowed(&w)), &w),
                (TensorData::F16(Cow::Borrowed(&halves)), &of_halves),
                (TensorData::Bf16(Cow::Borrowed(&rounded)), &w),
            ] {
                let packed = TileWeights::pack(&stored, outputs, channels, taps);
                assert_eq!((packed.count(), packed.steps()), (outputs.div_ceil(32), channels.div_ceil(32) * taps));
                for number in 0..packed.count() {
                    for (i, got) in packed.panel(number).as_chunks::<2>().0.iter().enumerate() {
                        let (step, place) = (i / 1024, i % 1024);
                        let output = number * 32 + place / 512 * 16 + place % 32 / 2;
                        let (channel, tap) = (step / taps * 32 + place % 512 / 32 * 2 + place % 2, step % taps);
                        let want = match output < outputs && channel < channels {
                            true => bf16::from_f32(exact[(output * channels + channel) * taps + tap]),
                            false => bf16::ZERO,
                        };
                        let at = format!("{outputs} {channels} {taps}: output {output}, channel {channel}, tap {tap}");
                        assert_eq!(u16::from_le_bytes(*got), want.to_bits(), "{at}");
                    }
                }
            }
        }
    }
}
