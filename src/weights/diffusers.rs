//! Checkpoint folders in the diffusers layout, and their components.
//!
//! ```text
//! model_index.json                     which class each component has
//! prior/config.json                    the component's settings
//! prior/diffusion_pytorch_model.safetensors
//! prior_scheduler/scheduler_config.json
//! tokenizer/vocab.json ...
//! ```
//!
//! [`Checkpoint::embedded`] takes a table of paths and bytes instead of a folder. A CLIP alone, as transformers saves it, has
//! no `model_index.json`; its folder is taken for all of its components.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Component as Part, Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::component::{Component, few};
use super::config::{self, Configured, Schema};
use super::json::{Unique, parse_json};
use super::layout::{self, Files, Refusal};
use super::safetensors::WeightFile;
use super::snapshot::snapshot_in;
use super::whole;
use crate::error::{Error, Result};
use crate::sniff::{self, Kind};

const MODEL_INDEX: &str = "model_index.json";

/// How to open weight files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadOptions {
    /// Map weight files into memory (the default), or read each tensor when it is loaded.
    pub mmap: bool,
    /// Weight variant, such as `fp16`; a component that lacks it has its plain files opened. `None`: the plain files, or
    /// the only variant.
    pub variant: Option<String>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        LoadOptions { mmap: true, variant: None }
    }
}

/// A checkpoint: a folder, or a table of files inside the program.
#[derive(Debug)]
pub struct Checkpoint {
    root: Root,
    options: LoadOptions,
    class_name: String,
    classes: BTreeMap<String, String>,
    warnings: Vec<String>,
    /// A checkpoint whose components belong to this one, under names with this prefix.
    beside: Option<(&'static str, Box<Checkpoint>)>,
}

#[derive(Debug)]
enum Root {
    Folder(PathBuf),
    /// A whole CLIP of transformers.
    Whole(PathBuf),
    Embedded(&'static str, &'static [(&'static str, &'static [u8])]),
}

impl Checkpoint {
    /// Opens the folder `dir` and reads its `model_index.json`; no component is touched yet. Of a model's folder in the hub's
    /// cache a snapshot is opened, see [`snapshot_in`]. A folder without that file may be a CLIP of transformers.
    ///
    /// # Errors
    /// [`Error::Config`] when the folder is missing, `model_index.json` is missing or damaged, or no component has the variant
    /// that is asked for; [`Error::Io`] when it cannot be read.
    pub fn open(dir: impl AsRef<Path>, options: LoadOptions) -> Result<Checkpoint> {
        let dir = dir.as_ref();
        match fs::metadata(dir) {
            Ok(m) if m.is_dir() => {}
            Ok(_) => return Err(Error::config(dir, format!("expected a checkpoint folder with {MODEL_INDEX}"))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(Error::config(dir, format!("no such folder; expected a checkpoint with {MODEL_INDEX}")));
            }
            Err(e) => return Err(Error::io(dir, "open", e)),
        }
        let is_checkpoint = dir.join(MODEL_INDEX).exists() || whole::is_whole(dir);
        let snapshot = if is_checkpoint { None } else { snapshot_in(dir)? };
        let folder = snapshot.as_deref().unwrap_or(dir).to_path_buf();
        let is_whole = !folder.join(MODEL_INDEX).exists() && whole::is_whole(&folder);
        let root = if is_whole { Root::Whole(folder) } else { Root::Folder(folder) };
        let mut checkpoint = Self::with_root(root, options)?;
        checkpoint.warnings.extend(snapshot.map(|snapshot| {
            format!("{} is a folder of the hub's cache; took its snapshot {}", dir.display(), snapshot.display())
        }));
        Ok(checkpoint)
    }

    /// A checkpoint that is part of the program: its name, and pairs of path (with `/`, relative to the checkpoint) and
    /// content.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn embedded(
        name: &'static str,
        table: &'static [(&'static str, &'static [u8])],
        options: LoadOptions,
    ) -> Result<Checkpoint> {
        Self::with_root(Root::Embedded(name, table), options)
    }

