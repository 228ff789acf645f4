//! A [`Driver`] that takes all calls and does nothing: what remains is the host's part, which can be timed anywhere.

use super::device::{Call, CapturedGraph, Driver, LoadedKernel, STAGING_BYTES, Uploads};
use crate::error::Result;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// A device without memory or processors, of a compute capability.
pub(super) struct Sink {
    pub capability: (u32, u32),
    /// The next address.
    pub end: AtomicU64,
}

/// Its staging buffers, which are never read.
struct Buffers(Vec<Vec<u8>>);

impl Driver for Sink {
    fn name(&self) -> String {
        "sink".to_owned()
    }

    fn capability(&self) -> (u32, u32) {
        self.capability
    }

    fn allocate(&self, bytes: u64) -> Result<u64> {
        Ok(self.end.fetch_add(bytes.next_multiple_of(256), Ordering::Relaxed))
    }

    fn free(&self, _: u64) {}

    fn write(&self, _: u64, _: &[u8]) -> Result<()> {
        Ok(())
    }

    fn read(&self, _: u64, bytes: usize) -> Result<Vec<u8>> {
        Ok(vec![0; bytes])
    }

    fn copy(&self, _: u64, _: u64, _: u64) -> Result<()> {
        Ok(())
    }

    fn load(&self, _: &'static str, _: &'static str) -> Result<LoadedKernel> {
        Ok(LoadedKernel { index: 0, threads: 256 })
    }

    fn launch(&self, _: &Call) -> Result<()> {
        Ok(())
    }

    fn capture(&self, record: &mut dyn FnMut() -> Result<()>) -> Result<CapturedGraph> {
        record().map(|()| CapturedGraph(0))
    }

    fn replay(&self, _: CapturedGraph) -> Result<()> {
        Ok(())
    }

    fn time(&self, calls: &[&Call]) -> Result<Vec<f64>> {
        Ok(vec![0.0; calls.len()])
    }

    fn finish(&self) -> Result<()> {
        Ok(())
    }

    fn release(&self, _: CapturedGraph) {}

    fn uploads(&self) -> Result<Box<dyn Uploads + '_>> {
        Ok(Box::new(Buffers(Vec::new())))
    }
}

impl Uploads for Buffers {
    fn buffer(&mut self, index: usize) -> Result<&mut [u8]> {
        while self.0.len() <= index {
            self.0.push(vec![0; STAGING_BYTES]);
        }
        Ok(&mut self.0[index])
    }

    fn send(&mut self, _: usize, _: &[(Range<usize>, u64)]) -> Result<()> {
        Ok(())
    }

    fn scratch(&mut self, _: u64) -> Result<u64> {
        Ok(0)
    }

    fn launch(&mut self, _: &Call) -> Result<()> {
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        Ok(())
    }
}
