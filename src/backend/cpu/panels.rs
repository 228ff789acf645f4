//! Packed weights, in the order in which [`super::tile`] reads them.
//!
//! A weight `[N, C, taps]` (a linear layer has one tap) becomes `N / 16` panels. For every tap and input channel a
//! panel holds the weights of sixteen outputs side by side. Elements keep the checkpoint's type, so f16 and bf16 files
//! need half the memory and bandwidth; a block is widened to f32 just before many rows use it. On a bf16 back end
//! panels are rounded to bf16. With [`PanelFormat::Bf16Pairs`], for machines with a bf16 dot product, two neighbouring
//! channels form one element.
#![allow(unsafe_code)]

use super::lanes::{AlignedVec, widen_f16};
use super::simd;
use super::tile::{Isa, NR};
use crate::plan::TensorData;
use half::{bf16, f16};
use rayon::prelude::*;

/// A packed weight matrix with `taps * channels` rows and `outputs` columns.
pub struct Panels {
    /// Columns of the matrix product.
    pub outputs: usize,
    /// Input channels of each tap, or half as many with pairs.
    pub channels: usize,
    /// Taps of the window; 1 for a linear layer.
    pub taps: usize,
    /// Whether elements are pairs of bf16.
    pub pairs: bool,
    data: Data,
}

/// Element type of panels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PanelFormat {
    /// As the checkpoint stores it.
    Stored,
    /// Rounded to bf16.
    Bf16,
    /// Two neighbouring channels, rounded to bf16, in one 32-bit element, for [`super::tile::Tile::pairs`]. The number
    /// of channels must be even.
    Bf16Pairs,
}

enum Data {
    /// f32, or pairs of bf16 as the bits of an f32.
    F32(AlignedVec),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

impl Panels {
    /// Bytes of memory.
    pub fn size_bytes(&self) -> u64 {
        let bytes = match &self.data {
            Data::F32(x) => size_of_val(&x[..]),
            Data::F16(x) => size_of_val(&x[..]),
            Data::Bf16(x) => size_of_val(&x[..]),
        };
        bytes as u64
    }

    /// Packs a stored weight `[outputs, channels, taps]`.
    pub fn pack(weight: &TensorData<'_>, outputs: usize, channels: usize, taps: usize, format: PanelFormat) -> Panels {
        let shape = (outputs, channels, taps);
        let channels = if format == PanelFormat::Bf16Pairs { channels / 2 } else { channels };
        let data = match (weight, format) {
            (TensorData::F32(w), PanelFormat::Stored) => {
                let mut data = AlignedVec::zeros(packed(shape));
                interleave(w, shape, &mut data, |x| x);
                Data::F32(data)
            }
            (TensorData::F16(w), PanelFormat::Stored) => Data::F16(interleaved(w, shape, |x| x)),
            (TensorData::Bf16(w), PanelFormat::Stored | PanelFormat::Bf16) => Data::Bf16(interleaved(w, shape, |x| x)),
            (TensorData::F32(w), PanelFormat::Bf16) => Data::Bf16(interleaved(w, shape, bf16::from_f32)),
            (TensorData::F16(w), PanelFormat::Bf16) => {
                Data::Bf16(interleaved(w, shape, |x| bf16::from_f32(x.to_f32())))
            }
            (TensorData::F32(w), PanelFormat::Bf16Pairs) => Data::F32(in_pairs(w, shape, bf16::from_f32)),
            (TensorData::F16(w), PanelFormat::Bf16Pairs) => {
                Data::F32(in_pairs(w, shape, |x| bf16::from_f32(x.to_f32())))
            }
            (TensorData::Bf16(w), PanelFormat::Bf16Pairs) => Data::F32(in_pairs(w, shape, |x| x)),
        };
        Panels { outputs, channels, taps, pairs: format == PanelFormat::Bf16Pairs, data }
    }

    /// Number of panels.
    pub fn count(&self) -> usize {
        self.outputs.div_ceil(NR)
    }

    /// Rows `from..from + rows` (in tap-major order) of `count` neighbouring panels in f32, and the distance between
    /// panels. Narrower elements are widened into `scratch`.
    pub fn block<'a>(
        &'a self,
        panel: usize,
        count: usize,
        from: usize,
        rows: usize,
        isa: Isa,
        scratch: &'a mut AlignedVec,
    ) -> (&'a [f32], usize) {
        let stride = self.taps * self.channels * NR;
        let start = panel * stride + from * NR;
        let length = rows * NR;
        if let Data::F32(data) = &self.data {
            return (&data[start..start + (count - 1) * stride + length], stride);
        }
        scratch.resize(count * length);
        for (p, wide) in scratch[..].chunks_exact_mut(length).enumerate() {
            self.widen(isa, start + p * stride, wide);
        }
        (scratch, length)
    }

