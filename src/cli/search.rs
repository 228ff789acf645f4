//! `engine search`: the pictures of a folder in the order in which they fit a text or another picture.

use super::cache::{Cache, Stamp};
use super::flags::{DeviceArguments, ModelArguments, OUTPUT, WHAT};
use super::given::{self, Given, ReadArguments};
use super::progress::Progress;
use super::{files, opened};
use clap::Args;
use serde_json::json;
use std::path::{Path, PathBuf};
use unclip::pipeline::{Pipeline, Prompt, cosine, mean_direction};
use unclip::{Error, Result};

pub const EXAMPLES: &str = "\
Examples:
  engine search photos -p \"a red car\"
  engine search photos -i like-this.png --top 3
  engine search photos -p \"a boat\" -m openai/clip-vit-large-patch14 --json

Pictures are ranked by the cosine between their embedding and that of the text or picture asked for; of several, the mean of their directions is asked for. Embeddings are kept in the folder, in .engine-embeddings, so that the next search computes those of new and changed pictures only.";

/// The cache in a searched folder.
const CACHE: &str = ".engine-embeddings";

#[derive(Debug, Args)]
pub struct SearchArguments {
    /// The folder, with all folders in it
    #[arg(value_name = "DIR", help_heading = WHAT)]
    pub folder: PathBuf,
    /// What to look for; may be given several times
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true, help_heading = WHAT)]
    pub prompt: Vec<String>,
    /// Picture that is like what to look for; may be given several times
    #[arg(short, long, value_name = "FILE", help_heading = WHAT)]
    pub image: Vec<PathBuf>,
    #[command(flatten)]
    pub read: ReadArguments,
    #[command(flatten)]
    pub model: ModelArguments,
    #[command(flatten)]
    pub device: DeviceArguments,
    /// Pictures that are reported, the best first
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..),
          help_heading = OUTPUT)]
    pub top: u32,
    /// Where embeddings are kept [default: .engine-embeddings in the folder]
    #[arg(long, value_name = "FILE", help_heading = OUTPUT)]
    pub cache: Option<PathBuf>,
    /// Keep no embeddings, and use none that were kept
    #[arg(long, conflicts_with = "cache", help_heading = OUTPUT)]
    pub no_cache: bool,
    /// Report in JSON, a picture a line
    #[arg(long, help_heading = OUTPUT)]
    pub json: bool,
    /// Results and errors only
    #[arg(short, long, help_heading = OUTPUT)]
    pub quiet: bool,
}

/// Ranks the folder and prints the best pictures.
///
/// # Errors
/// What is wrong with the folder, what is asked for or the checkpoint, before any work.
pub fn search(arguments: &SearchArguments) -> Result<()> {
    let mut progress = Progress::new(false, arguments.quiet, false);
    if arguments.prompt.is_empty() && arguments.image.is_empty() {
        return Err(Error::request("--prompt", "missing; say what to look for, or name a picture with --image"));
    }
    if !arguments.folder.is_dir() {
        let reason = if arguments.folder.exists() { "expected a folder" } else { "no such folder" };
        return Err(Error::value("DIR", arguments.folder.display(), reason));
    }
    let found = given::find("DIR", std::slice::from_ref(&arguments.folder))?;
    let options = arguments.read.options();
    let asked = arguments.image.iter().map(|path| given::read(path, &options)).collect::<Result<Vec<_>>>()?;
    let path = arguments.cache.clone().unwrap_or_else(|| arguments.folder.join(CACHE));
    let mut cache = if arguments.no_cache { Cache::default() } else { Cache::read(&path, arguments.cache.is_some())? };
    let pipeline = opened::open_named(&arguments.model, &arguments.device, &progress, |pipeline| {
        pipeline.check_towers(!arguments.prompt.is_empty(), true)
    })?;
    let query = query(arguments, &pipeline, &asked, &mut progress)?;

    cache.keep_for(&format!("{}; alpha {:?}", pipeline.picture_signature()?, arguments.read.alpha));
    let stamps: Vec<Stamp> = found.iter().map(|file| Stamp::of(&file.path, &arguments.folder)).collect();
    cache.keep_only(&stamps);
    let missing: Vec<usize> = (0..found.len()).filter(|&k| cache.get(&stamps[k]).is_none()).collect();
    if !missing.is_empty() {
        let kept = found.len() - missing.len();
        progress.note(&format!("{} pictures to embed; {kept} are in the cache", missing.len()));
    }
    let files: Vec<Given> = missing.iter().map(|&k| found[k].clone()).collect();
    let embedded = given::in_batches(&files, &options, |batch| {
        let embeddings = pipeline.embed_pictures(&batch.images, &mut opened::observer(&mut progress))?;
        for (&number, embedding) in batch.numbers.iter().zip(embeddings) {
            cache.put(&stamps[missing[number]], embedding);
        }
        batch.failed.iter().for_each(|(_, error)| progress.passed_over(error));
        Ok(())
    });
    // Also after an interrupt: what was computed need not be again.
    let write = || files::prepare(&[("--cache", &path)], &[]).and_then(|_| cache.write(&path));
    if !arguments.no_cache
        && cache.has_changed()
        && let Err(error) = write()
    {
        progress.note(&format!("engine: warning: embeddings are not kept: {error}"));
    }
    embedded?;

    let rank = |k: usize| Some((cosine(&query, cache.get(&stamps[k])?), &*found[k].path));
    let mut ranked: Vec<(f32, &Path)> = (0..found.len()).filter_map(rank).collect();
    if ranked.is_empty() {
        return Err(Error::value("DIR", arguments.folder.display(), "no picture in it could be read"));
    }
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
    ranked.truncate(arguments.top as usize);
    let line = |(rank, (score, path)): (usize, &(f32, &Path))| match arguments.json {
        true => format!("{}\n", json!({ "rank": rank + 1, "picture": path.display().to_string(), "score": score })),
        false => format!("{score:7.4}  {}\n", path.display()),
    };
    super::print(&ranked.iter().enumerate().map(line).collect::<String>())
}

/// The direction that is asked for.
fn query(
    arguments: &SearchArguments,
    pipeline: &Pipeline,
    asked: &[unclip::image::Image],
    progress: &mut Progress,
) -> Result<Vec<f32>> {
    let texts: Vec<Prompt> = arguments.prompt.iter().map(|text| Prompt::Text(text.clone())).collect();
    let mut all = pipeline.embed_texts(&texts, &mut opened::observer(progress))?;
    all.extend(pipeline.embed_pictures(asked, &mut opened::observer(progress))?);
    Ok(mean_direction(all.iter().map(Vec::as_slice)))
}
