//! The noise schedule: how much of the picture is left at every timestep.
//!
//! Training mixed a clean sample with Gaussian noise, `x_t = sqrt(alpha_bar_t) x0 + sqrt(1 - alpha_bar_t) eps`,
//! where `alpha_bar_t` is the running product of `1 - beta_t`. unCLIP models use the squared cosine of Nichol &
//! Dhariwal 2021, eq. 17. [`SchedulerConfig`] is what a checkpoint says about one stage, [`Schedule`] its tables.
//!
//! The tables are rounded where diffusers rounds them (betas and alphas to f32, the product accumulated in f64
//! and each entry rounded to f32): near t = 999 `alpha_bar` is 2e-9 and `1 / sqrt(alpha_bar)` shows every bit.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::ops::{Noise, Prediction, SamplerStep, Variance};
use crate::{Error, Result};

/// Upper bound of `num_train_timesteps`: beyond some 600 000, `1 - beta_0` rounds to 1 and the first step divides
/// by zero; a damaged file must not make us allocate its number either.
const MAX_TRAIN_TIMESTEPS: u64 = 100_000;

/// What a checkpoint's `scheduler_config.json` says about one stage.
#[derive(Clone, Debug, PartialEq)]
pub struct SchedulerConfig {
    /// How many timesteps the model was trained with; they are numbered from 0.
    pub num_train_timesteps: usize,
    /// Where the standard deviation of a step's noise comes from.
    pub variance: Variance,
    /// What the model predicts.
    pub prediction: Prediction,
    /// Bound on the magnitude of the estimated `x0`, if it is clipped.
    pub clip: Option<f32>,
}

/// The file's keys with diffusers' defaults. Values stay JSON until they are checked, so that a complaint can
/// quote what was found.
#[derive(Deserialize)]
#[serde(default)]
struct Raw {
    #[serde(rename = "_class_name")]
    class_name: Value,
    num_train_timesteps: Value,
    variance_type: Value,
    clip_sample: Value,
    clip_sample_range: Value,
    prediction_type: Value,
    beta_schedule: Value,
}

impl Default for Raw {
    fn default() -> Self {
        Raw {
            class_name: json!("UnCLIPScheduler"),
            num_train_timesteps: json!(1000),
            variance_type: json!("fixed_small_log"),
            clip_sample: json!(true),
            clip_sample_range: json!(1.0),
            prediction_type: json!("epsilon"),
            beta_schedule: json!("squaredcos_cap_v2"),
        }
    }
}

impl Default for SchedulerConfig {
    /// What diffusers assumes for keys that a file does not have.
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
    /// Reads the text of a `scheduler_config.json`; `path` is for messages only.
    ///
    /// Missing keys have diffusers' defaults, unknown keys are passed over.
    ///
    /// # Errors
    /// [`Error::Config`] with the key, the value found and the legal ones.
    pub fn from_json(path: &Path, text: &[u8]) -> Result<Self> {
        // serde would read an array as the fields in order.
        if !text.trim_ascii_start().starts_with(b"{") {
            return Err(Error::config(path, "not readable: it has to be a JSON object"));
        }
        let raw: Raw = serde_json::from_slice(text).map_err(|e| Error::config(path, format!("not readable: {e}")))?;
        let wrong = |key: &str, found: &Value, legal: &str| {
            Error::config(path, format!("{key} is {}; it has to be {legal}", shortened(found)))
        };
        let name = |key: &str, found: &Value, legal: &[&str]| {
            let quoted = || legal.iter().map(|l| format!("{l:?}")).collect::<Vec<_>>().join(" or ");
            let known = found.as_str().and_then(|found| legal.iter().position(|&l| l == found));
            known.ok_or_else(|| wrong(key, found, &quoted()))
        };

        name("_class_name", &raw.class_name, &["UnCLIPScheduler"])?;
        name("beta_schedule", &raw.beta_schedule, &["squaredcos_cap_v2"])?;
        let prediction = match name("prediction_type", &raw.prediction_type, &["epsilon", "sample"])? {
            0 => Prediction::Epsilon,
            _ => Prediction::Sample,
        };
        let variance = match name("variance_type", &raw.variance_type, &["fixed_small_log", "learned_range"])? {
            0 => Variance::FixedSmallLog,
            _ => Variance::LearnedRange,
        };
        let num_train_timesteps = match raw.num_train_timesteps.as_u64() {
            Some(count @ 2..=MAX_TRAIN_TIMESTEPS) => count as usize,
            _ => {
                let legal = format!("a whole number from 2 to {MAX_TRAIN_TIMESTEPS}");
                return Err(wrong("num_train_timesteps", &raw.num_train_timesteps, &legal));
            }
        };
        let clip_sample =
            raw.clip_sample.as_bool().ok_or_else(|| wrong("clip_sample", &raw.clip_sample, "true or false"))?;
        let range = raw.clip_sample_range.as_f64().map(|range| range as f32);
        let clip = match range {
            _ if !clip_sample => None,
            Some(range) if range > 0.0 && range.is_finite() => Some(range),
            _ => {
                return Err(wrong("clip_sample_range", &raw.clip_sample_range, "a number above 0 in the range of f32"));
            }
        };
        Ok(SchedulerConfig { num_train_timesteps, variance, prediction, clip })
    }

