//! What training mixes, and how it weighs what a network predicts, at every timestep of the whole schedule.
//!
//! Tables are in f64 and rounded once: `1 - alpha_bar` is 4e-5 at the first timestep, where that of a rounded `alpha_bar` is
//! wrong in the fourth digit. Sampling rounds where the original does ([`Schedule`](super::Schedule)); training has no
//! original to follow to the bit.

use super::SchedulerConfig;
use crate::ops::training::HYBRID;

/// The tables of a stage, indexed by timestep.
#[derive(Clone, Debug)]
pub struct Objective {
    betas: Vec<f64>,
    alpha_bar: Vec<f64>,
}

impl Objective {
    /// The tables of a configuration.
    pub fn new(config: &SchedulerConfig) -> Objective {
        let betas = config.betas.exact(config.num_train_timesteps);
        let mut product = 1.0;
        let share = |beta: &f64| {
            product *= 1.0 - beta;
            product
        };
        Objective { alpha_bar: betas.iter().map(share).collect(), betas }
    }

    /// Number of timesteps.
    pub fn timesteps(&self) -> usize {
        self.betas.len()
    }

    /// `x_t = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) noise` at timestep `t`.
    ///
    /// # Source
    /// Ho et al. 2020, eq. 4.
    pub fn noisy(&self, t: usize, x0: &[f32], noise: &[f32]) -> Vec<f32> {
        let (clean, rest) = (self.alpha_bar[t].sqrt(), (1.0 - self.alpha_bar[t]).sqrt());
        x0.iter().zip(noise).map(|(x, e)| (clean * f64::from(*x) + rest * f64::from(*e)) as f32).collect()
    }

    /// The row of timestep `t` that [`DiffusionLoss`](crate::ops::training::DiffusionLoss) reads. The posterior variance of
    /// timestep 0, which is zero, is that of timestep 1.
    pub fn hybrid(&self, t: usize) -> [f32; HYBRID] {
        let before = |t: usize| if t == 0 { 1.0 } else { self.alpha_bar[t - 1] };
        let posterior = |t: usize| self.betas[t] * (1.0 - before(t)) / (1.0 - self.alpha_bar[t]);
        let (beta, bar) = (self.betas[t], self.alpha_bar[t]);
        let kappa = beta * beta / ((1.0 - beta) * (1.0 - bar));
        let first = if t == 0 { 1.0 } else { 0.0 };
        [beta.ln(), posterior(t.max(1)).ln(), kappa, ((1.0 - bar) / bar).sqrt(), first].map(|x| x as f32)
    }
}
