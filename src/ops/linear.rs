use super::launch::{grid, optional, rows};
use super::matmul::{Matmul, product};
use super::reverse::{Reverse, Source};
use super::training::{LinearInput, LinearWeight, Sum};
use super::{
    Activation, Choice, Launch, MatmulUnit, Operand, Operation, Scalar, Statistics, StorageRule, Tiles, WeightSplit,
    count, elements, require, width,
};

/// Matmul with a stored weight: every row of `x` times `W` transposed.
///
/// *Shapes* `x [.., K]`, `W [N, K]`, then `bias [N]` if `bias`, then `residual [.., N]` if `residual`, then weight and bias
/// of each of the `also` further layers, gives `y [.., N]` of each layer.
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
    /// Further layers of the same sizes and without residual, for the same `x`: their outputs follow the first. Only a back
    /// end that has kernels for it joins layers so; models record each of its own.
    pub also: usize,
}

impl Operation for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn shape(&self, inputs: &[&[usize]]) -> Result<Vec<usize>, String> {
        count(inputs, self.behind() + self.also * (1 + usize::from(self.bias)))?;
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
        for at in (1..=self.also).map(|layer| self.weight(layer)) {
            let same = inputs[at] == w && (!self.bias || inputs[at + 1] == [w[0]]);
            require(same, || format!("linear: a further layer has a weight {:?}, the first {w:?}", inputs[at]))?;
        }
        Ok(y)
    }

    fn flops(&self, inputs: &[&[usize]], output: &[usize]) -> u64 {
        2 * elements(output) as u64 * width(inputs[0]) as u64 * (1 + self.also) as u64
    }

    fn backward(&self, reverse: &mut Reverse<'_>) -> Result<(), String> {
        let plain = self.activation.is_none() && self.also == 0;
        require(plain, || "linear: an activation or a further layer must be a step of its own to be trained".into())?;
        let g = Source::Gradient;
        reverse.give_by(0, LinearInput { residual: false }, &[g, Source::Input(1)])?;
        reverse.give_by(1, LinearWeight, &[g, Source::Input(0)])?;
        if self.bias {
            reverse.give_by(2, Sum::leading(reverse.shape(2)), &[g])?;
        }
        if self.residual {
            reverse.give(self.behind() - 1, g);
        }
        Ok(())
    }

    fn storage_rule(&self, tensor: Operand) -> StorageRule {
        let is_weight = |i: usize| (0..=self.also).any(|layer| i == self.weight(layer));
        let is_bias = |i: usize| self.bias && (0..=self.also).any(|layer| i == self.weight(layer) + 1);
        match tensor {
            Operand::Input(i) if is_bias(i) => StorageRule::F32,
            Operand::Input(i) if i == 0 || is_weight(i) => StorageRule::Storage,
            Operand::Packed(_) => StorageRule::Storage,
            Operand::Input(_) => StorageRule::LikeOutput,
            // A network's last matmul can give the sampler its f32 sums.
            Operand::Output(i) if i <= self.also => StorageRule::Any,
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
        let statistics = outputs.get(1).filter(|_| self.also == 0);
        let statistics = statistics.map(|shape| Statistics::of(shape, width(outputs[0])));
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
        if !half || m > FEW_ROWS || !k.is_multiple_of(8) || outputs.len() > 1 + self.also {
            return None;
        }
        let matmul = self.matmul(inputs, outputs[0]);
        let [_, _, residual] = matmul.added;
        let mut tensors = vec![Operand::Input(0)];
        tensors.extend(matmul.weights());
        tensors.extend(matmul.biases());
        tensors.push(residual.unwrap_or(Operand::Input(0)));
        tensors.extend(matmul.outputs());
        let mut scalars: Vec<Scalar> = [m, k, n].map(Scalar::from).to_vec();
        scalars.extend([Activation::code(self.activation), self.bias.into(), self.residual.into()]);
        let reason = format!("mma; {m} rows: the weights are streamed once");
        Some(Launch {
            stem: "linear_rows",
            entry: "linear_rows",
            threads: 256,
            grid: [grid(n.div_ceil(16)), grid(m.div_ceil(8)), grid(1 + self.also)],
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
        let layers = (0..=self.also).map(|layer| self.weight(layer)).collect();
        let activation = Activation::code(self.activation);
        Matmul { sizes, layers, added: [bias, None, residual], activation, behind: None, step: None }
    }

    /// Number of inputs of the first layer.
    fn behind(&self) -> usize {
        2 + usize::from(self.bias) + usize::from(self.residual)
    }

    /// The input that is a layer's weight; its bias is the next.
    fn weight(&self, layer: usize) -> usize {
        if layer == 0 { 1 } else { self.behind() + (layer - 1) * (1 + usize::from(self.bias)) }
    }
}
