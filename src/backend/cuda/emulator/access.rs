//! Loads, stores, atomics and asynchronous copies of a warp.

use super::alu::combine;
use super::bulk::Flight;
use super::clock::Clock;
use super::fault::{Check, Counters, Outcome, stop};
use super::global::{self, Global};
use super::mbarrier::Mbarriers;
use super::product::Warpgroups;
use super::program::{Address, Atomic, Binary, Cell, Reg, Space};
use super::shared::Shared;
use super::warp::{Copy, LANES, Warp, lanes};
use crate::backend::cuda::tensor_map::TensorMap;

/// What a block's instructions reach beside registers.
pub(super) struct Reach<'a> {
    pub global: &'a Global<'a>,
    pub shared: &'a mut Shared,
    pub clock: &'a mut Clock,
    pub counters: &'a mut Counters,
    /// Tensor maps, by where they are among the parameters.
    pub maps: &'a [(u32, TensorMap)],
    pub mbarriers: &'a mut Mbarriers,
    /// Bulk copies under way, in the order in which they were started.
    pub flights: &'a mut Vec<Flight>,
    pub warpgroups: &'a mut Warpgroups,
}

/// The addresses of all lanes.
pub(super) fn addresses(w: &Warp, mask: u32, at: Address) -> Outcome<[u64; LANES]> {
    Ok(if at.wide {
        w.wide(at.base, mask)?.map(|base| base.wrapping_add_signed(at.offset))
    } else {
        w.small(at.base, mask)?.map(|base| u64::from(base.wrapping_add(at.offset as u32)))
    })
}

/// An earlier lane with the same address. Threads that read one word together are most often neighbours or half a warp
/// apart.
#[inline]
fn same_address(at: &[u64; LANES], mask: u32, lane: usize) -> Option<usize> {
    let is_same = |other: usize| mask >> other & 1 != 0 && at[other] == at[lane];
    let neighbour = lane.checked_sub(1).filter(|&other| is_same(other));
    neighbour.or_else(|| lane.checked_sub(LANES / 2).filter(|&other| is_same(other)))
}

