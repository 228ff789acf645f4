//! Shared memory as `wgmma` and bulk copies reach it: by the asynchronous proxy, at a time of their own.
//!
//! A bulk copy fills its words when its bytes land, and whoever reads them must have waited for the `mbarrier` that counts
//! these bytes. `wgmma` and bulk stores read at some time between their start and the wait for their group, so whoever
//! writes must come after that wait.

use super::clock::Clock;
use super::fault::{Check, Outcome, stop};
use super::shared::{Holds, Shared, race, unready};

/// Who reads shared memory asynchronously for a warp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reader {
    Product,
    Store,
}

impl Shared {
    /// Reads 16 bytes for work that a thread starts at `time`.
    pub fn load_async(&mut self, address: u32, thread: u16, time: u32, by: Reader, clock: &Clock) -> Outcome<[u32; 4]> {
        let (warp, lane) = (usize::from(thread / 32), usize::from(thread % 32));
        let (first, _) = self.locate(address, 16, 16, lane)?;
        for word in first..first + 4 {
            let shadow = &self.shadow[word];
            if shadow.holds != Holds::Data {
                return unready(word, thread, shadow.holds, "read").map(|()| [0; 4]);
            }
            if shadow.filled != 15 {
                return stop(lane, Check::UnwrittenMemory, format!("shared byte {}", 4 * word));
            }
            self.is_visible(word, thread, clock)?;
        }
        let kind = usize::from(by == Reader::Store);
        self.asynchronous_reads[first / 4 * 2 * self.warps + kind * self.warps + warp] = time;
        Ok(std::array::from_fn(|i| self.words[first + i]))
    }

    /// That asynchronous work started by a thread sees what was written last.
    fn is_visible(&self, word: usize, thread: u16, clock: &Clock) -> Outcome {
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
            "shared byte {} was written by thread {}, which has made no fence.proxy.async since, and is used asynchronously",
            4 * word,
            shadow.writer
        );
        stop(usize::from(thread % 32), Check::MissingProxyFence, detail)
    }

    /// Announces that a bulk copy started by a thread will fill this.
    pub fn await_bulk(&mut self, address: u32, bytes: u32, aligned: u32, thread: u16, clock: &Clock) -> Outcome {
        let (first, _) = self.locate(address, bytes, aligned, usize::from(thread % 32))?;
        for word in first..first + bytes as usize / 4 {
            self.may_write(word, 15, thread, clock)?;
            if self.shadow[word].filled != 0 {
                self.is_visible(word, thread, clock)?;
            }
            self.shadow[word].holds = Holds::Bulk;
        }
        Ok(())
    }

    /// That no asynchronous read of a word is under way as far as a thread knows.
    pub(super) fn may_overwrite(&self, word: usize, thread: u16, clock: &Clock) -> Outcome {
        let warp = usize::from(thread / 32);
        let reads = &self.asynchronous_reads[word / 4 * 2 * self.warps..][..2 * self.warps];
        for (i, &time) in reads.iter().enumerate() {
            if time > clock.seen(warp, self.warps + i) {
                let what = if i < self.warps { "a wgmma" } else { "a bulk store" };
                let reader = i % self.warps;
                let detail = format!(
                    "shared byte {} is written while {what} of warp {reader} may still read it: its group was not waited for, \
                     or the writer does not know",
                    4 * word
                );
                return stop(usize::from(thread % 32), Check::OperandInUse, detail);
            }
        }
        Ok(())
    }

    /// Turns eight bytes into an `mbarrier`, or back into memory that nobody wrote.
    pub fn hold_mbarrier(&mut self, address: u32, holds: bool, thread: u16, clock: &Clock) -> Outcome {
        let (first, _) = self.locate(address, 8, 8, usize::from(thread % 32))?;
        for word in first..first + 2 {
            if holds {
                self.note_write(word, 15, thread, clock)?;
            }
            let shadow = &mut self.shadow[word];
            (shadow.holds, shadow.filled) = if holds { (Holds::Mbarrier, 15) } else { (Holds::Data, 0) };
        }
        Ok(())
    }
}
