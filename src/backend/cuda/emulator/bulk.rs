//! Bulk copies: tiles of tensors and rows of bytes, brought to shared memory and back by a unit of their own (TMA).
//!
//! A copy is started by one thread. What it reads is read at once; it lands as late as possible, when no warp of the block
//! can go on without it, so that whoever forgets to wait finds the old contents. Tiles are laid out as the PTX manual's
//! tables of swizzling modes say: rows of the innermost dimension, of which the 16-byte pieces change places by bits 7 and
//! up of their address. Elements outside of the tensor are zero and count as bytes that come.

use super::access::{Reach, addresses};
use super::fault::{Check, Outcome, stop};
use super::global;
use super::program::{Address, Bulk, Outside, PARAMETERS};
use super::shared_async::Reader;
use super::warp::{Warp, lanes};
use crate::backend::cuda::tensor_map::{Swizzle, TensorMap};

/// A copy under way.
pub(super) struct Flight {
    to: u32,
    words: Vec<u32>,
    mbarrier: usize,
    phase: u32,
    /// Who started it, and where.
    pub warp: usize,
    pub lane: usize,
    pub place: u32,
}

/// The address at which a byte of a tile is kept: pieces of 16 bytes change places within 128, 64 or 32 bytes, by the
/// number of their row of 128 bytes.
pub(super) fn swizzled(swizzle: Swizzle, address: u32) -> u32 {
    let mask = swizzle.span() / 16 - 1;
    address ^ (address >> 7 & mask) << 4
}

/// The pieces of a tile: offset in it, and where they are in the tensor if they are inside.
fn elements(map: &TensorMap, corner: &[i64], mut visit: impl FnMut(u32, Option<u64>) -> Outcome) -> Outcome {
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
        None => stop(lane, Check::Descriptor, format!("there is no tensor map at {address:#x}")),
    }
}

/// A tile's place in shared memory begins where its swizzle does.
fn aligned(map: &TensorMap, at: u32, lane: usize) -> Outcome {
    let wanted = (8 * map.swizzle.span()).max(128);
    if at.is_multiple_of(wanted) {
        return Ok(());
    }
    let detail =
        format!("a tile at shared address {at:#x}, which is no multiple of the {wanted} that its swizzle asks for");
    stop(lane, Check::Descriptor, detail)
}

fn corner(w: &Warp, coordinates: &[u16], mask: u32, lane: usize) -> Outcome<Vec<i64>> {
    coordinates.iter().map(|&reg| Ok(i64::from(w.small(reg, mask)?[lane] as i32))).collect()
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
            lanes(mask).try_for_each(|lane| store(w, reach, (mask, lane), to, from[lane] as u32))
        }
        Bulk::Commit => {
            if std::mem::take(&mut w.has_open_stores) {
                w.stores.push(reach.clock.tick());
            }
            Ok(())
        }
        Bulk::Wait(left) => {
            let done = w.stores.len().saturating_sub(*left as usize);
            let agent = reach.clock.stores_of(w.index);
            w.stores.drain(..done).for_each(|time| reach.clock.see_agent(w.index, agent, time));
            Ok(())
        }
    }
}

/// Address and length of a row of bytes.
fn row(w: &Warp, (mask, lane): (u32, usize), at: Address, bytes: u16) -> Outcome<(u64, u32)> {
    let (at, bytes) = (addresses(w, mask, at)?[lane], w.small(bytes, mask)?[lane]);
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
    from: &Outside,
    mbarrier: u32,
) -> Outcome {
    let mbarrier = reach.mbarriers.find(mbarrier, w, lane, reach.clock)?;
    let phase = reach.mbarriers.announce(mbarrier, lane)?;
    let thread = w.first_thread() + lane as u16;
    let mut read = 0;
    let words = match from {
        Outside::Row { at, bytes } => {
            let (at, bytes) = row(w, (mask, lane), *at, *bytes)?;
            reach.shared.await_bulk(to, bytes, 16, thread, reach.clock)?;
            read = u64::from(bytes);
            let mut words = Vec::new();
            for i in 0..u64::from(bytes / 16) {
                words.extend(global::load(reach.global, at + 16 * i, 16, lane)?);
            }
            words
        }
        Outside::Tile { map, coordinates } => {
            let map = map_at(reach.maps, w.wide(*map, mask)?[lane], coordinates.len(), lane)?;
            aligned(map, to, lane)?;
            let size = map.dtype.size_bytes() as u64;
            reach.shared.await_bulk(to, map.tile_bytes(), 128, thread, reach.clock)?;
            let mut words = vec![0; map.tile_bytes() as usize / 4];
            elements(map, &corner(w, coordinates, mask, lane)?, |offset, address| {
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
    reach.flights.push(Flight { to, words, mbarrier, phase, warp: w.index, lane, place: w.place });
    Ok(())
}

/// Lets a copy land.
pub(super) fn land(reach: &mut Reach<'_>, flight: &Flight) -> Outcome {
    let time = reach.clock.tick();
    let writer = 32 * reach.clock.copies_of(flight.mbarrier) as u16;
    reach.shared.land(flight.to, &flight.words, writer, time);
    let bytes = 4 * flight.words.len() as u32;
    let counted = reach.mbarriers.land(flight.mbarrier, flight.phase, bytes, time, reach.clock);
    counted.or_else(|detail| stop(flight.lane, Check::Transactions, detail))
}

fn store(w: &Warp, reach: &mut Reach<'_>, (mask, lane): (u32, usize), to: &Outside, from: u32) -> Outcome {
    let thread = w.first_thread() + lane as u16;
    let time = reach.clock.now;
    let mut written = 0;
    match to {
        Outside::Row { at, bytes } => {
            let (at, bytes) = row(w, (mask, lane), *at, *bytes)?;
            for i in 0..bytes / 16 {
                let words = reach.shared.load_async(from + 16 * i, thread, time, Reader::Store, reach.clock)?;
                global::store(reach.global, at + u64::from(16 * i), 16, &words, lane)?;
            }
            written = u64::from(bytes);
        }
        Outside::Tile { map, coordinates } => {
            let map = map_at(reach.maps, w.wide(*map, mask)?[lane], coordinates.len(), lane)?;
            aligned(map, from, lane)?;
            let size = map.dtype.size_bytes() as u64;
            let mut tile = Vec::new();
            for piece in 0..map.tile_bytes() / 16 {
                let at = swizzled(map.swizzle, from + 16 * piece);
                tile.extend(reach.shared.load_async(at, thread, time, Reader::Store, reach.clock)?);
            }
            elements(map, &corner(w, coordinates, mask, lane)?, |offset, address| {
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
