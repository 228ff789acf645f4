//! `engine embed`: texts and pictures to embeddings in CLIP's space, in a file for other programs.
//!
//! | file | rows | names |
//! | --- | --- | --- |
//! | `.safetensors` | tensor `embeddings [N, D]` | JSON lists `names` and `kinds` in the metadata |
//! | `.npy` | array `[N, D]` | a JSON list in `NAME.names.json` beside it |
//! | `.jsonl` | a line each | in the line |

use super::flags::{DeviceArguments, HOW, ModelArguments, Named, OUTPUT, WHAT, named};
use super::given::{self, ReadArguments};
use super::progress::Progress;
use super::{files, opened, subject};
use clap::Args;
use safetensors::tensor::TensorView;
use serde_json::json;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use unclip::pipeline::{Prompt, unit};
use unclip::{Error, Result, output};

pub const EXAMPLES: &str = "\
Examples:
  engine embed -p \"a cat\" -p \"a dog\" -o texts.npy
  engine embed -i photos -o photos.safetensors --normalize
  engine embed --prompts list.txt -i photo.png > all.jsonl

Texts come first, then pictures, both in the order in which they are named. A .npy file has the embeddings alone; their names are in NAME.names.json beside it.";

#[derive(Debug, Args)]
pub struct EmbedArguments {
    /// Text to embed; may be given several times
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true, help_heading = WHAT)]
    pub prompt: Vec<String>,
    /// File with a text on each line; - is standard input
    #[arg(long, value_name = "FILE", help_heading = WHAT)]
    pub prompts: Option<PathBuf>,
    /// Picture, or folder of pictures, to embed; may be given several times
    #[arg(short, long, value_name = "FILE|DIR", num_args = 1.., help_heading = WHAT)]
    pub image: Vec<PathBuf>,
    /// Scale each embedding to length 1
    #[arg(long, alias = "normalise", help_heading = HOW)]
    pub normalize: bool,
    #[command(flatten)]
    pub read: ReadArguments,
    #[command(flatten)]
    pub model: ModelArguments,
    #[command(flatten)]
    pub device: DeviceArguments,
    /// File (.safetensors, .npy, .jsonl); - is standard output
    #[arg(short, long, value_name = "FILE", default_value = "-", help_heading = OUTPUT)]
    pub output: PathBuf,
    /// Format of a file whose name does not say it [default: jsonl]
    #[arg(long, value_name = "NAME", value_parser = named(FORMATS), help_heading = OUTPUT)]
    pub format: Option<Format>,
    /// Errors only
    #[arg(short, long, help_heading = OUTPUT)]
    pub quiet: bool,
}

/// How embeddings are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Safetensors,
    Npy,
    Jsonl,
}

const FORMATS: &[Named<Format>] = &[
    (Format::Safetensors, "safetensors", &[], "One tensor, names in its metadata"),
    (Format::Npy, "npy", &[], "One array of NumPy, names beside it"),
    (Format::Jsonl, "jsonl", &["json"], "A line each"),
];

/// An embedding, and of what.
struct Row {
    name: String,
    kind: &'static str,
    embedding: Vec<f32>,
}

/// Embeds everything and writes it.
///
/// # Errors
/// What is wrong with texts, pictures, the checkpoint or the file to be written, before any work.
pub fn embed(arguments: &EmbedArguments) -> Result<()> {
    let mut progress = Progress::new(false, arguments.quiet, false);
    let mut texts = arguments.prompt.clone();
    if let Some(path) = &arguments.prompts {
        texts.extend(subject::lines("--prompts", path)?);
    }
    if texts.is_empty() && arguments.image.is_empty() {
        return Err(Error::request("--prompt", "missing; give a text, or a picture with --image"));
    }
    let given = given::find("--image", &arguments.image)?;
    let format = format(arguments)?;
    let names = (format == Format::Npy && !files::is_stdout(&arguments.output)).then(|| beside(&arguments.output));
    if !files::is_stdout(&arguments.output) {
        let outputs = std::iter::once(arguments.output.as_path()).chain(names.as_deref());
        let outputs: Vec<(&str, &Path)> = outputs.map(|path| ("--output", path)).collect();
        let inputs = given.iter().map(|file| ("--image", file.path.as_path()));
        let inputs = inputs.chain(arguments.prompts.iter().map(|path| ("--prompts", path.as_path())));
        files::prepare(&outputs, &inputs.collect::<Vec<_>>())?;
    }
    let pipeline = opened::open_named(&arguments.model, &arguments.device, &progress, |pipeline| {
        pipeline.check_towers(!texts.is_empty(), !given.is_empty())
    })?;

    let prompts: Vec<Prompt> = texts.iter().map(|text| Prompt::Text(text.clone())).collect();
    let embeddings = pipeline.embed_texts(&prompts, &mut opened::observer(&mut progress))?;
    let row = |(name, embedding)| Row { name, kind: "text", embedding };
    let mut rows: Vec<Row> = texts.into_iter().zip(embeddings).map(row).collect();
    given::in_batches(&given, &arguments.read.options(), |batch| {
        let embeddings = pipeline.embed_pictures(&batch.images, &mut opened::observer(&mut progress))?;
        let name = |number: &usize| given[*number].path.display().to_string();
        let row = |(number, embedding)| Row { name: name(number), kind: "picture", embedding };
        rows.extend(batch.numbers.iter().zip(embeddings).map(row));
        batch.failed.iter().for_each(|(_, error)| progress.passed_over(error));
        Ok(())
    })?;
    if rows.is_empty() {
        return Err(Error::value("--image", arguments.image[0].display(), "no picture in it could be read"));
    }
    if arguments.normalize {
        rows.iter_mut().for_each(|row| row.embedding = unit(&row.embedding));
    }

    let bytes = encode(&rows, format, arguments.normalize, &pipeline.checkpoint().name())?;
    if files::is_stdout(&arguments.output) {
        let mut stdout = std::io::stdout().lock();
        return stdout.write_all(&bytes).map_err(|e| Error::io("standard output", "write", e));
    }
    // The array comes last: with it there are its names.
    if let Some(path) = names {
        let names: Vec<&str> = rows.iter().map(|row| row.name.as_str()).collect();
        output::write(path, format!("{}\n", json!(names)).as_bytes())?;
    }
    output::write(&arguments.output, &bytes)?;
    progress.wrote(&arguments.output);
    progress.finish()
}

