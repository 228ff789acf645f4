//! What a run makes pictures of: prompts from the command line, a file or a picture's settings, or images.

use super::args::{Arguments, RunArguments};
use super::given;
use clap::CommandFactory;
use std::io::Read;
use std::path::{Path, PathBuf};
use unclip::image::{self, Alpha, ReadOptions};
use unclip::pipeline::{Prompt, Recipe, Subject, Task};
use unclip::{Error, Result};

/// What the pictures are made from, in order.
pub struct Subjects {
    pub task: Task,
    /// The files of given images.
    pub files: Vec<PathBuf>,
    /// What became of their transparency.
    pub alpha: Alpha,
    /// Pictures of each, unless a flag says otherwise.
    pub each: usize,
    /// What is said of images beside them.
    pub text: Option<String>,
}

impl Subjects {
    /// Reads what the flags name; where they name nothing, what the recipes of `--from` do. `examples` are prompts for
    /// someone who has none.
    ///
    /// # Errors
    /// Nothing is named, or prompts together with images, or a file cannot be read.
    pub fn read(arguments: &RunArguments, recipes: &[Recipe], examples: &[String]) -> Result<Subjects> {
        let prompts = prompts(arguments)?;
        if !arguments.image.is_empty() {
            if prompts.is_empty() {
                no_prior(arguments)?;
            }
            if let [_, second, ..] = &prompts[..] {
                return Err(Error::value("--prompt", second, "beside --image there is one at most"));
            }
            let images = images(&arguments.image, 1, &options(arguments, None))?;
            return Ok(Subjects { text: prompts.into_iter().next(), ..images });
        }
        let is_image = |recipe: &&Recipe| matches!(recipe.subject, Subject::Image(_));
        if arguments.alpha.is_some() && !(prompts.is_empty() && recipes.first().as_ref().is_some_and(is_image)) {
            return Err(Error::request("--alpha", "no picture is read; it goes with --image"));
        }
        if !prompts.is_empty() {
            let task = Task::Prompts(prompts.into_iter().map(Prompt::Text).collect());
            return Ok(Subjects { task, files: Vec::new(), alpha: Alpha::default(), each: 1, text: None });
        }
        let (Some(from), Some(first)) = (&arguments.from, recipes.first()) else { return Err(nothing(examples)) };
        if first.inverted && arguments.how.noise_from.is_none() {
            let reason = "made with --noise-from; name that file again";
            return Err(Error::value("--from", from.display(), reason));
        }
        if let Some(edited) = &first.edited {
            let reason = format!("an edit of {}; engine edit makes such", edited.image);
            return Err(Error::value("--from", from.display(), reason));
        }
        // A sheet has several pictures of each subject.
        if let Subject::Image(_) = first.subject {
            if first.text.is_none() {
                no_prior(arguments)?;
            }
            let paths = pictures_of(from, recipes)?;
            return images(&paths, recipes.len() / paths.len(), &options(arguments, Some(first)));
        }
        let prompts = distinct(recipes, |subject| match subject {
            Subject::Prompt(prompt) => Some(prompt.clone()),
            _ => None,
        });
        let each = recipes.len() / prompts.len();
        Ok(Subjects { task: Task::Prompts(prompts), files: Vec::new(), alpha: Alpha::default(), each, text: None })
    }
}

fn nothing(examples: &[String]) -> Error {
    let quoted: Vec<String> = examples.iter().map(|example| format!("{example:?}")).collect();
    let such = if quoted.is_empty() { String::new() } else { format!(", such as {}", quoted.join(" or ")) };
    Error::request("PROMPT", format!("missing; give one in quotes{such}, or with --image a picture to vary"))
}

/// A variation of which nothing is said has no prior.
fn no_prior(arguments: &RunArguments) -> Result<()> {
    let idle = [
        ("--prior-steps", arguments.how.prior_steps.is_some()),
        ("--prior-guidance", arguments.how.prior_guidance.is_some()),
    ];
    match idle.into_iter().find(|(_, given)| *given) {
        Some((flag, _)) => {
            Err(Error::request(format!("{flag} cannot be combined with --image"), "a variation has no prior"))
        }
        None => Ok(()),
    }
}

/// All prompts as text: PROMPT, then those of `--prompt`, then the lines of `--prompts`.
fn prompts(arguments: &RunArguments) -> Result<Vec<String>> {
    let mut prompts = given_prompts(&arguments.words, &arguments.prompt, arguments.negative.as_deref())?;
    if let Some(path) = &arguments.prompts {
        prompts.extend(lines("--prompts", path)?);
    }
    Ok(prompts)
}

/// PROMPT, then the texts of `--prompt`; those and the text of `--negative` are no flags and no files.
pub fn given_prompts(words: &[String], more: &[String], negative: Option<&str>) -> Result<Vec<String>> {
    if let [first, second, ..] = words {
        let reason =
            format!("unexpected after {first:?}; put a prompt in quotes, and several behind -p or in --prompts");
        return Err(Error::value("PROMPT", format!("{second:?}"), reason));
    }
    let prompts: Vec<String> = words.iter().chain(more).cloned().collect();
    prompts.iter().try_for_each(|prompt| meant_as_text("--prompt", prompt))?;
    negative.iter().try_for_each(|text| not_a_flag("--negative", text))?;
    Ok(prompts)
}

