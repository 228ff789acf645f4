//! Weights in the order in which [`super::tile`] reads them.
//!
//! A weight `[N, C, taps]` (a linear layer has one tap) becomes `N / 16` panels, each holding for every tap and
//! input channel the weights of sixteen outputs side by side. Elements stay in the type in which the checkpoint
//! stores them: half-precision files need half the memory and half the bandwidth, and a block is widened just
//! before it is used for many rows.

use super::tile::NR;
use crate::plan::Stored;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;

/// A packed weight matrix with `taps * channels` rows and `outputs` columns.
pub struct Panels {
    /// Columns of the product.
    pub outputs: usize,
    /// Input channels of each tap.
    pub channels: usize,
    /// Positions of the window; 1 for a linear layer.
    pub taps: usize,
    data: Data,
}

enum Data {
    F32(Vec<f32>),
    F16(Vec<f16>),
    BF16(Vec<bf16>),
}

impl Panels {
    /// Packs a stored weight `[outputs, channels, taps]`.
    pub fn pack(weight: &Stored<'_>, outputs: usize, channels: usize, taps: usize) -> Panels {
        let shape = (outputs, channels, taps);
        let data = match weight {
            Stored::F32(w) => Data::F32(interleave(w, shape, 0.0)),
            Stored::F16(w) => Data::F16(interleave(w, shape, f16::ZERO)),
            Stored::BF16(w) => Data::BF16(interleave(w, shape, bf16::ZERO)),
        };
        Panels { outputs, channels, taps, data }
    }

    /// Number of panels.
    pub fn count(&self) -> usize {
        self.outputs.div_ceil(NR)
    }

    /// Rows `from..from + rows` (in tap-major order) of a panel in single precision; `scratch` receives them if
    /// they are stored narrower.
    pub fn block<'a>(&'a self, panel: usize, from: usize, rows: usize, scratch: &'a mut Vec<f32>) -> &'a [f32] {
        let start = (panel * self.taps * self.channels + from) * NR;
        let range = start..start + rows * NR;
        match &self.data {
            Data::F32(data) => return &data[range],
            Data::F16(data) => {
                scratch.resize(rows * NR, 0.0);
                data[range].convert_to_f32_slice(scratch);
            }
            Data::BF16(data) => {
                scratch.resize(rows * NR, 0.0);
                data[range].convert_to_f32_slice(scratch);
            }
        }
        scratch
    }
}

/// `w [outputs, channels, taps]` to `[outputs / 16][taps][channels][16]`, missing outputs filled.
fn interleave<T: Copy + Send + Sync>(w: &[T], (outputs, channels, taps): (usize, usize, usize), zero: T) -> Vec<T> {
    let per_output = channels * taps;
    let mut packed = vec![zero; outputs.div_ceil(NR) * per_output * NR];
    packed.par_chunks_mut(per_output * NR).enumerate().for_each(|(panel, out)| {
        for j in 0..NR.min(outputs - panel * NR) {
            let row = &w[(panel * NR + j) * per_output..][..per_output];
            for tap in 0..taps {
                for c in 0..channels {
                    out[(tap * channels + c) * NR + j] = row[c * taps + tap];
                }
            }
        }
    });
    packed
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::borrow::Cow;

    #[test]
    fn panels_hold_sixteen_outputs_side_by_side_and_zeros_beyond_the_last() {
        let (outputs, channels, taps) = (18, 3, 2);
        let w: Vec<f32> = (0..outputs * channels * taps).map(|i| i as f32 + 1.0).collect();
        let panels = Panels::pack(&Stored::F32(Cow::Borrowed(&w)), outputs, channels, taps);
        let mut scratch = Vec::new();
        let (output, channel, tap) = (17, 2, 1);
        let block = panels.block(1, tap * channels + channel, 1, &mut scratch);
        assert_eq!(block[1], w[(output * channels + channel) * taps + tap]);
        assert_eq!(block[2..], [0.0; 14]);
    }

    #[test]
    fn half_precision_panels_widen_to_the_same_numbers() {
        let w: Vec<f16> = (0..32 * 5).map(|i| f16::from_f32(i as f32 * 0.25 - 9.0)).collect();
        let wide: Vec<f32> = w.iter().map(|x| x.to_f32()).collect();
        let narrow = Panels::pack(&Stored::F16(Cow::Borrowed(&w)), 32, 5, 1);
        let single = Panels::pack(&Stored::F32(Cow::Borrowed(&wide)), 32, 5, 1);
        let (mut a, mut b) = (Vec::new(), Vec::new());
        assert_eq!(narrow.block(1, 1, 4, &mut a), single.block(1, 1, 4, &mut b));
    }

    #[test]
    fn bfloat_panels_widen_to_the_same_numbers_for_any_part_of_a_panel() {
        let (outputs, channels, taps) = (19, 5, 3);
        let w: Vec<bf16> = (0..outputs * channels * taps).map(|i| bf16::from_f32(i as f32 * 0.37 - 20.0)).collect();
        let wide: Vec<f32> = w.iter().map(|x| x.to_f32()).collect();
        let narrow = Panels::pack(&Stored::BF16(Cow::Borrowed(&w)), outputs, channels, taps);
        let single = Panels::pack(&Stored::F32(Cow::Borrowed(&wide)), outputs, channels, taps);
        let (mut a, mut b) = (Vec::new(), Vec::new());
        // Long parts before short ones: what an earlier part left in the scratch must not show.
        for (panel, from, rows) in [(0, 0, 15), (1, 0, 15), (1, 7, 8), (0, 14, 1)] {
            assert_eq!(narrow.block(panel, from, rows, &mut a), single.block(panel, from, rows, &mut b));
        }
    }
}
