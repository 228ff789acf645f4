//! Stable unCLIP: Stable Diffusion 2.1 that sees an image embedding beside a text (Rombach et al. 2022; Ramesh et al. 2022).
//!
//! | stage | what it makes |
//! | --- | --- |
//! | image encoder, or the prior with its own text encoder | an image embedding of a picture, or of the text |
//! | text encoder | a state per token of what the U-Net reads, padding included |
//! | U-Net | latents, from the image embedding with noise of a level of choice, and from the text |
//! | autoencoder | the finished picture, of any size in steps of 8 pixels |
//!
//! A checkpoint either has the image encoder and varies pictures, or the prior and makes pictures from prompts.

use super::agree;
use super::event::Stage;
use super::family::{Embedding, Family, Kind, Painting, Shapes};
use super::parts::{self, Prior, Texts, Vision, recording, time_table};
use super::request::{Request, Settings, Task};
use super::sampling::{Loop, drawn_by};
use super::session::Session;
use crate::diffusion::sampler::time_features;
use crate::diffusion::{Run, Sampler, Schedule, SchedulerConfig};
use crate::error::{Error, Result};
use crate::image::Image;
use crate::model::{Sizes, autoencoder, stable_unclip, unet};
use crate::noise::Generators;
use crate::ops::{Multistep, Noise, Rule};
use crate::plan::{Plan, WeightSource};
use crate::weights::Checkpoint;
use crate::weights::config::Literal::Number;
use crate::weights::config::{Class, Configured, Key, Schema};
use serde::Deserialize;
use std::sync::Arc;

/// How the family's checkpoints are recognised: those that vary pictures, and those that make them from prompts.
pub const KIND: Kind = Kind { classes: &["StableUnCLIPImg2ImgPipeline", OF_PROMPTS], of_prior: None, components, open };

/// The class of checkpoints with a prior.
const OF_PROMPTS: &str = "StableUnCLIPPipeline";
const OF_PRIOR: [&str; 4] = ["prior", "prior_scheduler", "prior_text_encoder", "prior_tokenizer"];
const OF_VISION: [&str; 2] = ["feature_extractor", "image_encoder"];

/// The components of a checkpoint of this class, and those that it may have for another kind of request.
fn components(class: &str) -> [&'static [&'static str]; 2] {
    const FOR_PICTURES: &[&str] = &[
        "feature_extractor",
        "image_encoder",
        "image_noising_scheduler",
        "image_normalizer",
        "scheduler",
        "text_encoder",
        "tokenizer",
        "unet",
        "vae",
    ];
    const FOR_PROMPTS: &[&str] = &[
        "image_noising_scheduler",
        "image_normalizer",
        "prior",
        "prior_scheduler",
        "prior_text_encoder",
        "prior_tokenizer",
        "scheduler",
        "text_encoder",
        "tokenizer",
        "unet",
        "vae",
    ];
    if class == OF_PROMPTS { [FOR_PROMPTS, FOR_PICTURES] } else { [FOR_PICTURES, FOR_PROMPTS] }
}

const PRIOR_TEXT_ENCODER: Stage = Stage::new("prior_text_encoder", "prior's text encoder");
const PRIOR: Stage = Stage::new("prior", "prior");
const IMAGE_ENCODER: Stage = Stage::new("image_encoder", "image encoder");
const TEXT_ENCODER: Stage = Stage::new("text_encoder", "text encoder");
const UNET: Stage = Stage::new("unet", "U-Net");
const AUTOENCODER: Stage = Stage::new("vae", "autoencoder");

/// Where the statistics of image embeddings are.
const NORMALIZER: &str = "image_normalizer";
/// Longest side of a picture.
const MOST: usize = 8192;

/// `config.json` of the statistics.
#[derive(Clone, Debug, Deserialize)]
struct Normalizer {
    embedding_dim: usize,
}

