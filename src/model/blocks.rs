//! Residual and attention blocks of U-Nets and autoencoders.

use crate::plan::{Tensor, Weights};

/// A group normalisation, as all blocks of a network have it.
#[derive(Clone, Copy)]
pub struct Norm<'g> {
    pub groups: usize,
    pub eps: f32,
    /// Latents `[N, h, w, z]` that scale and shift the normalised picture, each for a square of its pixels: the spatial
    /// normalisation of MoVQ (Zheng et al. 2022, eq. 5).
    pub latents: Option<Tensor<'g>>,
}

impl<'g> Norm<'g> {
    /// *Shapes* `x [N, H, W, C]` gives the same.
    pub fn apply(&self, w: &Weights<'g>, x: Tensor<'g>) -> Tensor<'g> {
        let Some(latents) = self.latents else { return x.group_norm(w.clone(), self.groups, self.eps) };
        let normal = x.group_norm(w.at("norm_layer"), self.groups, self.eps);
        // diffusers enlarges the latents first, but a 1x1 convolution gives the same for all copies of a position.
        let [scale, shift] = ["conv_y", "conv_b"].map(|name| latents.conv1x1(w.at(name), x.channels()));
        normal.modulate(scale, shift)
    }
}

/// How the time embedding enters a residual block.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum TimeForm {
    /// As scale and shift after the second normalisation.
    ScaleShift,
    /// Added before the second normalisation.
    Added,
}

/// The time embedding of a network that has one.
#[derive(Clone, Copy)]
pub struct Time<'g> {
    pub form: TimeForm,
    /// `silu(time embedding) [S, G, E]` of all steps, or without `step` that of each row, `[G, E]`.
    pub embedding: Tensor<'g>,
    /// Index of the current step.
    pub step: Option<Tensor<'g>>,
}

/// What all residual blocks of a network share.
pub struct Residual<'g> {
    pub norm: Norm<'g>,
    pub time: Option<Time<'g>>,
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
        let h = resized(self.norm.apply(&w.at("norm1"), x).silu());
        let x = resized(x);
        let h = h.conv3x3(w.at("conv1"), width);
        let projected = |time: Time<'g>, width| {
            let all = time.embedding.linear(w.at("time_emb_proj"), width);
            time.step.map_or(all, |step| all.row(step))
        };
        let h = match self.time {
            None => self.norm.apply(&w.at("norm2"), h),
            Some(time) if time.form == TimeForm::ScaleShift => {
                let style = projected(time, 2 * width);
                self.norm.apply(&w.at("norm2"), h).scale_shift(style)
            }
            Some(time) => self.norm.apply(&w.at("norm2"), h.add_channels(projected(time, width))),
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
    pub mask: Option<Tensor<'g>>,
    pub norm: Norm<'g>,
}

impl<'g> Context<'g> {
    /// Every position attends to the text tokens and to all positions, in one softmax (Nichol et al. 2021). `head` is the
    /// width of one head.
    pub fn attend(&self, w: &Weights<'g>, x: Tensor<'g>, head: usize) -> Tensor<'g> {
        let c = x.channels();
        let [text_k, text_v] = ["add_k_proj", "add_v_proj"].map(|name| self.tokens.linear(w.at(name), c));
        let attended =
            |[q, k, v]: [Tensor<'g>; 3]| q.attend((k, v), Some((text_k, text_v)), self.mask, c / head, false);
        among_positions(w, x, self.norm.apply(&w.at("group_norm"), x), attended)
    }
}

/// Added to the variance by the normalisations of a transformer block: that of the picture, and those of its rows.
const TRANSFORMER_EPS: [f32; 2] = [1e-6, 1e-5];

impl<'g> Context<'g> {
    /// The transformer block of latent diffusion: positions attend to one another, then to the tokens, and pass a gated
    /// layer (Rombach et al. 2022, appendix E.2.2). `by_rows` if its ends are stored as matrices, else as convolutions.
    pub fn transform(&self, w: &Weights<'g>, x: Tensor<'g>, heads: usize, by_rows: bool) -> Tensor<'g> {
        let [n, height, width, c] = std::array::from_fn(|axis| x.dim(axis));
        let project = |x: Tensor<'g>, name| if by_rows { x.linear(w.at(name), c) } else { x.conv1x1(w.at(name), c) };
        let norm = Norm { eps: TRANSFORMER_EPS[0], ..self.norm };
        let s = project(norm.apply(&w.at("norm"), x), "proj_in").reshape(&[n, height * width, c]);

        let w = w.at("transformer_blocks.0");
        let normal = |s: Tensor<'g>, name| s.layer_norm(w.at(name), TRANSFORMER_EPS[1]);
        let attend = |s: Tensor<'g>, name, seen: Tensor<'g>, mask| {
            let w = w.at(name);
            let [k, v] = ["to_k", "to_v"].map(|name| seen.project(w.at(name), c));
            s.project(w.at("to_q"), c).attend((k, v), None, mask, heads, false).linear(w.at("to_out.0"), c)
        };
        let h = normal(s, "norm1");
        let s = s + attend(h, "attn1", h, None);
        let s = s + attend(normal(s, "norm2"), "attn2", self.tokens, self.mask);
        let gated = normal(s, "norm3").linear(w.at("ff.net.0.proj"), 8 * c).geglu();
        let s = s + gated.linear(w.at("ff.net.2"), c);
        x + project(s.reshape(&[n, height, width, c]), "proj_out")
    }
}

/// The first rows and columns of `x [N, H, W, C]`.
pub fn cropped<'g>(x: Tensor<'g>, size: [usize; 2]) -> Tensor<'g> {
    let cut = |x: Tensor<'g>, axis, length| if x.dim(axis) > length { x.slice(axis, 0, length) } else { x };
    cut(cut(x, 1, size[0]), 2, size[1])
}

/// Adds to `x [N, H, W, C]` what its positions give each other: `attended` makes it from their queries, keys and values
/// `[N, H W, C]`, which are projections of `normal`, the normalised `x`. The names of diffusers' first attention blocks are known as well.
pub fn among_positions<'g>(
    w: &Weights<'g>,
    x: Tensor<'g>,
    normal: Tensor<'g>,
    attended: impl FnOnce([Tensor<'g>; 3]) -> Tensor<'g>,
) -> Tensor<'g> {
    let [n, height, width, c] = std::array::from_fn(|axis| x.dim(axis));
    let sequence = [n, height * width, c];
    let h = normal.reshape(&sequence);
    let own = [["to_q", "query"], ["to_k", "key"], ["to_v", "value"]];
    let h = attended(own.map(|names| h.linear(w.first_of(&names, "weight"), c)));
    let out = h.linear(w.first_of(&["to_out.0", "proj_attn"], "weight"), c);
    (x.reshape(&sequence) + out).reshape(&[n, height, width, c])
}