    /// The sampler step of this stage; `guided` if the batch holds both halves.
    pub fn step(&self, guided: bool, noise: Noise) -> SamplerStep {
        SamplerStep { prediction: self.prediction, variance: self.variance, clip: self.clip, guided, noise }
    }
}

/// A JSON value for one line of a message.
fn shortened(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 60 { text } else { text.chars().take(57).collect::<String>() + "..." }
}

/// The tables of a stage, indexed by timestep.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// `beta_t`, the variance that training adds at step t.
    pub betas: Vec<f32>,
    /// `1 - beta_t`.
    pub alphas: Vec<f32>,
    /// The running product of the alphas: how much of the sample's variance is left at t.
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
    /// `setting` is what the caller calls the step count, for messages.
    ///
    /// # Errors
    /// [`Error::Request`] for fewer than two steps or more than the model was trained with. One step is refused
    /// because the spacing is then undefined (diffusers divides by zero) and because the first timestep would be
    /// the last one too, for which super-resolution has another model.
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

    fn parse(text: &str) -> Result<SchedulerConfig> {
        SchedulerConfig::from_json(Path::new("prior_scheduler/scheduler_config.json"), text.as_bytes())
    }

    #[test]
    fn missing_keys_have_the_defaults_and_unknown_keys_are_passed_over() {
        assert_eq!(parse("{}").unwrap(), SchedulerConfig::default());
        assert_eq!(parse(r#"{"_diffusers_version": "0.11.0", "extra": [1]}"#).unwrap(), SchedulerConfig::default());
    }

    #[test]
    fn a_whole_number_is_a_clip_range_and_clip_sample_false_turns_clipping_off() {
        assert_eq!(parse(r#"{"clip_sample_range": 5}"#).unwrap().clip, Some(5.0));
        assert_eq!(parse(r#"{"clip_sample": false}"#).unwrap().clip, None);
    }

    #[test]
    fn a_wrong_value_is_named_with_its_file_and_the_legal_values() {
        let cases = [
            (
                r#"{"prediction_type": "v_prediction"}"#,
                r#"prediction_type is "v_prediction""#,
                r#""epsilon" or "sample""#,
            ),
            (r#"{"variance_type": null}"#, "variance_type is null", r#""fixed_small_log" or "learned_range""#),
            (r#"{"beta_schedule": "linear"}"#, r#"beta_schedule is "linear""#, "squaredcos_cap_v2"),
            (r#"{"_class_name": "DDIMScheduler"}"#, r#"_class_name is "DDIMScheduler""#, "UnCLIPScheduler"),
            (r#"{"num_train_timesteps": 0}"#, "num_train_timesteps is 0", "from 2 to 100000"),
            (r#"{"num_train_timesteps": 1}"#, "num_train_timesteps is 1", "from 2 to 100000"),
            (r#"{"num_train_timesteps": 1e12}"#, "num_train_timesteps is 1000000000000.0", "from 2 to 100000"),
            (r#"{"clip_sample": 1}"#, "clip_sample is 1", "true or false"),
            (r#"{"clip_sample_range": -1}"#, "clip_sample_range is -1", "above 0"),
            (r#"{"clip_sample_range": 1e300}"#, "clip_sample_range is 1e+300", "above 0"),
            (r#"{"clip_sample": true, "clip_sample": false}"#, "duplicate field `clip_sample`", ""),
            ("[]", "not readable", ""),
            (r#"{"clip_sample": tr"#, "not readable", ""),
        ];
        for (text, found, legal) in cases {
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
            assert_eq!(error.exit_code(), 2);
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
