//! What is asked of a pipeline.

use super::blend::Blend;
use super::edit::Edit;
use super::invert::Inversion;
use crate::diffusion::Sampler;
use crate::error::{Error, Result};
use crate::image::Image;
use crate::model::text_encoder::Tokens;
use crate::noise::{Generators, NoiseDtype, NoiseKind, NoiseSource};
use crate::weights::Checkpoint;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Most pictures of one request.
const MOST_PICTURES: usize = 65_536;

/// Text, or tokens that the caller made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
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

/// What a request asks for.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Task {
    /// Pictures of prompts.
    Prompts(Vec<Prompt>),
    /// Variations of pictures: the image encoder takes the place of the prior, and the text is empty.
    Variations(Vec<Image>),
    /// Pictures of mixtures of texts and pictures.
    Blend(Box<Blend>),
}

/// Pictures to be made.
#[derive(Clone, Debug)]
pub struct Request {
    /// What they show.
    pub task: Task,
    /// What they should not show: takes the place of the empty prompt in guidance. Without a tokenizer it has to be
    /// given, and is the empty prompt of variations.
    pub negative: Option<Prompt>,
    /// Pictures for each prompt or each picture that is varied.
    pub pictures_per_prompt: usize,
    /// Picture `k` of the request is made from seed `seed + k`, or all are from this one, as [`Generators`] says.
    pub seed: u64,
    /// Which generator turns the seed into noise.
    pub noise: NoiseKind,
    /// The type of its draws: that in which the original pipeline ran, whatever type is computed in here.
    pub noise_dtype: NoiseDtype,
    /// Whether every picture has a generator, or all have one.
    pub generator: Generators,
    /// Steps of the prior, from 2; `None`, here and below, is the checkpoint's default.
    pub prior_steps: Option<usize>,
    /// Steps of the decoder, from 2.
    pub decoder_steps: Option<usize>,
    /// Steps of super-resolution, from 2; the last one is the second network's.
    pub super_res_steps: Option<usize>,
    /// Guidance scale of the prior.
    pub prior_guidance: Option<f32>,
    /// Share of the prior's steps that is taken from a picture to vary that has a text beside it, above 0 and at most 1, for
    /// checkpoints whose prior begins from pictures.
    pub prior_strength: Option<f32>,
    /// Guidance scale of the decoder. Guidance is off if the scales, of variations this one alone, are at most 1.
    pub decoder_guidance: Option<f32>,
    /// Width and height of the pictures in pixels, for checkpoints that leave the choice.
    pub size: Option<[usize; 2]>,
    /// What is said of variations, for checkpoints whose decoder sees a text or whose prior begins from pictures; without it
    /// nothing.
    pub text: Option<Prompt>,
    /// Noise that is added to the image embedding, for checkpoints whose decoder is told: a timestep, from 0.
    pub noise_level: Option<usize>,
    /// What takes the decoder's steps, for checkpoints that leave the choice.
    pub sampler: Option<Sampler>,
    /// A picture that the pictures are made from.
    pub edit: Option<Edit>,
    /// A picture of what is where, such as a map of depths, for checkpoints that see one.
    pub hint: Option<Image>,
    /// What the decoder begins from instead of noise: it then goes down the way on which this was found, without noise.
    pub inversion: Option<Arc<Inversion>>,
}

impl Request {
    /// One picture of a prompt with seed 0 and the checkpoint's defaults.
    pub fn new(prompt: impl Into<Prompt>) -> Request {
        Request::of(Task::Prompts(vec![prompt.into()]))
    }

    /// One variation of a picture with seed 0 and the checkpoint's defaults.
    pub fn variation(image: Image) -> Request {
        Request::of(Task::Variations(vec![image]))
    }

    /// One picture for each prompt or picture of a task, with seed 0 and the checkpoint's defaults.
    pub fn of(task: Task) -> Request {
        Request {
            task,
            negative: None,
            pictures_per_prompt: 1,
            seed: 0,
            noise: NoiseKind::Torch,
            noise_dtype: NoiseDtype::F32,
            generator: Generators::Each,
            prior_steps: None,
            decoder_steps: None,
            super_res_steps: None,
            prior_guidance: None,
            prior_strength: None,
            decoder_guidance: None,
            size: None,
            text: None,
            noise_level: None,
            sampler: None,
            edit: None,
            hint: None,
            inversion: None,
        }
    }

    /// Number of prompts or given pictures.
    pub fn subjects(&self) -> usize {
        match &self.task {
            Task::Prompts(prompts) => prompts.len(),
            Task::Variations(images) => images.len(),
            Task::Blend(blend) => blend.weights.len(),
        }
    }

