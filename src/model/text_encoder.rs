//! CLIP's text tower: token ids to one embedding and one hidden state per token.
//!
//! A causal transformer with pre-normalisation (Radford et al. 2021, section 2.4). It needs no mask: padding comes after
//! the text, and causal attention hides it from every token that is used.

use super::clip::{self, Transformer};
use crate::error::Result;
use crate::plan::{Graph, Plan, WeightSource};
use crate::weights::config::Literal::Number;
use crate::weights::config::{Class, Key, Schema};
use serde::{Deserialize, Serialize};

/// A tokenised prompt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tokens {
    /// `[context_length]`: begin, text, end, padding.
    pub ids: Vec<u32>,
    /// `[context_length]`: true for begin, text and end; false for padding.
    pub mask: Vec<bool>,
    /// The end of the prompt that did not fit, as text, for a warning.
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
    pub max_position_embeddings: usize,
    pub projection_dim: usize,
    pub hidden_act: String,
    pub layer_norm_eps: f32,
    pub vocab_size: usize,
    pub eos_token_id: Option<u32>,
}

impl Schema for Config {
    const CLASSES: &'static [Class] = &[Class { name: "CLIPTextConfig", keys: &[KEYS, clip::KEYS] }];
    const NESTED: Option<&'static str> = Some("text_config");
    const ENCLOSING: &'static [&'static str] = &["projection_dim"];
}

const KEYS: &[Key] = &[
    Key::size("hidden_size").or(Number(512.0)),
    Key::size("intermediate_size").or(Number(2048.0)),
    Key::size("num_attention_heads").or(Number(8.0)),
    Key::size("max_position_embeddings").or(Number(77.0)),
    Key::size("vocab_size").or(Number(49408.0)),
    Key::integer("eos_token_id", 0..=u32::MAX as u64).nullable(),
];

impl Config {
    /// Position of the token whose state becomes the text's embedding: the first with the configured end id. Old files
    /// say 2, which is not the real id; it means the first with the largest id.
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
/// normalised, and `hidden [N, T, width]` after the last normalisation; without an embedding `ids` and `hidden` alone.
///
/// # Errors
/// A tensor is missing or of another shape.
pub fn plan(config: &Config, source: &dyn WeightSource, texts: usize, has_embedding: bool) -> Result<Plan> {
    let transformer = Transformer {
        layers: config.num_hidden_layers,
        heads: config.num_attention_heads,
        inner: config.intermediate_size,
        eps: config.layer_norm_eps,
        activation: clip::activation(&config.hidden_act),
        causal: true,
    };
    let (width, tokens) = (config.hidden_size, config.max_position_embeddings);
    let graph = Graph::new("text_encoder", source);
    let ids = graph.input_u32("ids", &[texts, tokens]);

    let [w, projection] =
        clip::tower(&graph.weights(), "text_model", "embeddings.token_embedding.weight", "text_projection");
    let table = w.at("embeddings").tensor("token_embedding.weight", &[config.vocab_size, width]);
    let positions = w.at("embeddings").tensor("position_embedding.weight", &[tokens, width]);
    let x = transformer.encode(&w, table.lookup(ids) + positions);
    let hidden = x.layer_norm(w.at("final_layer_norm"), config.layer_norm_eps);
    if has_embedding {
        let pooled = graph.input_u32("pooled", &[texts]);
        graph.output("text_embeds", hidden.token(pooled).project(projection, config.projection_dim));
    }
    graph.output("hidden", hidden);
    graph.finish()
}