impl Schema for Normalizer {
    const CLASSES: &'static [Class] =
        &[Class { name: "StableUnCLIPImageNormalizer", keys: &[&[Key::size("embedding_dim").or(Number(768.0))]] }];
}

/// A checkpoint of the family: its configurations, read and checked before any weight is touched.
struct StableUnClip {
    checkpoint: Arc<Checkpoint>,
    defaults: Settings,
    texts: Texts,
    prior: Option<(Texts, Prior)>,
    vision: Option<Vision>,
    unet: Configured<unet::Config>,
    scheduler: Configured<SchedulerConfig>,
    noising: Configured<SchedulerConfig>,
    normalizer: Configured<Normalizer>,
    autoencoder: Configured<autoencoder::Config>,
}

/// Reads and checks a checkpoint's configurations.
fn open(checkpoint: &Arc<Checkpoint>) -> Result<Box<dyn Family>> {
    let [needed, _] = components(checkpoint.class_name());
    checkpoint.require(needed)?;
    let has = |names: &[&str]| names.iter().all(|name| checkpoint.has(name));
    let scheduler = |name: &str| checkpoint.config(&format!("{name}/scheduler_config.json"));
    let normalizer: Configured<Normalizer> = checkpoint.config(&format!("{NORMALIZER}/config.json"))?;
    let dim = ("the image normaliser's embedding_dim", normalizer.embedding_dim);
    let prior = || {
        let texts = Texts::read(checkpoint, PRIOR_TEXT_ENCODER, "prior_tokenizer")?;
        Ok::<_, Error>((texts, Prior::read(checkpoint, PRIOR, "prior_scheduler")?))
    };
    let own = Settings { decoder_steps: 20, decoder_guidance: 10.0, ..Settings::default() };
    let family = StableUnClip {
        texts: Texts::read(checkpoint, TEXT_ENCODER, "tokenizer")?.without_embedding(),
        prior: has(&OF_PRIOR).then(prior).transpose()?,
        vision: has(&OF_VISION).then(|| Vision::read(checkpoint, IMAGE_ENCODER, OF_VISION[0], dim)).transpose()?,
        unet: checkpoint.config("unet/config.json")?,
        scheduler: scheduler("scheduler")?,
        noising: scheduler("image_noising_scheduler")?,
        normalizer,
        autoencoder: checkpoint.config("vae/config.json")?,
        defaults: Settings::read(checkpoint, own)?,
        checkpoint: checkpoint.clone(),
    };
    family.check()?;
    Ok(Box::new(family))
}

impl Family for StableUnClip {
    fn stages(&self) -> Vec<Stage> {
        let has = |stage: &Stage| match *stage {
            PRIOR_TEXT_ENCODER | PRIOR => self.prior.is_some(),
            IMAGE_ENCODER => self.vision.is_some(),
            _ => true,
        };
        let all = [PRIOR_TEXT_ENCODER, IMAGE_ENCODER, TEXT_ENCODER, PRIOR, UNET, AUTOENCODER];
        all.into_iter().filter(has).collect()
    }

    fn defaults(&self) -> &Settings {
        &self.defaults
    }

    fn warnings(&self) -> Vec<&str> {
        let prior = self
            .prior
            .iter()
            .flat_map(|(texts, prior)| [texts.config.warnings(), prior.config.warnings(), prior.scheduler.warnings()]);
        let always = [
            self.texts.config.warnings(),
            self.unet.warnings(),
            self.scheduler.warnings(),
            self.noising.warnings(),
            self.normalizer.warnings(),
            self.autoencoder.warnings(),
        ];
        let vision = self.vision.iter().flat_map(Vision::warnings);
        always.into_iter().chain(prior).flatten().chain(vision).map(String::as_str).collect()
    }

    fn picture_size(&self, request: &Request) -> [usize; 2] {
        let own = self.unet.sample_size.unwrap_or(1) * self.autoencoder.factor();
        request.size.unwrap_or([own; 2])
    }

    fn size_unit(&self) -> Option<usize> {
        Some(self.autoencoder.factor())
    }

