//! Pictures instead of prompts: how they become the embeddings that otherwise the prior samples.

use super::Pipeline;
use super::request::Stage;
use super::stages::Session;
use crate::error::{Error, Result};
use crate::image::Image;
use crate::model::image_encoder;
use crate::preprocess::Preprocessor;

/// What a checkpoint that varies pictures has beside the decoder. It is read when it is asked for: a checkpoint that
/// lacks it, or has a damaged one, still makes pictures from prompts.
pub struct Vision {
    pub config: image_encoder::Config,
    pub preprocessor: Preprocessor,
}

impl Vision {
    /// The folders that it is read from.
    pub const FOLDERS: [&str; 2] = ["image_encoder", "feature_extractor"];

    /// # Errors
    /// A folder is missing, or a configuration is damaged, not implemented, or contradicts another.
    pub fn read(pipeline: &Pipeline) -> Result<Vision> {
        let checkpoint = &pipeline.checkpoint;
        checkpoint.require_for("variations of a picture", &Self::FOLDERS)?;
        let config: image_encoder::Config = checkpoint.json("image_encoder/config.json")?;
        let preprocessor = Preprocessor::read(checkpoint)?;
        let text_proj = pipeline.configs.text_proj.clip_embeddings_dim;
        let agree = [
            ("projection_dim", config.projection_dim, "the text projection's clip_embeddings_dim", text_proj),
            ("image_size", config.image_size, "the feature extractor's crop_size", preprocessor.size()),
        ];
        agree.into_iter().try_for_each(|(key, found, other, wanted)| {
            super::agree(checkpoint, "image_encoder", key, found, other, wanted)
        })?;
        Ok(Vision { config, preprocessor })
    }
}

impl Session<'_, '_> {
    /// Given pictures to image embeddings `[D]`, one for each picture that is asked for.
    pub fn encode_images(&mut self, vision: &Vision, images: &[Image], each: usize) -> Result<Vec<Vec<f32>>> {
        let mut open = self.open(Stage::ImageEncoder, 0)?;
        let plan = image_encoder::plan(&vision.config, &open.component, 1)?;
        let mut executable = self.compile(&mut open, plan)?;
        let (mut pixels, mut embeds) = (Vec::new(), Vec::new());
        for image in images {
            let prepared = vision.preprocessor.prepare(image)?;
            executable.write("pixel_values", &prepared)?;
            executable.run_once()?;
            let embedding = executable.read("image_embeds")?;
            if embedding.iter().any(|x| !x.is_finite()) {
                return Err(Error::NotFinite { stage: Stage::ImageEncoder.to_string() });
            }
            embeds.push(embedding);
            if self.trace.is_on() {
                pixels.extend(prepared);
            }
        }
        self.close(open)?;
        self.trace_images(&pixels, vision.preprocessor.size(), &embeds);
        Ok(embeds.into_iter().flat_map(|embedding| std::iter::repeat_n(embedding, each)).collect())
    }
}
