//! Shared memory of a block, with race detection.
//!
//! A shadow word records when and by which thread each word was last written and read. Two accesses race if one is a
//! write and neither happens before the other according to the [`Clock`]. Accesses by the asynchronous proxy are in
//! `shared_async`.

use super::clock::Clock;
use super::fault::{Check, Outcome, stop};
use super::warp::lanes;

/// Limit of warps per block.
pub(super) const WARPS: usize = 32;

/// What a word holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Contents {
    #[default]
    Data,
    /// The destination of a `cp.async` in flight.
    Copy,
    /// The destination of a bulk copy in flight.
    Bulk,
    /// Part of an `mbarrier`.
    Mbarrier,
}

#[derive(Clone, Copy, Default)]
pub(super) struct Shadow {
    pub written_at: u32,
    pub read_at: u32,
    /// Mask of the warps that read it at `read_at`.
    pub readers: u32,
    /// Mask of the warps whose earlier reads do not happen before the later ones, and the first of these times.
    pub earlier_readers: u32,
    pub earlier_at: u32,
    /// The last writer: a thread, or 32 times the index of an agent that is not a warp.
    pub writer: u16,
    /// The last reader.
    pub reader: u16,
    /// Mask of the bytes that were ever written.
    pub filled: u8,
    /// Mask of the bytes written at `written_at`.
    pub bytes: u8,
    pub holds: Contents,
}

pub(super) struct Shared {
    pub(super) words: Vec<u32>,
    pub(super) shadow: Vec<Shadow>,
    /// For every 16 bytes: time of the last `wgmma` read of each warp, then of the last bulk-store read of each warp.
    /// Empty if the kernel has no asynchronous work.
    pub(super) asynchronous_reads: Vec<u32>,
    /// For every 16 bytes the latest of these times.
    pub(super) last_asynchronous_read: Vec<u32>,
    /// Whether accesses are recorded and checked; addresses always are.
    pub(super) is_tracked: bool,
    pub(super) warps: usize,
    base: u32,
    bytes: u32,
}

impl Shared {
    /// Shared memory of a block of `warps` warps; `asynchronous` if its kernel has asynchronous work.
    pub fn new(base: u32, bytes: u32, warps: usize, asynchronous: bool, is_tracked: bool) -> Shared {
        let words = bytes.div_ceil(4) as usize;
        let chunks = if asynchronous && is_tracked { words.div_ceil(4) } else { 0 };
        Shared {
            words: vec![0; words],
            shadow: vec![Shadow::default(); if is_tracked { words } else { 0 }],
            asynchronous_reads: vec![0; 2 * warps * chunks],
            last_asynchronous_read: vec![0; chunks],
            is_tracked,
            warps,
            base,
            bytes,
        }
    }

    /// Marks everything as unwritten, for the next block.
    pub fn clear(&mut self) {
        self.shadow.fill(Shadow::default());
        self.asynchronous_reads.fill(0);
        self.last_asynchronous_read.fill(0);
    }

    /// First word of an access and the byte in it. The address must be a multiple of `alignment`.
    #[inline]
    pub(super) fn locate(&self, address: u32, bytes: u32, alignment: u32, lane: usize) -> Outcome<(usize, u32)> {
        let at = address.wrapping_sub(self.base);
        if at > self.bytes || bytes > self.bytes - at {
            let detail = format!("{bytes} bytes at byte {} of {} shared bytes", at as i32, self.bytes);
            return stop(lane, Check::OutOfBounds, detail);
        }
        if !address.is_multiple_of(alignment) {
            return stop(lane, Check::Misaligned, format!("{bytes} bytes at shared byte {at}, address {address}"));
        }
        Ok(((at / 4) as usize, at % 4))
    }

    /// Index of the word at an address.
    #[inline]
    pub fn word(&self, address: u32) -> u32 {
        address.wrapping_sub(self.base) / 4
    }

    /// Reads for a thread what another thread of its warp reads by the same instruction. False, with nothing recorded,
    /// unless the last write happens before every access of the warp, so that one check serves all its threads.
    pub fn read_too(&mut self, address: u32, bytes: u32, thread: u16, clock: &Clock) -> bool {
        if !self.is_tracked {
            return true;
        }
        let (first, oldest) = (self.word(address) as usize, clock.oldest(usize::from(thread / 32)));
        let shadow = &mut self.shadow[first..first + bytes.div_ceil(4) as usize];
        let is_settled = shadow.iter().all(|s| s.written_at <= oldest);
        if is_settled {
            shadow.iter_mut().for_each(|s| s.reader = thread);
        }
        is_settled
    }

