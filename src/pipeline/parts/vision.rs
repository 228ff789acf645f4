//! Given pictures: how they are prepared, and the image encoder.

use super::{recording, row};
use crate::error::Result;
use crate::image::Image;
use crate::model::image_encoder;
use crate::pipeline::agree;
use crate::pipeline::event::Stage;
use crate::pipeline::family::Shapes;
use crate::pipeline::session::Session;
use crate::plan::{Plan, WeightSource};
use crate::preprocess::Preprocessor;
use crate::weights::config::Configured;
use crate::weights::{Checkpoint, Signature};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What turns pictures into image embeddings.
pub struct Vision {
    pub stage: Stage,
    pub config: Configured<image_encoder::Config>,
    pub preprocessor: Configured<Preprocessor>,
    /// The embedding of CLIP's mean colour, and the files of the weights that made it.
    mean_colour: Mutex<Option<(Signature, Vec<f32>)>>,
}

impl Vision {
    /// `preprocessor` is the folder of the pictures' preparation. An embedding's width must be `dim`, as `other` says.
    ///
    /// # Errors
    /// A configuration is damaged, not implemented, or contradicts another.
    pub fn read(
        checkpoint: &Checkpoint,
        stage: Stage,
        preprocessor: &str,
        (other, dim): (&str, usize),
    ) -> Result<Vision> {
        let config: Configured<image_encoder::Config> = checkpoint.config(&format!("{}/config.json", stage.name()))?;
        let preprocessor = Preprocessor::read(checkpoint, preprocessor)?;
        let sizes = [
            ("projection_dim", config.projection_dim, other, dim),
            ("image_size", config.image_size, "the feature extractor's crop_size", preprocessor.size()),
        ];
        sizes
            .into_iter()
            .try_for_each(|(key, found, other, wanted)| agree(checkpoint, stage.name(), key, found, other, wanted))?;
        Ok(Vision { stage, config, preprocessor, mean_colour: Mutex::default() })
    }

    /// Records the image encoder.
    pub fn record(&self, source: &dyn WeightSource, batch: usize) -> Result<Plan> {
        image_encoder::plan(&self.config, source, batch)
    }

    /// Warnings about the two configurations.
    pub fn warnings(&self) -> impl Iterator<Item = &String> {
        self.config.warnings().iter().chain(self.preprocessor.warnings())
    }

    /// Given pictures to image embeddings `[D]`.
    pub fn encode(&self, session: &mut Session<'_, '_>, images: &[Image]) -> Result<Vec<Vec<f32>>> {
        if images.is_empty() {
            return Ok(Vec::new());
        }
        self.encode_prepared(session, images.len(), |i| self.preprocessor.prepare(&images[i]))
    }

    /// The embedding of a picture that is zero behind the normalisation: CLIP's mean colour. It is a constant of the
    /// checkpoint, computed once; a trace shows the computation, which then takes place.
    pub fn encode_mean_colour(&self, session: &mut Session<'_, '_>) -> Result<Vec<f32>> {
        if !session.trace.is_on()
            && let Some((_, known)) = &*self.known_mean_colour()
        {
            return Ok(known.clone());
        }
        let pixels = self.preprocessor.size().pow(2) * 3;
        let signature = session.checkpoint.component(self.stage.component())?.signature();
        let found = self.encode_prepared(session, 1, |_| Ok(vec![0.0; pixels]))?.swap_remove(0);
        *self.known_mean_colour() = Some((signature, found.clone()));
        Ok(found)
    }

    /// Whether the embedding of CLIP's mean colour need not be computed.
    pub fn knows_mean_colour(&self) -> bool {
        self.known_mean_colour().is_some()
    }

    /// Drops the embedding of CLIP's mean colour, which depends on the device in its last bits.
    pub fn forget(&self) {
        *self.known_mean_colour() = None;
    }

    /// The embedding of CLIP's mean colour, without that of files that changed.
    fn known_mean_colour(&self) -> MutexGuard<'_, Option<(Signature, Vec<f32>)>> {
        let mut known = self.mean_colour.lock().unwrap_or_else(PoisonError::into_inner);
        known.take_if(|(signature, _)| !signature.is_current());
        known
    }

    fn encode_prepared(
        &self,
        session: &mut Session<'_, '_>,
        count: usize,
        prepare: impl Fn(usize) -> Result<Vec<f32>>,
    ) -> Result<Vec<Vec<f32>>> {
        let (mut pixels, mut embeds) = (Vec::new(), Vec::new());
        session.stage(self.stage, Shapes::batch(1, false), count, 0, |session, executable, group| {
            let mut prepared = Vec::new();
            for image in group.clone() {
                prepared.extend(prepare(image)?);
            }
            executable.write("pixel_values", &prepared)?;
            executable.run_once()?;
            let found = session.read(self.stage, executable, "image_embeds")?;
            embeds.extend((0..group.len()).map(|i| row(&found, i, group.len()).to_vec()));
            if session.trace.is_on() {
                pixels.extend(prepared);
            }
            Ok(())
        })?;
        recording::images(session.trace, &pixels, self.preprocessor.size(), &embeds);
        Ok(embeds)
    }
}