/// Refuses a flag of `engine run` where a text was forgotten before it.
fn not_a_flag(of: &str, text: &str) -> Result<()> {
    let arguments = Arguments::command();
    let run = arguments.find_subcommand("run").into_iter().flat_map(|run| run.get_arguments());
    let is_flag = |argument: &clap::Arg| {
        let long = argument.get_long().is_some_and(|long| text.strip_prefix("--") == Some(long));
        long || argument.get_short().is_some_and(|short| text.strip_prefix('-') == Some(short.to_string().as_str()))
    };
    match run.into_iter().any(is_flag) {
        true => {
            Err(Error::value(of, text, "a flag, where a text was expected; text that is one needs a space before it"))
        }
        false => Ok(()),
    }
}

/// Refuses what other programs take as the name of a file.
fn meant_as_text(of: &str, prompt: &str) -> Result<()> {
    not_a_flag(of, prompt)?;
    let reason = match prompt.strip_prefix('@') {
        _ if prompt == "-" => "--prompts - reads prompts from standard input, one a line".to_owned(),
        Some(file) if !file.is_empty() && !file.contains(char::is_whitespace) => {
            format!(
                "--prompts {file} reads prompts from a file, one a line; text that begins so needs a space before it"
            )
        }
        _ if Path::new(prompt).is_file() && image::is_picture(prompt) => {
            format!("a file; --image {prompt} makes variations of it, --from {prompt} makes it again")
        }
        _ => return Ok(()),
    };
    Err(Error::value(of, prompt, reason))
}

/// The lines of a file of texts that a flag names, without blank ones.
pub fn lines(flag: &str, path: &Path) -> Result<Vec<String>> {
    let bytes = if path == Path::new("-") {
        let mut bytes = Vec::new();
        let read = std::io::stdin().lock().read_to_end(&mut bytes);
        read.map(|_| bytes).map_err(|e| Error::io("standard input", "read", e))?
    } else {
        std::fs::read(path).map_err(|e| Error::io(path, "read", e))?
    };
    let refused = |reason: String| Error::value(flag, path.display(), reason);
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes); // a byte-order mark
    let text = std::str::from_utf8(text).map_err(|e| {
        let line = 1 + text[..e.valid_up_to()].iter().filter(|byte| **byte == b'\n').count();
        refused(format!("line {line} is not UTF-8"))
    })?;
    let prompts: Vec<String> = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
    if prompts.is_empty() { Err(refused("no text in it, expected one a line".to_owned())) } else { Ok(prompts) }
}

/// How given images are read.
pub fn options(arguments: &RunArguments, recipe: Option<&Recipe>) -> ReadOptions {
    let mut options = ReadOptions::default();
    options.alpha = arguments.alpha.or(recipe.map(|recipe| recipe.alpha)).unwrap_or_default();
    options.most_pixels = u64::from(arguments.max_megapixels) * 1_000_000;
    options
}

fn images(paths: &[PathBuf], each: usize, options: &ReadOptions) -> Result<Subjects> {
    let images = paths.iter().map(|path| given::read(path, options)).collect::<Result<_>>()?;
    Ok(Subjects { task: Task::Variations(images), files: paths.to_vec(), alpha: options.alpha, each, text: None })
}

/// What the recipes' pictures were made from, each once.
fn distinct<T: PartialEq>(recipes: &[Recipe], pick: impl Fn(&Subject) -> Option<T>) -> Vec<T> {
    let mut all: Vec<T> = recipes.iter().filter_map(|recipe| pick(&recipe.subject)).collect();
    all.dedup();
    all
}

/// The pictures that the recipes are variations of: beside the file that has the recipes, or here.
fn pictures_of(from: &Path, recipes: &[Recipe]) -> Result<Vec<PathBuf>> {
    let names = distinct(recipes, |subject| match subject {
        Subject::Image(name) => Some(name.clone()),
        _ => None,
    });
    let found = |name: &String| {
        let places = [from.with_file_name(name), PathBuf::from(name)];
        places.into_iter().find(|place| place.is_file()).ok_or_else(|| {
            let reason = format!("a variation of {name}, which is neither beside it nor here; name that with --image");
            Error::value("--from", from.display(), reason)
        })
    };
    names.iter().map(found).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_prompts_has_one_a_line_and_blank_lines_mean_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("list.txt");
        let read = |text: &[u8]| {
            std::fs::write(&path, text).unwrap();
            lines("--prompts", &path)
        };
        assert_eq!(read(b"\xef\xbb\xbfa lion\r\n\n  \n a frog \nlast").unwrap(), ["a lion", "a frog", "last"]);
        assert!(read(b"\n \n").unwrap_err().to_string().contains("no text in it"));
        let error = read(b"a\nb\n\xff\xfe").unwrap_err().to_string();
        assert!(error.starts_with("--prompts ") && error.contains("line 3 is not UTF-8"), "{error}");
        let error = lines("--prompts", &dir.path().join("none")).unwrap_err();
        assert_eq!(crate::cli::exit_code(&error), 5);
    }

    #[test]
    fn what_looks_like_a_file_is_not_drawn_as_text() {
        let hints = [("-", "--prompts -"), ("@list.txt", "--prompts list.txt"), ("--grid", "a flag"), ("-b", "a flag")];
        for (prompt, hint) in hints {
            let error = meant_as_text("--prompt", prompt).unwrap_err().to_string();
            assert!(error.starts_with(&format!("--prompt {prompt}: ")) && error.contains(hint), "{error}");
        }
        for text in ["@", "@ a sign", " @home", "a - b", "none.png", "-rainy street", "--", " -b"] {
            assert!(meant_as_text("--prompt", text).is_ok(), "{text}");
        }
    }
}
