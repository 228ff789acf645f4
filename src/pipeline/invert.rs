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

/// Steps without noise between levels, taken from what the network predicts.
pub(super) struct Deterministic {
    /// Shares of the sample before and after each step.
    shares: Vec<[f32; 2]>,
    prediction: Prediction,
    guidance: Option<f32>,
    /// `[B, .., C]`
    x: Vec<f32>,
    channels: usize,
}

impl Deterministic {
    /// From the first of these levels to the last; behind level 0 downwards comes the clean sample.
    pub fn new(config: &SchedulerConfig, levels: &[u32], guidance: Option<f32>, x: Vec<f32>, channels: usize) -> Self {
        let schedule = Schedule::new(config);
        let share = |t: &u32| schedule.alpha_bar.get(*t as usize).copied().unwrap_or(0.0);
        let shares = levels.iter().enumerate().map(|(i, t)| [share(t), levels.get(i + 1).map_or(1.0, share)]).collect();
        Deterministic { shares, prediction: config.prediction, guidance, x, channels }
    }
}

impl AfterStep for Deterministic {
    /// # Formula
    /// `x0 = (x - sqrt(1 - alpha_bar) eps) / sqrt(alpha_bar)`, `x' = sqrt(alpha_bar') x0 + sqrt(1 - alpha_bar') eps`
    ///
    /// # Source
    /// Song et al. 2021, eq. 12 with sigma 0.
    fn after(&mut self, _: &Loop, step: usize, executable: &mut dyn Executable) -> Result<Vec<f32>> {
        let output = executable.read("model_output")?;
        let rows = if self.guidance.is_some() { 2 } else { 1 };
        let c = self.channels;
        // The network may predict a variance behind each position's noise.
        let wide = output.len() / rows / (self.x.len() / c);
        let half = output.len() / rows * (rows - 1);
        let [share, next] = self.shares[step].map(f64::from);
        for (position, x) in self.x.chunks_exact_mut(c).enumerate() {
            for (k, x) in x.iter_mut().enumerate() {
                let [unconditional, conditional] =
                    [position * wide + k, half + position * wide + k].map(|at| f64::from(output[at]));
                let scale = f64::from(self.guidance.unwrap_or(1.0));
                let predicted = unconditional + scale * (conditional - unconditional);
                let present = f64::from(*x);
                let [original, noise] = match self.prediction {
                    Prediction::Sample => [predicted, (present - share.sqrt() * predicted) / (1.0 - share).sqrt()],
                    _ => [(present - (1.0 - share).sqrt() * predicted) / share.sqrt(), predicted],
                };
                *x = (next.sqrt() * original + (1.0 - next).sqrt() * noise) as f32;
            }
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
