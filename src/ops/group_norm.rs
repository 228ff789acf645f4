use super::launch::{grid, optional};
use super::{Activation, Keep, Launch, Operand, Operation, Scalar, Tiles, count, elements, require, width};

/// Normalises each group of channels of each image over all positions, then scales and shifts.
///
/// *Shapes* `x [N, .., C]`, `gamma [C]`, `beta [C]`, then `style [N, 2C]` if `style`, gives `[N, .., C]`.
///
/// *Formula* `y = (x - mean) / sqrt(var + eps) * gamma + beta`, mean and biased variance over the positions and
/// the `C / groups` channels of a group; with `style`, whose first half is `scale` and second half `shift`,
/// `y = y * (1 + scale) + shift`; then the activation.
///
/// *Source* Wu & He 2018, eq. 1-3; the style as in Dhariwal & Nichol 2021, section 3.1 (AdaGN).
#[derive(Clone, Debug, PartialEq)]
pub struct GroupNorm {
    /// Number of groups; divides the channels.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f32,
    /// A scale and a shift for each image and channel follow `beta`.
    pub style: bool,
    /// Applied last.
    pub activation: Option<Activation>,
}

impl Operation for GroupNorm {
    fn name(&self) -> &'static str {
        "group_norm"
    }

    fn shape(&self, inputs: &[&[usize]]) -> Result<Vec<usize>, String> {
        count(inputs, 3 + usize::from(self.style))?;
        let (x, c) = (inputs[0], width(inputs[0]));
        require(x.len() >= 2 && self.groups > 0 && c.is_multiple_of(self.groups), || {
            format!("group_norm: {c} channels of {x:?} cannot be divided into {} groups", self.groups)
        })?;
        require(inputs[1] == [c] && inputs[2] == [c], || {
            format!("group_norm: gamma {:?} and beta {:?} for {c} channels", inputs[1], inputs[2])
        })?;
        if self.style {
            require(inputs[3] == [x[0], 2 * c], || format!("group_norm: style {:?} for x {x:?}", inputs[3]))?;
        }
        Ok(x.to_vec())
    }

    fn flops(&self, _: &[&[usize]], output: &[usize]) -> u64 {
        5 * elements(output) as u64
    }

    fn keep(&self, tensor: Operand) -> Keep {
        if matches!(tensor, Operand::Input(1 | 2)) { Keep::Single } else { Keep::Storage }
    }

    fn wgsl(&self, inputs: &[&[usize]], output: &[usize], _: Tiles) -> Vec<Launch> {
        let (images, c) = (output[0], width(output));
        let positions = elements(inputs[0]) / (images * c);
        let mut next = 3;
        let mut tensors: Vec<Operand> = (0..3).map(Operand::Input).collect();
        tensors.extend([optional(self.style, &mut next), Operand::Output]);
        let mut scalars: Vec<Scalar> = [positions, c, self.groups].map(Scalar::from).to_vec();
        scalars.extend([self.style.into(), Activation::code(self.activation), self.eps.into()]);
        let grid = [grid(self.groups), grid(images), 1];
        vec![Launch { stem: "group_norm", entry: "group_norm", threads: 256, grid, tensors, scalars, tiling: None }]
    }
}
