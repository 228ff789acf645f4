//! unCLIP in pixels: DALL-E 2's architecture as Karlo and the built-in model have it (Ramesh et al. 2022).
//!
//! | stage | what it makes |
//! | --- | --- |
//! | text encoder | an embedding and a state per token of each text |
//! | prior, or image encoder | an image embedding of the text, or of a picture |
//! | text projection | what the decoder attends to, and what is added to its time embedding |
//! | decoder | a small picture |
//! | super-resolution | the finished picture: one network for all steps but the last, another for the last |

mod single;
mod stages;
mod tiles;

use super::agree;
use super::blend::{self, Mix};
use super::edit;
use super::enlarge::Enlarge;
use super::event::Stage;
use super::family::{Embedding, Family, Kind, Painting, Shapes};
use super::invert::Inversion;
use super::parts::{Prior, Texts, Vision};
use super::request::{Request, Settings, Task};
use super::session::Session;
use crate::diffusion::{Schedule, SchedulerConfig};
use crate::error::{Error, Result};
use crate::image::Image;
use crate::model::{Sizes, decoder, super_res, text_proj, unet};
use crate::ops::Noise;
use crate::plan::{Plan, WeightSource};
use crate::weights::Checkpoint;
use crate::weights::config::Configured;
use std::sync::{Arc, OnceLock};

/// How the family's checkpoints are recognised; those of the second class are for variations alone and have no prior.
pub const KIND: Kind =
    Kind { classes: &["UnCLIPPipeline", "UnCLIPImageVariationPipeline"], of_prior: None, components, open };

/// The components of a checkpoint of this class, and those that it may have for another kind of request.
fn components(class: &str) -> [&'static [&'static str]; 2] {
    const OF_PROMPTS: &[&str] = &[
        "decoder",
        "decoder_scheduler",
        "prior",
        "prior_scheduler",
        "super_res_first",
        "super_res_last",
        "super_res_scheduler",
        "text_encoder",
        "text_proj",
        "tokenizer",
    ];
    const OF_PICTURES: &[&str] = &[
        "decoder",
        "decoder_scheduler",
        "feature_extractor",
        "image_encoder",
        "super_res_first",
        "super_res_last",
        "super_res_scheduler",
        "text_encoder",
        "text_proj",
        "tokenizer",
    ];
    if class == KIND.classes[1] { [OF_PICTURES, OF_PROMPTS] } else { [OF_PROMPTS, OF_PICTURES] }
}

pub const TEXT_ENCODER: Stage = Stage::new("text_encoder", "text encoder");
pub const PRIOR: Stage = Stage::new("prior", "prior");
pub const IMAGE_ENCODER: Stage = Stage::new("image_encoder", "image encoder");
pub const TEXT_PROJ: Stage = Stage::new("text_proj", "text projection");
pub const DECODER: Stage = Stage::new("decoder", "decoder");
pub const SUPER_RES_FIRST: Stage = Stage::new("super_res_first", "super-resolution");
pub const SUPER_RES_LAST: Stage = Stage::new("super_res_last", "super-resolution, last");

/// A checkpoint of the family: its configurations, read and checked before any weight is touched.
pub struct UnClip {
    checkpoint: Arc<Checkpoint>,
    defaults: Settings,
    texts: Texts,
    /// Checkpoints for variations alone have none.
    prior: Option<Prior>,
    /// Read when it is asked for: a checkpoint that lacks it still makes pictures from prompts.
    vision: OnceLock<Vision>,
    text_proj: Configured<text_proj::Config>,
    decoder: Configured<unet::Config>,
    super_res_first: Configured<unet::Config>,
    super_res_last: Configured<unet::Config>,
    decoder_scheduler: Configured<SchedulerConfig>,
    super_res_scheduler: Configured<SchedulerConfig>,
}

/// What a checkpoint that varies pictures has beside the decoder.
const OF_VISION: [&str; 2] = ["image_encoder", "feature_extractor"];

