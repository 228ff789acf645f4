//! Uploads weights in chunks, converted and reordered.
//!
//! Chunks have a few MiB, and the bytes in flight are limited, so a component is never in host memory twice: the stored
//! bytes stay in the memory map, and only chunks are copied.

use super::device::Device;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::plan::TensorData;
use half::{bf16, f16};
use std::ops::Range;

/// Outputs side by side in a packed weight.
pub const PANEL: usize = 32;
/// Bytes of a chunk.
const CHUNK: usize = 4 << 20;
/// Bytes in flight after which the upload waits for the device.
const MAX_IN_FLIGHT: usize = 64 << 20;

/// A weight's order on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Order {
    /// The stored order.
    Stored,
    /// `[outputs, channels, taps]` as `[outputs / 32, taps * channels, 32]`, padded with zeros. A workgroup reads its
    /// columns contiguously, whatever their total, and four outputs at once.
    Packed {
        /// Rows of the stored matrix.
        outputs: usize,
        /// Input channels.
        channels: usize,
        /// Taps of the window; 1 for a linear layer.
        taps: usize,
    },
}

impl Order {
    /// The order of a matmul's weight of this shape.
    pub fn packed(shape: &[usize]) -> Order {
        Order::Packed { outputs: shape[0], channels: shape[1], taps: shape[2..].iter().product() }
    }

    /// Extent of a tensor's first dimension.
    pub fn rows(self, shape: &[usize]) -> usize {
        match self {
            Order::Stored => shape.first().copied().unwrap_or(1),
            Order::Packed { outputs, .. } => outputs,
        }
    }

    /// The elements on the device that hold these rows; the first row must start a panel.
    pub fn elements(self, shape: &[usize], rows: &Range<usize>) -> Range<usize> {
        match self {
            Order::Stored => {
                let row: usize = shape.iter().skip(1).product();
                rows.start * row..rows.end * row
            }
            Order::Packed { channels, taps, .. } => {
                let row = channels * taps;
                rows.start * row..rows.end.next_multiple_of(PANEL) * row
            }
        }
    }
}

/// Size of `count` elements on the device, rounded up to four bytes.
pub fn size_bytes(count: usize, dtype: Dtype) -> u64 {
    (count * dtype.size_bytes()).next_multiple_of(4) as u64
}

/// Uploads tensors, and counts the bytes in flight.
pub struct Uploads<'a> {
    device: &'a Device,
    in_flight: usize,
    chunk: Vec<u8>,
}

impl<'a> Uploads<'a> {
    pub fn new(device: &'a Device) -> Self {
        Uploads { device, in_flight: 0, chunk: Vec::new() }
    }

    /// Fills a buffer with a range of a stored tensor's elements in the device's order.
    pub fn send(
        &mut self,
        buffer: &wgpu::Buffer,
        stored: &TensorData<'_>,
        order: Order,
        elements: Range<usize>,
        dtype: Dtype,
    ) -> Result<()> {
        let size = dtype.size_bytes();
        // Whole rows of panels, and an even number of elements, so that every chunk but the last is a multiple of four
        // bytes.
        let most = (CHUNK / size).next_multiple_of(2 * PANEL);
        for from in elements.clone().step_by(most) {
            let range = from..elements.end.min(from + most);
            self.chunk.clear();
            self.chunk.resize((range.len() * size).next_multiple_of(4), 0);
            match stored {
                TensorData::F32(x) => fill(x, |v| v, range, order, dtype, &mut self.chunk),
                TensorData::F16(x) => fill(x, f16::to_f32, range, order, dtype, &mut self.chunk),
                TensorData::Bf16(x) => fill(x, bf16::to_f32, range, order, dtype, &mut self.chunk),
            }
            self.device.write(buffer, ((from - elements.start) * size) as u64, &self.chunk);
            self.in_flight += self.chunk.len();
            if self.in_flight >= MAX_IN_FLIGHT {
                self.finish()?;
            }
        }
        Ok(())
    }

    /// Waits for all uploads so far.
    pub fn finish(&mut self) -> Result<()> {
        let submission = self.device.submit(None);
        self.in_flight = 0;
        self.device.wait(Some(submission))
    }
}

