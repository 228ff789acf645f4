//! Files that are either complete or not there.
//!
//! A file is written under another name beside its target, flushed, and renamed over it: whatever happens, the target
//! holds either what it held before or all of the new content.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::error::{Error, Result};

/// Says before the long work whether a file could be written at `path` after it.
///
/// # Errors
/// [`Error::Io`] when the folder is missing or not writable, or when `path` is a folder.
pub fn check_writable(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    if path.is_dir() {
        return Err(Error::io(path, "write", std::io::ErrorKind::IsADirectory.into()));
    }
    // Permissions alone do not tell (read-only file systems, access lists): a file has to be made. It goes at once.
    Beside::create(path).map(drop)
}

/// A file under a name of its own beside its target, removed again unless it is renamed over it.
pub(crate) struct Beside {
    pub(crate) file: fs::File,
    path: PathBuf,
    target: PathBuf,
}

impl Beside {
    /// Makes the file, empty.
    ///
    /// # Errors
    /// The folder is missing or not writable, or `target` exists and is no regular file.
    pub(crate) fn create(target: &Path) -> Result<Beside> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let refused = |why| Error::io(target, "write", std::io::Error::new(std::io::ErrorKind::InvalidInput, why));
        let real = match fs::canonicalize(target) {
            // A rename over a device or a pipe would replace it for everyone.
            Ok(real) if !real.is_file() => return Err(refused("expected a regular file")),
            Ok(real) => real, // where a symbolic link leads
            Err(_) => target.to_path_buf(),
        };
        let name = real.file_name().ok_or_else(|| refused("expected a file name"))?;
        loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            // Short, so that a name of the greatest length a folder takes is not made too long by it.
            let unique = format!(".{}-{number}.tmp", std::process::id());
            let mut full = name.to_os_string();
            full.push(&unique);
            let path = real.with_file_name(if full.len() > 255 { unique.into() } else { full });
            match fs::File::options().write(true).create_new(true).open(&path) {
                Ok(file) => return Ok(Beside { file, path, target: real }),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => continue,
                Err(e) => return Err(Error::io(target, "write", e)),
            }
        }
    }

    /// Puts the file, flushed to the disk, in its target's place.
    ///
    /// # Errors
    /// The system refuses; the target is then as it was.
    pub(crate) fn replace(self) -> Result<()> {
        self.file.sync_all().map_err(|e| Error::io(&self.target, "write", e))?;
        fs::rename(&self.path, &self.target).map_err(|e| Error::io(&self.target, "write", e))
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // After a rename there is nothing of this name; otherwise there is no one left to tell.
        _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn names(dir: &Path) -> Vec<String> {
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_file_that_is_given_up_leaves_no_trace() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        fs::write(&path, "old").unwrap();
        Beside::create(&path).unwrap().file.write_all(b"half").unwrap();
        assert_eq!((fs::read(&path).unwrap(), names(dir.path())), (b"old".to_vec(), vec!["a".to_owned()]));
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_and_devices_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (link, real) = (dir.path().join("link"), dir.path().join("real"));
        fs::write(&real, "old").unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let mut beside = Beside::create(&link).unwrap();
        beside.file.write_all(b"new").unwrap();
        beside.replace().unwrap();
        assert!(link.is_symlink() && fs::read(&real).unwrap() == b"new");
        assert!(check_writable("/dev/null").unwrap_err().to_string().contains("expected a regular file"));
    }

    #[test]
    fn an_unwritable_target_is_known_beforehand() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        check_writable(&file).unwrap();
        check_writable(dir.path().join("new.png")).unwrap();
        check_writable(dir.path().join("n".repeat(251) + ".png")).unwrap();
        assert_eq!(names(dir.path()), ["file"]);
        for bad in [dir.path().to_path_buf(), dir.path().join("none/a.png"), file.join("a.png"), "/".into()] {
            let error = check_writable(&bad).expect_err(&bad.display().to_string());
            assert!(matches!(error, Error::Io { ref path, .. } if *path == bad), "{error:?}");
        }
    }
}
