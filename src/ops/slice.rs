use super::reverse::{Reverse, Source};
use super::training::Scatter;
use super::{Launch, MatmulUnit, Operand, Operation, Scalar, StorageRule, Tiles, count, elements, require};

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

    fn backward(&self, reverse: &mut Reverse<'_>) -> Result<(), String> {
        let Slice { axis, start, step, .. } = *self;
        let size = reverse.shape(0)[axis];
        reverse.give_by(0, Scatter::Slice { axis, start, step, size }, &[Source::Gradient])
    }

    fn storage_rule(&self, _: Operand) -> StorageRule {
        StorageRule::Any
    }

    fn wgsl(&self, inputs: &[&[usize]], output: &[usize], _: Tiles) -> Vec<Launch> {
        vec![self.launch(self.sizes(inputs, output), output)]
    }

    fn ptx(&self, inputs: &[&[usize]], outputs: &[&[usize]], _: MatmulUnit) -> Vec<Launch> {
        let [inner, length, outer, first, step] = self.sizes(inputs, outputs[0]);
        // Entries without a gap between them are one.
        let [inner, length, step] = if self.step == 1 { [inner * length, 1, 0] } else { [inner, length, step] };
        let launch = self.launch([inner, length, outer, first, step], outputs[0]);
        vec![launch.in_vectors("slice_x16", &[inner, outer, first, step])]
    }
}

impl Slice {
    /// As the header of its kernel lists them: inner, length, outer, first, step.
    fn sizes(&self, inputs: &[&[usize]], output: &[usize]) -> [usize; 5] {
        let inner = elements(&output[self.axis + 1..]);
        [inner, self.length, elements(&inputs[0][self.axis..]), self.start * inner, self.step * inner]
    }

    fn launch(&self, sizes: [usize; 5], output: &[usize]) -> Launch {
        let tensors = vec![Operand::Input(0), Operand::Output(0)];
        Launch::each("slice", elements(output), tensors, sizes.map(Scalar::from))
    }
}
