use super::launch::optional;
use super::reverse::{Reverse, Source};
use super::training::{Slope, Sum};
use super::{Concat, Launch, MatmulUnit, Operand, Operation, Scalar, Tiles, count, elements, require, width};

/// A function of one number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// `x * sigmoid(x)` (Elfwing et al. 2017).
    Silu,
    /// `x * Phi(x)` with the exact normal distribution function (Hendrycks & Gimpel 2016).
    Gelu,
    /// `x * sigmoid(1.702 x)`, the approximation that CLIP was trained with.
    QuickGelu,
}

impl Activation {
    /// How kernels are told which function to apply, if any; the codes are in `shaders/prelude.wgsl`.
    pub(super) fn code(activation: Option<Activation>) -> Scalar {
        Scalar::U32(match activation {
            None => 0,
            Some(Activation::Silu) => 1,
            Some(Activation::Gelu) => 2,
            Some(Activation::QuickGelu) => 3,
        })
    }
}

/// Element by element.
#[derive(Clone, Debug, PartialEq)]
pub enum Pointwise {
    /// *Shapes* `x` gives the same shape.
    Activation(Activation),
    /// `x + y`. *Shapes* `x [.., S]`, `y [S]` where `S` are any number of trailing dimensions; `y` repeats.
    Add,
    /// `x * y`, shapes as for `Add`.
    Multiply,
    /// Adds a vector to all positions of its image. *Shapes* `x [N, .., C]`, `shift [N, C]`.
    AddChannels,
    /// `x * (1 + scale) + shift`. *Shapes* `x [N, .., C]`, `style [N, 2C]`, the scale first.
    ScaleShift,
    /// `min(max(x, low), high)`.
    Clamp {
        /// Lower end.
        low: f32,
        /// Upper end.
        high: f32,
    },
}

impl Operation for Pointwise {
    fn name(&self) -> &'static str {
        match self {
            Pointwise::Activation(Activation::Silu) => "silu",
            Pointwise::Activation(Activation::Gelu) => "gelu",
            Pointwise::Activation(Activation::QuickGelu) => "quick_gelu",
            Pointwise::Add => "add",
            Pointwise::Multiply => "multiply",
            Pointwise::AddChannels => "add_channels",
            Pointwise::ScaleShift => "scale_shift",
            Pointwise::Clamp { .. } => "clamp",
        }
    }

    fn shape(&self, inputs: &[&[usize]]) -> Result<Vec<usize>, String> {
        let x = inputs[0];
        match self {
            Pointwise::Activation(_) | Pointwise::Clamp { .. } => count(inputs, 1)?,
            Pointwise::Add | Pointwise::Multiply => {
                count(inputs, 2)?;
                require(x.ends_with(inputs[1]), || {
                    format!("{}: {:?} is not the end of {x:?}", self.name(), inputs[1])
                })?;
            }
            Pointwise::AddChannels | Pointwise::ScaleShift => {
                count(inputs, 2)?;
                let per_channel = if *self == Pointwise::ScaleShift { 2 } else { 1 };
                require(x.len() >= 2 && inputs[1] == [x[0], per_channel * width(x)], || {
                    format!("{}: {:?} for x {x:?}", self.name(), inputs[1])
                })?;
            }
        }
        Ok(x.to_vec())
    }

    fn flops(&self, _: &[&[usize]], output: &[usize]) -> u64 {
        elements(output) as u64
    }

    fn backward(&self, reverse: &mut Reverse<'_>) -> Result<(), String> {
        let (g, [x, other]) = (Source::Gradient, [0, 1].map(Source::Input));
        match *self {
            Pointwise::Activation(activation) => reverse.give_by(0, Slope::Activation(activation), &[g, x]),
            Pointwise::Clamp { low, high } => reverse.give_by(0, Slope::Clamp { low, high }, &[g, x]),
            Pointwise::Add => {
                reverse.give(0, g);
                self.give_repeated(reverse, g)
            }
            Pointwise::Multiply => {
                reverse.give_by(0, Pointwise::Multiply, &[g, other])?;
                if !reverse.needs(1) {
                    return Ok(());
                }
                let product = reverse.push(Pointwise::Multiply, &[g, x])?;
                self.give_repeated(reverse, product)
            }
            Pointwise::AddChannels => {
                reverse.give(0, g);
                reverse.give_by(1, Sum::positions(reverse.shape(1)), &[g])
            }
            Pointwise::ScaleShift => {
                reverse.give_by(0, Slope::ScaleShift, &[g, other])?;
                if !reverse.needs(1) {
                    return Ok(());
                }
                let sum = Sum::positions(&[reverse.shape(0)[0], width(reverse.shape(0))]);
                let product = reverse.push(Pointwise::Multiply, &[g, x])?;
                let halves = [reverse.push(sum.clone(), &[product])?, reverse.push(sum, &[g])?];
                reverse.give_by(1, Concat { axis: 1 }, &halves)
            }
        }
    }

    fn wgsl(&self, inputs: &[&[usize]], output: &[usize], _: Tiles) -> Vec<Launch> {
        let kind = match self {
            Pointwise::Activation(activation) => Activation::code(Some(*activation)),
            Pointwise::Add => Scalar::U32(4),
            Pointwise::Multiply => Scalar::U32(5),
            Pointwise::AddChannels => Scalar::U32(6),
            Pointwise::ScaleShift => Scalar::U32(7),
            Pointwise::Clamp { .. } => Scalar::U32(8),
        };
        let (low, high) = if let Pointwise::Clamp { low, high } = *self { (low, high) } else { (0.0, 0.0) };
        let count = elements(output);
        let image = count / output.first().copied().unwrap_or(1);
        let mut next = 1;
        let other = optional(inputs.len() > 1, &mut next);
        let period = inputs.get(1).map_or(1, |other| elements(other));
        let scalars = [kind, period.into(), width(output).into(), image.into(), low.into(), high.into()];
        vec![Launch::each("pointwise", count, vec![Operand::Input(0), other, Operand::Output(0)], scalars)]
    }

    fn ptx(&self, inputs: &[&[usize]], outputs: &[&[usize]], _: MatmulUnit) -> Vec<Launch> {
        let output = outputs[0];
        let run = match self {
            Pointwise::Activation(_) | Pointwise::Clamp { .. } => elements(output),
            Pointwise::Add | Pointwise::Multiply => elements(inputs[1]),
            Pointwise::AddChannels | Pointwise::ScaleShift => width(output),
        };
        let plain = self.wgsl(inputs, output, Tiles::Shared).remove(0);
        vec![plain.in_vectors("pointwise_x16", &[run])]
    }
}

impl Pointwise {
    /// The gradient of `y`, which may have been repeated, from that of each of its copies.
    fn give_repeated(&self, reverse: &mut Reverse<'_>, copies: Source) -> Result<(), String> {
        if reverse.shape(0) == reverse.shape(1) {
            reverse.give(1, copies);
            return Ok(());
        }
        reverse.give_by(1, Sum::leading(reverse.shape(1)), &[copies])
    }
}
