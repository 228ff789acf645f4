//! The U-Nets' residual and attention blocks.

use crate::plan::{Tensor, Weights};

/// How the time embedding enters a residual block.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum TimeForm {
    /// As scale and shift after the second normalisation.
    ScaleShift,
    /// Added before the second normalisation.
    Added,
}

/// What all residual blocks of a U-Net share.
pub struct Residual<'g> {
    pub groups: usize,
    pub eps: f32,
    pub form: TimeForm,
    /// `silu(time embedding) [S, G, E]` of all steps.
    pub time: Tensor<'g>,
    /// Index of the current step.
    pub step: Tensor<'g>,
}

/// How a residual block resamples the picture, on both branches after the first activation.
#[derive(Clone, Copy)]
pub enum Resample {
    Keep,
    Halve,
    Double,
}

impl<'g> Residual<'g> {
    /// The residual block of Dhariwal & Nichol 2021: two convolutions around the time embedding, and a skip.
    ///
    /// The time projection is computed for all steps at once; a step only reads its row.
    pub fn block(&self, w: &Weights<'g>, x: Tensor<'g>, width: usize, resample: Resample) -> Tensor<'g> {
        let resized = |t: Tensor<'g>| match resample {
            Resample::Keep => t,
            Resample::Halve => t.halve(),
            Resample::Double => t.double(),
        };
        let h = resized(x.group_norm(w.at("norm1"), self.groups, self.eps).silu());
        let x = resized(x);
        let h = h.conv3x3(w.at("conv1"), width);
        let h = match self.form {
            TimeForm::ScaleShift => {
                let style = self.time.linear(w.at("time_emb_proj"), 2 * width).row(self.step);
                h.group_norm(w.at("norm2"), self.groups, self.eps).scale_shift(style)
            }
            TimeForm::Added => {
                let shift = self.time.linear(w.at("time_emb_proj"), width).row(self.step);
                h.add_channels(shift).group_norm(w.at("norm2"), self.groups, self.eps)
            }
        };
        let h = h.silu().conv3x3(w.at("conv2"), width);
        let skip = if x.channels() != width { x.conv1x1(w.at("conv_shortcut"), width) } else { x };
        skip + h
    }
}

/// The text side of a U-Net's attention.
pub struct Context<'g> {
    /// `[G, T, cross width]`
    pub tokens: Tensor<'g>,
    /// `[G, T]`, 1 for tokens that are attended to, else 0.
    pub mask: Tensor<'g>,
    pub groups: usize,
    pub eps: f32,
}

impl<'g> Context<'g> {
    /// Every position attends to the text tokens and to all positions, in one softmax (Nichol et al. 2021). `head` is the
    /// width of one head. The names of diffusers' first attention blocks are known as well.
    pub fn attend(&self, w: &Weights<'g>, x: Tensor<'g>, head: usize) -> Tensor<'g> {
        let [n, height, width, c] = std::array::from_fn(|axis| x.dim(axis));
        let s = x.reshape(&[n, height * width, c]);
        let h = s.group_norm(w.at("group_norm"), self.groups, self.eps);
        let own = [["to_q", "query"], ["to_k", "key"], ["to_v", "value"]];
        let [q, k, v] = own.map(|names| h.linear(w.first_of(&names, "weight"), c));
        let [text_k, text_v] = ["add_k_proj", "add_v_proj"].map(|name| self.tokens.linear(w.at(name), c));
        let h = q.attend((k, v), Some((text_k, text_v)), Some(self.mask), c / head, false);
        (s + h.linear(w.first_of(&["to_out.0", "proj_attn"], "weight"), c)).reshape(&[n, height, width, c])
    }
}
