//! Text to pictures, and pictures to variations: which plan runs when, how often, and with what inputs.
//!
//! A [`Pipeline`] is a checkpoint, its configurations and a back end. [`Pipeline::run`] takes a [`Request`] through
//! the stages in order, from prompts by way of the prior, from given pictures by way of the image encoder; a stage
//! opens its component's weights, records and compiles its plan, runs it and lets go of everything before the next
//! stage begins, so that no more than one network is in memory.
//!
//! Pictures do not influence one another: each has a noise source of its own (picture `k` of a request has seed
//! `seed + k`), and back ends compute each row of a batch as if it were alone. So they are worked on in groups as
//! large as memory allows, and a group's size shows in nothing but time.

mod recording;
mod request;
mod sampling;
mod stages;
mod trace;
mod vision;

pub use request::{Defaults, Event, Observer, Prompt, Request, Stage};
pub use trace::Trace;

use crate::backend::Backend;
use crate::diffusion::{Schedule, SchedulerConfig};
use crate::error::{Error, Result};
use crate::image::Image;
use crate::model::text_encoder::Tokens;
use crate::model::{prior, text_encoder, text_proj, unet};
use crate::noise::NoiseSource;
use crate::plan::Plan;
#[cfg(feature = "tokenizer")]
use crate::tokenizer::Tokenizer;
use crate::weights::Checkpoint;
use vision::Vision;

/// Bytes of intermediate values that a group of pictures may need, unless the caller says otherwise.
const MEMORY: u64 = 2 << 30;

/// A checkpoint that is ready to make pictures.
pub struct Pipeline {
    checkpoint: Checkpoint,
    backend: Box<dyn Backend>,
    configs: Configs,
    defaults: Defaults,
    memory: u64,
    #[cfg(feature = "tokenizer")]
    tokenizer: Tokenizer,
}

/// The typed configurations of all components, read and checked before any weight is touched.
struct Configs {
    text_encoder: text_encoder::Config,
    /// Checkpoints for variations alone have none.
    prior: Option<Prior>,
    text_proj: text_proj::Config,
    decoder: unet::Config,
    super_res_first: unet::Config,
    super_res_last: unet::Config,
    decoder_scheduler: SchedulerConfig,
    super_res_scheduler: SchedulerConfig,
}

/// What leads from text to an image embedding.
struct Prior {
    config: prior::Config,
    scheduler: SchedulerConfig,
}

impl Pipeline {
    /// Reads a checkpoint's configurations and tokenizer; weights are opened when their stage begins.
    ///
    /// # Errors
    /// A component is missing, or a configuration is damaged, not implemented, or contradicts another.
    pub fn open(checkpoint: Checkpoint, backend: Box<dyn Backend>) -> Result<Pipeline> {
        let always = ["text_encoder", "text_proj", "decoder", "super_res_first", "super_res_last"];
        let from = if checkpoint.is_for_variations() { &Vision::FOLDERS[..] } else { &["prior"] };
        checkpoint.require(&[&always, from].concat())?;
        let scheduler = |name: &str| {
            let file = format!("{name}/scheduler_config.json");
            SchedulerConfig::from_json(&checkpoint.path().join(&file), &checkpoint.read(&file)?)
        };
        let prior = || -> Result<Prior> {
            Ok(Prior { config: checkpoint.json("prior/config.json")?, scheduler: scheduler("prior_scheduler")? })
        };
        let configs = Configs {
            text_encoder: checkpoint.json("text_encoder/config.json")?,
            prior: checkpoint.has("prior").then(prior).transpose()?,
            text_proj: checkpoint.json("text_proj/config.json")?,
            decoder: checkpoint.json("decoder/config.json")?,
            super_res_first: checkpoint.json("super_res_first/config.json")?,
            super_res_last: checkpoint.json("super_res_last/config.json")?,
            decoder_scheduler: scheduler("decoder_scheduler")?,
            super_res_scheduler: scheduler("super_res_scheduler")?,
        };
        configs.check(&checkpoint)?;
        Ok(Pipeline {
            #[cfg(feature = "tokenizer")]
            tokenizer: Tokenizer::from_checkpoint(&checkpoint, configs.tokens())?,
            defaults: Defaults::read(&checkpoint)?,
            checkpoint,
            backend,
            configs,
            memory: MEMORY,
        })
    }

