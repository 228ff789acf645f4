//! `engine enlarge`: pictures of any size through super-resolution alone.

use super::args::flagged;
use super::flags::{DeviceArguments, HOW, ModelArguments, SavedArguments, Seed, WHAT, seed};
use super::given::ReadArguments;
use super::make::Saved;
use super::progress::Progress;
use super::{given, make, opened};
use clap::Args;
use serde_json::json;
use std::path::{Path, PathBuf};
use unclip::Result;
use unclip::image::{Image, Texts};
use unclip::pipeline::{Enlarge, Keep};

pub const EXAMPLES: &str = "\
Examples:
  engine enlarge -i small.png -o big.png
  engine enlarge -i small.png --times 16 -o huge.png
  engine enlarge -i photo.jpg --tile 128 -m karlo -o photo-4x.png

The networks were trained on tiles of their own size. Larger tiles see more of the picture at once and take more memory; smaller overlapping ones are blended after every step.";

#[derive(Debug, Args)]
pub struct EnlargeArguments {
    /// Picture to enlarge; may be given several times
    #[arg(short, long, value_name = "FILE", required = true, help_heading = WHAT)]
    pub image: Vec<PathBuf>,
    /// How many times as wide and high the result is: what the networks do (4 with Karlo and the built-in model), or a power
    /// of that [default: what they do]
    #[arg(long, value_name = "N", help_heading = HOW)]
    pub times: Option<usize>,
    /// Side of tiles in pixels of the given picture [default: that of the decoder's pictures]
    #[arg(long, value_name = "N", help_heading = HOW)]
    pub tile: Option<usize>,
    /// Steps of super-resolution, the last of which is the second network's [default: the checkpoint's, or 7]
    #[arg(long, value_name = "N", help_heading = HOW)]
    pub super_res_steps: Option<usize>,
    /// Seed of the noise: a number, or random; picture k has seed + k [default: 0]
    #[arg(short, long, value_name = "SEED", allow_negative_numbers = true, value_parser = seed, help_heading = HOW)]
    pub seed: Option<Seed>,
    #[command(flatten)]
    pub read: ReadArguments,
    #[command(flatten)]
    pub model: ModelArguments,
    #[command(flatten)]
    pub device: DeviceArguments,
    #[command(flatten)]
    pub saved: SavedArguments,
}

/// Enlarges the pictures and writes them.
///
/// # Errors
/// What is wrong with pictures, settings, checkpoint or outputs, before any work.
pub fn enlarge(arguments: &EnlargeArguments) -> Result<()> {
    let mut progress = Progress::new(arguments.saved.json, arguments.saved.quiet, arguments.saved.verbose);
    let checkpoint = super::checkpoint(&arguments.model)?;
    let options = arguments.read.options();
    let images = arguments.image.iter().map(|path| given::read(path, &options)).collect::<Result<Vec<_>>>()?;
    let first = arguments.seed.map_or(0, |seed| seed.value);
    let request = |(k, image): (usize, Image)| Enlarge {
        times: arguments.times,
        tile: arguments.tile,
        steps: arguments.super_res_steps,
        ..Enlarge::new(image).seed(first.wrapping_add(k as u64))
    };
    let requests: Vec<Enlarge> = images.into_iter().enumerate().map(request).collect();
    let inputs: Vec<(&str, &Path)> = arguments.image.iter().map(|path| ("--image", path.as_path())).collect();
    let saved = Saved::prepare(&arguments.saved, requests.len(), &inputs, &[], None)?;
    let pipeline = opened::open(checkpoint, &arguments.model.adapters, &arguments.device, &progress, |pipeline| {
        for request in &requests {
            let [width, height] = pipeline.enlarged_size(request).map_err(|error| flagged(error, &FLAGS))?;
            saved.format.check(width, height, &Texts::default())?;
        }
        Ok(())
    })?;
    // One network in memory at a time, unless the device has memory of its own.
    let keep = if pipeline.backend().loads_ahead() { Keep::Weights } else { Keep::Nothing };
    let pipeline = pipeline.keep(keep, None);
    saved.remarks().for_each(|remark| progress.note(&remark));

    let mut results = Vec::with_capacity(requests.len());
    for (k, request) in requests.iter().enumerate() {
        let image = pipeline.enlarge_alone(request, &mut opened::observer(&mut progress))?;
        let event = json!({ "image": arguments.image[k].display().to_string(), "seed": request.seed });
        saved.write(k, &image, &Texts::default(), event, &mut progress)?;
        results.push(image);
    }
    if let Some(protocol) = arguments.saved.show {
        results.iter().try_for_each(|image| super::show::show(std::slice::from_ref(image), protocol, &progress))?;
    }
    make::finish(progress, &results)
}

/// What the library calls a setting, and the flag that sets it.
const FLAGS: [(&str, &str); 3] =
    [("times", "--times"), ("tile", "--tile"), ("super-resolution steps", "--super-res-steps")];
