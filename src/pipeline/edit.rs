//! Given pictures that requests begin from: what of them stays, and how it stays while the rest is sampled.
//!
//! A picture that is edited enters the sampling loop in two ways. Its noised form may be where the loop begins, so that
//! the loop redraws it (Meng et al. 2022). And where a mask says so it stays: after every step that part is replaced by the
//! given picture with the noise of the timestep reached, so that the rest grows to fit it (Lugmayr et al. 2022, RePaint).

use super::sampling::{AfterStep, Draws, Loop, drawn};
use crate::backend::Executable;
use crate::error::{Error, Result};
use crate::image::{Image, Mask};
use crate::noise::NoiseSource;
use std::sync::Arc;

/// Most times that a step may be taken.
const MOST_RESAMPLES: usize = 64;

/// A picture that is edited.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Edit {
    /// The picture. It is resized to the size of the request's pictures.
    pub image: Image,
    /// What of it is made anew; without a mask all of it is redrawn.
    pub mask: Option<Mask>,
    /// Share of the steps that are taken, above 0 and at most 1: they begin from the picture with noise, not from noise
    /// alone, and the less are taken, the more of it is left. `None` is all steps from noise with a mask, and the family's
    /// default without.
    pub strength: Option<f32>,
    /// How often each step is taken, each time from the last one's result with new noise, so that what is new fits what
    /// stays: `U` of RePaint's algorithm. 1 is once. Of use with a mask alone.
    pub resample: usize,
}

impl Edit {
    /// Redraws a picture.
    #[must_use]
    pub fn redraw(image: Image, strength: Option<f32>) -> Edit {
        Edit { image, mask: None, strength, resample: 1 }
    }

    /// Makes a part of a picture anew.
    #[must_use]
    pub fn inpaint(image: Image, mask: Mask) -> Edit {
        Edit { image, mask: Some(mask), strength: None, resample: 1 }
    }

    /// Takes every step so often.
    #[must_use]
    pub fn resampled(self, resample: usize) -> Edit {
        Edit { resample, ..self }
    }

    /// Takes this share of the steps.
    #[must_use]
    pub fn with_strength(self, strength: Option<f32>) -> Edit {
        Edit { strength, ..self }
    }

    /// Refuses what no checkpoint could do.
    pub(super) fn check(&self) -> Result<()> {
        self.image.check()?;
        self.mask.iter().try_for_each(|mask| mask.check(&self.image))?;
        if let Some(strength) = self.strength.filter(|strength| !(*strength > 0.0 && *strength <= 1.0)) {
            return Err(Error::value("strength", strength, "must be above 0 and at most 1"));
        }
        if !(1..=MOST_RESAMPLES).contains(&self.resample) {
            return Err(Error::value("resample", self.resample, format!("must be 1 to {MOST_RESAMPLES}")));
        }
        if self.mask.is_none() && self.resample > 1 {
            return Err(Error::value("resample", self.resample, "is of use with a mask alone"));
        }
        Ok(())
    }
}

/// The first of so many steps that is taken at a strength, each with its setting's name.
///
/// # Errors
/// None would be.
pub(super) fn first_step((what, strength): (&str, Option<f32>), (of, steps): (&str, usize)) -> Result<usize> {
    let Some(strength) = strength else { return Ok(0) };
    let taken = ((steps as f64 * decimal(strength)) as usize).min(steps);
    if taken == 0 {
        return Err(Error::value(what, strength, format!("of {steps} {of} none would be taken")));
    }
    Ok(steps - taken)
}

/// A setting as the number that was written: 0.7 of ten steps are seven, but six of its f32.
pub(super) fn decimal(setting: f32) -> f64 {
    setting.to_string().parse().unwrap_or_else(|_| f64::from(setting))
}

/// An edit as the stages of a family take it.
#[derive(Debug)]
pub(super) struct Prepared {
    /// What the decoder samples.
    pub small: Given,
    /// What super-resolution samples, where a mask says what of it stays.
    pub large: Option<Given>,
    /// Share of the decoder's steps that are taken.
    pub strength: Option<f32>,
    /// How often each step is taken.
    pub resample: usize,
}

impl Prepared {
    /// The decoder's loop for this edit, and where it begins.
    pub fn sampling(&self, sampling: Loop) -> Result<Loop> {
        let first = first_step(("strength", self.strength), ("decoder steps", sampling.steps()))?;
        Ok(sampling.starting_at(first).resampled(self.resample))
    }

    /// Lets the loop begin from what is given, with this share of its variance, if steps are left out.
    pub fn begin(&self, sampling: &Loop, share: f32, draws: &mut Draws) {
        if self.strength.is_some() {
            sampling.begin_from(share, std::iter::repeat(&*self.small.sample), draws);
        }
    }
}

