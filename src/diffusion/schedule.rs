//! The noise schedule: the share of the picture that is left at every timestep.
//!
//! Training mixed a clean sample with Gaussian noise, `x_t = sqrt(alpha_bar_t) x0 + sqrt(1 - alpha_bar_t) eps`,
//! where `alpha_bar_t` is the running product of `1 - beta_t`. unCLIP models use the squared cosine of Nichol &
//! Dhariwal 2021, eq. 17, models of latents betas that grow linearly. [`SchedulerConfig`] is a stage's
//! `scheduler_config.json`, [`Schedule`] its tables.
//!
//! The tables are rounded where diffusers rounds them (betas and alphas to f32, the product accumulated in f64
//! and each entry rounded to f32): near t = 999 `alpha_bar` is 2e-9 and `1 / sqrt(alpha_bar)` shows every bit.

use serde::Deserialize;

use crate::ops::{Noise, Prediction, SamplerStep, Variance};
use crate::weights::config::Literal::{Bool, Null, Number, Text};
use crate::weights::config::{Class, Key, Schema};
use crate::{Error, Result};

/// A stage's `scheduler_config.json`.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(try_from = "File")]
pub struct SchedulerConfig {
    /// Timesteps of the training, numbered from 0.
    pub num_train_timesteps: usize,
    /// The variances that training adds.
    pub betas: Betas,
    /// Which timesteps a run passes through.
    pub spacing: Spacing,
    /// Source of the variance of a step's noise.
    pub variance: Variance,
    /// How a fixed variance becomes a standard deviation.
    pub sigma: Sigma,
    /// What the model predicts.
    pub prediction: Prediction,
    /// Bound of the estimated `x0`; `None` without clipping.
    pub clip: Option<f32>,
}

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
}

/// How the posterior variance becomes the standard deviation of a step's noise; the two differ by rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sigma {
    /// Its root.
    Root,
    /// `exp(ln(variance) / 2)`.
    Log,
}

/// The file's own types. Keys that only one class has are missing for the other.
#[derive(Deserialize)]
struct File {
    #[serde(rename = "_class_name", default)]
    class_name: String,
    num_train_timesteps: usize,
    variance_type: String,
    clip_sample: bool,
    clip_sample_range: Option<f32>,
    prediction_type: String,
    beta_schedule: String,
    beta_start: Option<f64>,
    beta_end: Option<f64>,
    steps_offset: Option<usize>,
}

/// Beyond some 600,000 timesteps `1 - beta_0` rounds to 1 in f32 and the first step divides by zero.
const KEYS: &[Key] =
    &[Key::integer("num_train_timesteps", 2..=100_000).or(Number(1000.0)), Key::flag("clip_sample").or(Bool(true))];

const UNCLIP_KEYS: &[Key] = &[
    Key::only("variance_type", &[Text("fixed_small_log"), Text("learned_range")]),
    Key::only("prediction_type", &[Text("epsilon"), Text("sample")]),
    Key::only("beta_schedule", &[Text("squaredcos_cap_v2")]),
    Key::float("clip_sample_range").nullable().or(Number(1.0)),
];

const DDPM: &str = "DDPMScheduler";
const DDPM_KEYS: &[Key] = &[
    Key::only("variance_type", &[Text("fixed_small"), Text("fixed_small_log")]),
    Key::only("prediction_type", &[Text("epsilon"), Text("sample")]),
    Key::only("beta_schedule", &[Text("linear"), Text("scaled_linear"), Text("squaredcos_cap_v2")]),
    Key::float("beta_start").or(Number(0.0001)),
    Key::float("beta_end").or(Number(0.02)),
    Key::float("clip_sample_range").or(Number(1.0)),
    Key::integer("steps_offset", 0..=100_000).or(Number(0.0)),
    Key::only("timestep_spacing", &[Text("leading")]),
    Key::only("trained_betas", &[Null]),
    Key::only("thresholding rescale_betas_zero_snr", &[Bool(false)]),
    // Of thresholding; and a key of another class that published files have.
    Key::no_effect("dynamic_thresholding_ratio sample_max_value set_alpha_to_one"),
];

impl Schema for SchedulerConfig {
    const CLASSES: &'static [Class] = &[
        Class { name: "UnCLIPScheduler", keys: &[KEYS, UNCLIP_KEYS] },
        Class { name: DDPM, keys: &[KEYS, DDPM_KEYS] },
    ];
    const UNNAMED: Option<&'static str> = Some("UnCLIPScheduler");
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
        let (variance, sigma) = match &*file.variance_type {
            "fixed_small" => (Variance::Fixed, Sigma::Root),
            "fixed_small_log" => (Variance::Fixed, Sigma::Log),
            "learned_range" => (Variance::LearnedRange, Sigma::Log),
            other => return Err(format!("unknown variance_type {other}")),
        };
        let ends = [file.beta_start.unwrap_or(0.0), file.beta_end.unwrap_or(0.0)];
        let betas = match &*file.beta_schedule {
            "squaredcos_cap_v2" => Betas::Cosine,
            _ if !(0.0 < ends[0] && ends[0] <= ends[1] && ends[1] < 1.0) => {
                return Err(format!("beta_start is {}, beta_end {}; expected 0 < start <= end < 1", ends[0], ends[1]));
            }
            "linear" => Betas::Linear(ends),
            "scaled_linear" => Betas::ScaledLinear(ends),
            other => return Err(format!("unknown beta_schedule {other}")),
        };
        let spacing = match file.class_name == DDPM {
            true => Spacing::Leading { offset: file.steps_offset.unwrap_or(0) },
            false => Spacing::Ends,
        };
        let num_train_timesteps = file.num_train_timesteps;
        Ok(SchedulerConfig { num_train_timesteps, betas, spacing, variance, sigma, prediction, clip })
    }
}

impl Default for SchedulerConfig {
    /// The defaults of diffusers' `UnCLIPScheduler`.
    fn default() -> Self {
        SchedulerConfig {
            num_train_timesteps: 1000,
            betas: Betas::Cosine,
            spacing: Spacing::Ends,
            variance: Variance::Fixed,
            sigma: Sigma::Log,
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
    /// The table, rounded as torch rounds it.
    fn table(self, count: usize) -> Vec<f32> {
        match self {
            Betas::Cosine => {
                let bar = |u: f64| ((u + 0.008) / 1.008 * std::f64::consts::PI / 2.0).cos().powi(2);
                let share = |t: usize| bar(t as f64 / count as f64);
                (0..count).map(|t| (1.0 - share(t + 1) / share(t)).min(0.999) as f32).collect()
            }
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
            Spacing::Ends => (2, count),
            // With an offset the noisiest timestep of as many steps as the training has would lie beyond its end.
            Spacing::Leading { offset } => (1, count.saturating_sub(offset)),
        };
        if !(least..=most).contains(&steps) {
            return Err(Error::value(setting, steps, format!("must be {least} to {most}")));
        }
        let timestep = |k: usize| match self.spacing {
            Spacing::Ends => {
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
            Spacing::Ends => 1,
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
            (
                r#"{"_class_name": "DDPMScheduler", "beta_start": 0.1, "beta_end": 0.01}"#,
                "beta_start is 0.1, beta_end 0.01",
                "0 < start <= end < 1",
            ),
            (
                r#"{"_class_name": "DDPMScheduler", "timestep_spacing": "trailing"}"#,
                r#"timestep_spacing is "trailing""#,
                r#""leading""#,
            ),
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
