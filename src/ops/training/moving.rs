use super::super::{count, elements, require, width};
use super::Rule;

/// Zeros with the elements of a gradient at the places that were read; what was read several times is added up.
#[derive(Clone, Debug, PartialEq)]
pub enum Scatter {
    /// Of a slice. *Shapes* `g` gives the same with `size` entries of dimension `axis`.
    Slice {
        /// The dimension that grows.
        axis: usize,
        /// First entry.
        start: usize,
        /// Distance between entries.
        step: usize,
        /// Entries of the result.
        size: usize,
    },
    /// Of rows of a table. *Shapes* `g [B, T, D]`, `ids [B, T]` gives `[rows, D]`.
    Lookup {
        /// Rows of the table.
        rows: usize,
    },
    /// Of one token of each sequence. *Shapes* `g [B, D]`, `position [B]` gives `[B, tokens, D]`.
    Token {
        /// Tokens of a sequence.
        tokens: usize,
    },
    /// Of the present step's row. *Shapes* `g [..]`, `step [1]` gives `[rows, ..]`.
    Row {
        /// Rows of the table.
        rows: usize,
    },
}

impl Rule for Scatter {
    fn name(&self) -> &'static str {
        "scatter"
    }

    fn shape(&self, inputs: &[&[usize]]) -> Result<Vec<usize>, String> {
        count(inputs, if matches!(self, Scatter::Slice { .. }) { 1 } else { 2 })?;
        let g = inputs[0];
        let wrong = || format!("scatter: {inputs:?} for {self:?}");
        match *self {
            Scatter::Slice { axis, start, step, size } => {
                let last = |length: usize| start + (length - 1) * step;
                require(axis < g.len() && g[axis] > 0 && last(g[axis]) < size, wrong)?;
                let mut x = g.to_vec();
                x[axis] = size;
                Ok(x)
            }
            Scatter::Lookup { rows } => {
                require(g.len() == 3 && inputs[1] == &g[..2], wrong)?;
                Ok(vec![rows, g[2]])
            }
            Scatter::Token { tokens } => {
                require(g.len() == 2 && inputs[1] == [g[0]], wrong)?;
                Ok(vec![g[0], tokens, g[1]])
            }
            Scatter::Row { rows } => {
                require(inputs[1] == [1], wrong)?;
                Ok([&[rows], g].concat())
            }
        }
    }

    fn flops(&self, inputs: &[&[usize]], _: &[usize]) -> u64 {
        if matches!(self, Scatter::Lookup { .. }) { elements(inputs[0]) as u64 } else { 0 }
    }
}

/// The gradient of a picture that was doubled or halved.
#[derive(Clone, Debug, PartialEq)]
pub enum ResizeGradient {
    /// The sum of the four. *Shapes* `[N, 2H, 2W, C]` gives `[N, H, W, C]`.
    Double,
    /// A quarter to each of the four, zero to an odd last row or column. *Shapes* `[N, H / 2, W / 2, C]` gives
    /// `[N, H, W, C]`.
    Halve {
        /// `H` and `W`, which the halves do not tell.
        size: [usize; 2],
    },
}

impl Rule for ResizeGradient {
    fn name(&self) -> &'static str {
        "resize_gradient"
    }

    fn shape(&self, inputs: &[&[usize]]) -> Result<Vec<usize>, String> {
        count(inputs, 1)?;
        let g = inputs[0];
        let fits = g.len() == 4
            && match self {
                ResizeGradient::Double => g[1].is_multiple_of(2) && g[2].is_multiple_of(2),
                ResizeGradient::Halve { size } => [g[1], g[2]] == size.map(|side| side / 2),
            };
        require(fits, || format!("{}: {g:?} for {self:?}", self.name()))?;
        let [height, across] = match *self {
            ResizeGradient::Double => [g[1] / 2, g[2] / 2],
            ResizeGradient::Halve { size } => size,
        };
        Ok(vec![g[0], height, across, width(g)])
    }

    fn flops(&self, inputs: &[&[usize]], _: &[usize]) -> u64 {
        elements(inputs[0]) as u64
    }
}
