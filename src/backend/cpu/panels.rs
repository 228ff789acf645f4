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
    /// Two elements in each f32.
    F16(AlignedVec),
    Bf16(AlignedVec),
}

impl Panels {
    /// Bytes of memory.
    pub fn size_bytes(&self) -> u64 {
        let (Data::F32(data) | Data::F16(data) | Data::Bf16(data)) = &self.data;
        size_of_val(&data[..]) as u64
    }

    /// Packs a stored weight `[outputs, channels, taps]`.
    pub fn pack(weight: &TensorData<'_>, outputs: usize, channels: usize, taps: usize, format: PanelFormat) -> Panels {
        let shape = (outputs, channels, taps);
        let channels = if format == PanelFormat::Bf16Pairs { channels / 2 } else { channels };
        let data = match (weight, format) {
            (TensorData::F32(w), PanelFormat::Stored) => Data::F32(interleaved(w, shape, |x| x)),
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

    /// Packs a weight `[outputs, channels, taps]` the other way round, for the gradient of what it is multiplied with: the
    /// columns are its channels, and a convolution's taps come in reverse. A matrix `[M, K]` becomes the right operand of
    /// a product over `M`.
    pub fn turned(w: &[f32], outputs: usize, channels: usize, taps: usize) -> Panels {
        let mut data = AlignedVec::zeros(packed((channels, outputs, taps)));
        data.par_chunks_mut(taps * outputs * NR).enumerate().for_each(|(panel, out)| {
            let present = NR.min(channels - panel * NR);
            for (i, row) in out.chunks_exact_mut(NR).enumerate() {
                let (tap, output) = (taps - 1 - i / outputs, i % outputs);
                let from = &w[(output * channels + panel * NR) * taps + tap..];
                row[..present].iter_mut().zip(from.iter().step_by(taps)).for_each(|(to, from)| *to = *from);
            }
        });
        Panels { outputs: channels, channels: outputs, taps, pairs: false, data: Data::F32(data) }
    }

    /// As [`Panels::turned`] packs it, of a weight that is packed already.
    pub fn turn(&self, isa: Isa) -> Panels {
        let (outputs, channels, taps) = (self.outputs, self.channels, self.taps);
        let mut data = AlignedVec::zeros(packed((channels, outputs, taps)));
        data.par_chunks_mut(taps * outputs * NR).enumerate().for_each_init(
            AlignedVec::default,
            |scratch, (to, out)| {
                let rows = NR.min(channels - to * NR);
                for (from, tap) in (0..self.count()).flat_map(|from| (0..taps).map(move |tap| (from, tap))) {
                    let (square, _) = self.block(from, 1, tap * channels + to * NR, rows, isa, scratch);
                    let first = (taps - 1 - tap) * outputs + from * NR;
                    let present = NR.min(outputs - from * NR);
                    for (j, row) in out[first * NR..][..present * NR].chunks_exact_mut(NR).enumerate() {
                        row[..rows].iter_mut().zip(square[j..].iter().step_by(NR)).for_each(|(to, from)| *to = *from);
                    }
                }
            },
        );
        Panels { outputs: channels, channels: outputs, taps, pairs: false, data: Data::F32(data) }
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
                let narrow = &bytemuck::cast_slice::<f32, f16>(data)[range];
                // SAFETY: both have the same length, a multiple of sixteen; a back end only has available instructions.
                unsafe { widen_f16(isa, narrow.as_ptr(), narrow.len(), wide.as_mut_ptr()) };
            }
            Data::Bf16(data) => simd::widen_bf16(isa, &bytemuck::cast_slice(data)[range], wide),
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

/// Elements of an output that are packed at a time, all taps of some channels: what sixteen outputs have of them stays in
/// the first-level cache, so that every line of the stored weight and of the panel is fetched once.
const BLOCK_ELEMENTS: usize = 256;

/// Packs `w [outputs, channels, taps]` into new memory `[outputs / 16][taps][channels][16]`, with zeros for missing
/// outputs. Its pages are first touched by the threads that write them.
fn interleaved<T: Copy + Sync, U: bytemuck::Pod + Send>(
    w: &[T],
    shape: (usize, usize, usize),
    convert: impl Fn(T) -> U + Sync,
) -> AlignedVec {
    packed_by(w, shape, |[x]| convert(x))
}

/// [`interleaved`] with two neighbouring channels per element, the first in its lower half.
fn in_pairs<T: Copy + Sync>(w: &[T], shape: (usize, usize, usize), convert: impl Fn(T) -> bf16 + Sync) -> AlignedVec {
    let bits = |x: T| u32::from(convert(x).to_bits());
    packed_by(w, shape, |[low, high]| bits(high) << 16 | bits(low))
}

/// Packs elements of `N` neighbouring channels each.
fn packed_by<const N: usize, T: Copy + Sync, U: bytemuck::Pod + Send>(
    w: &[T],
    (outputs, channels, taps): (usize, usize, usize),
    join: impl Fn([T; N]) -> U + Sync,
) -> AlignedVec {
    let elements = channels / N * taps;
    let mut data = AlignedVec::zeros(packed((outputs, channels / N, taps)) * size_of::<U>() / size_of::<f32>());
    let all: &mut [U] = bytemuck::cast_slice_mut(&mut data);
    all.par_chunks_mut(elements * NR).enumerate().for_each(|(panel, out)| {
        let present = NR.min(outputs - panel * NR);
        let w = &w[panel * NR * channels * taps..][..present * channels * taps];
        // The numbers of taps of nearly all weights, as constants.
        match taps {
            1 => pack_panel(w, channels, 1, out, &join),
            9 => pack_panel(w, channels, 9, out, &join),
            taps => pack_panel(w, channels, taps, out, &join),
        }
    });
    data
}

/// Packs one panel from the weights of its outputs.
#[inline(always)]
fn pack_panel<const N: usize, T: Copy, U>(
    w: &[T],
    channels: usize,
    taps: usize,
    out: &mut [U],
    join: &impl Fn([T; N]) -> U,
) {
    let (elements, block) = (channels / N, (BLOCK_ELEMENTS / (N * taps)).max(1));
    for first in (0..elements).step_by(block) {
        let count = block.min(elements - first);
        for tap in 0..taps {
            let (out, _) = out[(tap * elements + first) * NR..][..count * NR].as_chunks_mut::<NR>();
            for (j, row) in w.chunks_exact(channels * taps).take(NR).enumerate() {
                let row = &row[first * N * taps..][..count * N * taps];
                // Elements of a tap are `taps` apart.
                for (to, from) in out.iter_mut().zip(row.chunks_exact(N * taps)) {
                    to[j] = join(std::array::from_fn(|i| from[i * taps + tap]));
                }
            }
        }
    }
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
    fn every_weight_has_its_place_whatever_the_blocks_of_channels() {
        // Whole and partial blocks and panels, more taps than a block has elements, one channel.
        for (outputs, channels, taps) in [(33, 600, 1), (17, 58, 9), (16, 28, 9), (5, 2, 300), (3, 1, 25), (40, 256, 2)]
        {
            let w: Vec<f32> = (0..outputs * channels * taps).map(|i| (i % 1999) as f32 - 999.0).collect();
            let halves: Vec<f16> = w.iter().map(|&x| f16::from_f32(x)).collect();
            let weight = |output: usize, c: usize, tap: usize| match output < outputs {
                true => w[(output * channels + c) * taps + tap],
                false => 0.0,
            };
            let check = |weight_data: TensorData<'_>, format: PanelFormat| {
                let panels = Panels::pack(&weight_data, outputs, channels, taps, format);
                let mut scratch = AlignedVec::default();
                for panel in 0..panels.count() {
                    let rows = taps * panels.channels;
                    let (block, _) = panels.block(panel, 1, 0, rows, Isa::detect(), &mut scratch);
                    for (i, &got) in block[..rows * NR].iter().enumerate() {
                        let (row, output) = (i / NR, panel * NR + i % NR);
                        let (tap, c) = (row / panels.channels, row % panels.channels);
                        let rounded = |c: usize| bf16::from_f32(weight(output, c, tap));
                        let want = match format {
                            PanelFormat::Stored => weight(output, c, tap),
                            PanelFormat::Bf16 => rounded(c).to_f32(),
                            PanelFormat::Bf16Pairs => {
                                let bits = [2 * c, 2 * c + 1].map(|c| u32::from(rounded(c).to_bits()));
                                f32::from_bits(bits[1] << 16 | bits[0])
                            }
                        };
                        assert_eq!(
                            got.to_bits(),
                            want.to_bits(),
                            "{outputs} {channels} {taps} {format:?}: {row} {output}"
                        );
                    }
                }
            };
            for format in [PanelFormat::Stored, PanelFormat::Bf16, PanelFormat::Bf16Pairs] {
                if format != PanelFormat::Bf16Pairs || channels % 2 == 0 {
                    check(TensorData::F32(Cow::Borrowed(&w)), format);
                    check(TensorData::F16(Cow::Borrowed(&halves)), format);
                }
            }
        }
    }

    #[test]
    fn turned_panels_have_outputs_and_channels_swapped_and_taps_in_reverse() {
        for (outputs, channels, taps) in [(18, 37, 9), (16, 16, 1), (5, 33, 4), (47, 1, 1)] {
            let w: Vec<f32> = (0..outputs * channels * taps).map(|i| i as f32 + 1.0).collect();
            let halves: Vec<bf16> = w.iter().map(|&x| bf16::from_f32(x)).collect();
            let rounded: Vec<f32> = halves.iter().map(|x| x.to_f32()).collect();
            let swapped = |w: &[f32]| -> Vec<f32> {
                let at = |i: usize| (i / taps % outputs * channels + i / taps / outputs) * taps + taps - 1 - i % taps;
                (0..w.len()).map(|i| w[at(i)]).collect()
            };
            let all = |panels: &Panels| {
                let mut scratch = AlignedVec::default();
                let rows = panels.taps * panels.channels;
                (0..panels.count())
                    .flat_map(|p| panels.block(p, 1, 0, rows, Isa::detect(), &mut scratch).0[..rows * NR].to_vec())
                    .collect::<Vec<f32>>()
            };
            let pack =
                |w: TensorData<'_>, outputs, channels| Panels::pack(&w, outputs, channels, taps, PanelFormat::Stored);
            let want = all(&pack(TensorData::F32(swapped(&w).into()), channels, outputs));
            assert_eq!(all(&Panels::turned(&w, outputs, channels, taps)), want);
            assert_eq!(all(&pack(TensorData::F32(w.into()), outputs, channels).turn(Isa::detect())), want);
            let want = all(&pack(TensorData::F32(swapped(&rounded).into()), channels, outputs));
            assert_eq!(all(&pack(TensorData::Bf16(halves.into()), outputs, channels).turn(Isa::detect())), want);
        }
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