    /// Limits the memory for intermediate values of pictures that are worked on together. One picture is always
    /// possible.
    pub fn memory_limit(mut self, bytes: u64) -> Pipeline {
        self.memory = bytes;
        self
    }

    /// The settings that the checkpoint asks for, where a request leaves them open.
    pub fn defaults(&self) -> &Defaults {
        &self.defaults
    }

    /// The checkpoint.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Side of the finished picture in pixels.
    pub fn picture_size(&self) -> usize {
        self.configs.super_res_first.sample_size.unwrap_or(0)
    }

    /// Makes the request's pictures, prompts or given pictures outer and pictures per prompt inner.
    ///
    /// `observer` is called when stages begin and end and after every step; it can end the run by answering
    /// [`ControlFlow::Break`](std::ops::ControlFlow::Break).
    ///
    /// # Errors
    /// [`Error::Request`] for settings out of range, [`Error::Cancelled`] if the observer asked to stop, and
    /// whatever is wrong with the checkpoint's weights or the device.
    pub fn run(&self, request: &Request, observer: &mut Observer<'_>) -> Result<Vec<Image>> {
        self.run_traced(request, observer, &mut Trace::off())
    }

    /// As [`Pipeline::run`], and keeps the intermediate tensors that `trace` asks for. With a trace that is on, all
    /// pictures are worked on together, whatever memory that takes.
    ///
    /// # Errors
    /// As for [`Pipeline::run`].
    pub fn run_traced(&self, request: &Request, observer: &mut Observer<'_>, trace: &mut Trace) -> Result<Vec<Image>> {
        request.check()?;
        let settings = request.settings(&self.defaults);
        settings.check()?;
        let source = match &request.images[..] {
            [] => Source::Text(self.configs.prior(&self.checkpoint)?),
            _ => Source::Images(Vision::read(self)?),
        };
        self.configs.check_steps(&settings)?;
        let guided = request.guided(&settings);
        let pictures = request.pictures();
        let noise = (0..pictures as u64).map(|k| NoiseSource::new(request.noise, request.seed.wrapping_add(k)));
        let (noise, noise_source) = (noise.collect(), request.noise.into());
        let mut session = stages::Session { pipeline: self, settings, guided, observer, trace, noise, noise_source };
        let text = session.text(request)?;
        let image_embeds = match &source {
            Source::Text(prior) => session.prior(prior, &text)?,
            Source::Images(vision) => session.encode_images(vision, &request.images, request.pictures_per_prompt)?,
        };
        let conditions = session.text_proj(&text, &image_embeds)?;
        let small = session.decoder(&conditions)?;
        session.super_res(&small)
    }

    /// The plan of one stage as the request would run it, for listings. The plan is for all pictures together.
    ///
    /// # Errors
    /// As for [`Pipeline::run`].
    pub fn plan(&self, stage: Stage, pictures: usize, guided: bool) -> Result<Plan> {
        stages::plan(self, stage, pictures, guided)
    }

    /// The component's tensors that the stage's plan does not ask for, by name. Position numbers that old exports store
    /// are known and left out.
    ///
    /// # Errors
    /// As for [`Pipeline::plan`].
    pub fn unused_tensors(&self, stage: Stage) -> Result<Vec<String>> {
        let plan = self.plan(stage, 1, true)?;
        Ok(stages::unused(&self.checkpoint.component(stage.name())?, &plan))
    }

