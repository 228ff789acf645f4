//! Bulk copies (TMA): tensor tiles and contiguous bytes between global and shared memory.
//!
//! One thread starts a copy. Its source is read at once. Its destination is written as late as possible, when no warp
//! of the block can continue without it, so a missing wait is detected. Tiles have the layout of the PTX manual's
//! swizzling modes: rows of the innermost dimension, whose 16-byte chunks are permuted by address bits 7 and up.
//! Elements outside the tensor are zero and count as transferred bytes.

use super::access::{Reach, addresses};
use super::fault::{Check, Outcome, stop};
use super::global;
use super::program::{Address, Bulk, GlobalSide, PARAMETERS};
use super::shared_async::Reader;
use super::warp::{Warp, lanes};
use crate::backend::cuda::tensor_map::{Swizzle, TensorMap};

/// A load in flight.
pub(super) struct PendingCopy {
    to: u32,
    words: Vec<u32>,
    mbarrier: usize,
    phase: u32,
    /// The thread and instruction that started it.
    pub warp: usize,
    pub lane: usize,
    pub pc: u32,
}

/// The swizzled address of a byte: the index of its 16-byte chunk within the swizzle's span, XOR the index of its
/// 128-byte row.
pub(super) fn swizzled(swizzle: Swizzle, address: u32) -> u32 {
    let mask = swizzle.span() / 16 - 1;
    address ^ (address >> 7 & mask) << 4
}

/// Visits the elements of a tile: offset in the tile, and address in global memory unless outside the tensor.
fn visit_elements(map: &TensorMap, corner: &[i64], mut visit: impl FnMut(u32, Option<u64>) -> Outcome) -> Outcome {
    let size = map.dtype.size_bytes() as u64;
    let counts = map.counts();
    let inner = counts[0];
    for row in 0..counts[1..].iter().product::<u32>() {
        let mut rest = row;
        let mut address = Some(map.tensor.address);
        for (i, &count) in counts.iter().enumerate().skip(1) {
            let at = corner[i] + i64::from(rest % count * map.steps[i]);
            rest /= count;
            let inside = u64::try_from(at).ok().filter(|&at| at < map.dims[i]);
            address = address.zip(inside).map(|(address, at)| address + at * map.strides[i - 1]);
        }
        for e in 0..inner {
            let at = corner[0] + i64::from(e * map.steps[0]);
            let inside = u64::try_from(at).ok().filter(|&at| at < map.dims[0]);
            let offset = (row * inner + e) * size as u32;
            visit(offset, address.zip(inside).map(|(address, at)| address + at * size))?;
        }
    }
    Ok(())
}

/// The map at an address.
fn map_at(maps: &[(u32, TensorMap)], address: u64, rank: usize, lane: usize) -> Outcome<&TensorMap> {
    let offset = address.wrapping_sub(PARAMETERS);
    match maps.iter().find(|(at, _)| u64::from(*at) == offset) {
        Some((_, map)) if map.dims.len() == rank => Ok(map),
        Some((_, map)) => {
            stop(lane, Check::Descriptor, format!("{rank} coordinates for a tensor of {} dimensions", map.dims.len()))
        }
        None => stop(lane, Check::Descriptor, format!("no tensor map at {address:#x}")),
    }
}

/// Checks that a tile in shared memory is aligned to the period of its swizzle.
fn check_alignment(map: &TensorMap, at: u32, lane: usize) -> Outcome {
    let alignment = (8 * map.swizzle.span()).max(128);
    if at.is_multiple_of(alignment) {
        return Ok(());
    }
    let detail = format!("a tile at shared address {at:#x}, not a multiple of {alignment} as its swizzle requires");
    stop(lane, Check::Descriptor, detail)
}

fn corner(w: &Warp, coordinates: &[u16], mask: u32, lane: usize) -> Outcome<Vec<i64>> {
    coordinates.iter().map(|&reg| Ok(i64::from(w.r32(reg, mask)?[lane] as i32))).collect()
}

pub(super) fn operate(w: &mut Warp, reach: &mut Reach<'_>, mask: u32, op: &Bulk) -> Outcome {
    match op {
        Bulk::Load { to, from, mbarrier } => {
            let (to, mbarrier) = (addresses(w, mask, *to)?, addresses(w, mask, *mbarrier)?);
            lanes(mask).try_for_each(|lane| load(w, reach, (mask, lane), to[lane] as u32, from, mbarrier[lane] as u32))
        }
        Bulk::Store { to, from } => {
            let from = addresses(w, mask, *from)?;
            w.has_open_stores = true;
            reach.clock.act(reach.clock.store_agent(w.index));
            lanes(mask).try_for_each(|lane| store(w, reach, (mask, lane), to, from[lane] as u32))
        }
        Bulk::Commit => {
            if std::mem::take(&mut w.has_open_stores) {
                w.stores.push(reach.clock.tick());
            }
            Ok(())
        }
        Bulk::Wait(remaining) => {
            let done = w.stores.len().saturating_sub(*remaining as usize);
            let agent = reach.clock.store_agent(w.index);
            w.stores.drain(..done).for_each(|time| reach.clock.see_agent(w.index, agent, time));
            Ok(())
        }
    }
}

