//! Global memory: allocations, which of their bytes were written, and the tensors that a launch may access.
//!
//! Blocks run on several cores and write to the same tensors, so memory consists of relaxed atomics. A kernel may
//! access only the tensors of its launch: bytes next to a tensor are out of bounds even within the same allocation.

use super::fault::{Check, Outcome, stop};
use crate::backend::cuda::device_slice::DeviceSlice;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};

/// The first address. Small integers are never valid addresses.
const FIRST: u64 = 0x10_0000_0000;
/// Unused addresses after every allocation.
const GAP: u64 = 1 << 16;
/// Tensors up to this size (vectors over channels, coefficient tables) are assumed to stay in every multiprocessor's
/// cache during a launch.
const CACHED: u64 = 16 << 10;

struct Region {
    base: u64,
    words: Vec<AtomicU32>,
    /// Mask of the written bytes of each word.
    written: Vec<AtomicU8>,
}

impl Region {
    fn end(&self) -> u64 {
        self.base + 4 * self.words.len() as u64
    }
}

/// All allocations of a device.
#[derive(Default)]
pub(super) struct Memory {
    regions: Vec<Region>,
    next: u64,
}

impl Memory {
    /// Allocates memory, marked as unwritten.
    pub fn allocate(&mut self, bytes: u64) -> u64 {
        let words = bytes.div_ceil(4) as usize;
        let base = FIRST + self.next;
        self.next += (4 * words as u64).next_multiple_of(256) + GAP;
        let zeros = |_| AtomicU32::new(0);
        self.regions.push(Region {
            base,
            words: (0..words).map(zeros).collect(),
            written: (0..words).map(|_| AtomicU8::new(0)).collect(),
        });
        base
    }

    pub fn free(&mut self, address: u64) {
        self.regions.retain(|r| r.base != address);
    }

    /// Bytes of all allocations.
    pub fn allocated_bytes(&self) -> u64 {
        self.regions.iter().map(|region| region.end() - region.base).sum()
    }

    /// Number of allocations.
    pub fn allocations(&self) -> usize {
        self.regions.len()
    }

    fn region(&self, address: u64, bytes: u64) -> Option<(&Region, usize)> {
        let region = self.regions.iter().find(|r| r.base <= address && address + bytes <= r.end())?;
        Some((region, ((address - region.base) / 4) as usize))
    }

    /// Copies whole words from the host; false if the range is not allocated.
    pub fn write(&self, address: u64, bytes: &[u8]) -> bool {
        let Some((region, first)) = self.region(address, bytes.len() as u64) else { return false };
        for (i, chunk) in bytes.chunks(4).enumerate() {
            let mut word = [0; 4];
            word[..chunk.len()].copy_from_slice(chunk);
            region.words[first + i].store(u32::from_le_bytes(word), Relaxed);
            region.written[first + i].store(15, Relaxed);
        }
        true
    }

    /// Copies to the host. An error if the range is not allocated or part of it was never written.
    pub fn read(&self, address: u64, bytes: usize) -> Result<Vec<u8>, String> {
        let none = || format!("{bytes} bytes at {address:#x} are not allocated");
        let (region, first) = self.region(address, bytes as u64).ok_or_else(none)?;
        let mut out = Vec::with_capacity(bytes.next_multiple_of(4));
        for i in 0..bytes.div_ceil(4) {
            let wanted = if bytes - 4 * i >= 4 { 15 } else { (1 << (bytes - 4 * i)) - 1 };
            if region.written[first + i].load(Relaxed) & wanted != wanted {
                return Err(format!("byte {} of {bytes} at {address:#x} was never written", 4 * i));
            }
            out.extend(region.words[first + i].load(Relaxed).to_le_bytes());
        }
        out.truncate(bytes);
        Ok(out)
    }

    /// Copies words and their written marks within the device; false if a range is not allocated.
    pub fn copy(&self, from: u64, to: u64, bytes: u64) -> bool {
        let (Some((source, a)), Some((target, b))) = (self.region(from, bytes), self.region(to, bytes)) else {
            return false;
        };
        for i in 0..bytes.div_ceil(4) as usize {
            target.words[b + i].store(source.words[a + i].load(Relaxed), Relaxed);
            target.written[b + i].store(source.written[a + i].load(Relaxed), Relaxed);
        }
        true
    }

    /// Marks memory as unwritten.
    pub fn discard(&self, address: u64, bytes: u64) {
        if let Some((region, first)) = self.region(address, bytes) {
            region.written[first..][..bytes.div_ceil(4) as usize].iter().for_each(|w| w.store(0, Relaxed));
        }
    }

