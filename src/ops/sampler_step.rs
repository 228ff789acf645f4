//! One reverse step of the diffusion: from a model's output and `x_t` to `x_{t-1}`.
//!
//! Classifier-free guidance, the estimate of `x0`, its clipping, the posterior mean and the noise are one
//! operation, because each is a few flops per element and every one of them would otherwise read and write the
//! whole image. What shapes the computation (which formulas, the clipping range) is in [`SamplerStep`]; what changes
//! with the step or the picture is a row of nine coefficients, see
//! [`coefficients`](crate::diffusion::sampler::coefficients). So a recorded step is replayed unchanged, also with another
//! guidance scale or number of steps, and pictures of one batch may have scales of their own.
//!
//! [`element`] is the whole arithmetic for one element, in f32 and in the order in which diffusers'
//! `UnCLIPScheduler` does it: at t = 999 the factor `1 / sqrt(alpha_bar)` is about 20 000, and another order of
//! the same formula would show in the picture.

use super::launch::optional;
use super::reverse::{Reverse, no_rule};
use super::{Launch, Operand, Operation, Scalar, StorageRule, Tiles, count, elements, require};
use crate::noise::{NoiseDtype, NoiseKind, NoiseSource, Seeds};

/// Coefficients of a picture's step.
pub const COEFFICIENTS: usize = 9;

/// What the model predicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prediction {
    /// The noise `eps` in `x_t`.
    Epsilon,
    /// The clean sample `x0`.
    Sample,
    /// `sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x0` (Salimans & Ho 2022, section 4).
    Velocity,
}

impl Prediction {
    /// Number of the prediction in kernels.
    fn number(self) -> u32 {
        match self {
            Prediction::Sample => 0,
            Prediction::Epsilon => 1,
            Prediction::Velocity => 2,
        }
    }
}

/// Where the standard deviation of a step's noise comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variance {
    /// The posterior variance of the schedule, the same for every element.
    Fixed,
    /// The model says, per element, where between the posterior variance and `beta_t` it lies.
    LearnedRange,
}

/// The source of a step's noise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Noise {
    /// They are an input.
    #[default]
    Given,
    /// Each is drawn where it is added, by [`Philox`](crate::noise::Philox).
    Philox,
    /// Each is drawn where it is added, as by [`TorchCudaGenerator`](crate::noise::TorchCudaGenerator) in this type.
    TorchCuda(NoiseDtype),
}

impl From<&NoiseSource> for Noise {
    /// torch's CPU generator is one sequence, which only the host can draw.
    fn from(source: &NoiseSource) -> Noise {
        match source.kind() {
            _ if !source.is_for_kernels() => Noise::Given,
            NoiseKind::TorchCuda(_) => Noise::TorchCuda(source.dtype()),
            _ => Noise::Philox,
        }
    }
}

impl Noise {
    /// Words of a picture's row of `seeds`; `None` where the noise is given.
    pub fn words(self) -> Option<usize> {
        match self {
            Noise::Given => None,
            Noise::Philox => Some(Seeds::PHILOX_WORDS),
            Noise::TorchCuda(_) => Some(Seeds::TORCH_CUDA_WORDS),
        }
    }

    /// Number of the generator in kernels.
    fn number(self) -> u32 {
        match self {
            Noise::Given => 0,
            Noise::Philox => 1,
            Noise::TorchCuda(_) => 2,
        }
    }

    /// Bits of an f32's fraction that the type of a draw lacks.
    fn lost_bits(self) -> u32 {
        match self {
            Noise::TorchCuda(NoiseDtype::F16) => 13,
            Noise::TorchCuda(NoiseDtype::Bf16) => 16,
            _ => 0,
        }
    }
}