/// Address and length of a copy of contiguous bytes.
fn byte_range(w: &Warp, (mask, lane): (u32, usize), at: Address, bytes: u16) -> Outcome<(u64, u32)> {
    let (at, bytes) = (addresses(w, mask, at)?[lane], w.r32(bytes, mask)?[lane]);
    if bytes.is_multiple_of(16) && at.is_multiple_of(16) {
        return Ok((at, bytes));
    }
    stop(lane, Check::Misaligned, format!("a bulk copy of {bytes} bytes at {at:#x}; both must be multiples of 16"))
}

fn load(
    w: &Warp,
    reach: &mut Reach<'_>,
    (mask, lane): (u32, usize),
    to: u32,
    from: &GlobalSide,
    mbarrier: u32,
) -> Outcome {
    let mbarrier = reach.mbarriers.find(mbarrier, w, lane, reach.clock)?;
    let phase = reach.mbarriers.phase_of_copy(mbarrier, lane)?;
    let thread = w.first_thread() + lane as u16;
    let mut read = 0;
    let words = match from {
        GlobalSide::Bytes { at, bytes } => {
            let (at, bytes) = byte_range(w, (mask, lane), *at, *bytes)?;
            reach.shared.await_bulk(to, bytes, 16, thread, reach.clock)?;
            read = u64::from(bytes);
            let mut words = Vec::new();
            for i in 0..u64::from(bytes / 16) {
                words.extend(global::load(reach.global, at + 16 * i, 16, lane)?);
            }
            words
        }
        GlobalSide::Tile { map, coordinates } => {
            let map = map_at(reach.maps, w.r64(*map, mask)?[lane], coordinates.len(), lane)?;
            check_alignment(map, to, lane)?;
            let size = map.dtype.size_bytes() as u64;
            reach.shared.await_bulk(to, map.tile_bytes(), 128, thread, reach.clock)?;
            let mut words = vec![0; map.tile_bytes() as usize / 4];
            visit_elements(map, &corner(w, coordinates, mask, lane)?, |offset, address| {
                let Some(address) = address else { return Ok(()) };
                let bits = global::load(reach.global, address, size, lane)?[0];
                let at = swizzled(map.swizzle, to + offset) - to;
                words[at as usize / 4] |= bits << (8 * (at % 4));
                read += size;
                Ok(())
            })?;
            words
        }
    };
    reach.counters.global_read_bytes += read;
    reach.pending_copies.push(PendingCopy { to, words, mbarrier, phase, warp: w.index, lane, pc: w.pc });
    Ok(())
}

/// Completes a load: writes its destination and signals its `mbarrier`.
pub(super) fn land(reach: &mut Reach<'_>, copy: &PendingCopy) -> Outcome {
    let time = reach.clock.tick();
    let agent = reach.clock.copy_agent(copy.mbarrier);
    reach.clock.act(agent);
    let writer = 32 * agent as u16;
    reach.shared.land(copy.to, &copy.words, writer, time);
    let bytes = 4 * copy.words.len() as u32;
    let counted = reach.mbarriers.land(copy.mbarrier, copy.phase, bytes, time, reach.clock);
    counted.or_else(|detail| stop(copy.lane, Check::Transactions, detail))
}

fn store(w: &Warp, reach: &mut Reach<'_>, (mask, lane): (u32, usize), to: &GlobalSide, from: u32) -> Outcome {
    let thread = w.first_thread() + lane as u16;
    let time = reach.clock.now;
    let mut written = 0;
    match to {
        GlobalSide::Bytes { at, bytes } => {
            let (at, bytes) = byte_range(w, (mask, lane), *at, *bytes)?;
            for i in 0..bytes / 16 {
                let words = reach.shared.load_async(from + 16 * i, thread, time, Reader::BulkStore, reach.clock)?;
                global::store(reach.global, at + u64::from(16 * i), 16, &words, lane)?;
            }
            written = u64::from(bytes);
        }
        GlobalSide::Tile { map, coordinates } => {
            let map = map_at(reach.maps, w.r64(*map, mask)?[lane], coordinates.len(), lane)?;
            check_alignment(map, from, lane)?;
            let size = map.dtype.size_bytes() as u64;
            let mut tile = Vec::new();
            for chunk in 0..map.tile_bytes() / 16 {
                let at = swizzled(map.swizzle, from + 16 * chunk);
                tile.extend(reach.shared.load_async(at, thread, time, Reader::BulkStore, reach.clock)?);
            }
            visit_elements(map, &corner(w, coordinates, mask, lane)?, |offset, address| {
                let Some(address) = address else { return Ok(()) };
                let word = tile[offset as usize / 4] >> (8 * (offset % 4));
                let word = if size == 2 { word & 0xffff } else { word };
                written += size;
                global::store(reach.global, address, size, &[word, 0, 0, 0], lane)
            })?;
        }
    }
    reach.counters.global_written_bytes += written;
    Ok(())
}
