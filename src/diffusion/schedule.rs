//! The noise schedule: the share of the picture that is left at every timestep.
//!
//! Training mixed a clean sample with Gaussian noise, `x_t = sqrt(alpha_bar_t) x0 + sqrt(1 - alpha_bar_t) eps`,
//! where `alpha_bar_t` is the running product of `1 - beta_t`. unCLIP models use the squared cosine of Nichol &
//! Dhariwal 2021, eq. 17. [`SchedulerConfig`] is a stage's `scheduler_config.json`, [`Schedule`] its tables.
//!
//! The tables are rounded where diffusers rounds them (betas and alphas to f32, the product accumulated in f64
//! and each entry rounded to f32): near t = 999 `alpha_bar` is 2e-9 and `1 / sqrt(alpha_bar)` shows every bit.

use serde::Deserialize;

use crate::ops::{Noise, Prediction, SamplerStep, Variance};
use crate::weights::config::Literal::{Bool, Number, Text};
use crate::weights::config::{Class, Key, Schema};
use crate::{Error, Result};

/// A stage's `scheduler_config.json`.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(try_from = "File")]
pub struct SchedulerConfig {
    /// Timesteps of the training, numbered from 0.
    pub num_train_timesteps: usize,
    /// Source of the variance of a step's noise.
    pub variance: Variance,
    /// What the model predicts.
    pub prediction: Prediction,
    /// Bound of the estimated `x0`; `None` without clipping.
    pub clip: Option<f32>,
}

/// The file's own types.
#[derive(Deserialize)]
struct File {
    num_train_timesteps: usize,
    variance_type: String,
    clip_sample: bool,
    clip_sample_range: Option<f32>,
    prediction_type: String,
}

/// Beyond some 600,000 timesteps `1 - beta_0` rounds to 1 in f32 and the first step divides by zero.
const KEYS: &[Key] = &[
    Key::integer("num_train_timesteps", 2..=100_000).or(Number(1000.0)),
    Key::only("variance_type", &[Text("fixed_small_log"), Text("learned_range")]),
    Key::only("prediction_type", &[Text("epsilon"), Text("sample")]),
    Key::only("beta_schedule", &[Text("squaredcos_cap_v2")]),
    Key::flag("clip_sample").or(Bool(true)),
    Key::float("clip_sample_range").nullable().or(Number(1.0)),
];

impl Schema for SchedulerConfig {
    const CLASSES: &'static [Class] = &[Class { name: "UnCLIPScheduler", keys: &[KEYS] }];
}

impl TryFrom<File> for SchedulerConfig {
    type Error = String;

    fn try_from(file: File) -> Result<SchedulerConfig, String> {
        let clip = match file.clip_sample_range {
            _ if !file.clip_sample => None,
            Some(range) if range > 0.0 => Some(range),
            range => {
                let range = range.map_or("null".to_owned(), |range| range.to_string());
                return Err(format!("clip_sample_range is {range}; expected a number above 0"));
            }
        };
        let prediction = match &*file.prediction_type {
            "epsilon" => Prediction::Epsilon,
            "sample" => Prediction::Sample,
            other => return Err(format!("unknown prediction_type {other}")),
        };
        let variance = match &*file.variance_type {
            "fixed_small_log" => Variance::FixedSmallLog,
            "learned_range" => Variance::LearnedRange,
            other => return Err(format!("unknown variance_type {other}")),
        };
        Ok(SchedulerConfig { num_train_timesteps: file.num_train_timesteps, variance, prediction, clip })
    }
}

impl Default for SchedulerConfig {
    /// diffusers' defaults.
    fn default() -> Self {
        SchedulerConfig {
            num_train_timesteps: 1000,
            variance: Variance::FixedSmallLog,
            prediction: Prediction::Epsilon,
            clip: Some(1.0),
        }
    }
}

impl SchedulerConfig {
    /// The sampler step of this stage; `guided` if the batch holds both halves.
    pub fn step(&self, guided: bool, noise: Noise) -> SamplerStep {
        SamplerStep { prediction: self.prediction, variance: self.variance, clip: self.clip, guided, noise }
    }
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
}

