//! Kandinsky 2.1's text encoder: texts in some hundred languages to one embedding and one state per token
//! (Carlsson et al. 2022, on XLM-R of Conneau et al. 2020).
//!
//! A transformer with post-normalisation and full attention, in which padding is masked. The mean of the states of the tokens
//! that count, projected, is the embedding.

use super::clip::activation;
use crate::error::Result;
use crate::plan::{Graph, Plan, Tensor, WeightSource, Weights};
use crate::weights::config::Literal::{Null, Number, Text};
use crate::weights::config::{Class, Key, Schema};
use serde::Deserialize;

/// Tokens of a text, padding included, whatever the configuration says: the pipelines' own number.
pub const TOKENS: usize = 77;

/// `text_encoder/config.json`.
#[derive(Clone, Debug, Deserialize)]
#[allow(missing_docs)] // the checkpoint's own names
pub struct Config {
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub max_position_embeddings: usize,
    pub type_vocab_size: usize,
    pub vocab_size: usize,
    pub pad_token_id: u32,
    pub hidden_act: String,
    pub layer_norm_eps: f32,
    /// Width of a text's embedding.
    #[serde(rename = "numDims")]
    pub dim: usize,
    /// Width of the states that it is made of.
    #[serde(rename = "transformerDimensions")]
    pub transformer_dim: usize,
}

const KEYS: &[Key] = &[
    Key::size("hidden_size").or(Number(768.0)),
    Key::size("intermediate_size").or(Number(3072.0)),
    Key::size("num_hidden_layers num_attention_heads").or(Number(12.0)),
    Key::size("max_position_embeddings").or(Number(512.0)),
    Key::size("type_vocab_size").or(Number(2.0)),
    Key::size("vocab_size").or(Number(30522.0)),
    Key::integer("pad_token_id", 0..=u32::MAX as u64).or(Number(1.0)),
    Key::size("numDims").or(Number(768.0)),
    Key::size("transformerDimensions").or(Number(1024.0)),
    Key::float("layer_norm_eps").or(Number(1e-12)),
    Key::only("hidden_act", &[Text("gelu")]),
    Key::only("position_embedding_type", &[Text("absolute"), Null]),
    // The tokenizer's, of training, and of what transformers keeps in every configuration.
    Key::no_effect("bos_token_id eos_token_id attention_probs_dropout_prob hidden_dropout_prob classifier_dropout"),
    Key::no_effect("architectures model_type torch_dtype dtype transformers_version initializer_range output_past"),
    Key::no_effect("use_cache transformerDimSize imageDimSize modelBase is_decoder add_cross_attention"),
    Key::no_effect("tie_word_embeddings output_attentions output_hidden_states return_dict chunk_size_feed_forward"),
    Key::no_effect("id2label label2id problem_type gradient_checkpointing"),
];

impl Schema for Config {
    const CLASSES: &'static [Class] = &[Class { name: "MCLIPConfig", keys: &[KEYS] }];

    fn check(&self) -> Result<(), String> {
        let positions = self.pad_token_id as usize + 1 + TOKENS;
        match (self.transformer_dim == self.hidden_size, self.max_position_embeddings >= positions) {
            (false, _) => Err(format!(
                "transformerDimensions is {}, but hidden_size is {}",
                self.transformer_dim, self.hidden_size
            )),
            (_, false) => Err(format!(
                "max_position_embeddings is {}; expected at least {positions}",
                self.max_position_embeddings
            )),
            _ => Ok(()),
        }
    }
}

impl Config {
    /// Positions of a text's tokens: those that are no padding count from behind the padding's id, which is the position of
    /// padding.
    pub fn positions(&self, ids: &[u32]) -> Vec<u32> {
        let mut last = self.pad_token_id;
        let position = |&id: &u32| {
            if id == self.pad_token_id {
                return id;
            }
            last += 1;
            last
        };
        ids.iter().map(position).collect()
    }
}

/// Records the encoder for `texts` prompts of [`TOKENS`] tokens.
///
/// Inputs: `ids [N, T]`, `positions [N, T]` (see [`Config::positions`]) and `mask [N, T]`, 1 for tokens that are no padding.
/// Outputs: `text_embeds [N, D]`, not normalised, and `hidden [N, T, width]`.
///
/// *Source* diffusers' `MultilingualCLIP` with transformers' `XLMRobertaModel`.
///
/// # Errors
/// A tensor is missing or of another shape.
pub fn plan(config: &Config, source: &dyn WeightSource, texts: usize) -> Result<Plan> {
    let (width, heads) = (config.hidden_size, config.num_attention_heads);
    let graph = Graph::new("multilingual_text_encoder", source);
    let ids = graph.input_u32("ids", &[texts, TOKENS]);
    let positions = graph.input_u32("positions", &[texts, TOKENS]);
    let mask = graph.input("mask", &[texts, TOKENS]);

    let w = graph.weights();
    let embeddings = w.at("transformer.embeddings");
    let table = |name: &str, rows: usize| embeddings.tensor(&format!("{name}_embeddings.weight"), &[rows, width]);
    let types = table("token_type", config.type_vocab_size).slice(0, 0, 1).reshape(&[width]);
    let words = table("word", config.vocab_size).lookup(ids);
    let x = words + table("position", config.max_position_embeddings).lookup(positions) + types;
    let mut x = x.layer_norm(embeddings.at("LayerNorm"), config.layer_norm_eps);
    for layer in 0..config.num_hidden_layers {
        x = block(config, &w.at("transformer.encoder.layer").at(layer), x, mask);
    }
    // Keys that a query of zeros compares with all fit alike: attention gives the mean of the tokens that count.
    let query = x.slice(1, 0, 1).clamp(0.0, 0.0);
    let mean = query.attend((x, x), None, Some(mask), heads, false).reshape(&[texts, width]);
    graph.output("text_embeds", mean.linear(w.at("LinearTransformation"), config.dim));
    graph.output("hidden", x);
    graph.finish()
}

/// Attention and MLP, each with a skip connection and a normalisation behind it.
fn block<'g>(config: &Config, w: &Weights<'g>, x: Tensor<'g>, mask: Tensor<'g>) -> Tensor<'g> {
    let (width, eps) = (x.channels(), config.layer_norm_eps);
    let attention = w.at("attention");
    let [q, k, v] = ["self.query", "self.key", "self.value"].map(|name| x.linear(attention.at(name), width));
    let h = q.attend((k, v), None, Some(mask), config.num_attention_heads, false);
    let x = (x + h.linear(attention.at("output.dense"), width)).layer_norm(attention.at("output.LayerNorm"), eps);
    let h = x.linear(w.at("intermediate.dense"), config.intermediate_size).activate(activation(&config.hidden_act));
    (x + h.linear(w.at("output.dense"), width)).layer_norm(w.at("output.LayerNorm"), eps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_from_behind_the_padding() {
        let text = r#"{"pad_token_id": 1, "hidden_size": 1024, "max_position_embeddings": 514}"#;
        let config = crate::weights::config::read::<Config>(std::path::Path::new("c"), text.as_bytes()).unwrap();
        assert_eq!(config.positions(&[0, 5, 7, 2, 1, 1]), [2, 3, 4, 5, 1, 1]);
    }
}
