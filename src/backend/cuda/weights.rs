//! Weights from the checkpoint to one allocation on the device, in the order in which kernels read them.

use super::device::{Driver, Range};
use crate::error::Result;
use crate::ops::elements;
use crate::plan::Stored;
use half::{bf16, f16};

/// A weight's order on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Order {
    /// As it is stored.
    Stored,
    /// `[outputs, channels, taps]` as `[taps * channels, outputs]`, each row filled up with zeros to a multiple of
    /// four, so that a product can take the weights of four neighbouring outputs at once.
    Packed,
}

impl Order {
    /// Bytes of a tensor of this shape.
    pub fn size_bytes(self, shape: &[usize]) -> u64 {
        let count = match self {
            Order::Stored => elements(shape),
            Order::Packed => shape[0].next_multiple_of(4) * elements(&shape[1..]),
        };
        4 * count as u64
    }
}

/// Copies a stored tensor to its place.
pub(super) fn send(driver: &dyn Driver, to: Range, stored: &Stored<'_>, shape: &[usize], order: Order) -> Result<()> {
    let numbers = match (order, stored) {
        (Order::Stored, _) => stored.to_f32(),
        (Order::Packed, Stored::F32(x)) => packed(x, |v| v, shape),
        (Order::Packed, Stored::F16(x)) => packed(x, f16::to_f32, shape),
        (Order::Packed, Stored::BF16(x)) => packed(x, bf16::to_f32, shape),
    };
    driver.write(to.address, bytemuck::cast_slice(&numbers))
}

fn packed<T: Copy>(x: &[T], widen: impl Fn(T) -> f32, shape: &[usize]) -> Vec<f32> {
    let (outputs, channels, taps) = (shape[0], shape[1], elements(&shape[2..]));
    let row = outputs.next_multiple_of(4);
    let mut out = vec![0.0; row * channels * taps];
    // Outputs outside, so that the stored tensor is read in its own order.
    for (o, stored) in x.chunks_exact(channels * taps).enumerate() {
        for (i, &v) in stored.iter().enumerate() {
            out[(i % taps * channels + i / taps) * row + o] = widen(v);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_rows_hold_all_outputs_of_one_tap_and_channel_and_zeros_up_to_four() {
        let shape = [6, 3, 1, 2];
        let x: Vec<f32> = (1..=36).map(|i| i as f32).collect();
        let all = packed(&x, |v| v, &shape);
        assert_eq!(Order::Packed.size_bytes(&shape), 4 * all.len() as u64);
        for k in 0..6 {
            let (tap, c) = (k / 3, k % 3);
            for o in 0..6 {
                assert_eq!(all[k * 8 + o], x[(o * 3 + c) * 2 + tap]);
            }
            assert_eq!(all[k * 8 + 6..][..2], [0.0; 2]);
        }
    }
}
