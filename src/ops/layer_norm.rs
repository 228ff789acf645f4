use super::launch::{rows, spread};
use super::reverse::{Reverse, Source};
use super::training::{LayerNormGain, LayerNormGradient, Sum};
use super::{Choice, Launch, MatmulUnit, Operand, Operation, StorageRule, Tiles, count, elements, require, width};

/// Normalises each row over its features, then scales and shifts.
///
/// *Shapes* `x [.., D]`, `gamma [D]`, `beta [D]` gives `[.., D]`.
///
/// *Formula* `y = (x - mean) / sqrt(var + eps) * gamma + beta`, mean and biased variance over `D`.
///
/// *Source* Ba, Kiros & Hinton 2016, eq. 4.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerNorm {
    /// Added to the variance.
    pub eps: f32,
}

impl Operation for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn shape(&self, inputs: &[&[usize]]) -> Result<Vec<usize>, String> {
        count(inputs, 3)?;
        let d = width(inputs[0]);
        require(inputs[1] == [d] && inputs[2] == [d], || {
            format!("layer_norm: gamma {:?} and beta {:?} for rows of {d}", inputs[1], inputs[2])
        })?;
        Ok(inputs[0].to_vec())
    }

    fn flops(&self, _: &[&[usize]], output: &[usize]) -> u64 {
        5 * elements(output) as u64
    }

    fn backward(&self, reverse: &mut Reverse<'_>) -> Result<(), String> {
        let (g, x, eps) = (Source::Gradient, Source::Input(0), self.eps);
        reverse.give_by(0, LayerNormGradient { eps }, &[g, x, Source::Input(1)])?;
        reverse.give_by(1, LayerNormGain { eps }, &[g, x])?;
        reverse.give_by(2, Sum::leading(reverse.shape(2)), &[g])
    }

    fn storage_rule(&self, tensor: Operand) -> StorageRule {
        if matches!(tensor, Operand::Input(1 | 2)) { StorageRule::F32 } else { StorageRule::Storage }
    }

    fn wgsl(&self, _: &[&[usize]], output: &[usize], _: Tiles) -> Vec<Launch> {
        let tensors = vec![Operand::Input(0), Operand::Input(1), Operand::Input(2), Operand::Output(0)];
        let scalars = vec![rows(output).into(), width(output).into(), self.eps.into()];
        let grid = spread(rows(output));
        let (stem, choice) = ("layer_norm", Choice::new(None, "one block a row"));
        vec![Launch { stem, entry: stem, threads: 256, grid, tensors, scalars, tiling: None, choice }]
    }

    fn ptx(&self, inputs: &[&[usize]], outputs: &[&[usize]], _: MatmulUnit) -> Vec<Launch> {
        let output = outputs[0];
        let mut launches = self.wgsl(inputs, output, Tiles::Shared);
        // Features are read four at a time where all rows begin at a multiple of four.
        let (entry, reason) = match width(output).is_multiple_of(4) {
            true => ("layer_norm_4", "one block a row, four features a thread"),
            false => ("layer_norm_1", "one block a row, whose width is no multiple of four"),
        };
        (launches[0].entry, launches[0].choice.reason) = (entry, reason.into());
        launches
    }
}
