//! The diffusion prior: a text's embedding to an image's embedding.
//!
//! A causal transformer over the text tokens, the text embedding, the time, the noisy image embedding and a learned
//! query. The last token predicts the clean image embedding (Ramesh et al. 2022, section 2.2).
//!
//! Attention is causal: keys and values of the text tokens and the text embedding are the same in all steps. A step
//! computes the last three tokens only.

use super::Sizes;
use crate::error::Result;
use crate::ops::Activation;
use crate::ops::training::LossPart;
use crate::plan::{Graph, Plan, Tensor, Trained, WeightSource, Weights};
use crate::weights::config::Literal::{Null, Number, Text};
use crate::weights::config::{Class, Key, Schema};
use serde::Deserialize;

/// `prior/config.json`.
#[derive(Clone, Debug, Deserialize)]
#[allow(missing_docs)] // the checkpoint's own names
pub struct Config {
    pub num_attention_heads: usize,
    pub attention_head_dim: usize,
    pub num_layers: usize,
    pub embedding_dim: usize,
    pub num_embeddings: usize,
    pub time_embed_dim: Option<usize>,
    pub embedding_proj_dim: Option<usize>,
    pub clip_embed_dim: Option<usize>,
}

const KEYS: &[Key] = &[
    Key::size("num_attention_heads").or(Number(32.0)),
    Key::size("attention_head_dim").or(Number(64.0)),
    Key::size("num_layers").or(Number(20.0)),
    Key::size("embedding_dim").or(Number(768.0)),
    Key::size("num_embeddings").or(Number(77.0)),
    Key::size("time_embed_dim embedding_proj_dim clip_embed_dim").nullable(),
    Key::only("additional_embeddings", &[Number(4.0)]),
    Key::only("time_embed_act_fn", &[Text("silu"), Text("swish")]),
    Key::only("encoder_hid_proj_type", &[Text("linear")]),
    Key::only("added_emb_type", &[Text("prd")]),
    Key::only("norm_in_type embedding_proj_norm_type", &[Null]),
    Key::no_effect("dropout"),
];

impl Schema for Config {
    const CLASSES: &'static [Class] = &[Class { name: "PriorTransformer", keys: &[KEYS] }];

    fn check(&self) -> Result<(), String> {
        let widths = [
            ("time_embed_dim", self.time_embed_dim, self.inner()),
            ("embedding_proj_dim", self.embedding_proj_dim, self.embedding_dim),
            ("clip_embed_dim", self.clip_embed_dim, self.embedding_dim),
        ];
        match widths.into_iter().find(|(_, found, only)| found.is_some_and(|found| found != *only)) {
            Some((key, Some(found), only)) => Err(format!("{key} is {found}; this engine knows null, {only}")),
            _ => Ok(()),
        }
    }
}

impl Config {
    /// Width of the transformer.
    pub fn inner(&self) -> usize {
        self.num_attention_heads * self.attention_head_dim
    }
}

/// Records the prior with its sampling step.
///
/// Inputs: `text_embeds [G, D]`, `hidden [G, T, D]`, `mask [G, T]` (1 for bos, text and eos), `time [S, inner]`
/// (sinusoidal features of the timesteps), `coefficients [S, B, 9]`, `noise [S, B, D]` or `seeds [B, 4 | 8]`, and per step
/// `x_t [B, D]`, fed back from step to step. Outputs: `model_output [G, D]` before guidance, `x [B, D]` after the step, and
/// `image_embeds [B, D]`, which is `x` in the image encoder's space, valid after the last step.
///
/// # Errors
/// A tensor is missing or of another shape.
pub fn plan(config: &Config, source: &dyn WeightSource, sizes: &Sizes) -> Result<Plan> {
    let (dim, inner, tokens) = (config.embedding_dim, config.inner(), config.num_embeddings);
    let (rows, pictures) = (sizes.rows(), sizes.pictures);
    let graph = Graph::new("prior", source);
    let text_embeds = graph.input("text_embeds", &[rows, dim]);
    let hidden = graph.input("hidden", &[rows, tokens, dim]);
    let mask = graph.input("mask", &[rows, tokens]);
    let time = graph.input("time", &[sizes.steps, inner]);
    let x_t = graph.step_input("x_t", &[pictures, dim]);
    let step = graph.step_number();

    let w = graph.weights();
    let time = time_embedding(&w, config, time).row(step).reshape(&[1, inner]).repeat(rows);
    let given = Given { text_embeds, hidden, mask, time, x_t: x_t.repeat(rows / pictures) };
    let predicted = forward(&w, config, &given);
    let x = sizes.sample(&graph, predicted, x_t, step);
    let [mean, std] = ["clip_mean", "clip_std"].map(|name| w.tensor(name, &[1, dim]).reshape(&[dim]));
    graph.output("image_embeds", x.multiply(std) + mean);
    graph.finish()
}

