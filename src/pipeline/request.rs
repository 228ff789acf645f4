//! What is asked of a pipeline, and what it reports meanwhile.

use crate::error::{Error, Result};
use crate::image::Image;
use crate::model::text_encoder::Tokens;
use crate::noise::NoiseKind;
use crate::weights::Checkpoint;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::ControlFlow;
use std::time::Duration;

/// Most pictures of one request.
const MOST_PICTURES: usize = 65_536;

/// Text, or tokens that the caller made.
#[derive(Clone, Debug)]
pub enum Prompt {
    /// Words; encoded by the checkpoint's tokenizer.
    #[cfg(feature = "tokenizer")]
    Text(String),
    /// Token ids and mask of the model's length.
    Tokens(Tokens),
}

#[cfg(feature = "tokenizer")]
impl From<&str> for Prompt {
    fn from(text: &str) -> Prompt {
        Prompt::Text(text.to_owned())
    }
}

/// Pictures to be made.
#[derive(Clone, Debug)]
pub struct Request {
    /// One or more prompts, or none where there are `images`.
    pub prompts: Vec<Prompt>,
    /// Pictures of which variations are made, instead of prompts: the image encoder takes the place of the prior.
    pub images: Vec<Image>,
    /// What the pictures should not be: stands where the empty prompt otherwise does in guidance. Without a tokenizer
    /// it has to be given, and is the empty prompt of variations.
    pub negative: Option<Prompt>,
    /// Pictures for each prompt or each of the `images`.
    pub pictures_per_prompt: usize,
    /// Picture `k` of the request is made from seed `seed + k`.
    pub seed: u64,
    /// Which generator turns the seed into noise.
    pub noise: NoiseKind,
    /// Steps of the prior, from 2; `None`, here and below, is the checkpoint's default.
    pub prior_steps: Option<usize>,
    /// Steps of the decoder, from 2.
    pub decoder_steps: Option<usize>,
    /// Steps of super-resolution, from 2; the last one is the second network's.
    pub super_res_steps: Option<usize>,
    /// Guidance scale of the prior.
    pub prior_guidance: Option<f32>,
    /// Guidance scale of the decoder. Guidance is off if the scales, of variations this one alone, are at most 1.
    pub decoder_guidance: Option<f32>,
}

impl Request {
    /// One picture of a prompt with seed 0 and the checkpoint's defaults.
    pub fn new(prompt: impl Into<Prompt>) -> Request {
        Request { prompts: vec![prompt.into()], ..Request::empty() }
    }

    /// One variation of a picture with seed 0 and the checkpoint's defaults.
    pub fn variation(image: Image) -> Request {
        Request { images: vec![image], ..Request::empty() }
    }

    fn empty() -> Request {
        Request {
            prompts: Vec::new(),
            images: Vec::new(),
            negative: None,
            pictures_per_prompt: 1,
            seed: 0,
            noise: NoiseKind::Torch,
            prior_steps: None,
            decoder_steps: None,
            super_res_steps: None,
            prior_guidance: None,
            decoder_guidance: None,
        }
    }

    /// Number of prompts or given pictures.
    fn subjects(&self) -> usize {
        self.prompts.len() + self.images.len()
    }

    /// Number of pictures asked for.
    pub fn pictures(&self) -> usize {
        self.subjects() * self.pictures_per_prompt
    }

    /// Whether the networks see an unconditional half: as in diffusers, for prior and decoder if either asks for it.
    pub fn guided(&self, settings: &Defaults) -> bool {
        settings.decoder_guidance > 1.0 || self.images.is_empty() && settings.prior_guidance > 1.0
    }

    /// The request's settings, with the defaults where it leaves them open.
    pub fn settings(&self, defaults: &Defaults) -> Defaults {
        Defaults {
            prior_steps: self.prior_steps.unwrap_or(defaults.prior_steps),
            decoder_steps: self.decoder_steps.unwrap_or(defaults.decoder_steps),
            super_res_steps: self.super_res_steps.unwrap_or(defaults.super_res_steps),
            prior_guidance: self.prior_guidance.unwrap_or(defaults.prior_guidance),
            decoder_guidance: self.decoder_guidance.unwrap_or(defaults.decoder_guidance),
        }
    }

