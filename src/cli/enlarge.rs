//! `engine enlarge`: pictures of any size through super-resolution alone.

use super::args::{DeviceArguments, FORMATS, HOW, ModelArguments, OUTPUT, Seed, WHAT, flagged, named, seed};
use super::files::{self, Targets};
use super::given::ReadArguments;
use super::progress::Progress;
use super::show::Protocol;
use super::{given, make, opened};
use clap::Args;
use serde_json::json;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use unclip::image::{Format, Image, Texts};
use unclip::pipeline::{Enlarge, Keep};
use unclip::{Error, Result};

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
    /// Picture file (.png, .jpg, .webp), - for standard output; several pictures need a name with a number (%d, %03d), which
    /// counts from 0 [default: out.png or out-%03d.png, or the next number that is free]
    #[arg(short, long, value_name = "FILE", help_heading = OUTPUT)]
    pub output: Option<PathBuf>,
    /// Format of pictures whose names do not say it [default: png]
    #[arg(long, value_name = "NAME", value_parser = named(FORMATS), help_heading = OUTPUT)]
    pub format: Option<Format>,
    /// Quality of a JPEG, 1 to 100 [default: 95]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=100), help_heading = OUTPUT)]
    pub quality: Option<u8>,
    /// Show the pictures in the terminal
    #[arg(long, value_name = "HOW", value_enum, num_args = 0..=1, require_equals = true, default_missing_value = "auto",
          conflicts_with = "json", help_heading = OUTPUT)]
    pub show: Option<Protocol>,
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

/// Enlarges the pictures and writes them.
///
/// # Errors
/// What is wrong with pictures, settings, checkpoint or outputs, before any work.
pub fn enlarge(arguments: &EnlargeArguments) -> Result<()> {
    let mut progress = Progress::new(arguments.json, arguments.quiet, arguments.verbose);
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
    let nameless = Path::new("");
    let named = arguments.output.as_deref().unwrap_or(nameless);
    let format = files::format("--output", named, arguments.format, arguments.quality)?;
    let (targets, remark) = Targets::new(arguments.output.as_deref(), requests.len(), format)?;
    check_outputs(arguments, &targets)?;
    let pipeline = opened::open(checkpoint, &arguments.device, &progress, |pipeline| {
        for request in &requests {
            let [width, height] = pipeline.enlarged_size(request).map_err(|error| flagged(error, &FLAGS))?;
            format.check(width, height, &Texts::default())?;
        }
        Ok(())
    })?;
    // One network in memory at a time, unless the device has memory of its own.
    let keep = if pipeline.backend().loads_ahead() { Keep::Weights } else { Keep::Nothing };
    let pipeline = pipeline.keep(keep, None);
    remark.into_iter().for_each(|remark| progress.note(&remark));

    let mut results = Vec::with_capacity(requests.len());
    for (k, request) in requests.iter().enumerate() {
        let image = pipeline.enlarge_alone(request, &mut opened::observer(&mut progress))?;
        match &targets {
            Targets::Stdout => make::write_stdout(&image, &Texts::default(), format)?,
            Targets::Files(files) => {
                image.write(&files[k], format, &Texts::default())?;
                let path = files[k].display().to_string();
                let given = arguments.image[k].display().to_string();
                progress.json(json!({ "event": "picture", "path": path, "image": given, "seed": request.seed }));
                progress.wrote(&files[k]);
            }
        }
        results.push(image);
    }
    if let Some(protocol) = arguments.show {
        results.iter().try_for_each(|image| super::show::show(std::slice::from_ref(image), protocol, &progress))?;
    }
    make::finish(progress, &results)
}

/// Long work is not begun for files that cannot be written after it.
fn check_outputs(arguments: &EnlargeArguments, targets: &Targets) -> Result<()> {
    if *targets == Targets::Stdout {
        let others = [("--json", arguments.json), ("--show", arguments.show.is_some())];
        if let Some((flag, _)) = others.into_iter().find(|(_, given)| *given) {
            let reason = format!("cannot be combined with {flag}, which writes to standard output too");
            return Err(Error::value("--output", "-", reason));
        }
        if std::io::stdout().is_terminal() {
            return Err(Error::value(
                "--output",
                "-",
                "standard output is a terminal; redirect it to a file or a program",
            ));
        }
    }
    let outputs: Vec<(&str, &Path)> = targets.files().iter().map(|path| ("--output", path.as_path())).collect();
    let inputs: Vec<(&str, &Path)> = arguments.image.iter().map(|path| ("--image", path.as_path())).collect();
    files::prepare(&outputs, &inputs).map(drop)
}

/// What the library calls a setting, and the flag that sets it.
const FLAGS: [(&str, &str); 3] =
    [("times", "--times"), ("tile", "--tile"), ("super-resolution steps", "--super-res-steps")];
