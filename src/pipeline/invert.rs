//! DDIM inversion: the noise of which the decoder makes a given picture.
//!
//! Without noise of its own a step is an equation between two levels of noise, which can be followed in either direction
//! (Song et al. 2021, section 4.3). From the picture upwards it leads to latents that hold what its embedding does not say;
//! from them downwards, with the same or with another embedding, it leads back (Ramesh et al. 2022, section 3).
//!
//! The steps are taken here and not by the device, which has no such step in its plans: the latents are small.

use super::sampling::{AfterStep, Loop};
use crate::backend::Executable;
use crate::diffusion::{Schedule, SchedulerConfig};
use crate::error::{Error, Result};
use crate::ops::Prediction;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::path::Path;

/// Standard deviation of the noise in the latents beside a picture in -1..1. Beyond, what the network says of the picture is
/// multiplied by so much that nothing leads back.
const LEVEL: f32 = 20.0;
/// What the file says that it is.
const KIND: &str = "unclip inversion";

/// A picture as the decoder's noise.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Inversion {
    /// `[H, W, C]`, channels last.
    pub latents: Vec<f32>,
    /// Height, width and channels.
    pub shape: [usize; 3],
    /// The levels that were passed through, from the picture on.
    pub timesteps: Vec<u32>,
}

impl Inversion {
    /// Writes a safetensors file: `latents [H, W, C]` and `timesteps [S]`.
    ///
    /// # Errors
    /// [`Error::Io`]; `path` is then as it was.
    pub fn write(&self, path: &Path) -> Result<()> {
        let failed = |e: safetensors::SafeTensorError| Error::io(path, "write", std::io::Error::other(e.to_string()));
        let bytes = |values: &[u32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        let latents: Vec<u8> = self.latents.iter().flat_map(|x| x.to_le_bytes()).collect();
        let timesteps = bytes(&self.timesteps);
        let tensors = [
            ("latents", TensorView::new(Dtype::F32, self.shape.to_vec(), &latents).map_err(failed)?),
            ("timesteps", TensorView::new(Dtype::U32, vec![self.timesteps.len()], &timesteps).map_err(failed)?),
        ];
        let about = std::iter::once(("kind".to_owned(), KIND.to_owned())).collect();
        let file = safetensors::serialize(tensors, Some(about)).map_err(failed)?;
        let mut output = crate::output::Output::create(path)?;
        std::io::Write::write_all(&mut output, &file).map_err(|e| Error::io(path, "write", e))?;
        output.finish()
    }

    /// Reads what [`Inversion::write`] wrote.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read or is something else.
    pub fn read(path: &Path) -> Result<Inversion> {
        let refused = |why: &str| {
            let why = format!("expected the latents that engine invert writes; {why}");
            Error::io(path, "read", std::io::Error::new(std::io::ErrorKind::InvalidData, why))
        };
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, "read", e))?;
        let file = SafeTensors::deserialize(&bytes).map_err(|_| refused("no safetensors file"))?;
        let latents = file.tensor("latents").map_err(|_| refused("no tensor latents"))?;
        let timesteps = file.tensor("timesteps").map_err(|_| refused("no tensor timesteps"))?;
        let shape =
            <[usize; 3]>::try_from(latents.shape()).map_err(|_| refused("latents have not three dimensions"))?;
        if latents.dtype() != Dtype::F32 || timesteps.dtype() != Dtype::U32 {
            return Err(refused("of other types"));
        }
        let words = |bytes: &[u8]| bytes.as_chunks::<4>().0.to_vec();
        let inversion = Inversion {
            latents: words(latents.data()).into_iter().map(f32::from_le_bytes).collect(),
            shape,
            timesteps: words(timesteps.data()).into_iter().map(u32::from_le_bytes).collect(),
        };
        let rises = inversion.timesteps.windows(2).all(|pair| pair[0] < pair[1]);
        match inversion.latents.iter().all(|x| x.is_finite()) && rises && inversion.timesteps.len() > 1 {
            true => Ok(inversion),
            false => Err(refused("values that are not finite, or timesteps that do not rise")),
        }
    }
}

/// The levels of an inversion in so many steps, from the picture on.
///
/// # Errors
/// There are not as many.
pub(super) fn levels(config: &SchedulerConfig, steps: usize) -> Result<Vec<u32>> {
    let last = Schedule::new(config).timestep_of(LEVEL) as usize;
    if !(2..=last + 1).contains(&steps) {
        return Err(Error::value("decoder steps", steps, format!("must be 2 to {}", last + 1)));
    }
    Ok((0..steps).map(|k| (k * last / (steps - 1)) as u32).collect())
}

/// What the network predicts of `B` samples, as noise.
struct Predictions {
    prediction: Prediction,
    guidance: Option<f32>,
    channels: usize,
}