    /// Whether the prior makes image embeddings of texts alone.
    pub(super) fn has_prior(&self) -> bool {
        match &self.task {
            Task::Prompts(_) => true,
            Task::Variations(_) => false,
            Task::Blend(blend) => blend.prompts().next().is_some(),
        }
    }

    /// Number of pictures asked for.
    pub fn pictures(&self) -> usize {
        self.subjects() * self.pictures_per_prompt
    }

    /// The noise of picture `k` of a request that was [checked](Request::check), before its first draw.
    pub fn noise_of(&self, k: usize) -> NoiseSource {
        let of_seed = |seed| NoiseSource::new(self.noise, seed).in_type(self.noise_dtype);
        let source = of_seed(self.seed_of(k));
        let shares = match &self.task {
            Task::Blend(blend) => blend.noise.as_ref(),
            _ => None,
        };
        if let Some(shares) = shares {
            let other = of_seed(self.seed_of(k).wrapping_add(self.pictures_per_prompt as u64));
            return NoiseSource::between([source, other], shares[k / self.pictures_per_prompt]);
        }
        match self.generator_of(k) {
            Generators::Part { first, of } => source.share(first as u64, of as u64),
            Generators::Each | Generators::One => source,
        }
    }

    /// The seed of the generator of picture `k`.
    pub(super) fn seed_of(&self, k: usize) -> u64 {
        match (&self.task, self.generator) {
            // The mixtures of a blend differ in nothing but what is mixed.
            (Task::Blend(_), _) => self.seed.wrapping_add((k % self.pictures_per_prompt) as u64),
            (_, Generators::Each) => self.seed.wrapping_add(k as u64),
            _ => self.seed,
        }
    }

    /// What makes picture `k` again in a request of its own.
    pub(super) fn generator_of(&self, k: usize) -> Generators {
        match (self.generator, self.pictures()) {
            (Generators::One, of) if of > 1 => Generators::Part { first: k, of },
            (Generators::Part { first, of }, _) => Generators::Part { first: first + k, of },
            (alone, _) => alone,
        }
    }

    /// Whether the networks see an unconditional half: as in diffusers, for prior and decoder if either asks for it.
    pub fn guided(&self, settings: &Settings) -> bool {
        settings.decoder_guidance > 1.0 || self.has_prior() && settings.prior_guidance > 1.0
    }