/// Reads and checks a checkpoint's configurations.
fn open(checkpoint: &Arc<Checkpoint>) -> Result<Box<dyn Family>> {
    let always = ["text_encoder", "text_proj", "decoder", "super_res_first", "super_res_last"];
    let from = if checkpoint.class_name() == KIND.classes[1] { &OF_VISION[..] } else { &["prior"] };
    checkpoint.require(&[&always, from].concat())?;
    let scheduler = |name: &str| checkpoint.config(&format!("{name}/scheduler_config.json"));
    let prior = || Prior::read(checkpoint, PRIOR, "prior_scheduler");
    let family = UnClip {
        prior: checkpoint.has("prior").then(prior).transpose()?,
        vision: OnceLock::new(),
        text_proj: checkpoint.config("text_proj/config.json")?,
        decoder: checkpoint.config("decoder/config.json")?,
        super_res_first: checkpoint.config("super_res_first/config.json")?,
        super_res_last: checkpoint.config("super_res_last/config.json")?,
        decoder_scheduler: scheduler("decoder_scheduler")?,
        super_res_scheduler: scheduler("super_res_scheduler")?,
        texts: Texts::read(checkpoint, TEXT_ENCODER, "tokenizer")?,
        defaults: Settings::read(checkpoint, Settings::default())?,
        checkpoint: checkpoint.clone(),
    };
    family.check()?;
    family.check_defaults()?;
    Ok(Box::new(family))
}

impl Family for UnClip {
    fn stages(&self) -> Vec<Stage> {
        vec![TEXT_ENCODER, PRIOR, IMAGE_ENCODER, TEXT_PROJ, DECODER, SUPER_RES_FIRST, SUPER_RES_LAST]
    }

    fn defaults(&self) -> &Settings {
        &self.defaults
    }

    fn warnings(&self) -> Vec<&str> {
        let prior = self.prior.iter().flat_map(|prior| [prior.config.warnings(), prior.scheduler.warnings()]);
        let vision = self.vision.get().into_iter().flat_map(Vision::warnings);
        let always = [
            self.texts.config.warnings(),
            self.text_proj.warnings(),
            self.decoder.warnings(),
            self.super_res_first.warnings(),
            self.super_res_last.warnings(),
            self.decoder_scheduler.warnings(),
            self.super_res_scheduler.warnings(),
        ];
        always.into_iter().chain(prior).flatten().chain(vision).map(String::as_str).collect()
    }

    fn picture_size(&self, _: &Request) -> [usize; 2] {
        [self.super_res_first.sample_size.unwrap_or(0); 2]
    }

    fn has_super_resolution(&self) -> bool {
        true
    }

    fn text_tower(&self) -> Result<&Texts> {
        Ok(&self.texts)
    }

    fn image_tower(&self) -> Result<&Vision> {
        self.checkpoint.require_for("embeddings of pictures", &OF_VISION)?;
        self.vision()
    }

    fn record(&self, stage: Stage, shapes: &Shapes, source: &dyn WeightSource) -> Result<Plan> {
        let &Shapes { batch, steps, guided, noise, .. } = shapes;
        let sizes = |scheduler: &SchedulerConfig, guided| -> Sizes {
            let rule = scheduler.rule(guided, noise);
            Sizes { pictures: batch, steps, rule }
        };
        let super_res = |config| {
            let sizes = sizes(&self.super_res_scheduler, false);
            let own = [self.decoder.sample_size.unwrap_or(0); 2];
            // Tiles of a picture that is enlarged alone have sizes of their own.
            let (small, size) = match shapes.size {
                [0, 0] => (own, [self.super_res_first.sample_size; 2]),
                tile => (tile, tile.map(|side| Some(side * self.times()))),
            };
            super_res::plan(stage.name(), config, source, &sizes, small, size)
        };
        match stage {
            TEXT_ENCODER => self.texts.record(source, batch),
            PRIOR => self.prior()?.record(source, shapes),
            IMAGE_ENCODER => self.vision()?.record(source, batch),
            TEXT_PROJ => text_proj::plan(&self.text_proj, source, batch, self.tokens(), guided),
            DECODER => {
                let context = self.tokens() + self.text_proj.clip_extra_context_tokens;
                decoder::plan(&self.decoder, source, &sizes(&self.decoder_scheduler, guided), context)
            }
            SUPER_RES_FIRST => super_res(&self.super_res_first),
            SUPER_RES_LAST => super_res(&self.super_res_last),
            _ => Err(Error::request("stage", format!("unCLIP has no stage {stage}"))),
        }
    }