/// Converts elements `range` of the device's order to the device's type.
fn fill<T: Copy>(x: &[T], widen: impl Fn(T) -> f32, range: Range<usize>, order: Order, dtype: Dtype, out: &mut [u8]) {
    let put = |out: &mut [u8], at: usize, v: T| match dtype {
        Dtype::F16 => out[2 * at..2 * at + 2].copy_from_slice(&f16::from_f32(widen(v)).to_le_bytes()),
        Dtype::Bf16 => out[2 * at..2 * at + 2].copy_from_slice(&bf16::from_f32(widen(v)).to_le_bytes()),
        Dtype::F32 | Dtype::U32 => out[4 * at..4 * at + 4].copy_from_slice(&widen(v).to_le_bytes()),
        other => unreachable!("no value of a plan is {other}"),
    };
    match order {
        Order::Stored => x[range].iter().enumerate().for_each(|(i, &v)| put(out, i, v)),
        Order::Packed { outputs, channels, taps } => {
            let depth = channels * taps;
            let (first, last) = (range.start / PANEL, range.end / PANEL);
            for panel in first / depth..last.div_ceil(depth) {
                let rows = first.max(panel * depth)..last.min((panel + 1) * depth);
                // Outputs are the outer loop, so that the stored tensor is read in order.
                for o in panel * PANEL..outputs.min((panel + 1) * PANEL) {
                    let stored = &x[o * depth..][..depth];
                    for row in rows.clone() {
                        let k = row - panel * depth;
                        put(out, (row - first) * PANEL + o % PANEL, stored[k % channels * taps + k / channels]);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(x: &[f32], range: Range<usize>, order: Order) -> Vec<f32> {
        let mut out = vec![0; 4 * range.len()];
        fill(x, |v| v, range, order, Dtype::F32, &mut out);
        bytemuck::allocation::pod_collect_to_vec(&out)
    }

    #[test]
    fn a_panel_holds_32_outputs_of_every_tap_and_channel_and_zeros_beyond_the_last() {
        let (outputs, channels, taps) = (35, 3, 2);
        let x: Vec<f32> = (1..=outputs * channels * taps).map(|i| i as f32).collect();
        let order = Order::packed(&[outputs, channels, 1, taps]);
        let depth = channels * taps;
        let all = filled(&x, 0..2 * PANEL * depth, order);
        for k in 0..depth {
            let (tap, c) = (k / channels, k % channels);
            for o in 0..outputs {
                let at = (o / PANEL * depth + k) * PANEL + o % PANEL;
                assert_eq!(all[at], x[(o * channels + c) * taps + tap], "{o} {k}");
            }
            assert_eq!(all[(depth + k) * PANEL + 3..][..29], [0.0; 29]);
        }
    }

    #[test]
    fn chunks_are_parts_of_the_whole() {
        let x: Vec<f32> = (0..70 * 7).map(|i| i as f32).collect();
        let order = Order::packed(&[70, 7]);
        let all = filled(&x, 0..3 * PANEL * 7, order);
        for rows in [0..2, 5..9, 6..21, 13..15] {
            let range = rows.start * PANEL..rows.end * PANEL;
            assert_eq!(filled(&x, range.clone(), order), all[range]);
        }
        assert_eq!(filled(&x, 3..9, Order::Stored), x[3..9]);
    }

    #[test]
    fn f16_takes_half_the_bytes_in_multiples_of_four() {
        let whole =
            |order: Order, shape: &[usize], dtype| size_bytes(order.elements(shape, &(0..shape[0])).len(), dtype);
        assert_eq!(whole(Order::Stored, &[5], Dtype::F16), 12);
        assert_eq!(whole(Order::packed(&[5, 7]), &[5, 7], Dtype::F16), 2 * PANEL as u64 * 7);
        assert_eq!(whole(Order::packed(&[33, 7]), &[33, 7], Dtype::F32), 4 * 2 * PANEL as u64 * 7);
    }

    #[test]
    fn parts_of_a_tensor_are_contiguous_and_complete() {
        let shape = [70, 3, 1, 2];
        for order in [Order::Stored, Order::packed(&shape)] {
            let parts = [0..32, 32..64, 64..70].map(|rows| order.elements(&shape, &rows));
            assert_eq!((parts[0].end, parts[1].end), (parts[1].start, parts[2].start));
            assert_eq!(parts[0].start..parts[2].end, order.elements(&shape, &(0..70)));
        }
    }
}
