//! The U-Net that decoder and super-resolution share (Dhariwal & Nichol 2021, section 3): residual blocks down to a
//! small picture and up again, every output on the way down handed across to the way up.

use super::blocks::{Context, Resample, Residual, TimeForm};
use super::{legal, sized};
use crate::error::{Error, Result};
use crate::plan::{Tensor, Weights};
use serde::Deserialize;
use std::path::Path;

/// `config.json` of a `UNet2DConditionModel` or `UNet2DModel`. Keys that Karlo's files leave out have the defaults
/// that they rely on.
#[derive(Clone, Debug, Deserialize)]
#[allow(missing_docs)] // the checkpoint's own names
pub struct Config {
    #[serde(rename = "_class_name")]
    pub class_name: String,
    pub sample_size: Option<usize>,
    pub in_channels: usize,
    pub out_channels: usize,
    pub block_out_channels: Vec<usize>,
    pub layers_per_block: usize,
    pub down_block_types: Vec<String>,
    pub up_block_types: Vec<String>,
    #[serde(default)]
    pub mid_block_type: Option<String>,
    #[serde(default = "eight")]
    pub attention_head_dim: Option<usize>,
    #[serde(default)]
    pub cross_attention_dim: Option<usize>,
    #[serde(default = "yes")]
    pub add_attention: bool,
    #[serde(default = "groups")]
    pub norm_num_groups: usize,
    #[serde(default = "eps")]
    pub norm_eps: f32,
    #[serde(default = "yes")]
    pub flip_sin_to_cos: bool,
    #[serde(default)]
    pub freq_shift: f32,
    #[serde(default)]
    pub resnet_time_scale_shift: Option<String>,
    #[serde(default)]
    pub act_fn: Option<String>,
    #[serde(default)]
    pub time_embedding_type: Option<String>,
    #[serde(default)]
    pub class_embed_type: Option<String>,
    #[serde(default)]
    pub cross_attention_norm: Option<String>,
    #[serde(default)]
    pub only_cross_attention: bool,
    #[serde(default)]
    pub center_input_sample: bool,
    #[serde(default)]
    pub resnet_skip_time_act: bool,
    #[serde(default)]
    pub encoder_hid_dim: Option<usize>,
    #[serde(default)]
    pub addition_embed_type: Option<String>,
    #[serde(default)]
    pub class_embeddings_concat: bool,
    #[serde(default = "one")]
    pub mid_block_scale_factor: f32,
    #[serde(default = "one")]
    pub resnet_out_scale_factor: f32,
}

fn eight() -> Option<usize> {
    Some(8)
}

fn yes() -> bool {
    true
}

fn groups() -> usize {
    32
}

fn eps() -> f32 {
    1e-5
}

fn one() -> f32 {
    1.0
}

impl Config {
    /// Width of the sinusoidal time features.
    pub fn time_features(&self) -> usize {
        self.block_out_channels.first().copied().unwrap_or(0)
    }

    /// Width of the time embedding.
    pub fn time_embedding(&self) -> usize {
        4 * self.time_features()
    }

    /// How often the picture is halved.
    pub fn halvings(&self) -> usize {
        self.block_out_channels.len() - 1
    }

    /// Refuses what [`forward`] does not implement.
    ///
    /// # Errors
    /// Names the key, its value and the values that are known.
    pub fn check(&self, path: &Path) -> Result<()> {
        let levels = self.block_out_channels.len();
        sized(
            path,
            &[
                ("number of block_out_channels", levels),
                ("layers_per_block", self.layers_per_block),
                ("norm_num_groups", self.norm_num_groups),
                ("in_channels", self.in_channels),
                ("out_channels", self.out_channels),
            ],
        )?;
        for (key, types, known) in [
            ("down_block_types", &self.down_block_types, ["ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"]),
            ("up_block_types", &self.up_block_types, ["ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D"]),
        ] {
            if types.len() != levels {
                let reason = format!("{key} has {} entries for {levels} block_out_channels", types.len());
                return Err(Error::config(path, reason));
            }
            types.iter().try_for_each(|t| legal(path, key, &t.as_str(), &known))?;
        }
        let cross = self.class_name == "UNet2DConditionModel";
        legal(path, "_class_name", &self.class_name.as_str(), &["UNet2DConditionModel", "UNet2DModel"])?;
        let known = |key: &str, value: &Option<String>, names: &[&str]| {
            legal(path, key, &value.as_deref().unwrap_or("null"), names)
        };
        if cross {
            known("mid_block_type", &self.mid_block_type, &["UNetMidBlock2DSimpleCrossAttn"])?;
            known("class_embed_type", &self.class_embed_type, &["identity"])?;
            match (self.attention_head_dim, self.cross_attention_dim) {
                (Some(1..), Some(1..)) => {}
                sizes => {
                    let reason =
                        format!("attention_head_dim and cross_attention_dim are {sizes:?}; both must be given");
                    return Err(Error::config(path, reason));
                }
            }
        } else {
            known("mid_block_type", &self.mid_block_type, &["null", "UNetMidBlock2D"])?;
            known("class_embed_type", &self.class_embed_type, &["null"])?;
            legal(path, "add_attention", &self.add_attention, &[false])?;
            let attention = |t: &&String| t.contains("Attn");
            if let Some(t) = self.down_block_types.iter().chain(&self.up_block_types).find(attention) {
                return Err(Error::config(path, format!("{t} needs a UNet2DConditionModel")));
            }
        }
        known("resnet_time_scale_shift", &self.resnet_time_scale_shift, &["null", "default", "scale_shift"])?;
        known("act_fn", &self.act_fn, &["null", "silu"])?;
        known("time_embedding_type", &self.time_embedding_type, &["null", "positional"])?;
        known("cross_attention_norm", &self.cross_attention_norm, &["null"])?;
        known("addition_embed_type", &self.addition_embed_type, &["null"])?;
        legal(path, "only_cross_attention", &self.only_cross_attention, &[false])?;
        legal(path, "center_input_sample", &self.center_input_sample, &[false])?;
        legal(path, "resnet_skip_time_act", &self.resnet_skip_time_act, &[false])?;
        legal(path, "class_embeddings_concat", &self.class_embeddings_concat, &[false])?;
        legal(path, "mid_block_scale_factor", &self.mid_block_scale_factor, &[1.0])?;
        legal(path, "resnet_out_scale_factor", &self.resnet_out_scale_factor, &[1.0])?;
        match self.encoder_hid_dim {
            None => Ok(()),
            Some(size) => Err(Error::config(path, format!("encoder_hid_dim is {size}; this engine knows null"))),
        }
    }
}

