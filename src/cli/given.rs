//! Pictures that flags name, singly or by their folder, and their pixels in batches.
//!
//! A file that is named must be a picture. A folder stands for all pictures in it and below it, in the order of their
//! names; one of those that cannot be read is named and passed over.

use super::flags::{ALPHAS, WHAT, named};
use clap::Args;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use unclip::image::{Alpha, Format, Image, ReadOptions, is_picture};
use unclip::{Error, Result};

/// Pictures encoded together.
const BATCH: usize = 32;
/// Pixels of pictures that are held at once; one picture is always possible.
const PIXELS: usize = 1 << 26;
/// Endings of files that are meant to be pictures, beside those that can be written.
const READ_ONLY: [&str; 5] = ["gif", "bmp", "tif", "tiff", "qoi"];

/// How given pictures are read.
#[derive(Debug, Args)]
pub struct ReadArguments {
    /// What becomes of the transparency of given pictures
    #[arg(long, value_name = "HOW", value_parser = named(ALPHAS), default_value = "white", help_heading = WHAT)]
    pub alpha: Alpha,
    /// Most pixels that a given picture may have, in millions
    #[arg(long, value_name = "N", default_value_t = 100, help_heading = WHAT)]
    pub max_megapixels: u32,
}

impl ReadArguments {
    pub fn options(&self) -> ReadOptions {
        let mut options = ReadOptions::default();
        options.alpha = self.alpha;
        options.most_pixels = u64::from(self.max_megapixels) * 1_000_000;
        options
    }
}

/// Reads a picture; an error about its size names the flag that allows more.
///
/// # Errors
/// As for [`Image::read`].
pub fn read(path: &Path, options: &ReadOptions) -> Result<Image> {
    Image::read(path, options).map_err(|error| match error {
        // A flag of this program is no business of the library's.
        Error::Io { path, action, source } if source.to_string().contains("megapixels") => {
            let source = std::io::Error::new(source.kind(), format!("{source}; --max-megapixels allows more"));
            Error::Io { path, action, source }
        }
        error => error,
    })
}

/// A file's name without its folder, which is nobody else's business.
pub fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// A picture file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    pub path: PathBuf,
    /// Whether the file itself was named, and not its folder.
    pub is_named: bool,
}

/// The files that a flag's paths name, each folder in the order of its names.
///
/// # Errors
/// A path leads nowhere, a named file is no picture, or there is none in a folder.
pub fn find(flag: &str, paths: &[PathBuf]) -> Result<Vec<Given>> {
    let mut found = Vec::new();
    for path in paths {
        if !fs::metadata(path).map_err(|e| Error::io(path, "open", e))?.is_dir() {
            found.push(Given { path: path.clone(), is_named: true });
            continue;
        }
        let inside = inside(path)?;
        if inside.is_empty() {
            return Err(Error::value(flag, path.display(), "no picture in this folder"));
        }
        found.extend(inside.into_iter().map(|path| Given { path, is_named: false }));
    }
    Ok(found)
}

/// The pictures in a folder and below it, without hidden ones. Links to folders are not followed.
///
/// # Errors
/// A folder cannot be listed.
pub fn inside(folder: &Path) -> Result<Vec<PathBuf>> {
    let failed = |e| Error::io(folder, "list", e);
    let entries = fs::read_dir(folder).map_err(failed)?.collect::<Result<Vec<_>, _>>().map_err(failed)?;
    let mut paths: Vec<PathBuf> = entries.iter().map(fs::DirEntry::path).collect();
    paths.sort();
    let mut found = Vec::new();
    for path in paths.into_iter().filter(|path| !is_hidden(path)) {
        match fs::symlink_metadata(&path) {
            Ok(there) if there.is_dir() => found.extend(inside(&path)?),
            // Pipes and devices are no pictures in a folder, and reading them may never end.
            Ok(_) if path.is_file() && (is_picture(&path) || is_meant(&path)) => found.push(path),
            _ => {}
        }
    }
    Ok(found)
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))
}