impl Schedule {
    /// The squared-cosine schedule with betas capped at 0.999.
    ///
    /// # Formula
    /// `bar(u) = cos((u + 0.008) / 1.008 * pi/2)^2`, `beta_t = min(1 - bar((t+1)/T) / bar(t/T), 0.999)`
    ///
    /// # Source
    /// Nichol & Dhariwal 2021, eq. 17; rounding as in diffusers.
    pub fn new(config: &SchedulerConfig) -> Self {
        let count = config.num_train_timesteps as f64;
        let bar = |u: f64| ((u + 0.008) / 1.008 * std::f64::consts::PI / 2.0).cos().powi(2);
        let betas: Vec<f32> = (0..config.num_train_timesteps)
            .map(|t| (1.0 - bar((t + 1) as f64 / count) / bar(t as f64 / count)).min(0.999) as f32)
            .collect();
        let alphas: Vec<f32> = betas.iter().map(|beta| 1.0 - beta).collect();
        let mut product = 1.0;
        let alpha_bar = alphas.iter().map(|&alpha| {
            product *= f64::from(alpha);
            product as f32
        });
        Schedule { alpha_bar: alpha_bar.collect(), betas, alphas }
    }

    /// The timesteps of a run, from the noisiest to 0: `k (T - 1) / (steps - 1)`, ties to even.
    ///
    /// `setting` is the caller's name for the step count, for messages.
    ///
    /// # Errors
    /// [`Error::Request`] for fewer than two steps or more than those of the training. One step has no spacing
    /// (diffusers divides by zero), and super-resolution needs two: the last one has a network of its own.
    pub fn timesteps(&self, setting: &str, steps: usize) -> Result<Vec<u32>> {
        let most = self.betas.len();
        if !(2..=most).contains(&steps) {
            return Err(Error::value(setting, steps, format!("must be 2 to {most}")));
        }
        let spacing = (most - 1) as f64 / (steps - 1) as f64;
        Ok((0..steps).rev().map(|k| (k as f64 * spacing).round_ties_even() as u32).collect())
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
    fn missing_keys_have_the_defaults() {
        assert_eq!(parse("{}").unwrap(), SchedulerConfig::default());
        assert_eq!(parse(r#"{"_diffusers_version": "0.11.0", "extra": [1]}"#).unwrap(), SchedulerConfig::default());
    }

    #[test]
    fn an_integer_is_a_clip_range_and_clip_sample_false_turns_clipping_off() {
        assert_eq!(parse(r#"{"clip_sample_range": 5}"#).unwrap().clip, Some(5.0));
        assert_eq!(parse(r#"{"clip_sample": false, "clip_sample_range": null}"#).unwrap().clip, None);
    }

    #[test]
    fn a_wrong_value_is_named_with_its_file_and_the_legal_values() {
        for (text, found, legal) in [
            (
                r#"{"prediction_type": "v_prediction"}"#,
                r#"prediction_type is "v_prediction""#,
                r#""epsilon", "sample""#,
            ),
            (r#"{"variance_type": null}"#, "variance_type is null", r#""fixed_small_log", "learned_range""#),
            (r#"{"beta_schedule": "linear"}"#, r#"beta_schedule is "linear""#, "squaredcos_cap_v2"),
            (r#"{"_class_name": "DDIMScheduler"}"#, r#"_class_name is "DDIMScheduler""#, "UnCLIPScheduler"),
            (r#"{"num_train_timesteps": 0}"#, "num_train_timesteps is 0", "from 2 to 100000"),
            (r#"{"num_train_timesteps": 1}"#, "num_train_timesteps is 1", "from 2 to 100000"),
            (r#"{"num_train_timesteps": 1e12}"#, "num_train_timesteps is 1000000000000.0", "from 2 to 100000"),
            (r#"{"clip_sample": 1}"#, "clip_sample is 1", "true or false"),
            (r#"{"clip_sample_range": -1}"#, "clip_sample_range is -1", "above 0"),
            (r#"{"clip_sample_range": 1e300}"#, "clip_sample_range is 1e+300", "range of f32"),
            (r#"{"clip_sample": true, "clip_sample": false}"#, "\"clip_sample\" appears twice", ""),
        ] {
            let error = parse(text).expect_err(text);
            let message = error.to_string();
            assert!(matches!(error, Error::Config { .. }), "{text}: {message}");
            assert!(message.starts_with("prior_scheduler/scheduler_config.json: "), "{message}");
            assert!(message.contains(found) && message.contains(legal) && !message.contains('\n'), "{message}");
        }
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