/// What one run of the network sees beside the picture.
pub struct Conditions<'g> {
    /// Sinusoidal features of all timesteps, `[S, W]`.
    pub time: Tensor<'g>,
    /// Number of the present step.
    pub step: Tensor<'g>,
    /// Added to the time embedding of each row, `[G, E]`.
    pub added: Option<Tensor<'g>>,
    /// `(tokens [G, T, cross], mask [G, T])`.
    pub context: Option<(Tensor<'g>, Tensor<'g>)>,
}

/// The network: `x [G, H, W, in_channels]` to `[G, H, W, out_channels]`.
pub fn forward<'g>(w: &Weights<'g>, config: &Config, x: Tensor<'g>, conditions: &Conditions<'g>) -> Tensor<'g> {
    let widths = &config.block_out_channels;
    let (groups, eps) = (config.norm_num_groups, config.norm_eps);
    let scale_shift = config.resnet_time_scale_shift.as_deref() == Some("scale_shift");
    let residual = Residual {
        groups,
        eps,
        form: if scale_shift { TimeForm::ScaleShift } else { TimeForm::Added },
        time: time_embedding(w, config, x.dim(0), conditions).silu(),
        step: conditions.step,
    };
    let context = conditions.context.map(|(tokens, mask)| {
        let head = config.attention_head_dim.unwrap_or(1);
        Context { tokens, mask, head, groups, eps }
    });
    let attend = |w: Weights<'g>, attends: bool, x: Tensor<'g>| match &context {
        Some(context) if attends => context.attend(&w, x),
        _ => x,
    };

    let mut x = x.conv3x3(w.at("conv_in"), widths[0]);
    let mut skips = vec![x];
    for (level, &width) in widths.iter().enumerate() {
        let w = w.at("down_blocks").at(level);
        let attends = config.down_block_types[level].contains("Attn");
        for layer in 0..config.layers_per_block {
            x = residual.block(&w.at("resnets").at(layer), x, width, Resample::StorageRule);
            x = attend(w.at("attentions").at(layer), attends, x);
            skips.push(x);
        }
        if level < config.halvings() {
            x = residual.block(&w.at("downsamplers.0"), x, width, Resample::Halve);
            skips.push(x);
        }
    }

    let width = widths[widths.len() - 1];
    let mid = w.at("mid_block");
    x = residual.block(&mid.at("resnets.0"), x, width, Resample::StorageRule);
    x = attend(mid.at("attentions.0"), true, x);
    x = residual.block(&mid.at("resnets.1"), x, width, Resample::StorageRule);

    for (level, &width) in widths.iter().rev().enumerate() {
        let w = w.at("up_blocks").at(level);
        let attends = config.up_block_types[level].contains("Attn");
        for layer in 0..=config.layers_per_block {
            let skip = skips.pop().expect("as many skips are pushed on the way down as are taken on the way up");
            x = Tensor::concat(&[x, skip], 3);
            x = residual.block(&w.at("resnets").at(layer), x, width, Resample::StorageRule);
            x = attend(w.at("attentions").at(layer), attends, x);
        }
        if level < config.halvings() {
            x = residual.block(&w.at("upsamplers.0"), x, width, Resample::Double);
        }
    }
    x.group_norm(w.at("conv_norm_out"), groups, eps).silu().conv3x3(w.at("conv_out"), config.out_channels)
}

/// The time embedding of all steps and rows, `[S, G, E]`.
fn time_embedding<'g>(w: &Weights<'g>, config: &Config, rows: usize, conditions: &Conditions<'g>) -> Tensor<'g> {
    let (steps, width) = (conditions.time.dim(0), config.time_embedding());
    let w = w.at("time_embedding");
    let time = conditions.time.linear(w.at("linear_1"), width).silu().linear(w.at("linear_2"), width);
    let time = time.reshape(&[steps, 1, width]);
    let time = if rows == 1 { time } else { Tensor::concat(&vec![time; rows], 1) };
    match conditions.added {
        Some(added) => time + added,
        None => time,
    }
}
