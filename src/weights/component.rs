//! One component of a checkpoint: its weight files, open.

use super::safetensors::WeightFile;
use super::{TensorInfo, to_f32s};
use crate::dtype::{Dtype, StoredDtype};
use crate::error::{Error, Result};
use crate::plan::{FLOATS, StoredTensor, TensorData, WeightSource};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// One part of a checkpoint with its weight files open. Dropping it closes and unmaps them.
#[derive(Debug)]
pub struct Component {
    pub(super) name: String,
    pub(super) path: PathBuf,
    pub(super) variant: Option<String>,
    pub(super) files: Vec<WeightFile>,
    /// Name of the file that lists the shards, if there is one.
    pub(super) index: Option<String>,
    /// Tensor name to index of its file.
    pub(super) tensors: BTreeMap<String, usize>,
    pub(super) warnings: Vec<String>,
}

impl Component {
    /// The name of the component and its folder: `prior`, `decoder`, ...
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The component's folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The weight variant that was opened, such as `fp16`; `None` for the plain files.
    pub fn variant(&self) -> Option<&str> {
        self.variant.as_deref()
    }

    /// What was chosen among the files that a user may not expect, a line each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The weight files: one, or the shards in order of their names.
    pub fn files(&self) -> &[WeightFile] {
        &self.files
    }

    /// The name of the file that lists the shards, if there are any.
    pub fn index(&self) -> Option<&str> {
        self.index.as_deref()
    }

    /// Type and shape of a tensor, or `None` when there is none of this name.
    pub fn info(&self, tensor: &str) -> Option<&TensorInfo> {
        self.locate(tensor).map(|(_, info)| info)
    }

    /// All tensors, sorted by name.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = (&str, &TensorInfo)> {
        self.tensors.iter().map(|(name, file)| (name.as_str(), &self.files[*file].tensors()[name]))
    }

    /// Bytes of all tensors together.
    pub fn total_bytes(&self) -> u64 {
        self.tensors().map(|(_, info)| info.size_bytes as u64).sum()
    }

    /// The bytes of a tensor as they are stored: borrowed from the map, or read now.
    ///
    /// # Errors
    /// [`Error::Weights`] when there is no such tensor, [`Error::Changed`] when the file was shortened,
    /// [`Error::Io`] when reading fails.
    pub fn bytes(&self, tensor: &str) -> Result<Cow<'_, [u8]>> {
        let (file, info) = self.locate(tensor).ok_or_else(|| self.wrong(tensor, "a tensor of this name", "none"))?;
        file.bytes(info)
    }

    /// A tensor as `f32`, converted from F16, BF16 or F64 where it is stored so.
    ///
    /// # Errors
    /// As [`Component::bytes`], and [`Error::Weights`] when the tensor is not of a floating-point type.
    pub fn f32s(&self, tensor: &str) -> Result<Vec<f32>> {
        let (file, info) = self.locate(tensor).ok_or_else(|| self.wrong(tensor, "a tensor of this name", "none"))?;
        match &info.dtype {
            StoredDtype::Known(dtype) if dtype.is_float() => {
                Ok(to_f32s(*dtype, &file.bytes(info)?).expect("is_float names the types that convert"))
            }
            _ => Err(self.wrong(tensor, FLOATS, &info.to_string())),
        }
    }

    /// Checks that no weight file changed since it was opened. Call it when all tensors have been read; its limits are
    /// described in [`super::safetensors`].
    ///
    /// # Errors
    /// [`Error::Changed`] naming the file.
    pub fn check_unchanged(&self) -> Result<()> {
        self.files.iter().try_for_each(WeightFile::check_unchanged)
    }

    /// What tells whether the files behind the component's path are still the ones that were opened.
    pub fn signature(&self) -> Signature {
        Signature(self.files.iter().filter_map(WeightFile::stamp).collect())
    }

    fn locate(&self, tensor: &str) -> Option<(&WeightFile, &TensorInfo)> {
        let file = &self.files[*self.tensors.get(tensor)?];
        Some((file, file.tensors().get(tensor)?))
    }

    fn wrong(&self, tensor: &str, expected: &str, found: &str) -> Error {
        Error::Weights {
            path: WeightSource::path(self, tensor).to_path_buf(),
            tensor: tensor.to_string(),
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }
}

/// Length and time of a component's files when they were opened. Files inside the program never change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature(Vec<(PathBuf, u64, Option<SystemTime>)>);

impl Signature {
    /// Whether the paths still name files of the same length and time.
    pub fn is_current(&self) -> bool {
        self.0.iter().all(|(path, len, modified)| {
            fs::metadata(path).is_ok_and(|now| now.len() == *len && now.modified().ok() == *modified)
        })
    }
}

impl WeightSource for Component {
    fn find(&self, tensor: &str) -> Option<(StoredDtype, Vec<usize>)> {
        self.info(tensor).map(|info| (info.dtype.clone(), info.shape.clone()))
    }

    fn load(&self, tensor: &str) -> Result<TensorData<'_>> {
        let (file, info) = self.locate(tensor).ok_or_else(|| self.wrong(tensor, "a tensor of this name", "none"))?;
        Ok(match &info.dtype {
            StoredDtype::Known(Dtype::F32) => TensorData::F32(cast(file.bytes(info)?)),
            StoredDtype::Known(Dtype::F16) => TensorData::F16(cast(file.bytes(info)?)),
            StoredDtype::Known(Dtype::Bf16) => TensorData::Bf16(cast(file.bytes(info)?)),
            _ => TensorData::F32(Cow::Owned(self.f32s(tensor)?)),
        })
    }

    fn open(&self, tensor: &str) -> Result<StoredTensor<'_>> {
        match self.locate(tensor) {
            Some((file, info)) => match info.dtype {
                StoredDtype::Known(dtype @ (Dtype::F32 | Dtype::F16 | Dtype::Bf16)) => {
                    Ok(StoredTensor::new(dtype, info.size_bytes, |from, to| file.read(info, from, to)))
                }
                _ => Ok(self.load(tensor)?.into()),
            },
            None => Err(self.wrong(tensor, "a tensor of this name", "none")),
        }
    }

    /// The file that holds the tensor; for one that is nowhere, the only file or the folder.
    fn path(&self, tensor: &str) -> &Path {
        match (self.locate(tensor), self.files.as_slice()) {
            (Some((file, _)), _) | (None, [file]) => file.path(),
            _ => &self.path,
        }
    }
}

/// The first of many names.
pub(crate) fn few(names: &[impl AsRef<str>]) -> String {
    const SHOWN: usize = 5;
    let shown: Vec<&str> = names.iter().take(SHOWN).map(AsRef::as_ref).collect();
    let more = names.len().saturating_sub(SHOWN);
    shown.join(", ") + &if more > 0 { format!(" and {more} more") } else { String::new() }
}

/// Bytes as elements: in place if they are aligned, else copied.
fn cast<T: bytemuck::AnyBitPattern + bytemuck::NoUninit>(bytes: Cow<'_, [u8]>) -> Cow<'_, [T]> {
    match bytes {
        Cow::Borrowed(bytes) => match bytemuck::try_cast_slice(bytes) {
            Ok(elements) => Cow::Borrowed(elements),
            Err(_) => Cow::Owned(bytemuck::allocation::pod_collect_to_vec(bytes)),
        },
        Cow::Owned(bytes) => Cow::Owned(bytemuck::allocation::pod_collect_to_vec(&bytes)),
    }
}