impl Predictions {
    /// The noise `[B, .., C]` that the network sees in `x`, of whose variance this share is the sample's.
    ///
    /// # Formula
    /// `eps`, or of a network that predicts the sample `(x - sqrt(alpha_bar) x0) / sqrt(1 - alpha_bar)`
    fn noise(&self, executable: &mut dyn Executable, x: &[f32], share: f64) -> Result<Vec<f64>> {
        let output = executable.read("model_output")?;
        let (rows, c) = (if self.guidance.is_some() { 2 } else { 1 }, self.channels);
        // The network may predict a variance behind each position's noise.
        let wide = output.len() / rows / (x.len() / c);
        let half = output.len() / rows * (rows - 1);
        let noise = |(at, x): (usize, &f32)| {
            let at = at / c * wide + at % c;
            let [unconditional, conditional] = [at, half + at].map(|at| f64::from(output[at]));
            let predicted = unconditional + f64::from(self.guidance.unwrap_or(1.0)) * (conditional - unconditional);
            match self.prediction {
                Prediction::Sample => (f64::from(*x) - share.sqrt() * predicted) / (1.0 - share).sqrt(),
                _ => predicted,
            }
        };
        Ok(x.iter().enumerate().map(noise).collect())
    }
}

/// `x` at another share of the sample, where it has this noise.
///
/// # Formula
/// `x' = sqrt(alpha_bar' / alpha_bar) (x - sqrt(1 - alpha_bar) eps) + sqrt(1 - alpha_bar') eps`
///
/// # Source
/// Song et al. 2021, eq. 12 with sigma 0.
fn moved(x: &[f32], noise: &[f64], [share, next]: [f64; 2]) -> Vec<f32> {
    let step = |(x, noise): (&f32, &f64)| {
        let original = (f64::from(*x) - (1.0 - share).sqrt() * noise) / share.sqrt();
        (next.sqrt() * original + (1.0 - next).sqrt() * noise) as f32
    };
    x.iter().zip(noise).map(step).collect()
}

/// The shares of the sample at some levels.
fn shares(config: &SchedulerConfig, levels: &[u32]) -> Vec<f64> {
    let schedule = Schedule::new(config);
    levels.iter().map(|&t| schedule.alpha_bar.get(t as usize).copied().map_or(0.0, f64::from)).collect()
}

/// Steps without noise down some levels, to the clean sample behind the last.
pub(super) struct Down {
    shares: Vec<f64>,
    predictions: Predictions,
    /// `[B, .., C]`
    x: Vec<f32>,
}

impl Down {
    /// From `x` at the first of the levels.
    pub fn new(config: &SchedulerConfig, levels: &[u32], guidance: Option<f32>, x: Vec<f32>, channels: usize) -> Down {
        let predictions = Predictions { prediction: config.prediction, guidance, channels };
        Down { shares: [&shares(config, levels)[..], &[1.0]].concat(), predictions, x }
    }
}

impl AfterStep for Down {
    fn after(&mut self, _: &Loop, step: usize, executable: &mut dyn Executable) -> Result<Vec<f32>> {
        let noise = self.predictions.noise(executable, &self.x, self.shares[step])?;
        self.x = moved(&self.x, &noise, [self.shares[step], self.shares[step + 1]]);
        Ok(self.x.clone())
    }
}

/// Steps without noise up some levels, from the clean sample before the first.
///
/// A step up is the one that the step down undoes: its noise is what the network sees where the step ends. That is found by
/// taking it several times, each time with the noise seen where it last ended.
pub(super) struct Up {
    shares: Vec<f64>,
    predictions: Predictions,
    /// Where the present level's steps begin, and where the last one ended, `[.., C]`.
    from: Vec<f32>,
    x: Vec<f32>,
}

impl Up {
    /// Times that each level's step is taken.
    pub const ROUNDS: usize = 3;

    /// From a clean sample.
    pub fn new(config: &SchedulerConfig, levels: &[u32], x: Vec<f32>, channels: usize) -> Up {
        let predictions = Predictions { prediction: config.prediction, guidance: None, channels };
        Up { shares: [&[1.0], &shares(config, levels)[..]].concat(), predictions, from: x.clone(), x }
    }
}

impl AfterStep for Up {
    fn after(&mut self, _: &Loop, step: usize, executable: &mut dyn Executable) -> Result<Vec<f32>> {
        let level = step / Up::ROUNDS;
        let pair = [self.shares[level], self.shares[level + 1]];
        let noise = self.predictions.noise(executable, &self.x, pair[1])?;
        self.x = moved(&self.from, &noise, pair);
        if step % Up::ROUNDS + 1 == Up::ROUNDS {
            self.from.clone_from(&self.x);
        }
        Ok(self.x.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inversion_is_read_as_it_was_written_and_other_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("noise.safetensors");
        let inversion = Inversion { latents: vec![0.5, -1.5, 3.0], shape: [1, 1, 3], timesteps: vec![0, 40, 900] };
        inversion.write(&path).unwrap();
        assert_eq!(Inversion::read(&path).unwrap(), inversion);
        Inversion { timesteps: vec![3, 2], ..inversion }.write(&path).unwrap();
        assert!(Inversion::read(&path).unwrap_err().to_string().contains("timesteps that do not rise"));
        std::fs::write(&path, b"nothing").unwrap();
        assert!(Inversion::read(&path).unwrap_err().to_string().contains("that engine invert writes; no safetensors"));
    }

    #[test]
    fn levels_rise_from_the_picture_and_end_before_nothing_of_it_is_left() {
        let levels = levels(&SchedulerConfig::default(), 50).unwrap();
        assert_eq!((levels.len(), levels[0]), (50, 0));
        assert!(levels.windows(2).all(|pair| pair[0] < pair[1]) && (900..999).contains(&levels[49]), "{levels:?}");
        assert!(super::levels(&SchedulerConfig::default(), 1).is_err());
    }
}
