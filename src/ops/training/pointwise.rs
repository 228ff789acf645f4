use super::super::reverse::{Reverse, Source};
use super::super::{Activation, count, elements, require, width};
use super::Rule;

/// A gradient times what an element-wise operation does to its input.
#[derive(Clone, Debug, PartialEq)]
pub enum Slope {
    /// `g act'(x)`. *Shapes* `g`, `x`, both alike, gives the same.
    Activation(Activation),
    /// `g` where `low < x < high`, else 0, on the bounds too. *Shapes* `g`, `x`, both alike, gives the same.
    Clamp {
        /// Lower end.
        low: f32,
        /// Upper end.
        high: f32,
    },
    /// `g (1 + scale)`. *Shapes* `g [N, .., C]`, `style [N, 2C]`, the scale first, gives `[N, .., C]`.
    ScaleShift,
}

impl Rule for Slope {
    fn name(&self) -> &'static str {
        "slope"
    }

    fn shape(&self, inputs: &[&[usize]]) -> Result<Vec<usize>, String> {
        count(inputs, 2)?;
        let (g, other) = (inputs[0], inputs[1]);
        let fits = match self {
            Slope::Activation(_) | Slope::Clamp { .. } => g == other,
            Slope::ScaleShift => g.len() >= 2 && other == [g[0], 2 * width(g)],
        };
        require(fits, || format!("slope: g {g:?} and {other:?}"))?;
        Ok(g.to_vec())
    }

    fn flops(&self, _: &[&[usize]], output: &[usize]) -> u64 {
        elements(output) as u64
    }
}

/// Adds up the elements that one element of a smaller tensor was repeated to.
///
/// *Shapes* `x`, read as `[outer, repeats, inner]`, gives `shape`, which has `outer * inner` elements: with `outer` 1 the sum
/// over leading dimensions, with as many as there are images the sum over an image's positions.
#[derive(Clone, Debug, PartialEq)]
pub struct Sum {
    /// Leading entries that are kept apart.
    pub outer: usize,
    /// The output's shape.
    pub shape: Vec<usize>,
}

impl Sum {
    /// Over leading dimensions, down to `shape`.
    pub fn leading(shape: &[usize]) -> Sum {
        Sum { outer: 1, shape: shape.to_vec() }
    }

    /// Over the positions of each image, down to `[N, C]`.
    pub fn positions(shape: &[usize]) -> Sum {
        Sum { outer: shape[0], shape: shape.to_vec() }
    }
}

impl Rule for Sum {
    fn name(&self) -> &'static str {
        "sum"
    }

    fn shape(&self, inputs: &[&[usize]]) -> Result<Vec<usize>, String> {
        count(inputs, 1)?;
        let (all, left) = (elements(inputs[0]), elements(&self.shape));
        let fits = self.outer > 0 && left > 0 && left.is_multiple_of(self.outer) && all.is_multiple_of(left);
        require(fits, || format!("sum: {:?} to {:?} in {} parts", inputs[0], self.shape, self.outer))?;
        Ok(self.shape.clone())
    }

    fn flops(&self, inputs: &[&[usize]], _: &[usize]) -> u64 {
        elements(inputs[0]) as u64
    }
}

/// `x * factor`: how strongly an adapter counts.
///
/// *Shapes* `x` gives the same.
#[derive(Clone, Debug, PartialEq)]
pub struct Scale {
    /// The factor.
    pub factor: f32,
}

impl Rule for Scale {
    fn name(&self) -> &'static str {
        "scale"
    }

    fn shape(&self, inputs: &[&[usize]]) -> Result<Vec<usize>, String> {
        count(inputs, 1)?;
        Ok(inputs[0].to_vec())
    }

    fn flops(&self, _: &[&[usize]], output: &[usize]) -> u64 {
        elements(output) as u64
    }

    fn backward(&self, reverse: &mut Reverse<'_>) -> Result<(), String> {
        reverse.give_by(0, self.clone(), &[Source::Gradient])
    }
}
