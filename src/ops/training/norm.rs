use super::super::{GroupNorm, Operation, count, elements, require, width};
use super::Rule;

/// The gradient of a layer norm's input.
///
/// *Shapes* `g [.., D]`, `x [.., D]`, `gamma [D]` gives `[.., D]`.
///
/// *Formula* `d = g gamma`, `dx = (d - mean(d) - xhat mean(d xhat)) / sqrt(var + eps)`, means over `D`, where `xhat` is the
/// normalised row.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerNormGradient {
    /// The layer norm's own.
    pub eps: f32,
}

impl Rule for LayerNormGradient {
    fn name(&self) -> &'static str {
        "layer_norm_gradient"
    }

    fn shape(&self, inputs: &[&[usize]]) -> Result<Vec<usize>, String> {
        count(inputs, 3)?;
        let (g, x, gamma) = (inputs[0], inputs[1], inputs[2]);
        require(g == x && gamma == [width(x)], || format!("{}: g {g:?}, x {x:?}, gamma {gamma:?}", self.name()))?;
        Ok(x.to_vec())
    }

    fn flops(&self, _: &[&[usize]], output: &[usize]) -> u64 {
        12 * elements(output) as u64
    }
}

/// The gradient of a layer norm's gain.
///
/// *Shapes* `g [.., D]`, `x [.., D]` gives `[D]`.
///
/// *Formula* `sum g xhat` over all rows.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerNormGain {
    /// The layer norm's own.
    pub eps: f32,
}

impl Rule for LayerNormGain {
    fn name(&self) -> &'static str {
        "layer_norm_gain"
    }

    fn shape(&self, inputs: &[&[usize]]) -> Result<Vec<usize>, String> {
        count(inputs, 2)?;
        require(inputs[0] == inputs[1], || format!("{}: g {:?}, x {:?}", self.name(), inputs[0], inputs[1]))?;
        Ok(vec![width(inputs[1])])
    }

    fn flops(&self, inputs: &[&[usize]], _: &[usize]) -> u64 {
        8 * elements(inputs[1]) as u64
    }
}

/// Two sums for each image and channel, from which all gradients of a group norm follow.
///
/// *Shapes* `g [N, .., C]`, then the norm's inputs, gives `[N, 2C]`.
///
/// *Formula* with `w = xhat gamma (1 + scale) + beta (1 + scale) + shift`: `a = sum_p g act'(w)`, then
/// `b = sum_p g act'(w) xhat`.
#[derive(Clone, Debug, PartialEq)]
pub struct NormSums(
    /// The group norm.
    pub GroupNorm,
);

impl Rule for NormSums {
    fn name(&self) -> &'static str {
        "norm_sums"
    }

    fn shape(&self, inputs: &[&[usize]]) -> Result<Vec<usize>, String> {
        let x = checked(&self.0, self.name(), inputs[0], &inputs[1..])?;
        Ok(vec![x[0], 2 * width(&x)])
    }

    fn flops(&self, inputs: &[&[usize]], _: &[usize]) -> u64 {
        14 * elements(inputs[0]) as u64
    }
}

/// The gradient of a group norm's input.
///
/// *Shapes* `g [N, .., C]`, `sums [N, 2C]` as [`NormSums`] leaves them, then the norm's inputs, gives `[N, .., C]`.
///
/// *Formula* with `f = gamma (1 + scale)`: `dx = (f g act'(w) - m1 - xhat m2) / sqrt(var + eps)`, where `m1` and `m2` are the
/// means over a group of `f a` and `f b`.
#[derive(Clone, Debug, PartialEq)]
pub struct NormGradient(
    /// The group norm.
    pub GroupNorm,
);

impl Rule for NormGradient {
    fn name(&self) -> &'static str {
        "norm_gradient"
    }

    fn shape(&self, inputs: &[&[usize]]) -> Result<Vec<usize>, String> {
        require(inputs.len() > 2, || format!("{}: takes a gradient, sums and the norm's inputs", self.name()))?;
        let x = checked(&self.0, self.name(), inputs[0], &inputs[2..])?;
        let sums = [x[0], 2 * width(&x)];
        require(inputs[1] == sums, || format!("{}: sums {:?} for {x:?}", self.name(), inputs[1]))?;
        Ok(x)
    }

    fn flops(&self, _: &[&[usize]], output: &[usize]) -> u64 {
        18 * elements(output) as u64
    }
}

/// Which vector of a group norm a gradient is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VectorOf {
    /// `gamma`: `sum_n (1 + scale) b`.
    Gain,
    /// `beta`: `sum_n (1 + scale) a`.
    Offset,
    /// The style: `gamma b + beta a`, then `a`.
    Style,
}

/// The gradient of one of a group norm's vectors.
///
/// *Shapes* `sums [N, 2C]` as [`NormSums`] leaves them, `gamma [C]`, `beta [C]`, then `style [N, 2C]` if `style`, gives
/// `[C]`, or `[N, 2C]` for the style.
///
/// *Formula* of each at [`VectorOf`].
#[derive(Clone, Debug, PartialEq)]
pub struct NormVector {
    /// Which.
    pub of: VectorOf,
    /// The norm has a style.
    pub style: bool,
}

impl Rule for NormVector {
    fn name(&self) -> &'static str {
        "norm_vector"
    }

    fn shape(&self, inputs: &[&[usize]]) -> Result<Vec<usize>, String> {
        count(inputs, 3 + usize::from(self.style))?;
        let (sums, gamma) = (inputs[0], inputs[1]);
        let fits = gamma.len() == 1
            && gamma == inputs[2]
            && sums.len() == 2
            && sums[1] == 2 * gamma[0]
            && (!self.style || inputs[3] == sums)
            && (self.style || self.of != VectorOf::Style);
        require(fits, || format!("{}: {inputs:?} for {:?}", self.name(), self.of))?;
        Ok(if self.of == VectorOf::Style { sums.to_vec() } else { gamma.to_vec() })
    }

    fn flops(&self, inputs: &[&[usize]], _: &[usize]) -> u64 {
        2 * elements(inputs[0]) as u64
    }
}

/// The shape of the norm's output.
fn checked(norm: &GroupNorm, name: &str, g: &[usize], inputs: &[&[usize]]) -> Result<Vec<usize>, String> {
    let output = norm.shape(inputs)?;
    require(g == output, || format!("{name}: a gradient {g:?} of a norm {output:?}"))?;
    Ok(output)
}
