//! Where pictures go.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use unclip::image::Format;
use unclip::output::{Place, check_writable, remove_leftovers};
use unclip::{Error, Result};

/// Where the pictures of a run go.
#[derive(Debug, PartialEq, Eq)]
pub enum Targets {
    /// One picture, to standard output.
    Stdout,
    /// A file each.
    Files(Vec<PathBuf>),
}

impl Targets {
    /// The targets of `count` pictures of this format, and a remark about files of earlier runs.
    ///
    /// A file that is named is replaced. Without a name the next one that is free is taken.
    ///
    /// # Errors
    /// [`Error::Request`] for several pictures under a name without a number, or with two numbers.
    pub fn new(output: Option<&Path>, count: usize, format: Format) -> Result<(Targets, Option<String>)> {
        match output {
            Some(path) if is_stdout(path) && count == 1 => Ok((Targets::Stdout, None)),
            Some(path) if is_stdout(path) => {
                Err(Error::value("--output", path.display(), format!("takes one picture, {count} were asked for")))
            }
            Some(path) => {
                let files = numbered(path, 0, count)?;
                Ok((Targets::Files(files), leftovers(path, count)))
            }
            None => free(Path::new(""), count, format),
        }
    }

    /// The files, if any.
    pub fn files(&self) -> &[PathBuf] {
        match self {
            Targets::Stdout => &[],
            Targets::Files(files) => files,
        }
    }
}

/// The format of a picture file that a flag names: what its ending says, else what `--format` asks for, else PNG.
///
/// # Errors
/// [`Error::Request`] when the two contradict each other, or when nothing is known by that ending.
pub fn format(flag: &str, path: &Path, asked: Option<Format>, quality: Option<u8>) -> Result<Format> {
    let format = match (Format::of(path), asked) {
        (Some(named), Some(asked)) if named != asked => {
            let [named, asked] = [named, asked].map(|format| format.endings()[0]);
            let reason = format!("the name says {named} and --format {asked}");
            return Err(Error::value(flag, path.display(), reason));
        }
        (None, None) if path.extension().is_some() => {
            let known: Vec<&str> = Format::ALL.iter().flat_map(|format| format.endings()).copied().collect();
            let reason = format!("expected a name that ends in {}; any other needs --format", known.join(", "));
            return Err(Error::value(flag, path.display(), reason));
        }
        (named, asked) => named.or(asked).unwrap_or(Format::Png),
    };
    Ok(match (format, quality) {
        (Format::Jpeg { .. }, Some(quality)) => Format::Jpeg { quality },
        (format, _) => format,
    })
}

/// Whether a path leads to standard output, by whatever name (`-`, `/dev/stdout`, a link). A device that is no terminal is
/// written to by its own name.
pub fn is_stdout(path: &Path) -> bool {
    path == Path::new("-") || leads_to_stdout(path)
}

#[cfg(unix)]
fn leads_to_stdout(path: &Path) -> bool {
    use std::io::IsTerminal;
    use std::os::{fd::AsFd, unix::fs::FileTypeExt};
    let stdout = std::io::stdout();
    let open = stdout.as_fd().try_clone_to_owned().and_then(|copy| std::fs::File::from(copy).metadata());
    let (Ok(open), Ok(found)) = (open, std::fs::metadata(path)) else { return false };
    node(&open) == node(&found) && (stdout.is_terminal() || !open.file_type().is_char_device())
}

#[cfg(not(unix))]
fn leads_to_stdout(_: &Path) -> bool {
    false
}

/// Number of the device and of the file on it: equal for all names of one file.
#[cfg(unix)]
fn node(found: &std::fs::Metadata) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    (found.dev(), found.ino())
}

/// One file, whatever it is called.
#[derive(PartialEq, Eq, Hash)]
enum Identity {
    /// It is there.
    #[cfg(unix)]
    Node((u64, u64)),
    /// It will be there.
    Path(PathBuf),
}