    fn with_root(root: Root, options: LoadOptions) -> Result<Checkpoint> {
        let (class_name, classes, warnings) = Default::default();
        let mut checkpoint = Checkpoint { root, options, class_name, classes, warnings, beside: None };
        let index: serde_json::Map<String, serde_json::Value> = checkpoint.json(MODEL_INDEX)?;
        if let Some(class) = index.get("_class_name").and_then(|c| c.as_str()) {
            checkpoint.class_name = class.to_string();
        }
        for (name, value) in index.iter().filter(|(name, _)| !name.starts_with('_')) {
            // [library, class]; [null, null] marks an optional component that is left out.
            if let Some(class) = value.get(1).and_then(|c| c.as_str()) {
                checkpoint.classes.insert(name.clone(), class.to_string());
            }
        }
        checkpoint.check_variant()?;
        Ok(checkpoint)
    }

    /// Adds another checkpoint's components under names with a prefix, as diffusers' combined pipelines save them:
    /// Kandinsky keeps its prior in a folder of its own, which becomes `prior_prior`, `prior_text_encoder` and so on.
    /// What this checkpoint has itself under such a name stays.
    pub fn beside(mut self, prefix: &'static str, other: Checkpoint) -> Checkpoint {
        let classes = other.classes().map(|(name, class)| (format!("{prefix}{name}"), class.to_owned()));
        for (name, class) in classes.collect::<Vec<_>>() {
            self.classes.entry(name).or_insert(class);
        }
        self.warnings.extend(other.warnings().iter().cloned());
        self.beside = Some((prefix, Box::new(other)));
        self
    }