    /// Reads up to 16 bytes for a thread.
    pub fn load(&mut self, address: u32, bytes: u32, thread: u16, clock: &Clock) -> Outcome<[u32; 4]> {
        let lane = usize::from(thread % 32);
        let (first, byte) = self.locate(address, bytes, bytes, lane)?;
        let mask = if bytes < 4 { ((1u8 << bytes) - 1) << byte } else { 15 };
        let words = bytes.div_ceil(4) as usize;
        if self.is_tracked {
            for word in first..first + words {
                self.record_read(word, mask, thread, clock)?;
            }
        }
        let mut out = [0; 4];
        out[..words].copy_from_slice(&self.words[first..first + words]);
        if bytes < 4 {
            out[0] = out[0] >> (8 * byte) & ((1 << (8 * bytes)) - 1);
        }
        Ok(out)
    }

    /// Writes up to 16 bytes for a thread.
    pub fn store(&mut self, address: u32, bytes: u32, words: &[u32; 4], thread: u16, clock: &Clock) -> Outcome {
        let lane = usize::from(thread % 32);
        let (first, byte) = self.locate(address, bytes, bytes, lane)?;
        if bytes < 4 {
            let bits = ((1u32 << (8 * bytes)) - 1) << (8 * byte);
            self.record_write(first, ((1u8 << bytes) - 1) << byte, thread, clock)?;
            self.words[first] = self.words[first] & !bits | words[0] << (8 * byte) & bits;
            return Ok(());
        }
        for (i, word) in words.iter().enumerate().take(bytes as usize / 4) {
            self.record_write(first + i, 15, thread, clock)?;
            self.words[first + i] = *word;
        }
        Ok(())
    }

    /// Updates a word atomically and returns the old value. Two atomics do not race; an atomic and another access may.
    pub fn update(&mut self, address: u32, thread: u16, clock: &Clock, with: impl Fn(u32) -> u32) -> Outcome<u32> {
        let (word, _) = self.locate(address, 4, 4, usize::from(thread % 32))?;
        if self.is_tracked && (self.shadow[word].filled != 15 || self.shadow[word].holds != Contents::Data) {
            self.record_read(word, 15, thread, clock)?;
        }
        let old = self.words[word];
        self.words[word] = with(old);
        Ok(old)
    }

    /// Marks the destination of a `cp.async`.
    pub fn await_copy(&mut self, address: u32, bytes: u32, thread: u16, clock: &Clock) -> Outcome {
        let (first, _) = self.locate(address, bytes, bytes, usize::from(thread % 32))?;
        if !self.is_tracked {
            return Ok(());
        }
        for word in first..first + bytes as usize / 4 {
            self.record_write(word, 15, thread, clock)?;
            self.shadow[word].holds = Contents::Copy;
        }
        Ok(())
    }

    /// Completes a copy: writes its bytes.
    pub fn land(&mut self, address: u32, words: &[u32], thread: u16, time: u32) {
        let first = self.word(address) as usize;
        self.words[first..first + words.len()].copy_from_slice(words);
        if !self.is_tracked {
            return;
        }
        for shadow in &mut self.shadow[first..first + words.len()] {
            (shadow.holds, shadow.written_at, shadow.writer) = (Contents::Data, time, thread);
            (shadow.filled, shadow.bytes, shadow.earlier_readers) = (15, 15, 0);
        }
    }

    #[inline]
    fn record_read(&mut self, word: usize, mask: u8, thread: u16, clock: &Clock) -> Outcome {
        let warp = usize::from(thread / 32);
        let oldest = clock.oldest(warp);
        let shadow = &mut self.shadow[word];
        if shadow.holds != Contents::Data {
            return unready(word, thread, shadow.holds, "read");
        }
        if shadow.filled & mask != mask {
            return stop(usize::from(thread % 32), Check::UnwrittenMemory, format!("shared byte {}", 4 * word));
        }
        if shadow.written_at > oldest
            && shadow.writer != thread
            && shadow.bytes & mask != 0
            && shadow.written_at > clock.seen(warp, usize::from(shadow.writer / 32))
        {
            return race(thread, word, ["read", "written"], shadow.writer, clock);
        }
        if shadow.read_at != clock.now {
            // Earlier readers that happen before this read need no entry of their own.
            if shadow.read_at > oldest {
                for other in lanes(shadow.readers).filter(|&v| shadow.read_at > clock.seen(warp, v)) {
                    let first = shadow.earlier_readers == 0;
                    shadow.earlier_at = if first { shadow.read_at } else { shadow.earlier_at.min(shadow.read_at) };
                    shadow.earlier_readers |= 1 << other;
                }
            }
            (shadow.read_at, shadow.readers) = (clock.now, 0);
        }
        shadow.readers |= 1 << warp;
        shadow.reader = thread;
        Ok(())
    }

