use super::{Activation, Operation, count, elements, require, width};

/// Matrix product with a stored weight: every row of `x` times `W` transposed.
///
/// *Shapes* `x [.., K]`, `W [N, K]`, then `bias [N]` if `bias`, then `residual [.., N]` if `residual`
/// gives `y [.., N]`.
///
/// *Formula* `y = activation(x W^T + bias) + residual`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Linear {
    /// A bias vector follows the weight.
    pub bias: bool,
    /// Applied to the product before the residual is added.
    pub activation: Option<Activation>,
    /// A tensor of the output's shape is added last.
    pub residual: bool,
}

impl Operation for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn shape(&self, inputs: &[&[usize]]) -> Result<Vec<usize>, String> {
        count(inputs, 2 + usize::from(self.bias) + usize::from(self.residual))?;
        let (x, w) = (inputs[0], inputs[1]);
        require(w.len() == 2 && width(x) == w[1], || format!("linear: x {x:?} does not fit a weight {w:?} [N, K]"))?;
        let mut y = x.to_vec();
        y[x.len() - 1] = w[0];
        if self.bias {
            require(inputs[2] == [w[0]], || format!("linear: bias {:?} for {} outputs", inputs[2], w[0]))?;
        }
        if self.residual {
            let r = inputs[2 + usize::from(self.bias)];
            require(r == y, || format!("linear: residual {r:?} for an output {y:?}"))?;
        }
        Ok(y)
    }

    fn flops(&self, inputs: &[&[usize]], output: &[usize]) -> u64 {
        2 * elements(output) as u64 * width(inputs[0]) as u64
    }
}
