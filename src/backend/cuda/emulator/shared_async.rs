//! Accesses of `wgmma` and bulk copies to shared memory, through the asynchronous proxy.
//!
//! A bulk load writes its destination at an unknown time before its `mbarrier` phase completes, so readers must have
//! waited for that phase. `wgmma` and bulk stores read at an unknown time between their start and the wait for their
//! group, so writers must come after that wait.

use super::clock::Clock;
use super::fault::{Check, Outcome, stop};
use super::shared::{Contents, Shared, race, unready};

/// Kind of an asynchronous read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reader {
    Wgmma,
    BulkStore,
}

impl Shared {
    /// Reads 16 bytes for asynchronous work that a thread starts at `time`.
    pub fn load_async(&mut self, address: u32, thread: u16, time: u32, by: Reader, clock: &Clock) -> Outcome<[u32; 4]> {
        let (warp, lane) = (usize::from(thread / 32), usize::from(thread % 32));
        let (first, _) = self.locate(address, 16, 16, lane)?;
        let words = std::array::from_fn(|i| self.words[first + i]);
        if !self.is_tracked {
            return Ok(words);
        }
        let mut checked = None;
        for word in first..first + 4 {
            let shadow = &self.shadow[word];
            if shadow.holds != Contents::Data {
                return unready(word, thread, shadow.holds, "read").map(|()| [0; 4]);
            }
            if shadow.filled != 15 {
                return stop(lane, Check::UnwrittenMemory, format!("shared byte {}", 4 * word));
            }
            // The same write needs no second check.
            if checked != Some((shadow.writer, shadow.written_at)) {
                checked = Some((shadow.writer, shadow.written_at));
                self.check_visible(word, thread, clock)?;
            }
        }
        let kind = usize::from(by == Reader::BulkStore);
        self.asynchronous_reads[first / 4 * 2 * self.warps + kind * self.warps + warp] = time;
        self.last_asynchronous_read[first / 4] = self.last_asynchronous_read[first / 4].max(time);
        Ok(words)
    }

    /// Checks that the last write to a word is visible to asynchronous work that a thread starts.
    fn check_visible(&self, word: usize, thread: u16, clock: &Clock) -> Outcome {
        let shadow = &self.shadow[word];
        let (warp, writer) = (usize::from(thread / 32), usize::from(shadow.writer / 32));
        let is_seen = shadow.written_at <= clock.seen(warp, writer) || shadow.writer == thread;
        if clock.mbarrier_of(writer).is_some() {
            return if is_seen { Ok(()) } else { race(thread, word, ["read", "written"], shadow.writer, clock) };
        }
        if clock.is_proxied(warp, shadow.writer, shadow.written_at) {
            return Ok(());
        }
        if !is_seen {
            return race(thread, word, ["read", "written"], shadow.writer, clock);
        }
        let detail = format!(
            "shared byte {} is used asynchronously, but thread {} executed no fence.proxy.async after writing it",
            4 * word,
            shadow.writer
        );
        stop(usize::from(thread % 32), Check::MissingProxyFence, detail)
    }

    /// Marks the destination of a bulk copy that a thread starts.
    pub fn await_bulk(&mut self, address: u32, bytes: u32, alignment: u32, thread: u16, clock: &Clock) -> Outcome {
        let (first, _) = self.locate(address, bytes, alignment, usize::from(thread % 32))?;
        if !self.is_tracked {
            return Ok(());
        }
        for word in first..first + bytes as usize / 4 {
            self.may_write(word, 15, thread, clock)?;
            if self.shadow[word].filled != 0 {
                self.check_visible(word, thread, clock)?;
            }
            self.shadow[word].holds = Contents::Bulk;
        }
        Ok(())
    }

    /// Checks that all asynchronous reads of a word happen before a thread's write.
    pub(super) fn may_overwrite(&self, word: usize, thread: u16, clock: &Clock) -> Outcome {
        let warp = usize::from(thread / 32);
        if self.last_asynchronous_read[word / 4] <= clock.oldest(warp) {
            return Ok(());
        }
        let reads = &self.asynchronous_reads[word / 4 * 2 * self.warps..][..2 * self.warps];
        for (i, &time) in reads.iter().enumerate() {
            if time > clock.seen(warp, self.warps + i) {
                let what = if i < self.warps { "a wgmma" } else { "a bulk store" };
                let reader = i % self.warps;
                let detail = format!(
                    "shared byte {} is written while {what} of warp {reader} may still read it: \
                     its group was not waited for, or no barrier orders the write after the wait",
                    4 * word
                );
                return stop(usize::from(thread % 32), Check::OperandInUse, detail);
            }
        }
        Ok(())
    }

    /// Turns eight bytes into an `mbarrier`, or back into unwritten memory.
    pub fn hold_mbarrier(&mut self, address: u32, holds: bool, thread: u16, clock: &Clock) -> Outcome {
        let (first, _) = self.locate(address, 8, 8, usize::from(thread % 32))?;
        if !self.is_tracked {
            return Ok(());
        }
        for word in first..first + 2 {
            if holds {
                self.record_write(word, 15, thread, clock)?;
            }
            let shadow = &mut self.shadow[word];
            (shadow.holds, shadow.filled) = if holds { (Contents::Mbarrier, 15) } else { (Contents::Data, 0) };
        }
        Ok(())
    }
}
