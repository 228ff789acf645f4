//! Configurations of the U-Nets: diffusers' `UNet2DConditionModel` and `UNet2DModel`.

use crate::error::Result;
use crate::weights::config::Literal::{Bool, Null, Number, Text};
use crate::weights::config::{Class, Configured, Key, PerLevel, Schema};
use serde::Deserialize;

/// `config.json` of a U-Net: the keys that [`forward`](super::unet::forward) reads.
#[derive(Clone, Debug, Deserialize)]
#[allow(missing_docs)] // the checkpoint's own names
pub struct Config {
    #[serde(rename = "_class_name")]
    pub class_name: String,
    pub sample_size: Option<usize>,
    pub in_channels: usize,
    pub out_channels: usize,
    pub block_out_channels: Vec<usize>,
    pub layers_per_block: PerLevel<usize>,
    pub down_block_types: Vec<String>,
    pub up_block_types: Vec<String>,
    pub mid_block_type: String,
    /// Width of one head, of transformer blocks the number of heads. A `UNet2DModel` does not use this key and the next.
    pub attention_head_dim: Option<PerLevel<usize>>,
    pub cross_attention_dim: Option<usize>,
    pub norm_num_groups: usize,
    pub norm_eps: f32,
    pub flip_sin_to_cos: bool,
    pub freq_shift: f32,
    pub time_embedding_dim: Option<usize>,
    pub resnet_time_scale_shift: String,
    /// What is added to the time embedding beside the picture's or text's: `identity` for a vector that is given.
    pub class_embed_type: Option<String>,
    /// Which of the network's own layers make a vector for the time embedding.
    pub addition_embed_type: Option<String>,
    /// Which of the network's own layers make the tokens of the context, and from what width.
    pub encoder_hid_dim_type: Option<String>,
    pub encoder_hid_dim: Option<usize>,
    /// Width of what becomes a vector for the time embedding with `class_embed_type` `projection`.
    pub projection_class_embeddings_input_dim: Option<usize>,
    /// Whether transformer blocks begin and end with a matrix product; else with a convolution of the same effect.
    #[serde(default)]
    pub use_linear_projection: bool,
}

/// What a conditional U-Net is called.
pub const CONDITIONAL: &str = "UNet2DConditionModel";
/// What a U-Net without attention is called.
pub const UNCONDITIONAL: &str = "UNet2DModel";

const SHARED: &[Key] = &[
    Key::same_size("sample_size").nullable(),
    Key::size("time_embedding_dim").nullable(),
    Key::size("in_channels out_channels"),
    Key::sizes("block_out_channels"),
    Key::size("norm_num_groups").or(Number(32.0)),
    Key::float("norm_eps").or(Number(1e-5)),
    Key::flag("flip_sin_to_cos").or(Bool(true)),
    Key::float("freq_shift").or(Number(0.0)),
    Key::only("resnet_time_scale_shift", &[Text("default"), Text("scale_shift")]),
    Key::only("act_fn", &[Text("silu"), Text("swish")]),
    Key::only("time_embedding_type", &[Text("positional")]),
    Key::only("center_input_sample", &[Bool(false)]),
    Key::only("mid_block_scale_factor", &[Number(1.0)]),
    Key::only("num_class_embeds", &[Null]),
    Key::only("downsample_padding", &[Number(1.0)]),
    Key::no_effect("dropout"),
];

const CONDITIONAL_KEYS: &[Key] = &[
    Key::each(
        "down_block_types",
        &["ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"],
    ),
    Key::each(
        "up_block_types",
        &["ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"],
    ),
    Key::only("mid_block_type", &[Text("UNetMidBlock2DCrossAttn"), Text("UNetMidBlock2DSimpleCrossAttn")]),
    Key::only("class_embed_type", &[Null, Text("identity"), Text("projection")]),
    Key::size("projection_class_embeddings_input_dim").nullable(),
    Key::flag("use_linear_projection").or(Bool(false)),
    Key::only_per_level("transformer_layers_per_block", &[Number(1.0)]),
    Key::only("dual_cross_attention", &[Bool(false)]),
    Key::only("attention_type", &[Text("default")]),
    Key::size_per_level("layers_per_block").or(Number(2.0)),
    Key::size_per_level("attention_head_dim").or(Number(8.0)),
    Key::same_size("cross_attention_dim").or(Number(1280.0)),
    Key::only("conv_in_kernel conv_out_kernel", &[Number(3.0)]),
    Key::only("resnet_out_scale_factor", &[Number(1.0)]),
    Key::only("resnet_skip_time_act class_embeddings_concat", &[Bool(false)]),
    // diffusers cannot run true with a mask of the text tokens.
    Key::only_per_level("only_cross_attention", &[Bool(false)]),
    Key::only("mid_block_only_cross_attention", &[Null, Bool(false)]),
    Key::only("time_embedding_act_fn timestep_post_act cross_attention_norm num_attention_heads", &[Null]),
    Key::size("encoder_hid_dim").nullable(),
    Key::only("encoder_hid_dim_type", &[Null, Text("image_proj"), Text("text_image_proj")]),
    Key::only("addition_embed_type", &[Null, Text("image"), Text("image_hint"), Text("text_image")]),
    // These belong to values that are refused above, to blocks that are unknown, or to an input that is not given.
    Key::no_effect("addition_time_embed_dim addition_embed_type_num_heads time_cond_proj_dim"),
    Key::no_effect("reverse_transformer_layers_per_block"),
    // Scores are f32 in any case.
    Key::no_effect("upcast_attention"),
];

