//! Shared memory of a block, with what is needed to find races in it.
//!
//! Time is counted in barriers. Every word remembers when and by whom it was last written and read; every warp knows up
//! to which time it has seen each other warp, which barriers bring up to date. An access that the accessing thread has
//! not seen yet, of which one is a write, is a race: on a GPU it may come first or last.

use super::fault::{Check, Outcome, stop};

/// Most warps of a block.
pub(super) const WARPS: usize = 32;

#[derive(Clone, Copy, Default)]
struct Shadow {
    written_at: u32,
    read_at: u32,
    /// Warps that read it at that time.
    readers: u32,
    writer: u16,
    /// The last of the readers.
    reader: u16,
    /// Which bytes hold something.
    filled: u8,
    /// Which bytes were written at that time.
    bytes: u8,
    /// Under way by `cp.async`.
    pending: bool,
}

/// Who has seen what.
pub(super) struct Clock {
    pub now: u32,
    seen: [[u32; WARPS]; WARPS],
    /// The least of what each warp has seen of the others and itself.
    oldest: [u32; WARPS],
    warps: usize,
}

impl Clock {
    pub fn new(warps: usize) -> Clock {
        Clock { now: 1, seen: [[0; WARPS]; WARPS], oldest: [0; WARPS], warps }
    }

    /// A moment that later accesses are after.
    pub fn tick(&mut self) -> u32 {
        self.now += 1;
        self.now - 1
    }

    /// Warp `w` has seen all that warp `v` did up to `time`, and all that `v` had seen then.
    pub fn see(&mut self, w: usize, v: usize, time: u32) {
        let of_v = self.seen[v];
        for (own, other) in self.seen[w].iter_mut().zip(of_v) {
            *own = (*own).max(other);
        }
        self.seen[w][v] = self.seen[w][v].max(time);
        self.oldest[w] = self.seen[w][..self.warps].iter().copied().min().unwrap_or(0);
    }
}

pub(super) struct Shared {
    words: Vec<u32>,
    shadow: Vec<Shadow>,
    base: u32,
    bytes: u32,
}

impl Shared {
    pub fn new(base: u32, bytes: u32) -> Shared {
        let words = bytes.div_ceil(4) as usize;
        Shared { words: vec![0; words], shadow: vec![Shadow::default(); words], base, bytes }
    }

    /// Forgets everything, for the next block.
    pub fn clear(&mut self) {
        self.shadow.fill(Shadow::default());
    }

    /// First word of an access and the byte in it.
    fn locate(&self, address: u32, bytes: u32, lane: usize) -> Outcome<(usize, u32)> {
        let at = address.wrapping_sub(self.base);
        if at > self.bytes || bytes > self.bytes - at {
            let detail = format!("{bytes} bytes at byte {} of {} shared bytes", at as i32, self.bytes);
            return stop(lane, Check::OutOfBounds, detail);
        }
        if !at.is_multiple_of(bytes) {
            return stop(lane, Check::Misaligned, format!("{bytes} bytes at shared byte {at}"));
        }
        Ok(((at / 4) as usize, at % 4))
    }

    /// Index of the first word of an access, for counting.
    pub fn word(&self, address: u32) -> u32 {
        address.wrapping_sub(self.base) / 4
    }

    /// Whether all threads of a warp may read this as soon as one of them may: it was written before anything that some
    /// warp has not seen yet.
    pub fn is_settled(&self, address: u32, bytes: u32, warp: usize, clock: &Clock) -> bool {
        let first = self.word(address) as usize;
        self.shadow[first..first + bytes.div_ceil(4) as usize].iter().all(|s| s.written_at <= clock.oldest[warp])
    }

    /// Reads up to 16 bytes for a thread.
    pub fn load(&mut self, address: u32, bytes: u32, thread: u16, clock: &Clock) -> Outcome<[u32; 4]> {
        let lane = usize::from(thread % 32);
        let (first, byte) = self.locate(address, bytes, lane)?;
        let mask = if bytes < 4 { ((1u8 << bytes) - 1) << byte } else { 15 };
        let mut out = [0; 4];
        for (i, word) in out.iter_mut().enumerate().take(bytes.div_ceil(4) as usize) {
            self.note_read(first + i, mask, thread, clock)?;
            *word = self.words[first + i];
        }
        if bytes < 4 {
            out[0] = out[0] >> (8 * byte) & ((1 << (8 * bytes)) - 1);
        }
        Ok(out)
    }

