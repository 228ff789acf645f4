//! Loading: weights go to the device as they are stored, and become there what kernels read.
//!
//! A weight whose type and order are already right is copied to its place. Any other one is copied to scratch memory of
//! the device, where the kernel `unpack_weight` converts, reorders and pads it into its place. The host only reads bytes
//! into staging buffers, with all threads; while it fills one, the device takes another.

use super::device::{Call, Driver, STAGING_BUFFERS, STAGING_BYTES};
use super::device_slice::DeviceSlice;
use super::kernels;
use super::weights::Order;
use crate::dtype::{Dtype, StoredDtype};
use crate::error::{Error, Result};
use crate::ops::{elements, spread};
use crate::plan::{StoredTensor, WeightSource};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::ops::Range;

/// Alignment of tensors in staging buffers and scratch memory, for vector loads.
const ALIGNMENT: usize = 256;
/// Bytes that a thread reads at a time: long against a call of the operating system, short against a buffer.
const READ_BYTES: usize = 512 << 10;

/// The kernel's stem and entry.
const UNPACK: &str = "unpack_weight";
/// Scratch memory of the device that may be in use at a time, or that of the largest weight if that is more: enough for
/// the weights of several buffers.
const SCRATCH_BYTES: usize = 4 * STAGING_BYTES;

/// A weight on its way to the device.
#[derive(Clone, Copy, Debug)]
pub(super) struct Transfer<'a> {
    pub name: &'a str,
    pub shape: &'a [usize],
    pub order: Order,
    pub dtype: Dtype,
    /// Where it goes.
    pub place: DeviceSlice,
}

/// Uploads weights, in their order. When it returns they are in place, and on an error nothing is under way any more.
///
/// # Errors
/// A weight cannot be read or has another size than its plan expects, or the device failed.
pub(super) fn load(driver: &dyn Driver, transfers: &[Transfer<'_>], source: &dyn WeightSource) -> Result<()> {
    let stored: Vec<Dtype> = transfers.iter().map(|transfer| stored_type(source, transfer.name)).collect();
    let groups = groups(transfers, &stored);
    let mut uploads = driver.uploads()?;
    let scratch = match groups.iter().map(|group| group.scratch_end).max() {
        Some(bytes @ 1..) => uploads.scratch(bytes as u64)?,
        _ => 0,
    };
    let mut opened: BTreeMap<usize, StoredTensor<'_>> = BTreeMap::new();
    for (number, group) in groups.iter().enumerate() {
        opened.extend(open(transfers, &stored, source, &group.pieces)?);
        let index = number % STAGING_BUFFERS;
        fill(uploads.buffer(index)?, &group.pieces, &opened)?;
        uploads.send(index, &group.pieces.iter().map(|piece| piece.copy(transfers, scratch)).collect::<Vec<_>>())?;
        for piece in group.pieces.iter().filter(|piece| piece.is_last) {
            opened.remove(&piece.transfer);
            if let Some(offset) = piece.scratch {
                let (transfer, stored) = (&transfers[piece.transfer], stored[piece.transfer]);
                uploads.launch(&unpack(driver, transfer, stored, scratch + offset as u64)?)?;
            }
        }
    }
    uploads.finish()
}

/// The type of the bytes that the source gives for a tensor.
fn stored_type(source: &dyn WeightSource, name: &str) -> Dtype {
    match source.find(name) {
        Some((StoredDtype::Known(dtype @ (Dtype::F16 | Dtype::Bf16)), _)) => dtype,
        // Others become f32 when they are opened.
        _ => Dtype::F32,
    }
}

impl Transfer<'_> {
    /// Whether the stored bytes are what kernels read.
    fn is_direct(&self, stored: Dtype) -> bool {
        stored == self.dtype
            && match self.order {
                Order::Stored => true,
                // One tap, and no padding; f32 is rounded to tf32.
                Order::Rows => stored != Dtype::F32 && self.order.rows(self.shape)[1] == self.shape[1],
                Order::Columns => false,
            }
    }
}

/// Consecutive bytes of a tensor in a staging buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    /// Index of the tensor.
    transfer: usize,
    /// The first byte in the tensor.
    from: usize,
    /// The first byte in the buffer.
    at: usize,
    length: usize,
    is_last: bool,
    /// Where the tensor begins in scratch memory; `None` if it goes to its place directly.
    scratch: Option<usize>,
}

impl Piece {
    /// The range of the buffer and the address that it goes to.
    fn copy(&self, transfers: &[Transfer<'_>], scratch: u64) -> (Range<usize>, u64) {
        let start = match self.scratch {
            Some(offset) => scratch + offset as u64,
            None => transfers[self.transfer].place.address,
        };
        (self.at..self.at + self.length, start + self.from as u64)
    }
}

/// What one staging buffer carries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Group {
    pieces: Vec<Piece>,
    /// End of the scratch memory that is in use once it was copied.
    scratch_end: usize,
}

