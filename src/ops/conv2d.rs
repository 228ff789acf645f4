use super::launch::{optional, rows};
use super::matmul::{Matmul, product};
use super::reverse::{Reverse, Source};
use super::training::{ConvInput, ConvWeight, Sum};
use super::{
    Activation, Launch, MatmulUnit, Operand, Operation, Scalar, Statistics, StorageRule, Tiles, WeightSplit, count,
    elements, require, width,
};

/// Two-dimensional convolution over channels-last images, zeros beyond the border.
///
/// *Shapes* `x [N, H, W, C]`, `weight [O, C, R, S]` as checkpoints store it, then `bias [O]` if `bias`, then
/// `shift [N, O]` if `shift`, then `residual [N, H', W', O]` if `residual`, then `behind [N, H, W, C']` if `behind`, whose
/// channels follow those of `x` so that the weight has `C + C'`, gives `y [N, H', W', O]` with
/// `H' = (H + before + after - R) / stride + 1`, where `[before, after] = padding`.
///
/// *Formula* `y[n,i,j,o] = sum_{r,s,c} x[n, i stride + r - before, j stride + s - before, c] weight[o,c,r,s]`, and
/// then `bias[o]`, `shift[n,o]` and `residual[n,i,j,o]` are added.
#[derive(Clone, Debug, PartialEq)]
pub struct Conv2d {
    /// Distance between neighbouring windows, both ways.
    pub stride: usize,
    /// Zeros above and to the left of the picture, and below and to the right of it.
    pub padding: [usize; 2],
    /// A bias vector follows the weight.
    pub bias: bool,
    /// A vector per image is added to all its positions: where U-Nets add their time embedding.
    pub shift: bool,
    /// A tensor of the output's shape is added last.
    pub residual: bool,
    /// The last input holds the last channels. Only a back end that has kernels for it reads two tensors side by side;
    /// models record a concatenation.
    pub behind: bool,
    /// The shift is a table `[S, N, O]`, of which an input behind all others, `step [1]`, says the row; likewise.
    pub table: bool,
}

impl Operation for Conv2d {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn shape(&self, inputs: &[&[usize]]) -> Result<Vec<usize>, String> {
        count(inputs, self.behind_at() + usize::from(self.behind) + usize::from(self.table))?;
        let (x, w) = (inputs[0], inputs[1]);
        let behind = if self.behind { width(inputs[self.behind_at()]) } else { 0 };
        require(x.len() == 4 && w.len() == 4 && x[3] + behind == w[1], || {
            format!("conv2d: x {x:?} [N, H, W, C] does not fit a weight {w:?} [O, C, R, S]")
        })?;
        let side = |length: usize, kernel: usize| {
            let padded = length + self.padding.iter().sum::<usize>();
            require(self.stride > 0 && kernel > 0 && padded >= kernel, || {
                format!("conv2d: a window of {kernel} does not fit {length} pixels with padding {:?}", self.padding)
            })?;
            Ok::<usize, String>((padded - kernel) / self.stride + 1)
        };
        let y = vec![x[0], side(x[1], w[2])?, side(x[2], w[3])?, w[0]];
        let mut next = 2;
        let mut optional = |present: bool, first: usize, wanted: &[usize], what: &str| {
            if !present {
                return Ok(());
            }
            let found = &inputs[next][first..];
            next += 1;
            require(found == wanted, || format!("conv2d: {what} {found:?} where {wanted:?} is needed"))
        };
        optional(self.bias, 0, &[w[0]], "bias")?;
        optional(self.shift, usize::from(self.table), &[x[0], w[0]], "shift")?;
        optional(self.residual, 0, &y, "residual")?;
        Ok(y)
    }

    fn flops(&self, inputs: &[&[usize]], output: &[usize]) -> u64 {
        2 * elements(output) as u64 * elements(&inputs[1][1..]) as u64
    }

    fn backward(&self, reverse: &mut Reverse<'_>) -> Result<(), String> {
        let recorded = !self.behind && !self.table;
        require(recorded, || "conv2d: tensors read side by side or by row are not trained".into())?;
        let (g, stride, padding) = (Source::Gradient, self.stride, self.padding);
        let (x, w) = (reverse.shape(0), reverse.shape(1));
        let input = ConvInput { stride, padding, size: [x[1], x[2]], residual: false };
        reverse.give_by(0, input, &[g, Source::Input(1)])?;
        reverse.give_by(1, ConvWeight { stride, padding, window: [w[2], w[3]] }, &[g, Source::Input(0)])?;
        if self.bias {
            reverse.give_by(2, Sum::leading(reverse.shape(2)), &[g])?;
        }
        if self.shift {
            let shift = self.shift_at();
            reverse.give_by(shift, Sum::positions(reverse.shape(shift)), &[g])?;
        }
        if self.residual {
            reverse.give(reverse.inputs() - 1, g);
        }
        Ok(())
    }

