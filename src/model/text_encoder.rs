//! CLIP's text tower: token ids to one embedding and one hidden state per token.
//!
//! A causal transformer with pre-normalisation (Radford et al. 2021, section 2.4). It is called without a mask: pads
//! come after the end of the text, where causality hides them from everything that is used.

use super::clip::{self, Transformer};
use super::sized;
use crate::error::Result;
use crate::plan::{Graph, Plan, WeightSource};
use serde::{Deserialize, Serialize};

/// A prompt as the text encoder takes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tokens {
    /// `[context_length]`: begin, text, end, padding.
    pub ids: Vec<u32>,
    /// `[context_length]`: true for begin, text and end; false for padding.
    pub mask: Vec<bool>,
    /// The end of the prompt that did not fit, as text; to be shown to whoever wrote it.
    #[serde(skip)]
    pub cut: Option<String>,
}

/// `text_encoder/config.json`.
#[derive(Clone, Debug, Deserialize)]
#[allow(missing_docs)] // the checkpoint's own names
pub struct Config {
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    #[serde(default = "context_length")]
    pub max_position_embeddings: usize,
    pub projection_dim: usize,
    #[serde(default = "clip::quick_gelu")]
    pub hidden_act: String,
    #[serde(default = "clip::layer_norm_eps")]
    pub layer_norm_eps: f32,
    pub vocab_size: usize,
    #[serde(default)]
    pub eos_token_id: Option<u32>,
}

fn context_length() -> usize {
    77
}

impl Config {
    /// The token whose state becomes the text's embedding: the first with the largest id where the configuration
    /// says 2 (which is no real id but what old files hold), else the first with the configured id.
    pub fn pooled_position(&self, ids: &[u32]) -> u32 {
        let wanted = match self.eos_token_id {
            Some(2) | None => ids.iter().copied().max().unwrap_or(0),
            Some(id) => id,
        };
        ids.iter().position(|&id| id == wanted).unwrap_or(0) as u32
    }
}

/// Records the encoder for `texts` prompts of the configured length.
///
/// Inputs: `ids [N, T]` and `pooled [N]` (see [`Config::pooled_position`]). Outputs: `text_embeds [N, D]`, not
/// normalised, and `hidden [N, T, width]` after the last normalisation.
///
/// # Errors
/// A configuration that is not implemented, or a tensor that is missing or of another shape.
pub fn plan(config: &Config, source: &dyn WeightSource, texts: usize) -> Result<Plan> {
    let path = source.path();
    sized(
        path,
        &[
            ("hidden_size", config.hidden_size),
            ("num_attention_heads", config.num_attention_heads),
            ("max_position_embeddings", config.max_position_embeddings),
        ],
    )?;
    let transformer = Transformer {
        layers: config.num_hidden_layers,
        heads: config.num_attention_heads,
        inner: config.intermediate_size,
        eps: config.layer_norm_eps,
        activation: clip::activation(path, &config.hidden_act)?,
        causal: true,
    };
    let (width, tokens) = (config.hidden_size, config.max_position_embeddings);
    let graph = Graph::new("text_encoder", source);
    let ids = graph.input_u32("ids", &[texts, tokens]);
    let pooled = graph.input_u32("pooled", &[texts]);

    let w = graph.weights().at("text_model");
    let table = w.at("embeddings").tensor("token_embedding.weight", &[config.vocab_size, width]);
    let place = w.at("embeddings").tensor("position_embedding.weight", &[tokens, width]);
    let x = transformer.encode(&w, table.lookup(ids) + place);
    let hidden = x.layer_norm(w.at("final_layer_norm"), config.layer_norm_eps);
    let embeds = hidden.token(pooled).project(graph.weights().at("text_projection"), config.projection_dim);
    graph.output("text_embeds", embeds);
    graph.output("hidden", hidden);
    graph.finish()
}
