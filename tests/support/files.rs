//! Which files there are, for tests that compare folders, and copies that may be damaged.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A folder of the repository.
pub fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// Stems of the files with this ending.
pub fn stems(name: &str, ending: &str) -> BTreeSet<String> {
    let files = std::fs::read_dir(folder(name)).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap());
    files.filter_map(|f| f.strip_suffix(ending).map(str::to_owned)).collect()
}

/// Stems of all operations: of what is in their folder without being one, the names stand here.
pub fn operations() -> BTreeSet<String> {
    let mut stems = stems("src/ops", ".rs");
    stems.retain(|s| !["mod", "launch", "statistics", "matmul", "reverse"].contains(&s.as_str()));
    stems
}

/// Copies a folder with all that is in it.
pub fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
