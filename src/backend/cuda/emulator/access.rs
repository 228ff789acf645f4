//! Loads, stores, atomics and `cp.async` of a warp.

use super::alu::combine;
use super::bulk::PendingCopy;
use super::clock::Clock;
use super::cluster::Peers;
use super::fault::{Check, Counters, Outcome, stop};
use super::global::{self, Global};
use super::mbarrier::Mbarriers;
use super::program::{Address, Atomic, Binary, ElementType, Reg, Space};
use super::shared::Shared;
use super::warp::{AsyncCopy, LANES, Warp, lanes};
use super::wgmma::Warpgroups;
use crate::backend::cuda::tensor_map::TensorMap;

/// The state of a block that instructions access besides registers.
pub(super) struct Reach<'a> {
    pub global: &'a Global<'a>,
    pub shared: &'a mut Shared,
    pub clock: &'a mut Clock,
    pub counters: &'a mut Counters,
    /// Tensor maps with their offsets in the parameter space.
    pub maps: &'a [(u32, TensorMap)],
    pub mbarriers: &'a mut Mbarriers,
    /// Bulk copies in flight, in the order of their start.
    pub pending_copies: &'a mut Vec<PendingCopy>,
    pub warpgroups: &'a mut Warpgroups,
    /// The block's cluster.
    pub peers: &'a mut Peers,
}

/// The addresses of all lanes.
pub(super) fn addresses(w: &Warp, mask: u32, at: Address) -> Outcome<[u64; LANES]> {
    Ok(if at.wide {
        w.r64(at.base, mask)?.map(|base| base.wrapping_add_signed(at.offset))
    } else {
        w.r32(at.base, mask)?.map(|base| u64::from(base.wrapping_add(at.offset as u32)))
    })
}

/// The last lane that came with each address, by the address's lower bits. Another address may take its place.
struct Earlier([u8; 64]);

impl Earlier {
    /// An earlier lane with the address of this one, which takes its place.
    #[inline]
    fn replace(&mut self, at: &[u64; LANES], lane: usize) -> Option<usize> {
        let place = &mut self.0[(at[lane] / 4 % 64) as usize];
        let earlier = usize::from(std::mem::replace(place, lane as u8 + 1));
        earlier.checked_sub(1).filter(|&earlier| at[earlier] == at[lane])
    }
}

/// Counts the distinct 32-byte sectors of a request.
fn count_sectors(counters: &mut Counters, at: &[u64; LANES], mask: u32, bytes: u64) {
    let mut sectors = [0u64; LANES];
    let mut count = 0;
    for lane in lanes(mask) {
        let sector = at[lane] / 32;
        // Neighbouring lanes often share a sector.
        if count == 0 || sectors[count - 1] != sector {
            sectors[count] = sector;
            count += 1;
        }
    }
    if !sectors[..count].is_sorted() {
        sectors[..count].sort_unstable();
    }
    let distinct = 1 + sectors[..count].windows(2).filter(|pair| pair[0] != pair[1]).count();
    counters.global_requests += 1;
    // An aligned access of up to 16 bytes lies in one sector.
    counters.sectors += distinct as u64;
    debug_assert!(bytes <= 16);
}

/// Counts the bank conflicts of a request. Threads are served in groups of 128 bytes; each bank serves one word per
/// pass.
fn count_conflicts(reach: &mut Reach<'_>, at: &[u64; LANES], mask: u32, bytes: u32) {
    reach.counters.shared_requests += 1;
    let words = bytes.div_ceil(4);
    let group = LANES / words as usize;
    for first in (0..LANES).step_by(group) {
        let part = mask & (u32::MAX >> (LANES - group)) << first;
        // A broadcast or contiguous words: no conflict.
        let addresses = &at[first..first + group];
        let step = if addresses[0] == addresses[1] { 0 } else { u64::from(bytes) };
        if addresses.windows(2).all(|pair| pair[1] == pair[0].wrapping_add(step)) {
            continue;
        }
        let mut served = [u32::MAX; 32];
        let mut conflicts = [0u8; 32];
        for lane in lanes(part) {
            let word = reach.shared.word(at[lane] as u32);
            for word in word..word + words {
                let bank = (word % 32) as usize;
                if served[bank] != word {
                    conflicts[bank] += u8::from(served[bank] != u32::MAX);
                    served[bank] = word;
                }
            }
        }
        reach.counters.bank_conflicts += u64::from(conflicts.iter().copied().max().unwrap_or(0));
    }
}

