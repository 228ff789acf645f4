use super::launch::{grid, optional, rows};
use super::matmul::{Matmul, product};
use super::{
    Activation, Choice, Launch, MatmulUnit, Operand, Operation, Scalar, Statistics, StorageRule, Tiles, WeightSplit,
    count, elements, require, width,
};

/// Matmul with a stored weight: every row of `x` times `W` transposed.
///
/// *Shapes* `x [.., K]`, `W [N, K]`, then `bias [N]` if `bias`, then `residual [.., N]` if `residual`
/// gives `y [.., N]`.
///
/// *Formula* `y = activation(x W^T + bias) + residual`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Linear {
    /// A bias vector follows the weight.
    pub bias: bool,
    /// Applied before the residual is added.
    pub activation: Option<Activation>,
    /// A tensor of the output's shape is added last.
    pub residual: bool,
}

impl Operation for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn shape(&self, inputs: &[&[usize]]) -> Result<Vec<usize>, String> {
        count(inputs, 2 + usize::from(self.bias) + usize::from(self.residual))?;
        let (x, w) = (inputs[0], inputs[1]);
        require(w.len() == 2 && width(x) == w[1], || format!("linear: x {x:?} does not fit a weight {w:?} [N, K]"))?;
        let mut y = x.to_vec();
        y[x.len() - 1] = w[0];
        if self.bias {
            require(inputs[2] == [w[0]], || format!("linear: bias {:?} for {} outputs", inputs[2], w[0]))?;
        }
        if self.residual {
            let r = inputs[2 + usize::from(self.bias)];
            require(r == y, || format!("linear: residual {r:?} for an output {y:?}"))?;
        }
        Ok(y)
    }

    fn flops(&self, inputs: &[&[usize]], output: &[usize]) -> u64 {
        2 * elements(output) as u64 * width(inputs[0]) as u64
    }

    fn storage_rule(&self, tensor: Operand) -> StorageRule {
        match tensor {
            Operand::Input(2) if self.bias => StorageRule::F32,
            Operand::Input(0 | 1) | Operand::Packed(_) => StorageRule::Storage,
            Operand::Input(_) => StorageRule::LikeOutput,
            // A network's last matmul can give the sampler its f32 sums.
            Operand::Output(0) => StorageRule::Any,
            Operand::Output(_) | Operand::Scratch { .. } => StorageRule::F32,
        }
    }

    fn wgsl(&self, inputs: &[&[usize]], output: &[usize], tiles: Tiles) -> Vec<Launch> {
        let (m, k, n) = (rows(output), width(inputs[0]), width(output));
        let kernels = [["linear"; 2], ["linear_lanes"; 2], ["linear", "linear_tiled"], ["linear_matrices"; 2]];
        let mut next = 2;
        let mut tensors = vec![Operand::Input(0), Operand::Packed(1)];
        tensors.extend([self.bias, self.residual].map(|present| optional(present, &mut next)));
        tensors.push(Operand::Output(0));
        let mut scalars: Vec<Scalar> = [m, k, n].map(Scalar::from).to_vec();
        scalars.extend([Activation::code(self.activation), self.bias.into(), self.residual.into()]);
        vec![Launch { tensors, scalars, ..product(kernels, tiles, m, n) }]
    }

    fn weight_split(&self) -> Option<WeightSplit> {
        Some(WeightSplit::OF_MATMUL)
    }

    fn ptx(&self, inputs: &[&[usize]], outputs: &[&[usize]], unit: MatmulUnit) -> Vec<Launch> {
        if let Some(launch) = self.few_rows(inputs, outputs, unit) {
            return vec![launch];
        }
        let statistics = outputs.get(1).map(|shape| Statistics::of(shape, width(outputs[0])));
        let plain = || self.wgsl(inputs, outputs[0], Tiles::Shared);
        self.matmul(inputs, outputs[0]).launches(plain, unit, statistics)
    }
}

/// Rows up to which `linear_rows` is used: two blocks of eight for the same weights.
const FEW_ROWS: usize = 16;

impl Linear {
    /// The launch for few rows on tensor cores, where the weights' bytes are all that counts.
    fn few_rows(&self, inputs: &[&[usize]], outputs: &[&[usize]], unit: MatmulUnit) -> Option<Launch> {
        let (m, k, n) = (rows(outputs[0]), width(inputs[0]), width(outputs[0]));
        let half = matches!(unit, MatmulUnit::Half | MatmulUnit::Warpgroup);
        if !half || m > FEW_ROWS || !k.is_multiple_of(8) || outputs.len() > 1 {
            return None;
        }
        let mut next = 2;
        let mut tensors = vec![Operand::Input(0), Operand::Packed(1)];
        tensors.extend([self.bias, self.residual].map(|present| optional(present, &mut next)));
        tensors.push(Operand::Output(0));
        let mut scalars: Vec<Scalar> = [m, k, n].map(Scalar::from).to_vec();
        scalars.extend([Activation::code(self.activation), self.bias.into(), self.residual.into()]);
        let reason = format!("mma; {m} rows: the weights are streamed once");
        Some(Launch {
            stem: "linear_rows",
            entry: "linear_rows",
            threads: 256,
            grid: [grid(n.div_ceil(16)), grid(m.div_ceil(8)), 1],
            tensors,
            scalars,
            tiling: None,
            choice: Choice::new(Some([8, 16]), reason),
        })
    }

    pub(super) fn matmul(&self, inputs: &[&[usize]], output: &[usize]) -> Matmul {
        let (m, k, n) = (rows(output), width(inputs[0]), width(output));
        let mut next = 2;
        let [bias, residual] = [self.bias, self.residual].map(|present| present.then(|| optional(true, &mut next)));
        let sizes = [m, m, 1, k, m, 1, n, 1, 1, 1, 0];
        Matmul { sizes, added: [bias, None, residual], activation: Activation::code(self.activation) }
    }
}
