//! Embeddings of a folder's pictures, kept in one file so that the next search computes only what is new.
//!
//! An entry holds for a picture of the same path, size and time of its last change, embedded in the same way: by the same
//! checkpoint, prepared alike and computed in the same precision. The file is a tensor `embeddings [N, D]` with the entries
//! of its rows in the metadata.

use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::time::UNIX_EPOCH;
use unclip::{Error, Result, output};

const TENSOR: &str = "embeddings";
/// Key of the metadata: of what the rows are.
const ENTRIES: &str = "entries";
/// Key of the metadata: how they were made.
const MADE_BY: &str = "made_by";

/// A picture as it was when it was embedded.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Stamp {
    /// Relative to the folder.
    path: String,
    size_bytes: u64,
    /// Nanoseconds since 1970; `None` where the system does not say.
    modified: Option<u64>,
}

impl Stamp {
    /// The stamp of a file in a folder as it is now.
    pub fn of(path: &Path, folder: &Path) -> Stamp {
        let found = std::fs::metadata(path).ok();
        let modified = found.as_ref().and_then(|found| found.modified().ok()?.duration_since(UNIX_EPOCH).ok());
        Stamp {
            path: path.strip_prefix(folder).unwrap_or(path).to_string_lossy().into_owned(),
            size_bytes: found.map_or(0, |found| found.len()),
            modified: modified.and_then(|time| u64::try_from(time.as_nanos()).ok()),
        }
    }
}

/// Embeddings by their pictures' stamps.
#[derive(Debug, Default)]
pub struct Cache {
    made_by: String,
    rows: HashMap<Stamp, Vec<f32>>,
    has_changed: bool,
}

impl Cache {
    /// What a file keeps; nothing where there is none. What is damaged is made anew, but a file that the user `named` and that
    /// is something else is not written over.
    ///
    /// # Errors
    /// The file cannot be read, or is something else.
    pub fn read(path: &Path, is_named: bool) -> Result<Cache> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Cache::default()),
            Err(e) => return Err(Error::io(path, "read", e)),
        };
        match Cache::decode(&bytes) {
            Some(cache) => Ok(cache),
            None if is_named => {
                Err(Error::value("--cache", path.display(), "not a cache of embeddings; name another file"))
            }
            None => Ok(Cache::default()),
        }
    }

    fn decode(bytes: &[u8]) -> Option<Cache> {
        let (_, header) = SafeTensors::read_metadata(bytes).ok()?;
        let metadata = header.metadata().as_ref()?;
        let stamps: Vec<Stamp> = serde_json::from_str(metadata.get(ENTRIES)?).ok()?;
        let tensors = SafeTensors::deserialize(bytes).ok()?;
        let view = tensors.tensor(TENSOR).ok()?;
        let [rows, width] = *view.shape() else { return None };
        if view.dtype() != safetensors::Dtype::F32 || rows != stamps.len() || width == 0 {
            return None;
        }
        let row = |bytes: &[u8]| bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        let rows = stamps.into_iter().zip(view.data().chunks_exact(4 * width).map(row)).collect();
        Some(Cache { made_by: metadata.get(MADE_BY)?.clone(), rows, has_changed: false })
    }

    /// Drops everything unless it was made in this way.
    pub fn keep_for(&mut self, made_by: &str) {
        if self.made_by != made_by {
            *self = Cache { made_by: made_by.to_owned(), ..Cache::default() };
        }
    }

    /// Drops all but these pictures.
    pub fn keep_only(&mut self, stamps: &[Stamp]) {
        let stamps: HashSet<&Stamp> = stamps.iter().collect();
        let before = self.rows.len();
        self.rows.retain(|stamp, _| stamps.contains(stamp));
        self.has_changed |= self.rows.len() < before;
    }

    pub fn get(&self, stamp: &Stamp) -> Option<&[f32]> {
        self.rows.get(stamp).map(Vec::as_slice)
    }

    pub fn put(&mut self, stamp: &Stamp, embedding: Vec<f32>) {
        self.rows.insert(stamp.clone(), embedding);
        self.has_changed = true;
    }

    /// Whether it holds something else than its file.
    pub fn has_changed(&self) -> bool {
        self.has_changed
    }

    /// Writes all of it in the file's place.
    ///
    /// # Errors
    /// The file cannot be written; it is then as it was.
    pub fn write(&self, path: &Path) -> Result<()> {
        let failed = |reason: String| Error::io(path, "write", std::io::Error::other(reason));
        let mut rows: Vec<(&Stamp, &Vec<f32>)> = self.rows.iter().collect();
        rows.sort_by(|a, b| a.0.path.cmp(&b.0.path));
        let stamps: Vec<&Stamp> = rows.iter().map(|(stamp, _)| *stamp).collect();
        let entries = serde_json::to_string(&stamps).map_err(|e| failed(e.to_string()))?;
        let metadata = [(ENTRIES.to_owned(), entries), (MADE_BY.to_owned(), self.made_by.clone())];
        let width = rows.first().map_or(1, |(_, row)| row.len());
        let bytes: Vec<u8> = rows.iter().flat_map(|(_, row)| *row).flat_map(|x| x.to_le_bytes()).collect();
        let view = TensorView::new(safetensors::Dtype::F32, vec![rows.len(), width], &bytes);
        let view = view.map_err(|e| failed(e.to_string()))?;
        let bytes = safetensors::serialize([(TENSOR, view)], Some(metadata.into_iter().collect()))
            .map_err(|e| failed(e.to_string()))?;
        output::write(path, &bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn stamp(name: &str, size_bytes: u64) -> Stamp {
        Stamp { path: name.to_owned(), size_bytes, modified: Some(3) }
    }

    #[test]
    fn what_is_kept_comes_back_for_the_same_pictures_and_the_same_way() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cache");
        let mut cache = Cache::read(&path, true).unwrap();
        cache.keep_for("one way");
        cache.put(&stamp("a", 1), vec![0.5, -2.0]);
        cache.put(&stamp("b", 1), vec![1.0, 3.0]);
        cache.write(&path).unwrap();
        let mut again = Cache::read(&path, true).unwrap();
        again.keep_for("one way");
        again.keep_only(&[stamp("a", 1), stamp("b", 2)]);
        assert_eq!(again.get(&stamp("a", 1)), Some(&[0.5, -2.0][..]));
        assert!(again.get(&stamp("b", 2)).is_none() && again.has_changed());
        let mut other = Cache::read(&path, true).unwrap();
        assert!(!other.has_changed());
        other.keep_for("another way");
        assert!(other.get(&stamp("a", 1)).is_none());
    }

    #[test]
    fn a_damaged_cache_is_made_anew_and_another_file_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cache");
        for bytes in [&b""[..], b"something else", &[0; 64]] {
            fs::write(&path, bytes).unwrap();
            assert!(Cache::read(&path, false).unwrap().rows.is_empty());
            assert!(Cache::read(&path, true).unwrap_err().to_string().contains("not a cache of embeddings"));
        }
    }

    #[test]
    fn a_stamp_changes_with_size_and_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.png");
        fs::write(&path, "one").unwrap();
        let first = Stamp::of(&path, dir.path());
        assert_eq!((first.path.as_str(), first.size_bytes), ("a.png", 3));
        fs::File::options().write(true).open(&path).unwrap().set_modified(UNIX_EPOCH).unwrap();
        let earlier = Stamp::of(&path, dir.path());
        assert!(earlier != first && earlier.modified == Some(0));
        fs::write(&path, "longer").unwrap();
        assert_ne!(Stamp::of(&path, dir.path()).size_bytes, 3);
    }
}
