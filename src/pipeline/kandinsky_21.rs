//! Kandinsky 2.1: Kandinsky 2.2's predecessor, whose decoder sees the text, too, in any of some hundred languages
//! (Razzhigaev et al. 2023).
//!
//! | stage | what it makes |
//! | --- | --- |
//! | text encoder | an embedding and a state per token of each text, for the prior |
//! | prior, or image encoder | an image embedding of the text, or of a picture |
//! | image encoder | the unconditional image embedding: that of CLIP's mean colour |
//! | multilingual text encoder | an embedding and a state per token of each text, for the decoder |
//! | autoencoder's encoder | latents of a picture that is edited |
//! | decoder | latents, from the image embedding and the text |
//! | autoencoder | the finished picture, of any size in steps of 64 pixels |
//!
//! Prior and decoder are two checkpoint folders, as those of Kandinsky 2.2.

use super::agree;
use super::edit::decimal;
use super::event::Stage;
use super::family::{Embedding, Family, Kind, Painting, Shapes};
use super::parts::{self, Editing, Embedder, Painter, Texts, Vision, recording};
use super::request::{Prompt, Request, Settings, Task};
use super::session::Session;
use crate::diffusion::schedule::{Betas, Schedule};
use crate::error::{Error, Result};
use crate::image::Image;
use crate::model::multilingual;
use crate::plan::{Plan, WeightSource};
use crate::weights::Checkpoint;
use std::sync::Arc;

/// How the family's checkpoints are recognised. The last class is that of a prior's folder, which makes no pictures alone.
pub const KIND: Kind = Kind {
    classes: &[
        "KandinskyPipeline",
        "KandinskyImg2ImgPipeline",
        "KandinskyInpaintPipeline",
        "KandinskyCombinedPipeline",
        "KandinskyImg2ImgCombinedPipeline",
        "KandinskyInpaintCombinedPipeline",
        OF_PRIOR,
    ],
    of_prior: Some(OF_PRIOR),
    components: |class| {
        const ALL: [&str; 11] =
            parts::components(&[&Embedder::COMPONENTS, &Painter::COMPONENTS, &["text_encoder", "tokenizer"]]);
        [if class == OF_PRIOR { Embedder::ALONE } else { &ALL }, &[]]
    },
    open,
};

/// The class of a prior's folder.
const OF_PRIOR: &str = "KandinskyPriorPipeline";

const TEXT_ENCODER: Stage = Stage::new("text_encoder", "multilingual text encoder");

/// An edit begins on a schedule of its own, and what a mask leaves alone is left to a decoder that sees it.
const EDITING: Editing = Editing { share: |_, strength| share(strength), puts_back: false };

/// Ends of the schedule on which an edit begins, and its timesteps.
const EDIT_BETAS: [f64; 2] = [0.0001, 0.02];
const EDIT_TIMESTEPS: usize = 1000;

/// The share of an edited picture's variance in what the loop begins from: not that of the timestep where it begins.
///
/// *Source* diffusers' `KandinskyImg2ImgPipeline`.
fn share(strength: f32) -> f32 {
    let schedule = Schedule::of(Betas::Linear(EDIT_BETAS), EDIT_TIMESTEPS);
    let t = (EDIT_TIMESTEPS as f64 * decimal(strength)) as usize;
    // Two timesteps lower; below two it counts from the end, as a list's index does in the original.
    schedule.alpha_bar[(t + EDIT_TIMESTEPS - 2) % EDIT_TIMESTEPS]
}

/// A checkpoint of the family: its configurations, read and checked before any weight is touched.
struct Kandinsky {
    defaults: Settings,
    embedder: Embedder,
    /// What the decoder sees of texts.
    texts: Texts<multilingual::Config>,
    painter: Painter,
}

/// Reads and checks a checkpoint's configurations.
fn open(checkpoint: &Arc<Checkpoint>) -> Result<Box<dyn Family>> {
    if cfg!(not(feature = "tokenizer")) {
        let what = "Kandinsky 2.1 without the feature `tokenizer`: it reads every prompt with two tokenizers".into();
        return Err(Error::Unsupported { what });
    }
    checkpoint.require(&["text_encoder", "tokenizer"])?;
    let painter = Painter::read(checkpoint, Some(multilingual::TOKENS), EDITING)?;
    let embedder = Embedder::read(checkpoint, None)?;
    let texts = Texts::<multilingual::Config>::read(checkpoint, TEXT_ENCODER, "tokenizer")?;
    let (dim, of_dim) = (embedder.dim(), "the prior's embedding_dim");
    let cross = painter.decoder.cross_attention_dim.unwrap_or(0);
    // The U-Net's class has no key for the widths of both embeddings, and takes this one's.
    agree(checkpoint, "unet", "cross_attention_dim", cross, of_dim, dim)?;
    agree(checkpoint, "text_encoder", "numDims", texts.config.dim, of_dim, dim)?;
    let states = painter.decoder.encoder_hid_dim.unwrap_or(0);
    agree(checkpoint, "unet", "encoder_hid_dim", states, "the text encoder's hidden_size", texts.config.hidden_size)?;
    let defaults = painter.defaults(checkpoint, &embedder)?;
    Ok(Box::new(Kandinsky { defaults, embedder, texts, painter }))
}

