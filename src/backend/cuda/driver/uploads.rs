//! The GPU's stream for uploads, with its staging buffers in page-locked memory.
//!
//! Only the thread that loads calls the driver; threads that fill a buffer see a slice. A buffer's event is recorded
//! behind the last copy from it and waited for before anyone may write to the buffer again. The stream needs no lock: a
//! capture of another thread records its own stream only.

use super::{Gpu, failed};
use crate::backend::cuda::device::{Call, STAGING_BUFFERS, STAGING_BYTES, Uploads};
use crate::error::Result;
use cudarc::driver::result as cu;
use cudarc::driver::sys;
use std::ops::Range;
use std::sync::PoisonError;

/// Page-locked memory of [`STAGING_BYTES`], and the event behind the last copy from it.
struct Pinned {
    memory: *mut u8,
    copied: sys::CUevent,
}

/// A stream and its buffers, made when they are first needed. It is kept for the next load, because locking pages takes
/// as long as filling them.
pub(super) struct Lane {
    stream: sys::CUstream,
    buffers: [Option<Pinned>; STAGING_BUFFERS],
}

// SAFETY: handles of the driver and memory that it allocated, used by one owner at a time. The driver's functions may be
// called from any thread whose current context is the lane's.
unsafe impl Send for Lane {}

impl Lane {
    /// The caller has made the context current.
    fn open() -> std::result::Result<Lane, cu::DriverError> {
        let stream = cu::stream::create(cu::stream::StreamKind::NonBlocking)?;
        Ok(Lane { stream, buffers: Default::default() })
    }

    /// Frees everything. The caller has made the context current.
    ///
    /// # Safety
    /// The stream is idle, so that the device reads none of the buffers.
    pub unsafe fn close(self) {
        // SAFETY: each of them was created by this lane and is destroyed once; the device uses none, says the caller.
        unsafe {
            for buffer in self.buffers.into_iter().flatten() {
                _ = cu::event::destroy(buffer.copied);
                _ = cu::free_host(buffer.memory.cast());
            }
            _ = cu::stream::destroy(self.stream);
        }
    }
}

impl Pinned {
    /// The caller has made the context current.
    fn allocate() -> std::result::Result<Pinned, cu::DriverError> {
        // Blocking: a thread that waits for the bus leaves its core to the threads that read.
        let flags =
            sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32 | sys::CUevent_flags::CU_EVENT_BLOCKING_SYNC as u32;
        let mut copied = std::ptr::null_mut();
        // SAFETY: the event is written to a variable that outlives the call.
        unsafe { sys::cuEventCreate(&mut copied, flags) }.result()?;
        // SAFETY: the memory comes from the driver with contents that Rust knows nothing of, which any u8 may have.
        match unsafe { cu::malloc_host(STAGING_BYTES, 0) } {
            Ok(memory) => Ok(Pinned { memory: memory.cast(), copied }),
            Err(error) => {
                // SAFETY: created above and not used again.
                _ = unsafe { cu::event::destroy(copied) };
                Err(error)
            }
        }
    }
}

/// A [`Lane`] in use.
pub(super) struct GpuUploads<'a> {
    gpu: &'a Gpu,
    /// `None` only while it is dropped.
    lane: Option<Lane>,
    scratch: Option<u64>,
}

impl<'a> GpuUploads<'a> {
    /// With the lane that an earlier load has left, or a new one.
    pub fn open(gpu: &'a Gpu) -> Result<GpuUploads<'a>> {
        gpu.make_current()?;
        let idle = gpu.idle_lane.lock().unwrap_or_else(PoisonError::into_inner).take();
        let lane = match idle {
            Some(lane) => lane,
            None => gpu.check("opening a stream", Lane::open())?,
        };
        Ok(GpuUploads { gpu, lane: Some(lane), scratch: None })
    }

    fn lane(&mut self) -> &mut Lane {
        self.lane.as_mut().expect("taken only by the destructor")
    }

    fn wait(&mut self) -> Result<()> {
        self.gpu.make_current()?;
        let stream = self.lane().stream;
        // SAFETY: the stream lives as long as its lane.
        self.gpu.check("uploading weights", unsafe { cu::stream::synchronize(stream) })
    }
}

impl Uploads for GpuUploads<'_> {
    fn buffer(&mut self, index: usize) -> Result<&mut [u8]> {
        let gpu = self.gpu;
        gpu.make_current()?;
        let slot = &mut self.lane().buffers[index];
        let pinned = match slot {
            Some(pinned) => pinned,
            None => slot.insert(gpu.check("allocating page-locked memory", Pinned::allocate())?),
        };
        // SAFETY: the event lives as long as the buffer. One that was never recorded counts as completed.
        gpu.check("uploading weights", unsafe { cu::event::synchronize(pinned.copied) })?;
        // SAFETY: the memory has so many bytes and lives as long as the lane. `self` is borrowed for as long as the slice,
        // so no other reference to it exists, and no copy reads it: `send` recorded the event behind the last one, or
        // waited for the stream, and the event was waited for above.
        Ok(unsafe { std::slice::from_raw_parts_mut(pinned.memory, STAGING_BYTES) })
    }

    fn send(&mut self, index: usize, pieces: &[(Range<usize>, u64)]) -> Result<()> {
        let gpu = self.gpu;
        gpu.make_current()?;
        let lane = self.lane();
        let stream = lane.stream;
        let pinned = lane.buffers[index].as_ref().expect("it was filled before it is sent");
        // SAFETY: as in `buffer`; shared references to memory that no one writes while the device reads it.
        let bytes = unsafe { std::slice::from_raw_parts(pinned.memory, STAGING_BYTES) };
        let copy = |(range, address): &(Range<usize>, u64)| {
            // SAFETY: the caller keeps the target inside an allocation that outlives the stream's work. The source is in
            // page-locked memory, which is not written before its event has completed and freed only when the stream is
            // idle.
            unsafe { cu::memcpy_htod_async(*address, &bytes[range.clone()], stream) }
        };
        // SAFETY: event and stream live as long as the lane.
        let record = |()| unsafe { cu::event::record(pinned.copied, stream) };
        let sent = pieces.iter().try_for_each(copy).and_then(record);
        if let Err(error) = sent {
            // Without its event the buffer is free only when the stream is idle.
            _ = self.wait();
            return Err(failed(&gpu.name, "uploading weights", error));
        }
        Ok(())
    }

    fn scratch(&mut self, bytes: u64) -> Result<u64> {
        assert!(self.scratch.is_none(), "scratch memory is allocated once");
        let address = crate::backend::cuda::device::Driver::allocate(self.gpu, bytes)?;
        self.scratch = Some(address);
        Ok(address)
    }

    fn launch(&mut self, call: &Call) -> Result<()> {
        self.gpu.make_current()?;
        let stream = self.lane().stream;
        self.gpu.launch_on(call, stream)
    }

    fn finish(&mut self) -> Result<()> {
        self.wait()
    }
}

impl Drop for GpuUploads<'_> {
    fn drop(&mut self) {
        // A lost device reads nothing any more, but nothing can be freed there either.
        if self.wait().is_err() {
            return;
        }
        if let Some(scratch) = self.scratch {
            self.gpu.free_idle(scratch);
        }
        let Some(lane) = self.lane.take() else { return };
        let mut idle = self.gpu.idle_lane.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.is_none() {
            *idle = Some(lane);
        } else {
            // SAFETY: `wait` found the stream idle, and nothing was submitted since.
            unsafe { lane.close() };
        }
    }
}
