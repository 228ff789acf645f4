//! Pictures of any size, enlarged by super-resolution alone.

use super::event::{Event, Observer, report};
use super::request::Settings;
use super::trace::Trace;
use super::{Keep, Pipeline};
use crate::error::{Error, Result};
use crate::image::Image;
use crate::noise::{NoiseKind, NoiseSource};

/// Most pixels of a result.
const MOST_PIXELS: usize = 1 << 28;

/// A picture to be enlarged.
///
/// ```
/// use unclip::image::Image;
/// use unclip::pipeline::Enlarge;
/// let image = Image { width: 2, height: 1, pixels: vec![0; 6] };
/// let enlarge = Enlarge::new(image).seed(7).tile(96);
/// ```
#[derive(Clone, Debug)]
pub struct Enlarge {
    /// The picture.
    pub image: Image,
    /// How many times as wide and high the result is: what the networks do at once, the default, or a power of that.
    pub times: Option<usize>,
    /// Side of the tiles in pixels of the given picture, by default that of the networks' training. Larger ones see more at
    /// once and need more memory; one as large as the picture is the picture untiled.
    pub tile: Option<usize>,
    /// Steps, from 2; `None` is the checkpoint's default.
    pub steps: Option<usize>,
    /// Seed of the noise. It is drawn for the whole picture, so that tiles share it.
    pub seed: u64,
    /// Which generator turns the seed into noise.
    pub noise: NoiseKind,
}

impl Enlarge {
    /// A picture in the networks' own tiles, with seed 0 and the checkpoint's steps.
    #[must_use]
    pub fn new(image: Image) -> Enlarge {
        Enlarge { image, times: None, tile: None, steps: None, seed: 0, noise: NoiseKind::Torch }
    }

    /// With a result so many times as wide and high.
    #[must_use]
    pub fn times(self, times: usize) -> Enlarge {
        Enlarge { times: Some(times), ..self }
    }

    /// In tiles of this side.
    #[must_use]
    pub fn tile(self, side: usize) -> Enlarge {
        Enlarge { tile: Some(side), ..self }
    }

    /// In so many steps.
    #[must_use]
    pub fn steps(self, steps: usize) -> Enlarge {
        Enlarge { steps: Some(steps), ..self }
    }

    /// With this seed.
    #[must_use]
    pub fn seed(self, seed: u64) -> Enlarge {
        Enlarge { seed, ..self }
    }

    /// How often the networks, which enlarge `own` times, run one after the other.
    pub(super) fn passes(&self, own: usize) -> Result<u32> {
        let times = self.times.unwrap_or(own);
        let passes = if own > 1 { times.checked_ilog(own).unwrap_or(0) } else { 0 };
        let fits = passes > 0 && own.checked_pow(passes) == Some(times);
        fits.then_some(passes).ok_or_else(|| {
            let reason = format!("this checkpoint enlarges {own} times, or a power of that by several passes");
            Error::value("times", times, reason)
        })
    }

    /// Width and height of the result.
    pub(super) fn size(&self, times: usize) -> Result<[usize; 2]> {
        let [width, height] = [self.image.width, self.image.height].map(|side| side.saturating_mul(times));
        if width.checked_mul(height).is_none_or(|pixels| pixels > MOST_PIXELS) {
            let reason = format!("the result would have {width}x{height} pixels, of {MOST_PIXELS} at most");
            return Err(Error::value("times", times, reason));
        }
        Ok([width, height])
    }

    pub(super) fn noise(&self) -> NoiseSource {
        NoiseSource::new(self.noise, self.seed)
    }
}

impl Pipeline {
    /// Width and height that a picture will have, with all that is checked before anything is loaded.
    ///
    /// # Errors
    /// [`Error::Request`] for settings out of range, [`Error::Unsupported`] if the checkpoint has no super-resolution.
    pub fn enlarged_size(&self, enlarge: &Enlarge) -> Result<[usize; 2]> {
        enlarge.image.check()?;
        self.family.enlarged_size(enlarge, &self.enlarge_settings(enlarge))
    }

    fn enlarge_settings(&self, enlarge: &Enlarge) -> Settings {
        let defaults = *self.defaults();
        Settings { super_res_steps: enlarge.steps.unwrap_or(defaults.super_res_steps), ..defaults }
    }

    /// Enlarges a picture of any size by super-resolution alone, tile by tile.
    ///
    /// All tiles take a step before any takes the next, and what they make is blended after each, so that neighbours see
    /// what they have in common.
    ///
    /// # Errors
    /// As for [`Pipeline::run`]; [`Error::Unsupported`] if the checkpoint has no super-resolution.
    pub fn enlarge_alone(&self, enlarge: &Enlarge, observer: &mut Observer<'_>) -> Result<Image> {
        self.enlarged_size(enlarge)?;
        let mut trace = Trace::off();
        let mut session = self.session_with(self.enlarge_settings(enlarge), observer, &mut trace);
        let image = self.family.enlarge_alone(&mut session, enlarge);
        if self.residents.keep == Keep::Nothing {
            self.residents.trim(0);
        }
        let image = image?;
        report(session.observer, Event::Picture { index: 0, image: &image })?;
        Ok(image)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_powers_of_what_the_networks_do() {
        let of = |times: Option<usize>, own| {
            let image = Image { width: 1, height: 1, pixels: vec![0; 3] };
            Enlarge { times, ..Enlarge::new(image) }.passes(own).map_err(|e| e.to_string())
        };
        assert_eq!((of(None, 4), of(Some(4), 4), of(Some(16), 4), of(Some(8), 2)), (Ok(1), Ok(1), Ok(2), Ok(3)));
        for (times, own) in [(2, 4), (0, 4), (1, 4), (8, 4), (usize::MAX, 4), (1, 1)] {
            assert!(of(Some(times), own).unwrap_err().starts_with(&format!("times {times}: this checkpoint enlarges")));
        }
    }
}
