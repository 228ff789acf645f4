//! Given pictures alone: what the networks say of one at the level of its noise, and the noise that leads to one.

use super::stages::Condition;
use super::{DECODER, SUPER_RES_FIRST, UnClip};
use crate::error::Result;
use crate::image::Image;
use crate::ops::Noise;
use crate::pipeline::family::{Embedding, Shapes};
use crate::pipeline::invert::{Inversion, Up, levels};
use crate::pipeline::parts::time_table;
use crate::pipeline::sampling::{AfterStep, Draws, Loop, StepNoise};
use crate::pipeline::session::Session;

impl UnClip {
    /// A picture in the size of the finished ones with less noise: `sigma` is the standard deviation of its noise, 1 from black
    /// to white. The decoder estimates the small picture from the given one, made small, and super-resolution the large one
    /// from both.
    pub fn clean_picture(
        &self,
        session: &mut Session<'_, '_>,
        draft: Embedding,
        image: &Image,
        sigma: f32,
    ) -> Result<Vec<f32>> {
        let (size, small_size) = (self.super_res_first.sample_size.unwrap_or(0), self.decoder.sample_size.unwrap_or(0));
        let conditions = self.project(session, std::slice::from_ref(&draft))?;
        let given = image.resized(size, size);
        // A block's mean has less noise, by the root of its pixels.
        let level = 2.0 * sigma * small_size as f32 / size as f32;
        let shape = vec![small_size, small_size, self.decoder.in_channels];
        let (sampling, share) = Loop::estimating("decoder", &self.decoder_scheduler, level, shape);
        let sample = given.resized(small_size, small_size).unit_range().into_iter().map(|x| share * x);
        let small = self.pass(session, &conditions[0][0], &sampling, sample.collect(), None)?;
        let small: Vec<f32> = small.into_iter().map(|x| x.clamp(-1.0, 1.0)).collect();
        let shape = vec![size, size, self.super_res_first.out_channels];
        let (sampling, share) = Loop::estimating("super_res", &self.super_res_scheduler, 2.0 * sigma, shape);
        let time = time_table(&sampling, &self.super_res_first);
        let mut latents = given.unit_range();
        let shapes = Shapes::sampling(1, 1, false, Noise::Given);
        session.stage(SUPER_RES_FIRST, shapes, 1, 1, |session, executable, _| {
            latents.iter_mut().for_each(|x| *x *= share);
            let mut draws = Draws::new(std::mem::take(&mut latents), StepNoise::None);
            executable.write("small", &small)?;
            session.sample(SUPER_RES_FIRST, &sampling, executable, 0..1, &time, &mut draws, None)?;
            latents = draws.latents;
            Ok(())
        })?;
        Ok(latents)
    }

    /// The noise of which the decoder makes a picture: steps from it up to the last level.
    pub fn invert_picture(&self, session: &mut Session<'_, '_>, draft: Embedding, image: &Image) -> Result<Inversion> {
        let timesteps = levels(&self.decoder_scheduler, session.settings.decoder_steps)?;
        let conditions = self.project(session, std::slice::from_ref(&draft))?;
        let (size, c) = (self.decoder.sample_size.unwrap_or(0), self.decoder.in_channels);
        let shape = vec![size, size, c];
        let sample = image.resized(size, size).unit_range();
        let up = timesteps.iter().flat_map(|&t| [t; Up::ROUNDS]).collect();
        let sampling = Loop::through("decoder", &self.decoder_scheduler, up, shape, false);
        let mut after = Up::new(&self.decoder_scheduler, &timesteps, sample.clone(), c);
        let latents = self.pass(session, &conditions[0][0], &sampling, sample, Some(&mut after))?;
        Ok(Inversion { latents, shape: [size, size, c], timesteps })
    }

    /// The decoder's steps for one picture, without guidance and noise.
    fn pass(
        &self,
        session: &mut Session<'_, '_>,
        condition: &Condition,
        sampling: &Loop,
        latents: Vec<f32>,
        mut after: Option<&mut dyn AfterStep>,
    ) -> Result<Vec<f32>> {
        let steps = sampling.steps();
        let time = time_table(sampling, &self.decoder);
        let mut draws = Draws::new(latents, StepNoise::None);
        let shapes = Shapes::sampling(1, steps, false, Noise::Given);
        session.stage(DECODER, shapes, 1, steps, |session, executable, _| {
            Condition::write(std::iter::once(condition), executable)?;
            let after = after.take();
            session.sample(DECODER, sampling, executable, 0..steps, &time, &mut draws, after)
        })?;
        Ok(draws.latents)
    }
}
