//! The noise schedule: the share of the picture that is left at every timestep.
//!
//! Training mixed a clean sample with Gaussian noise, `x_t = sqrt(alpha_bar_t) x0 + sqrt(1 - alpha_bar_t) eps`,
//! where `alpha_bar_t` is the running product of `1 - beta_t`. unCLIP models use the squared cosine of Nichol &
//! Dhariwal 2021, eq. 17, models of latents betas that grow linearly. [`Schedule`] holds
//! the tables of a stage's [`SchedulerConfig`].
//!
//! The tables are rounded where diffusers rounds them (betas and alphas to f32, the product accumulated in f64
//! and each entry rounded to f32): near t = 999 `alpha_bar` is 2e-9 and `1 / sqrt(alpha_bar)` shows every bit.

use super::SchedulerConfig;
use crate::{Error, Result};

/// The variances `beta_t` that training adds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Betas {
    /// From the squared cosine of Nichol & Dhariwal 2021, eq. 17.
    Cosine,
    /// Equally spaced from one value to another.
    Linear([f64; 2]),
    /// The squares of equally spaced roots.
    ScaledLinear([f64; 2]),
}

/// The timesteps of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spacing {
    /// From the last to 0, both included: `k (T - 1) / (steps - 1)`, ties to even. Jumps between neighbours take beta from
    /// the table. diffusers' `UnCLIPScheduler`.
    Ends,
    /// Multiples of `T / steps`, rounded down, and an offset. Every jump takes beta from the quotient of the shares.
    /// diffusers' `DDPMScheduler` with spacing "leading".
    Leading {
        /// The last timestep of a run.
        offset: usize,
    },
    /// Equal distances between both ends, where a sampler that needs no whole numbers passes through. "linspace" of
    /// diffusers' `EulerDiscreteScheduler` and `DPMSolverMultistepScheduler`.
    ///
    /// The tables alone have it as [`Spacing::Ends`]; see [`Run`](super::Run).
    Even,
}

/// How the posterior variance becomes the standard deviation of a step's noise; the two differ by rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sigma {
    /// Its root.
    Root,
    /// `exp(ln(variance) / 2)`.
    Log,
}

/// The tables of a stage, indexed by timestep.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// `beta_t`, the variance that training adds at step t.
    pub betas: Vec<f32>,
    /// `1 - beta_t`.
    pub alphas: Vec<f32>,
    /// The cumulative product of the alphas: the share of the sample's variance that is left at t.
    pub alpha_bar: Vec<f32>,
    spacing: Spacing,
    sigma: Sigma,
}

/// One step of a run: from a timestep to the next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Jump {
    /// `alpha_bar` before and after the step; 1 at the end.
    pub alpha_bar: [f32; 2],
    /// `beta` of the jump, and `1 - beta`.
    pub beta: [f32; 2],
}

impl Betas {
    /// The table without rounding.
    pub(super) fn exact(self, count: usize) -> Vec<f64> {
        let even = |[start, end]: [f64; 2], t: usize| start + (end - start) * t as f64 / (count - 1).max(1) as f64;
        match self {
            Betas::Cosine => {
                let bar = |u: f64| ((u + 0.008) / 1.008 * std::f64::consts::PI / 2.0).cos().powi(2);
                let share = |t: usize| bar(t as f64 / count as f64);
                (0..count).map(|t| (1.0 - share(t + 1) / share(t)).min(0.999)).collect()
            }
            Betas::Linear(ends) => (0..count).map(|t| even(ends, t)).collect(),
            Betas::ScaledLinear(ends) => (0..count).map(|t| even(ends.map(f64::sqrt), t).powi(2)).collect(),
        }
    }

    /// The table, rounded as torch rounds it.
    fn table(self, count: usize) -> Vec<f32> {
        match self {
            Betas::Cosine => self.exact(count).into_iter().map(|beta| beta as f32).collect(),
            Betas::Linear([start, end]) => linspace(start, end, count),
            Betas::ScaledLinear([start, end]) => {
                linspace(start.sqrt(), end.sqrt(), count).into_iter().map(|root| root * root).collect()
            }
        }
    }
}

