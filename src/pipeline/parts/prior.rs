//! The prior: from a text to an image embedding.

use super::{guided, of_texts, recording};
use crate::diffusion::SchedulerConfig;
use crate::diffusion::sampler::time_features;
use crate::error::Result;
use crate::model::{Sizes, prior};
use crate::pipeline::edit::first_step;
use crate::pipeline::event::Stage;
use crate::pipeline::family::{Embedding, Shapes};
use crate::pipeline::sampling::{Loop, drawn_by};
use crate::pipeline::session::Session;
use crate::plan::{Plan, WeightSource};
use crate::weights::Checkpoint;
use crate::weights::config::Configured;

/// What leads from text to an image embedding.
pub struct Prior {
    stage: Stage,
    pub config: Configured<prior::Config>,
    pub scheduler: Configured<SchedulerConfig>,
}

impl Prior {
    /// `scheduler` is the scheduler's folder.
    ///
    /// # Errors
    /// A folder is missing, or a configuration is damaged or not implemented.
    pub fn read(checkpoint: &Checkpoint, stage: Stage, scheduler: &str) -> Result<Prior> {
        Ok(Prior {
            stage,
            config: checkpoint.config(&format!("{}/config.json", stage.name()))?,
            scheduler: checkpoint.config(&format!("{scheduler}/scheduler_config.json"))?,
        })
    }

    /// Records the prior with its sampling step.
    pub fn record(&self, source: &dyn WeightSource, shapes: &Shapes) -> Result<Plan> {
        let &Shapes { batch, steps, guided, noise, .. } = shapes;
        let rule = self.scheduler.rule(guided, noise);
        prior::plan(&self.config, source, &Sizes { pictures: batch, steps, rule })
    }

    /// Samples the drafts' image embeddings from their texts, and those with a [`Start`] from that. A start is not mapped into
    /// the prior's own space, as the result is mapped back from it; the original does not do it either.
    pub fn sample(&self, session: &mut Session<'_, '_>, drafts: &mut [Embedding]) -> Result<()> {
        let dim = self.config.embedding_dim;
        let (guided, noise) = (guided(drafts), drawn_by(drafts.iter().map(|draft| &draft.noise)));
        let (steps, scale) = (session.settings.prior_steps, session.settings.prior_guidance);
        let guidance = guided.then_some(scale);
        let sampling = Loop::new("prior", &self.scheduler, ("prior steps", steps), vec![dim], guidance, noise)?;
        let strength = drafts[0].start.as_ref().map(|start| start.strength);
        let first = first_step(("prior strength", strength), ("prior steps", steps))?;
        let sampling = sampling.starting_at(first);
        let taken = sampling.steps();
        let time = time_features(&sampling.timesteps, self.config.inner(), true, 0.0);
        let shapes = Shapes::sampling(1, steps, guided, noise);
        session.stage(self.stage, shapes, drafts.len(), taken, |session, executable, group| {
            let drafts = &mut drafts[group];
            let mut draws = sampling.draw(drafts.iter_mut().map(|draft| &mut draft.noise)).guided_by(drafts, 0);
            let starts = drafts.iter().filter_map(|draft| draft.start.as_ref()).map(|start| &*start.image);
            sampling.begin_from(sampling.share(), starts, &mut draws);
            executable.write("text_embeds", &of_texts(drafts, |text| &text.embeds))?;
            executable.write("hidden", &of_texts(drafts, |text| &text.hidden))?;
            executable.write("mask", &of_texts(drafts, |text| &text.mask))?;
            sampling.trace_start(&draws, session.trace);
            recording::prior_inputs(session.trace, executable)?;
            session.sample(self.stage, &sampling, executable, 0..taken, &time, &mut draws, None)?;
            let found = session.read(self.stage, executable, "image_embeds")?;
            for (draft, image) in drafts.iter_mut().zip(found.chunks_exact(dim)) {
                draft.image = image.to_vec();
            }
            Ok(())
        })
    }
}