    fn storage_rule(&self, tensor: Operand) -> StorageRule {
        match tensor {
            Operand::Input(2) if self.bias => StorageRule::F32,
            Operand::Input(0 | 1) | Operand::Packed(_) => StorageRule::Storage,
            Operand::Input(i) if self.behind && i == self.behind_at() => StorageRule::Storage,
            Operand::Input(_) => StorageRule::LikeOutput,
            // A network's last convolution can give the sampler its f32 sums.
            Operand::Output(0) => StorageRule::Any,
            Operand::Output(_) | Operand::Scratch { .. } => StorageRule::F32,
        }
    }

    fn wgsl(&self, inputs: &[&[usize]], output: &[usize], tiles: Tiles) -> Vec<Launch> {
        let kernels = [["conv2d"; 2], ["conv2d_lanes"; 2], ["conv2d", "conv2d_tiled"], ["conv2d_matrices"; 2]];
        let mut next = 2;
        let mut tensors = vec![Operand::Input(0), Operand::Packed(1)];
        tensors.extend([self.bias, self.shift, self.residual].map(|present| optional(present, &mut next)));
        tensors.push(Operand::Output(0));
        let mut scalars: Vec<Scalar> = self.sizes(inputs, output).map(Scalar::from).to_vec();
        scalars.extend([self.bias, self.shift, self.residual].map(Scalar::from));
        vec![Launch { tensors, scalars, ..product(kernels, tiles, rows(output), output[3]) }]
    }

    fn weight_split(&self) -> Option<WeightSplit> {
        Some(WeightSplit::OF_MATMUL)
    }

    fn ptx(&self, inputs: &[&[usize]], outputs: &[&[usize]], unit: MatmulUnit) -> Vec<Launch> {
        let statistics = outputs.get(1).map(|shape| Statistics::of(shape, outputs[0][3]));
        let plain = || self.wgsl(inputs, outputs[0], Tiles::Shared);
        self.matmul(inputs, outputs[0]).launches(plain, unit, statistics)
    }
}

impl Conv2d {
    /// As the headers of its kernels list them.
    fn sizes(&self, inputs: &[&[usize]], output: &[usize]) -> [usize; 11] {
        let (x, w) = (inputs[0], inputs[1]);
        [rows(output), x[1], x[2], w[1], output[1], output[2], w[0], w[2], w[3], self.stride, self.padding[0]]
    }

    pub(super) fn matmul(&self, inputs: &[&[usize]], output: &[usize]) -> Matmul {
        let mut next = 2;
        let added = [self.bias, self.shift, self.residual].map(|present| present.then(|| optional(true, &mut next)));
        let mut next = self.behind_at();
        let behind = self.behind.then(|| (optional(true, &mut next), width(inputs[0])));
        let step = self.table.then(|| optional(true, &mut next));
        let sizes = self.sizes(inputs, output);
        Matmul { sizes, layers: vec![1], added, activation: Activation::code(None), behind, step }
    }

    /// The same for an `x` in two parts of which `channels` are the first's, if a kernel reads two.
    pub fn in_parts(&self, inputs: &[&[usize]], output: &[usize], channels: usize, unit: MatmulUnit) -> Option<Conv2d> {
        let matmul = Matmul { behind: Some((Operand::Input(0), channels)), ..self.matmul(inputs, output) };
        let can = !self.behind && !self.table && matmul.reads_parts_and_tables(unit);
        can.then(|| Conv2d { behind: true, ..self.clone() })
    }

    /// The same with a table of shifts, if a kernel reads one.
    pub fn with_table(&self, inputs: &[&[usize]], output: &[usize], unit: MatmulUnit) -> Option<Conv2d> {
        let can = self.shift && !self.table && self.matmul(inputs, output).reads_parts_and_tables(unit);
        can.then(|| Conv2d { table: true, ..self.clone() })
    }

    /// The input that is the shift.
    pub fn shift_at(&self) -> usize {
        2 + usize::from(self.bias)
    }

    /// Where `behind` is among the inputs.
    fn behind_at(&self) -> usize {
        2 + usize::from(self.bias) + usize::from(self.shift) + usize::from(self.residual)
    }
}
