//! Weights on the device, in the order and type in which kernels read them.

use super::compiled::ALIGNMENT;
use super::device::Driver;
use super::device_slice::DeviceSlice;
use crate::backend::{Weights, launches, not_loaded};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::ops::{Launch, MatmulUnit, elements};
use crate::plan::{Origin, Plan, TensorData, ValueId, WeightSource};
use half::vec::HalfFloatVecExt;
use half::{bf16, f16};
use std::collections::HashMap;
use std::sync::Arc;

/// A weight's order on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Order {
    /// The stored order.
    Stored,
    /// `[outputs, channels, taps]` as `[taps * channels, outputs]`, rows padded with zeros to a multiple of four: a
    /// matmul on CUDA cores loads the weights of four neighbouring outputs at once.
    Columns,
    /// `[outputs, channels, taps]` as `[outputs, taps * channels]`, rows padded with zeros to a multiple of eight:
    /// K-major, as tensor cores take it. f32 weights are rounded to tf32, because the tensor cores would truncate them.
    Rows,
}

/// An allocation on the device, freed with its last user.
struct Allocation {
    driver: Arc<dyn Driver>,
    address: u64,
    bytes: u64,
}

impl Drop for Allocation {
    fn drop(&mut self) {
        self.driver.free(self.address);
    }
}

/// Weights by tensor name, order and type.
pub(super) struct CudaWeights {
    tensors: HashMap<(String, Order, Dtype), DeviceSlice>,
    /// One allocation for each plan that needed more than was there.
    memory: Vec<Arc<Allocation>>,
}

impl Weights for CudaWeights {
    fn size_bytes(&self) -> u64 {
        self.memory.iter().map(|allocation| allocation.bytes).sum()
    }
}

impl CudaWeights {
    /// Loads every weight in each order that some launch reads, except what is held.
    pub fn load(
        driver: &Arc<dyn Driver>,
        plan: &Plan,
        matmul: MatmulUnit,
        launches: &[(usize, Launch)],
        source: &dyn WeightSource,
        held: Option<&CudaWeights>,
    ) -> Result<CudaWeights> {
        let mut weights = match held {
            Some(held) => CudaWeights { tensors: held.tensors.clone(), memory: held.memory.clone() },
            None => CudaWeights { tensors: HashMap::new(), memory: Vec::new() },
        };
        let mut places = Vec::new();
        let mut end = 0;
        for (name, id, order) in wanted(plan, matmul, launches) {
            let value = &plan.values[id.0];
            let key = (name.to_owned(), order, value.dtype);
            if !weights.tensors.contains_key(&key) {
                let bytes = order.size_bytes(&value.shape, value.dtype);
                places.push((key, &value.shape, DeviceSlice { address: end, bytes, written: false }));
                end += bytes.next_multiple_of(ALIGNMENT);
            }
        }
        if end == 0 {
            return Ok(weights);
        }
        let allocation = Allocation { driver: driver.clone(), address: driver.allocate(end)?, bytes: end };
        for (key, shape, mut place) in places {
            place.address += allocation.address;
            send(&**driver, place, &source.load(&key.0)?, (shape, key.2), key.1)?;
            weights.tensors.insert(key, place);
        }
        weights.memory.push(Arc::new(allocation));
        Ok(weights)
    }

    /// Where the weights of a plan are.
    ///
    /// # Errors
    /// One of them was not loaded.
    pub fn of(
        &self,
        plan: &Plan,
        matmul: MatmulUnit,
        launches: &[(usize, Launch)],
        device: &str,
    ) -> Result<HashMap<(ValueId, Order), DeviceSlice>> {
        let place = |(name, id, order): (&str, ValueId, Order)| {
            let key = (name.to_owned(), order, plan.values[id.0].dtype);
            let place = self.tensors.get(&key).ok_or_else(|| not_loaded(device.to_owned(), plan, name))?;
            Ok(((id, order), *place))
        };
        wanted(plan, matmul, launches).into_iter().map(place).collect()
    }
}

/// Every weight of a plan in each order that some launch reads.
fn wanted<'p>(plan: &'p Plan, matmul: MatmulUnit, launches: &[(usize, Launch)]) -> Vec<(&'p str, ValueId, Order)> {
    let packed = Order::of(matmul);
    let wanted = launches::weights(plan, launches, Order::Stored, |_| packed).into_iter();
    let named = |(id, order): (ValueId, Order)| match &plan.values[id.0].origin {
        Origin::Weight(name) => Some((name.as_str(), id, order)),
        _ => None,
    };
    wanted.filter_map(named).collect()
}

/// Padding of rows in [`Order::Rows`], in elements.
const ROW_MULTIPLE: usize = 8;

impl Order {
    /// The order of a matmul's weight on this unit.
    pub fn of(matmul: MatmulUnit) -> Order {
        if matmul == MatmulUnit::CudaCores { Order::Columns } else { Order::Rows }
    }

    /// Size in bytes of a tensor of this shape.
    pub fn size_bytes(self, shape: &[usize], dtype: Dtype) -> u64 {
        let count = match self {
            Order::Stored => elements(shape),
            Order::Columns => shape[0].next_multiple_of(4) * elements(&shape[1..]),
            Order::Rows => shape[0] * elements(&shape[1..]).next_multiple_of(ROW_MULTIPLE),
        };
        (count * dtype.size_bytes()) as u64
    }
}