/// One step of ancestral sampling.
///
/// # Shapes
/// `output [2B | B, P, C * (1 | 2)]`, `x_t [B, P, C]`, `coefficients [B, 9]`, and either `noise [B, P, C]` or
/// `seeds [B, 4 | 8]`, `step [1]` -> `x_{t-1} [B, P, C]`, channels last. The output has the doubled batch with guidance,
/// and the doubled channels with a learned variance; the second half of the channels is then the variance.
///
/// A row of `seeds` says where a picture's draw of step 0 lies, see [`Seeds::words`]; the present draw is `step` further.
/// Draws are in the order of `[C, P]`: channel `c` of position `p` is their element `c P + p`.
///
/// # Formula
/// ```text
/// out    = u + s (c - u)                                          with guidance, else c
/// x0     = (x_t - sqrt(1 - alpha_bar) out) / sqrt(alpha_bar)      Epsilon
/// x0     = sqrt(alpha_bar) x_t - sqrt(1 - alpha_bar) out          Velocity, else out
/// x0     = clamp(x0, -range, range)                               with clip
/// sigma  = exp(logvar / 2),  logvar = f ln(beta) + (1 - f) ln(posterior),  f = (v + 1) / 2    LearnedRange
/// x_{t-1} = a x0 + b x_t + on sigma noise
/// ```
/// `v` is the conditional half's variance output and is not guided. A picture's row of coefficients holds, in order,
/// `sqrt(1 - alpha_bar)`, `sqrt(alpha_bar)`, `a`, `b`, `sigma` of the fixed variance, `ln(beta)`, `ln(posterior)`,
/// `on` (1, or 0 in the last step: none is drawn there, and what is given must still be finite), and the guidance scale
/// `s`.
///
/// # Source
/// Ho et al. 2020 (DDPM), eq. 7 and 15; Nichol & Dhariwal 2021, eq. 15; Ho & Salimans 2022, eq. 6. The
/// re-spaced `beta` and the clipping are those of diffusers' `UnCLIPScheduler`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplerStep {
    /// What the model predicts.
    pub prediction: Prediction,
    /// Where the noise's standard deviation comes from.
    pub variance: Variance,
    /// Bound on the magnitude of `x0`, if it is clipped.
    pub clip: Option<f32>,
    /// Classifier-free guidance: the model's output holds the unconditional half of the batch first.
    pub guided: bool,
    /// Where the noise comes from.
    pub noise: Noise,
}

impl Operation for SamplerStep {
    fn name(&self) -> &'static str {
        "sampler_step"
    }

    fn shape(&self, inputs: &[&[usize]]) -> Result<Vec<usize>, String> {
        let words = self.noise.words();
        count(inputs, if words.is_some() { 5 } else { 4 })?;
        let (output, x_t, row, noise) = (inputs[0], inputs[1], inputs[2], &inputs[3..]);
        require(x_t.len() >= 2, || format!("sampler_step: x_t {x_t:?}"))?;
        let mut wanted = x_t.to_vec();
        wanted[0] *= if self.guided { 2 } else { 1 };
        wanted[x_t.len() - 1] *= if self.variance == Variance::LearnedRange { 2 } else { 1 };
        let fits = match words {
            Some(words) => noise[0] == [x_t[0], words] && noise[1] == [1],
            None => noise[0] == x_t,
        };
        require(output == wanted && fits && row == [x_t[0], COEFFICIENTS], || {
            let noise_name = if words.is_some() { "seeds and step" } else { "noise" };
            format!("sampler_step: output {output:?}, {noise_name} {noise:?}, coefficients {row:?} for x_t {x_t:?}")
        })?;
        Ok(x_t.to_vec())
    }

    fn flops(&self, _: &[&[usize]], output: &[usize]) -> u64 {
        let each = match self.noise {
            Noise::Given => 12,
            // A logarithm, a root, a sine or cosine.
            Noise::Philox | Noise::TorchCuda(_) => 12 + 50,
        };
        each * elements(output) as u64
    }

    fn backward(&self, _: &mut Reverse<'_>) -> Result<(), String> {
        no_rule(self.name())
    }

    fn storage_rule(&self, _: Operand) -> StorageRule {
        StorageRule::F32
    }

    fn wgsl(&self, inputs: &[&[usize]], output: &[usize], _: Tiles) -> Vec<Launch> {
        let channels = output[output.len() - 1];
        let positions = elements(&output[1..output.len() - 1]);
        let wide = inputs[0][inputs[0].len() - 1];
        let drawn = self.noise.words().is_some();
        // With guidance the conditional half follows the unconditional one.
        let conditional = if self.guided { elements(inputs[0]) / 2 } else { 0 };
        let mut scalars: Vec<Scalar> = [channels, positions, wide, conditional].map(Scalar::from).to_vec();
        scalars.extend([
            Scalar::from(self.guided),
            Scalar::U32(self.prediction.number()),
            (self.variance == Variance::LearnedRange).into(),
            self.clip.is_some().into(),
            Scalar::U32(self.noise.number()),
            Scalar::U32(self.noise.lost_bits()),
            self.clip.unwrap_or(0.0).into(),
        ]);
        let mut tensors: Vec<Operand> = (0..3).map(Operand::Input).collect();
        let mut next = 3;
        tensors.extend([!drawn, drawn, drawn].map(|present| optional(present, &mut next)));
        tensors.push(Operand::Output(0));
        vec![Launch::each("sampler_step", elements(output), tensors, scalars)]
    }
}

