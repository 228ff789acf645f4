//! A stage's scheduler: which sampler takes its steps, on which schedule.

use super::schedule::{Betas, Sigma, Spacing};
use crate::ops::{Multistep, Noise, Prediction, Rule, SamplerStep, Variance};
use crate::weights::config::Literal::{Bool, Null, Number, Text};
use crate::weights::config::{Class, Configured, Key, Schema};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;

/// A stage's `scheduler_config.json`, or what another sampler makes of it.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(try_from = "File")]
pub struct SchedulerConfig {
    /// Timesteps of the training, numbered from 0.
    pub num_train_timesteps: usize,
    /// The variances that training adds.
    pub betas: Betas,
    /// What takes the steps.
    pub sampler: Sampler,
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
    /// Whether a step of [`Sampler::Ddim`] or [`Sampler::Pndm`] beyond timestep 0 leads to the clean sample, not to the
    /// share of timestep 0.
    pub ends_clean: bool,
    pub(super) named: Named,
}

/// What a file says for whatever sampler reads it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Named {
    spacing: Option<&'static str>,
    offset: usize,
    ends_clean: Option<bool>,
    skips_runge_kutta: bool,
}

/// What takes the steps of a sampling loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sampler {
    /// Ancestral steps between both ends of the schedule, as unCLIP has them.
    UnClip,
    /// Ancestral steps (Ho et al. 2020).
    Ddpm,
    /// Steps without noise (Song et al. 2021).
    Ddim,
    /// A linear multistep method of the fourth order (Liu et al. 2022), which begins with a call of the model more.
    Pndm,
    /// Euler's method (Karras et al. 2022).
    Euler,
    /// A multistep method of the second order (Lu et al. 2022).
    #[serde(rename = "dpm++")]
    DpmSolver,
}

/// Of every sampler that can be asked for: its name, and its class in diffusers.
const SAMPLERS: [(Sampler, &str, &str); 5] = [
    (Sampler::Pndm, "pndm", "PNDMScheduler"),
    (Sampler::Ddim, "ddim", "DDIMScheduler"),
    (Sampler::Ddpm, "ddpm", "DDPMScheduler"),
    (Sampler::Euler, "euler", "EulerDiscreteScheduler"),
    (Sampler::DpmSolver, "dpm++", "DPMSolverMultistepScheduler"),
];

impl Sampler {
    /// Those that can be asked for.
    pub const CHOICES: [Sampler; 5] = [Sampler::Pndm, Sampler::Ddim, Sampler::Ddpm, Sampler::Euler, Sampler::DpmSolver];

    /// Its name for users.
    pub fn name(self) -> &'static str {
        SAMPLERS.iter().find(|(sampler, ..)| *sampler == self).map_or("unclip", |(_, name, _)| name)
    }

    /// Its name in image tools.
    pub fn title(self) -> &'static str {
        match self {
            Sampler::UnClip => "unCLIP",
            Sampler::Ddpm => "DDPM",
            Sampler::Ddim => "DDIM",
            Sampler::Pndm => "PLMS",
            Sampler::Euler => "Euler",
            Sampler::DpmSolver => "DPM++ 2M",
        }
    }

    /// Whether its steps are [`Multistep`], without noise.
    pub fn is_multistep(self) -> bool {
        !matches!(self, Sampler::UnClip | Sampler::Ddpm)
    }
}

impl fmt::Display for Sampler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The file's own types. Keys that only some classes have are missing for the others.
#[derive(Deserialize)]
struct File {
    #[serde(rename = "_class_name", default)]
    class_name: String,
    num_train_timesteps: usize,
    variance_type: Option<String>,
    clip_sample: bool,
    clip_sample_range: Option<f32>,
    prediction_type: String,
    beta_schedule: String,
    beta_start: Option<f64>,
    beta_end: Option<f64>,
    steps_offset: Option<usize>,
    timestep_spacing: Option<String>,
    set_alpha_to_one: Option<bool>,
    skip_prk_steps: Option<bool>,
}

/// Beyond some 600,000 timesteps `1 - beta_0` rounds to 1 in f32 and the first step divides by zero.
const KEYS: &[Key] =
    &[Key::integer("num_train_timesteps", 2..=100_000).or(Number(1000.0)), Key::flag("clip_sample").or(Bool(true))];

