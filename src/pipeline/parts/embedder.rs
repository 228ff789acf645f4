//! From texts and pictures to image embeddings, and to those of the unconditional half, as Kandinsky's prior pipelines
//! make them.

use super::{Prior, Texts, Vision, recording};
use crate::diffusion::Schedule;
use crate::error::{Error, Result};
use crate::ops::Noise;
use crate::pipeline::agree;
use crate::pipeline::blend::{self, Blend, Mix};
use crate::pipeline::edit::first_step;
use crate::pipeline::event::Stage;
use crate::pipeline::family::{Embedding, EncodedText, Shapes, Start};
use crate::pipeline::request::{Prompt, Request, Settings, Task};
use crate::pipeline::session::Session;
use crate::plan::{Plan, WeightSource};
use crate::weights::Checkpoint;
use std::sync::Arc;

const TEXT_ENCODER: Stage = Stage::new("prior_text_encoder", "text encoder");
const PRIOR: Stage = Stage::new("prior_prior", "prior");
const IMAGE_ENCODER: Stage = Stage::new("prior_image_encoder", "image encoder");

/// Text encoder, prior and image encoder.
pub struct Embedder {
    pub texts: Texts,
    pub prior: Prior,
    pub vision: Vision,
    /// Share of the prior's steps with which a picture is varied beside a text, where a request does not say; `None` if the
    /// prior does not see pictures.
    strength: Option<f32>,
}