/// Distinct pieces of 32 bytes.
fn count_sectors(counters: &mut Counters, at: &[u64; LANES], mask: u32, bytes: u64) {
    let mut sectors = [0u64; LANES];
    let mut count = 0;
    for lane in lanes(mask) {
        let sector = at[lane] / 32;
        // Neighbours mostly share one.
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

/// Passes beyond the first that a request takes: threads are served in groups that ask for 128 bytes, and in each
/// group a bank gives one word.
fn count_conflicts(reach: &mut Reach<'_>, at: &[u64; LANES], mask: u32, bytes: u32) {
    reach.counters.shared_requests += 1;
    let words = bytes.div_ceil(4);
    let group = LANES / words as usize;
    for first in (0..LANES).step_by(group) {
        let part = mask & (u32::MAX >> (LANES - group)) << first;
        // One word for all, or words in a row: no bank is asked twice.
        let addresses = &at[first..first + group];
        let step = if addresses[0] == addresses[1] { 0 } else { u64::from(bytes) };
        if addresses.windows(2).all(|pair| pair[1] == pair[0].wrapping_add(step)) {
            continue;
        }
        let mut given = [u32::MAX; 32];
        let mut further = [0u8; 32];
        for lane in lanes(part) {
            let word = reach.shared.word(at[lane] as u32);
            for word in word..word + words {
                let bank = (word % 32) as usize;
                if given[bank] != word {
                    further[bank] += u8::from(given[bank] != u32::MAX);
                    given[bank] = word;
                }
            }
        }
        reach.counters.bank_conflicts += u64::from(further.iter().copied().max().unwrap_or(0));
    }
}

fn widened(cell: Cell, word: u32) -> u32 {
    match (cell.bytes, cell.signed) {
        (1, true) => word as i8 as u32,
        (2, true) => word as i16 as u32,
        _ => word,
    }
}

pub(super) fn load(
    w: &mut Warp,
    reach: &mut Reach<'_>,
    mask: u32,
    (space, cell): (Space, Cell),
    to: &[Option<Reg>],
    at: Address,
) -> Outcome {
    let at = addresses(w, mask, at)?;
    let bytes = u32::from(cell.bytes) * to.len() as u32;
    let mut words = [[0u32; 4]; LANES];
    if space == Space::Global {
        for lane in lanes(mask) {
            words[lane] = global::load(reach.global, at[lane], u64::from(bytes), lane)?;
        }
        count_sectors(reach.counters, &at, mask, u64::from(bytes));
        reach.counters.global_read_bytes += u64::from(bytes * mask.count_ones());
    } else {
        let first = w.first_thread();
        for lane in lanes(mask) {
            if let Some(same) = same_address(&at, mask, lane)
                && reach.shared.is_settled(at[lane] as u32, bytes, w.index, reach.clock)
            {
                words[lane] = words[same];
                continue;
            }
            words[lane] = reach.shared.load(at[lane] as u32, bytes, first + lane as u16, reach.clock)?;
        }
        count_conflicts(reach, &at, mask, bytes);
    }
    for (i, reg) in to.iter().enumerate() {
        let Some(reg) = *reg else { continue };
        match cell.bytes {
            8 => {
                let value = |w: &[u32; 4]| u64::from(w[2 * i + 1]) << 32 | u64::from(w[2 * i]);
                w.set_wide(reg, mask, &words.each_ref().map(value));
            }
            4 => w.set_small(reg, mask, &words.each_ref().map(|w| w[i])),
            size => {
                let (at, bits) = (u32::from(size) * i as u32, 8 * u32::from(size));
                let value = |w: &[u32; 4]| {
                    let word = w[(at / 4) as usize] >> (8 * (at % 4));
                    widened(cell, word & ((1 << bits) - 1))
                };
                w.set_small(reg, mask, &words.each_ref().map(value));
            }
        }
    }
    Ok(())
}

pub(super) fn store(
    w: &mut Warp,
    reach: &mut Reach<'_>,
    mask: u32,
    (space, cell): (Space, Cell),
    from: &[Reg],
    at: Address,
) -> Outcome {
    let at = addresses(w, mask, at)?;
    let bytes = u32::from(cell.bytes) * from.len() as u32;
    let mut words = [[0u32; 4]; LANES];
    for (i, &reg) in from.iter().enumerate() {
        match cell.bytes {
            8 => {
                for (words, value) in words.iter_mut().zip(w.wide(reg, mask)?) {
                    (words[2 * i], words[2 * i + 1]) = (*value as u32, (value >> 32) as u32);
                }
            }
            4 => words.iter_mut().zip(w.small(reg, mask)?).for_each(|(words, value)| words[i] = *value),
            size => {
                let (at, bits) = (u32::from(size) * i as u32, 8 * u32::from(size));
                for (words, value) in words.iter_mut().zip(w.small(reg, mask)?) {
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
    let (a, b) = (*w.small(a, mask)?, *w.small(b, mask)?);
    let with = match atomic {
        Atomic::Add => Some(Binary::Add),
        Atomic::AddSingle => Some(Binary::AddSingle),
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
        w.set_small(d, mask, &before);
    }
    Ok(())
}

/// Issues copies: the bytes are read now, the destination cannot be read until they are waited for.
pub(super) fn copy(
    w: &mut Warp,
    reach: &mut Reach<'_>,
    mask: u32,
    [to, from]: [Address; 2],
    bytes: u32,
    filled: Option<Reg>,
) -> Outcome {
    let (to, from) = (addresses(w, mask, to)?, addresses(w, mask, from)?);
    let filled = match filled {
        Some(reg) => *w.small(reg, mask)?,
        None => [bytes; LANES],
    };
    let first = w.first_thread();
    let mut read = 0;
    for lane in lanes(mask) {
        reach.shared.await_copy(to[lane] as u32, bytes, first + lane as u16, reach.clock)?;
        // Zeros take the place of what is not to be read.
        let wanted = filled[lane];
        if wanted > bytes {
            return stop(lane, Check::OutOfBounds, format!("cp.async of {wanted} bytes to a place of {bytes}"));
        }
        let mut words = [0; 4];
        if !from[lane].is_multiple_of(u64::from(bytes)) && wanted > 0 {
            return stop(lane, Check::Misaligned, format!("cp.async of {bytes} bytes at {:#x}", from[lane]));
        }
        for (i, word) in words.iter_mut().enumerate().take(wanted.div_ceil(4) as usize) {
            *word = global::load(reach.global, from[lane] + 4 * i as u64, 4, lane)?[0];
        }
        if !wanted.is_multiple_of(4) {
            words[wanted as usize / 4] &= (1 << (8 * (wanted % 4))) - 1;
        }
        read += u64::from(wanted);
        w.copies.push(Copy { lane: lane as u8, group: w.committed[lane], to: to[lane] as u32, bytes, words });
    }
    count_sectors(reach.counters, &from, mask, u64::from(bytes));
    count_conflicts(reach, &to, mask, bytes);
    reach.counters.global_read_bytes += read;
    Ok(())
}

/// Completes copies of the lanes: all, or all but those of the last `pending` committed groups.
pub(super) fn wait(w: &mut Warp, reach: &mut Reach<'_>, mask: u32, pending: Option<u32>) {
    let first = w.first_thread();
    let committed = w.committed;
    w.copies.retain(|copy| {
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
