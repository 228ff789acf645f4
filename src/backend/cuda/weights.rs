//! Weights on the device, in the order and type in which kernels read them.

use super::compiled::ALIGNMENT;
use super::device::Driver;
use super::device_slice::DeviceSlice;
use super::loading::{self, Transfer};
use crate::backend::{Weights, launches, not_loaded};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::ops::{Launch, MatmulUnit, elements};
use crate::plan::{Origin, Plan, ValueId, WeightSource};
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

/// Tensor name, order and type.
type Key = (String, Order, Dtype);

/// Weights by tensor name, order and type.
pub(super) struct CudaWeights {
    tensors: HashMap<Key, DeviceSlice>,
    /// One allocation for each plan that needed more than was there.
    memory: Vec<Arc<Allocation>>,
}

impl Weights for CudaWeights {
    fn size_bytes(&self) -> u64 {
        self.memory.iter().map(|allocation| allocation.bytes).sum()
    }

    /// An allocation goes with its last tensor. The first one keeps the room of what went; tensors that are loaded anew get
    /// one of their own, which goes the next time.
    fn without(&self, is_stale: &dyn Fn(&str) -> bool) -> Arc<dyn Weights> {
        let mut tensors = self.tensors.clone();
        tensors.retain(|(name, ..), _| !is_stale(name));
        let is_used = |allocation: &Allocation| {
            let end = allocation.address + allocation.bytes;
            tensors.values().any(|place| (allocation.address..end).contains(&place.address))
        };
        let memory = self.memory.iter().filter(|allocation| is_used(allocation)).cloned().collect();
        Arc::new(CudaWeights { tensors, memory })
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
                places.push((key, value.shape.as_slice(), DeviceSlice { address: end, bytes, written: false }));
                end += bytes.next_multiple_of(ALIGNMENT);
            }
        }
        if end == 0 {
            return Ok(weights);
        }
        let allocation = Allocation { driver: driver.clone(), address: driver.allocate(end)?, bytes: end };
        places.iter_mut().for_each(|(.., place)| place.address += allocation.address);
        let transfers: Vec<Transfer<'_>> = places
            .iter()
            .map(|((name, order, dtype), shape, place)| Transfer {
                name,
                shape,
                order: *order,
                dtype: *dtype,
                place: *place,
            })
            .collect();
        loading::load(&**driver, &transfers, source)?;
        weights.tensors.extend(places.into_iter().map(|(key, _, place)| (key, place)));
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

/// Padding of rows in [`Order::Rows`] and [`Order::Columns`], in elements.
const ROW_MULTIPLE: usize = 8;
const COLUMN_MULTIPLE: usize = 4;

impl Order {
    /// The order of a matmul's weight on this unit.
    pub fn of(matmul: MatmulUnit) -> Order {
        if matmul == MatmulUnit::CudaCores { Order::Columns } else { Order::Rows }
    }

    /// Number and length of the rows of a tensor of this shape, padding included; one row where the order is the stored
    /// one.
    pub fn rows(self, shape: &[usize]) -> [usize; 2] {
        match self {
            Order::Stored => [1, elements(shape)],
            Order::Columns => [elements(&shape[1..]), shape[0].next_multiple_of(COLUMN_MULTIPLE)],
            Order::Rows => [shape[0], elements(&shape[1..]).next_multiple_of(ROW_MULTIPLE)],
        }
    }

    /// Size in bytes of a tensor of this shape.
    pub fn size_bytes(self, shape: &[usize], dtype: Dtype) -> u64 {
        (elements(&self.rows(shape)) * dtype.size_bytes()) as u64
    }
}
