//! One safetensors file: 8 bytes of length, a JSON header, the tensors' bytes.
//!
//! The header is checked more strictly than by the format's reference crate: a name must not appear twice (JSON readers
//! differ in which of two they keep, so programs would load different weights from one file), and the number of
//! tensors is bounded. As in the crate, tensors must fill the data without holes, overlaps or trailing bytes.
//!
//! # A file that changes while it is used
//!
//! The bytes come from a memory map, from reads of one tensor at a time, or from memory.
//!
//! * *Replaced by rename* (as careful writers do): the open file stays the old one.
//! * *Shortened*: [`WeightFile::bytes`] compares the length before each tensor and returns [`Error::Changed`]. A memory
//!   map cannot report a file that is shortened after that: on Unix the process ends with SIGBUS, before any picture is
//!   written. Bytes of the last partial page read as zero instead; [`WeightFile::check_unchanged`] detects that.
//! * *Overwritten in place*: tensors may be a mixture of old and new. [`WeightFile::check_unchanged`], called when all
//!   tensors have been read, detects it by modification time and length. A write that keeps both (within the clock tick
//!   of the file system, or with the time set back) is not detected.
//!
//! Without a map (`--no-mmap`) a shortened file is always an [`Error::Changed`], never a signal.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::fs::{self, File, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use memmap2::Mmap;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use super::TensorInfo;
use crate::dtype::{Dtype, StoredDtype};
use crate::error::{Error, Result};
use crate::sniff;

/// Bytes of the length field in front of the header.
const PREFIX: usize = 8;
/// The reference crate's own limit.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// Components of full size have fewer than 1,000 tensors; a header with millions of empty ones would exhaust memory.
const MAX_TENSORS: usize = 100_000;

/// A validated safetensors file, open for reading.
#[derive(Debug)]
pub struct WeightFile {
    path: PathBuf,
    source: Source,
    tensors: BTreeMap<String, TensorInfo>,
    metadata: BTreeMap<String, String>,
}

/// What a header says: the tensors, sorted by name, and the texts of its `__metadata__`.
type Contents = (BTreeMap<String, TensorInfo>, BTreeMap<String, String>);

#[derive(Debug)]
enum Source {
    Mapped(Mmap, OnDisk),
    Read(OnDisk),
    Memory(&'static [u8]),
}

/// The open file with its length and time when it was opened. Later checks use the handle, not the path, which may name
/// another file by then.
#[derive(Debug)]
struct OnDisk {
    file: File,
    len: u64,
    modified: Option<SystemTime>,
}

impl WeightFile {
    /// Opens and validates the file at `path`; it is mapped into memory or read tensor by tensor.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be opened, [`Error::WeightFile`] when it is not a sound safetensors file.
    pub fn open(path: &Path, mmap: bool) -> Result<WeightFile> {
        // Before opening: opening a pipe would wait for a writer.
        let metadata = fs::metadata(path).map_err(|e| Error::io(path, "open", e))?;
        if !metadata.is_file() {
            return Err(broken(path, "expected a safetensors file, found something that is not a regular file"));
        }
        let file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
        let metadata = file.metadata().map_err(|e| Error::io(path, "open", e))?;
        let disk = OnDisk { len: metadata.len(), modified: metadata.modified().ok(), file };
        let (source, (tensors, metadata)) = if mmap && disk.len >= PREFIX as u64 {
            let map = map(&disk.file).map_err(|e| Error::io(path, "map", e))?;
            let contents = validate(&map).map_err(|reason| broken(path, explained(&map, reason)))?;
            (Source::Mapped(map, disk), contents)
        } else {
            let contents = disk.read_header(path)?.map_err(|reason| broken(path, explained(&disk.first(), reason)))?;
            (Source::Read(disk), contents)
        };
        Ok(WeightFile { path: path.to_path_buf(), source, tensors, metadata })
    }