    fn has_super_resolution(&self) -> bool {
        false
    }

    fn text_tower(&self) -> Result<&Texts> {
        // The decoder's text encoder has no projection into the space of pictures.
        self.checkpoint.require_for("embeddings of texts: the text encoder alone has no projection", &OF_PRIOR)?;
        Ok(&self.prior()?.0)
    }

    fn image_tower(&self) -> Result<&Vision> {
        self.checkpoint.require_for("embeddings of pictures", &OF_VISION)?;
        self.vision()
    }

    fn decoder_settings(&self, settings: &Settings) -> (Option<usize>, Option<Sampler>) {
        (Some(settings.noise_level), Some(settings.sampler.unwrap_or(self.scheduler.sampler)))
    }

    fn record(&self, stage: Stage, shapes: &Shapes, source: &dyn WeightSource) -> Result<Plan> {
        let &Shapes { batch, steps, guided, noise, size, multistep } = shapes;
        let size = if size == [0; 2] { [self.unet.sample_size.unwrap_or(1); 2] } else { size };
        match (stage, &self.prior, &self.vision) {
            (PRIOR_TEXT_ENCODER, Some((texts, _)), _) => texts.record(source, batch),
            (PRIOR, Some((_, prior)), _) => prior.record(source, shapes),
            (IMAGE_ENCODER, _, Some(vision)) => vision.record(source, batch),
            (TEXT_ENCODER, ..) => self.texts.record(source, batch),
            (UNET, ..) => {
                let rule = match multistep {
                    true => Rule::Multistep(Multistep { guided }),
                    false => self.scheduler.step(guided, noise).into(),
                };
                let sizes = Sizes { pictures: batch, steps, rule };
                stable_unclip::plan(&self.unet, source, &sizes, self.texts.length(), size)
            }
            (AUTOENCODER, ..) => autoencoder::decoder(&self.autoencoder, source, batch, size),
            _ => Err(Error::request("stage", format!("this checkpoint has no stage {stage}"))),
        }
    }

