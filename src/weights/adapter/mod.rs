//! Adapters: small files that change a checkpoint's weights, as peft, diffusers, sd-scripts and LyCORIS write them.
//!
//! An [`Adapter`] is a file, its tensors sorted by the modules that they belong to. [`Adapter::fit`] looks those modules up
//! in a checkpoint, whose own tensors are the table; [`Adapters`] are several of them with a scale each. They stand in
//! front of a component's files as a [`WeightSource`](crate::plan::WeightSource): an adapted tensor is
//! `W + scale * alpha / r * up @ down`, computed in f32 when it is loaded and rounded once to the type in which W is
//! stored; all others pass as they are. No plan knows of it, and no step costs more.
//!
//! One question a file: `names` (which module, which factor), `peft` (which scale), `form` (the arithmetic), `module`
//! (what belongs together), `fit` (what fits a checkpoint), `base` (whether it was made for it), `adapted` (the source),
//! `merge` (a checkpoint with the changes in it).

mod adapted;
mod base;
mod digest;
mod fit;
mod form;
mod merge;
mod module;
mod names;
mod peft;

use super::safetensors::WeightFile;
use super::{Checkpoint, TensorInfo, few, to_f32s};
use crate::dtype::StoredDtype;
use crate::error::{Error, Result};
use module::{Leaves, Numbers};
use names::{Leaf, Naming};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

pub use adapted::{Adapted, Adapters};
pub use fit::{Fit, Module};
pub use merge::Merged;

/// What peft calls the two files of a folder.
const PEFT_FILE: &str = "adapter_model.safetensors";
const PEFT_CONFIG: &str = "adapter_config.json";
/// What diffusers calls its file in a folder.
const DIFFUSERS_FILE: &str = "pytorch_lora_weights.safetensors";
/// Under which key of a file's metadata diffusers keeps what peft has in a file of its own.
const METADATA: &str = "lora_adapter_metadata";
/// Keys of the metadata that say how the file was made, in the order in which they are shown. A point at the end stands for
/// all keys that begin so.
const SHOWN: &[&str] = &[
    "ss_network_module",
    "ss_network_dim",
    "ss_network_alpha",
    "ss_network_args",
    "ss_base_model_version",
    "ss_sd_model_name",
    "ss_training_comment",
    "ss_tag_frequency",
    "modelspec.",
];

/// A tensor of an adapter's file.
#[derive(Clone, Debug, PartialEq)]
struct Tensor {
    key: String,
    shape: Vec<usize>,
}

/// The tensors of a module, under the name that the file has for it.
#[derive(Debug)]
struct Stem {
    naming: Naming,
    leaves: Leaves,
    numbers: Numbers,
}

/// An adapter's file, read and sorted.
#[derive(Debug)]
pub struct Adapter {
    name: String,
    file: WeightFile,
    digest: String,
    stems: BTreeMap<String, Stem>,
    /// What peft says of it, as JSON.
    config: Option<String>,
}

impl Adapter {
    /// Opens a file, or a folder as peft and diffusers save them.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::WeightFile`] for files that cannot be read, are damaged, or hold tensors that belong to no
    /// adapter; [`Error::Unsupported`] for kinds of adapters that are known and not implemented.
    pub fn open(path: impl AsRef<Path>) -> Result<Adapter> {
        let path = path.as_ref();
        let (file, config) = files_of(path)?;
        let config = match config {
            Some(config) => Some(fs::read_to_string(&config).map_err(|e| Error::io(&config, "read", e))?),
            None => None,
        };
        let digest = File::open(&file).and_then(digest::sha256).map_err(|e| Error::io(&file, "read", e))?;
        let file = WeightFile::open(&file, true)?;
        let config = config.or_else(|| file.metadata().get(METADATA).cloned());
        let name = path.file_name().map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into_owned());
        let stems = sort(&file)?;
        Ok(Adapter { name, file, digest, stems, config })
    }

    /// The name of its file or folder, without those above it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// The SHA-256 of the file, in hexadecimal digits.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Type and shape of all tensors, sorted by name.
    pub fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        self.file.tensors()
    }

    /// Who writes such names.
    pub fn layouts(&self) -> Vec<&'static str> {
        let namings: BTreeSet<Naming> = self.stems.values().map(|stem| stem.naming).collect();
        namings.into_iter().map(Naming::title).collect()
    }

    /// What the file's metadata says of how it was made, by key.
    pub fn notes(&self) -> Vec<(&str, &str)> {
        let metadata = self.file.metadata();
        let shown = |&wanted: &&'static str| {
            let is_shown = move |key: &str| key == wanted || wanted.ends_with('.') && key.starts_with(wanted);
            metadata.iter().filter(move |(key, text)| is_shown(key) && !text.is_empty())
        };
        SHOWN.iter().flat_map(shown).map(|(key, text)| (key.as_str(), text.as_str())).collect()
    }

    /// Whether a path leads to something that [`Adapter::open`] is for, by its name and place.
    pub fn is_meant(path: &Path) -> bool {
        match path.is_dir() {
            true => {
                [PEFT_FILE, PEFT_CONFIG, DIFFUSERS_FILE].iter().any(|name| path.join(name).is_file())
                    && !is_checkpoint(path)
            }
            false => path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("safetensors")),
        }
    }

    fn read(&self, tensor: &Tensor) -> Result<Vec<f32>> {
        values(&self.file, &tensor.key)
    }

    fn refused(&self, reason: String) -> Error {
        Error::WeightFile { path: self.path().to_path_buf(), reason }
    }
}