    /// The request's settings, with the defaults where it leaves them open.
    pub fn settings(&self, defaults: &Settings) -> Settings {
        Settings {
            prior_steps: self.prior_steps.unwrap_or(defaults.prior_steps),
            decoder_steps: self.decoder_steps.unwrap_or(defaults.decoder_steps),
            super_res_steps: self.super_res_steps.unwrap_or(defaults.super_res_steps),
            prior_guidance: self.prior_guidance.unwrap_or(defaults.prior_guidance),
            decoder_guidance: self.decoder_guidance.unwrap_or(defaults.decoder_guidance),
            noise_level: self.noise_level.unwrap_or(defaults.noise_level),
            sampler: self.sampler.or(defaults.sampler),
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
        match &self.task {
            Task::Prompts(_) => {}
            Task::Variations(images) => images.iter().try_for_each(Image::check)?,
            Task::Blend(blend) => blend.check()?,
        }
        let is_said = matches!(self.task, Task::Variations(_)) && self.text.is_some();
        if let Some(strength) = self.prior_strength {
            if !is_said {
                let reason = "is of use with a picture and a prompt that changes it";
                return Err(Error::value("prior strength", strength, reason));
            }
            if !(strength > 0.0 && strength <= 1.0) {
                return Err(Error::value("prior strength", strength, "must be above 0 and at most 1"));
            }
        }
        // With a picture and a prompt the family knows whether its prior sees both.
        if !self.has_prior() && !is_said {
            let of_prior =
                [("prior steps", self.prior_steps.is_some()), ("prior guidance", self.prior_guidance.is_some())];
            if let Some((what, _)) = of_prior.into_iter().find(|(_, given)| *given) {
                return Err(Error::request(what, "there is no prompt, and pictures need no prior"));
            }
        }
        self.edit.iter().try_for_each(Edit::check)?;
        self.hint.iter().try_for_each(Image::check)?;
        if self.inversion.is_some() {
            let steps = self.decoder_steps.map(|_| "decoder steps").or(self.edit.as_ref().map(|_| "edit"));
            if let Some(what) = steps {
                return Err(Error::request(
                    what,
                    "an inversion says itself how the decoder begins and which steps it takes",
                ));
            }
        }
        if self.pictures_per_prompt == 0 {
            return Err(Error::value("pictures per prompt", 0, "must be at least 1"));
        }
        let pictures = self.subjects().checked_mul(self.pictures_per_prompt);
        if pictures.is_none_or(|n| n > MOST_PICTURES) {
            let most = format!("must not make more than {MOST_PICTURES} pictures in all");
            return Err(Error::value("pictures per prompt", self.pictures_per_prompt, most));
        }
        if matches!(self.task, Task::Blend(_)) && self.generator != Generators::Each {
            return Err(Error::value("generator", self.generator, "the pictures of a blend have a generator each"));
        }
        self.check_noise()
    }

    /// Refuses settings of decoders that a checkpoint's does not know; `known` are those that it does.
    pub(super) fn check_decoder_settings(&self, known: &[&str]) -> Result<()> {
        let of_pictures = matches!(self.task, Task::Variations(_));
        let of_prior = [
            ("prior steps", self.prior_steps.is_some()),
            ("prior guidance", self.prior_guidance.is_some()),
            ("prior strength", self.prior_strength.is_some()),
        ];
        let idle = of_prior.into_iter().find(|(_, is_given)| *is_given && of_pictures && !known.contains(&"prior"));
        if let Some((what, _)) = idle {
            return Err(Error::request(what, "the prior of this checkpoint does not see pictures"));
        }
        let all = [
            ("noise level", self.noise_level.is_some(), "no noise is added to this checkpoint's image embeddings"),
            ("sampler", self.sampler.is_some(), "this checkpoint has one only"),
            (
                "prompt",
                self.text.is_some(),
                "cannot be combined with a picture to vary: a variation starts from the picture's embedding",
            ),
        ];
        match all.into_iter().find(|(what, is_given, _)| *is_given && !known.contains(what)) {
            Some((what, _, reason)) => Err(Error::request(what, reason)),
            None => Ok(()),
        }
    }

    /// Refuses noise that nobody draws.
    fn check_noise(&self) -> Result<()> {
        if let Generators::Part { first, of } = self.generator {
            let refused = |reason| Err(Error::value("generator", self.generator, reason));
            let (asked, left) = (self.pictures(), of.saturating_sub(first));
            if of > MOST_PICTURES {
                return refused(format!("a run has at most {MOST_PICTURES} pictures"));
            }
            if asked > left {
                return refused(format!("{asked} pictures are asked for, but that run has {left} from there on"));
            }
        }
        if self.noise != NoiseKind::Philox {
            return Ok(());
        }
        if self.noise_dtype != NoiseDtype::F32 {
            let reason = "philox draws in f32; torch, torch-2.11 and torch-cuda draw in other types, too";
            return Err(Error::value("noise type", self.noise_dtype, reason));
        }
        if self.generator != Generators::Each {
            let reason = "philox has a generator for each picture; torch, torch-2.11 and torch-cuda may have one";
            return Err(Error::value("generator", self.generator, reason));
        }
        Ok(())
    }
}

/// Steps and guidance scales. A checkpoint may name its own in `model_index.json` under `_engine_defaults`; others
/// are run as Karlo is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
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
    /// Noise that is added to the image embedding, where the decoder is told: a timestep.
    pub noise_level: usize,
    /// What takes the decoder's steps, if not what its scheduler says.
    pub sampler: Option<Sampler>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            prior_steps: 25,
            decoder_steps: 25,
            super_res_steps: 7,
            prior_guidance: 4.0,
            decoder_guidance: 8.0,
            noise_level: 0,
            sampler: None,
        }
    }
}

impl Settings {
    /// The settings that a checkpoint names, and those of its family for the others.
    pub(super) fn read(checkpoint: &Checkpoint, family: Settings) -> Result<Settings> {
        #[derive(Deserialize)]
        struct Index {
            #[serde(default, rename = "_engine_defaults")]
            defaults: Own,
        }
        #[derive(Default, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        struct Own {
            prior_steps: Option<usize>,
            decoder_steps: Option<usize>,
            super_res_steps: Option<usize>,
            prior_guidance: Option<f32>,
            decoder_guidance: Option<f32>,
        }
        let own = checkpoint.json::<Index>("model_index.json")?.defaults;
        Ok(Settings {
            prior_steps: own.prior_steps.unwrap_or(family.prior_steps),
            decoder_steps: own.decoder_steps.unwrap_or(family.decoder_steps),
            super_res_steps: own.super_res_steps.unwrap_or(family.super_res_steps),
            prior_guidance: own.prior_guidance.unwrap_or(family.prior_guidance),
            decoder_guidance: own.decoder_guidance.unwrap_or(family.decoder_guidance),
            ..family
        })
    }

    /// Guidance scales must be finite.
    pub(super) fn check(&self) -> Result<()> {
        for (what, scale) in [("prior guidance", self.prior_guidance), ("decoder guidance", self.decoder_guidance)] {
            if !scale.is_finite() {
                return Err(Error::value(what, scale, "must be finite"));
            }
        }
        Ok(())
    }
}
