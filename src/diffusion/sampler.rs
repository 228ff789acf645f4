//! The inputs that change from step to step, as small tensors that are made before the run starts.
//!
//! A recorded step is replayed unchanged, so everything that depends on the timestep is an input: the nine
//! [`coefficients`] that [`SamplerStep`](crate::ops::SamplerStep) reads, and the sinusoids of the models' time
//! embeddings, [`time_features`]. Both follow diffusers operation by operation in f32. Functions such as `ln` are
//! evaluated in f64 and rounded once: builds of torch use different polynomials, and this is closest to all of them.

use super::schedule::{Jump, Schedule, Sigma};
use crate::ops::COEFFICIENTS;

/// Smallest posterior variance whose logarithm is taken; diffusers clamps there too.
const MIN_VARIANCE: f32 = 1e-20;

/// One row for every step of a run over `timesteps` (from [`Schedule::timesteps`]).
///
/// A row is `[sqrt(1 - alpha_bar_t), sqrt(alpha_bar_t), x0 weight, x_t weight, sigma, ln(beta), ln(posterior
/// variance), noise factor, guidance scale]`. `beta` is that of the jump from `t` to the next timestep of the list. The noise factor is 1, and 0 at t = 0. There sigma and both logarithms are 0 as well: a
/// learned variance is then a deviation of 1, for any model output, which the factor removes.
///
/// # Formula
/// With `alpha_bar'` at the next timestep (1 after the last): `beta = 1 - alpha_bar / alpha_bar'`,
/// `x0 weight = sqrt(alpha_bar') beta / (1 - alpha_bar)`,
/// `x_t weight = sqrt(1 - beta) (1 - alpha_bar') / (1 - alpha_bar)`,
/// `posterior variance = (1 - alpha_bar') / (1 - alpha_bar) beta`, `sigma` its square root.
///
/// # Source
/// Ho et al. 2020, eq. 6 and 7, on the shortened chain of Nichol & Dhariwal 2021, section 4.
///
/// # Panics
/// If a timestep lies outside the schedule.
pub fn coefficients(schedule: &Schedule, timesteps: &[u32], guidance: f32) -> Vec<[f32; COEFFICIENTS]> {
    let row = |(&t, jump): (&u32, Jump)| {
        let Jump { alpha_bar: [alpha_bar, alpha_bar_next], beta: [beta, alpha] } = jump;
        let (rest, rest_next) = (1.0 - alpha_bar, 1.0 - alpha_bar_next);
        let x0_weight = (alpha_bar_next.sqrt() * beta) / rest;
        let x_t_weight = (alpha.sqrt() * rest_next) / rest;
        let (sigma, log_beta, log_posterior, on) = if t > 0 {
            let posterior = ((rest_next / rest) * beta).max(MIN_VARIANCE);
            let log_posterior = rounded(f64::ln, posterior);
            let sigma = match schedule.sigma() {
                Sigma::Root => posterior.sqrt(),
                Sigma::Log => rounded(f64::exp, 0.5 * log_posterior),
            };
            (sigma, rounded(f64::ln, beta), log_posterior, 1.0)
        } else {
            (0.0, 0.0, 0.0, 0.0)
        };
        [rest.sqrt(), alpha_bar.sqrt(), x0_weight, x_t_weight, sigma, log_beta, log_posterior, on, guidance]
    };
    timesteps.iter().zip(schedule.jumps(timesteps)).map(row).collect()
}

/// Sinusoids of the timesteps, `[timesteps, width]`: the input of a time embedding's first linear layer.
///
/// Sines first, or cosines first with `flip_sin_to_cos`; an odd width ends in a zero.
///
/// # Formula
/// `angle_i = t exp(-ln(10000) i / (width / 2 - freq_shift))`, `i = 0 .. width / 2`
///
/// # Source
/// Vaswani et al. 2017, section 3.5, in the form of diffusers' `get_timestep_embedding`.
pub fn time_features<T: Copy + Into<f64>>(
    timesteps: &[T],
    width: usize,
    flip_sin_to_cos: bool,
    freq_shift: f32,
) -> Vec<f32> {
    let half = width / 2;
    let divisor = (half as f64 - f64::from(freq_shift)) as f32;
    let scale = -(10000f64.ln()) as f32;
    let frequencies: Vec<f32> = (0..half).map(|i| rounded(f64::exp, scale * i as f32 / divisor)).collect();
    let [first, second]: [fn(f64) -> f64; 2] =
        if flip_sin_to_cos { [f64::cos, f64::sin] } else { [f64::sin, f64::cos] };
    let mut features = Vec::with_capacity(timesteps.len() * width);
    for &t in timesteps {
        for function in [first, second] {
            features.extend(frequencies.iter().map(|frequency| rounded(function, t.into() as f32 * frequency)));
        }
        features.extend(std::iter::repeat_n(0.0, width % 2));
    }
    features
}

/// A function of an f32, evaluated in f64 and rounded once.
fn rounded(function: fn(f64) -> f64, x: f32) -> f32 {
    function(f64::from(x)) as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::SchedulerConfig;

    #[test]
    fn every_coefficient_of_every_run_is_finite() {
        for num_train_timesteps in [2, 1000, 100_000] {
            let schedule = Schedule::new(&SchedulerConfig { num_train_timesteps, ..Default::default() });
            for steps in [2, 7, 25, 1000] {
                let Ok(timesteps) = schedule.timesteps("steps", steps) else { continue };
                let rows = coefficients(&schedule, &timesteps, 4.0);
                assert!(rows.as_flattened().iter().all(|c| c.is_finite()), "{num_train_timesteps} {steps}");
                assert!(rows.iter().rev().skip(1).all(|row| row[7] == 1.0));
                assert_eq!(rows[steps - 1][4..], [0.0, 0.0, 0.0, 0.0, 4.0]);
            }
        }
    }

    #[test]
    fn an_odd_width_ends_in_a_zero() {
        let features = time_features(&[0u32, 3], 5, true, 0.0);
        assert_eq!(features[..5], [1.0, 1.0, 0.0, 0.0, 0.0]);
        assert_eq!(features[9], 0.0);
    }
}
