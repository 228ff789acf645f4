//! What a picture was made from, so that it can be made again.
//!
//! A [`Recipe`] holds every setting of one picture by value, with the checkpoint's defaults filled in. As JSON it travels
//! in the picture's PNG and in the command line's events; [`Recipe::read`] and [`Recipe::request`] lead back to a
//! [`Request`].

use super::{Pipeline, Prompt, Request, Task};
use crate::dtype::Precision;
use crate::error::{Error, Result};
#[cfg(feature = "png")]
use crate::image::{self, Image};
use crate::noise::NoiseKind;
use serde::{Deserialize, Serialize};
#[cfg(feature = "png")]
use std::path::Path;

/// Keyword of the PNG text chunk that holds a recipe as JSON, or on a sheet of pictures a list of recipes.
#[cfg(feature = "png")]
const CHUNK: &str = "unclip";

/// The settings of one picture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Recipe {
    /// Program and version, such as `unclip 0.1.0`.
    pub version: String,
    /// The checkpoint's [name](crate::weights::Checkpoint::name).
    pub model: String,
    /// What the picture was made from.
    #[serde(flatten)]
    pub subject: Subject,
    /// What it should not be.
    pub negative: Option<Prompt>,
    /// Seed of this picture.
    pub seed: u64,
    /// Which generator turned the seed into noise.
    pub noise: NoiseKind,
    /// Steps of the prior; a variation has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prior_steps: Option<usize>,
    /// Steps of the decoder.
    pub decoder_steps: usize,
    /// Steps of super-resolution.
    pub super_res_steps: usize,
    /// Guidance scale of the prior; a variation has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prior_guidance: Option<f32>,
    /// Guidance scale of the decoder.
    pub decoder_guidance: f32,
    /// The device, as its [back end](crate::backend::Backend::name) calls it.
    pub device: String,
    /// How the device stored tensors and multiplied matrices.
    pub dtype: Precision,
    /// Pixels in a row.
    pub width: usize,
    /// Number of rows.
    pub height: usize,
}

/// What a picture was made from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Subject {
    /// A prompt.
    Prompt(Prompt),
    /// A picture of which this is a variation, by the name of its file; empty where it had none.
    Image(String),
}

impl Subject {
    /// The prompt's text or the file's name. Empty for tokens.
    pub fn text(&self) -> &str {
        match self {
            #[cfg(feature = "tokenizer")]
            Subject::Prompt(Prompt::Text(text)) => text,
            Subject::Prompt(Prompt::Tokens(_)) => "",
            Subject::Image(name) => name,
        }
    }
}

impl Pipeline {
    /// The recipe of picture `k` of a request. A request does not know where its images come from: the name in
    /// [`Subject::Image`] is empty.
    pub fn recipe(&self, request: &Request, k: usize) -> Recipe {
        let settings = request.settings(self.defaults());
        let at = k / request.pictures_per_prompt.max(1);
        let (subject, with_prior) = match &request.task {
            Task::Prompts(prompts) => (prompts.get(at).cloned().map(Subject::Prompt), true),
            Task::Variations(_) => (None, false),
        };
        Recipe {
            version: format!("unclip {}", env!("CARGO_PKG_VERSION")),
            model: self.checkpoint.name(),
            subject: subject.unwrap_or_else(|| Subject::Image(String::new())),
            negative: request.negative.clone(),
            seed: request.seed.wrapping_add(k as u64),
            noise: request.noise,
            prior_steps: with_prior.then_some(settings.prior_steps),
            decoder_steps: settings.decoder_steps,
            super_res_steps: settings.super_res_steps,
            prior_guidance: with_prior.then_some(settings.prior_guidance),
            decoder_guidance: settings.decoder_guidance,
            device: self.backend.name(),
            dtype: self.backend.precision(),
            width: self.picture_size(),
            height: self.picture_size(),
        }
    }
}

impl Recipe {
    /// The request that makes this picture again.
    ///
    /// # Errors
    /// [`Error::Request`] for a variation: the recipe has its picture's name only. Read that picture and call
    /// [`Recipe::apply`] on [`Request::variation`].
    pub fn request(&self) -> Result<Request> {
        match &self.subject {
            Subject::Prompt(prompt) => Ok(self.apply(Request::new(prompt.clone()))),
            Subject::Image(name) => Err(Error::value("image", name, "the recipe has its name only, not its pixels")),
        }
    }

