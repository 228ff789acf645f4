//! What a checkpoint that varies pictures has beside the decoder.

use crate::error::Result;
use crate::model::image_encoder;
use crate::pipeline::agree;
use crate::preprocess::Preprocessor;
use crate::weights::Checkpoint;
use crate::weights::config::Configured;

/// The image encoder's configuration, and how pictures are prepared for it.
pub struct Vision {
    pub config: Configured<image_encoder::Config>,
    pub preprocessor: Configured<Preprocessor>,
}

impl Vision {
    /// The folders that it is read from.
    pub const FOLDERS: [&str; 2] = ["image_encoder", "feature_extractor"];

    /// `dim` is the width of an image embedding.
    ///
    /// # Errors
    /// A folder is missing, or a configuration is damaged, not implemented, or contradicts another.
    pub fn read(checkpoint: &Checkpoint, dim: usize) -> Result<Vision> {
        checkpoint.require_for("variations of a picture", &Self::FOLDERS)?;
        let config: Configured<image_encoder::Config> = checkpoint.config("image_encoder/config.json")?;
        let preprocessor = Preprocessor::read(checkpoint)?;
        let sizes = [
            ("projection_dim", config.projection_dim, "the text projection's clip_embeddings_dim", dim),
            ("image_size", config.image_size, "the feature extractor's crop_size", preprocessor.size()),
        ];
        sizes.into_iter().try_for_each(|(key, found, other, wanted)| {
            agree(checkpoint, "image_encoder", key, found, other, wanted)
        })?;
        Ok(Vision { config, preprocessor })
    }
}