/// The edit that all of these have, if they have one.
///
/// # Errors
/// Some have another one.
pub(super) fn shared<'d>(edits: impl IntoIterator<Item = &'d Option<Arc<Prepared>>>) -> Result<Option<Arc<Prepared>>> {
    let mut edits = edits.into_iter();
    let first = edits.next().cloned().flatten();
    match edits.all(|edit| edit.as_ref().map(Arc::as_ptr) == first.as_ref().map(Arc::as_ptr)) {
        true => Ok(first),
        false => Err(Error::request("embedding", "of different edits; pictures of one edit are painted together")),
    }
}

/// A given sample.
#[derive(Debug)]
pub(super) struct Given {
    /// `[H, W, C]`
    pub sample: Vec<f32>,
    /// 1 where it stays and 0 where it is new, `[H, W]`; `None` if nothing has to stay.
    pub stays: Option<Vec<f32>>,
}

impl Given {
    /// What stays of it, if anything does.
    pub fn known<'k>(&'k self, noise: KnownNoise<'k>) -> Option<Known<'k>> {
        self.stays.as_deref().map(|stays| Known { given: &self.sample, stays, noise })
    }
}

/// What of a group's pictures stays while they are sampled.
pub(super) struct Known<'k> {
    /// Of one picture, `[.., C]`.
    given: &'k [f32],
    /// 1 where it stays and 0 where it is new, `[..]`.
    stays: &'k [f32],
    noise: KnownNoise<'k>,
}

/// The noise of what stays.
pub(super) enum KnownNoise<'k> {
    /// In all steps that which the loop began from, `[B, .., C]`, as Kandinsky does it.
    OfStart(Vec<f32>),
    /// Drawn for every step from each picture's source, as RePaint does it.
    Drawn(Vec<&'k mut NoiseSource>),
}

impl AfterStep for Known<'_> {
    fn after(&mut self, sampling: &Loop, step: usize, executable: &mut dyn Executable) -> Result<Vec<f32>> {
        let mut x = executable.read("x")?;
        self.replace(sampling, step, &mut x);
        Ok(x)
    }
}

impl Known<'_> {
    /// Replaces what stays in `x [B, .., C]`, to which a step has come. Where the step is taken again, noise leads back to
    /// where it began.
    ///
    /// # Formula
    /// `x = m (sqrt(alpha_bar') x0 + sqrt(1 - alpha_bar') noise) + (1 - m) x`, then `sqrt(1 - beta) x + sqrt(beta) noise`
    /// with the step's `beta`.
    ///
    /// # Source
    /// Lugmayr et al. 2022, algorithm 1; diffusers' `KandinskyV22InpaintPipeline`.
    fn replace(&mut self, sampling: &Loop, step: usize, x: &mut [f32]) {
        let [share, rest] = sampling.shares_after(step);
        let c = self.given.len() / self.stays.len();
        for (k, x) in x.chunks_exact_mut(self.given.len()).enumerate() {
            let noise = match &mut self.noise {
                KnownNoise::OfStart(noise) => noise[k * x.len()..(k + 1) * x.len()].to_vec(),
                KnownNoise::Drawn(_) if rest == 0.0 => vec![0.0; x.len()],
                KnownNoise::Drawn(sources) => drawn(sources[k], x.len(), c),
            };
            for (i, x) in x.iter_mut().enumerate() {
                let (m, known) = (self.stays[i / c], share * self.given[i] + rest * noise[i]);
                *x = m * known + (1.0 - m) * *x;
            }
        }
        if let (Some([share, rest]), KnownNoise::Drawn(sources)) = (sampling.shares_back(step), &mut self.noise) {
            for (source, x) in sources.iter_mut().zip(x.chunks_exact_mut(self.given.len())) {
                let noise = drawn(source, x.len(), c);
                x.iter_mut().zip(noise).for_each(|(x, noise)| *x = share * *x + rest * noise);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strength_counts_steps_as_its_decimal_does() {
        let taken = |strength, steps| steps - first_step(("strength", Some(strength)), ("steps", steps)).unwrap();
        // As Python's int(steps * strength).
        let cases = [(0.7, 10, 7), (0.9, 10, 9), (0.3, 10, 3), (0.29, 100, 28), (1.0, 25, 25), (0.3, 25, 7)];
        for (strength, steps, want) in cases {
            assert_eq!(taken(strength, steps), want, "{strength} of {steps}");
        }
        let error = first_step(("strength", Some(0.01)), ("prior steps", 25)).unwrap_err().to_string();
        assert_eq!(error, "strength 0.01: of 25 prior steps none would be taken");
    }
}