const UNCLIP: &str = "UnCLIPScheduler";
const UNCLIP_KEYS: &[Key] = &[
    Key::only("variance_type", &[Text("fixed_small_log"), Text("learned_range")]),
    Key::only("prediction_type", &[Text("epsilon"), Text("sample")]),
    Key::only("beta_schedule", &[Text("squaredcos_cap_v2")]),
    Key::float("clip_sample_range").nullable().or(Number(1.0)),
];

/// Of all schedulers of latents. Each is made from the files of the others, so that all know the keys of all.
const LATENT_KEYS: &[Key] = &[
    Key::only("beta_schedule", &[Text("linear"), Text("scaled_linear"), Text("squaredcos_cap_v2")]),
    Key::float("beta_start").or(Number(0.0001)),
    Key::float("beta_end").or(Number(0.02)),
    Key::float("clip_sample_range").or(Number(1.0)),
    Key::integer("steps_offset", 0..=100_000).or(Number(0.0)),
    Key::flag("set_alpha_to_one").nullable(),
    Key::only("trained_betas sigma_min sigma_max", &[Null]),
    Key::only("thresholding rescale_betas_zero_snr", &[Bool(false)]),
    Key::only("use_karras_sigmas use_exponential_sigmas use_beta_sigmas", &[Bool(false)]),
    Key::only("use_lu_lambdas use_flow_sigmas use_dynamic_shifting", &[Bool(false)]),
    Key::only("interpolation_type", &[Text("linear")]),
    Key::only("timestep_type", &[Text("discrete")]),
    Key::only("final_sigmas_type", &[Text("zero")]),
    Key::only("solver_order", &[Number(2.0)]),
    Key::only("algorithm_type", &[Text("dpmsolver++")]),
    Key::only("solver_type", &[Text("midpoint")]),
    // Of what is refused above; and the last step is of the first order in any case, because it ends without noise.
    Key::no_effect("dynamic_thresholding_ratio sample_max_value flow_shift time_shift_type"),
    Key::no_effect("lower_order_final euler_at_final lambda_min_clipped"),
];

const PREDICTIONS: Key = Key::only("prediction_type", &[Text("epsilon"), Text("sample"), Text("v_prediction")]);
const LEADING: Key = Key::only("timestep_spacing", &[Null, Text("leading")]);
const EVEN: Key = Key::only("timestep_spacing", &[Null, Text("linspace"), Text("leading")]);
const FIXED: Key = Key::only("variance_type", &[Null, Text("fixed_small"), Text("fixed_small_log")]);
const RUNGE_KUTTA: Key = Key::flag("skip_prk_steps").or(Bool(false));

const DDPM_KEYS: &[Key] =
    &[Key::only("variance_type", &[Text("fixed_small"), Text("fixed_small_log")]), PREDICTIONS, LEADING, RUNGE_KUTTA];
const DDIM_KEYS: &[Key] = &[PREDICTIONS, LEADING, FIXED, RUNGE_KUTTA];
const PNDM_KEYS: &[Key] = &[
    Key::only("prediction_type", &[Text("epsilon"), Text("v_prediction")]),
    LEADING,
    FIXED,
    Key::only("skip_prk_steps", &[Bool(true)]).or(Bool(false)),
];
const SIGMA_KEYS: &[Key] = &[PREDICTIONS, EVEN, FIXED, RUNGE_KUTTA];