/// Records a step of training: the network on a batch of its own and the squared error of what it predicts, with the
/// gradients of what is `trained`.
///
/// Inputs: `text_embeds [B, D]`, `hidden [B, T, D]`, `mask [B, T]`, `time [B, inner]` (each row's own features), `x_t [B, D]`
/// and `target [B, D]`, the clean embedding, normalised. Outputs: `model_output [B, D]` and `losses [B]`.
///
/// # Errors
/// A tensor is missing or of another shape, or nothing that is recorded is trained.
pub fn training_plan(config: &Config, source: &dyn WeightSource, trained: &Trained, rows: usize) -> Result<Plan> {
    let (dim, inner, tokens) = (config.embedding_dim, config.inner(), config.num_embeddings);
    let graph = Graph::to_train("prior", source, trained);
    let w = graph.weights();
    let given = Given {
        text_embeds: graph.input("text_embeds", &[rows, dim]),
        hidden: graph.input("hidden", &[rows, tokens, dim]),
        mask: graph.input("mask", &[rows, tokens]),
        time: time_embedding(&w, config, graph.input("time", &[rows, inner])),
        x_t: graph.input("x_t", &[rows, dim]),
    };
    let target = graph.input("target", &[rows, dim]);
    let predicted = forward(&w, config, &given);
    graph.output("model_output", predicted);
    graph.output("losses", predicted.squared_error(target, LossPart::Values));
    graph.output("seed", predicted.squared_error(target, LossPart::Seed));
    super::differentiated(graph)
}

/// What the network reads, a row of everything for each row of its batch.
struct Given<'g> {
    text_embeds: Tensor<'g>,
    hidden: Tensor<'g>,
    mask: Tensor<'g>,
    /// The time's embedding, `[G, inner]`.
    time: Tensor<'g>,
    x_t: Tensor<'g>,
}

fn time_embedding<'g>(w: &Weights<'g>, config: &Config, features: Tensor<'g>) -> Tensor<'g> {
    let (w, inner) = (w.at("time_embedding"), config.inner());
    features.linear(w.at("linear_1"), inner).silu().linear(w.at("linear_2"), inner)
}

/// The network: the predicted embedding, `[G, D]`.
fn forward<'g>(w: &Weights<'g>, config: &Config, given: &Given<'g>) -> Tensor<'g> {
    let (dim, inner, tokens) = (config.embedding_dim, config.inner(), config.num_embeddings);
    let &Given { text_embeds, hidden, mask, time, x_t } = given;
    let rows = x_t.dim(0);
    let positions = w.tensor("positional_embedding", &[1, tokens + 4, inner]);
    let position = |at: usize, length: usize| positions.slice(1, at, length).reshape(&[length, inner]);

    let text = hidden.linear(w.at("encoder_hidden_states_proj"), inner);
    let embedding = text_embeds.linear(w.at("embedding_proj"), inner).reshape(&[rows, 1, inner]);
    let mut prefix = Tensor::concat(&[text, embedding], 1) + position(0, tokens + 1);

    let image = x_t.linear(w.at("proj_in"), inner);
    let query = w.tensor("prd_embedding", &[1, 1, inner]).repeat(rows);
    let late = [time, image, query].map(|t| t.reshape(&[rows, 1, inner]));
    let mut late = Tensor::concat(&late, 1) + position(tokens + 1, 3);

    for layer in 0..config.num_layers {
        let w = w.at("transformer_blocks").at(layer);
        let last = layer + 1 == config.num_layers;
        let block = Block { w: &w, heads: config.num_attention_heads, mask };
        let (h, kept) = block.keys_and_values(prefix);
        if !last {
            prefix = block.finish(prefix, block.query(h).attend(kept, None, Some(mask), block.heads, true));
        }
        let (h, own) = block.keys_and_values(late);
        // Only the last token's output is read; it attends to all tokens.
        let (x, h) = if last { (late.slice(1, 2, 1), h.slice(1, 2, 1)) } else { (late, h) };
        late = block.finish(x, block.query(h).attend(own, Some(kept), Some(block.mask), block.heads, !last));
    }
    let late = late.reshape(&[rows, inner]).layer_norm(w.at("norm_out"), 1e-5);
    late.linear(w.at("proj_to_clip_embeddings"), dim)
}

/// One transformer block, in parts: the prefix and the late tokens pass through it separately.
struct Block<'a, 'g> {
    w: &'a Weights<'g>,
    heads: usize,
    mask: Tensor<'g>,
}

impl<'g> Block<'_, 'g> {
    /// The normalised tokens, and their keys and values.
    fn keys_and_values(&self, x: Tensor<'g>) -> (Tensor<'g>, (Tensor<'g>, Tensor<'g>)) {
        let width = x.channels();
        let h = x.layer_norm(self.w.at("norm1"), 1e-5);
        (h, (h.linear(self.w.at("attn1.to_k"), width), h.linear(self.w.at("attn1.to_v"), width)))
    }

    fn query(&self, h: Tensor<'g>) -> Tensor<'g> {
        h.linear(self.w.at("attn1.to_q"), h.channels())
    }

    /// The residual additions: attention's output, then the MLP's.
    fn finish(&self, x: Tensor<'g>, attended: Tensor<'g>) -> Tensor<'g> {
        let width = x.channels();
        let x = x + attended.linear(self.w.at("attn1.to_out.0"), width);
        let h = x.layer_norm(self.w.at("norm3"), 1e-5);
        let h = h.linear(self.w.at("ff.net.0.proj"), 4 * width).activate(Activation::Gelu);
        x + h.linear(self.w.at("ff.net.2"), width)
    }
}