    fn route(&self, request: &Request, settings: &Settings) -> Result<Vec<(Stage, Shapes)>> {
        request.check_decoder_settings(&[])?;
        let own = self.picture_size(request);
        if let Some([width, height]) = request.size.filter(|size| *size != own) {
            let reason = format!("this checkpoint makes pictures of {}x{} pixels only", own[0], own[1]);
            return Err(Error::value("size", format!("{width}x{height}"), reason));
        }
        if request.hint.is_some() {
            return Err(Error::request("hint", "the decoder of this checkpoint sees none"));
        }
        let own =
            [self.decoder.sample_size.unwrap_or(0), self.decoder.sample_size.unwrap_or(0), self.decoder.in_channels];
        if let Some(Inversion { shape, .. }) = request.inversion.as_deref().filter(|inversion| inversion.shape != own) {
            return Err(Error::value("inversion", format!("{shape:?}"), format!("the decoder's latents are {own:?}")));
        }
        let mut taken = [settings.decoder_steps, settings.super_res_steps];
        if let Some(edit) = &request.edit {
            let times = |steps: usize| 1 + (steps - 1) * edit.resample;
            let steps = settings.decoder_steps;
            let decoder = steps - edit::first_step(("strength", stages::strength(edit)), ("decoder steps", steps))?;
            taken = [times(decoder), if edit.mask.is_some() { times(taken[1]) } else { taken[1] }];
        }
        if let Some(inversion) = &request.inversion {
            taken[0] = inversion.timesteps.len();
        }
        let (guided, noise) = (request.guided(settings), Noise::from(&request.noise_of(0)));
        let (subjects, pictures) = (request.subjects(), request.pictures());
        let texts = subjects + usize::from(guided);
        let Settings { prior_steps, decoder_steps, super_res_steps, .. } = *settings;
        let mut route = Vec::new();
        let images = match &request.task {
            Task::Prompts(_) => 0,
            Task::Variations(images) => images.len(),
            Task::Blend(blend) => {
                blend.mix(Mix::Sphere)?;
                blend.pictures()
            }
        };
        if request.has_prior() {
            Schedule::new(&self.prior()?.scheduler).timesteps("prior steps", prior_steps)?;
            route.push((PRIOR, Shapes::sampling(pictures, prior_steps, guided, noise)));
        }
        if images > 0 {
            self.vision()?;
            route.push((IMAGE_ENCODER, Shapes::batch(images, false)));
        }
        Schedule::new(&self.decoder_scheduler).timesteps("decoder steps", decoder_steps)?;
        Schedule::new(&self.super_res_scheduler).timesteps("super-resolution steps", super_res_steps)?;
        route.insert(0, (TEXT_ENCODER, Shapes::batch(texts, false)));
        route.extend([
            (TEXT_PROJ, Shapes::batch(pictures, guided)),
            (DECODER, Shapes::sampling(pictures, taken[0], guided, noise)),
            (SUPER_RES_FIRST, Shapes::sampling(pictures, taken[1] - 1, false, noise)),
            (SUPER_RES_LAST, Shapes::sampling(pictures, 1, false, noise)),
        ]);
        Ok(route)
    }

    fn encode(&self, session: &mut Session<'_, '_>, request: &Request) -> Result<Vec<Embedding>> {
        self.encode_request(session, request)
    }

    fn embed(&self, session: &mut Session<'_, '_>, drafts: &mut [Embedding]) -> Result<()> {
        if drafts.iter().all(|draft| draft.mixture.is_some()) {
            return blend::resolve(self.prior.as_ref(), session, drafts, None).map(drop);
        }
        // Variations have their pictures' embeddings already.
        if drafts.iter().all(|draft| !draft.image.is_empty()) { Ok(()) } else { self.prior()?.sample(session, drafts) }
    }