/// What a step makes of one element.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepResult {
    /// The model's output after guidance.
    pub guided: f32,
    /// The estimate of the clean sample, after clipping.
    pub x0: f32,
    /// The element of `x_{t-1}`.
    pub next: f32,
}

/// The arithmetic of [`SamplerStep`] for one element.
///
/// `unconditional` is ignored without guidance, `variance` (the conditional half's `v`) with a fixed variance.
/// A NaN in the model's output stays a NaN.
#[inline(always)]
pub fn element(
    rule: &SamplerStep,
    row: &[f32; COEFFICIENTS],
    unconditional: f32,
    conditional: f32,
    variance: f32,
    x_t: f32,
    noise: f32,
) -> StepResult {
    let [
        sqrt_one_minus_alpha_bar,
        sqrt_alpha_bar,
        x0_weight,
        x_t_weight,
        fixed_sigma,
        log_beta,
        log_posterior,
        on,
        scale,
    ] = *row;
    let guided = if rule.guided { unconditional + scale * (conditional - unconditional) } else { conditional };
    let mut x0 = match rule.prediction {
        Prediction::Epsilon => (x_t - sqrt_one_minus_alpha_bar * guided) / sqrt_alpha_bar,
        Prediction::Sample => guided,
        Prediction::Velocity => sqrt_alpha_bar * x_t - sqrt_one_minus_alpha_bar * guided,
    };
    if let Some(range) = rule.clip {
        // Comparisons, not min and max: those would turn a NaN into a pixel.
        if x0 < -range {
            x0 = -range;
        } else if x0 > range {
            x0 = range;
        }
    }
    let sigma = match rule.variance {
        Variance::Fixed => fixed_sigma,
        Variance::LearnedRange => {
            let fraction = (variance + 1.0) / 2.0;
            (0.5 * (fraction * log_beta + (1.0 - fraction) * log_posterior)).exp()
        }
    };
    let next = (x0_weight * x0 + x_t_weight * x_t) + on * (sigma * noise);
    StepResult { guided, x0, next }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: SamplerStep = SamplerStep {
        prediction: Prediction::Sample,
        variance: Variance::Fixed,
        clip: None,
        guided: false,
        noise: Noise::Given,
    };
    const ROW: [f32; COEFFICIENTS] = [0.6, 0.8, 0.25, 0.5, 2.0, 0.0, -2.0, 1.0, 1.0];

    fn scaled(scale: f32) -> [f32; COEFFICIENTS] {
        let mut row = ROW;
        row[8] = scale;
        row
    }

    #[test]
    fn guidance_of_one_gives_the_conditional_output() {
        let rule = SamplerStep { guided: true, ..PLAIN };
        assert_eq!(element(&rule, &scaled(1.0), 5.0, 3.0, 0.0, 1.0, 1.0).guided, 3.0);
    }

    #[test]
    fn guidance_extrapolates_from_the_unconditional_output() {
        let rule = SamplerStep { guided: true, ..PLAIN };
        assert_eq!(element(&rule, &scaled(4.0), 1.0, 1.5, 0.0, 1.0, 1.0).guided, 3.0);
    }

    #[test]
    fn clipping_keeps_nan_and_bounds_both_sides() {
        let rule = SamplerStep { clip: Some(1.0), ..PLAIN };
        let x0 = |output| element(&rule, &ROW, 0.0, output, 0.0, 1.0, 1.0).x0;
        assert_eq!([x0(7.0), x0(-7.0), x0(0.5)], [1.0, -1.0, 0.5]);
        assert!(x0(f32::NAN).is_nan());
    }

    #[test]
    fn learned_variance_runs_from_the_posterior_to_beta() {
        let rule = SamplerStep { variance: Variance::LearnedRange, ..PLAIN };
        let sigma = |v| element(&rule, &ROW, 0.0, 0.0, v, 0.0, 1.0).next;
        assert_eq!(sigma(1.0), 1.0);
        assert_eq!(sigma(-1.0), (-1f32).exp());
    }
}