    /// A prompt's tokens, and a warning if a part had to be left out.
    fn tokens(&self, prompt: &Prompt) -> Result<Tokens> {
        let length = self.configs.tokens();
        let tokens = match prompt {
            #[cfg(feature = "tokenizer")]
            Prompt::Text(text) => self.tokenizer.encode(text)?,
            Prompt::Tokens(tokens) => tokens.clone(),
        };
        if tokens.ids.len() != length || tokens.mask.len() != length {
            let reason =
                format!("{} ids and {} mask entries; both must be {length}", tokens.ids.len(), tokens.mask.len());
            return Err(Error::request("tokens", reason));
        }
        let vocabulary = self.configs.text_encoder.vocab_size;
        match tokens.ids.iter().find(|&&id| id as usize >= vocabulary) {
            Some(id) => {
                Err(Error::request("prompt", format!("token {id} lies beyond the model's vocabulary of {vocabulary}")))
            }
            None => Ok(tokens),
        }
    }
}

/// Where a request's image embeddings come from.
enum Source<'a> {
    Text(&'a Prior),
    Images(Vision),
}

impl Configs {
    /// Tokens of a prompt.
    fn tokens(&self) -> usize {
        self.text_encoder.max_position_embeddings
    }

    /// The prior, for whoever has prompts.
    fn prior(&self, checkpoint: &Checkpoint) -> Result<&Prior> {
        checkpoint.require_for("pictures from prompts", &["prior"])?;
        Ok(self.prior.as_ref().expect("a checkpoint that has it was opened with it"))
    }

    /// Step counts must fit their schedules; found out before any stage has done its work.
    fn check_steps(&self, settings: &Defaults) -> Result<()> {
        let prior = self.prior.as_ref().map(|prior| (&prior.scheduler, "prior steps", settings.prior_steps));
        let stages = [
            (&self.decoder_scheduler, "decoder steps", settings.decoder_steps),
            (&self.super_res_scheduler, "super-resolution steps", settings.super_res_steps),
        ];
        let mut stages = prior.into_iter().chain(stages);
        stages.try_for_each(|(config, name, steps)| Schedule::new(config).timesteps(name, steps).map(drop))
    }

    /// Sizes that two components must agree on.
    fn check(&self, checkpoint: &Checkpoint) -> Result<()> {
        let agree = |component: &str, key: &str, found: usize, other: &str, wanted: usize| {
            agree(checkpoint, component, key, found, other, wanted)
        };
        let (dim, of_dim) = (self.text_proj.clip_embeddings_dim, "the text projection's clip_embeddings_dim");
        if let Some(Prior { config, .. }) = &self.prior {
            let of_tokens = "the text encoder's max_position_embeddings";
            agree("prior", "num_embeddings", config.num_embeddings, of_tokens, self.tokens())?;
            agree("prior", "embedding_dim", config.embedding_dim, of_dim, dim)?;
        }
        agree("text_encoder", "projection_dim", self.text_encoder.projection_dim, of_dim, dim)?;
        agree("text_encoder", "hidden_size", self.text_encoder.hidden_size, of_dim, dim)?;
        let cross = self.decoder.cross_attention_dim.unwrap_or(0);
        let own = self.text_proj.cross_attention_dim;
        agree("text_proj", "cross_attention_dim", own, "the decoder's cross_attention_dim", cross)?;
        let time = self.decoder.time_embedding();
        let own = self.text_proj.time_embed_dim;
        agree("text_proj", "time_embed_dim", own, "the width of the decoder's time embedding", time)?;
        agree("super_res_first", "out_channels", self.super_res_first.out_channels, "the number of colours", 3)?;
        agree("super_res_last", "out_channels", self.super_res_last.out_channels, "the number of colours", 3)?;
        agree("decoder", "in_channels", self.decoder.in_channels, "the number of colours", 3)
    }
}

/// Refuses a component's size that is another than that of what it works with.
fn agree(checkpoint: &Checkpoint, component: &str, key: &str, found: usize, other: &str, wanted: usize) -> Result<()> {
    if found == wanted {
        return Ok(());
    }
    let path = checkpoint.path().join(component).join("config.json");
    Err(Error::config(path, format!("{key} is {found}, but {other} is {wanted}")))
}
