//! [`Driver`]: the interface between the back end and a device, implemented by NVIDIA's driver and by the emulator.
//!
//! Launch geometry, argument order, slot offsets and graph capture are above this interface, so that tests without a
//! GPU cover them.

use super::device_slice::DeviceSlice;
use super::tensor_map::TensorMap;
use crate::error::{Error, Result};
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

/// A kernel that a driver has loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LoadedKernel {
    /// Index in the driver's list of kernels.
    pub index: usize,
    /// Threads per block.
    pub threads: u32,
}

/// Handle of a captured graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CapturedGraph(pub usize);

/// A kernel launch with its arguments.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub kernel: LoadedKernel,
    pub grid: [u32; 3],
    /// The first parameters: tensor maps.
    pub maps: Vec<TensorMap>,
    /// The next parameters: pointers.
    pub tensors: Vec<DeviceSlice>,
    /// The last parameters: bits of 32-bit scalars.
    pub scalars: Vec<u32>,
    /// Dynamic shared memory.
    pub shared_bytes: u32,
    /// Blocks of a cluster, neighbours in the grid's third dimension.
    pub cluster: u32,
    /// Kernel and step, for messages.
    pub label: String,
}

/// Keeps calls of other threads out of a capture: a capturing stream records every call, so they wait until it ends.
#[derive(Default)]
pub(super) struct CaptureLock {
    lock: Mutex<()>,
    capturing: Mutex<Option<ThreadId>>,
}

impl CaptureLock {
    fn capturing(&self) -> MutexGuard<'_, Option<ThreadId>> {
        self.capturing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks for one call. `None` within this thread's own capture, which holds the lock.
    pub fn acquire(&self) -> Option<MutexGuard<'_, ()>> {
        let is_capturing = *self.capturing() == Some(thread::current().id());
        if is_capturing { None } else { Some(self.lock.lock().unwrap_or_else(PoisonError::into_inner)) }
    }

    /// Runs `record` as this thread's capture. The caller holds the lock.
    pub fn record(&self, record: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        *self.capturing() = Some(thread::current().id());
        let recorded = record();
        *self.capturing() = None;
        recorded
    }
}

/// Values by index; an index is reused once its value was removed.
pub(super) struct Slab<T>(Vec<Option<T>>);

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Slab(Vec::new())
    }
}

impl<T> Slab<T> {
    /// Stores a value at the first free index, which it returns.
    pub fn insert(&mut self, value: T) -> usize {
        let index = self.0.iter().position(Option::is_none).unwrap_or(self.0.len());
        if index == self.0.len() {
            self.0.push(None);
        }
        self.0[index] = Some(value);
        index
    }

    /// The value at an index, if there is one.
    pub fn get(&self, index: usize) -> Option<&T> {
        self.0.get(index)?.as_ref()
    }

    /// Takes the value at an index out.
    pub fn remove(&mut self, index: usize) -> Option<T> {
        self.0.get_mut(index)?.take()
    }

    /// All values.
    #[cfg(feature = "cuda")]
    pub fn into_values(self) -> impl Iterator<Item = T> {
        self.0.into_iter().flatten()
    }
}

/// The error of an allocation for which the memory is missing.
pub(super) fn out_of_memory(backend: &str, needed: u64, free: u64) -> Error {
    let reason = format!("out of memory: {needed} bytes needed, {free} free");
    Error::OutOfMemory { backend: backend.to_owned(), reason }
}

/// A device with one in-order stream. Calls may return before the device has executed them; [`Driver::read`] waits.
pub(super) trait Driver: Send + Sync {
    /// The device's name in messages.
    fn name(&self) -> String;

    /// The compute capability: major, minor.
    fn capability(&self) -> (u32, u32);

    /// The device's memory, where it is known.
    fn memory_bytes(&self) -> Option<u64> {
        None
    }