    /// Checks that a thread may write a word now, or start a copy that writes it.
    #[inline]
    pub(super) fn may_write(&self, word: usize, mask: u8, thread: u16, clock: &Clock) -> Outcome {
        let warp = usize::from(thread / 32);
        let shadow = &self.shadow[word];
        let oldest = clock.oldest(warp);
        if shadow.holds != Contents::Data {
            return unready(word, thread, shadow.holds, "written");
        }
        if shadow.written_at > oldest
            && shadow.writer != thread
            && shadow.bytes & mask != 0
            && shadow.written_at > clock.seen(warp, usize::from(shadow.writer / 32))
        {
            return race(thread, word, ["written", "written"], shadow.writer, clock);
        }
        if shadow.read_at > oldest {
            for other in lanes(shadow.readers) {
                let own = other == warp && shadow.reader == thread;
                if !own && shadow.read_at > clock.seen(warp, other) {
                    let reader =
                        if usize::from(shadow.reader / 32) == other { shadow.reader } else { 32 * other as u16 };
                    return race(thread, word, ["written", "read"], reader, clock);
                }
            }
        }
        if shadow.earlier_readers != 0 {
            let unseen = |v: &usize| *v != warp && shadow.earlier_at > clock.seen(warp, *v);
            if let Some(other) = lanes(shadow.earlier_readers).find(unseen) {
                return race(thread, word, ["written", "read"], 32 * other as u16, clock);
            }
        }
        if self.asynchronous_reads.is_empty() { Ok(()) } else { self.may_overwrite(word, thread, clock) }
    }

    #[inline]
    pub(super) fn record_write(&mut self, word: usize, mask: u8, thread: u16, clock: &Clock) -> Outcome {
        if !self.is_tracked {
            return Ok(());
        }
        self.may_write(word, mask, thread, clock)?;
        let shadow = &mut self.shadow[word];
        shadow.bytes = if shadow.written_at == clock.now { shadow.bytes | mask } else { mask };
        shadow.filled |= mask;
        (shadow.written_at, shadow.writer, shadow.earlier_readers) = (clock.now, thread, 0);
        Ok(())
    }
}

#[cold]
pub(super) fn unready(word: usize, thread: u16, holds: Contents, now: &str) -> Outcome {
    let byte = 4 * word;
    let (check, detail) = match holds {
        Contents::Copy => {
            (Check::MissingWait, format!("shared byte {byte} is {now} while a cp.async into it is in flight"))
        }
        Contents::Bulk => {
            let why = "the mbarrier phase of the copy has not completed";
            (Check::MissingWait, format!("shared byte {byte} is {now} while a bulk copy into it is in flight: {why}"))
        }
        Contents::Data | Contents::Mbarrier => {
            (Check::Mbarrier, format!("shared byte {byte} is {now} but holds an mbarrier"))
        }
    };
    stop(usize::from(thread % 32), check, detail)
}

/// A race of `thread`, whose access is `now`, with the earlier access `before` of thread `other`.
#[cold]
pub(super) fn race(thread: u16, word: usize, [now, before]: [&str; 2], other: u16, clock: &Clock) -> Outcome {
    let byte = 4 * word;
    let lane = usize::from(thread % 32);
    if let Some(mbarrier) = clock.mbarrier_of(usize::from(other / 32)) {
        let detail = format!(
            "shared byte {byte}, filled by a bulk copy, is {now} by a thread that did not wait for mbarrier {mbarrier}"
        );
        return stop(lane, Check::MissingWait, detail);
    }
    let detail = format!("shared byte {byte} is {now} after thread {other} has {before} it, without a barrier between");
    stop(lane, Check::SharedRace, detail)
}
