//! Where pictures go, and the settings that they carry.

use super::args::RunArguments;
use serde_json::json;
use std::path::PathBuf;
use unclip::image::Parameters;
use unclip::pipeline::Settings;
use unclip::{Error, Result};

/// The files of `count` pictures.
///
/// # Errors
/// [`Error::Request`] for several pictures under a name without a number, or with two numbers.
pub fn names(output: Option<&PathBuf>, count: usize) -> Result<Vec<PathBuf>> {
    let refused = |reason: String| Error::request("--output", reason);
    let Some(path) = output else {
        let default = if count == 1 { "out.png" } else { "out-%03d.png" };
        return names(Some(&PathBuf::from(default)), count);
    };
    // A name that is no text cannot be taken apart, and needs not to be for one picture.
    let Some(text) = path.to_str() else {
        return if count == 1 { Ok(vec![path.clone()]) } else { Err(refused("expected a name in UTF-8".into())) };
    };
    let Some((before, width, after)) = number(text) else {
        return match count {
            1 => Ok(vec![path.clone()]),
            _ => Err(refused(format!(
                "{count} pictures need a name with a number in it such as out-%03d.png, found {text}"
            ))),
        };
    };
    if number(after).is_some() {
        return Err(refused(format!("expected one number in the name, found {text}")));
    }
    Ok((0..count).map(|k| PathBuf::from(format!("{before}{k:0width$}{after}"))).collect())
}

/// The first `%d` or `%0Nd`: what is before it, the digits asked for, and what is after it.
fn number(name: &str) -> Option<(&str, usize, &str)> {
    name.match_indices('%').find_map(|(at, _)| {
        let (digits, after) = name[at + 1..].split_once('d')?;
        let width = if digits.is_empty() { 0 } else { digits.strip_prefix('0')?.parse().ok()? };
        (width <= 9).then_some((&name[..at], width, after))
    })
}

/// What a picture shows: a prompt, or a file that it is a variation of.
#[derive(Clone, Copy)]
pub enum Origin<'a> {
    Prompt(&'a str),
    /// The file's name; where it was is nobody else's business.
    Image(&'a str),
}

impl<'a> Origin<'a> {
    /// Of picture `k`.
    pub fn of(arguments: &'a RunArguments, k: usize) -> Origin<'a> {
        let at = k / arguments.batch;
        let file = arguments.image.get(at).and_then(|path| path.file_name());
        match file {
            Some(name) => Origin::Image(name.to_str().unwrap_or("image")),
            None => Origin::Prompt(arguments.prompt.get(at).map_or("", String::as_str)),
        }
    }

    /// What it is called in JSON and in text chunks.
    pub fn key(&self) -> &'static str {
        match self {
            Origin::Prompt(_) => "prompt",
            Origin::Image(_) => "image",
        }
    }

    pub fn text(&self) -> &'a str {
        let (Origin::Prompt(text) | Origin::Image(text)) = self;
        text
    }
}

/// What one picture was made from.
pub struct Recipe<'a> {
    pub arguments: &'a RunArguments,
    pub settings: &'a Settings,
    pub origin: Origin<'a>,
    pub seed: u64,
    /// Width and height in pixels.
    pub size: [usize; 2],
    pub device: &'a str,
    pub model: &'a str,
}

impl Recipe<'_> {
    /// The text chunks of the PNG: `parameters` for image tools, and all settings as JSON under `unclip`.
    pub fn chunks(&self) -> [(&'static str, String); 2] {
        [("parameters", self.parameters().text()), ("unclip", self.json().to_string())]
    }

    fn parameters(&self) -> Parameters {
        let s = self.settings;
        let [width, height] = self.size;
        let mut fields = vec![
            ("Steps", s.decoder_steps.to_string()),
            ("Sampler", "unCLIP".to_owned()),
            ("CFG scale", s.decoder_guidance.to_string()),
            ("Seed", self.seed.to_string()),
            ("Size", format!("{width}x{height}")),
            ("Model", self.model.to_owned()),
        ];
        let prompt = match self.origin {
            Origin::Prompt(prompt) => {
                fields.push(("Prior steps", s.prior_steps.to_string()));
                fields.push(("Prior guidance", s.prior_guidance.to_string()));
                prompt
            }
            Origin::Image(name) => {
                fields.push(("Variation of", name.to_owned()));
                ""
            }
        };
        fields.push(("Super-resolution steps", s.super_res_steps.to_string()));
        fields.push(("Noise", self.noise()));
        fields.push(("Version", version()));
        Parameters {
            prompt: prompt.to_owned(),
            negative_prompt: self.arguments.negative.clone().unwrap_or_default(),
            fields: fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
        }
    }

    fn json(&self) -> serde_json::Value {
        let mut value = json!({
            "version": version(),
            "model": self.model,
            self.origin.key(): self.origin.text(),
            "negative": self.arguments.negative,
            "seed": self.seed,
            "noise": self.noise(),
            "device": self.device,
            "dtype": self.arguments.device.dtype.name(),
            "width": self.size[0],
            "height": self.size[1],
        });
        let settings = serde_json::to_value(self.settings).expect("numbers under fixed names");
        let into = value.as_object_mut().expect("made as an object");
        into.extend(settings.as_object().cloned().unwrap_or_default());
        if matches!(self.origin, Origin::Image(_)) {
            // A variation has no prior.
            into.retain(|key, _| !key.starts_with("prior_"));
        }
        value
    }

    fn noise(&self) -> String {
        format!("{:?}", self.arguments.noise).to_lowercase()
    }
}

fn version() -> String {
    format!("unclip {}", env!("CARGO_PKG_VERSION"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(output: &str, count: usize) -> Result<Vec<String>> {
        let paths = names(Some(&PathBuf::from(output)), count)?;
        Ok(paths.into_iter().map(|p| p.to_str().unwrap_or_default().to_owned()).collect())
    }

    #[test]
    fn numbers_are_filled_in_from_zero() {
        assert_eq!(named("a/%03d.png", 2).unwrap(), ["a/000.png", "a/001.png"]);
        assert_eq!(named("%d.png", 11).unwrap()[10], "10.png");
        assert_eq!(named("out.png", 1).unwrap(), ["out.png"]);
        assert_eq!(named("100%.png", 1).unwrap(), ["100%.png"]);
    }

    #[test]
    fn several_pictures_need_one_number() {
        for bad in ["out.png", "%03d-%03d.png", "%3d.png"] {
            let error = named(bad, 2).unwrap_err();
            assert!(error.to_string().contains("number"), "{error}");
            assert!(matches!(error, Error::Request { .. }), "{error:?}");
        }
    }
}