    fn paint(&self, session: &mut Session<'_, '_>, embeddings: &mut [Embedding]) -> Result<Vec<Painting>> {
        let conditions = self.project(session, embeddings)?;
        self.decode(session, embeddings, &conditions)
    }

    fn invert(&self, session: &mut Session<'_, '_>, draft: Embedding, image: &Image) -> Result<Inversion> {
        self.invert_picture(session, draft, image)
    }

    fn clean(&self, session: &mut Session<'_, '_>, draft: Embedding, image: &Image, sigma: f32) -> Result<Vec<f32>> {
        self.clean_picture(session, draft, image, sigma)
    }

    fn enlarged_size(&self, enlarge: &Enlarge, settings: &Settings) -> Result<[usize; 2]> {
        Schedule::new(&self.super_res_scheduler).timesteps("super-resolution steps", settings.super_res_steps)?;
        self.checked_tile(enlarge)?;
        enlarge.size(self.times().pow(enlarge.passes(self.times())?))
    }

    fn enlarge_alone(&self, session: &mut Session<'_, '_>, enlarge: &Enlarge) -> Result<Image> {
        self.enlarge_tiles(session, enlarge)
    }

    fn enlarge(&self, session: &mut Session<'_, '_>, small: &mut [Painting], first: usize) -> Result<Vec<Image>> {
        self.super_resolve(session, small, first)
    }
}

impl UnClip {
    /// Tokens of a prompt.
    fn tokens(&self) -> usize {
        self.texts.length()
    }

    /// The prior, for whoever has prompts.
    fn prior(&self) -> Result<&Prior> {
        self.checkpoint.require_for("pictures from prompts", &["prior"])?;
        Ok(self.prior.as_ref().expect("a checkpoint that has it was opened with it"))
    }

    /// The image encoder, for whoever has pictures.
    fn vision(&self) -> Result<&Vision> {
        if let Some(vision) = self.vision.get() {
            return Ok(vision);
        }
        self.checkpoint.require_for("variations of a picture", &OF_VISION)?;
        let dim = ("the text projection's clip_embeddings_dim", self.text_proj.clip_embeddings_dim);
        let vision = Vision::read(&self.checkpoint, IMAGE_ENCODER, OF_VISION[1], dim)?;
        Ok(self.vision.get_or_init(|| vision))
    }

    /// Refuses a checkpoint whose own settings no schedule has steps for.
    fn check_defaults(&self) -> Result<()> {
        let Settings { prior_steps, decoder_steps, super_res_steps, .. } = self.defaults;
        let prior = self.prior.as_ref().map(|prior| ("prior steps", &prior.scheduler, prior_steps));
        let others = [
            ("decoder steps", &self.decoder_scheduler, decoder_steps),
            ("super-resolution steps", &self.super_res_scheduler, super_res_steps),
        ];
        let check = |(setting, scheduler, steps): (&str, &Configured<SchedulerConfig>, usize)| {
            Schedule::new(scheduler).timesteps(setting, steps).map(drop)
        };
        let checked = prior.into_iter().chain(others).try_for_each(check).and_then(|()| self.defaults.check());
        let path = self.checkpoint.path().join("model_index.json");
        checked.map_err(|error| Error::config(path, format!("_engine_defaults: {error}")))
    }

    /// Sizes that two components must agree on.
    fn check(&self) -> Result<()> {
        let agree = |component: &str, key: &str, found: usize, other: &str, wanted: usize| {
            agree(&self.checkpoint, component, key, found, other, wanted)
        };
        let (dim, of_dim) = (self.text_proj.clip_embeddings_dim, "the text projection's clip_embeddings_dim");
        if let Some(Prior { config, .. }) = &self.prior {
            let of_tokens = "the text encoder's max_position_embeddings";
            agree("prior", "num_embeddings", config.num_embeddings, of_tokens, self.tokens())?;
            agree("prior", "embedding_dim", config.embedding_dim, of_dim, dim)?;
        }
        agree("text_encoder", "projection_dim", self.texts.config.projection_dim, of_dim, dim)?;
        agree("text_encoder", "hidden_size", self.texts.config.hidden_size, of_dim, dim)?;
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
