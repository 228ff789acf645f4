//! Kandinsky 2.2: unCLIP on the latents of an autoencoder (Razzhigaev et al. 2023).
//!
//! | stage | what it makes |
//! | --- | --- |
//! | text encoder | an embedding and a state per token of each text |
//! | prior, or image encoder | an image embedding of the text, or of a picture, or of a picture that a text changes |
//! | image encoder | the unconditional image embedding: that of CLIP's mean colour |
//! | autoencoder's encoder | latents of a picture that is edited |
//! | decoder | latents, from the image embedding alone: the decoder sees no text |
//! | autoencoder | the finished picture, of any size in steps of 64 pixels |
//!
//! Some decoders see more than noisy latents: what stays of an edited picture, or a hint of what is where.
//!
//! Prior and decoder are two checkpoint folders; the prior's components have names with `prior_` here, as diffusers'
//! combined pipelines save them.

use super::agree;
use super::event::Stage;
use super::family::{Embedding, Family, Kind, Painting, Shapes};
use super::parts::{self, Editing, Embedder, Painter, Texts, Vision};
use super::request::{Request, Settings, Task};
use super::sampling::Loop;
use super::session::Session;
use crate::error::{Error, Result};
use crate::image::Image;
use crate::plan::{Plan, WeightSource};
use crate::weights::Checkpoint;
use std::sync::Arc;

/// How the family's checkpoints are recognised. The last class is that of a prior's folder, which makes no pictures alone.
pub const KIND: Kind = Kind {
    classes: &[
        "KandinskyV22Pipeline",
        "KandinskyV22Img2ImgPipeline",
        "KandinskyV22InpaintPipeline",
        "KandinskyV22ControlnetPipeline",
        "KandinskyV22ControlnetImg2ImgPipeline",
        "KandinskyV22CombinedPipeline",
        "KandinskyV22Img2ImgCombinedPipeline",
        "KandinskyV22InpaintCombinedPipeline",
        OF_PRIOR,
    ],
    of_prior: Some(OF_PRIOR),
    components: |class| {
        const ALL: [&str; 9] = parts::components(&[&Embedder::COMPONENTS, &Painter::COMPONENTS]);
        [if class == OF_PRIOR { Embedder::ALONE } else { &ALL }, &[]]
    },
    open,
};

/// The class of a prior's folder.
const OF_PRIOR: &str = "KandinskyV22PriorPipeline";

/// Share of the prior's steps that a picture with a text beside it passes through, where a request does not say.
const PRIOR_STRENGTH: f32 = 0.3;

/// An edit begins on the schedule of the steps, and what a mask leaves alone is put back after each.
const EDITING: Editing = Editing { share: |sampling: &Loop, _| sampling.share(), puts_back: true };

/// A checkpoint of the family: its configurations, read and checked before any weight is touched.
struct Kandinsky {
    defaults: Settings,
    embedder: Embedder,
    painter: Painter,
}

/// Reads and checks a checkpoint's configurations.
fn open(checkpoint: &Arc<Checkpoint>) -> Result<Box<dyn Family>> {
    let painter = Painter::read(checkpoint, None, EDITING)?;
    let embedder = Embedder::read(checkpoint, Some(PRIOR_STRENGTH))?;
    let dim = embedder.dim();
    let seen = painter.decoder.encoder_hid_dim.unwrap_or(dim);
    agree(checkpoint, "unet", "encoder_hid_dim", seen, "the prior's embedding_dim", dim)?;
    let defaults = painter.defaults(checkpoint, &embedder)?;
    Ok(Box::new(Kandinsky { defaults, embedder, painter }))
}

impl Family for Kandinsky {
    fn stages(&self) -> Vec<Stage> {
        Embedder::STAGES.into_iter().chain(Painter::STAGES).collect()
    }

    fn defaults(&self) -> &Settings {
        &self.defaults
    }

    fn warnings(&self) -> Vec<&str> {
        self.embedder.warnings().chain(self.painter.warnings()).map(String::as_str).collect()
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

    fn has_prior(&self, request: &Request) -> bool {
        self.embedder.has_prior(request)
    }

    fn prior_strength(&self, request: &Request) -> Option<f32> {
        self.embedder.strength(request)
    }

    fn forget(&self) {
        self.embedder.vision.forget();
    }

    fn record(&self, stage: Stage, shapes: &Shapes, source: &dyn WeightSource) -> Result<Plan> {
        let plan = self.embedder.record(stage, shapes, source).or_else(|| self.painter.record(stage, shapes, source));
        plan.unwrap_or_else(|| Err(Error::request("stage", format!("Kandinsky has no stage {stage}"))))
    }

    fn of_others(&self, stage: Stage) -> &'static [&'static str] {
        Painter::of_others(stage)
    }

    fn route(&self, request: &Request, settings: &Settings) -> Result<Vec<(Stage, Shapes)>> {
        request.check_decoder_settings(&["prompt", "prior"])?;
        if matches!(request.task, Task::Variations(_)) && request.text.is_none() && request.negative.is_some() {
            let reason = "variations of a picture see no text with this checkpoint, unless a prompt changes them";
            return Err(Error::request("negative", reason));
        }
        // What the decoder cannot do is said first.
        let painter = self.painter.route(request, settings)?;
        Ok(self.embedder.route(request, settings)?.into_iter().chain(painter).collect())
    }

    fn encode(&self, session: &mut Session<'_, '_>, request: &Request) -> Result<Vec<Embedding>> {
        let mut drafts = self.embedder.encode(session, request, Painter::picture_size(request))?;
        self.painter.encode(session, request, &mut drafts)?;
        Ok(drafts)
    }

    fn embed(&self, session: &mut Session<'_, '_>, drafts: &mut [Embedding]) -> Result<()> {
        self.embedder.embed(session, drafts)
    }

    fn paint(&self, session: &mut Session<'_, '_>, embeddings: &mut [Embedding]) -> Result<Vec<Painting>> {
        self.painter.paint(session, &self.embedder, embeddings, |_, _| Ok(()))
    }

    fn enlarge(&self, session: &mut Session<'_, '_>, small: &mut [Painting], first: usize) -> Result<Vec<Image>> {
        parts::finish(session, small, first)
    }
}
