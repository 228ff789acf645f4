//! The autoencoders of latent diffusion (Rombach et al. 2022, section 3.1): between pictures and latents that are smaller
//! by a factor of two for each level but one.
//!
//! MoVQ ([`VQ`]) normalises its decoder's blocks with the latents themselves (Zheng et al. 2022). Kandinsky neither scales
//! nor quantises its latents, so the codebook is not read. The KL autoencoder ([`KL`]) has plain normalisations.

use super::blocks::{Norm, Resample, Residual, among_positions};
use super::unet_config::check_levels;
use crate::error::{Error, Result};
use crate::plan::{Graph, Plan, Tensor, WeightSource, Weights};
use crate::weights::config::Literal::{Bool, Null, Number, Numbers, Text};
use crate::weights::config::{Class, Configured, Key, Schema};
use serde::Deserialize;

/// What MoVQ is called.
pub const VQ: &str = "VQModel";
/// What the KL autoencoder is called.
pub const KL: &str = "AutoencoderKL";

/// `config.json` of an autoencoder.
#[derive(Clone, Debug, Deserialize)]
#[allow(missing_docs)] // the checkpoint's own names
pub struct Config {
    #[serde(rename = "_class_name")]
    pub class_name: String,
    pub in_channels: usize,
    pub out_channels: usize,
    pub latent_channels: usize,
    pub block_out_channels: Vec<usize>,
    pub layers_per_block: usize,
    pub down_block_types: Vec<String>,
    pub up_block_types: Vec<String>,
    pub norm_num_groups: usize,
    /// Factor of latents in the diffusion process. Kandinsky's pipelines do not apply it.
    pub scaling_factor: f32,
    /// `spatial` if the decoder's normalisations read the latents. Of MoVQ alone, as is the next.
    pub norm_type: Option<String>,
    /// Channels of the latents that the decoder reads.
    pub vq_embed_dim: Option<usize>,
}

const SHARED: &[Key] = &[
    Key::size("in_channels out_channels").or(Number(3.0)),
    Key::sizes("block_out_channels").or(Numbers(&[64.0])),
    Key::size("layers_per_block").or(Number(1.0)),
    Key::size("norm_num_groups").or(Number(32.0)),
    Key::only("act_fn", &[Text("silu")]),
    Key::only("mid_block_add_attention", &[Bool(true)]),
    // The size and the type of the original's training.
    Key::no_effect("sample_size force_upcast"),
];

const VQ_KEYS: &[Key] = &[
    Key::each("down_block_types", &["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]),
    Key::each("up_block_types", &["UpDecoderBlock2D", "AttnUpDecoderBlock2D"]),
    Key::size("latent_channels").or(Number(3.0)),
    Key::size("vq_embed_dim").nullable(),
    Key::float("scaling_factor").or(Number(0.18215)),
    Key::only("norm_type", &[Text("group"), Text("spatial")]),
    // Kandinsky's pipelines do not quantise.
    Key::no_effect("num_vq_embeddings lookup_from_codebook"),
];

const KL_KEYS: &[Key] = &[
    Key::each("down_block_types", &["DownEncoderBlock2D"]),
    Key::each("up_block_types", &["UpDecoderBlock2D"]),
    Key::size("latent_channels").or(Number(4.0)),
    Key::float("scaling_factor").or(Number(0.18215)),
    Key::only("use_quant_conv use_post_quant_conv", &[Bool(true)]),
    Key::only("shift_factor latents_mean latents_std", &[Null]),
];

impl Schema for Config {
    const CLASSES: &'static [Class] =
        &[Class { name: VQ, keys: &[SHARED, VQ_KEYS] }, Class { name: KL, keys: &[SHARED, KL_KEYS] }];

    fn check(&self) -> Result<(), String> {
        let lists = [("down_block_types", &self.down_block_types), ("up_block_types", &self.up_block_types)];
        check_levels(self.block_out_channels.len(), &lists.map(|(key, types)| (key, Some(types.len()))))
    }
}

/// Of all normalisations.
const EPS: f32 = 1e-6;
/// Groups of a spatial normalisation, whatever the configuration says.
const SPATIAL_GROUPS: usize = 32;

impl Config {
    /// Pixels of a picture for each position of its latents, along each side.
    pub fn factor(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }

    /// Channels of the latents that the decoder reads.
    fn embedding(&self) -> usize {
        self.vq_embed_dim.unwrap_or(self.latent_channels)
    }

    /// The normalisation of blocks without latents.
    fn norm<'g>(&self) -> Norm<'g> {
        Norm { groups: self.norm_num_groups, eps: EPS, latents: None }
    }

    /// Width of the deepest level.
    fn deepest(&self) -> usize {
        self.block_out_channels.last().copied().unwrap_or(0)
    }
}

/// The blocks of an encoder or a decoder: of one kind of normalisation, without a time embedding.
struct Blocks<'g> {
    residual: Residual<'g>,
}

impl<'g> Blocks<'g> {
    fn new(norm: Norm<'g>) -> Blocks<'g> {
        Blocks { residual: Residual { norm, time: None } }
    }

    fn resnet(&self, w: &Weights<'g>, x: Tensor<'g>, width: usize) -> Tensor<'g> {
        self.residual.block(w, x, width, Resample::Keep)
    }

    /// Attention of all positions to all, with one head as wide as the picture is deep.
    fn attend(&self, w: &Weights<'g>, x: Tensor<'g>) -> Tensor<'g> {
        let norm = &self.residual.norm;
        let name = if norm.latents.is_some() { "spatial_norm" } else { "group_norm" };
        let normal = norm.apply(&w.at(name), x);
        among_positions(w, x, normal, |[q, k, v]| q.attend((k, v), None, None, 1, false))
    }

    /// The block between the way down and the way up.
    fn middle(&self, w: &Weights<'g>, x: Tensor<'g>) -> Tensor<'g> {
        let (w, width) = (w.at("mid_block"), x.channels());
        let x = self.resnet(&w.at("resnets.0"), x, width);
        let x = self.attend(&w.at("attentions.0"), x);
        self.resnet(&w.at("resnets.1"), x, width)
    }

    /// The layers of one level.
    fn level(&self, w: &Weights<'g>, x: Tensor<'g>, layers: usize, width: usize, block: &str) -> Tensor<'g> {
        (0..layers).fold(x, |x, layer| {
            let x = self.resnet(&w.at("resnets").at(layer), x, width);
            if block.starts_with("Attn") { self.attend(&w.at("attentions").at(layer), x) } else { x }
        })
    }
}