    /// The tensors of a launch; with `is_tracked`, races between its blocks are looked for.
    pub fn tensors(&self, ranges: &[DeviceSlice], is_tracked: bool) -> Result<Tensors<'_>, String> {
        let window = |range: &DeviceSlice| {
            let none = || format!("{} bytes at {:#x} are not allocated", range.bytes, range.address);
            let (region, _) = self.region(range.address, range.bytes).ok_or_else(none)?;
            Ok(Window { range: *range, region, read_bytes: AtomicU64::new(0) })
        };
        let windows = ranges.iter().map(window).collect::<Result<Vec<_>, String>>()?;
        let uses = ranges.iter().filter(|range| is_tracked && range.written).map(Uses::new).collect();
        Ok(Tensors { windows, uses, is_tracked })
    }
}

/// One tensor of a launch.
struct Window<'a> {
    range: DeviceSlice,
    region: &'a Region,
    /// Bytes that threads have read, counted only for tensors that are assumed to be cached.
    read_bytes: AtomicU64,
}

impl Window<'_> {
    fn is_cached(&self) -> bool {
        self.range.bytes <= CACHED
    }
}

/// The tensors of a launch, and the accesses to those that it writes.
pub(super) struct Tensors<'a> {
    windows: Vec<Window<'a>>,
    uses: Vec<Uses>,
    is_tracked: bool,
}

impl Tensors<'_> {
    /// Whether races are looked for, here and in shared memory.
    pub fn is_tracked(&self) -> bool {
        self.is_tracked
    }

    /// Bytes read from cached tensors, less one read of each.
    pub fn cached_read_bytes(&self) -> u64 {
        let again = |w: &Window<'_>| w.read_bytes.load(Relaxed).saturating_sub(w.range.bytes);
        self.windows.iter().map(again).sum()
    }
}

/// Global memory as one block accesses it.
pub(super) struct Global<'a> {
    pub tensors: &'a Tensors<'a>,
    /// Linear index of the block plus one.
    pub block: u32,
}

/// The last writer and reader of every two bytes of a tensor: linear index of the block plus one, zero for none. Blocks
/// of a launch are unordered, so no block may access what another one writes. Two atomic accesses do not race.
struct Uses {
    range: DeviceSlice,
    by: Vec<(AtomicU32, AtomicU32)>,
}

/// Instead of a block: read by several blocks, or accessed by atomics.
const MANY: u32 = u32::MAX;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    Read,
    Write,
    Atomic,
}

impl Uses {
    fn new(range: &DeviceSlice) -> Uses {
        Uses { range: *range, by: (0..range.bytes.div_ceil(2)).map(|_| Default::default()).collect() }
    }
}

impl Global<'_> {
    /// Records an access within the launch's tensors; a fault if it races with another block's.
    fn record(&self, address: u64, bytes: u64, what: Use, lane: usize) -> Outcome {
        for uses in &self.tensors.uses {
            let Some(at) = address.checked_sub(uses.range.address).filter(|at| at + bytes <= uses.range.bytes) else {
                continue;
            };
            for i in at / 2..(at + bytes).div_ceil(2) {
                let (writer, reader) = &uses.by[i as usize];
                // At least the later of two racing accesses finds the other one.
                let (writer, reader) = match what {
                    Use::Read => {
                        // Most blocks read an element again and again; only the first time changes anything.
                        if ![self.block, MANY].contains(&reader.load(SeqCst)) {
                            let merge = |old: u32| Some(if old == 0 || old == self.block { self.block } else { MANY });
                            _ = reader.fetch_update(SeqCst, SeqCst, merge);
                        }
                        (writer.load(SeqCst), 0)
                    }
                    Use::Write => (writer.swap(self.block, SeqCst), reader.load(SeqCst)),
                    Use::Atomic => {
                        let before = writer.swap(MANY, SeqCst);
                        (if before == MANY { 0 } else { before }, reader.load(SeqCst))
                    }
                };
                for (other, did) in [(writer, "written"), (reader, "read")] {
                    if other != 0 && other != self.block {
                        return self.race(2 * i, other, [what.name(), did], lane);
                    }
                }
            }
        }
        Ok(())
    }

    #[cold]
    fn race(&self, byte: u64, other: u32, [now, before]: [&str; 2], lane: usize) -> Outcome {
        let other = if other == MANY { "others".to_owned() } else { format!("block {}", other - 1) };
        let own = self.block - 1;
        let detail = format!("byte {byte} of a tensor is {now} by block {own} and {before} by {other} of the launch");
        stop(lane, Check::GlobalRace, detail)
    }
}

impl Use {
    fn name(self) -> &'static str {
        match self {
            Use::Read => "read",
            Use::Write => "written",
            Use::Atomic => "updated",
        }
    }
}