    /// The checkpoint that has a file or folder, and its path there.
    fn owner<'a>(&'a self, relative: &'a str) -> (&'a Checkpoint, &'a str) {
        let folder = relative.split('/').next().unwrap_or(relative);
        match &self.beside {
            Some((prefix, other)) if !self.has_own(folder) => {
                relative.strip_prefix(prefix).map_or((self, relative), |rest| (&**other, rest))
            }
            _ => (self, relative),
        }
    }

    /// Refuses a variant that no component has; a folder that cannot be listed shows when it is opened.
    fn check_variant(&self) -> Result<()> {
        let Some(variant) = &self.options.variant else { return Ok(()) };
        let there: BTreeSet<String> = self
            .classes
            .keys()
            .filter_map(|name| self.list(name).ok())
            .flat_map(|names| layout::variants(&names))
            .collect();
        if there.contains(variant) {
            return Ok(());
        }
        let there: Vec<String> = there.into_iter().collect();
        let found = if there.is_empty() { "only plain files".to_owned() } else { there.join(", ") };
        Err(Error::config(self.path(), format!("no component has weights of variant {variant}, found {found}")))
    }

    /// Where the checkpoint is, for messages.
    pub fn path(&self) -> &Path {
        match &self.root {
            Root::Folder(dir) | Root::Whole(dir) => dir,
            Root::Embedded(name, _) => Path::new(name),
        }
    }

    /// What the checkpoint is called in a picture's settings: the name of its folder, or of a model in the hub's cache
    /// (`org/name`).
    pub fn name(&self) -> String {
        let path = self.path();
        let real = match &self.root {
            Root::Folder(dir) | Root::Whole(dir) => fs::canonicalize(dir).unwrap_or_else(|_| path.to_path_buf()),
            Root::Embedded(..) => path.to_path_buf(),
        };
        let parts: Vec<_> = real.iter().rev().map(|part| part.to_string_lossy()).collect();
        if let [_, snapshots, model, ..] = &parts[..]
            && snapshots == "snapshots"
            && let Some(model) = model.strip_prefix("models--")
        {
            return model.replacen("--", "/", 1);
        }
        parts.first().map_or_else(|| path.display().to_string(), ToString::to_string)
    }

    /// What the checkpoint is called that has a component: this one, or the one [beside](Checkpoint::beside) it.
    pub fn name_of(&self, component: &str) -> String {
        self.owner(component).0.name()
    }

    /// What was chosen that a user may not expect, a line each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The pipeline class, such as `UnCLIPPipeline`; empty if `model_index.json` names none.
    pub fn class_name(&self) -> &str {
        &self.class_name
    }

    /// The components named by `model_index.json` with their classes, sorted by name.
    pub fn classes(&self) -> impl Iterator<Item = (&str, &str)> {
        self.classes.iter().map(|(name, class)| (name.as_str(), class.as_str()))
    }

    /// Whether the checkpoint has a folder or a file called `name`.
    pub fn has(&self, name: &str) -> bool {
        let (owner, name) = self.owner(name);
        owner.has_own(name)
    }

    fn has_own(&self, name: &str) -> bool {
        match &self.root {
            Root::Folder(dir) => is_inside(name) && dir.join(name).exists(),
            Root::Whole(dir) => is_inside(name) && dir.join(whole::inside(dir, name)).exists(),
            Root::Embedded(_, table) => table
                .iter()
                .any(|(path, _)| path.strip_prefix(name).is_some_and(|r| r.is_empty() || r.starts_with('/'))),
        }
    }

    /// Checks that all of `names` are there.
    ///
    /// # Errors
    /// One [`Error::Config`] that lists everything missing.
    pub fn require(&self, names: &[&str]) -> Result<()> {
        match self.missing(names) {
            Some(missing) => Err(Error::config(self.path(), missing)),
            None => Ok(()),
        }
    }

    /// Checks that optional folders or files are there; `what` needs them.
    ///
    /// # Errors
    /// As [`Checkpoint::require`]; the message ends with `what`.
    pub fn require_for(&self, what: &str, names: &[&str]) -> Result<()> {
        match self.missing(names) {
            Some(missing) => Err(Error::config(self.path(), format!("{missing}; needed for {what}"))),
            None => Ok(()),
        }
    }

    fn missing(&self, names: &[&str]) -> Option<String> {
        let missing: Vec<&str> = names.iter().copied().filter(|name| !self.has(name)).collect();
        (!missing.is_empty()).then(|| format!("missing from the checkpoint: {}", missing.join(", ")))
    }

    /// The content of a file, by its path relative to the checkpoint (with `/`).
    ///
    /// # Errors
    /// [`Error::Config`] when there is no such file, or a Git LFS pointer or a web page in its place; [`Error::Io`] when it
    /// cannot be read.
    pub fn read(&self, relative: &str) -> Result<Cow<'static, [u8]>> {
        let (owner, relative) = self.owner(relative);
        let path = owner.path_of(relative);
        let missing = || Error::config(&path, "no such file; the checkpoint is incomplete");
        let bytes = match &owner.root {
            _ if !is_inside(relative) => return Err(Error::config(&path, "expected a path inside the checkpoint")),
            Root::Whole(_) if relative == MODEL_INDEX => Cow::Borrowed(whole::INDEX),
            Root::Folder(_) | Root::Whole(_) => match fs::read(&path) {
                Ok(bytes) => Cow::Owned(bytes),
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(missing()),
                Err(e) => return Err(Error::io(&path, "read", e)),
            },
            Root::Embedded(_, table) => {
                let entry = table.iter().find(|(path, _)| *path == relative);
                Cow::Borrowed(entry.ok_or_else(missing)?.1)
            }
        };
        // No file of a checkpoint begins like these, whatever its own format is.
        match Kind::of(&bytes) {
            Some(Kind::LfsPointer | Kind::Html) => {
                let reason = sniff::instead_of("a file of the checkpoint", &bytes).unwrap_or_default();
                Err(Error::config(&path, reason))
            }
            _ => Ok(bytes),
        }
    }

    /// A configuration file, checked against the keys of its class.
    ///
    /// # Errors
    /// As [`Checkpoint::read`] and [`config::read`].
    pub fn config<T: Schema>(&self, relative: &str) -> Result<Configured<T>> {
        config::read(&self.path_of(relative), &self.read(relative)?)
    }

    /// A JSON file that is not the configuration of a class: an index, a vocabulary.
    ///
    /// # Errors
    /// As [`Checkpoint::read`]; [`Error::Config`] with the key when the content does not fit `T`.
    pub fn json<T: DeserializeOwned>(&self, relative: &str) -> Result<T> {
        parse_json(&self.path_of(relative), &self.read(relative)?)
    }

    /// Opens a component: the headers of its weight files.
    ///
    /// # Errors
    /// [`Error::Config`] when a file is missing, [`Error::Unsupported`] when only pickled weights are there,
    /// [`Error::WeightFile`] when a weight file or an index of shards is damaged.
    pub fn component(&self, name: &str) -> Result<Component> {
        self.require(&[name])?;
        let (owner, own) = self.owner(name);
        if !std::ptr::eq(owner, self) {
            return Ok(Component { name: name.to_owned(), ..owner.component(own)? });
        }
        let path = self.folder_of(name);
        let choice =
            layout::choose(&self.list(name)?, self.options.variant.as_deref()).map_err(|refusal| match refusal {
                Refusal::Unsupported(what) => Error::Unsupported { what: format!("{}: {what}", path.display()) },
                Refusal::Missing(reason) => Error::config(&path, reason),
            })?;
        let mut files = Vec::new();
        let mut tensors = BTreeMap::new();
        let mut warnings = Vec::new();
        let list = match &choice.files {
            Files::Single(_) => None,
            Files::Sharded { index } => Some(index.clone()),
        };
        if let Some(wanted) = self.options.variant.as_deref().filter(|wanted| choice.variant.as_deref() != Some(wanted))
        {
            warnings.push(format!("{}: no weights of variant {wanted}; took the plain ones", path.display()));
        }
        match choice.files {
            Files::Single(file) => {
                let file = self.weight_file(name, &file)?;
                tensors.extend(file.tensors().keys().map(|tensor| (tensor.clone(), 0)));
                files.push(file);
            }
            Files::Sharded { index } => {
                let index_path = self.path_of(&format!("{name}/{index}"));
                let ShardIndex { weight_map: Unique(map) } = self.json(&format!("{name}/{index}"))?;
                let broken = |reason| Error::WeightFile { path: index_path.clone(), reason };
                for shard in map.values().collect::<BTreeSet<_>>() {
                    if !is_inside(shard) {
                        return Err(broken(format!("weight_map: expected names inside this folder, found {shard:?}")));
                    }
                    if !self.has(&format!("{name}/{shard}")) {
                        return Err(broken(format!("weight_map names the shard {shard:?}, which is missing")));
                    }
                    let file = self.weight_file(name, shard)?;
                    // The index says what is taken.
                    let more: Vec<&str> =
                        file.tensors().keys().filter(|t| map.get(*t) != Some(shard)).map(String::as_str).collect();
                    if !more.is_empty() {
                        let path = file.path().display();
                        warnings
                            .push(format!("{path}: passed over what the index does not take from it: {}", few(&more)));
                    }
                    let listed = map.iter().filter(|(_, file)| *file == shard);
                    for (tensor, _) in listed {
                        if !file.tensors().contains_key(tensor) {
                            return Err(broken(format!(
                                "weight_map puts tensor {tensor:?} into {shard}, it is not there"
                            )));
                        }
                        tensors.insert(tensor.clone(), files.len());
                    }
                    files.push(file);
                }
            }
        }
        Ok(Component { name: name.to_string(), path, variant: choice.variant, files, index: list, tensors, warnings })
    }

    fn weight_file(&self, component: &str, file: &str) -> Result<WeightFile> {
        let relative = format!("{component}/{file}");
        let path = self.path_of(&relative);
        match &self.root {
            Root::Folder(_) | Root::Whole(_) => WeightFile::open(&path, self.options.mmap),
            Root::Embedded(..) => match self.read(&relative)? {
                Cow::Borrowed(bytes) => WeightFile::from_memory(&path, bytes),
                Cow::Owned(_) => unreachable!("embedded files are borrowed"),
            },
        }
    }

    /// Names of the files directly inside `folder`.
    fn list(&self, folder: &str) -> Result<Vec<String>> {
        let mut names = Vec::new();
        match &self.root {
            Root::Folder(_) | Root::Whole(_) => {
                let path = self.folder_of(folder);
                let failed = |e| Error::io(&path, "list", e);
                for entry in fs::read_dir(&path).map_err(failed)? {
                    // Names that are not Unicode belong to no checkpoint.
                    names.extend(entry.map_err(failed)?.file_name().into_string().ok());
                }
            }
            Root::Embedded(_, table) => names.extend(table.iter().filter_map(|(path, _)| {
                let file = path.strip_prefix(folder)?.strip_prefix('/')?;
                (!file.contains('/')).then(|| file.to_string())
            })),
        }
        names.sort();
        Ok(names)
    }

    /// All files of this checkpoint's own, by their paths relative to it, sorted; hidden ones belong to other programs.
    ///
    /// # Errors
    /// [`Error::Io`] when a folder cannot be listed.
    pub(super) fn files(&self) -> Result<Vec<String>> {
        let root = match &self.root {
            Root::Folder(root) | Root::Whole(root) => root,
            Root::Embedded(_, table) => return Ok(table.iter().map(|(path, _)| (*path).to_owned()).collect()),
        };
        let mut files = Vec::new();
        let mut folders = vec![String::new()];
        while let Some(folder) = folders.pop() {
            let failed = |e| Error::io(root.join(&folder), "list", e);
            for entry in fs::read_dir(root.join(&folder)).map_err(failed)? {
                let Ok(name) = entry.map_err(failed)?.file_name().into_string() else { continue };
                let path = format!("{folder}{name}");
                // Links are followed: the hub's cache links its files from elsewhere.
                match fs::metadata(root.join(&path)).map_err(|e| Error::io(root.join(&path), "read", e))? {
                    _ if name.starts_with('.') => {}
                    found if found.is_dir() => folders.push(path + "/"),
                    _ => files.push(path),
                }
            }
        }
        files.sort();
        Ok(files)
    }

    /// Copies a file of [`Checkpoint::files`].
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read or written.
    pub(super) fn copy(&self, relative: &str, to: &mut fs::File) -> Result<()> {
        let copied = match &self.root {
            Root::Folder(root) | Root::Whole(root) => {
                fs::File::open(root.join(relative)).and_then(|mut from| io::copy(&mut from, to)).map(drop)
            }
            Root::Embedded(..) => io::Write::write_all(to, &self.read(relative)?),
        };
        copied.map_err(|e| Error::io(self.path().join(relative), "copy", e))
    }

    /// The path of a file or folder, for messages.
    pub fn path_of(&self, relative: &str) -> PathBuf {
        let (owner, relative) = self.owner(relative);
        match &owner.root {
            Root::Whole(dir) => dir.join(whole::inside(dir, relative)),
            Root::Folder(_) | Root::Embedded(..) => owner.path().join(relative),
        }
    }

    /// The folder of a component of this checkpoint's own.
    fn folder_of(&self, component: &str) -> PathBuf {
        match &self.root {
            Root::Whole(dir) => dir.clone(),
            Root::Folder(_) | Root::Embedded(..) => self.path().join(component),
        }
    }
}

/// `*.safetensors.index.json`; its `metadata` is not needed.
#[derive(Deserialize)]
struct ShardIndex {
    weight_map: Unique<String>,
}

/// Whether a path is relative and stays below its start: no root, no drive, no `..`, no backslash.
///
/// Symbolic links are followed: the hub's cache links its files from elsewhere.
fn is_inside(relative: &str) -> bool {
    !relative.is_empty()
        && !relative.contains(['\\', '\0'])
        && Path::new(relative).components().all(|part| matches!(part, Part::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_below_the_start_are_inside() {
        for good in ["a", "a/b.c", "model-00001-of-00002.safetensors", "..a"] {
            assert!(is_inside(good), "{good}");
        }
        for bad in ["", "/etc/passwd", "../a", "a/../../b", "..", "a\\b", "./../x", "a\0b"] {
            assert!(!is_inside(bad), "{bad}");
        }
    }
}