fn extended(element: ElementType, word: u32) -> u32 {
    match (element.bytes, element.signed) {
        (1, true) => word as i8 as u32,
        (2, true) => word as i16 as u32,
        _ => word,
    }
}

pub(super) fn load(
    w: &mut Warp,
    reach: &mut Reach<'_>,
    mask: u32,
    (space, element): (Space, ElementType),
    to: &[Option<Reg>],
    at: Address,
) -> Outcome {
    let at = addresses(w, mask, at)?;
    let bytes = u32::from(element.bytes) * to.len() as u32;
    let mut words = [[0u32; 4]; LANES];
    if space == Space::Global {
        for lane in lanes(mask) {
            words[lane] = global::load(reach.global, at[lane], u64::from(bytes), lane)?;
        }
        count_sectors(reach.counters, &at, mask, u64::from(bytes));
        reach.counters.global_read_bytes += u64::from(bytes * mask.count_ones());
    } else {
        let first = w.first_thread();
        let mut earlier = Earlier([0; 64]);
        for lane in lanes(mask) {
            let (address, thread) = (at[lane] as u32, first + lane as u16);
            words[lane] = match earlier.replace(&at, lane) {
                Some(same) if reach.shared.read_too(address, bytes, thread, reach.clock) => words[same],
                _ => reach.shared.load(address, bytes, thread, reach.clock)?,
            };
        }
        count_conflicts(reach, &at, mask, bytes);
    }
    for (i, reg) in to.iter().enumerate() {
        let Some(reg) = *reg else { continue };
        match element.bytes {
            8 => {
                let value = |w: &[u32; 4]| u64::from(w[2 * i + 1]) << 32 | u64::from(w[2 * i]);
                w.set_r64(reg, mask, &words.each_ref().map(value));
            }
            4 => w.set_r32(reg, mask, &words.each_ref().map(|w| w[i])),
            size => {
                let (at, bits) = (u32::from(size) * i as u32, 8 * u32::from(size));
                let value = |w: &[u32; 4]| {
                    let word = w[(at / 4) as usize] >> (8 * (at % 4));
                    extended(element, word & ((1 << bits) - 1))
                };
                w.set_r32(reg, mask, &words.each_ref().map(value));
            }
        }
    }
    Ok(())
}

pub(super) fn store(
    w: &mut Warp,
    reach: &mut Reach<'_>,
    mask: u32,
    (space, element): (Space, ElementType),
    from: &[Reg],
    at: Address,
) -> Outcome {
    let at = addresses(w, mask, at)?;
    let bytes = u32::from(element.bytes) * from.len() as u32;
    let mut words = [[0u32; 4]; LANES];
    for (i, &reg) in from.iter().enumerate() {
        match element.bytes {
            8 => {
                for (words, value) in words.iter_mut().zip(w.r64(reg, mask)?) {
                    (words[2 * i], words[2 * i + 1]) = (*value as u32, (value >> 32) as u32);
                }
            }
            4 => words.iter_mut().zip(w.r32(reg, mask)?).for_each(|(words, value)| words[i] = *value),
            size => {
                let (at, bits) = (u32::from(size) * i as u32, 8 * u32::from(size));
                for (words, value) in words.iter_mut().zip(w.r32(reg, mask)?) {
                    words[(at / 4) as usize] |= (value & ((1 << bits) - 1)) << (8 * (at % 4));
                }
            }
        }
    }
    if space == Space::Global {
        for lane in lanes(mask) {
            global::store(reach.global, at[lane], u64::from(bytes), &words[lane], lane)?;
        }
        count_sectors(reach.counters, &at, mask, u64::from(bytes));
        reach.counters.global_written_bytes += u64::from(bytes * mask.count_ones());
        return Ok(());
    }
    let first = w.first_thread();
    for lane in lanes(mask) {
        reach.shared.store(at[lane] as u32, bytes, &words[lane], first + lane as u16, reach.clock)?;
    }
    count_conflicts(reach, &at, mask, bytes);
    Ok(())
}