    /// The request with all settings of this recipe except what it is made from, and how many.
    pub fn apply(&self, request: Request) -> Request {
        let with_prior = matches!(request.task, Task::Prompts(_));
        Request {
            negative: self.negative.clone(),
            seed: self.seed,
            noise: self.noise,
            prior_steps: self.prior_steps.filter(|_| with_prior),
            decoder_steps: Some(self.decoder_steps),
            super_res_steps: Some(self.super_res_steps),
            prior_guidance: self.prior_guidance.filter(|_| with_prior),
            decoder_guidance: Some(self.decoder_guidance),
            ..request
        }
    }
}

#[cfg(feature = "png")]
impl Recipe {
    /// Reads the recipe that a PNG carries, or of a sheet those of all its pictures; never an empty list.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be read, is no PNG, carries no recipe, or a damaged one.
    pub fn read(path: impl AsRef<Path>) -> Result<Vec<Recipe>> {
        let path = path.as_ref();
        let refused = |why: String| Error::io(path, "read", std::io::Error::new(std::io::ErrorKind::InvalidData, why));
        let texts = image::read_texts(path)?;
        let text = texts.iter().find(|(keyword, _)| keyword == CHUNK);
        let (_, json) = text.ok_or_else(|| refused(format!("the picture has no settings (text chunk {CHUNK})")))?;
        let recipes = match json.trim_start().starts_with('[') {
            true => serde_json::from_str(json),
            false => serde_json::from_str(json).map(|recipe| vec![recipe]),
        };
        match recipes {
            Ok(recipes) if recipes.is_empty() => Err(refused(format!("text chunk {CHUNK}: an empty list"))),
            recipes => recipes.map_err(|e| refused(format!("text chunk {CHUNK}: {e}"))),
        }
    }

    /// Writes a picture with its recipe to `path`, as [`Image::write_png`] does; with several recipes it is a sheet.
    ///
    /// # Errors
    /// As for [`Image::write_png`].
    pub fn write_png(recipes: &[Recipe], image: &Image, path: impl AsRef<Path>) -> Result<()> {
        let texts = Recipe::texts(recipes);
        let texts: Vec<(&str, &str)> = texts.iter().map(|(keyword, text)| (*keyword, text.as_str())).collect();
        image.write_png(path, &texts)
    }

    /// The text chunks of a picture's PNG, or of a sheet's: `parameters`, which image tools read, and all settings as JSON
    /// under `unclip`.
    pub fn texts(recipes: &[Recipe]) -> Vec<(&'static str, String)> {
        let json = match recipes {
            [one] => serde_json::to_string(one),
            all => serde_json::to_string(all),
        };
        let json = json.expect("strings and finite numbers under fixed names");
        recipes
            .first()
            .map(|first| ("parameters", first.parameters(recipes).text()))
            .into_iter()
            .chain([(CHUNK, json)])
            .collect()
    }

    /// The settings as image tools show them, with the prompts of all pictures on the sheet.
    fn parameters(&self, sheet: &[Recipe]) -> image::Parameters {
        let mut fields = vec![
            ("Steps", self.decoder_steps.to_string()),
            ("Sampler", "unCLIP".to_owned()),
            ("CFG scale", self.decoder_guidance.to_string()),
            ("Seed", self.seed.to_string()),
            ("Size", format!("{}x{}", self.width, self.height)),
            ("Model", self.model.clone()),
        ];
        if let Some(steps) = self.prior_steps {
            fields.push(("Prior steps", steps.to_string()));
        }
        if let Some(scale) = self.prior_guidance {
            fields.push(("Prior guidance", scale.to_string()));
        }
        let mut subjects: Vec<&str> = sheet.iter().map(|recipe| recipe.subject.text()).collect();
        subjects.dedup();
        let prompt = match &self.subject {
            Subject::Prompt(_) => subjects.join("\n"),
            Subject::Image(_) => {
                fields.push(("Variation of", subjects.join(" ")));
                String::new()
            }
        };
        fields.push(("Super-resolution steps", self.super_res_steps.to_string()));
        fields.push(("Noise", self.noise.name().to_owned()));
        fields.push(("Version", self.version.clone()));
        let negative = self.negative.clone().map(Subject::Prompt);
        image::Parameters {
            prompt,
            negative_prompt: negative.as_ref().map_or("", Subject::text).to_owned(),
            fields: fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
        }
    }
}