const UNCONDITIONAL_KEYS: &[Key] = &[
    Key::size("layers_per_block").or(Number(2.0)),
    Key::each("down_block_types", &["ResnetDownsampleBlock2D"]),
    Key::each("up_block_types", &["ResnetUpsampleBlock2D"]),
    Key::only("mid_block_type", &[Text("UNetMidBlock2D")]),
    Key::only("class_embed_type", &[Null]),
    Key::only("add_attention", &[Bool(false)]).or(Bool(true)),
    // Of attention, of other blocks and of learned time embeddings.
    Key::no_effect("attention_head_dim attn_norm_num_groups downsample_type upsample_type num_train_timesteps"),
];

impl Schema for Config {
    const CLASSES: &'static [Class] = &[
        Class { name: CONDITIONAL, keys: &[SHARED, CONDITIONAL_KEYS] },
        Class { name: UNCONDITIONAL, keys: &[SHARED, UNCONDITIONAL_KEYS] },
    ];

    fn check(&self) -> Result<(), String> {
        let lists = [
            ("down_block_types", Some(self.down_block_types.len())),
            ("up_block_types", Some(self.up_block_types.len())),
            ("layers_per_block", self.layers_per_block.entries()),
            ("attention_head_dim", self.attention_head_dim.as_ref().and_then(PerLevel::entries)),
        ];
        check_levels(self.block_out_channels.len(), &lists)
    }
}

/// Refuses a list of another length than a network has levels. Keys that are no lists have no length.
pub(super) fn check_levels(levels: usize, lists: &[(&str, Option<usize>)]) -> Result<(), String> {
    match lists.iter().find_map(|(key, entries)| entries.filter(|found| *found != levels).map(|found| (key, found))) {
        Some((key, found)) => Err(format!("{key} has {found} entries for {levels} block_out_channels")),
        None => Ok(()),
    }
}

impl Config {
    /// Width of the sinusoidal time features.
    pub fn time_features(&self) -> usize {
        self.block_out_channels.first().copied().unwrap_or(0)
    }

    /// Width of the time embedding.
    pub fn time_embedding(&self) -> usize {
        self.time_embedding_dim.unwrap_or(4 * self.time_features())
    }

    /// An entry of `attention_head_dim`.
    pub(super) fn head(&self, entry: usize) -> usize {
        self.attention_head_dim.as_ref().map_or(1, |heads| heads.at(entry))
    }

    /// How often the picture is halved.
    pub fn halvings(&self) -> usize {
        self.block_out_channels.len() - 1
    }
}

impl Configured<Config> {
    /// Refuses the other class.
    ///
    /// # Errors
    /// Names both.
    pub(super) fn require_class(&self, class: &str) -> Result<()> {
        match self.class_name == class {
            true => Ok(()),
            false => Err(self.refused(format!("_class_name is {}; expected {class}", self.class_name))),
        }
    }

    /// Refuses conditions of another kind than a network of `what` has; each by its key.
    ///
    /// # Errors
    /// Names the first key, its value and what was expected.
    pub(super) fn require_conditions(&self, what: &str, wanted: [(&str, &[Option<&str>]); 3]) -> Result<()> {
        let found = [&self.class_embed_type, &self.addition_embed_type, &self.encoder_hid_dim_type];
        let shown = |value: Option<&str>| value.map_or("null".to_owned(), |value| format!("{value:?}"));
        match found.into_iter().zip(wanted).find(|(found, (_, legal))| !legal.contains(&found.as_deref())) {
            None => Ok(()),
            Some((found, (key, legal))) => {
                let legal: Vec<String> = legal.iter().map(|value| shown(*value)).collect();
                let found = shown(found.as_deref());
                Err(self.refused(format!("{key} is {found}; {what} has {}", legal.join(" or "))))
            }
        }
    }

    /// The picture's side, which the network must be able to halve at every level.
    ///
    /// # Errors
    /// `size` is missing or cannot be halved.
    pub(super) fn picture_size(&self, size: Option<usize>) -> Result<usize> {
        let unit = 1usize.checked_shl(self.halvings() as u32).unwrap_or(usize::MAX);
        match size {
            Some(size) if size.is_multiple_of(unit) => Ok(size),
            found => {
                let found = found.map_or("null".to_owned(), |size| size.to_string());
                Err(self.refused(format!("sample_size is {found}; expected a multiple of {unit}")))
            }
        }
    }
}