    fn of_others(&self, stage: Stage) -> &'static [&'static str] {
        if stage == AUTOENCODER { &["encoder.", "quant_conv."] } else { &[] }
    }

    fn route(&self, request: &Request, settings: &Settings) -> Result<Vec<(Stage, Shapes)>> {
        request.check_decoder_settings(&["noise level", "sampler", "prompt"])?;
        let refused = [
            ("super-resolution steps", request.super_res_steps.is_some(), "this checkpoint has no super-resolution"),
            ("edit", request.edit.is_some(), "this checkpoint varies whole pictures only"),
            ("hint", request.hint.is_some(), "the decoder of this checkpoint sees none"),
            ("inversion", request.inversion.is_some(), "the decoder of this checkpoint makes no pixels"),
        ];
        if let Some((what, _, reason)) = refused.into_iter().find(|(_, is_given, _)| *is_given) {
            return Err(Error::request(what, reason));
        }
        let factor = self.autoencoder.factor();
        let size = self.picture_size(request);
        if let Some(side) = size.into_iter().find(|side| !(1..=MOST).contains(side) || !side.is_multiple_of(factor)) {
            return Err(Error::value("size", side, format!("a side must be a multiple of {factor}, at most {MOST}")));
        }
        let levels = self.noising.num_train_timesteps;
        if settings.noise_level >= levels {
            return Err(Error::value("noise level", settings.noise_level, format!("must be 0 to {}", levels - 1)));
        }
        let scheduler = self.scheduler.sampled_by(settings.sampler)?;
        let calls = Run::new(&scheduler, ("decoder steps", settings.decoder_steps), 1.0)?.timesteps.len();
        let noise = Noise::from(&request.noise_of(0));
        let (subjects, pictures) = (request.subjects(), request.pictures());
        let guided = settings.decoder_guidance > 1.0;
        let texts = (TEXT_ENCODER, Shapes::batch(subjects + usize::from(guided), false));
        let mut route = match &request.task {
            Task::Prompts(_) => {
                let (_, prior) = self.prior()?;
                Schedule::new(&prior.scheduler).timesteps("prior steps", settings.prior_steps)?;
                let prior_guided = settings.prior_guidance > 1.0;
                let of_prior = Shapes::sampling(pictures, settings.prior_steps, prior_guided, noise);
                vec![(PRIOR_TEXT_ENCODER, Shapes::batch(subjects + 1, false)), texts, (PRIOR, of_prior)]
            }
            Task::Blend(_) => return Err(no_blend()),
            Task::Variations(_) => {
                self.vision()?;
                if subjects > 1 && request.generator != Generators::Each {
                    let reason = "pictures to vary have a generator each; with one for all, vary one picture at a time";
                    return Err(Error::value("generator", request.generator, reason));
                }
                vec![(IMAGE_ENCODER, Shapes::batch(subjects, false)), texts]
            }
        };
        let size = self.latents(size);
        route.push((UNET, self.shapes(&scheduler, calls, guided, noise, size).of(pictures)));
        route.push((AUTOENCODER, Shapes::batch(pictures, false).at(size)));
        Ok(route)
    }

    fn encode(&self, session: &mut Session<'_, '_>, request: &Request) -> Result<Vec<Embedding>> {
        // The prior and the U-Net read the same texts, each with a text encoder of its own.
        let (images, texts, said) = match &request.task {
            Task::Prompts(prompts) => {
                let (texts, _) = self.prior()?;
                let mut tokens =
                    prompts.iter().map(|prompt| texts.tokens(session, prompt)).collect::<Result<Vec<_>>>()?;
                tokens.push(texts.empty(session, request)?);
                (vec![Vec::new(); prompts.len()], texts.encode(session, &tokens)?, prompts.clone())
            }
            Task::Variations(images) => {
                let said = request.text.clone().map_or(Vec::new(), |text| vec![text; images.len()]);
                (self.vision()?.encode(session, images)?, Vec::new(), said)
            }
            Task::Blend(_) => return Err(no_blend()),
        };
        let seen = self.texts.encode_seen(session, recording::TEXTS, request, &said)?;
        let has_prior_guidance = session.settings.prior_guidance > 1.0;
        let unconditional = texts.last().filter(|_| has_prior_guidance);
        let draft = |k: usize| {
            let of = k / request.pictures_per_prompt;
            Embedding {
                image: images[of].clone(),
                start: None,
                text: texts.get(of).cloned().unwrap_or_default(),
                negative: None,
                mixture: None,
                seed: request.seed_of(k),
                unconditional: unconditional.cloned(),
                unconditional_image: None,
                size: self.picture_size(request),
                edit: None,
                inversion: None,
                hint: None,
                seen: Some(seen[of].clone()),
                guidance: None,
                shares_noise: matches!(request.task, Task::Variations(_)),
                noise: request.noise_of(k),
            }
        };
        Ok((0..request.pictures()).map(draft).collect())
    }

    fn embed(&self, session: &mut Session<'_, '_>, drafts: &mut [Embedding]) -> Result<()> {
        // Variations have their pictures' embeddings already.
        let has_all = drafts.iter().all(|draft| !draft.image.is_empty());
        if has_all { Ok(()) } else { self.prior()?.1.sample(session, drafts) }
    }

    fn paint(&self, session: &mut Session<'_, '_>, embeddings: &mut [Embedding]) -> Result<Vec<Painting>> {
        let size = self.latents(embeddings[0].size);
        let latents = self.sample(session, embeddings, size)?;
        let scaled: Vec<f32> = latents.iter().map(|x| x / self.autoencoder.scaling_factor).collect();
        parts::decode(session, AUTOENCODER, size, embeddings, &scaled)
    }

    fn enlarge(&self, session: &mut Session<'_, '_>, small: &mut [Painting], first: usize) -> Result<Vec<Image>> {
        parts::finish(session, small, first)
    }
}