/// Whether a folder is a checkpoint, whatever else lies there.
fn is_checkpoint(folder: &Path) -> bool {
    folder.join("model_index.json").is_file()
}

/// The weight file that a path means, and the configuration beside it.
fn files_of(path: &Path) -> Result<(PathBuf, Option<PathBuf>)> {
    let metadata = fs::metadata(path).map_err(|e| Error::io(path, "open", e))?;
    let config_in = |folder: &Path| Some(folder.join(PEFT_CONFIG)).filter(|config| config.is_file());
    if !metadata.is_dir() {
        let is_pefts = path.file_name().is_some_and(|name| name == PEFT_FILE);
        return Ok((path.to_path_buf(), path.parent().filter(|_| is_pefts).and_then(config_in)));
    }
    let [pefts, diffusers] = [PEFT_FILE, DIFFUSERS_FILE].map(|name| path.join(name));
    match (pefts.is_file(), diffusers.is_file(), config_in(path)) {
        (true, _, Some(config)) => Ok((pefts, Some(config))),
        (true, _, None) => Err(Error::config(path, format!("expected {PEFT_CONFIG} beside {PEFT_FILE}"))),
        (false, true, _) => Ok((diffusers, None)),
        _ => Err(Error::config(path, format!("no adapter: expected {PEFT_FILE} or {DIFFUSERS_FILE} in this folder"))),
    }
}

/// Sorts a file's tensors by module; every key has to mean something.
fn sort(file: &WeightFile) -> Result<BTreeMap<String, Stem>> {
    let path = || file.path().to_path_buf();
    let broken = |reason: String| Error::WeightFile { path: path(), reason };
    let mut unknown = Vec::new();
    let mut stems: BTreeMap<String, Stem> = BTreeMap::new();
    for (key, info) in file.tensors() {
        let Some((stem, leaf, naming)) = names::parse(key) else {
            if let Some(kind) = names::refused(key) {
                let what = format!("{}: {kind} (tensor {key}); LoRA, LoCon, LoHa, LoKr, DoRA are", path().display());
                return Err(Error::Unsupported { what });
            }
            unknown.push(key.as_str());
            continue;
        };
        if !matches!(&info.dtype, StoredDtype::Known(dtype) if dtype.is_float()) {
            return Err(broken(format!("tensor {key}: expected F32, F16, BF16 or F64, found {info}")));
        }
        let found = values(file, key)?;
        if found.iter().any(|x| !x.is_finite()) {
            return Err(broken(format!("tensor {key} contains NaN or infinity")));
        }
        let numbers = Numbers { alpha: None, scale: None };
        let entry = stems.entry(stem.to_owned()).or_insert(Stem { naming, leaves: Leaves::new(), numbers });
        match (leaf, found.as_slice()) {
            (Leaf::Alpha, &[alpha]) => entry.numbers.alpha = Some(alpha),
            (Leaf::Scale, &[scale]) => entry.numbers.scale = Some(scale),
            (Leaf::Alpha | Leaf::Scale, _) => {
                return Err(broken(format!("tensor {key}: expected one number, found {info}")));
            }
            // A number's name says less of who wrote the file.
            _ => entry.naming = naming,
        }
        let tensor = Tensor { key: key.clone(), shape: info.shape.clone() };
        if let Some(other) = entry.leaves.insert(leaf, tensor) {
            return Err(broken(format!("{} and {key} are the same factor", other.key)));
        }
    }
    if stems.is_empty() {
        let first = file.tensors().keys().next().map_or(String::new(), |key| format!(", the first of them {key}"));
        return Err(broken(format!(
            "no adapter: no name of its {} tensors is that of one{first}",
            file.tensors().len()
        )));
    }
    match unknown.is_empty() {
        true => Ok(stems),
        false => Err(broken(format!("tensors that belong to no kind of adapter: {}", few(&unknown)))),
    }
}

/// A tensor in f32.
fn values(file: &WeightFile, key: &str) -> Result<Vec<f32>> {
    let info = &file.tensors()[key];
    match info.dtype {
        StoredDtype::Known(dtype) => {
            Ok(to_f32s(dtype, &file.bytes(info)?).expect("types were checked when the file was opened"))
        }
        StoredDtype::Other(_) => unreachable!("types were checked when the file was opened"),
    }
}
