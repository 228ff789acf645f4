use super::reverse::{Reverse, no_rule};
use super::{Launch, MatmulUnit, Operand, Operation, Scalar, Tiles, count, elements, require, width};

/// Scales one half of every row by the activated other half.
///
/// *Shapes* `x [.., 2C]`, the values first, the gates after them, gives `[.., C]`.
///
/// *Formula* `y = value * gelu(gate)`
///
/// *Source* Shazeer 2020 (GLU variants improve transformer), eq. 6.
#[derive(Clone, Debug, PartialEq)]
pub struct Geglu;

impl Operation for Geglu {
    fn name(&self) -> &'static str {
        "geglu"
    }

    fn shape(&self, inputs: &[&[usize]]) -> Result<Vec<usize>, String> {
        count(inputs, 1)?;
        let both = width(inputs[0]);
        require(!inputs[0].is_empty() && both > 0 && both.is_multiple_of(2), || {
            format!("geglu: the rows of {:?} have no two halves", inputs[0])
        })?;
        let mut y = inputs[0].to_vec();
        y[inputs[0].len() - 1] = both / 2;
        Ok(y)
    }

    fn flops(&self, _: &[&[usize]], output: &[usize]) -> u64 {
        2 * elements(output) as u64
    }

    fn backward(&self, _: &mut Reverse<'_>) -> Result<(), String> {
        no_rule(self.name())
    }

    fn wgsl(&self, _: &[&[usize]], output: &[usize], _: Tiles) -> Vec<Launch> {
        let tensors = vec![Operand::Input(0), Operand::Output(0)];
        vec![Launch::each("geglu", elements(output), tensors, [Scalar::from(width(output))])]
    }

    fn ptx(&self, inputs: &[&[usize]], outputs: &[&[usize]], _: MatmulUnit) -> Vec<Launch> {
        let plain = self.wgsl(inputs, outputs[0], Tiles::Shared).remove(0);
        vec![plain.in_vectors("geglu_x16", &[width(outputs[0])])]
    }
}