impl Embedder {
    /// The components that a checkpoint needs.
    pub const COMPONENTS: [&'static str; 6] = [
        "prior_image_encoder",
        "prior_image_processor",
        "prior_prior",
        "prior_scheduler",
        "prior_text_encoder",
        "prior_tokenizer",
    ];
    /// The same in a folder of their own.
    pub const ALONE: &'static [&'static str] =
        &["image_encoder", "image_processor", "prior", "scheduler", "text_encoder", "tokenizer"];
    /// In the order in which they run.
    pub const STAGES: [Stage; 3] = [TEXT_ENCODER, PRIOR, IMAGE_ENCODER];

    /// Reads and checks the configurations.
    ///
    /// # Errors
    /// A component is missing, or a configuration is damaged, not implemented, or contradicts another.
    pub fn read(checkpoint: &Checkpoint, strength: Option<f32>) -> Result<Embedder> {
        checkpoint.require_for("pictures; name the folder of Kandinsky's prior with --prior", &Embedder::COMPONENTS)?;
        let prior = Prior::read(checkpoint, PRIOR, "prior_scheduler")?;
        let dim = ("the prior's embedding_dim", prior.config.embedding_dim);
        let vision = Vision::read(checkpoint, IMAGE_ENCODER, "prior_image_processor", dim)?;
        let texts: Texts = Texts::read(checkpoint, TEXT_ENCODER, "prior_tokenizer")?;
        let (tokens, of_tokens) = (texts.length(), "the text encoder's max_position_embeddings");
        agree(checkpoint, PRIOR.name(), "num_embeddings", prior.config.num_embeddings, of_tokens, tokens)?;
        agree(checkpoint, TEXT_ENCODER.name(), "projection_dim", texts.config.projection_dim, dim.0, dim.1)?;
        Ok(Embedder { texts, prior, vision, strength })
    }

    /// Width of an image embedding.
    pub fn dim(&self) -> usize {
        self.prior.config.embedding_dim
    }

    /// Warnings about the configurations.
    pub fn warnings(&self) -> impl Iterator<Item = &String> {
        let all = [self.texts.config.warnings(), self.prior.config.warnings(), self.prior.scheduler.warnings()];
        all.into_iter().flatten().chain(self.vision.warnings())
    }

    /// Records one of its stages; `None` for a stage of others.
    pub fn record(&self, stage: Stage, shapes: &Shapes, source: &dyn WeightSource) -> Option<Result<Plan>> {
        match stage {
            TEXT_ENCODER => Some(self.texts.record(source, shapes.batch)),
            PRIOR => Some(self.prior.record(source, shapes)),
            IMAGE_ENCODER => Some(self.vision.record(source, shapes.batch)),
            _ => None,
        }
    }

    /// Whether the prior begins from the pictures of a request, with a text beside them.
    fn begins_from_pictures(&self, request: &Request) -> bool {
        self.strength.is_some() && matches!(request.task, Task::Variations(_)) && request.text.is_some()
    }

    /// Whether the prior runs for a request.
    pub fn has_prior(&self, request: &Request) -> bool {
        request.has_prior() || self.begins_from_pictures(request)
    }

    /// The share of the prior's steps that a request of pictures and a text takes.
    pub fn strength(&self, request: &Request) -> Option<f32> {
        self.begins_from_pictures(request).then(|| request.prior_strength.or(self.strength)).flatten()
    }

    /// Whether the unconditional half has the embedding of CLIP's mean colour; a negative prompt gets one from the prior.
    fn has_mean_colour(&self, request: &Request, settings: &Settings) -> bool {
        settings.decoder_guidance > 1.0 && !(request.negative.is_some() && self.has_prior(request))
    }

    /// The stages that a request passes through.
    ///
    /// # Errors
    /// A setting is out of range.
    pub fn route(&self, request: &Request, settings: &Settings) -> Result<Vec<(Stage, Shapes)>> {
        let noise = Noise::from(&request.noise_of(0));
        let (subjects, pictures) = (request.subjects(), request.pictures());
        let given = match &request.task {
            Task::Prompts(_) => 0,
            Task::Variations(_) => subjects,
            Task::Blend(blend) => {
                blend.mix(Mix::Sum)?;
                blend.pictures()
            }
        };
        let has_mean_colour = self.has_mean_colour(request, settings) && !self.vision.knows_mean_colour();
        let mut route = Vec::new();
        if self.has_prior(request) || matches!(request.task, Task::Blend(_)) {
            Schedule::new(&self.prior.scheduler).timesteps("prior steps", settings.prior_steps)?;
            first_step(("prior strength", self.strength(request)), ("prior steps", settings.prior_steps))?;
            let guided = settings.prior_guidance > 1.0;
            route.push((TEXT_ENCODER, Shapes::batch(subjects + 1, false)));
            route.push((PRIOR, Shapes::sampling(pictures, settings.prior_steps, guided, noise)));
        }
        if given + usize::from(has_mean_colour) > 0 {
            route.push((IMAGE_ENCODER, Shapes::batch(given + usize::from(has_mean_colour), false)));
        }
        Ok(route)
    }

    /// A draft for each picture of `size`, width and height, that a request asks for.
    pub fn encode(&self, session: &mut Session<'_, '_>, request: &Request, size: [usize; 2]) -> Result<Vec<Embedding>> {
        let begins_from_pictures = self.begins_from_pictures(request);
        let (texts, images) = match &request.task {
            Task::Prompts(prompts) => (self.encode_texts(session, request, prompts)?, vec![Vec::new(); prompts.len()]),
            Task::Variations(images) => {
                let said = request.text.as_ref().filter(|_| begins_from_pictures);
                let said = said.map_or(Vec::new(), |text| vec![text.clone(); images.len()]);
                let texts = if said.is_empty() { Vec::new() } else { self.encode_texts(session, request, &said)? };
                (texts, self.vision.encode(session, images)?)
            }
            Task::Blend(blend) => {
                let texts = self.texts_of(session, request, blend)?;
                (texts, self.vision.encode(session, &blend.images())?)
            }
        };
        let mixtures = match &request.task {
            Task::Blend(blend) => {
                let ends = blend.shift.as_ref().map(|_| [&*texts[texts.len() - 4], &*texts[texts.len() - 3]]);
                blend.mixtures(blend.mix(Mix::Sum)?, &texts, images.clone(), ends)
            }
            _ => Vec::new(),
        };
        // Of a blend the negative prompt, or the empty one again, comes before it.
        let unconditional = texts.last().filter(|_| session.settings.prior_guidance > 1.0);
        let has_mean_colour = self.has_mean_colour(request, &session.settings);
        let mean_colour = has_mean_colour.then(|| self.vision.encode_mean_colour(session).map(Arc::new)).transpose()?;
        let start = |of: usize| {
            let strength = self.strength(request)?;
            Some(Arc::new(Start { image: images[of].clone(), strength }))
        };
        let draft = |k: usize| {
            let of = k / request.pictures_per_prompt;
            let has_image = mixtures.is_empty() && !begins_from_pictures;
            Embedding {
                image: if has_image { images[of].clone() } else { Vec::new() },
                start: start(of),
                text: texts.get(of).cloned().unwrap_or_default(),
                negative: if mixtures.is_empty() {
                    texts.last().cloned().filter(|_| request.negative.is_some())
                } else {
                    texts.get(texts.len() - 2).cloned()
                },
                mixture: mixtures.get(of).cloned(),
                seed: request.seed_of(k),
                unconditional: unconditional.cloned(),
                unconditional_image: mean_colour.clone(),
                size,
                edit: None,
                inversion: None,
                hint: None,
                seen: None,
                guidance: None,
                shares_noise: false,
                noise: request.noise_of(k),
            }
        };
        Ok((0..request.pictures()).map(draft).collect())
    }

    /// Prompts, and behind them the negative one or the empty one, encoded.
    fn encode_texts(
        &self,
        session: &mut Session<'_, '_>,
        request: &Request,
        prompts: &[Prompt],
    ) -> Result<Vec<Arc<EncodedText>>> {
        let tokens = self.texts.tokens_with_negative(session, request, prompts)?;
        let texts = self.texts.encode(session, &tokens)?;
        recording::texts(session.trace, recording::TEXTS, &texts, &tokens, true);
        Ok(texts)
    }

    /// A blend's prompts, the texts of its shift, its negative prompt, and the empty text, encoded.
    fn texts_of(
        &self,
        session: &mut Session<'_, '_>,
        request: &Request,
        blend: &Blend,
    ) -> Result<Vec<Arc<EncodedText>>> {
        let empty = self.texts.empty(session, request)?;
        let mut tokens = Vec::new();
        for prompt in blend.texts() {
            tokens.push(self.texts.tokens(session, prompt)?);
        }
        tokens.push(request.negative.as_ref().map_or(Ok(empty.clone()), |text| self.texts.tokens(session, text))?);
        tokens.push(empty);
        self.texts.encode(session, &tokens)
    }

    /// Fills in the image embeddings that are missing.
    pub fn embed(&self, session: &mut Session<'_, '_>, drafts: &mut [Embedding]) -> Result<()> {
        if drafts.iter().all(|draft| !draft.image.is_empty()) {
            return Ok(());
        }
        if drafts.iter().all(|draft| draft.mixture.is_some()) {
            // As the original does it: the prior runs once more for the negative prompt, also for the empty one, of which
            // nothing but the draws is used.
            let negative = drafts.first().and_then(|draft| draft.negative.clone());
            let negatives = blend::resolve(Some(&self.prior), session, drafts, negative.as_ref())?;
            for (draft, negative) in
                drafts.iter_mut().zip(negatives).filter(|(draft, _)| draft.unconditional_image.is_none())
            {
                draft.unconditional_image = Some(Arc::new(negative));
            }
            return Ok(());
        }
        if !drafts.iter().all(|draft| draft.negative.is_some()) {
            return self.prior.sample(session, drafts);
        }
        // As the original does it: one run for the prompts and for their negative prompts, which guide both.
        let halves = |which: usize| {
            drafts.iter().map(move |draft| {
                let [positive, negative] = draft.noise.clone().halves();
                let noise = if which == 0 { positive } else { negative };
                let text = if which == 0 { &draft.text } else { draft.negative.as_ref().unwrap_or(&draft.text) };
                Embedding { text: text.clone(), noise, ..draft.clone() }
            })
        };
        let mut both: Vec<Embedding> = halves(0).chain(halves(1)).collect();
        self.prior.sample(session, &mut both)?;
        let negatives = both.split_off(drafts.len());
        for ((draft, positive), negative) in drafts.iter_mut().zip(both).zip(negatives) {
            draft.image = positive.image;
            draft.unconditional_image = Some(Arc::new(negative.image));
            draft.noise = positive.noise.whole();
        }
        Ok(())
    }

    /// Refuses embeddings of other widths.
    pub fn check_embeddings(&self, drafts: &[Embedding], is_guided: bool) -> Result<()> {
        let dim = self.dim();
        for draft in drafts {
            let image = draft.image.len();
            let other = draft.unconditional_image.as_ref().map_or(0, |image| image.len());
            if image != dim || is_guided && other != dim {
                let reason = format!(
                    "{image} and {other} elements of the image and the unconditional one; expected {dim} of each"
                );
                return Err(Error::request("embedding", reason));
            }
        }
        Ok(())
    }
}