    /// Validates a file inside the program; `path` is its name in messages.
    ///
    /// # Errors
    /// [`Error::WeightFile`] when it is not a sound safetensors file.
    pub fn from_memory(path: &Path, bytes: &'static [u8]) -> Result<WeightFile> {
        let (tensors, metadata) = validate(bytes).map_err(|reason| broken(path, explained(bytes, reason)))?;
        Ok(WeightFile { path: path.to_path_buf(), source: Source::Memory(bytes), tensors, metadata })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All tensors, sorted by name.
    pub fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// What the header says beside its tensors: programs leave there how a file was made.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The bytes of a tensor of [`Self::tensors`]: borrowed from the map or from memory, or read now.
    ///
    /// # Errors
    /// [`Error::Changed`] when the file has become shorter since it was opened, [`Error::Io`] when reading fails.
    ///
    /// # Panics
    /// May panic when `info` does not come from this file.
    pub fn bytes(&self, info: &TensorInfo) -> Result<Cow<'_, [u8]>> {
        let range = info.offset..info.offset + info.size_bytes;
        match &self.source {
            Source::Memory(bytes) => Ok(Cow::Borrowed(&bytes[range])),
            Source::Mapped(map, disk) => {
                if disk.now(&self.path)?.len() < disk.len {
                    return Err(Error::Changed { path: self.path.clone() });
                }
                Ok(Cow::Borrowed(&map[range]))
            }
            Source::Read(disk) => {
                let mut bytes = vec![0; info.size_bytes];
                disk.read(&self.path, info.offset, &mut bytes)?;
                Ok(Cow::Owned(bytes))
            }
        }
    }

    /// Copies bytes of a tensor of [`Self::tensors`], from byte `from` of it on. They are read, also from a file that is
    /// mapped: a read copies at the speed of memory, where the first touch of each mapped page costs a fault, and a file
    /// that was shortened is an error.
    ///
    /// # Errors
    /// As for [`Self::bytes`].
    ///
    /// # Panics
    /// May panic when `info` does not come from this file, or has fewer bytes.
    pub fn read(&self, info: &TensorInfo, from: usize, to: &mut [u8]) -> Result<()> {
        let start = info.offset + from;
        match &self.source {
            Source::Memory(bytes) => to.copy_from_slice(&bytes[start..start + to.len()]),
            Source::Mapped(_, disk) | Source::Read(disk) => disk.read(&self.path, start, to)?,
        }
        Ok(())
    }

    /// Path, length and modification time when it was opened; none for a file that is part of the program.
    pub(super) fn stamp(&self) -> Option<(PathBuf, u64, Option<SystemTime>)> {
        match &self.source {
            Source::Mapped(_, disk) | Source::Read(disk) => Some((self.path.clone(), disk.len, disk.modified)),
            Source::Memory(_) => None,
        }
    }

    /// Compares length and modification time with those at the time of opening. Call it after the tensors have been read
    /// and before their results are kept.
    ///
    /// # Errors
    /// [`Error::Changed`] when either differs.
    pub fn check_unchanged(&self) -> Result<()> {
        let (Source::Mapped(_, disk) | Source::Read(disk)) = &self.source else { return Ok(()) };
        let now = disk.now(&self.path)?;
        if now.len() == disk.len && now.modified().ok() == disk.modified {
            Ok(())
        } else {
            Err(Error::Changed { path: self.path.clone() })
        }
    }
}

impl OnDisk {
    fn now(&self, path: &Path) -> Result<Metadata> {
        self.file.metadata().map_err(|e| Error::io(path, "read", e))
    }

    /// Fills `to` with the bytes from `start` on.
    fn read(&self, path: &Path, start: usize, to: &mut [u8]) -> Result<()> {
        match read_at(&self.file, to, start as u64) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Err(Error::Changed { path: path.to_path_buf() }),
            Err(e) => Err(Error::io(path, "read", e)),
        }
    }

    /// Reads prefix and header only; tensors stay on disk until they are loaded. The inner error is a reason.
    fn read_header(&self, path: &Path) -> Result<Result<Contents, String>> {
        let mut prefix = [0; PREFIX];
        if self.len >= PREFIX as u64 {
            read_at(&self.file, &mut prefix, 0).map_err(|e| Error::io(path, "read", e))?;
        }
        let header_len = match header_len(prefix, self.len) {
            Ok(header_len) => header_len,
            Err(reason) => return Ok(Err(reason)),
        };
        let mut header = vec![0; header_len];
        read_at(&self.file, &mut header, PREFIX as u64).map_err(|e| Error::io(path, "read", e))?;
        Ok(parse_header(&header, self.len))
    }