impl StableUnClip {
    /// The prior and its texts, for whoever has prompts.
    fn prior(&self) -> Result<&(Texts, Prior)> {
        self.checkpoint.require_for("pictures from prompts", &OF_PRIOR)?;
        Ok(self.prior.as_ref().expect("a checkpoint that has it was opened with it"))
    }

    /// The image encoder, for whoever has pictures.
    fn vision(&self) -> Result<&Vision> {
        self.checkpoint.require_for("variations of a picture", &OF_VISION)?;
        Ok(self.vision.as_ref().expect("a checkpoint that has it was opened with it"))
    }

    /// Height and width of the latents of a picture of so many pixels in width and height.
    fn latents(&self, [width, height]: [usize; 2]) -> [usize; 2] {
        [height, width].map(|side| side / self.autoencoder.factor())
    }

    /// The U-Net's for one picture.
    fn shapes(
        &self,
        scheduler: &SchedulerConfig,
        calls: usize,
        guided: bool,
        noise: Noise,
        size: [usize; 2],
    ) -> Shapes {
        let multistep = scheduler.sampler.is_multistep();
        // Without noise it does not matter who would draw it.
        let noise = if multistep { Noise::Given } else { noise };
        Shapes { multistep, ..Shapes::sampling(1, calls, guided, noise).at(size) }
    }

    /// Draws the noise of the image embeddings, and gives what the U-Net is told of each, `[2D]`: the noisy embedding, and the
    /// features of the noise's level.
    ///
    /// *Source* diffusers' `noise_image_embeddings`.
    fn labels(&self, session: &Session<'_, '_>, drafts: &mut [Embedding]) -> Result<Vec<Vec<f32>>> {
        let dim = self.normalizer.embedding_dim;
        if let Some(draft) = drafts.iter().find(|draft| draft.image.len() != dim) {
            return Err(Error::request("embedding", format!("{} elements; expected {dim}", draft.image.len())));
        }
        let statistics = self.checkpoint.component(NORMALIZER)?;
        let [mean, deviation] = ["mean", "std"].map(|name| {
            statistics.require(name, &[1, dim])?;
            statistics.f32s(name)
        });
        let (mean, deviation) = (mean?, deviation?);
        let level = session.settings.noise_level;
        let share = Schedule::new(&self.noising).alpha_bar[level];
        let [of_sample, of_noise] = [share.sqrt(), (1.0 - share).sqrt()];
        let features = time_features(&[level as f32], dim, true, 0.0);
        let labels = drafts.iter_mut().map(|draft| {
            let mut noise = vec![0.0; dim];
            match draft.shares_noise {
                true => draft.noise.fill_shared(&mut noise),
                false => draft.noise.fill_normal(&mut noise),
            }
            let noisy = (0..dim).map(|i| {
                let normal = (draft.image[i] - mean[i]) / deviation[i];
                (of_sample * normal + of_noise * noise[i]) * deviation[i] + mean[i]
            });
            noisy.chain(features.iter().copied()).collect()
        });
        Ok(labels.collect())
    }

