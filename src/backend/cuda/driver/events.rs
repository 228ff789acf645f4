//! The times of single launches: an event before and one after each.
//!
//! Launches and events are captured into one graph, so that a short kernel does not wait for the host to submit it. The
//! device needs time for the events themselves; pairs with nothing between them show how much, which is subtracted.

#![allow(unsafe_code, reason = "calls of a C library")]

use super::super::device::{Call, Driver};
use super::{Gpu, cu, sys};
use crate::error::Result;

/// Pairs of events with nothing between them.
const EMPTY_PAIRS: usize = 16;

/// Pairs of events, destroyed with the list.
struct Pairs<'a> {
    gpu: &'a Gpu,
    events: Vec<[sys::CUevent; 2]>,
}

impl Pairs<'_> {
    /// Adds one pair.
    fn push(&mut self) -> Result<()> {
        let make = || self.gpu.check("making an event", cu::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT));
        let first = make()?;
        let second = make().inspect_err(|_| {
            // SAFETY: made above and not used.
            _ = unsafe { cu::event::destroy(first) };
        })?;
        self.events.push([first, second]);
        Ok(())
    }

    /// Seconds between the events of each pair, which the device has reached.
    fn seconds(&self) -> Result<Vec<f64>> {
        let between = |&[first, second]: &[sys::CUevent; 2]| {
            // SAFETY: both events live as long as the list and were recorded in the same stream.
            let elapsed = unsafe { cu::event::elapsed(first, second) };
            self.gpu.check("reading the device's clock", elapsed).map(|milliseconds| f64::from(milliseconds) * 1e-3)
        };
        self.events.iter().map(between).collect()
    }
}

impl Drop for Pairs<'_> {
    fn drop(&mut self) {
        if self.gpu.enter().is_ok() {
            // SAFETY: each was made by `push` and is destroyed once; the driver waits for work that still uses it.
            self.events.iter().flatten().for_each(|&event| _ = unsafe { cu::event::destroy(event) });
        }
    }
}

impl Gpu {
    /// Launches kernels one after the other, each between two events, and returns the seconds between these.
    pub(super) fn time_each(&self, calls: &[&Call]) -> Result<Vec<f64>> {
        drop(self.enter()?);
        let mut pairs = Pairs { gpu: self, events: Vec::new() };
        (0..calls.len() + EMPTY_PAIRS).try_for_each(|_| pairs.push())?;
        let submit = |flags: sys::CUevent_record_flags_enum| {
            pairs.events.iter().enumerate().try_for_each(|(i, &[first, second])| {
                self.mark(first, flags)?;
                calls.get(i).map_or(Ok(()), |call| self.launch(call))?;
                self.mark(second, flags)
            })
        };
        match self.capture(&mut || submit(sys::CUevent_record_flags_enum::CU_EVENT_RECORD_EXTERNAL)) {
            Ok(graph) => {
                let ran = self.replay(graph).and_then(|()| self.finish());
                self.release(graph);
                ran?;
            }
            // Before CUDA 11.4 a graph takes no events. Short kernels then seem to last as long as a launch.
            Err(_) => submit(sys::CUevent_record_flags_enum::CU_EVENT_RECORD_DEFAULT).and_then(|()| self.finish())?,
        }
        let mut seconds = pairs.seconds()?;
        let mut empty = seconds.split_off(calls.len());
        empty.sort_by(f64::total_cmp);
        Ok(seconds.into_iter().map(|s| (s - empty[EMPTY_PAIRS / 2]).max(0.0)).collect())
    }

    fn mark(&self, event: sys::CUevent, flags: sys::CUevent_record_flags_enum) -> Result<()> {
        let _guard = self.enter()?;
        // SAFETY: the event lives until the device is idle, the stream as long as `self`.
        let marked = unsafe { sys::cuEventRecordWithFlags(event, self.stream, flags as u32) };
        self.check("recording an event", marked.result())
    }
}
