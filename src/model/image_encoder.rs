//! CLIP's image tower: a picture to one embedding in the space that the prior samples.
//!
//! A vision transformer (Dosovitskiy et al. 2021; Radford et al. 2021, section 2.4) over the picture's patches and a
//! learned class token, with full attention. The class token's last state, projected, is the embedding.

use super::clip::{self, Transformer};
use crate::error::Result;
use crate::plan::{Graph, Plan, Tensor, WeightSource};
use crate::weights::config::Literal::Number;
use crate::weights::config::{Class, Key, Schema};
use serde::Deserialize;

/// `image_encoder/config.json`.
#[derive(Clone, Debug, Deserialize)]
#[allow(missing_docs)] // the checkpoint's own names
pub struct Config {
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_channels: usize,
    pub image_size: usize,
    pub patch_size: usize,
    pub projection_dim: usize,
    pub hidden_act: String,
    pub layer_norm_eps: f32,
}

impl Schema for Config {
    const CLASSES: &'static [Class] = &[Class { name: "CLIPVisionConfig", keys: &[KEYS, clip::KEYS] }];
    const NESTED: Option<&'static str> = Some("vision_config");
    const ENCLOSING: &'static [&'static str] = &["projection_dim"];
}

const KEYS: &[Key] = &[
    Key::size("hidden_size").or(Number(768.0)),
    Key::size("intermediate_size").or(Number(3072.0)),
    Key::size("num_attention_heads").or(Number(12.0)),
    Key::size("image_size").or(Number(224.0)),
    Key::size("patch_size").or(Number(32.0)),
    Key::only("num_channels", &[Number(3.0)]),
    Key::no_effect("eos_token_id"),
];

/// Records the encoder for this many pictures.
///
/// Input: `pixel_values [N, size, size, 3]`, see [`Preprocessor`](crate::preprocess::Preprocessor). Output:
/// `image_embeds [N, D]`, not normalised, as the prior's result.
///
/// *Source* transformers' `CLIPVisionModelWithProjection`; its first normalisation is spelled `pre_layrnorm`.
///
/// # Errors
/// A tensor is missing or of another shape.
pub fn plan(config: &Config, source: &dyn WeightSource, pictures: usize) -> Result<Plan> {
    let (width, size, patch) = (config.hidden_size, config.image_size, config.patch_size);
    let transformer = Transformer {
        layers: config.num_hidden_layers,
        heads: config.num_attention_heads,
        inner: config.intermediate_size,
        eps: config.layer_norm_eps,
        activation: clip::activation(&config.hidden_act),
        causal: false,
    };
    let patches = (size / patch).pow(2);
    let graph = Graph::new("image_encoder", source);
    let pixels = graph.input("pixel_values", &[pictures, size, size, config.num_channels]);

    let [w, projection] =
        clip::tower(&graph.weights(), "vision_model", "embeddings.patch_embedding.weight", "visual_projection");
    let embeddings = w.at("embeddings");
    let x = pixels.conv(embeddings.at("patch_embedding"), width, patch, patch, [0, 0], false);
    let x = x.reshape(&[pictures, patches, width]);
    let class = embeddings.tensor("class_embedding", &[width]).reshape(&[1, 1, width]).repeat(pictures);
    let positions = embeddings.tensor("position_embedding.weight", &[patches + 1, width]);
    let x = Tensor::concat(&[class, x], 1) + positions;
    let x = transformer.encode(&w, x.layer_norm(w.at("pre_layrnorm"), config.layer_norm_eps));
    let class = x.slice(1, 0, 1).reshape(&[pictures, width]);
    let class = class.layer_norm(w.at("post_layernorm"), config.layer_norm_eps);
    graph.output("image_embeds", class.project(projection, config.projection_dim));
    graph.finish()
}
