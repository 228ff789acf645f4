//! Checkpoints by their name on the Hugging Face hub, where its own tools have put them: nothing is fetched here.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

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

/// The folder of a model in the cache: the revision that `main` was, or else the one that was fetched last.
pub fn find(cache: &Path, name: &Path) -> Option<PathBuf> {
    let model = cache.join(format!("models--{}", name.to_str()?.replace('/', "--")));
    let snapshots = model.join("snapshots");
    let main = fs::read_to_string(model.join("refs/main")).ok();
    let main = main.map(|revision| snapshots.join(revision.trim())).filter(|folder| folder.is_dir());
    let all = || fs::read_dir(&snapshots).into_iter().flatten().flatten();
    let latest =
        || all().max_by_key(|entry| entry.metadata().and_then(|m| m.modified()).ok()).map(|entry| entry.path());
    main.or_else(latest)
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
    fn the_main_revision_is_taken_and_without_one_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let name = Path::new("org/model");
        assert_eq!(find(dir.path(), name), None);
        let model = dir.path().join("models--org--model");
        fs::create_dir_all(model.join("snapshots/bbb")).unwrap();
        assert_eq!(find(dir.path(), name), Some(model.join("snapshots/bbb")));
        fs::create_dir_all(model.join("snapshots/aaa")).unwrap();
        fs::create_dir_all(model.join("refs")).unwrap();
        fs::write(model.join("refs/main"), "bbb").unwrap();
        assert_eq!(find(dir.path(), name), Some(model.join("snapshots/bbb")));
    }
}
