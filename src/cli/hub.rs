//! Checkpoints by their name on the Hugging Face hub, where its own tools have put them: nothing is fetched here.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use unclip::Result;
use unclip::weights::snapshot_in;

/// Whether something that is no folder reads like a model's name on the hub: `org/name`.
pub fn is_name(path: &Path) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    let parts = path.to_str().and_then(|text| text.split_once('/'));
    parts.is_some_and(|(organisation, name)| part(organisation) && part(name))
}

/// Where the hub's tools keep what they fetched.
pub fn cache(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let folder = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = || Some(folder("HOME").or_else(|| folder("USERPROFILE"))?.join(".cache"));
    let own = || Some(folder("XDG_CACHE_HOME").or_else(home)?.join("huggingface"));
    folder("HF_HUB_CACHE").or_else(|| Some(folder("HF_HOME").or_else(own)?.join("hub")))
}

/// The checkpoint of a model in the cache, if the model is there; see [`snapshot_in`].
///
/// # Errors
/// As for [`snapshot_in`].
pub fn find(cache: &Path, name: &Path) -> Result<Option<PathBuf>> {
    let folder = name.to_str().map(|name| cache.join(format!("models--{}", name.replace('/', "--"))));
    folder.map_or(Ok(None), |folder| snapshot_in(&folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_hub_are_told_from_paths() {
        assert!(is_name(Path::new("kakaobrain/karlo-v1-alpha")));
        for path in ["karlo", "./karlo", "../a/b", "/a/b", "a/b/c", "a/", "org/na me", ".hidden/x"] {
            assert!(!is_name(Path::new(path)), "{path}");
        }
    }

    #[test]
    fn the_cache_is_where_the_hubs_own_tools_have_it() {
        let with = |set: &[(&str, &str)]| cache(|name| set.iter().find(|s| s.0 == name).map(|s| s.1.into()));
        let home = ("HOME", "/home/a");
        assert_eq!(with(&[home]), Some("/home/a/.cache/huggingface/hub".into()));
        assert_eq!(with(&[home, ("XDG_CACHE_HOME", "/fast")]), Some("/fast/huggingface/hub".into()));
        assert_eq!(with(&[home, ("HF_HOME", "/hf")]), Some("/hf/hub".into()));
        assert_eq!(with(&[home, ("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/hub")]), Some("/hub".into()));
        assert_eq!(with(&[]), None);
    }

    #[test]
    fn a_model_is_found_by_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let name = Path::new("org/model");
        assert_eq!(find(dir.path(), name).unwrap(), None);
        let snapshot = dir.path().join("models--org--model/snapshots/bbb");
        std::fs::create_dir_all(&snapshot).unwrap();
        assert_eq!(find(dir.path(), name).unwrap(), Some(snapshot));
    }
}
