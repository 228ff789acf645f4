//! Pictures that are answered as URLs: files of one folder, each for an hour, and no more bytes than allowed.
//!
//! Names are drawn here and looked up in a table: nothing that a request says becomes a part of a path. A folder that the user
//! named keeps its pictures over a restart; there they are known by the pattern of their names.

use super::keys::Random;
use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};
use unclip::{Error, Result, output};

/// How long a picture can be fetched, as with OpenAI.
const KEPT: Duration = Duration::from_secs(60 * 60);
/// Endings of the files, and what they are.
const KINDS: [(&str, &str); 3] = [("png", "image/png"), ("jpeg", "image/jpeg"), ("webp", "image/webp")];

/// The folder.
pub struct Files {
    folder: PathBuf,
    /// Whether the folder was made for this server alone.
    is_own: bool,
    most_bytes: u64,
    /// The oldest first.
    kept: Mutex<VecDeque<Kept>>,
}

struct Kept {
    name: String,
    bytes: u64,
    written: SystemTime,
}

impl Kept {
    fn is_old(&self, now: SystemTime) -> bool {
        now.duration_since(self.written).is_ok_and(|age| age > KEPT)
    }
}

impl Files {
    /// The folder that is named, with what an earlier server left in it, or one of its own.
    ///
    /// # Errors
    /// It cannot be made or read.
    pub fn open(named: Option<&Path>, most_bytes: u64, random: &Random) -> Result<Files> {
        let folder = match named {
            Some(path) => path.to_path_buf(),
            None => std::env::temp_dir().join(format!("engine-{}", random.name())),
        };
        let mut builder = fs::DirBuilder::new();
        #[cfg(unix)]
        if named.is_none() {
            std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        }
        builder.recursive(named.is_some()).create(&folder).map_err(|e| Error::io(&folder, "create", e))?;
        let mut kept = Vec::new();
        for entry in fs::read_dir(&folder).map_err(|e| Error::io(&folder, "list", e))?.flatten() {
            let (Ok(name), Ok(found)) = (entry.file_name().into_string(), entry.metadata()) else { continue };
            if is_ours(&name) && found.is_file() {
                let written = found.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                kept.push(Kept { name, bytes: found.len(), written });
            }
        }
        kept.sort_by_key(|kept| kept.written);
        let targets: Vec<PathBuf> = kept.iter().map(|kept| folder.join(&kept.name)).collect();
        output::remove_leftovers(targets.iter().map(PathBuf::as_path));
        let files = Files { folder, is_own: named.is_none(), most_bytes, kept: Mutex::new(kept.into()) };
        files.make_room(0);
        Ok(files)
    }

    /// Keeps a picture's file, and gives the name by which it is fetched.
    ///
    /// # Errors
    /// It is larger than the folder may be, or cannot be written.
    pub fn keep(&self, bytes: &[u8], ending: &str, random: &Random) -> Result<String> {
        let size = bytes.len() as u64;
        if size > self.most_bytes {
            return Err(Error::value("--max-files", self.most_bytes, format!("a picture has {size} bytes")));
        }
        self.make_room(size);
        let name = format!("{}.{ending}", random.name());
        output::write(self.folder.join(&name), bytes)?;
        self.lock().push_back(Kept { name: name.clone(), bytes: size, written: SystemTime::now() });
        Ok(name)
    }

    /// The file of a name that [`Files::keep`] gave, and its type, as long as it is kept.
    pub fn find(&self, name: &str) -> Option<(PathBuf, &'static str)> {
        let now = SystemTime::now();
        let kept = self.lock();
        let found = kept.iter().find(|kept| kept.name == name && !kept.is_old(now))?;
        let (_, kind) = KINDS.iter().find(|(ending, _)| found.name.ends_with(ending))?;
        Some((self.folder.join(&found.name), kind))
    }

    /// Removes what is too old, and the oldest until so many bytes more fit.
    fn make_room(&self, bytes: u64) {
        let now = SystemTime::now();
        let mut kept = self.lock();
        let mut held: u64 = kept.iter().map(|kept| kept.bytes).sum();
        while let Some(oldest) = kept.front().filter(|oldest| oldest.is_old(now) || held + bytes > self.most_bytes) {
            held -= oldest.bytes;
            // What cannot be removed is forgotten all the same: it is not answered any more.
            _ = fs::remove_file(self.folder.join(&oldest.name));
            kept.pop_front();
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        if self.is_own {
            // There is no one left to tell.
            _ = fs::remove_dir_all(&self.folder);
        }
    }
}

/// Whether a file's name is one that [`Files::keep`] gives.
fn is_ours(name: &str) -> bool {
    let is_drawn = |stem: &str| stem.len() == 32 && stem.bytes().all(|byte| byte.is_ascii_hexdigit());
    name.split_once('.').is_some_and(|(stem, end)| is_drawn(stem) && KINDS.iter().any(|(ending, _)| *ending == end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> usize {
        fs::read_dir(dir).unwrap().count()
    }

    #[test]
    fn the_oldest_pictures_make_room_and_none_is_found_by_a_path() {
        let (dir, random) = (tempfile::tempdir().unwrap(), Random::new());
        let files = Files::open(Some(dir.path()), 25, &random).unwrap();
        let kept: Vec<String> = (0..4).map(|_| files.keep(&[7; 10], "png", &random).unwrap()).collect();
        assert_eq!(names(dir.path()), 2);
        assert!(files.find(&kept[1]).is_none());
        let (path, kind) = files.find(&kept[3]).unwrap();
        assert_eq!((fs::read(path).unwrap(), kind), (vec![7; 10], "image/png"));
        for name in ["../x.png", "", ".", &format!("./{}", kept[3])] {
            assert!(files.find(name).is_none(), "{name}");
        }
        assert!(files.keep(&[0; 26], "png", &random).is_err());
    }

    #[test]
    fn a_named_folder_keeps_its_pictures_over_a_restart_and_only_its_own() {
        let (dir, random) = (tempfile::tempdir().unwrap(), Random::new());
        let files = Files::open(Some(dir.path()), 1000, &random).unwrap();
        let kept = files.keep(&[7; 10], "webp", &random).unwrap();
        fs::write(dir.path().join("notes.png"), "mine").unwrap();
        drop(files);
        let files = Files::open(Some(dir.path()), 1000, &random).unwrap();
        assert!(files.find(&kept).is_some() && files.find("notes.png").is_none());
        let hour_ago = SystemTime::now() - KEPT - Duration::from_secs(1);
        files.lock()[0].written = hour_ago;
        assert!(files.find(&kept).is_none());
        files.make_room(0);
        assert_eq!(names(dir.path()), 1);
    }

    #[test]
    fn a_folder_of_its_own_is_gone_in_the_end() {
        let files = Files::open(None, 1000, &Random::new()).unwrap();
        let folder = files.folder.clone();
        files.keep(&[1], "png", &Random::new()).unwrap();
        assert!(folder.is_dir());
        drop(files);
        assert!(!folder.exists());
    }
}
