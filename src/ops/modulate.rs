use super::reverse::{Reverse, no_rule};
use super::{Activation, Launch, MatmulUnit, Operand, Operation, Scalar, Tiles, count, elements, require, width};

/// Scales and shifts images by maps of a coarser grid, each entry of which is for a square of pixels.
///
/// *Shapes* `x [N, H, W, C]`, `scale [N, h, w, C]`, `shift [N, h, w, C]`, where `H = k h` and `W = k w` for an integer
/// `k`, gives `[N, H, W, C]`.
///
/// *Formula* `y = activation(x * scale[i / k, j / k] + shift[i / k, j / k])`: maps enlarged by nearest neighbour, without
/// a tensor of their enlarged size.
///
/// *Source* Zheng et al. 2022 (MoVQ), eq. 5, where `x` is normalised.
#[derive(Clone, Debug, PartialEq)]
pub struct Modulate {
    /// Applied last.
    pub activation: Option<Activation>,
}

impl Modulate {
    /// `k`, the side of the squares.
    pub fn factor(inputs: &[&[usize]]) -> usize {
        inputs[0][1] / inputs[1][1]
    }
}

impl Operation for Modulate {
    fn name(&self) -> &'static str {
        "modulate"
    }

    fn shape(&self, inputs: &[&[usize]]) -> Result<Vec<usize>, String> {
        count(inputs, 3)?;
        let (x, scale, shift) = (inputs[0], inputs[1], inputs[2]);
        let fits = || {
            let ([n, height, width, c], [of, rows, columns, channels]) = (x, scale) else { return false };
            let k = height / (*rows).max(1);
            scale == shift && [n, c] == [of, channels] && k > 0 && [k * rows, k * columns] == [*height, *width]
        };
        require(fits(), || format!("modulate: scale {scale:?} and shift {shift:?} for x {x:?}"))?;
        Ok(x.to_vec())
    }

    fn flops(&self, _: &[&[usize]], output: &[usize]) -> u64 {
        2 * elements(output) as u64
    }

    fn backward(&self, _: &mut Reverse<'_>) -> Result<(), String> {
        no_rule(self.name())
    }

    fn wgsl(&self, inputs: &[&[usize]], output: &[usize], _: Tiles) -> Vec<Launch> {
        let tensors = vec![Operand::Input(0), Operand::Input(1), Operand::Input(2), Operand::Output(0)];
        let mut scalars: Vec<Scalar> = [output[2], output[3], Modulate::factor(inputs)].map(Scalar::from).to_vec();
        scalars.push(Activation::code(self.activation));
        vec![Launch::each("modulate", elements(output), tensors, scalars)]
    }

    fn ptx(&self, inputs: &[&[usize]], outputs: &[&[usize]], _: MatmulUnit) -> Vec<Launch> {
        let plain = self.wgsl(inputs, outputs[0], Tiles::Shared).remove(0);
        vec![plain.in_vectors("modulate_x16", &[width(outputs[0])])]
    }
}
