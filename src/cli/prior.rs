//! The prior of checkpoints that have theirs in a folder of its own: named, or found where such folders lie.

use super::hub;
use std::fs;
use std::path::{Path, PathBuf};
use unclip::pipeline::{is_prior_of, lacks_prior, with_prior};
use unclip::weights::{Checkpoint, LoadOptions, snapshot_in};
use unclip::{Error, Result};

/// The checkpoint with its prior: the one that is named, or else the only one beside the checkpoint's folder or in the
/// hub's cache.
///
/// # Errors
/// The named folder is no such prior or none is needed, or several are there and none was named.
pub fn add(checkpoint: Checkpoint, named: Option<&Path>, options: LoadOptions) -> Result<Checkpoint> {
    match named {
        Some(named) if !lacks_prior(&checkpoint) => {
            let reason = format!("{} needs no prior of another folder", checkpoint.path().display());
            Err(Error::value("--prior", named.display(), reason))
        }
        Some(named) => with_prior(checkpoint, super::open(Some(named), options)?),
        None if lacks_prior(&checkpoint) => {
            let found = beside(&checkpoint)?;
            match &found[..] {
                [] => Ok(checkpoint),
                [one] => with_prior(checkpoint, Checkpoint::open(one, options)?),
                several => {
                    let names: Vec<String> = several.iter().map(|path| path.display().to_string()).collect();
                    let reason = format!("several priors are there, name one with --prior: {}", names.join(", "));
                    Err(Error::config(checkpoint.path(), reason))
                }
            }
        }
        None => Ok(checkpoint),
    }
}

/// Folders of priors of a checkpoint's family beside its own: its neighbours, or where it lies in the hub's cache the other models there, or
/// else the models of the user's cache.
fn beside(checkpoint: &Checkpoint) -> Result<Vec<PathBuf>> {
    let path = checkpoint.path();
    let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let is_snapshot = real.parent().is_some_and(|parent| parent.ends_with("snapshots"));
    let neighbours = real.ancestors().nth(if is_snapshot { 3 } else { 1 }).map(Path::to_path_buf);
    let cache = hub::cache(|name| std::env::var_os(name));
    for folder in [neighbours, cache].into_iter().flatten() {
        let found = priors(&folder, checkpoint)?;
        if !found.is_empty() {
            return Ok(found);
        }
    }
    Ok(Vec::new())
}

/// The priors for a checkpoint among the folders in a folder, models of the hub's cache included; none where it cannot be listed.
fn priors(folder: &Path, checkpoint: &Checkpoint) -> Result<Vec<PathBuf>> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_dir()) {
        let is_model = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("models--"));
        let path = if is_model { snapshot_in(&path).ok().flatten() } else { Some(path) };
        found.extend(path.filter(|path| is_prior_of(path, checkpoint)));
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn priors_are_found_among_neighbours_and_in_the_cache() {
        let dir = tempfile::tempdir().unwrap();
        let write = |folder: &str, class: &str| {
            let folder = dir.path().join(folder);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("model_index.json"), format!("{{\"_class_name\": {class:?}}}")).unwrap();
            folder
        };
        let decoder = write("decoder", "KandinskyV22Pipeline");
        let prior = write("prior", "KandinskyV22PriorPipeline");
        write("karlo", "UnCLIPPipeline");
        let older = [write("older", "KandinskyPipeline"), write("older-prior", "KandinskyPriorPipeline")];
        let beside = |folder: &Path| beside(&Checkpoint::open(folder, LoadOptions::default()).unwrap());
        // Each family has priors of its own.
        assert_eq!(beside(&older[0]).unwrap(), [fs::canonicalize(&older[1]).unwrap()]);
        let prior = fs::canonicalize(prior).unwrap();
        assert_eq!(beside(&decoder).unwrap(), std::slice::from_ref(&prior));
        let cached = write("models--org--prior/snapshots/1", "KandinskyV22PriorPipeline");
        let cached = fs::canonicalize(cached).unwrap();
        assert_eq!(beside(&decoder).unwrap(), [cached.clone(), prior.clone()]);
        let decoder = write("models--org--decoder/snapshots/2", "KandinskyV22Pipeline");
        assert_eq!(beside(&decoder).unwrap(), [cached, prior]);
    }
}