/// torch's `linspace` in f32: from the start in the first half, from the end in the second, each entry rounded once.
fn linspace(start: f64, end: f64, count: usize) -> Vec<f32> {
    let step = ((end - start) / (count - 1).max(1) as f64) as f32;
    let (start, end) = (start as f32, end as f32);
    let entry = |i: usize| {
        if i < count / 2 { (i as f32).mul_add(step, start) } else { (-((count - 1 - i) as f32)).mul_add(step, end) }
    };
    (0..count).map(entry).collect()
}

impl Schedule {
    /// The tables of a configuration.
    ///
    /// # Formula
    /// Cosine: `bar(u) = cos((u + 0.008) / 1.008 * pi/2)^2`, `beta_t = min(1 - bar((t+1)/T) / bar(t/T), 0.999)`
    ///
    /// # Source
    /// Nichol & Dhariwal 2021, eq. 17; rounding as in diffusers.
    pub fn new(config: &SchedulerConfig) -> Self {
        let betas = config.betas.table(config.num_train_timesteps);
        let alphas: Vec<f32> = betas.iter().map(|beta| 1.0 - beta).collect();
        let mut product = 1.0;
        let alpha_bar = alphas.iter().map(|&alpha| {
            product *= f64::from(alpha);
            product as f32
        });
        Schedule { alpha_bar: alpha_bar.collect(), betas, alphas, spacing: config.spacing, sigma: config.sigma }
    }

    /// The tables of these betas alone.
    pub fn of(betas: Betas, num_train_timesteps: usize) -> Self {
        Schedule::new(&SchedulerConfig { betas, num_train_timesteps, ..SchedulerConfig::default() })
    }

    /// The timesteps of a run, from the noisiest on; see [`Spacing`].
    ///
    /// `setting` is the caller's name for the step count, for messages.
    ///
    /// # Errors
    /// [`Error::Request`] for more steps than the training has, or too few: between both ends at least two, because one
    /// step has no spacing (diffusers divides by zero), and super-resolution has a network of its own for the last.
    pub fn timesteps(&self, setting: &str, steps: usize) -> Result<Vec<u32>> {
        let count = self.betas.len();
        let (least, most) = match self.spacing {
            Spacing::Ends | Spacing::Even => (2, count),
            // With an offset the noisiest timestep of as many steps as the training has would lie beyond its end.
            Spacing::Leading { offset } => (1, count.saturating_sub(offset)),
        };
        if !(least..=most).contains(&steps) {
            return Err(Error::value(setting, steps, format!("must be {least} to {most}")));
        }
        let timestep = |k: usize| match self.spacing {
            Spacing::Ends | Spacing::Even => {
                let spacing = (count - 1) as f64 / (steps - 1) as f64;
                (k as f64 * spacing).round_ties_even() as u32
            }
            Spacing::Leading { offset } => (k * (count / steps) + offset) as u32,
        };
        Ok((0..steps).rev().map(timestep).collect())
    }

    /// The timestep at which noise stands to the sample as nearly as this: `sqrt((1 - alpha_bar) / alpha_bar)`, the standard
    /// deviation of the noise in a picture in -1..1 that is not scaled.
    pub fn timestep_of(&self, level: f32) -> u32 {
        let distance = |alpha_bar: f32| (((1.0 - alpha_bar) / alpha_bar).sqrt() - level).abs();
        let nearest =
            self.alpha_bar.iter().map(|&share| distance(share)).enumerate().min_by(|a, b| a.1.total_cmp(&b.1));
        nearest.map_or(0, |(t, _)| t as u32)
    }