    /// Writes up to 16 bytes for a thread.
    pub fn store(&mut self, address: u32, bytes: u32, words: &[u32; 4], thread: u16, clock: &Clock) -> Outcome {
        let lane = usize::from(thread % 32);
        let (first, byte) = self.locate(address, bytes, lane)?;
        if bytes < 4 {
            let bits = ((1u32 << (8 * bytes)) - 1) << (8 * byte);
            self.note_write(first, ((1u8 << bytes) - 1) << byte, thread, clock)?;
            self.words[first] = self.words[first] & !bits | words[0] << (8 * byte) & bits;
            return Ok(());
        }
        for (i, word) in words.iter().enumerate().take(bytes as usize / 4) {
            self.note_write(first + i, 15, thread, clock)?;
            self.words[first + i] = *word;
        }
        Ok(())
    }

    /// Replaces a word and returns what it was. Atomics of different threads are no race; with other accesses they are.
    pub fn update(&mut self, address: u32, thread: u16, clock: &Clock, with: impl Fn(u32) -> u32) -> Outcome<u32> {
        let (word, _) = self.locate(address, 4, usize::from(thread % 32))?;
        let before = self.shadow[word];
        if before.filled != 15 || before.pending {
            self.note_read(word, 15, thread, clock)?;
        }
        let old = self.words[word];
        self.words[word] = with(old);
        Ok(old)
    }

    /// Announces that `cp.async` will fill this.
    pub fn await_copy(&mut self, address: u32, bytes: u32, thread: u16, clock: &Clock) -> Outcome {
        let (first, _) = self.locate(address, bytes, usize::from(thread % 32))?;
        for word in first..first + bytes as usize / 4 {
            self.note_write(word, 15, thread, clock)?;
            self.shadow[word].pending = true;
        }
        Ok(())
    }

    /// The announced bytes have arrived.
    pub fn land(&mut self, address: u32, bytes: u32, words: &[u32; 4], thread: u16, clock: &Clock) {
        let first = self.word(address) as usize;
        for (i, word) in words.iter().enumerate().take(bytes as usize / 4) {
            self.words[first + i] = *word;
            let shadow = &mut self.shadow[first + i];
            (shadow.pending, shadow.written_at, shadow.writer, shadow.bytes) = (false, clock.now, thread, 15);
        }
    }

    #[inline]
    fn note_read(&mut self, word: usize, mask: u8, thread: u16, clock: &Clock) -> Outcome {
        let warp = usize::from(thread / 32);
        let shadow = &mut self.shadow[word];
        if shadow.pending {
            let detail = format!("shared byte {} is still being copied by cp.async", 4 * word);
            return stop(usize::from(thread % 32), Check::MissingWait, detail);
        }
        if shadow.filled & mask != mask {
            return stop(usize::from(thread % 32), Check::UnwrittenMemory, format!("shared byte {}", 4 * word));
        }
        if shadow.written_at > clock.oldest[warp]
            && shadow.writer != thread
            && shadow.bytes & mask != 0
            && shadow.written_at > clock.seen[warp][usize::from(shadow.writer / 32)]
        {
            return race(thread, word, "read", "written", shadow.writer);
        }
        if shadow.read_at != clock.now {
            (shadow.read_at, shadow.readers) = (clock.now, 0);
        }
        shadow.readers |= 1 << warp;
        shadow.reader = thread;
        Ok(())
    }

    #[inline]
    fn note_write(&mut self, word: usize, mask: u8, thread: u16, clock: &Clock) -> Outcome {
        let warp = usize::from(thread / 32);
        let shadow = &mut self.shadow[word];
        let oldest = clock.oldest[warp];
        if shadow.written_at > oldest
            && shadow.writer != thread
            && shadow.bytes & mask != 0
            && shadow.written_at > clock.seen[warp][usize::from(shadow.writer / 32)]
        {
            return race(thread, word, "written", "written", shadow.writer);
        }
        if shadow.read_at > oldest {
            for other in (0..WARPS).filter(|v| shadow.readers >> v & 1 != 0) {
                let own = other == warp && shadow.reader == thread;
                if !own && shadow.read_at > clock.seen[warp][other] {
                    let reader =
                        if usize::from(shadow.reader / 32) == other { shadow.reader } else { 32 * other as u16 };
                    return race(thread, word, "written", "read", reader);
                }
            }
        }
        shadow.bytes = if shadow.written_at == clock.now { shadow.bytes | mask } else { mask };
        shadow.filled |= mask;
        (shadow.written_at, shadow.writer) = (clock.now, thread);
        Ok(())
    }
}

#[cold]
fn race(thread: u16, word: usize, now: &str, before: &str, other: u16) -> Outcome {
    let detail =
        format!("shared byte {} is {now} after thread {other} has {before} it, with no barrier between", 4 * word);
    stop(usize::from(thread % 32), Check::SharedRace, detail)
}