impl Schema for SchedulerConfig {
    const CLASSES: &'static [Class] = &[
        Class { name: UNCLIP, keys: &[KEYS, UNCLIP_KEYS] },
        Class { name: SAMPLERS[2].2, keys: &[KEYS, LATENT_KEYS, DDPM_KEYS] },
        Class { name: SAMPLERS[0].2, keys: &[KEYS, LATENT_KEYS, PNDM_KEYS] },
        Class { name: SAMPLERS[1].2, keys: &[KEYS, LATENT_KEYS, DDIM_KEYS] },
        Class { name: SAMPLERS[3].2, keys: &[KEYS, LATENT_KEYS, SIGMA_KEYS] },
        Class { name: SAMPLERS[4].2, keys: &[KEYS, LATENT_KEYS, SIGMA_KEYS] },
    ];
    const UNNAMED: Option<&'static str> = Some(UNCLIP);
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
            "v_prediction" => Prediction::Velocity,
            other => return Err(format!("unknown prediction_type {other}")),
        };
        let (variance, sigma) = match file.variance_type.as_deref() {
            Some("fixed_small") | None => (Variance::Fixed, Sigma::Root),
            Some("fixed_small_log") => (Variance::Fixed, Sigma::Log),
            Some("learned_range") => (Variance::LearnedRange, Sigma::Log),
            Some(other) => return Err(format!("unknown variance_type {other}")),
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
        let class = SAMPLERS.iter().find(|(.., class)| *class == file.class_name);
        let named = Named {
            spacing: file.timestep_spacing.map(|name| if name == "leading" { "leading" } else { "linspace" }),
            offset: file.steps_offset.unwrap_or(0),
            ends_clean: file.set_alpha_to_one,
            skips_runge_kutta: file.skip_prk_steps.unwrap_or(false),
        };
        let num_train_timesteps = file.num_train_timesteps;
        let unclip =
            SchedulerConfig { num_train_timesteps, betas, variance, sigma, prediction, clip, named, ..UNCLIP_CONFIG };
        class.map_or(Ok(unclip.clone()), |(sampler, ..)| unclip.by(*sampler))
    }
}

/// The defaults of diffusers' `UnCLIPScheduler`.
const UNCLIP_CONFIG: SchedulerConfig = SchedulerConfig {
    num_train_timesteps: 1000,
    betas: Betas::Cosine,
    sampler: Sampler::UnClip,
    spacing: Spacing::Ends,
    variance: Variance::Fixed,
    sigma: Sigma::Log,
    prediction: Prediction::Epsilon,
    clip: Some(1.0),
    ends_clean: false,
    named: Named { spacing: None, offset: 0, ends_clean: None, skips_runge_kutta: false },
};

impl Default for SchedulerConfig {
    fn default() -> Self {
        UNCLIP_CONFIG
    }
}

impl SchedulerConfig {
    /// What a sampler makes of the file, as `from_config` of its class does in diffusers.
    fn by(&self, sampler: Sampler) -> Result<SchedulerConfig, String> {
        let Named { spacing, offset, ends_clean, skips_runge_kutta } = self.named;
        let even = matches!(sampler, Sampler::Euler | Sampler::DpmSolver);
        let spacing = match spacing {
            Some("linspace") if !even => {
                return Err(format!("timestep_spacing is \"linspace\"; {sampler} knows \"leading\""));
            }
            Some("leading") => Spacing::Leading { offset },
            None if !even => Spacing::Leading { offset },
            _ => Spacing::Even,
        };
        match sampler {
            Sampler::Pndm if !skips_runge_kutta => Err(format!("skip_prk_steps is false; {sampler} knows true")),
            Sampler::Pndm if self.prediction == Prediction::Sample => {
                Err(format!("prediction_type is \"sample\"; {sampler} knows \"epsilon\", \"v_prediction\""))
            }
            Sampler::Ddim if self.clip.is_some() => Err(format!("clip_sample is true; {sampler} knows false")),
            _ => {
                let ends_clean = ends_clean.unwrap_or(sampler == Sampler::Ddim);
                Ok(SchedulerConfig { sampler, spacing, ends_clean, ..self.clone() })
            }
        }
    }

    /// The formula of this stage's steps; `guided` if the batch holds both halves.
    pub fn rule(&self, guided: bool, noise: Noise) -> Rule {
        match self.sampler.is_multistep() {
            true => Rule::Multistep(Multistep { guided }),
            false => self.step(guided, noise).into(),
        }
    }

    /// The ancestral step of this stage; `guided` if the batch holds both halves.
    pub fn step(&self, guided: bool, noise: Noise) -> SamplerStep {
        SamplerStep { prediction: self.prediction, variance: self.variance, clip: self.clip, guided, noise }
    }
}

impl Configured<SchedulerConfig> {
    /// The stage's scheduler, or what another sampler makes of its file.
    ///
    /// # Errors
    /// [`Error::Config`] for a key that the sampler cannot follow, and for a file of unCLIP's own scheduler.
    pub fn sampled_by(&self, sampler: Option<Sampler>) -> Result<SchedulerConfig> {
        match sampler {
            Some(_) if self.sampler == Sampler::UnClip => {
                Err(self.refused("no sampler can be chosen for unCLIP's own scheduler"))
            }
            Some(sampler) if sampler != self.sampler => self.by(sampler).map_err(|reason| self.refused(reason)),
            _ => Ok(SchedulerConfig::clone(self)),
        }
    }
}