/// Whether the name is that of a picture, whatever the file holds.
fn is_meant(path: &Path) -> bool {
    let ending = path.extension().map(|ending| ending.to_string_lossy().to_lowercase());
    Format::of(path).is_some() || ending.is_some_and(|ending| READ_ONLY.contains(&ending.as_str()))
}

/// Pictures of one batch, and what could not be read.
#[derive(Default)]
pub struct Batch {
    /// Of each picture its number among the files.
    pub numbers: Vec<usize>,
    pub images: Vec<Image>,
    pub failed: Vec<(usize, Error)>,
}

/// Calls `each` with all pictures, batch by batch in their order; a thread reads the next batch meanwhile.
///
/// # Errors
/// A named file cannot be read, or `each` fails.
pub fn in_batches(files: &[Given], options: &ReadOptions, mut each: impl FnMut(Batch) -> Result<()>) -> Result<()> {
    thread::scope(|scope| {
        let (sender, batches) = mpsc::sync_channel(1);
        // It ends when its receiver is gone.
        scope.spawn(move || {
            let (mut batch, mut pixels) = (Batch::default(), 0);
            for (number, file) in files.iter().enumerate() {
                match read(&file.path, options) {
                    Ok(image) => {
                        pixels += image.width * image.height;
                        batch.numbers.push(number);
                        batch.images.push(image);
                    }
                    Err(error) if file.is_named => {
                        _ = sender.send(Err(error));
                        return;
                    }
                    Err(error) => batch.failed.push((number, error)),
                }
                if batch.images.len() == BATCH || pixels >= PIXELS {
                    pixels = 0;
                    if sender.send(Ok(std::mem::take(&mut batch))).is_err() {
                        return;
                    }
                }
            }
            _ = sender.send(Ok(batch));
        });
        batches.into_iter().try_for_each(|batch| each(batch?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use unclip::image::Texts;

    fn picture(path: &Path, side: usize) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let image = Image { width: side, height: 1, pixels: vec![7; 3 * side] };
        image.write(path, Format::Png, &Texts::default()).unwrap();
    }

    #[test]
    fn a_folder_is_its_pictures_in_order_whatever_they_are_called() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for (side, name) in ["b.png", "a/z.png", "plain", ".hidden.png", ".git/x.png"].into_iter().enumerate() {
            picture(&at("plain.png"), side + 1);
            fs::create_dir_all(at(name).parent().unwrap()).unwrap();
            fs::rename(at("plain.png"), at(name)).unwrap();
        }
        fs::write(at("notes.txt"), "text").unwrap();
        fs::write(at("c.JPG"), "no picture").unwrap();
        fs::create_dir(at("empty")).unwrap();
        let found = find("--image", &[dir.path().to_path_buf()]).unwrap();
        let names: Vec<&Path> = found.iter().map(|file| file.path.strip_prefix(dir.path()).unwrap()).collect();
        assert_eq!(names, ["a/z.png", "b.png", "c.JPG", "plain"].map(Path::new));
        let (mut widths, mut failed) = (Vec::new(), Vec::new());
        let all = in_batches(&found, &ReadOptions::default(), |batch| {
            widths.extend(batch.numbers.iter().zip(&batch.images).map(|(&number, image)| (number, image.width)));
            failed.extend(batch.failed);
            Ok(())
        });
        all.unwrap();
        assert_eq!(widths, [(0, 2), (1, 1), (3, 3)]);
        assert!(failed.len() == 1 && failed[0].0 == 2 && failed[0].1.to_string().contains("c.JPG"));
        for (paths, what) in [([at("empty")], "no picture in this folder"), ([at("none")], "cannot open")] {
            let error = find("--image", &paths).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
        // A file that is named has to be one.
        let named = find("--image", &[at("c.JPG")]).unwrap();
        assert!(in_batches(&named, &ReadOptions::default(), |_| Ok(())).is_err());
    }
}