/// Packs tensors into staging buffers in order. The kernels of a group run behind all its copies, so scratch memory is
/// free again in the next group, except that of a tensor that continues there.
fn groups(transfers: &[Transfer<'_>], stored: &[Dtype]) -> Vec<Group> {
    let weights = transfers.iter().zip(stored).enumerate().map(|(index, (transfer, &stored))| {
        let size = elements(transfer.shape) * stored.size_bytes();
        (index, size, transfer.is_direct(stored))
    });
    let largest = weights.clone().filter(|(.., is_direct)| !is_direct).map(|(_, size, _)| size).max();
    let most_scratch = largest.unwrap_or(0).max(SCRATCH_BYTES);
    let mut groups = vec![Group::default()];
    let mut at = 0;
    for (transfer, size, is_direct) in weights.filter(|(_, size, _)| *size > 0) {
        let mut first = last(&mut groups).scratch_end.next_multiple_of(ALIGNMENT);
        if at == STAGING_BYTES || !is_direct && first + size > most_scratch {
            groups.push(Group::default());
            (at, first) = (0, 0);
        }
        let scratch = (!is_direct).then_some(first);
        let mut from = 0;
        while from < size {
            if at == STAGING_BYTES {
                groups.push(Group::default());
                at = 0;
            }
            let group = last(&mut groups);
            group.scratch_end = scratch.map_or(group.scratch_end, |first| first + size);
            let length = (size - from).min(STAGING_BYTES - at);
            group.pieces.push(Piece { transfer, from, at, length, is_last: from + length == size, scratch });
            from += length;
            at = (at + length).next_multiple_of(ALIGNMENT);
        }
    }
    groups
}

fn last(groups: &mut [Group]) -> &mut Group {
    groups.last_mut().expect("there is one from the start")
}

/// Opens the tensors that begin in a group. Sources that make them up or convert them do so with all threads.
fn open<'s>(
    transfers: &[Transfer<'_>],
    stored: &[Dtype],
    source: &'s dyn WeightSource,
    pieces: &[Piece],
) -> Result<Vec<(usize, StoredTensor<'s>)>> {
    let begun: Vec<usize> = pieces.iter().filter(|piece| piece.from == 0).map(|piece| piece.transfer).collect();
    let open = |index: usize| {
        let Transfer { name, shape, .. } = transfers[index];
        let tensor = source.open(name)?;
        let size = elements(shape) * stored[index].size_bytes();
        if (tensor.dtype(), tensor.size_bytes()) == (stored[index], size) {
            return Ok((index, tensor));
        }
        Err(Error::Weights {
            path: source.path(name).to_path_buf(),
            tensor: name.to_owned(),
            expected: format!("{size} bytes of {}", stored[index]),
            found: format!("{tensor:?}"),
        })
    };
    begun.into_par_iter().map(open).collect()
}

/// Reads the pieces of a group into its buffer, with all threads.
fn fill(buffer: &mut [u8], pieces: &[Piece], opened: &BTreeMap<usize, StoredTensor<'_>>) -> Result<()> {
    let mut reads = Vec::new();
    let (mut rest, mut end) = (buffer, 0);
    for piece in pieces {
        let (_, from_here) = rest.split_at_mut(piece.at - end);
        let (bytes, behind) = from_here.split_at_mut(piece.length);
        (rest, end) = (behind, piece.at + piece.length);
        let parts = bytes.chunks_mut(READ_BYTES).enumerate();
        reads.extend(parts.map(|(i, part)| (&opened[&piece.transfer], piece.from + i * READ_BYTES, part)));
    }
    reads.into_par_iter().try_for_each(|(tensor, from, part)| tensor.read(from, part))
}

/// The launch that brings a weight from scratch memory to its place.
fn unpack(driver: &dyn Driver, transfer: &Transfer<'_>, stored: Dtype, scratch: u64) -> Result<Call> {
    let Transfer { name, shape, order, dtype, place } = *transfer;
    let [outputs, channels, taps] = match order {
        Order::Stored => [1, elements(shape), 1],
        Order::Rows | Order::Columns => [shape[0], shape[1], elements(&shape[2..])],
    };
    let [_, pitch] = order.rows(shape);
    let count = if order == Order::Columns { channels * pitch } else { outputs * channels };
    let is_tf32 = order == Order::Rows && dtype == Dtype::F32;
    let unsupported = |what: String| Error::Unsupported { what: format!("{name}: {what} on {}", driver.name()) };
    let most = elements(shape).max(elements(&order.rows(shape)));
    if u32::try_from(most).is_err() {
        return Err(unsupported(format!("a weight of {most} elements")));
    }
    let missing = || unsupported(format!("a weight of {dtype} from {stored}"));
    let (text, entry) = kernels::find(UNPACK, UNPACK, stored, dtype).ok_or_else(missing)?;
    let kernel = driver.load(text, entry)?;
    let source =
        DeviceSlice { address: scratch, bytes: (elements(shape) * stored.size_bytes()) as u64, written: false };
    Ok(Call {
        kernel,
        grid: spread(count.div_ceil(kernel.threads as usize)),
        maps: Vec::new(),
        tensors: vec![source, DeviceSlice { written: true, ..place }],
        scalars: [count, channels, taps, outputs, pitch, usize::from(order == Order::Columns), usize::from(is_tf32)]
            .map(|n| n as u32)
            .to_vec(),
        shared_bytes: 0,
        cluster: 1,
        label: format!("{UNPACK}, {name}"),
    })
}

#[cfg(all(test, feature = "cuda-emulator"))]
mod tests;
