//! `engine denoise`: pictures without their noise.

use super::args::flagged;
use super::flags::{DeviceArguments, HOW, ModelArguments, SavedArguments, WHAT};
use super::given::{self, ReadArguments};
use super::make::Saved;
use super::progress::Progress;
use super::subject::given_prompts;
use super::{make, opened};
use clap::Args;
use serde_json::json;
use std::path::{Path, PathBuf};
use unclip::image::{Image, Texts};
use unclip::pipeline::{Keep, Prompt, Request, Task};
use unclip::{Error, Result};

pub const EXAMPLES: &str = "\
Examples:
  engine denoise -i noisy.png -o clean.png
  engine denoise -i noisy.png --sigma 0.1 -p \"a red apple\" -o clean.png

The networks take the picture as the step of their schedule whose noise is as strong, and say what is behind it: the decoder of the picture made small, super-resolution of all of it. They know what they were trained on; the built-in model's drawings, but no photographs.";

#[derive(Debug, Args)]
pub struct DenoiseArguments {
    /// A picture with noise; may be given several times
    #[arg(short, long, value_name = "FILE", required = true, help_heading = WHAT)]
    pub image: Vec<PathBuf>,
    /// What the pictures show, instead of what they say themselves
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true, help_heading = WHAT)]
    pub prompt: Option<String>,
    #[command(flatten)]
    pub read: ReadArguments,
    /// Standard deviation of the noise, where 1 is the difference of black and white, or auto: estimated from differences of
    /// neighbours, by their median
    #[arg(long, value_name = "SIGMA", default_value = "auto", value_parser = sigma, help_heading = HOW)]
    pub sigma: Sigma,
    #[command(flatten)]
    pub model: ModelArguments,
    #[command(flatten)]
    pub device: DeviceArguments,
    #[command(flatten)]
    pub saved: SavedArguments,
}

/// How much noise there is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sigma {
    /// As much as the picture looks like.
    Auto,
    Of(f32),
}

fn sigma(text: &str) -> Result<Sigma, String> {
    match text.parse() {
        _ if text == "auto" => Ok(Sigma::Auto),
        Ok(sigma) if sigma > 0.0 && sigma < 1.0 => Ok(Sigma::Of(sigma)),
        _ => Err("expected auto, or a number above 0 and below 1, such as 0.1".to_owned()),
    }
}

/// Noise below this is not seen.
const LEAST: f32 = 0.004;

/// Takes the noise out of the pictures and writes them.
///
/// # Errors
/// What is wrong with pictures, settings, checkpoint or outputs, before any work.
pub fn denoise(arguments: &DenoiseArguments) -> Result<()> {
    let SavedArguments { json, quiet, verbose, show, .. } = arguments.saved;
    let mut progress = Progress::new(json, quiet, verbose);
    let prompts = given_prompts(&[], arguments.prompt.as_slice(), None)?;
    let options = arguments.read.options();
    let images = arguments.image.iter().map(|path| given::read(path, &options)).collect::<Result<Vec<_>>>()?;
    let sigmas: Vec<f32> = images
        .iter()
        .map(|image| match arguments.sigma {
            Sigma::Auto => image.noise_level(),
            Sigma::Of(sigma) => sigma,
        })
        .collect();
    if let Some((path, _)) = arguments.image.iter().zip(&sigmas).find(|(_, sigma)| **sigma < LEAST) {
        let reason = format!("{} has no noise that can be told from what it shows; --sigma names some", path.display());
        return Err(Error::value("--sigma", "auto", reason));
    }
    let task = match prompts.into_iter().next() {
        Some(prompt) => Task::Prompts(vec![Prompt::Text(prompt)]),
        None => Task::Variations(images[..1].to_vec()),
    };
    let request = Request::of(task);
    let inputs: Vec<(&str, &Path)> = arguments.image.iter().map(|path| ("--image", path.as_path())).collect();
    let saved = Saved::prepare(&arguments.saved, images.len(), &inputs, &[], None)?;
    let checkpoint = super::checkpoint(&arguments.model)?;
    let flags = [("image", "--image"), ("prompt", "--prompt"), ("sigma", "--sigma")];
    let pipeline = opened::open(checkpoint, &arguments.model.adapters, &arguments.device, &progress, |pipeline| {
        pipeline.route(&request).map_err(|error| flagged(error, &flags))?;
        images.iter().try_for_each(|image| saved.format.check(image.width, image.height, &Texts::default()))
    })?;
    saved.remarks().for_each(|remark| progress.note(&remark));

    // Every tile passes through all stages.
    let pipeline = pipeline.keep(Keep::Everything, None);
    let mut results: Vec<Image> = Vec::with_capacity(images.len());
    for (k, (image, sigma)) in images.iter().zip(sigmas).enumerate() {
        if arguments.sigma == Sigma::Auto {
            progress.note(&format!("{}: noise of {sigma:.3}", arguments.image[k].display()));
        }
        let clean = pipeline.denoise(image, sigma, &request, &mut opened::observer(&mut progress));
        let clean = clean.map_err(|error| flagged(error, &flags))?;
        let event = json!({ "image": arguments.image[k].display().to_string(), "sigma": sigma });
        saved.write(k, &clean, &Texts::default(), event, &mut progress)?;
        results.push(clean);
    }
    if let Some(protocol) = show {
        results.iter().try_for_each(|image| super::show::show(std::slice::from_ref(image), protocol, &progress))?;
    }
    make::finish(progress, &results)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_a_number_between_0_and_1_or_told_from_the_picture() {
        assert_eq!((sigma("auto"), sigma("0.25")), (Ok(Sigma::Auto), Ok(Sigma::Of(0.25))));
        for text in ["0", "1", "-0.1", "NaN", "much"] {
            assert!(sigma(text).unwrap_err().contains("such as 0.1"), "{text}");
        }
    }
}