/// The format that the name or the flag says.
fn format(arguments: &EmbedArguments) -> Result<Format> {
    let path = &arguments.output;
    let ending = path.extension().map(|ending| ending.to_string_lossy().to_lowercase());
    let by_name = |ending: &String| {
        FORMATS.iter().find(|(_, name, others, _)| name == ending || others.contains(&ending.as_str()))
    };
    let of_name = ending.as_ref().and_then(by_name).map(|(format, ..)| *format);
    let refused = |reason: &str| Err(Error::value("--output", path.display(), reason));
    match (of_name, arguments.format) {
        (Some(named), Some(asked)) if named != asked => refused("the name says another format than --format"),
        (None, None) if ending.is_some() => refused("expected a name that ends in safetensors, npy or jsonl"),
        (named, asked) => {
            let format = named.or(asked).unwrap_or(Format::Jsonl);
            match files::is_stdout(path) && format != Format::Jsonl && std::io::stdout().is_terminal() {
                true => refused("standard output is a terminal; redirect it to a file or a program"),
                false => Ok(format),
            }
        }
    }
}

/// Where the names of an array's rows go.
fn beside(array: &Path) -> PathBuf {
    array.with_extension("names.json")
}

fn encode(rows: &[Row], format: Format, is_normalized: bool, model: &str) -> Result<Vec<u8>> {
    let width = rows[0].embedding.len();
    let elements = || rows.iter().flat_map(|row| &row.embedding).flat_map(|x| x.to_le_bytes());
    match format {
        Format::Jsonl => {
            let line =
                |row: &Row| format!("{}\n", json!({ "name": row.name, "kind": row.kind, "embedding": row.embedding }));
            Ok(rows.iter().map(line).collect::<String>().into_bytes())
        }
        Format::Npy => Ok(npy_header(rows.len(), width).into_iter().chain(elements()).collect()),
        Format::Safetensors => {
            let bytes: Vec<u8> = elements().collect();
            let names: Vec<&str> = rows.iter().map(|row| row.name.as_str()).collect();
            let kinds: Vec<&str> = rows.iter().map(|row| row.kind).collect();
            let metadata = [
                ("kinds".to_owned(), json!(kinds).to_string()),
                ("model".to_owned(), model.to_owned()),
                ("names".to_owned(), json!(names).to_string()),
                ("normalized".to_owned(), is_normalized.to_string()),
            ];
            let failed = |e: safetensors::SafeTensorError| {
                Error::io("embeddings", "encode", std::io::Error::other(e.to_string()))
            };
            let view = TensorView::new(safetensors::Dtype::F32, vec![rows.len(), width], &bytes).map_err(failed)?;
            safetensors::serialize([("embeddings", view)], Some(metadata.into_iter().collect())).map_err(failed)
        }
    }
}

/// The head of an array of f32 in NumPy's format, version 1.0: data begin at a multiple of 64.
fn npy_header(rows: usize, width: usize) -> Vec<u8> {
    const BEFORE: usize = 10;
    let mut text = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {width}), }}");
    while !(BEFORE + text.len() + 1).is_multiple_of(64) {
        text.push(' ');
    }
    text.push('\n');
    let length = u16::try_from(text.len()).expect("two numbers are short");
    [b"\x93NUMPY\x01\x00", &length.to_le_bytes()[..], text.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arrays_head_is_padded_and_says_its_shape() {
        let header = npy_header(3, 768);
        assert_eq!(header.len() % 64, 0);
        assert_eq!(&header[..8], b"\x93NUMPY\x01\x00");
        assert_eq!(usize::from(u16::from_le_bytes([header[8], header[9]])), header.len() - 10);
        let text = String::from_utf8(header[10..].to_vec()).unwrap();
        assert!(text.starts_with("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 768), }"), "{text}");
        assert!(text.ends_with('\n'));
    }

    #[test]
    fn names_of_an_array_lie_beside_it() {
        assert_eq!(beside(Path::new("a/b.npy")), Path::new("a/b.names.json"));
    }
}
