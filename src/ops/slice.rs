use super::{Launch, Operand, Operation, Scalar, StorageRule, Tiles, count, elements, require};

/// Takes `length` entries `start, start + step, ..` of one dimension.
#[derive(Clone, Debug, PartialEq)]
pub struct Slice {
    /// The dimension that shrinks.
    pub axis: usize,
    /// First entry.
    pub start: usize,
    /// Distance between entries.
    pub step: usize,
    /// Number of entries.
    pub length: usize,
}

impl Operation for Slice {
    fn name(&self) -> &'static str {
        "slice"
    }

    fn shape(&self, inputs: &[&[usize]]) -> Result<Vec<usize>, String> {
        count(inputs, 1)?;
        let x = inputs[0];
        let inside = self.axis < x.len()
            && self.length > 0
            && self.step > 0
            && self.start + (self.length - 1) * self.step < x[self.axis];
        require(inside, || {
            let Slice { axis, start, step, length } = self;
            format!("slice: {length} entries from {start} by {step} of dimension {axis} leave {x:?}")
        })?;
        let mut y = x.to_vec();
        y[self.axis] = self.length;
        Ok(y)
    }

    fn flops(&self, _: &[&[usize]], _: &[usize]) -> u64 {
        0
    }

    fn storage_rule(&self, _: Operand) -> StorageRule {
        StorageRule::Any
    }

    fn wgsl(&self, inputs: &[&[usize]], output: &[usize], _: Tiles) -> Vec<Launch> {
        let inner = elements(&output[self.axis + 1..]);
        let outer = elements(&inputs[0][self.axis..]);
        let scalars = [inner, self.length, outer, self.start * inner, self.step * inner].map(Scalar::from);
        vec![Launch::each("slice", elements(output), vec![Operand::Input(0), Operand::Output(0)], scalars)]
    }
}
