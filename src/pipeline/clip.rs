//! CLIP alone, as transformers saves it (Radford et al. 2021): texts and pictures in one space, and no decoder.

use super::event::Stage;
use super::family::{Embedding, Family, Kind, Painting, Shapes};
use super::parts::{Texts, Vision};
use super::request::{Request, Settings};
use super::session::Session;
use crate::error::{Error, Result};
use crate::image::Image;
use crate::plan::{Plan, WeightSource};
use crate::weights::Checkpoint;
use std::path::PathBuf;
use std::sync::Arc;

/// How the family's checkpoints are recognised.
pub const KIND: Kind = Kind { classes: &["CLIPModel"], of_prior: None, components: |_| [&COMPONENTS, &[]], open };

const COMPONENTS: [&str; 4] = ["feature_extractor", "image_encoder", "text_encoder", "tokenizer"];

const TEXT_ENCODER: Stage = Stage::new("text_encoder", "text encoder");
const IMAGE_ENCODER: Stage = Stage::new("image_encoder", "image encoder");

/// A checkpoint of the family: its configurations, read and checked before any weight is touched.
struct Clip {
    path: PathBuf,
    texts: Texts,
    vision: Vision,
    /// Of no use here; every family has them.
    defaults: Settings,
}

fn open(checkpoint: &Arc<Checkpoint>) -> Result<Box<dyn Family>> {
    checkpoint.require(&COMPONENTS)?;
    let texts: Texts = Texts::read(checkpoint, TEXT_ENCODER, "tokenizer")?;
    let dim = ("the text encoder's projection_dim", texts.config.projection_dim);
    let vision = Vision::read(checkpoint, IMAGE_ENCODER, "feature_extractor", dim)?;
    Ok(Box::new(Clip { path: checkpoint.path().to_path_buf(), texts, vision, defaults: Settings::default() }))
}

impl Clip {
    fn no_pictures<T>(&self) -> Result<T> {
        let what =
            "pictures of a CLIP alone; it classifies, embeds and searches, for pictures another checkpoint is needed";
        Err(Error::Unsupported { what: format!("{}: {what}", self.path.display()) })
    }
}

impl Family for Clip {
    fn stages(&self) -> Vec<Stage> {
        vec![TEXT_ENCODER, IMAGE_ENCODER]
    }

    fn defaults(&self) -> &Settings {
        &self.defaults
    }

    fn warnings(&self) -> Vec<&str> {
        self.texts.config.warnings().iter().chain(self.vision.warnings()).map(String::as_str).collect()
    }

    fn picture_size(&self, _: &Request) -> [usize; 2] {
        [0; 2]
    }

    fn makes_pictures(&self) -> bool {
        false
    }

    fn has_super_resolution(&self) -> bool {
        false
    }

    fn text_tower(&self) -> Result<&Texts> {
        Ok(&self.texts)
    }

    fn image_tower(&self) -> Result<&Vision> {
        Ok(&self.vision)
    }

    fn record(&self, stage: Stage, shapes: &Shapes, source: &dyn WeightSource) -> Result<Plan> {
        match stage {
            TEXT_ENCODER => self.texts.record(source, shapes.batch),
            IMAGE_ENCODER => self.vision.record(source, shapes.batch),
            _ => Err(Error::request("stage", format!("CLIP has no stage {stage}"))),
        }
    }

    fn of_others(&self, stage: Stage) -> &'static [&'static str] {
        // Both towers are in one file.
        if stage == TEXT_ENCODER {
            &["vision_model.", "visual_projection.", "logit_scale"]
        } else {
            &["text_model.", "text_projection.", "logit_scale"]
        }
    }

    fn route(&self, _: &Request, _: &Settings) -> Result<Vec<(Stage, Shapes)>> {
        self.no_pictures()
    }

    fn encode(&self, _: &mut Session<'_, '_>, _: &Request) -> Result<Vec<Embedding>> {
        self.no_pictures()
    }

    fn embed(&self, _: &mut Session<'_, '_>, _: &mut [Embedding]) -> Result<()> {
        self.no_pictures()
    }

    fn paint(&self, _: &mut Session<'_, '_>, _: &mut [Embedding]) -> Result<Vec<Painting>> {
        self.no_pictures()
    }

    fn enlarge(&self, _: &mut Session<'_, '_>, _: &mut [Painting], _: usize) -> Result<Vec<Image>> {
        self.no_pictures()
    }
}
