//! Folders of the Hugging Face hub's cache.
//!
//! ```text
//! models--org--name/refs/main             the revision that was `main` when it was fetched
//! models--org--name/snapshots/0123abcd/   a checkpoint of that revision
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The checkpoint inside a model's folder of the cache, or inside its `snapshots`: the revision that was `main`, or else the
/// only one. `None` for any other folder.
///
/// # Errors
/// [`Error::Config`] with the names when there are several and none of them was `main`, or when there is none;
/// [`Error::Io`] when they cannot be listed.
pub fn snapshot_in(dir: &Path) -> Result<Option<PathBuf>> {
    let named = |name: &str| dir.file_name().is_some_and(|own| own == name);
    let (model, snapshots) = match dir.parent() {
        _ if dir.join("snapshots").is_dir() => (dir, dir.join("snapshots")),
        Some(model) if named("snapshots") => (model, dir.to_path_buf()),
        _ => return Ok(None),
    };
    let mut revisions = Vec::new();
    let failed = |e| Error::io(&snapshots, "list", e);
    for entry in fs::read_dir(&snapshots).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.is_dir() {
            revisions.push(path);
        }
    }
    revisions.sort();
    let main = fs::read_to_string(model.join("refs/main")).unwrap_or_default();
    let main = revisions.iter().find(|revision| revision.file_name().is_some_and(|name| name == main.trim()));
    match (main, &revisions[..]) {
        (Some(one), _) | (None, [one]) => Ok(Some(one.clone())),
        (None, []) => Err(Error::config(dir, "a folder of the hub's cache without a snapshot; fetch the model again")),
        (None, several) => {
            let names: Vec<String> = several.iter().map(|revision| revision.display().to_string()).collect();
            Err(Error::config(dir, format!("has several snapshots, name one of them: {}", names.join(", "))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_main_revision_is_taken_or_the_only_one_and_several_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("models--org--model");
        let snapshots = model.join("snapshots");
        fs::create_dir_all(&snapshots).unwrap();
        assert_eq!(snapshot_in(dir.path()).unwrap(), None);
        assert!(snapshot_in(&model).unwrap_err().to_string().contains("without a snapshot"));
        fs::create_dir_all(snapshots.join("bbb")).unwrap();
        for folder in [&model, &snapshots] {
            assert_eq!(snapshot_in(folder).unwrap(), Some(snapshots.join("bbb")));
        }
        fs::create_dir_all(snapshots.join("aaa")).unwrap();
        let error = snapshot_in(&model).unwrap_err().to_string();
        assert!(error.contains("aaa") && error.contains("bbb"), "{error}");
        fs::create_dir_all(model.join("refs")).unwrap();
        fs::write(model.join("refs/main"), "bbb\n").unwrap();
        for folder in [&model, &snapshots] {
            assert_eq!(snapshot_in(folder).unwrap(), Some(snapshots.join("bbb")));
        }
        fs::write(model.join("refs/main"), "../..").unwrap();
        assert!(snapshot_in(&model).is_err());
    }
}
