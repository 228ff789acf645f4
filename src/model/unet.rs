//! The U-Net of decoder and super-resolution (Dhariwal & Nichol 2021, section 3): residual blocks that halve the picture
//! level by level, and blocks that double it again and read the first half's outputs through skip connections.
//!
//! Blocks of two kinds do this, by their names in the configuration: Karlo's and Kandinsky's, which resample within a residual
//! block and attend to tokens and positions at once (`Simple`), and Stable Diffusion's, which resample by a convolution
//! and have transformer blocks (Rombach et al. 2022, appendix E.2.2).

use super::blocks::{Context, Norm, Resample, Residual, Time, TimeForm, cropped};
pub use super::unet_config::{CONDITIONAL, Config, UNCONDITIONAL};
use crate::plan::{Tensor, Weights};

/// Added to the variance by the normalisations of attention blocks.
const ATTENTION_EPS: f32 = 1e-5;

/// The network's inputs beside the picture.
pub struct Conditions<'g> {
    /// Sinusoidal features of all timesteps, `[S, W]`, or without `step` those of each row, `[G, W]`.
    pub time: Tensor<'g>,
    /// Index of the current step.
    pub step: Option<Tensor<'g>>,
    /// Added to the time embedding of each row, `[G, E]`.
    pub added: Option<Tensor<'g>>,
    /// `(tokens [G, T, cross], mask [G, T])`; without a mask all tokens are attended to.
    pub context: Option<(Tensor<'g>, Option<Tensor<'g>>)>,
}

/// The network: `x [G, H, W, in_channels]` to `[G, H, W, out_channels]`.
pub fn forward<'g>(w: &Weights<'g>, config: &Config, x: Tensor<'g>, conditions: &Conditions<'g>) -> Tensor<'g> {
    let widths = &config.block_out_channels;
    let norm = Norm { groups: config.norm_num_groups, eps: config.norm_eps, latents: None };
    let time = Time {
        form: if config.resnet_time_scale_shift == "scale_shift" { TimeForm::ScaleShift } else { TimeForm::Added },
        embedding: time_embedding(w, config, x.dim(0), conditions).silu(),
        step: conditions.step,
    };
    let residual = Residual { norm, time: Some(time) };
    // diffusers gives the configuration's number to the residual blocks and the last normalisation only.
    let norm_of_attention = Norm { eps: ATTENTION_EPS, ..norm };
    let context = conditions.context.map(|(tokens, mask)| Context { tokens, mask, norm: norm_of_attention });
    let last = widths.len() - 1;
    // Attention of blocks that have it. An entry of `attention_head_dim` is a width of heads or a number of them.
    let attend = |w: Weights<'g>, block: &str, head: usize, x: Tensor<'g>| match &context {
        Some(context) if block.contains("SimpleCrossAttn") => context.attend(&w, x, head),
        Some(context) if block.contains("CrossAttn") => context.transform(&w, x, head, config.use_linear_projection),
        _ => x,
    };
    let by_convolution = |block: &str| !["Resnet", "Simple"].iter().any(|kind| block.starts_with(kind));

    let mut x = x.conv3x3(w.at("conv_in"), widths[0]);
    let mut skips = vec![x];
    for (level, &width) in widths.iter().enumerate() {
        let w = w.at("down_blocks").at(level);
        let block = &config.down_block_types[level];
        for layer in 0..config.layers_per_block.at(level) {
            x = residual.block(&w.at("resnets").at(layer), x, width, Resample::Keep);
            x = attend(w.at("attentions").at(layer), block, config.head(level), x);
            skips.push(x);
        }
        if level < config.halvings() {
            x = match by_convolution(block) {
                true => x.conv(w.at("downsamplers.0.conv"), width, 3, 2, [1, 1], true),
                false => residual.block(&w.at("downsamplers.0"), x, width, Resample::Halve),
            };
            skips.push(x);
        }
    }

    let width = widths[last];
    let mid = w.at("mid_block");
    x = residual.block(&mid.at("resnets.0"), x, width, Resample::Keep);
    x = attend(mid.at("attentions.0"), &config.mid_block_type, config.head(last), x);
    x = residual.block(&mid.at("resnets.1"), x, width, Resample::Keep);

    for (level, &width) in widths.iter().rev().enumerate() {
        let w = w.at("up_blocks").at(level);
        let block = &config.up_block_types[level];
        // diffusers reads the heads' widths of the way up from the front of the list, all else from the back.
        let head = config.head(if block.starts_with("Simple") { level } else { last - level });
        for layer in 0..=config.layers_per_block.at(last - level) {
            let skip = skips.pop().expect("the way down pushes one skip for each block of the way up");
            x = Tensor::concat(&[x, skip], 3);
            x = residual.block(&w.at("resnets").at(layer), x, width, Resample::Keep);
            x = attend(w.at("attentions").at(layer), block, head, x);
        }
        if level < config.halvings() {
            x = match (by_convolution(block), skips.last()) {
                // The way down rounds odd sides up.
                (true, Some(skip)) => {
                    cropped(x.double(), [skip.dim(1), skip.dim(2)]).conv3x3(w.at("upsamplers.0.conv"), width)
                }
                _ => residual.block(&w.at("upsamplers.0"), x, width, Resample::Double),
            };
        }
    }
    norm.apply(&w.at("conv_norm_out"), x).silu().conv3x3(w.at("conv_out"), config.out_channels)
}

/// The time embedding of all steps and rows, `[S, G, E]`, or without a step that of each row, `[G, E]`.
fn time_embedding<'g>(w: &Weights<'g>, config: &Config, rows: usize, conditions: &Conditions<'g>) -> Tensor<'g> {
    let (steps, width) = (conditions.time.dim(0), config.time_embedding());
    let w = w.at("time_embedding");
    let time = conditions.time.linear(w.at("linear_1"), width).silu().linear(w.at("linear_2"), width);
    let time = match conditions.step {
        None => time,
        Some(_) if rows == 1 => time.reshape(&[steps, 1, width]),
        Some(_) => Tensor::concat(&vec![time.reshape(&[steps, 1, width]); rows], 1),
    };
    match conditions.added {
        Some(added) => time + added,
        None => time,
    }
}