    /// The first bytes, for a message; none if they cannot be read.
    fn first(&self) -> Vec<u8> {
        let mut first = vec![0; self.len.min(sniff::FIRST_BYTES as u64) as usize];
        match read_at(&self.file, &mut first, 0) {
            Ok(()) => first,
            Err(_) => Vec::new(),
        }
    }
}

/// Why a file was refused: that it is something else, if its first bytes say so, or else the `reason` of the reader.
fn explained(first: &[u8], reason: String) -> String {
    let plausible = first.first_chunk().is_some_and(|len| u64::from_le_bytes(*len) <= MAX_HEADER_BYTES);
    // A length and a brace begin a safetensors file, even if the length alone is another format's signature.
    if plausible && first.get(PREFIX) == Some(&b'{') {
        return reason;
    }
    sniff::instead_of("a safetensors file", first).unwrap_or(reason)
}

fn broken(path: &Path, reason: impl Into<String>) -> Error {
    Error::WeightFile { path: path.to_path_buf(), reason: reason.into() }
}

#[allow(unsafe_code)] // the only way to a memory map
fn map(file: &File) -> io::Result<Mmap> {
    // SAFETY: the map is read-only and private to this module, which returns `&[u8]` only. Another process may still
    // change the file. Any byte pattern is a valid u8, and after the complete check of the header the bytes are used as
    // tensor elements only, so a change can give wrong values (detected by `check_unchanged`) or SIGBUS (see above), but
    // no access out of range. `--no-mmap` avoids both.
    unsafe { Mmap::map(file) }
}

#[cfg(unix)]
fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, offset)
}

#[cfg(windows)]
fn read_at(file: &File, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !buffer.is_empty() {
        let n = std::os::windows::fs::FileExt::seek_read(file, buffer, offset)?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        buffer = &mut buffer[n..];
        offset += n as u64;
    }
    Ok(())
}

#[cfg(not(any(unix, windows)))]
fn read_at(_: &File, _: &mut [u8], _: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into()) // checkpoints come from memory on such systems
}

/// Validates a whole file held in memory or mapped.
fn validate(bytes: &[u8]) -> Result<Contents, String> {
    let prefix = bytes.first_chunk::<PREFIX>().copied().unwrap_or_default();
    let header_len = header_len(prefix, bytes.len() as u64)?;
    parse_header(&bytes[PREFIX..PREFIX + header_len], bytes.len() as u64)
}

/// The header's length, checked to lie inside a file of `file_len` bytes.
fn header_len(prefix: [u8; PREFIX], file_len: u64) -> Result<usize, String> {
    if file_len < PREFIX as u64 {
        return Err(format!("expected a safetensors file of at least {PREFIX} bytes, found {file_len}"));
    }
    let len = u64::from_le_bytes(prefix);
    if len > MAX_HEADER_BYTES {
        return Err(format!("expected a header of at most {MAX_HEADER_BYTES} bytes, its length field says {len}"));
    }
    let after = file_len - PREFIX as u64;
    if len > after {
        return Err(format!("truncated: expected a header of {len} bytes, only {after} follow its length field"));
    }
    Ok(len as usize) // at most MAX_HEADER_BYTES
}

