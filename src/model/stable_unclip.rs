//! Stable unCLIP's U-Net: Stable Diffusion 2.1's, which samples latents of a KL [autoencoder](super::autoencoder) and sees
//! a text and a noisy image embedding (Rombach et al. 2022; the embedding as in Ramesh et al. 2022).
//!
//! The embedding and its noise level are added to the time embedding; every position attends to the text's tokens, padding
//! included. Both are prepared once for all steps.

use super::Sizes;
use super::unet::{CONDITIONAL, Conditions, Config, forward};
use crate::error::{Error, Result};
use crate::plan::{Graph, Plan, WeightSource};
use crate::weights::config::Configured;

/// Records the U-Net with its sampling step for latents of `size`, height and width, and texts of so many `tokens`.
///
/// Inputs: `labels [G, 2D]`, of the unconditional half first: an image embedding and the features of its noise level;
/// `hidden [G, T, cross]`, `time [S, W]`, `coefficients [S, B, 9]`, `noise` or `seeds`, and per step `x_t [B, h, w, C]`, fed
/// back. Outputs: `model_output [G, h, w, C]` before guidance and `x [B, h, w, C]` after the step.
///
/// *Source* diffusers' `UNet2DConditionModel` with class embeddings by projection.
///
/// # Errors
/// A configuration that is not implemented, a tensor that is missing or of another shape, or a size of 0.
pub fn plan(
    config: &Configured<Config>,
    source: &dyn WeightSource,
    sizes: &Sizes,
    tokens: usize,
    size: [usize; 2],
) -> Result<Plan> {
    config.require_class(CONDITIONAL)?;
    config.require_conditions(
        "Stable unCLIP's U-Net",
        [
            ("class_embed_type", &[Some("projection")]),
            ("addition_embed_type", &[None]),
            ("encoder_hid_dim_type", &[None]),
        ],
    )?;
    let Some(labels) = config.projection_class_embeddings_input_dim else {
        return Err(config.refused("projection_class_embeddings_input_dim is null; expected the width of the labels"));
    };
    let [height, width] = size;
    if height * width == 0 {
        let reason = format!("{width}x{height} positions; expected at least 1x1");
        return Err(Error::Shape { at: "unet".to_owned(), reason });
    }
    let (rows, pictures) = (sizes.rows(), sizes.pictures);
    let graph = Graph::new("unet", source);
    let w = graph.weights();
    let labels = graph.input("labels", &[rows, labels]);
    let hidden = graph.input("hidden", &[rows, tokens, config.cross_attention_dim.unwrap_or(1)]);
    let time = graph.input("time", &[sizes.steps, config.time_features()]);
    let x_t = graph.step_input("x_t", &[pictures, height, width, config.in_channels]);
    let step = graph.step_number();

    let embedding = w.at("class_embedding");
    let added = labels.linear(embedding.at("linear_1"), config.time_embedding()).silu();
    let added = added.linear(embedding.at("linear_2"), config.time_embedding());
    let conditions = Conditions { time, step: Some(step), added: Some(added), context: Some((hidden, None)) };
    let predicted = forward(&w, config, x_t.repeat(rows / pictures), &conditions);
    sizes.sample(&graph, predicted, x_t, step);
    graph.finish()
}