/// Records the decoder for latents of `size`, height and width.
///
/// Input: `latents [B, h, w, Z]`, as the autoencoder has them: of the KL autoencoder divided by the scaling factor. Output:
/// `picture [B, f h, f w, 3]` in -1..1, about, where `f` is [`Config::factor`].
///
/// *Source* diffusers' `Decoder` with `UpDecoderBlock2D`, `AttnUpDecoderBlock2D`, `UNetMidBlock2D` and `SpatialNorm`.
///
/// # Errors
/// A tensor is missing or of another shape, or a size is 0.
pub fn decoder(
    config: &Configured<Config>,
    source: &dyn WeightSource,
    pictures: usize,
    size: [usize; 2],
) -> Result<Plan> {
    let [height, width] = positive(size)?;
    let graph = Graph::new("autoencoder_decoder", source);
    let weights = graph.weights();
    let latents = graph.input("latents", &[pictures, height, width, config.embedding()]);
    let is_spatial = config.norm_type.as_deref() == Some("spatial");
    let norm = match is_spatial {
        // The latents before the first convolution.
        true => Norm { groups: SPATIAL_GROUPS, eps: EPS, latents: Some(latents) },
        false => config.norm(),
    };
    let blocks = Blocks::new(norm);

    let x = latents.conv1x1(weights.at("post_quant_conv"), config.latent_channels);
    let w = weights.at("decoder");
    let x = x.conv3x3(w.at("conv_in"), config.deepest());
    let mut x = blocks.middle(&w, x);
    for (level, &width) in config.block_out_channels.iter().rev().enumerate() {
        let w = w.at("up_blocks").at(level);
        x = blocks.level(&w, x, config.layers_per_block + 1, width, &config.up_block_types[level]);
        if level + 1 < config.block_out_channels.len() {
            x = x.double().conv3x3(w.at("upsamplers.0.conv"), width);
        }
    }
    let x = norm.apply(&w.at("conv_norm_out"), x).silu().conv3x3(w.at("conv_out"), config.out_channels);
    graph.output("picture", x);
    graph.finish()
}

/// Records the encoder for pictures of `size`, height and width.
///
/// Input: `picture [B, H, W, 3]` in -1..1. Output: `latents [B, H / f, W / f, Z]`, where `f` is [`Config::factor`]; of the KL
/// autoencoder the mean of their distribution, not scaled.
///
/// *Source* diffusers' `Encoder` with `DownEncoderBlock2D` and `AttnDownEncoderBlock2D`, whose halving convolutions have
/// zeros below and to the right of the picture only.
///
/// # Errors
/// As [`decoder`], or a size is no multiple of the factor.
pub fn encoder(
    config: &Configured<Config>,
    source: &dyn WeightSource,
    pictures: usize,
    size: [usize; 2],
) -> Result<Plan> {
    let [height, width] = positive(size)?;
    let factor = config.factor();
    if !height.is_multiple_of(factor) || !width.is_multiple_of(factor) {
        let reason = format!("{width}x{height} pixels; expected multiples of {factor}");
        return Err(Error::Shape { at: "autoencoder_encoder".to_owned(), reason });
    }
    let graph = Graph::new("autoencoder_encoder", source);
    let weights = graph.weights();
    let picture = graph.input("picture", &[pictures, height, width, config.in_channels]);
    let blocks = Blocks::new(config.norm());

    let w = weights.at("encoder");
    let mut x = picture.conv3x3(w.at("conv_in"), config.block_out_channels.first().copied().unwrap_or(0));
    for (level, &width) in config.block_out_channels.iter().enumerate() {
        let w = w.at("down_blocks").at(level);
        x = blocks.level(&w, x, config.layers_per_block, width, &config.down_block_types[level]);
        if level + 1 < config.block_out_channels.len() {
            x = x.conv(w.at("downsamplers.0.conv"), width, 3, 2, [0, 1], true);
        }
    }
    let x = config.norm().apply(&w.at("conv_norm_out"), blocks.middle(&w, x)).silu();
    let has_variance = config.class_name == KL;
    let channels = if has_variance { 2 * config.latent_channels } else { config.latent_channels };
    let embedding = if has_variance { channels } else { config.embedding() };
    let x = x.conv3x3(w.at("conv_out"), channels).conv1x1(weights.at("quant_conv"), embedding);
    // The mean comes first, the logarithm of the variance after it.
    graph.output("latents", if has_variance { x.slice(3, 0, config.latent_channels) } else { x });
    graph.finish()
}

fn positive(size: [usize; 2]) -> Result<[usize; 2]> {
    match size {
        [0, _] | [_, 0] => {
            let reason = format!("{}x{} positions; expected at least 1x1", size[1], size[0]);
            Err(Error::Shape { at: "autoencoder".to_owned(), reason })
        }
        size => Ok(size),
    }
}