    /// Widens elements `from..` to f32.
    fn widen(&self, isa: Isa, from: usize, wide: &mut [f32]) {
        let range = from..from + wide.len();
        match &self.data {
            Data::F32(data) => wide.copy_from_slice(&data[range]),
            Data::F16(data) => {
                let narrow = &data[range];
                // SAFETY: both have the same length, a multiple of sixteen; a back end only has available instructions.
                unsafe { widen_f16(isa, narrow.as_ptr(), narrow.len(), wide.as_mut_ptr()) };
            }
            Data::Bf16(data) => simd::widen_bf16(isa, &data[range], wide),
        }
    }

    /// Channels `from..from + rows` of each of the nine taps of a panel in f32. Narrower elements are widened into
    /// `scratch`.
    pub fn taps_of<'a>(
        &'a self,
        panel: usize,
        from: usize,
        rows: usize,
        isa: Isa,
        scratch: &'a mut AlignedVec,
    ) -> [&'a [f32]; 9] {
        let start = |tap: usize| ((panel * self.taps + tap) * self.channels + from) * NR;
        let length = rows * NR;
        if let Data::F32(data) = &self.data {
            return std::array::from_fn(|tap| &data[start(tap)..][..length]);
        }
        scratch.resize(9 * length);
        for (tap, wide) in scratch[..].chunks_exact_mut(length).enumerate() {
            self.widen(isa, start(tap), wide);
        }
        let scratch = &scratch[..];
        std::array::from_fn(|tap| &scratch[tap * length..][..length])
    }
}

/// Packs `w [outputs, channels, taps]` into `[outputs / 16][taps][channels][16]`; leaves missing outputs unchanged.
fn interleave<T: Copy + Sync, U: Send>(
    w: &[T],
    (outputs, channels, taps): (usize, usize, usize),
    packed: &mut [U],
    convert: impl Fn(T) -> U + Sync,
) {
    let per_output = channels * taps;
    packed.par_chunks_mut(per_output * NR).enumerate().for_each(|(panel, out)| {
        for j in 0..NR.min(outputs - panel * NR) {
            let row = &w[(panel * NR + j) * per_output..][..per_output];
            for tap in 0..taps {
                for c in 0..channels {
                    out[(tap * channels + c) * NR + j] = convert(row[c * taps + tap]);
                }
            }
        }
    });
}

/// [`interleave`] into new memory, with zeros for missing outputs.
fn interleaved<T: Copy + Sync, U: Default + Clone + Send>(
    w: &[T],
    shape: (usize, usize, usize),
    convert: impl Fn(T) -> U + Sync,
) -> Vec<U> {
    let mut data = vec![U::default(); packed(shape)];
    interleave(w, shape, &mut data, convert);
    data
}

/// [`interleaved`] with two neighbouring channels per element, the first in its lower half.
fn in_pairs<T: Copy + Sync>(
    w: &[T],
    (outputs, channels, taps): (usize, usize, usize),
    convert: impl Fn(T) -> bf16 + Sync,
) -> AlignedVec {
    let pairs = channels / 2;
    let mut data = AlignedVec::zeros(packed((outputs, pairs, taps)));
    data.par_chunks_mut(pairs * taps * NR).enumerate().for_each(|(panel, out)| {
        for j in 0..NR.min(outputs - panel * NR) {
            let row = &w[(panel * NR + j) * channels * taps..][..channels * taps];
            for tap in 0..taps {
                for c in 0..pairs {
                    let [low, high] = [2 * c, 2 * c + 1].map(|c| u32::from(convert(row[c * taps + tap]).to_bits()));
                    out[(tap * pairs + c) * NR + j] = f32::from_bits(high << 16 | low);
                }
            }
        }
    });
    data
}

