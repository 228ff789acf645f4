//! The steps of a run: where they lead, and the coefficients of each.
//!
//! Samplers without noise differ in the timesteps and in how they weigh what the model said in the last steps. All of them
//! build on the step of DDIM (Song et al. 2021, eq. 12): with what it predicts the model gives an estimate of the clean
//! sample and one of its noise, of which the next state is mixed. Euler's method on `x / sqrt(alpha_bar)` is the same
//! step, and so is DPM-Solver++ of the first order.

use super::sampler::coefficients;
use super::schedule::{Jump, Schedule, Spacing};
use super::scheduler::{Sampler, SchedulerConfig};
use crate::ops::{COEFFICIENTS, Prediction};
use crate::{Error, Result};

/// The steps of a run: one call of the model each.
#[derive(Clone, Debug)]
pub struct Run {
    /// From the noisiest on. Euler's method passes through fractions.
    pub timesteps: Vec<f32>,
    /// What a step's [rule](SchedulerConfig::rule) reads.
    pub coefficients: Vec<[f32; COEFFICIENTS]>,
    /// Where each step leads from and to.
    pub jumps: Vec<Jump>,
    /// Standard deviation of the noise that the run begins with.
    pub start: f32,
}

impl Run {
    /// A run of so many steps. `setting` is the caller's name for their number, for messages.
    ///
    /// # Errors
    /// [`Error::Request`] for a number of steps that the schedule does not have.
    pub fn new(config: &SchedulerConfig, (setting, steps): (&str, usize), guidance: f32) -> Result<Run> {
        let schedule = Schedule::new(config);
        if !config.sampler.is_multistep() {
            let timesteps = schedule.timesteps(setting, steps)?;
            return Ok(Run {
                coefficients: coefficients(&schedule, &timesteps, guidance),
                jumps: schedule.jumps(&timesteps),
                timesteps: timesteps.iter().map(|&t| t as f32).collect(),
                start: 1.0,
            });
        }
        let places = places(config, &schedule, (setting, steps))?;
        let rows = match config.sampler {
            Sampler::Pndm => plms(config.prediction, &places),
            Sampler::DpmSolver => dpm_solver(config.prediction, &places),
            _ => places.iter().map(|place| place.alone(config.prediction)).collect(),
        };
        let row = |row: [f64; 8]| {
            let mut all = [guidance; COEFFICIENTS];
            all.iter_mut().zip(row).for_each(|(narrow, wide)| *narrow = wide as f32);
            all
        };
        let jump = |place: &Place| {
            let [before, after] = place.shares.map(|share| share as f32);
            Jump { alpha_bar: [before, after], beta: [1.0 - before / after, before / after] }
        };
        // diffusers' Euler keeps `x / sqrt(alpha_bar)`, and with even spacing takes its first deviation for the noise's.
        let is_even = config.sampler == Sampler::Euler && config.spacing == Spacing::Even;
        let first = places.first().map_or(0.0, |place| place.shares[0]);
        Ok(Run {
            timesteps: places.iter().map(|place| place.timestep).collect(),
            coefficients: rows.into_iter().map(row).collect(),
            jumps: places.iter().map(jump).collect(),
            start: if is_even { (1.0 - first).sqrt() as f32 } else { 1.0 },
        })
    }
}

/// Where a call of the model stands, and where the step behind it leads.
#[derive(Clone, Copy, Debug)]
struct Place {
    timestep: f32,
    /// `alpha_bar` before and after.
    shares: [f64; 2],
}

impl Place {
    /// Weights of `x_t` and of the model's output in its estimates of the clean sample and of the noise.
    fn estimates(&self, prediction: Prediction) -> [[f64; 2]; 2] {
        let [root, rest] = [self.shares[0].sqrt(), (1.0 - self.shares[0]).sqrt()];
        match prediction {
            Prediction::Epsilon => [[1.0 / root, -rest / root], [0.0, 1.0]],
            Prediction::Sample => [[0.0, 1.0], [1.0 / rest, -root / rest]],
            Prediction::Velocity => [[root, -rest], [rest, root]],
        }
    }

    /// Weights of `x_t` and of the model's output in DDIM's next state.
    fn ddim(&self, prediction: Prediction) -> [f64; 2] {
        let [clean, noise] = self.estimates(prediction);
        let [root, rest] = [self.shares[1].sqrt(), (1.0 - self.shares[1]).sqrt()];
        [0, 1].map(|of| root * clean[of] + rest * noise[of])
    }

    /// `ln(alpha_bar / (1 - alpha_bar)) / 2` before and after: half the logarithm of the signal-to-noise ratio.
    fn log_ratios(&self) -> [f64; 2] {
        self.shares.map(|share| (share / (1.0 - share)).ln() / 2.0)
    }

    /// The row of a step without a past.
    fn alone(&self, prediction: Prediction) -> [f64; 8] {
        let [kept, output] = self.ddim(prediction);
        [0.0, 1.0, kept, output, 0.0, 0.0, 0.0, 0.0]
    }
}

