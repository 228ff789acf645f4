//! From embeddings to the decoder's conditions: extra tokens from the image embedding in front of the projected text
//! tokens, and a vector that is added to the time embedding (Ramesh et al. 2022, section 2.1).

use crate::error::Result;
use crate::plan::{Graph, Plan, Tensor, WeightSource};
use crate::weights::config::Literal::Number;
use crate::weights::config::{Class, Key, Schema};
use serde::Deserialize;

/// `text_proj/config.json`.
#[derive(Clone, Debug, Deserialize)]
#[allow(missing_docs)] // the checkpoint's own names
pub struct Config {
    pub clip_embeddings_dim: usize,
    pub clip_extra_context_tokens: usize,
    pub cross_attention_dim: usize,
    pub time_embed_dim: usize,
}

impl Schema for Config {
    const CLASSES: &'static [Class] = &[Class { name: "UnCLIPTextProjModel", keys: &[KEYS] }];
}

const KEYS: &[Key] = &[
    Key::size("clip_extra_context_tokens").or(Number(4.0)),
    Key::size("clip_embeddings_dim").or(Number(768.0)),
    Key::size("time_embed_dim cross_attention_dim"),
];

/// Records the projections for `pictures` pictures with `tokens` text tokens each.
///
/// Inputs: `image_embeds [B, D]`, `text_embeds [G, D]`, `hidden [G, T, D]`. Outputs: `context [G, extra + T, cross]`,
/// `added [G, E]`. With guidance the unconditional half's image is a learned vector.
///
/// # Errors
/// A tensor is missing or of another shape.
pub fn plan(config: &Config, source: &dyn WeightSource, pictures: usize, tokens: usize, guided: bool) -> Result<Plan> {
    let (dim, cross, extra) =
        (config.clip_embeddings_dim, config.cross_attention_dim, config.clip_extra_context_tokens);
    let rows = pictures * if guided { 2 } else { 1 };
    let graph = Graph::new("text_proj", source);
    let images = graph.input("image_embeds", &[pictures, dim]);
    let text_embeds = graph.input("text_embeds", &[rows, dim]);
    let hidden = graph.input("hidden", &[rows, tokens, dim]);

    let w = graph.weights();
    // Recorded without guidance as well, so that the tensor does not count as unused.
    let null = w.tensor("learned_classifier_free_guidance_embeddings", &[dim]).reshape(&[1, dim]);
    let images = if guided { Tensor::concat(&[null.repeat(pictures), images], 0) } else { images };

    let added = images.linear(w.at("clip_image_embeddings_project_to_time_embeddings"), config.time_embed_dim)
        + text_embeds.linear(w.at("embedding_proj"), config.time_embed_dim);

    // Channel c of token k has the index `extra * c + k`.
    let mixed = images.linear(w.at("clip_extra_context_tokens_proj"), extra * cross);
    let mut parts: Vec<Tensor<'_>> =
        (0..extra).map(|k| mixed.slice_by(1, k, extra, cross).reshape(&[rows, 1, cross])).collect();
    let text = hidden.linear(w.at("encoder_hidden_states_proj"), cross);
    parts.push(text.layer_norm(w.at("text_encoder_hidden_states_norm"), 1e-5));

    graph.output("context", Tensor::concat(&parts, 1));
    graph.output("added", added);
    graph.finish()
}