/// The tensor that an access lies in, a writable one for writes: a tensor may be passed twice.
fn find<'w, 'a>(
    windows: &'w [Window<'a>],
    address: u64,
    bytes: u64,
    writes: bool,
    lane: usize,
) -> Outcome<&'w Window<'a>> {
    let inside = |w: &&Window<'_>| w.range.address <= address && address + bytes <= w.range.address + w.range.bytes;
    if let Some(window) = windows.iter().find(|w| inside(w) && (!writes || w.range.written)) {
        if !address.is_multiple_of(bytes) {
            return stop(lane, Check::Misaligned, format!("{bytes} bytes at {address:#x}"));
        }
        return Ok(window);
    }
    if let Some(window) = windows.iter().find(inside) {
        let at = address - window.range.address;
        return stop(lane, Check::ReadOnly, format!("{bytes} bytes at byte {at} of a read-only tensor"));
    }
    let distance = |w: &&Window<'_>| {
        let end = w.range.address + w.range.bytes;
        if address < w.range.address { w.range.address - address } else { (address + bytes).saturating_sub(end) }
    };
    let detail = match windows.iter().min_by_key(distance) {
        Some(w) => {
            let at = address.wrapping_sub(w.range.address) as i64;
            format!("{bytes} bytes at byte {at} of a tensor of {} bytes", w.range.bytes)
        }
        None => format!("{bytes} bytes at {address:#x}, and the launch has no tensors"),
    };
    stop(lane, Check::OutOfBounds, detail)
}

/// Reads up to 16 bytes into words, little-endian.
pub(super) fn load(global: &Global<'_>, address: u64, bytes: u64, lane: usize) -> Outcome<[u32; 4]> {
    let words = read(global, address, bytes, lane)?;
    global.record(address, bytes, Use::Read, lane)?;
    Ok(words)
}

fn read(global: &Global<'_>, address: u64, bytes: u64, lane: usize) -> Outcome<[u32; 4]> {
    let window = find(&global.tensors.windows, address, bytes, false, lane)?;
    if window.is_cached() {
        window.read_bytes.fetch_add(bytes, Relaxed);
    }
    let first = ((address - window.region.base) / 4) as usize;
    let mut out = [0; 4];
    let mask = if bytes < 4 { ((1u8 << bytes) - 1) << (address % 4) } else { 15 };
    for (i, word) in out.iter_mut().enumerate().take(bytes.div_ceil(4) as usize) {
        if window.region.written[first + i].load(Relaxed) & mask != mask {
            let at = address - window.range.address;
            return stop(
                lane,
                Check::UnwrittenMemory,
                format!("byte {at} of a tensor of {} bytes", window.range.bytes),
            );
        }
        *word = window.region.words[first + i].load(Relaxed);
    }
    if bytes < 4 {
        out[0] = out[0] >> (8 * (address % 4)) & ((1 << (8 * bytes)) - 1);
    }
    Ok(out)
}

/// Writes up to 16 bytes.
pub(super) fn store(global: &Global<'_>, address: u64, bytes: u64, words: &[u32; 4], lane: usize) -> Outcome {
    let window = find(&global.tensors.windows, address, bytes, true, lane)?;
    global.record(address, bytes, Use::Write, lane)?;
    let first = ((address - window.region.base) / 4) as usize;
    if bytes < 4 {
        let shift = 8 * (address % 4) as u32;
        let mask = ((1u32 << (8 * bytes)) - 1) << shift;
        // Another block may write other bytes of the same word at the same time.
        window.region.words[first].fetch_and(!mask, Relaxed);
        window.region.words[first].fetch_or(words[0] << shift & mask, Relaxed);
        window.region.written[first].fetch_or(((1u8 << bytes) - 1) << (address % 4), Relaxed);
        return Ok(());
    }
    for (i, word) in words.iter().enumerate().take(bytes as usize / 4) {
        window.region.words[first + i].store(*word, Relaxed);
        window.region.written[first + i].store(15, Relaxed);
    }
    Ok(())
}

/// Updates a word atomically and returns the old value.
pub(super) fn update(global: &Global<'_>, address: u64, lane: usize, with: impl Fn(u32) -> u32) -> Outcome<u32> {
    read(global, address, 4, lane)?;
    let window = find(&global.tensors.windows, address, 4, true, lane)?;
    global.record(address, 4, Use::Atomic, lane)?;
    let word = &window.region.words[((address - window.region.base) / 4) as usize];
    let replaced = word.fetch_update(Relaxed, Relaxed, |old| Some(with(old)));
    Ok(replaced.unwrap_or_else(|old| old))
}