    /// Refuses what no checkpoint could run; a run checks steps and guidance, too, before it loads anything.
    ///
    /// # Errors
    /// [`Error::Request`] for a request of no pictures or of too many, or of variations and what they have no use for.
    pub fn check(&self) -> Result<()> {
        if self.subjects() == 0 {
            return Err(Error::request("prompt", "there is none; at least one, or an image, is needed"));
        }
        if !self.images.is_empty() {
            let idle = [
                ("prompt", !self.prompts.is_empty()),
                ("prior steps", self.prior_steps.is_some()),
                ("prior guidance", self.prior_guidance.is_some()),
            ];
            if let Some((what, _)) = idle.into_iter().find(|(_, given)| *given) {
                return Err(Error::request(what, "not with an image; its variations have neither prompt nor prior"));
            }
        }
        if self.pictures_per_prompt == 0 {
            return Err(Error::request("pictures per prompt", "0; it has to be at least 1"));
        }
        self.images.iter().try_for_each(Image::check)?;
        let pictures = self.subjects().checked_mul(self.pictures_per_prompt);
        if pictures.is_none_or(|n| n > MOST_PICTURES) {
            return Err(Error::request("pictures per prompt", format!("more than {MOST_PICTURES} pictures in all")));
        }
        Ok(())
    }
}

/// Steps and guidance scales. A checkpoint may name its own in `model_index.json` under `_engine_defaults`; others
/// are run as Karlo is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Defaults {
    /// Steps of the prior.
    pub prior_steps: usize,
    /// Steps of the decoder.
    pub decoder_steps: usize,
    /// Steps of super-resolution.
    pub super_res_steps: usize,
    /// Guidance scale of the prior.
    pub prior_guidance: f32,
    /// Guidance scale of the decoder.
    pub decoder_guidance: f32,
}

impl Default for Defaults {
    fn default() -> Self {
        Defaults { prior_steps: 25, decoder_steps: 25, super_res_steps: 7, prior_guidance: 4.0, decoder_guidance: 8.0 }
    }
}

impl Defaults {
    pub(super) fn read(checkpoint: &Checkpoint) -> Result<Defaults> {
        #[derive(Deserialize)]
        struct Index {
            #[serde(default, rename = "_engine_defaults")]
            defaults: Defaults,
        }
        Ok(checkpoint.json::<Index>("model_index.json")?.defaults)
    }

    /// Guidance scales must be numbers.
    pub(super) fn check(&self) -> Result<()> {
        for (what, scale) in [("prior guidance", self.prior_guidance), ("decoder guidance", self.decoder_guidance)] {
            if !scale.is_finite() {
                return Err(Error::request(what, format!("{scale}; it has to be a finite number")));
            }
        }
        Ok(())
    }
}

/// A part of the way from text, or from a picture, to picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // the checkpoint's own names
pub enum Stage {
    TextEncoder,
    Prior,
    ImageEncoder,
    TextProj,
    Decoder,
    SuperResFirst,
    SuperResLast,
}

impl Stage {
    /// All stages in the order in which they run; prompts pass by the image encoder, and given pictures by the prior.
    pub const ALL: [Stage; 7] = [
        Stage::TextEncoder,
        Stage::Prior,
        Stage::ImageEncoder,
        Stage::TextProj,
        Stage::Decoder,
        Stage::SuperResFirst,
        Stage::SuperResLast,
    ];

    /// The checkpoint folder that the stage runs.
    pub fn name(self) -> &'static str {
        match self {
            Stage::TextEncoder => "text_encoder",
            Stage::Prior => "prior",
            Stage::ImageEncoder => "image_encoder",
            Stage::TextProj => "text_proj",
            Stage::Decoder => "decoder",
            Stage::SuperResFirst => "super_res_first",
            Stage::SuperResLast => "super_res_last",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What happens during a run, in order.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// Something that the user should know, in one line.
    Warning(&'a str),
    /// A stage begins to load its weights.
    Begin {
        /// Which one.
        stage: Stage,
        /// How many steps it will report; 0 for a stage without a loop.
        steps: usize,
    },
    /// The weights are loaded, and the first step begins.
    Loaded {
        /// Which one.
        stage: Stage,
        /// Since the stage began.
        elapsed: Duration,
    },
    /// One step is done.
    Step {
        /// Which one.
        stage: Stage,
        /// Steps done so far.
        done: usize,
        /// Steps in all.
        steps: usize,
    },
    /// A stage is done and its weights are released.
    End {
        /// Which one.
        stage: Stage,
        /// Since the stage began.
        elapsed: Duration,
    },
}

/// What a caller of a pipeline sees; see [`Event`].
pub type Observer<'a> = dyn FnMut(Event<'_>) -> ControlFlow<()> + 'a;

/// Passes an event on; the observer's wish to stop becomes an error.
pub(super) fn report(observer: &mut Observer<'_>, event: Event<'_>) -> Result<()> {
    match observer(event) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::Cancelled),
    }
}
