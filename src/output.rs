//! Files that are either complete or not there.
//!
//! A file is written under another name beside its target, flushed, and renamed over it: whatever happens, the target
//! holds either what it held before or all of the new content. Symbolic links stay links: the file that they name is
//! the target, whether it is there or not. What cannot be replaced, a pipe or a device, is opened and written to.
//!
//! A process that is killed leaves the other name, `NAME.PID-N.tmp`, behind. It holds a lock on that file while it
//! lives, so the next run can tell; [`remove_leftovers`] takes away what nobody holds.

use std::fs;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::error::{Error, Result};

/// Most symbolic links that a path leads through.
const MOST_LINKS: usize = 40;

/// Says before the long work whether a file could be written at `path` after it. A pipe or a device is not opened: that
/// alone may have an effect.
///
/// # Errors
/// [`Error::Io`] when the folder is missing or not writable, or when `path` is a folder or leads nowhere.
pub fn check_writable(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    match Place::of(path)? {
        Place::Stream(_) => Ok(()),
        // Permissions alone do not tell (read-only file systems, access lists): a file has to be made. It goes at once.
        Place::File(target) => Beside::create(&target).map(drop).map_err(|e| Error::io(path, "write", e)),
    }
}

/// Where a path leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// To a regular file, or to one that is not there yet: its path behind all symbolic links.
    File(PathBuf),
    /// To a pipe, a device, or the open file of a process (`/proc/self/fd/3`). Bytes are written to it as they come.
    Stream(PathBuf),
}

impl Place {
    /// Follows `path` to its end, which needs not exist.
    ///
    /// # Errors
    /// [`Error::Io`] when it is a folder, has no file name, or its links go round in a circle.
    pub fn of(path: &Path) -> Result<Place> {
        Place::follow(path).map_err(|e| Error::io(path, "write", e))
    }

    fn follow(path: &Path) -> io::Result<Place> {
        let mut end = path.to_path_buf();
        for _ in 0..MOST_LINKS {
            let name = end.file_name().ok_or(ErrorKind::IsADirectory)?.to_owned();
            let folder = end.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
            // A folder that is missing is not made here; the file cannot be written until it is.
            let folder = fs::canonicalize(folder).unwrap_or_else(|_| folder.to_path_buf());
            end = folder.join(name);
            let is_link = fs::symlink_metadata(&end).is_ok_and(|found| found.is_symlink());
            // The links of /proc stand for open files, which may have no name at all any more.
            if is_link && !folder.starts_with("/proc") {
                end = folder.join(fs::read_link(&end)?);
                continue;
            }
            return match fs::metadata(&end) {
                Ok(found) if found.is_dir() => Err(ErrorKind::IsADirectory.into()),
                Ok(found) if found.is_file() && !is_link => Ok(Place::File(end)),
                Ok(_) => Ok(Place::Stream(end)),
                Err(e) if e.kind() == ErrorKind::NotFound && !is_link => Ok(Place::File(end)),
                Err(e) => Err(e),
            };
        }
        Err(io::Error::other("too many symbolic links, or a circle of them"))
    }
}

/// Writes a whole file in its target's place.
///
/// # Errors
/// [`Error::Io`] when it cannot be written; the target is then as it was.
pub fn write(path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
    let path = path.as_ref();
    let mut output = Output::create(path)?;
    output.write_all(bytes).map_err(|e| Error::io(path, "write", e))?;
    output.finish()
}

/// A file that is being written: under a name of its own until it is [finished](Output::finish), or a stream.
pub(crate) struct Output {
    path: PathBuf,
    to: To,
}

enum To {
    Beside(Beside),
    Stream(fs::File),
}

impl Output {
    /// Opens the place that `path` leads to.
    ///
    /// # Errors
    /// [`Error::Io`] when the folder is missing or not writable, or the stream cannot be opened.
    pub(crate) fn create(path: &Path) -> Result<Output> {
        let failed = |e| Error::io(path, "write", e);
        let to = match Place::of(path)? {
            Place::File(target) => To::Beside(Beside::create(&target).map_err(failed)?),
            Place::Stream(end) => {
                // An open file of a process keeps nothing of what was in it; pipes and devices have no length.
                let is_file = fs::metadata(&end).is_ok_and(|found| found.is_file());
                To::Stream(fs::File::options().write(true).truncate(is_file).open(end).map_err(failed)?)
            }
        };
        Ok(Output { path: path.to_path_buf(), to })
    }

    /// Puts the file, flushed to the disk, in its target's place.
    ///
    /// # Errors
    /// [`Error::Io`] when the system refuses; the target is then as it was.
    pub(crate) fn finish(self) -> Result<()> {
        match self.to {
            To::Beside(beside) => beside.replace().map_err(|e| Error::io(&self.path, "write", e)),
            To::Stream(_) => Ok(()),
        }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.to {
            To::Beside(beside) => beside.file.write(bytes),
            To::Stream(file) => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A file under a name of its own beside its target, removed again unless it is renamed over it.
struct Beside {
    file: fs::File,
    path: PathBuf,
    target: PathBuf,
}

impl Beside {
    /// Makes the file, empty, with a lock on it that ends with this process at the latest.
    fn create(target: &Path) -> io::Result<Beside> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = target.file_name().ok_or(ErrorKind::IsADirectory)?;
        loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            // Short, so that a name of the greatest length a folder takes is not made too long by it.
            let unique = format!(".{}-{number}.tmp", std::process::id());
            let mut full = name.to_os_string();
            full.push(&unique);
            let path = target.with_file_name(if full.len() > 255 { unique.into() } else { full });
            match fs::File::options().write(true).create_new(true).open(&path) {
                Ok(file) => {
                    // Not all file systems have locks. Where one does, another process may just have taken the file for a
                    // leftover.
                    let is_ours = !matches!(file.try_lock(), Err(fs::TryLockError::WouldBlock)) && path.exists();
                    let beside = Beside { file, path, target: target.to_path_buf() };
                    if is_ours {
                        return Ok(beside);
                    }
                }
                Err(e) if e.kind() == ErrorKind::AlreadyExists => continue,
                Err(e) => return Err(e),
            }
        }
    }

    fn replace(self) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.path, &self.target)
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // After a rename there is nothing of this name; otherwise there is no one left to tell.
        _ = fs::remove_file(&self.path);
    }
}

