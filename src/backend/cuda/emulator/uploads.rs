//! The emulator's stream for uploads: copies and launches happen as late as they may, so that a wait that is missing shows.

use super::driver::{Command, Emulator, failed};
use crate::backend::cuda::device::{Call, STAGING_BUFFERS, STAGING_BYTES, Uploads};
use crate::error::Result;
use std::collections::VecDeque;
use std::ops::Range;

/// A call that nothing has waited for yet.
enum Pending {
    /// Reads the buffer when it is executed, like a device, not when it is submitted.
    Copy {
        buffer: usize,
        range: Range<usize>,
        address: u64,
    },
    Launch(Call),
}

/// Staging buffers, made when they are first used, and the calls that wait.
pub(super) struct EmulatedUploads<'a> {
    emulator: &'a Emulator,
    buffers: [Vec<u8>; STAGING_BUFFERS],
    queue: VecDeque<Pending>,
    scratch: Option<u64>,
}

impl EmulatedUploads<'_> {
    pub fn new(emulator: &Emulator) -> EmulatedUploads<'_> {
        EmulatedUploads { emulator, buffers: Default::default(), queue: VecDeque::new(), scratch: None }
    }

    /// Executes the first calls of the queue.
    fn execute(&mut self, count: usize) -> Result<()> {
        for pending in self.queue.drain(..count) {
            match pending {
                Pending::Copy { buffer, range, address } => {
                    self.emulator.state().machine.write(address, &self.buffers[buffer][range]).map_err(failed)?;
                }
                // Never recorded by a capture, which is another stream's.
                Pending::Launch(call) => self.emulator.state().run(&Command::Launch(call))?,
            }
        }
        Ok(())
    }
}

impl Uploads for EmulatedUploads<'_> {
    fn buffer(&mut self, index: usize) -> Result<&mut [u8]> {
        let reads = |pending: &Pending| matches!(pending, Pending::Copy { buffer, .. } if *buffer == index);
        let count = self.queue.iter().rposition(reads).map_or(0, |last| last + 1);
        self.execute(count)?;
        self.buffers[index].resize(STAGING_BYTES, 0);
        Ok(&mut self.buffers[index])
    }

    fn send(&mut self, index: usize, pieces: &[(Range<usize>, u64)]) -> Result<()> {
        self.emulator.count_call()?;
        let copy = |(range, address): &(Range<usize>, u64)| Pending::Copy {
            buffer: index,
            range: range.clone(),
            address: *address,
        };
        self.queue.extend(pieces.iter().map(copy));
        Ok(())
    }

    fn scratch(&mut self, bytes: u64) -> Result<u64> {
        assert!(self.scratch.is_none(), "scratch memory is allocated once");
        let address = crate::backend::cuda::device::Driver::allocate(self.emulator, bytes)?;
        self.scratch = Some(address);
        Ok(address)
    }

    fn launch(&mut self, call: &Call) -> Result<()> {
        self.emulator.count_call()?;
        self.queue.push_back(Pending::Launch(call.clone()));
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        self.emulator.count_call()?;
        self.execute(self.queue.len())
    }
}

impl Drop for EmulatedUploads<'_> {
    fn drop(&mut self) {
        // A device executes what was submitted. A fault has no one left to tell but the test.
        let executed = self.execute(self.queue.len());
        if let Some(scratch) = self.scratch {
            self.emulator.state().machine.free(scratch);
        }
        assert!(executed.is_ok() || std::thread::panicking(), "an upload failed behind its last wait: {executed:?}");
    }
}