/// Parses and checks the header of a file of `file_len` bytes. On success every tensor lies inside the file.
fn parse_header(header: &[u8], file_len: u64) -> Result<Contents, String> {
    let text = std::str::from_utf8(header).map_err(|e| format!("expected a header in UTF-8: {e}"))?;
    if !text.starts_with('{') {
        return Err("expected a header that begins with '{'".into());
    }
    let mut json = serde_json::Deserializer::from_str(text);
    let Header { metadata, mut tensors } = json
        .deserialize_map(HeaderVisitor)
        .and_then(|header| json.end().map(|()| header))
        .map_err(|e| format!("expected a safetensors header: {e}"))?;
    tensors.sort_by_key(|(_, info)| info.data_offsets);

    let data_start = PREFIX + header.len();
    let data_len = file_len - data_start as u64;
    let mut out = BTreeMap::new();
    let (mut end, mut previous) = (0, "");
    for (name, info) in &tensors {
        let dtype = stored_dtype(info.dtype);
        let (from, to) = info.data_offsets;
        let bits = (info.shape.iter().try_fold(info.dtype.bitsize(), |n, d| n.checked_mul(*d)))
            .ok_or_else(|| format!("tensor {name:?}: its shape {:?} is larger than memory can be", info.shape))?;
        if !bits.is_multiple_of(8) {
            return Err(format!("tensor {name:?}: {dtype} {:?} does not end with a byte", info.shape));
        }
        let size = bits / 8;
        if to.checked_sub(from) != Some(size) {
            return Err(format!(
                "tensor {name:?}: expected {size} bytes for {dtype} {:?}, its offsets are {from}..{to}",
                info.shape
            ));
        }
        if from > end {
            return Err(format!("hole: bytes {end}..{from} of the data, before tensor {name:?}, belong to no tensor"));
        }
        if from < end {
            return Err(format!("overlap: tensor {name:?} begins at byte {from} of the data, inside {previous:?}"));
        }
        (end, previous) = (to, name);
        out.insert(
            name.clone(),
            // No overflow: `file_len` holds everything, see the comparison below.
            TensorInfo { dtype, shape: info.shape.clone(), offset: data_start.saturating_add(from), size_bytes: size },
        );
    }
    let end = end as u64;
    if end > data_len {
        return Err(format!("truncated: expected {end} bytes of tensors after the header, found {data_len}"));
    }
    if end < data_len {
        let extra = data_len - end;
        return Err(format!("expected the file to end with its last tensor, found {extra} more bytes"));
    }
    // The rules of the format again, by the crate that defines them.
    let texts = metadata.iter().flatten().map(|(key, text)| (key.clone(), text.clone())).collect();
    let metadata = metadata.map(|pairs| pairs.into_iter().collect()); // into the crate's own kind of map
    ::safetensors::tensor::Metadata::new(metadata, tensors).map_err(|e| format!("not a safetensors header: {e}"))?;
    Ok((out, texts))
}

/// The header's entries in the order of the file, before checks that involve several.
struct Header {
    metadata: Option<HashMap<String, String>>,
    tensors: Vec<(String, ::safetensors::tensor::TensorInfo)>,
}

/// Reads the header entry by entry: a map would hide names that appear twice.
struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let mut header = Header { metadata: None, tensors: Vec::new() };
        let mut seen = HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            if !seen.insert(name.clone()) {
                return Err(A::Error::custom(format!("{name:?} appears twice")));
            }
            if seen.len() > MAX_TENSORS {
                return Err(A::Error::custom(format!("more than {MAX_TENSORS} tensors")));
            }
            if name == "__metadata__" {
                header.metadata = map.next_value()?;
            } else {
                let info = map.next_value().map_err(|e| A::Error::custom(format!("tensor {name:?}: {e}")))?;
                header.tensors.push((name, info));
            }
        }
        Ok(header)
    }
}

/// A type by its name in the header; of those that no model uses only the name is kept.
fn stored_dtype(dtype: ::safetensors::Dtype) -> StoredDtype {
    use ::safetensors::Dtype as Stored;
    StoredDtype::Known(match dtype {
        Stored::BOOL => Dtype::Bool,
        Stored::U8 => Dtype::U8,
        Stored::I8 => Dtype::I8,
        Stored::F8_E4M3 => Dtype::F8E4M3,
        Stored::F8_E5M2 => Dtype::F8E5M2,
        Stored::U16 => Dtype::U16,
        Stored::I16 => Dtype::I16,
        Stored::F16 => Dtype::F16,
        Stored::BF16 => Dtype::Bf16,
        Stored::U32 => Dtype::U32,
        Stored::I32 => Dtype::I32,
        Stored::F32 => Dtype::F32,
        Stored::U64 => Dtype::U64,
        Stored::I64 => Dtype::I64,
        Stored::F64 => Dtype::F64,
        other => return StoredDtype::Other(other.to_string()),
    })
}
