use super::reverse::{Reverse, no_rule};
use super::{Launch, MatmulUnit, Operand, Operation, StorageRule, Tiles, count, elements};

/// Copies a tensor; the output may have another element type. Models do not record it:
/// [`narrow`](crate::plan::narrow()) puts it where an operation wants the other type.
///
/// *Shapes* `x [..]` gives `[..]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Convert;

impl Operation for Convert {
    fn name(&self) -> &'static str {
        "convert"
    }

    fn shape(&self, inputs: &[&[usize]]) -> Result<Vec<usize>, String> {
        count(inputs, 1)?;
        Ok(inputs[0].to_vec())
    }

    fn flops(&self, _: &[&[usize]], _: &[usize]) -> u64 {
        0
    }

    fn backward(&self, _: &mut Reverse<'_>) -> Result<(), String> {
        no_rule(self.name())
    }

    fn storage_rule(&self, _: Operand) -> StorageRule {
        StorageRule::Any
    }

    fn wgsl(&self, _: &[&[usize]], output: &[usize], _: Tiles) -> Vec<Launch> {
        vec![Launch::each("convert", elements(output), vec![Operand::Input(0), Operand::Output(0)], [])]
    }

    fn ptx(&self, inputs: &[&[usize]], outputs: &[&[usize]], _: MatmulUnit) -> Vec<Launch> {
        let plain = self.wgsl(inputs, outputs[0], Tiles::Shared).remove(0);
        vec![plain.in_vectors("convert_x16", &[elements(outputs[0])])]
    }
}
