use super::super::{count, elements, require, width};
use super::Rule;

/// What a loss leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LossPart {
    /// The gradient of the mean over all images with respect to the network's output: where the backward pass begins.
    Seed,
    /// Each image's own numbers, to be logged.
    Values,
}

/// The mean squared error.
///
/// *Shapes* `output [B, ..]`, `target [B, ..]` gives the seed `[B, ..]` or the values `[B]`.
///
/// *Formula* `mean (output - target)^2` over an image's elements.
#[derive(Clone, Debug, PartialEq)]
pub struct SquaredError {
    /// Which.
    pub part: LossPart,
}

impl Rule for SquaredError {
    fn name(&self) -> &'static str {
        "squared_error"
    }

    fn shape(&self, inputs: &[&[usize]]) -> Result<Vec<usize>, String> {
        count(inputs, 2)?;
        let (output, target) = (inputs[0], inputs[1]);
        require(output == target && output.len() > 1, || format!("squared_error: {output:?} for {target:?}"))?;
        Ok(if self.part == LossPart::Seed { output.to_vec() } else { vec![output[0]] })
    }

    fn flops(&self, inputs: &[&[usize]], _: &[usize]) -> u64 {
        3 * elements(inputs[0]) as u64
    }
}

/// Numbers of a timestep that [`DiffusionLoss`] reads: `ln beta`, `ln posterior variance`, `kappa`,
/// `sqrt(1 - alpha_bar) / sqrt(alpha_bar)`, and 1 at timestep 0, else 0.
pub const HYBRID: usize = 5;

/// The loss of a network that predicts the noise and where between its bounds the variance lies: squared error and
/// variational bound, in bits, whose mean has no gradient.
///
/// *Shapes* `output [B, .., 2C]`, the noise first, `x0 [B, .., C]`, `noise [B, .., C]`, `coefficients [B, 5]` gives the seed
/// `[B, .., 2C]` or the values `[B, 2]`: squared error, then bound.
///
/// *Formula* means over an image's elements of `(e' - e)^2` and of the bound, with `f = (v + 1) / 2` and
/// `lv = f ln beta + (1 - f) lp`:
/// ```text
/// t > 0   0.5 (-1 + lv - lp + exp(lp - lv) + kappa (e' - e)^2 exp(-lv)) / ln 2,    kappa = beta^2 / ((1 - beta) (1 - alpha_bar))
/// t = 0   -ln P(x0) / ln 2, the probability of an 8-bit level, at least 1e-12
/// ```
///
/// *Source* Nichol & Dhariwal 2021, eq. 14 to 16; Ho et al. 2020, eq. 13, with tanh's approximation of the distribution
/// function. With `kappa` no `x0` is formed of the prediction.
#[derive(Clone, Debug, PartialEq)]
pub struct DiffusionLoss {
    /// Which.
    pub part: LossPart,
}

impl Rule for DiffusionLoss {
    fn name(&self) -> &'static str {
        "diffusion_loss"
    }

    fn shape(&self, inputs: &[&[usize]]) -> Result<Vec<usize>, String> {
        count(inputs, 4)?;
        let (output, x0) = (inputs[0], inputs[1]);
        let mut wide = x0.to_vec();
        if let Some(last) = wide.last_mut() {
            *last *= 2;
        }
        let fits = x0.len() > 1 && output == wide && inputs[2] == x0 && inputs[3] == [x0[0], HYBRID] && width(x0) > 0;
        require(fits, || format!("diffusion_loss: {inputs:?}"))?;
        Ok(if self.part == LossPart::Seed { output.to_vec() } else { vec![x0[0], 2] })
    }

    fn flops(&self, inputs: &[&[usize]], _: &[usize]) -> u64 {
        20 * elements(inputs[1]) as u64
    }
}
