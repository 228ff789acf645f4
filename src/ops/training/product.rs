use super::super::{Conv2d, count, elements, require, width};
use super::Rule;

/// The gradient of a linear layer's input: the product with the weight the other way round.
///
/// *Shapes* `g [.., N]`, `W [N, K]`, then `residual [.., K]` if `residual`, gives `[.., K]`.
///
/// *Formula* `y = g W + residual`.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearInput {
    /// A tensor of the output's shape is added: another gradient of the same value.
    pub residual: bool,
}

impl Rule for LinearInput {
    fn name(&self) -> &'static str {
        "linear_input"
    }

    fn shape(&self, inputs: &[&[usize]]) -> Result<Vec<usize>, String> {
        count(inputs, 2 + usize::from(self.residual))?;
        let (g, w) = (inputs[0], inputs[1]);
        require(w.len() == 2 && width(g) == w[0], || format!("linear_input: g {g:?} for a weight {w:?} [N, K]"))?;
        let mut x = g.to_vec();
        x[g.len() - 1] = w[1];
        require(!self.residual || inputs[2] == x, || format!("linear_input: residual {:?} for {x:?}", inputs[2]))?;
        Ok(x)
    }

    fn flops(&self, inputs: &[&[usize]], output: &[usize]) -> u64 {
        2 * elements(output) as u64 * width(inputs[0]) as u64
    }
}

/// The gradient of a linear layer's weight.
///
/// *Shapes* `g [.., N]`, `x [.., K]` gives `[N, K]`.
///
/// *Formula* `y[n, k] = sum_m g[m, n] x[m, k]`.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearWeight;

impl Rule for LinearWeight {
    fn name(&self) -> &'static str {
        "linear_weight"
    }

    fn shape(&self, inputs: &[&[usize]]) -> Result<Vec<usize>, String> {
        count(inputs, 2)?;
        let (g, x) = (inputs[0], inputs[1]);
        let rows = |s: &[usize]| s.split_last().map(|(_, rows)| elements(rows));
        require(rows(g).is_some() && rows(g) == rows(x), || format!("linear_weight: g {g:?} for x {x:?}"))?;
        Ok(vec![width(g), width(x)])
    }

    fn flops(&self, inputs: &[&[usize]], _: &[usize]) -> u64 {
        2 * elements(inputs[0]) as u64 * width(inputs[1]) as u64
    }
}

/// The gradient of a convolution's input: a convolution with turned kernels, inputs and outputs swapped.
///
/// *Shapes* `g [N, H', W', O]`, `weight [O, C, R, S]`, then `residual [N, H, W, C]` if `residual`, gives `[N, H, W, C]`.
///
/// *Formula* `y[n,i,j,c] = sum_{r,s,o} g[n, (i + before - r) / stride, (j + before - s) / stride, o] weight[o,c,r,s]` over
/// the taps for which both are whole numbers inside `g`, plus `residual`.
#[derive(Clone, Debug, PartialEq)]
pub struct ConvInput {
    /// The convolution's own.
    pub stride: usize,
    /// The convolution's own.
    pub padding: [usize; 2],
    /// Height and width of the convolution's input, which its output's do not tell.
    pub size: [usize; 2],
    /// A tensor of the output's shape is added: another gradient of the same value.
    pub residual: bool,
}

impl Rule for ConvInput {
    fn name(&self) -> &'static str {
        "conv_input"
    }

    fn shape(&self, inputs: &[&[usize]]) -> Result<Vec<usize>, String> {
        count(inputs, 2 + usize::from(self.residual))?;
        let (g, w) = (inputs[0], inputs[1]);
        require(g.len() == 4 && w.len() == 4 && g[3] == w[0], || {
            format!("conv_input: g {g:?} [N, H', W', O] for a weight {w:?} [O, C, R, S]")
        })?;
        let x = vec![g[0], self.size[0], self.size[1], w[1]];
        let fits = forward(self.stride, self.padding, &x, [w[2], w[3]]) == Some([g[1], g[2]]);
        require(fits, || format!("conv_input: g {g:?} is of no picture {x:?} with a weight {w:?}"))?;
        require(!self.residual || inputs[2] == x, || format!("conv_input: residual {:?} for {x:?}", inputs[2]))?;
        Ok(x)
    }

    fn flops(&self, inputs: &[&[usize]], _: &[usize]) -> u64 {
        2 * elements(inputs[0]) as u64 * elements(&inputs[1][1..]) as u64
    }
}

/// The gradient of a convolution's weight.
///
/// *Shapes* `g [N, H', W', O]`, `x [N, H, W, C]` gives `[O, C, R, S]`.
///
/// *Formula* `y[o,c,r,s] = sum_{n,i,j} g[n,i,j,o] x[n, i stride + r - before, j stride + s - before, c]`.
#[derive(Clone, Debug, PartialEq)]
pub struct ConvWeight {
    /// The convolution's own.
    pub stride: usize,
    /// The convolution's own.
    pub padding: [usize; 2],
    /// `[R, S]`.
    pub window: [usize; 2],
}

impl Rule for ConvWeight {
    fn name(&self) -> &'static str {
        "conv_weight"
    }

    fn shape(&self, inputs: &[&[usize]]) -> Result<Vec<usize>, String> {
        count(inputs, 2)?;
        let (g, x) = (inputs[0], inputs[1]);
        let fits = g.len() == 4
            && x.len() == 4
            && g[0] == x[0]
            && forward(self.stride, self.padding, x, self.window) == Some([g[1], g[2]]);
        require(fits, || format!("conv_weight: g {g:?} for x {x:?} and a window {:?}", self.window))?;
        Ok(vec![g[3], x[3], self.window[0], self.window[1]])
    }

    fn flops(&self, inputs: &[&[usize]], output: &[usize]) -> u64 {
        2 * elements(inputs[0]) as u64 * elements(&output[1..]) as u64
    }
}

/// Height and width of what a convolution of these makes of `x [N, H, W, C]`.
fn forward(stride: usize, padding: [usize; 2], x: &[usize], window: [usize; 2]) -> Option<[usize; 2]> {
    let op = Conv2d { stride, padding, bias: false, shift: false, residual: false, behind: false, table: false };
    let y = super::super::Operation::shape(&op, &[x, &[1, x[3], window[0], window[1]]]).ok()?;
    Some([y[1], y[2]])
}
