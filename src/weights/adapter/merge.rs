//! A checkpoint with adapters in it, written as a folder of its own.
//!
//! Every file of the checkpoint is copied, never linked: a link would let whoever writes to one folder change the other. File
//! systems that share blocks of copies do so here as well. Of adapted components the weight files that were opened are
//! copied with the adapted tensors in their places; names, order, types and headers stay. Other weight files of such a
//! component, other variants or pickles, would be the unchanged network under the same name, and stay behind.
//!
//! The folder is written under another name and renamed at the end: it is there as a whole or not at all.

use super::{Adapted, Adapters, Checkpoint};
use crate::dtype::Dtype;
use crate::dtype::StoredDtype;
use crate::error::{Error, Result};
use crate::plan::{TensorData, WeightSource};
use crate::weights::{Component, TensorInfo, WeightFile};
use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Endings of files that hold weights or say where such are.
const WEIGHTS: [&str; 8] =
    [".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".ckpt", ".pt", ".msgpack", ".onnx"];

/// What was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Merged {
    /// Files in the new folder.
    pub files: usize,
    /// Tensors in them that adapters changed.
    pub tensors: usize,
    /// Weight files of adapted components that stayed behind, relative to the checkpoint.
    pub left_out: Vec<String>,
}

impl Adapters {
    /// Writes the checkpoint with its adapted tensors to a new folder. `before` is called with each file's name, relative to
    /// the folder, and ends the work by an error.
    ///
    /// # Errors
    /// [`Error::Request`] if no adapter changes the checkpoint's own components or the folder is there already, [`Error::Io`]
    /// if it cannot be written, and what `before` reports; nothing is left behind then.
    pub fn merge(
        &self,
        checkpoint: &Checkpoint,
        folder: &Path,
        before: &mut dyn FnMut(&str) -> Result<()>,
    ) -> Result<Merged> {
        let components = self.changed().map(|(name, _)| checkpoint.component(name)).collect::<Result<Vec<_>>>()?;
        let adapted: Vec<Adapted<'_>> = components.iter().map(|component| self.over(component)).collect();
        let files = checkpoint.files()?;
        let inside = |component: &Component| {
            files.iter().any(|file| component.files().iter().any(|own| own.path() == checkpoint.path_of(file)))
        };
        if let Some(other) = components.iter().find(|component| !inside(component)) {
            let reason = format!("{} is in another folder, {}; merge it there", other.name(), other.path().display());
            return Err(Error::value("adapters", self.names(), reason));
        }
        if components.is_empty() {
            return Err(Error::request("adapters", "there is nothing to merge"));
        }
        let new = NewFolder::create(folder)?;
        let mut merged = Merged::default();
        for file in &files {
            let source = checkpoint.path_of(file);
            let changed: Vec<(&Adapted<'_>, &WeightFile)> = adapted
                .iter()
                .flat_map(|adapted| adapted.component().files().iter().map(move |own| (adapted, own)))
                .filter(|(_, own)| own.path() == source)
                .collect();
            let is_beside =
                || components.iter().any(|c| c.files().iter().any(|own| own.path().parent() == source.parent()));
            let is_index = |c: &Component| c.index().is_some_and(|index| source.ends_with(index));
            if changed.is_empty()
                && WEIGHTS.iter().any(|ending| file.ends_with(ending))
                && is_beside()
                && !components.iter().any(is_index)
            {
                merged.left_out.push(file.clone());
                continue;
            }
            before(file)?;
            let mut to = new.file(file)?;
            let written = checkpoint.copy(file, &mut to).and_then(|()| {
                changed.iter().try_fold(0, |count, (adapted, own)| Ok(count + overwrite(adapted, own, &mut to)?))
            });
            merged.tensors += written?;
            to.sync_all().map_err(|e| Error::io(folder, "write", e))?;
            merged.files += 1;
        }
        adapted.iter().try_for_each(Adapted::check_unchanged)?;
        new.finish()?;
        Ok(merged)
    }

    fn names(&self) -> String {
        self.iter().map(|(adapter, _)| adapter.name()).collect::<Vec<_>>().join(", ")
    }
}

/// Puts the adapted tensors of a file in their places, and gives how many those are.
fn overwrite(adapted: &Adapted<'_>, own: &WeightFile, to: &mut File) -> Result<usize> {
    let mut count = 0;
    for (name, info) in own.tensors() {
        if adapted.is_changed(name) {
            let bytes = stored(&adapted.load(name)?, info);
            let failed = |e| Error::io(own.path(), "write a copy of", e);
            to.seek(SeekFrom::Start(info.offset as u64)).and_then(|_| to.write_all(&bytes)).map_err(failed)?;
            count += 1;
        }
    }
    Ok(count)
}

/// The bytes of a tensor in the type in which it is stored.
fn stored(data: &TensorData<'_>, info: &TensorInfo) -> Vec<u8> {
    match (data, &info.dtype) {
        (TensorData::F32(values), StoredDtype::Known(Dtype::F64)) => {
            values.iter().flat_map(|x| f64::from(*x).to_le_bytes()).collect()
        }
        (TensorData::F32(values), _) => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        (TensorData::F16(values), _) => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        (TensorData::Bf16(values), _) => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
    }
}

/// A folder that is being written under a name of its own, and goes unless it is finished.
struct NewFolder {
    path: PathBuf,
    target: PathBuf,
}

impl NewFolder {
    fn create(target: &Path) -> Result<NewFolder> {
        let failed = |e| Error::io(target, "write", e);
        let is_empty = |folder: &Path| fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none());
        if fs::symlink_metadata(target).is_ok() && !is_empty(target) {
            return Err(Error::value("output", target.display(), "is there already; expected a new folder"));
        }
        let name = target.file_name().ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
        let mut unique = name.to_os_string();
        unique.push(format!(".{}-0.tmp", std::process::id()));
        let path = target.with_file_name(unique);
        fs::create_dir(&path).map_err(failed)?;
        Ok(NewFolder { path, target: target.to_path_buf() })
    }

    /// A new file in it, by its path with `/`.
    fn file(&self, relative: &str) -> Result<File> {
        let failed = |e| Error::io(self.target.join(relative), "write", e);
        let path = self.path.join(relative);
        path.parent().map_or(Ok(()), fs::create_dir_all).map_err(failed)?;
        File::create_new(path).map_err(failed)
    }

    fn finish(self) -> Result<()> {
        fs::rename(&self.path, &self.target).map_err(|e| Error::io(&self.target, "write", e))
    }
}

impl Drop for NewFolder {
    fn drop(&mut self) {
        // After the rename there is nothing of this name; otherwise there is no one left to tell.
        _ = fs::remove_dir_all(&self.path);
    }
}
