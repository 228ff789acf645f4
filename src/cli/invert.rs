//! `engine invert`: the noise of which the decoder makes a picture.

use super::flags::{DeviceArguments, HOW, ModelArguments, OUTPUT, WHAT};
use super::given::{self, ReadArguments};
use super::progress::Progress;
use super::subject::given_prompts;
use super::{files, opened};
use clap::Args;
use serde_json::json;
use std::path::{Path, PathBuf};
use unclip::pipeline::{Prompt, Request, Task};
use unclip::{Error, Result};

pub const EXAMPLES: &str = "\
Examples:
  engine invert -i a.png -o n.safetensors
  engine run -i a.png --noise-from n.safetensors --decoder-guidance 1
  engine blend -i a.png --from \"a cat\" --to \"a lion\" --noise-from n.safetensors

What the decoder makes of the noise with the picture's own embedding is the picture again; with another embedding it keeps of the picture what that embedding does not say.";

#[derive(Debug, Args)]
pub struct InvertArguments {
    /// The picture: PNG, JPEG, WebP, GIF, BMP, TIFF or QOI
    #[arg(short, long, value_name = "FILE", help_heading = WHAT)]
    pub image: PathBuf,
    /// What the decoder is told to see, instead of the picture's own embedding
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true, help_heading = WHAT)]
    pub prompt: Option<String>,
    #[command(flatten)]
    pub read: ReadArguments,
    /// Steps of the decoder on the way, and on the way back [default: 50]
    #[arg(long, value_name = "N", help_heading = HOW)]
    pub decoder_steps: Option<usize>,
    #[command(flatten)]
    pub model: ModelArguments,
    #[command(flatten)]
    pub device: DeviceArguments,
    /// The safetensors file
    #[arg(short, long, value_name = "FILE", help_heading = OUTPUT)]
    pub output: PathBuf,
    /// Report in JSON, one event a line, on standard output
    #[arg(long, help_heading = OUTPUT)]
    pub json: bool,
    /// Report errors only
    #[arg(short, long, conflicts_with = "verbose", help_heading = OUTPUT)]
    pub quiet: bool,
    /// Report how long stages took and how much memory was used
    #[arg(short, long, help_heading = OUTPUT)]
    pub verbose: bool,
}

/// Inverts the picture and writes what was found.
///
/// # Errors
/// What the library reports, and files that cannot be read or written.
pub fn invert(arguments: &InvertArguments) -> Result<()> {
    let mut progress = Progress::new(arguments.json, arguments.quiet, arguments.verbose);
    let prompts = given_prompts(&[], arguments.prompt.as_slice(), None)?;
    let image = given::read(&arguments.image, &arguments.read.options())?;
    let output = arguments.output.as_path();
    if files::is_stdout(output) {
        return Err(Error::value("--output", output.display(), "expected the name of a file"));
    }
    files::prepare(&[("--output", output)], &[("--image", Path::new(&arguments.image))])?;
    let task = match prompts.is_empty() {
        true => Task::Variations(vec![image.clone()]),
        false => Task::Prompts(prompts.into_iter().map(Prompt::Text).collect()),
    };
    let request = Request { decoder_steps: arguments.decoder_steps, ..Request::of(task) };
    let checkpoint = super::checkpoint(&arguments.model)?;
    let pipeline = opened::open(checkpoint, &arguments.model.adapters, &arguments.device, &progress, |pipeline| {
        pipeline.route(&request).map(drop)
    })?;
    let inversion = pipeline.invert(&image, &request, &mut opened::observer(&mut progress))?;
    inversion.write(output)?;
    let [height, width, _] = inversion.shape;
    let (path, steps) = (output.display().to_string(), inversion.timesteps.len());
    progress.json(json!({ "event": "latents", "path": path, "width": width, "height": height, "steps": steps }));
    progress.wrote(output);
    progress.finish()
}