impl Identity {
    /// `None` for a device: it takes any number of files.
    fn of(path: &Path) -> Result<Option<Identity>> {
        let (Place::File(end) | Place::Stream(end)) = Place::of(path)?;
        #[cfg(unix)]
        if let Ok(found) = std::fs::metadata(&end) {
            use std::os::unix::fs::FileTypeExt;
            return Ok((!found.file_type().is_char_device()).then(|| Identity::Node(node(&found))));
        }
        Ok(Some(Identity::Path(end)))
    }
}

/// Makes the folders of files that are to be written, says before the long work whether they could be, and removes what
/// killed runs left beside them: gives the number of those files. Paths come with their flags.
///
/// # Errors
/// [`Error::Request`] when two paths lead to one file; [`Error::Io`] when a folder cannot be made or written to.
pub fn prepare(outputs: &[(&str, &Path)], inputs: &[(&str, &Path)]) -> Result<usize> {
    for (_, path) in outputs {
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, "create the folder", e))?;
        }
    }
    let mut taken = HashMap::new();
    for (flag, path) in inputs {
        // What is read has been, from a file or from something without a name.
        if let Ok(Some(identity)) = Identity::of(path) {
            taken.insert(identity, (*flag, *path, "reads"));
        }
    }
    for (flag, path) in outputs {
        let Some(identity) = Identity::of(path)? else { continue };
        if let Some((other, name, does)) = taken.insert(identity, (*flag, *path, "writes")) {
            let reason = format!("the file that {other} {does} as {}; write elsewhere", name.display());
            return Err(Error::value(*flag, path.display(), reason));
        }
    }
    outputs.iter().try_for_each(|(_, path)| check_writable(path))?;
    Ok(remove_leftovers(outputs.iter().map(|(_, path)| *path)))
}

/// Files of the default names in `folder` that no earlier run has taken.
fn free(folder: &Path, count: usize, format: Format) -> Result<(Targets, Option<String>)> {
    let ending = format.endings()[0];
    let single = folder.join(format!("out.{ending}"));
    let pattern = folder.join(format!("out-%03d.{ending}"));
    let (first, last) = match present(&pattern) {
        numbers if numbers.is_empty() => (0, None),
        numbers => (numbers.last().map_or(0, |last| last + 1), numbers.last().copied()),
    };
    if count == 1 && !single.exists() {
        return Ok((Targets::Files(vec![single]), None));
    }
    let files = numbered(&pattern, if count == 1 { first.max(1) } else { first }, count)?;
    let there = match last {
        _ if count == 1 => Some(single),
        Some(last) => numbered(&pattern, last, 1)?.pop(),
        None => None,
    };
    let remark = there.map(|there| format!("{} is there; writing {}", there.display(), files[0].display()));
    Ok((Targets::Files(files), remark))
}

/// What to say about files of the pattern that are numbered beyond this run's.
fn leftovers(pattern: &Path, count: usize) -> Option<String> {
    let beyond: Vec<usize> = present(pattern).into_iter().filter(|number| *number >= count).collect();
    let file = |number: usize| numbered(pattern, number, 1).ok()?.pop();
    match beyond[..] {
        [] => None,
        [one] => Some(format!("{} is of an earlier run", file(one)?.display())),
        [first, .., last] => {
            let (first, last) = (file(first)?, file(last)?);
            Some(format!("{} to {} are of an earlier run", first.display(), last.display()))
        }
    }
}

/// The numbers, in order, for which there is a file of the pattern.
fn present(pattern: &Path) -> Vec<usize> {
    let name = pattern.file_name().and_then(|name| name.to_str()).and_then(number);
    let Some((before, _, after)) = name else { return Vec::new() };
    let folder = pattern.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut numbers: Vec<usize> = entries
        .filter_map(|entry| {
            let digits = entry.file_name().to_str()?.strip_prefix(before)?.strip_suffix(after)?.to_owned();
            digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
        })
        .collect();
    numbers.sort_unstable();
    numbers
}