/// The calls of a run.
fn places(config: &SchedulerConfig, schedule: &Schedule, (setting, steps): (&str, usize)) -> Result<Vec<Place>> {
    let count = config.num_train_timesteps;
    let offset = if let Spacing::Leading { offset } = config.spacing { offset } else { 0 };
    // DPM-Solver++ spaces one step more and leaves out the last.
    let more = usize::from(config.sampler == Sampler::DpmSolver);
    let most = count.saturating_sub(offset + more);
    if !(1..=most).contains(&steps) {
        return Err(Error::value(setting, steps, format!("must be 1 to {most}")));
    }
    let stride = count / (steps + more);
    let timestep = |k: usize| match config.spacing {
        Spacing::Leading { offset } => ((k + more) * stride + offset) as f32,
        _ if steps + more == 1 => 0.0,
        _ => {
            let t = (k + more) as f64 * (count - 1) as f64 / (steps + more - 1) as f64;
            if more == 1 { t.round_ties_even() as f32 } else { t as f32 }
        }
    };
    let timesteps: Vec<f32> = (0..steps).rev().map(timestep).collect();
    if matches!(config.sampler, Sampler::Euler | Sampler::DpmSolver) {
        let share = |&t: &f32| share_between(&schedule.alpha_bar, t);
        let shares: Vec<f64> = timesteps.iter().map(share).chain([1.0]).collect();
        let place = |(&timestep, shares): (&f32, &[f64])| Place { timestep, shares: [shares[0], shares[1]] };
        return Ok(timesteps.iter().zip(shares.windows(2)).map(place).collect());
    }
    let share = |t: usize| f64::from(schedule.alpha_bar[t]);
    let end = if config.ends_clean { 1.0 } else { share(0) };
    let place = |&timestep: &f32| {
        let t = timestep as usize;
        Place { timestep, shares: [share(t), t.checked_sub(stride).map_or(end, share)] }
    };
    let mut places: Vec<Place> = timesteps.iter().map(place).collect();
    if config.sampler == Sampler::Pndm && steps > 1 {
        // The first step is corrected by what the model says at its end, where the second begins.
        places.insert(1, Place { timestep: places[1].timestep, ..places[0] });
    }
    Ok(places)
}

/// `alpha_bar` at a fraction of a timestep: the deviations `sqrt((1 - alpha_bar) / alpha_bar)` are interpolated.
fn share_between(alpha_bar: &[f32], timestep: f32) -> f64 {
    let deviation = |t: usize| {
        let share = alpha_bar[t.min(alpha_bar.len() - 1)];
        f64::from(((1.0 - share) / share).sqrt())
    };
    let (whole, part) = (timestep.floor(), f64::from(timestep.fract()));
    let below = deviation(whole as usize);
    let between = below + part * (deviation(whole as usize + 1) - below);
    1.0 / (1.0 + between * between)
}

/// Liu et al. 2022 (PNDM), eq. 12, without Runge-Kutta steps: the first step is taken twice, the second time with the mean
/// of the model's outputs at both of its ends.
fn plms(prediction: Prediction, places: &[Place]) -> Vec<[f64; 8]> {
    let row = |(call, place): (usize, &Place)| {
        let [kept, output] = place.ddim(prediction);
        // Weights of this output and of those of the four calls before it. The second call's is in no later sum.
        let weights = match call {
            0 => [1.0, 0.0, 0.0, 0.0, 0.0],
            // From where the first call came to: half of its output is replaced.
            1 => return [0.0, 1.0, 1.0, output / 2.0, -output / 2.0, 0.0, 0.0, 0.0],
            2 => [3.0 / 2.0, 0.0, -1.0 / 2.0, 0.0, 0.0],
            3 => [23.0 / 12.0, -16.0 / 12.0, 0.0, 5.0 / 12.0, 0.0],
            4 => [55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, 0.0, -9.0 / 24.0],
            _ => [55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0, 0.0],
        };
        let [now, one, two, three, four] = weights.map(|weight| weight * output);
        [0.0, 1.0, kept, now, one, two, three, four]
    };
    places.iter().enumerate().map(row).collect()
}

/// Lu et al. 2022 (DPM-Solver++), algorithm 2, on estimates of the clean sample; the first and the last step are of the first
/// order.
fn dpm_solver(prediction: Prediction, places: &[Place]) -> Vec<[f64; 8]> {
    let row = |(step, place): (usize, &Place)| {
        let [of_state, of_output] = place.estimates(prediction)[0];
        let [[root, rest], [root_after, rest_after]] = place.shares.map(|share| [share.sqrt(), (1.0 - share).sqrt()]);
        let kept = rest_after / rest;
        let clean = root_after - root * kept;
        let change = match step.checked_sub(1).map(|before| places[before].log_ratios()) {
            Some([earlier, present]) if step + 1 < places.len() => {
                0.5 * (place.log_ratios()[1] - present) / (present - earlier)
            }
            _ => 0.0,
        };
        [of_state, of_output, kept, clean * (1.0 + change), -clean * change, 0.0, 0.0, 0.0]
    };
    places.iter().enumerate().map(row).collect()
}