pub(super) fn atomic(
    w: &mut Warp,
    reach: &mut Reach<'_>,
    mask: u32,
    (atomic, space): (Atomic, Space),
    d: Option<Reg>,
    at: Address,
    [a, b]: [Reg; 2],
) -> Outcome {
    let at = addresses(w, mask, at)?;
    let (a, b) = (*w.r32(a, mask)?, *w.r32(b, mask)?);
    let with = match atomic {
        Atomic::Add => Some(Binary::Add),
        Atomic::AddF32 => Some(Binary::AddF32),
        Atomic::MinUnsigned => Some(Binary::MinUnsigned),
        Atomic::MinSigned => Some(Binary::MinSigned),
        Atomic::MaxUnsigned => Some(Binary::MaxUnsigned),
        Atomic::MaxSigned => Some(Binary::MaxSigned),
        Atomic::And => Some(Binary::And),
        Atomic::Or => Some(Binary::Or),
        Atomic::Xor => Some(Binary::Xor),
        Atomic::Exchange | Atomic::CompareAndSwap => None,
    };
    let mut before = [0; LANES];
    for lane in lanes(mask) {
        let f = |old: u32| match with {
            Some(with) => combine(with, old, a[lane]),
            None if atomic == Atomic::Exchange || old == a[lane] => {
                if atomic == Atomic::Exchange {
                    a[lane]
                } else {
                    b[lane]
                }
            }
            None => old,
        };
        before[lane] = if space == Space::Global {
            global::update(reach.global, at[lane], lane, f)?
        } else {
            reach.shared.update(at[lane] as u32, w.first_thread() + lane as u16, reach.clock, f)?
        };
    }
    if space == Space::Global {
        count_sectors(reach.counters, &at, mask, 4);
        reach.counters.global_read_bytes += u64::from(4 * mask.count_ones());
        reach.counters.global_written_bytes += u64::from(4 * mask.count_ones());
    } else {
        count_conflicts(reach, &at, mask, 4);
    }
    if let Some(d) = d {
        w.set_r32(d, mask, &before);
    }
    Ok(())
}

/// `cp.async`: reads the source now; the destination cannot be read until a wait.
pub(super) fn copy(
    w: &mut Warp,
    reach: &mut Reach<'_>,
    mask: u32,
    [to, from]: [Address; 2],
    bytes: u32,
    source_bytes: Option<Reg>,
) -> Outcome {
    let (to, from) = (addresses(w, mask, to)?, addresses(w, mask, from)?);
    let source_bytes = match source_bytes {
        Some(reg) => *w.r32(reg, mask)?,
        None => [bytes; LANES],
    };
    let first = w.first_thread();
    let mut read = 0;
    for lane in lanes(mask) {
        reach.shared.await_copy(to[lane] as u32, bytes, first + lane as u16, reach.clock)?;
        // The rest of the destination, beyond the source's size, becomes zero.
        let source_bytes = source_bytes[lane];
        if source_bytes > bytes {
            let detail = format!("cp.async with a source of {source_bytes} bytes and a destination of {bytes}");
            return stop(lane, Check::OutOfBounds, detail);
        }
        let mut words = [0; 4];
        if !from[lane].is_multiple_of(u64::from(bytes)) && source_bytes > 0 {
            return stop(lane, Check::Misaligned, format!("cp.async of {bytes} bytes at {:#x}", from[lane]));
        }
        for (i, word) in words.iter_mut().enumerate().take(source_bytes.div_ceil(4) as usize) {
            *word = global::load(reach.global, from[lane] + 4 * i as u64, 4, lane)?[0];
        }
        if !source_bytes.is_multiple_of(4) {
            words[source_bytes as usize / 4] &= (1 << (8 * (source_bytes % 4))) - 1;
        }
        read += u64::from(source_bytes);
        w.async_copies.push(AsyncCopy {
            lane: lane as u8,
            group: w.committed[lane],
            to: to[lane] as u32,
            bytes,
            words,
        });
    }
    count_sectors(reach.counters, &from, mask, u64::from(bytes));
    count_conflicts(reach, &to, mask, bytes);
    reach.counters.global_read_bytes += read;
    Ok(())
}

/// Completes the lanes' copies: all of them, or all but the last `pending` committed groups.
pub(super) fn wait(w: &mut Warp, reach: &mut Reach<'_>, mask: u32, pending: Option<u32>) {
    let first = w.first_thread();
    let committed = w.committed;
    w.async_copies.retain(|copy| {
        let lane = usize::from(copy.lane);
        let is_due = match pending {
            None => true,
            Some(pending) => copy.group + pending < committed[lane],
        };
        let lands = mask >> lane & 1 != 0 && is_due;
        if lands {
            let words = &copy.words[..copy.bytes as usize / 4];
            reach.shared.land(copy.to, words, first + lane as u16, reach.clock.now);
        }
        !lands
    });
}
