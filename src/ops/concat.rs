use super::reverse::{Reverse, Source};
use super::{Launch, MatmulUnit, Operand, Operation, Scalar, Slice, StorageRule, Tiles, elements, require};

/// Puts tensors one after the other along one dimension.
///
/// *Shapes* all alike but for dimension `axis`, which adds up. The same tensor may come several times: that is
/// how a batch is doubled for guidance or a row repeated.
#[derive(Clone, Debug, PartialEq)]
pub struct Concat {
    /// The dimension that grows.
    pub axis: usize,
}

impl Operation for Concat {
    fn name(&self) -> &'static str {
        "concat"
    }

    fn shape(&self, inputs: &[&[usize]]) -> Result<Vec<usize>, String> {
        require(inputs.first().is_some_and(|first| self.axis < first.len()), || {
            format!("concat: no dimension {} in {inputs:?}", self.axis)
        })?;
        let mut y = inputs[0].to_vec();
        y[self.axis] = 0;
        for x in inputs {
            let fits = x.len() == y.len() && (0..y.len()).all(|d| d == self.axis || x[d] == y[d]);
            require(fits, || format!("concat along {}: {inputs:?} differ elsewhere", self.axis))?;
            y[self.axis] += x[self.axis];
        }
        Ok(y)
    }

    fn flops(&self, _: &[&[usize]], _: &[usize]) -> u64 {
        0
    }

    fn backward(&self, reverse: &mut Reverse<'_>) -> Result<(), String> {
        let mut start = 0;
        for input in 0..reverse.inputs() {
            let length = reverse.shape(input)[self.axis];
            reverse.give_by(input, Slice { axis: self.axis, start, step: 1, length }, &[Source::Gradient])?;
            start += length;
        }
        Ok(())
    }

    fn storage_rule(&self, _: Operand) -> StorageRule {
        StorageRule::Any
    }

    fn wgsl(&self, inputs: &[&[usize]], output: &[usize], _: Tiles) -> Vec<Launch> {
        let stride = elements(&output[self.axis..]);
        let mut offset = 0;
        let part = |(i, shape): (usize, &&[usize])| {
            let width = elements(&shape[self.axis..]);
            let scalars = [width, stride, offset].map(Scalar::from);
            offset += width;
            Launch::each("concat", elements(shape), vec![Operand::Input(i), Operand::Output(0)], scalars)
        };
        inputs.iter().enumerate().map(part).collect()
    }

    fn ptx(&self, inputs: &[&[usize]], outputs: &[&[usize]], _: MatmulUnit) -> Vec<Launch> {
        let output = outputs[0];
        let stride = elements(&output[self.axis..]);
        let mut first = 0;
        let part = |(launch, shape): (Launch, &&[usize])| {
            let width = elements(&shape[self.axis..]);
            let runs = [width, stride, first];
            first += width;
            launch.in_vectors("concat_x16", &runs)
        };
        self.wgsl(inputs, output, Tiles::Shared).into_iter().zip(inputs).map(part).collect()
    }
}
