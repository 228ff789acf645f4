//! What the back end asks of a device: a narrow trait with two implementations, a real driver and the emulator.
//!
//! Launch geometry, argument order, offsets of slots and the captured loop are above this line and the same for both,
//! so that tests without a GPU cover them.

use super::device_slice::DeviceSlice;
use super::tensor_map::TensorMap;
use crate::error::Result;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

/// A kernel that a driver has loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Loaded {
    /// Its number with the driver.
    pub number: usize,
    /// Threads of a block.
    pub threads: u32,
}

/// A captured list of calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Captured(pub usize);

/// A launch with everything that it needs.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub kernel: Loaded,
    pub grid: [u32; 3],
    /// Tensor maps, which come first.
    pub maps: Vec<TensorMap>,
    /// Pointers, in the order of the kernel's parameters.
    pub tensors: Vec<DeviceSlice>,
    /// Numbers of 32 bits, after the pointers.
    pub scalars: Vec<u32>,
    /// Shared memory beside what the kernel declares.
    pub shared_bytes: u32,
    /// Kernel and step, for messages.
    pub label: String,
}

/// Whose calls a device takes. A device that captures keeps whatever call comes, so those of other threads wait for the
/// end of it.
#[derive(Default)]
pub(super) struct Turns {
    turn: Mutex<()>,
    capturer: Mutex<Option<ThreadId>>,
}

impl Turns {
    fn capturer(&self) -> MutexGuard<'_, Option<ThreadId>> {
        self.capturer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the turn of a call. Calls within a capture have that of the capture.
    pub fn take(&self) -> Option<MutexGuard<'_, ()>> {
        let captures = *self.capturer() == Some(thread::current().id());
        if captures { None } else { Some(self.turn.lock().unwrap_or_else(PoisonError::into_inner)) }
    }

    /// Makes the calls that are captured, within a turn.
    pub fn capture(&self, record: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        *self.capturer() = Some(thread::current().id());
        let recorded = record();
        *self.capturer() = None;
        recorded
    }
}

/// A device. Calls are made in order and may return before the device has done them; [`Driver::read`] waits.
pub(super) trait Driver: Send + Sync {
    /// How the device is named in messages.
    fn name(&self) -> String;

    /// The compute capability, by which kernels are chosen.
    fn capability(&self) -> (u32, u32);

    /// The device's memory, where it is known.
    fn memory_bytes(&self) -> Option<u64> {
        None
    }

    /// Reserves memory, aligned to 256 bytes, with no particular contents.
    fn allocate(&self, bytes: u64) -> Result<u64>;

    /// Gives memory back once the device has done what it was asked for so far.
    fn free(&self, address: u64);

    /// Copies to the device.
    fn write(&self, address: u64, bytes: &[u8]) -> Result<()>;

    /// Waits for the device and copies from it.
    fn read(&self, address: u64, bytes: usize) -> Result<Vec<u8>>;

    /// Copies within the device.
    fn copy(&self, from: u64, to: u64, bytes: u64) -> Result<()>;

    /// Says that the contents of a range are no longer needed. Only devices that look for mistakes care.
    fn forget(&self, _address: u64, _bytes: u64) -> Result<()> {
        Ok(())
    }

    /// Loads an entry of a module; a second time returns what is there.
    fn load(&self, text: &'static str, entry: &'static str) -> Result<Loaded>;

    /// Runs a kernel.
    fn launch(&self, call: &Call) -> Result<()>;

    /// Keeps the launches and copies that `record` makes, without running them.
    fn capture(&self, record: &mut dyn FnMut() -> Result<()>) -> Result<Captured>;

    /// Runs what was kept.
    fn replay(&self, captured: Captured) -> Result<()>;

    /// Waits until everything asked for so far is done.
    fn finish(&self) -> Result<()>;

    /// Forgets what was kept.
    fn release(&self, captured: Captured);
}