/// Number of elements of the panels.
fn packed((outputs, channels, taps): (usize, usize, usize)) -> usize {
    outputs.div_ceil(NR) * channels * taps * NR
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::borrow::Cow;

    #[test]
    fn panels_hold_sixteen_outputs_side_by_side_and_zeros_beyond_the_last() {
        let (outputs, channels, taps) = (18, 3, 2);
        let w: Vec<f32> = (0..outputs * channels * taps).map(|i| i as f32 + 1.0).collect();
        let panels = Panels::pack(&TensorData::F32(Cow::Borrowed(&w)), outputs, channels, taps, PanelFormat::Stored);
        let mut scratch = AlignedVec::default();
        let (output, channel, tap) = (17, 2, 1);
        let (block, _) = panels.block(1, 1, tap * channels + channel, 1, Isa::detect(), &mut scratch);
        assert_eq!(block[1], w[(output * channels + channel) * taps + tap]);
        assert_eq!(block[2..], [0.0; 14]);
    }

    #[test]
    fn f16_panels_widen_to_the_same_values() {
        let w: Vec<f16> = (0..32 * 5).map(|i| f16::from_f32(i as f32 * 0.25 - 9.0)).collect();
        let wide: Vec<f32> = w.iter().map(|x| x.to_f32()).collect();
        let narrow = Panels::pack(&TensorData::F16(Cow::Borrowed(&w)), 32, 5, 1, PanelFormat::Stored);
        let single = Panels::pack(&TensorData::F32(Cow::Borrowed(&wide)), 32, 5, 1, PanelFormat::Stored);
        let (mut a, mut b) = (AlignedVec::default(), AlignedVec::default());
        assert_eq!(
            narrow.block(1, 1, 1, 4, Isa::detect(), &mut a).0,
            single.block(1, 1, 1, 4, Isa::detect(), &mut b).0
        );
    }

    #[test]
    fn bf16_panels_widen_to_the_same_values_for_any_part_of_a_panel() {
        let (outputs, channels, taps) = (19, 5, 3);
        let w: Vec<bf16> = (0..outputs * channels * taps).map(|i| bf16::from_f32(i as f32 * 0.37 - 20.0)).collect();
        let wide: Vec<f32> = w.iter().map(|x| x.to_f32()).collect();
        let narrow = Panels::pack(&TensorData::Bf16(Cow::Borrowed(&w)), outputs, channels, taps, PanelFormat::Stored);
        let single = Panels::pack(&TensorData::F32(Cow::Borrowed(&wide)), outputs, channels, taps, PanelFormat::Stored);
        let (mut a, mut b) = (AlignedVec::default(), AlignedVec::default());
        // Long parts before short ones, so that stale contents of the scratch would show.
        for (panel, count, from, rows) in [(0, 2, 0, 15), (1, 1, 0, 15), (0, 2, 7, 8), (0, 1, 14, 1)] {
            let (narrow, narrow_stride) = narrow.block(panel, count, from, rows, Isa::detect(), &mut a);
            let (single, single_stride) = single.block(panel, count, from, rows, Isa::detect(), &mut b);
            for p in 0..count {
                let (narrow, single) = (&narrow[p * narrow_stride..], &single[p * single_stride..]);
                assert_eq!(narrow[..rows * NR], single[..rows * NR]);
            }
        }
    }

    #[test]
    fn pairs_hold_two_channels_of_an_output_rounded_to_bf16() {
        let (outputs, channels, taps) = (18, 4, 2);
        let w: Vec<f32> = (0..outputs * channels * taps).map(|i| i as f32 * 0.37 - 20.0).collect();
        let panels = Panels::pack(&TensorData::F32(Cow::Borrowed(&w)), outputs, channels, taps, PanelFormat::Bf16Pairs);
        assert_eq!((panels.channels, panels.pairs), (2, true));
        let mut scratch = AlignedVec::default();
        let (output, channel, tap) = (17, 2, 1);
        let (block, _) = panels.block(1, 1, tap * 2 + channel / 2, 1, Isa::detect(), &mut scratch);
        let weight = |channel: usize| bf16::from_f32(w[(output * channels + channel) * taps + tap]).to_bits();
        assert_eq!(block[1].to_bits(), u32::from(weight(channel + 1)) << 16 | u32::from(weight(channel)));
        assert_eq!(block[2..], [0.0; 14]);
    }

    #[test]
    fn bf16_panels_hold_the_nearest_values_for_every_stored_type() {
        let w: Vec<f16> = (0..32 * 5).map(|i| f16::from_f32(i as f32 * 0.37 - 9.0)).collect();
        let wide: Vec<f32> = w.iter().map(|x| x.to_f32()).collect();
        let nearest: Vec<bf16> = wide.iter().map(|&x| bf16::from_f32(x)).collect();
        let sources = [
            TensorData::F16(Cow::Borrowed(&w)),
            TensorData::F32(Cow::Borrowed(&wide)),
            TensorData::Bf16(nearest.into()),
        ];
        let block = |weight: &TensorData<'_>| {
            let mut scratch = AlignedVec::default();
            Panels::pack(weight, 32, 5, 1, PanelFormat::Bf16).block(1, 1, 1, 4, Isa::detect(), &mut scratch).0.to_vec()
        };
        assert_eq!(block(&sources[0]), block(&sources[1]));
        assert_eq!(block(&sources[1]), block(&sources[2]));
    }
}