    /// Bytes of its memory that nothing uses at present, where that is known.
    fn free_memory_bytes(&self) -> Option<u64> {
        None
    }

    /// Allocates memory aligned to 256 bytes; contents are unspecified. [`Error::OutOfMemory`] where there is not enough.
    fn allocate(&self, bytes: u64) -> Result<u64>;

    /// Frees memory after the calls so far have been executed.
    fn free(&self, address: u64);

    /// Copies from the host to the device.
    fn write(&self, address: u64, bytes: &[u8]) -> Result<()>;

    /// Waits for the calls so far, then copies from the device to the host.
    fn read(&self, address: u64, bytes: usize) -> Result<Vec<u8>>;

    /// Copies within the device.
    fn copy(&self, from: u64, to: u64, bytes: u64) -> Result<()>;

    /// Declares the contents of a range stale. The emulator then reports reads of them; other devices do nothing.
    fn discard(&self, _address: u64, _bytes: u64) -> Result<()> {
        Ok(())
    }

    /// Loads an entry of a module, once; later calls return the same kernel.
    fn load(&self, text: &'static str, entry: &'static str) -> Result<LoadedKernel>;

    /// Launches a kernel.
    fn launch(&self, call: &Call) -> Result<()>;

    /// Captures the launches and copies that `record` makes into a graph, without running them.
    fn capture(&self, record: &mut dyn FnMut() -> Result<()>) -> Result<CapturedGraph>;

    /// Launches a captured graph.
    fn replay(&self, graph: CapturedGraph) -> Result<()>;

    /// Launches kernels one after the other, and measures each by the device's clock.
    fn time(&self, calls: &[&Call]) -> Result<Vec<f64>>;

    /// Waits until all calls so far have been executed.
    fn finish(&self) -> Result<()>;

    /// Destroys a captured graph; its handle may be given to a later one.
    fn release(&self, graph: CapturedGraph);

    /// Opens a stream for uploads, which captures do not record and calls of the device's own stream do not wait for.
    fn uploads(&self) -> Result<Box<dyn Uploads + '_>>;
}

/// Staging buffers of a stream for uploads.
pub(super) const STAGING_BUFFERS: usize = 4;
/// Bytes of each. At 50 GB/s the device takes one in a third of a millisecond, long against what a copy costs to begin,
/// and the first copy begins as soon as so much was read.
pub(super) const STAGING_BYTES: usize = 16 << 20;

/// An in-order stream for uploads: copies from staging buffers, and kernels that read what was copied. Calls return before
/// the device has executed them. Dropping it waits for all of them, so memory that they write may be freed after it.
pub(super) trait Uploads {
    /// One of the [`STAGING_BUFFERS`], of [`STAGING_BYTES`], once the device has read what was last sent from it.
    fn buffer(&mut self, index: usize) -> Result<&mut [u8]>;

    /// Begins to copy ranges of a buffer, each to an address.
    fn send(&mut self, index: usize, pieces: &[(Range<usize>, u64)]) -> Result<()>;

    /// Device memory that lives as long as the stream, aligned to 256 bytes; called at most once.
    fn scratch(&mut self, bytes: u64) -> Result<u64>;

    /// Launches a kernel behind the copies so far.
    fn launch(&mut self, call: &Call) -> Result<()>;

    /// Waits until everything so far has been executed. Calls of the device's own stream may then use what was written.
    fn finish(&mut self) -> Result<()>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_is_reused_once_its_value_was_removed() {
        let mut slab = Slab::default();
        assert_eq!(["a", "b", "c"].map(|value| slab.insert(value)), [0, 1, 2]);
        assert_eq!((slab.remove(1), slab.remove(1), slab.get(1)), (Some("b"), None, None));
        assert_eq!([slab.insert("d"), slab.insert("e")], [1, 3]);
        assert_eq!((slab.get(0), slab.get(1), slab.get(3)), (Some(&"a"), Some(&"d"), Some(&"e")));
    }
}