/// Removes what killed processes left beside these targets, and gives how many files that were. What cannot be read, locked
/// or removed stays.
pub fn remove_leftovers<'a>(targets: impl IntoIterator<Item = &'a Path>) -> usize {
    let mut folders: Vec<(PathBuf, Vec<std::ffi::OsString>)> = Vec::new();
    for target in targets {
        let Ok(Place::File(target)) = Place::of(target) else { continue };
        let (Some(folder), Some(name)) = (target.parent(), target.file_name()) else { continue };
        match folders.iter_mut().find(|(known, _)| known == folder) {
            Some((_, names)) => names.push(name.to_owned()),
            None => folders.push((folder.to_owned(), vec![name.to_owned()])),
        }
    }
    let mut removed = 0;
    for (folder, names) in folders {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let of_ours = written_for(&entry.file_name()).is_some_and(|name| names.iter().any(|known| known == name));
            removed += usize::from(of_ours && is_abandoned(&entry.path()) && fs::remove_file(entry.path()).is_ok());
        }
    }
    removed
}

/// Of a name of the pattern `NAME.PID-N.tmp` the NAME.
fn written_for(name: &std::ffi::OsStr) -> Option<&str> {
    let (name, number) = name.to_str()?.strip_suffix(".tmp")?.rsplit_once('.')?;
    let (process, count) = number.split_once('-')?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (is_number(process) && is_number(count)).then_some(name)
}

/// Whether no process holds the file's lock.
fn is_abandoned(path: &Path) -> bool {
    let is_file = fs::symlink_metadata(path).is_ok_and(|found| found.is_file());
    is_file && fs::File::options().write(true).open(path).is_ok_and(|file| file.try_lock().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_that_is_given_up_leaves_no_trace() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        fs::write(&path, "old").unwrap();
        Output::create(&path).unwrap().write_all(b"half").unwrap();
        assert_eq!((fs::read(&path).unwrap(), names(dir.path())), (b"old".to_vec(), vec!["a".to_owned()]));
    }

    #[cfg(unix)]
    #[test]
    fn links_stay_links_whether_what_they_name_is_there_or_not() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("folder")).unwrap();
        fs::write(at("real"), "old").unwrap();
        for (link, to) in
            [("link", "real"), ("second", "link"), ("dangling", "folder/new"), ("circle", "round"), ("round", "circle")]
        {
            std::os::unix::fs::symlink(to, at(link)).unwrap();
        }
        for (link, file) in
            [("link", "real"), ("second", "real"), ("dangling", "folder/new"), ("dangling", "folder/new")]
        {
            write(at(link), link.as_bytes()).unwrap();
            assert!(at(link).is_symlink() && fs::read(at(file)).unwrap() == link.as_bytes(), "{link}");
            assert!(fs::symlink_metadata(at(file)).unwrap().is_file());
        }
        let error = check_writable(at("circle")).unwrap_err().to_string();
        assert!(error.contains("circle"), "{error}");
        std::os::unix::fs::symlink("none/file", at("nowhere")).unwrap();
        assert!(check_writable(at("nowhere")).is_err() && at("nowhere").is_symlink());
        assert_eq!(names(&at("folder")), ["new"]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn pipes_devices_and_open_files_are_written_to() {
        use std::io::{Read, Seek};
        use std::os::fd::AsRawFd;
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        let through = |fd: i32, bytes: &[u8]| {
            _ = fs::remove_file(&link);
            std::os::unix::fs::symlink(format!("/proc/self/fd/{fd}"), &link).unwrap();
            write(&link, bytes).unwrap();
            assert!(link.is_symlink());
        };
        let (mut reader, writer) = io::pipe().unwrap();
        through(writer.as_raw_fd(), b"picture");
        drop(writer);
        let mut got = Vec::new();
        reader.read_to_end(&mut got).unwrap();
        assert_eq!(got, b"picture");
        // A file without a name.
        let mut unnamed = tempfile::tempfile().unwrap();
        unnamed.write_all(b"something longer").unwrap();
        through(unnamed.as_raw_fd(), b"picture");
        unnamed.rewind().unwrap();
        got.clear();
        unnamed.read_to_end(&mut got).unwrap();
        assert_eq!(got, b"picture");
        write("/dev/null", b"picture").unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
        check_writable("/dev/full").unwrap();
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

    #[test]
    fn leftovers_of_dead_processes_go_and_those_of_living_ones_stay() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let stay = ["a.png.1-x.tmp", "a.png.tmp", "b.png.1-1.tmp", "a.png.1-1.tmp.png"];
        stay.iter()
            .chain(&["a.png.1-1.tmp", "a.png.99999999-23.tmp"])
            .for_each(|name| fs::write(at(name), "").unwrap());
        let target = at("a.png");
        let alive = Output::create(&target).unwrap();
        assert_eq!(remove_leftovers([target.as_path(), &at("c/d.png")]), 2);
        assert_eq!(names(dir.path()).len(), stay.len() + 1);
        alive.finish().unwrap();
        assert!(names(dir.path()).contains(&"a.png".to_owned()));
    }
}