impl Family for Kandinsky {
    fn stages(&self) -> Vec<Stage> {
        Embedder::STAGES.into_iter().chain([TEXT_ENCODER]).chain(Painter::STAGES).collect()
    }

    fn defaults(&self) -> &Settings {
        &self.defaults
    }

    fn warnings(&self) -> Vec<&str> {
        let all = self.embedder.warnings().chain(self.texts.config.warnings()).chain(self.painter.warnings());
        all.map(String::as_str).collect()
    }

    fn picture_size(&self, request: &Request) -> [usize; 2] {
        Painter::picture_size(request)
    }

    fn size_unit(&self) -> Option<usize> {
        Some(Painter::size_unit())
    }

    fn has_super_resolution(&self) -> bool {
        false
    }

    fn text_tower(&self) -> Result<&Texts> {
        Ok(&self.embedder.texts)
    }

    fn image_tower(&self) -> Result<&Vision> {
        Ok(&self.embedder.vision)
    }

    fn forget(&self) {
        self.embedder.vision.forget();
    }

    fn record(&self, stage: Stage, shapes: &Shapes, source: &dyn WeightSource) -> Result<Plan> {
        if stage == TEXT_ENCODER {
            return self.texts.record(source, shapes.batch);
        }
        let plan = self.embedder.record(stage, shapes, source).or_else(|| self.painter.record(stage, shapes, source));
        plan.unwrap_or_else(|| Err(Error::request("stage", format!("Kandinsky has no stage {stage}"))))
    }

    fn of_others(&self, stage: Stage) -> &'static [&'static str] {
        // The original reads no pooled state.
        if stage == TEXT_ENCODER { &["transformer.pooler."] } else { Painter::of_others(stage) }
    }

    fn route(&self, request: &Request, settings: &Settings) -> Result<Vec<(Stage, Shapes)>> {
        request.check_decoder_settings(&["prompt"])?;
        if said(request).iter().chain(&request.negative).any(|prompt| matches!(prompt, Prompt::Tokens(_))) {
            let reason = "token ids are given; this checkpoint reads each prompt with two tokenizers, and takes text";
            return Err(Error::request("prompt", reason));
        }
        // What the decoder cannot do is said first.
        let painter = self.painter.route(request, settings)?;
        let texts = request.subjects() + usize::from(settings.decoder_guidance > 1.0);
        let texts = (TEXT_ENCODER, Shapes::batch(texts, false));
        Ok(self.embedder.route(request, settings)?.into_iter().chain([texts]).chain(painter).collect())
    }

    fn encode(&self, session: &mut Session<'_, '_>, request: &Request) -> Result<Vec<Embedding>> {
        let mut drafts = self.embedder.encode(session, request, Painter::picture_size(request))?;
        let seen = self.texts.encode_seen(session, recording::WORDS, request, &said(request))?;
        for (k, draft) in drafts.iter_mut().enumerate() {
            draft.seen = Some(seen[k / request.pictures_per_prompt].clone());
        }
        self.painter.encode(session, request, &mut drafts)?;
        Ok(drafts)
    }

    fn embed(&self, session: &mut Session<'_, '_>, drafts: &mut [Embedding]) -> Result<()> {
        self.embedder.embed(session, drafts)
    }

    fn paint(&self, session: &mut Session<'_, '_>, embeddings: &mut [Embedding]) -> Result<Vec<Painting>> {
        let is_guided = session.settings.decoder_guidance > 1.0;
        self.painter.paint(session, &self.embedder, embeddings, |executable, drafts| {
            executable.write("text_embeds", &parts::of_seen(drafts, is_guided, |text| &text.embeds)?)?;
            executable.write("hidden", &parts::of_seen(drafts, is_guided, |text| &text.hidden)?)
        })
    }

    fn enlarge(&self, session: &mut Session<'_, '_>, small: &mut [Painting], first: usize) -> Result<Vec<Image>> {
        parts::finish(session, small, first)
    }
}

/// What the decoder is told of each prompt or picture; nothing if nothing is said of pictures.
fn said(request: &Request) -> Vec<Prompt> {
    match &request.task {
        Task::Prompts(prompts) => prompts.clone(),
        _ => request.text.clone().map_or(Vec::new(), |text| vec![text; request.subjects()]),
    }
}