    /// The steps of a run over these timesteps.
    ///
    /// # Panics
    /// If a timestep lies outside the schedule.
    pub fn jumps(&self, timesteps: &[u32]) -> Vec<Jump> {
        // Behind the last timestep a run of equal steps would come to this one, if there is one.
        let stride = match self.spacing {
            Spacing::Ends | Spacing::Even => 1,
            Spacing::Leading { .. } => (self.betas.len() / timesteps.len().max(1)) as u32,
        };
        let jump = |(step, &t): (usize, &u32)| {
            let next = timesteps.get(step + 1).copied().or(t.checked_sub(stride));
            let t = t as usize;
            let alpha_bar = [self.alpha_bar[t], next.map_or(1.0, |next| self.alpha_bar[next as usize])];
            let is_neighbour = next.map_or(t == 0, |next| next as usize + 1 == t);
            let beta = if self.spacing == Spacing::Ends && is_neighbour {
                // 1 - alpha_bar / alpha_bar' would lose most of beta's bits.
                [self.betas[t], self.alphas[t]]
            } else if self.spacing == Spacing::Ends {
                let beta = 1.0 - alpha_bar[0] / alpha_bar[1];
                [beta, 1.0 - beta]
            } else {
                let alpha = alpha_bar[0] / alpha_bar[1];
                [1.0 - alpha, alpha]
            };
            Jump { alpha_bar, beta }
        };
        timesteps.iter().enumerate().map(jump).collect()
    }

    /// How a variance becomes a standard deviation.
    pub fn sigma(&self) -> Sigma {
        self.sigma
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::config;
    use std::path::Path;

    fn parse(text: &str) -> Result<SchedulerConfig> {
        let file = Path::new("prior_scheduler/scheduler_config.json");
        config::read::<SchedulerConfig>(file, text.as_bytes()).map(|config| SchedulerConfig::clone(&config))
    }

    #[test]
    fn timesteps_round_half_to_even_and_end_at_zero() {
        let schedule = Schedule::new(&SchedulerConfig::default());
        assert_eq!(schedule.timesteps("steps", 7).unwrap(), [999, 832, 666, 500, 333, 166, 0]);
        for steps in [2, 3, 667, 999, 1000] {
            let timesteps = schedule.timesteps("steps", steps).unwrap();
            assert_eq!((timesteps[0], timesteps[steps - 1]), (999, 0));
            assert!(timesteps.is_sorted_by(|a, b| a > b), "{steps} steps repeat a timestep");
        }
    }

    const KANDINSKY: &str = r#"{"_class_name": "DDPMScheduler", "beta_schedule": "linear", "beta_start": 0.00085,
        "beta_end": 0.012, "steps_offset": 1, "clip_sample": true, "set_alpha_to_one": false}"#;

    /// Timesteps and shares as diffusers' `DDPMScheduler` has them.
    #[test]
    fn leading_timesteps_end_at_the_offset_and_linear_betas_are_torchs() {
        let schedule = Schedule::new(&parse(KANDINSKY).unwrap());
        assert_eq!(schedule.timesteps("steps", 7).unwrap(), [853, 711, 569, 427, 285, 143, 1]);
        let fifty = schedule.timesteps("steps", 50).unwrap();
        assert_eq!((fifty[0], fifty[1], fifty[49]), (981, 961, 1));
        for (t, share) in [(0, 0.9991499781608582), (500, 0.16077162325382233), (981, 0.0019588281866163015)] {
            assert_eq!(f64::from(schedule.alpha_bar[t]), share);
        }
        assert_eq!(schedule.jumps(&fifty)[49].alpha_bar[1], 1.0);
        // With a stride of one the last step goes to 0, which is a timestep of its own.
        let most = schedule.timesteps("steps", 999).unwrap();
        assert_eq!(schedule.jumps(&most)[998].alpha_bar[1], schedule.alpha_bar[0]);
        assert!(schedule.timesteps("steps", 1000).is_err());
    }

    #[test]
    fn a_step_count_that_cannot_be_spaced_is_refused_by_the_name_of_its_setting() {
        let schedule = Schedule::new(&SchedulerConfig::default());
        for steps in [0, 1, 1001] {
            let error = schedule.timesteps("--prior-steps", steps).expect_err("refused");
            assert_eq!(error.to_string(), format!("--prior-steps {steps}: must be 2 to 1000"));
        }
    }

    #[test]
    fn tables_stay_finite_at_the_ends_of_the_legal_range() {
        for num_train_timesteps in [2, 100_000] {
            let schedule = Schedule::new(&SchedulerConfig { num_train_timesteps, ..Default::default() });
            assert!(schedule.alpha_bar.iter().all(|a| *a > 0.0 && *a < 1.0), "{num_train_timesteps}");
        }
    }
}