/// Uploads a stored tensor to `to`.
fn send(
    driver: &dyn Driver,
    to: DeviceSlice,
    stored: &TensorData<'_>,
    (shape, dtype): (&[usize], Dtype),
    order: Order,
) -> Result<()> {
    let mut values = match (order, stored) {
        (Order::Stored, _) => stored.to_f32(),
        (_, TensorData::F32(x)) => reordered(x, |v| v, shape, order),
        (_, TensorData::F16(x)) => reordered(x, f16::to_f32, shape, order),
        (_, TensorData::Bf16(x)) => reordered(x, bf16::to_f32, shape, order),
    };
    match dtype {
        Dtype::F16 => driver.write(to.address, bytemuck::cast_slice(&Vec::<f16>::from_f32_slice(&values))),
        Dtype::Bf16 => driver.write(to.address, bytemuck::cast_slice(&Vec::<bf16>::from_f32_slice(&values))),
        Dtype::F32 | Dtype::U32 => {
            if order == Order::Rows {
                values.iter_mut().for_each(|x| *x = round_to_tf32(*x));
            }
            driver.write(to.address, bytemuck::cast_slice(&values))
        }
        other => unreachable!("no value of a plan is {other}"),
    }
}

/// Rounds to tf32, a fraction of ten bits, ties away from zero.
fn round_to_tf32(x: f32) -> f32 {
    if x.is_finite() { f32::from_bits((x.to_bits() + 0x1000) & !0x1fff) } else { x }
}

/// A weight in [`Order::Rows`] or [`Order::Columns`] as f32, widened and reordered in one pass, without an f32 copy
/// between.
fn reordered<T: Copy>(x: &[T], widen: impl Fn(T) -> f32, shape: &[usize], order: Order) -> Vec<f32> {
    if order == Order::Rows { rows(x, widen, shape) } else { columns(x, widen, shape) }
}

fn columns<T: Copy>(x: &[T], widen: impl Fn(T) -> f32, shape: &[usize]) -> Vec<f32> {
    let (outputs, channels, taps) = (shape[0], shape[1], elements(&shape[2..]));
    let row = outputs.next_multiple_of(4);
    let mut out = vec![0.0; row * channels * taps];
    // Outputs are the outer loop, so that the stored tensor is read in order.
    for (o, stored) in x.chunks_exact(channels * taps).enumerate() {
        for (i, &v) in stored.iter().enumerate() {
            out[(i % taps * channels + i / taps) * row + o] = widen(v);
        }
    }
    out
}

fn rows<T: Copy>(x: &[T], widen: impl Fn(T) -> f32, shape: &[usize]) -> Vec<f32> {
    let (outputs, channels, taps) = (shape[0], shape[1], elements(&shape[2..]));
    let depth = channels * taps;
    let pitch = depth.next_multiple_of(ROW_MULTIPLE);
    let mut out = vec![0.0; outputs * pitch];
    for (stored, row) in x.chunks_exact(depth).zip(out.chunks_exact_mut(pitch)) {
        for (i, &v) in stored.iter().enumerate() {
            row[i % taps * channels + i / taps] = widen(v);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: [usize; 4] = [6, 3, 1, 2];

    fn stored() -> Vec<f32> {
        (1..=36).map(|i| i as f32).collect()
    }

    #[test]
    fn columns_hold_all_outputs_of_one_tap_and_channel_and_zeros_up_to_four() {
        let (x, all) = (stored(), columns(&stored(), |v| v, &SHAPE));
        assert_eq!(Order::Columns.size_bytes(&SHAPE, Dtype::F32), 4 * all.len() as u64);
        for k in 0..6 {
            let (tap, c) = (k / 3, k % 3);
            for o in 0..6 {
                assert_eq!(all[k * 8 + o], x[(o * 3 + c) * 2 + tap]);
            }
            assert_eq!(all[k * 8 + 6..][..2], [0.0; 2]);
        }
    }

    #[test]
    fn rows_hold_all_taps_and_channels_of_one_output_and_zeros_up_to_eight() {
        let (x, all) = (stored(), rows(&stored(), |v| v, &SHAPE));
        assert_eq!(Order::Rows.size_bytes(&SHAPE, Dtype::Bf16), 2 * all.len() as u64);
        for (o, row) in all.chunks(8).enumerate() {
            for (k, v) in row[..6].iter().enumerate() {
                assert_eq!(*v, x[(o * 3 + k % 3) * 2 + k / 3]);
            }
            assert_eq!(row[6..], [0.0; 2]);
        }
    }

    #[test]
    fn tf32_has_ten_bits_of_fraction_and_rounds_to_the_nearest() {
        assert_eq!(round_to_tf32(1.0 + 2f32.powi(-10)), 1.0 + 2f32.powi(-10));
        assert_eq!(round_to_tf32(-1.0 - 2f32.powi(-11)), -1.0 - 2f32.powi(-10));
        assert_eq!(round_to_tf32(1.0 + 2f32.powi(-12)), 1.0);
        assert!(round_to_tf32(f32::NAN).is_nan() && round_to_tf32(f32::INFINITY) == f32::INFINITY);
    }
}