    /// Embeddings to latents `[B, h, w, C]`.
    fn sample(&self, session: &mut Session<'_, '_>, drafts: &mut [Embedding], size: [usize; 2]) -> Result<Vec<f32>> {
        let Settings { decoder_steps, decoder_guidance, sampler, .. } = session.settings;
        let is_guided = decoder_guidance > 1.0;
        let scheduler = self.scheduler.sampled_by(sampler)?;
        let noise = drawn_by(drafts.iter().map(|draft| &draft.noise));
        let shape = vec![size[0], size[1], self.unet.in_channels];
        let guidance = is_guided.then_some(decoder_guidance);
        let sampling = Loop::new("decoder", &scheduler, ("decoder steps", decoder_steps), shape, guidance, noise)?;
        let time = time_table(&sampling, &self.unet);
        let steps = sampling.steps();
        let shapes = self.shapes(&scheduler, steps, is_guided, noise, size);
        // The noise of the embeddings comes before that of the latents.
        let labels = self.labels(session, drafts)?;
        let mut all = Vec::new();
        session.stage(UNET, shapes, drafts.len(), steps, |session, executable, group| {
            let (drafts, labels) = (&mut drafts[group.clone()], &labels[group]);
            // The unconditional half is told nothing, not even the level.
            let mut rows = vec![0.0; if is_guided { labels.len() * labels[0].len() } else { 0 }];
            rows.extend(labels.iter().flatten());
            executable.write("labels", &rows)?;
            executable.write("hidden", &parts::of_seen(drafts, is_guided, |text| &text.hidden)?)?;
            session.trace.put(|| "labels".to_owned(), &[labels.len(), labels[0].len()], &labels.concat());
            let mut draws = sampling.draw(drafts.iter_mut().map(|draft| &mut draft.noise)).guided_by(drafts, 1);
            sampling.trace_start(&draws, session.trace);
            session.sample(UNET, &sampling, executable, 0..steps, &time, &mut draws, None)?;
            all.extend(draws.latents);
            Ok(())
        })?;
        Ok(all)
    }

    /// Sizes that two components must agree on, and settings that no schedule has steps for.
    fn check(&self) -> Result<()> {
        let agree = |component: &str, key: &str, found: usize, other: &str, wanted: usize| {
            agree(&self.checkpoint, component, key, found, other, wanted)
        };
        let (dim, of_dim) = (self.normalizer.embedding_dim, "the image normaliser's embedding_dim");
        if let Some((texts, prior)) = &self.prior {
            let of_tokens = "the prior's text encoder's max_position_embeddings";
            agree("prior", "num_embeddings", prior.config.num_embeddings, of_tokens, texts.length())?;
            agree("prior", "embedding_dim", prior.config.embedding_dim, of_dim, dim)?;
            agree("prior_text_encoder", "projection_dim", texts.config.projection_dim, of_dim, dim)?;
        }
        let key = "projection_class_embeddings_input_dim";
        let labels = self.unet.projection_class_embeddings_input_dim.unwrap_or(2 * dim);
        agree("unet", key, labels, "twice the image normaliser's embedding_dim", 2 * dim)?;
        let cross = self.unet.cross_attention_dim.unwrap_or(0);
        agree("unet", "cross_attention_dim", cross, "the text encoder's hidden_size", self.texts.config.hidden_size)?;
        let channels = self.autoencoder.latent_channels;
        agree("unet", "in_channels", self.unet.in_channels, "the number of the latents' channels", channels)?;
        agree("unet", "out_channels", self.unet.out_channels, "the number of the latents' channels", channels)?;
        agree("vae", "out_channels", self.autoencoder.out_channels, "the number of colours", 3)?;
        if self.autoencoder.class_name != autoencoder::KL {
            let found = &self.autoencoder.class_name;
            return Err(self.autoencoder.refused(format!("_class_name is {found}; expected {}", autoencoder::KL)));
        }
        if self.scheduler.sampler == Sampler::UnClip {
            return Err(self.scheduler.refused("this is unCLIP's scheduler; expected one of latents"));
        }
        let Settings { prior_steps, decoder_steps, .. } = self.defaults;
        let prior = self.prior.as_ref().map_or(Ok(()), |(_, prior)| {
            Schedule::new(&prior.scheduler).timesteps("prior steps", prior_steps).map(drop)
        });
        prior
            .and_then(|()| Run::new(&self.scheduler, ("decoder steps", decoder_steps), 1.0).map(drop))
            .and_then(|()| self.defaults.check())
            .map_err(|error| {
                Error::config(self.checkpoint.path().join("model_index.json"), format!("_engine_defaults: {error}"))
            })
    }
}

fn no_blend() -> Error {
    Error::request("blend", "this checkpoint varies one picture at a time")
}