impl std::str::FromStr for Sampler {
    type Err = Error;

    fn from_str(name: &str) -> Result<Sampler> {
        SAMPLERS.iter().find(|(_, known, _)| *known == name).map(|(sampler, ..)| *sampler).ok_or_else(|| {
            let known = SAMPLERS.map(|(_, name, _)| name).join(", ");
            Error::value("sampler", name, format!("expected one of {known}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::config;
    use std::path::Path;

    fn read(text: &str) -> Result<Configured<SchedulerConfig>> {
        config::read(Path::new("prior_scheduler/scheduler_config.json"), text.as_bytes())
    }

    fn parse(text: &str) -> Result<SchedulerConfig> {
        read(text).map(|config| SchedulerConfig::clone(&config))
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
            (
                r#"{"_class_name": "HeunDiscreteScheduler"}"#,
                r#"_class_name is "HeunDiscreteScheduler""#,
                "UnCLIPScheduler",
            ),
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

    const PNDM: &str = r#"{"_class_name": "PNDMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085,
        "beta_end": 0.012, "steps_offset": 1, "clip_sample": false, "skip_prk_steps": true, "set_alpha_to_one": false,
        "prediction_type": "v_prediction"}"#;

    /// As `from_config` has it: what the file names counts for all, what it leaves out is each class's own.
    #[test]
    fn another_sampler_reads_the_same_file() {
        let file = read(PNDM).unwrap();
        let leading = Spacing::Leading { offset: 1 };
        let wanted = [leading, leading, leading, Spacing::Even, Spacing::Even];
        for (sampler, spacing) in Sampler::CHOICES.into_iter().zip(wanted) {
            let config = file.sampled_by(Some(sampler)).unwrap();
            assert_eq!((config.sampler, config.spacing, config.ends_clean), (sampler, spacing, false));
            assert_eq!((config.prediction, config.clip, config.betas), (Prediction::Velocity, None, file.betas));
            assert_eq!(sampler.to_string().parse::<Sampler>().unwrap(), sampler);
        }
        assert_eq!(file.sampled_by(None).unwrap().sampler, Sampler::Pndm);
        let named = read(&PNDM.replacen('{', r#"{"timestep_spacing": "leading", "#, 1)).unwrap();
        assert_eq!(named.sampled_by(Some(Sampler::Euler)).unwrap().spacing, leading);
        let without = read(&PNDM.replace(r#""set_alpha_to_one": false,"#, "")).unwrap();
        assert!(without.sampled_by(Some(Sampler::Ddim)).unwrap().ends_clean && !without.ends_clean);
    }

    #[test]
    fn what_a_sampler_cannot_follow_is_refused_by_its_key() {
        let refused = |text: &str, sampler| {
            let error = read(text).and_then(|file| file.sampled_by(Some(sampler))).expect_err(text);
            assert!(matches!(error, Error::Config { .. }));
            error.to_string()
        };
        for (text, sampler, reason) in [
            (
                PNDM.replace(r#""skip_prk_steps": true,"#, ""),
                Sampler::Pndm,
                "skip_prk_steps is missing, which means false",
            ),
            (
                PNDM.replace("PNDM", "DDIM").replace(r#""skip_prk_steps": true,"#, ""),
                Sampler::Pndm,
                "skip_prk_steps is false",
            ),
            (PNDM.replace(r#""clip_sample": false"#, r#""clip_sample": true"#), Sampler::Ddim, "clip_sample is true"),
            (PNDM.replacen('{', r#"{"use_karras_sigmas": true, "#, 1), Sampler::Euler, "use_karras_sigmas is true"),
            (r#"{"num_train_timesteps": 1000}"#.to_owned(), Sampler::Euler, "no sampler can be chosen"),
        ] {
            let message = refused(&text, sampler);
            assert!(message.contains(reason), "{message}");
        }
        assert!("heun".parse::<Sampler>().unwrap_err().to_string().contains("pndm, ddim, ddpm, euler, dpm++"));
    }
}