/// The files of `count` pictures, numbered from `first`.
fn numbered(path: &Path, first: usize, count: usize) -> Result<Vec<PathBuf>> {
    let refused = |reason: String| Error::value("--output", path.display(), reason);
    // A name that is no text cannot be taken apart, and needs not to be for one picture.
    let Some(text) = path.to_str() else {
        return if count == 1 { Ok(vec![path.to_path_buf()]) } else { Err(refused("expected a name in UTF-8".into())) };
    };
    let Some((before, width, after)) = number(text) else {
        return match count {
            1 => Ok(vec![path.to_path_buf()]),
            _ => Err(refused(format!("{count} pictures need a name with a number in it, such as out-%03d.png"))),
        };
    };
    if number(after).is_some() {
        return Err(refused("expected one number in the name".into()));
    }
    Ok((first..first + count).map(|k| PathBuf::from(format!("{before}{k:0width$}{after}"))).collect())
}

/// The first `%0Nd`, or `%d` that is not the beginning of a word (`50%done.png`): what is before it, the digits asked
/// for, and what is after it.
fn number(name: &str) -> Option<(&str, usize, &str)> {
    name.match_indices('%').find_map(|(at, _)| {
        let (digits, after) = name[at + 1..].split_once('d')?;
        let width = match digits {
            "" if after.starts_with(char::is_alphabetic) => return None,
            "" => 0,
            digits => digits.strip_prefix('0')?.parse().ok()?,
        };
        (width <= 9).then_some((&name[..at], width, after))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn named(output: &str, count: usize) -> Result<Vec<String>> {
        let paths = numbered(Path::new(output), 0, count)?;
        Ok(paths.into_iter().map(|p| p.to_str().unwrap_or_default().to_owned()).collect())
    }

    #[test]
    fn numbers_are_filled_in_from_zero() {
        assert_eq!(named("a/%03d.png", 2).unwrap(), ["a/000.png", "a/001.png"]);
        assert_eq!(named("%d.png", 11).unwrap()[10], "10.png");
        assert_eq!(named("out.png", 1).unwrap(), ["out.png"]);
    }

    #[test]
    fn a_percent_sign_that_begins_no_number_is_a_percent_sign() {
        for name in ["100%.png", "50%done.png", "%3d.png", "%0d%", "50%dé.png"] {
            assert_eq!(named(name, 1).unwrap(), [name]);
        }
        assert_eq!(named("50%done-%d.png", 2).unwrap(), ["50%done-0.png", "50%done-1.png"]);
        assert_eq!(named("%d_b.png", 1).unwrap(), ["0_b.png"]);
    }

    #[test]
    fn a_format_is_what_the_name_ends_in_or_what_was_asked_for() {
        let of = |name: &str, asked| format("--grid", Path::new(name), asked, Some(80)).map_err(|e| e.to_string());
        let jpeg = Format::Jpeg { quality: 80 };
        let default = Format::Jpeg { quality: Format::QUALITY };
        for (name, asked, is) in [
            ("a.png", None, Format::Png),
            ("a.JPG", None, jpeg),
            ("a-%03d.jpeg", Some(default), jpeg),
            ("a.webp", Some(Format::WebP), Format::WebP),
            ("a", None, Format::Png),
            ("-", Some(default), jpeg),
            ("a.tmp", Some(Format::WebP), Format::WebP),
        ] {
            assert_eq!(of(name, asked), Ok(is), "{name}");
        }
        let error = of("a.gif", None).unwrap_err();
        assert_eq!(
            error,
            "--grid a.gif: expected a name that ends in png, jpg, jpeg, jpe, jfif, webp; any other needs --format"
        );
        assert_eq!(of("a.png", Some(default)).unwrap_err(), "--grid a.png: the name says png and --format jpg");
    }

    #[test]
    fn several_pictures_need_one_number() {
        for bad in ["out.png", "%03d-%03d.png", "%3d.png", "50%done.png"] {
            let error = named(bad, 2).unwrap_err().to_string();
            assert!(error.starts_with(&format!("--output {bad}: ")) && error.contains("number"), "{error}");
        }
        let error = Targets::new(Some(Path::new("-")), 2, Format::Png).unwrap_err().to_string();
        assert!(error.contains("one picture, 2"), "{error}");
    }

    #[test]
    fn default_names_are_the_next_that_are_free() {
        let dir = tempfile::tempdir().unwrap();
        let touch = |name: &str| fs::write(dir.path().join(name), "").unwrap();
        let taken = |count| {
            let (targets, remark) = free(dir.path(), count, Format::Png).unwrap();
            let names = targets.files().iter().map(|p| p.file_name().unwrap().to_str().unwrap().to_owned());
            (names.collect::<Vec<_>>(), remark.is_some())
        };
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(taken(1), (names(&["out.png"]), false));
        assert_eq!(taken(2), (names(&["out-000.png", "out-001.png"]), false));
        touch("out.png");
        touch("out-x.png");
        assert_eq!(taken(1), (names(&["out-001.png"]), true));
        assert_eq!(taken(2), (names(&["out-000.png", "out-001.png"]), false));
        touch("out-1007.png");
        assert_eq!(taken(1), (names(&["out-1008.png"]), true));
        assert_eq!(taken(2), (names(&["out-1008.png", "out-1009.png"]), true));
    }

    #[test]
    fn leftovers_of_a_longer_run_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let pattern = dir.path().join("v-%02d.png");
        (0..5).for_each(|k| fs::write(dir.path().join(format!("v-{k:02}.png")), "").unwrap());
        assert_eq!(leftovers(&pattern, 5), None);
        assert!(leftovers(&pattern, 4).unwrap().ends_with("v-04.png is of an earlier run"));
        let several = leftovers(&pattern, 2).unwrap();
        assert!(several.contains("v-02.png to ") && several.ends_with("v-04.png are of an earlier run"), "{several}");
        assert_eq!(leftovers(&dir.path().join("v-00.png"), 1), None);
    }

    #[cfg(unix)]
    #[test]
    fn one_file_under_two_names_is_found_out() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("old.png"), "").unwrap();
        fs::hard_link(at("old.png"), at("hard.png")).unwrap();
        std::os::unix::fs::symlink("new.png", at("link.png")).unwrap();
        std::os::unix::fs::symlink(".", at("here")).unwrap();
        let both = |outputs: [&str; 2], inputs: &[&str]| {
            let paths = |names: &[&str]| names.iter().map(|name| at(name)).collect::<Vec<_>>();
            let (outputs, inputs) = (paths(&outputs), paths(inputs));
            let outputs: Vec<_> = outputs.iter().map(|path| ("--output", path.as_path())).collect();
            let inputs: Vec<_> = inputs.iter().map(|path| ("--image", path.as_path())).collect();
            prepare(&outputs, &inputs)
        };
        let same = [
            (["x.png", "x.png"], &[][..]),
            (["x.png", "here/x.png"], &[]),
            (["x.png", "sub/../x.png"], &[]),
            (["link.png", "new.png"], &[]),
            (["old.png", "hard.png"], &[]),
            (["x.png", "hard.png"], &["old.png"]),
        ];
        for (outputs, inputs) in same {
            let error = both(outputs, inputs).unwrap_err().to_string();
            assert!(error.starts_with("--output ") && error.ends_with("; write elsewhere"), "{error}");
        }
        assert!(both(["x.png", "y.png"], &["old.png", "none.png"]).is_ok());
        assert!(prepare(&[("--output", Path::new("/dev/null")), ("--grid", Path::new("/dev/null"))], &[]).is_ok());
    }

    #[test]
    fn folders_are_made_and_what_stands_in_their_way_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let prepare = |name: &str| prepare(&[("--output", &dir.path().join(name))], &[]);
        fs::write(dir.path().join("x.png.99999999-0.tmp"), "").unwrap();
        assert_eq!(prepare("a/b/c.png").unwrap(), 0);
        assert_eq!(prepare("x.png").unwrap(), 1);
        assert!(dir.path().join("a/b").is_dir());
        fs::write(dir.path().join("file"), "").unwrap();
        let error = prepare("file/c.png").unwrap_err();
        assert!(
            crate::cli::exit_code(&error) == 5 && error.to_string().contains("cannot create the folder"),
            "{error}"
        );
    }
}
