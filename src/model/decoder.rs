//! The decoder: image embedding and text to a small picture. GLIDE's U-Net, conditioned on CLIP embeddings as well
//! (Ramesh et al. 2022, section 2.1).

use super::Sizes;
use super::unet::{CONDITIONAL, Conditions, Config, forward};
use crate::error::Result;
use crate::ops::training::{HYBRID, LossPart};
use crate::plan::{Graph, Plan, Trained, WeightSource};
use crate::weights::config::Configured;

/// Records the decoder with its sampling step; `tokens` counts the image and text tokens of the context.
///
/// Inputs: `context [G, T, cross]`, `added [G, E]`, `mask [G, T]`, `time [S, W]`, `coefficients [S, B, 9]`,
/// `noise [S, B, H, W, C]` or `seeds [B, 4 | 8]`, and per step `x_t [B, H, W, C]`, fed back. Outputs:
/// `model_output [G, H, W, C or 2C]` before guidance and `x [B, H, W, C]` after the step.
///
/// # Errors
/// A configuration that is not implemented, or a tensor that is missing or of another shape.
pub fn plan(config: &Configured<Config>, source: &dyn WeightSource, sizes: &Sizes, tokens: usize) -> Result<Plan> {
    check(config)?;
    let learned = sizes.rule.learns_variance();
    let c = config.in_channels;
    let (wanted, why) = if learned { (2 * c, "noise and variance") } else { (c, "noise alone") };
    if config.out_channels != wanted {
        let found = config.out_channels;
        return Err(config.refused(format!("out_channels is {found}; the decoder's scheduler expects {wanted}, {why}")));
    }
    let size = config.picture_size(config.sample_size)?;
    let (rows, pictures) = (sizes.rows(), sizes.pictures);
    let graph = Graph::new("decoder", source);
    let context = graph.input("context", &[rows, tokens, config.cross_attention_dim.unwrap_or(1)]);
    let added = graph.input("added", &[rows, config.time_embedding()]);
    let mask = graph.input("mask", &[rows, tokens]);
    let time = graph.input("time", &[sizes.steps, config.time_features()]);
    let x_t = graph.step_input("x_t", &[pictures, size, size, c]);
    let step = graph.step_number();

    let conditions = Conditions { time, step: Some(step), added: Some(added), context: Some((context, Some(mask))) };
    let predicted = forward(&graph.weights(), config, x_t.repeat(rows / pictures), &conditions);
    sizes.sample(&graph, predicted, x_t, step);
    graph.finish()
}

/// What the configuration must say for the network to be unCLIP's decoder.
fn check(config: &Configured<Config>) -> Result<()> {
    config.require_class(CONDITIONAL)?;
    let given = [Some("identity")];
    config.require_conditions(
        "unCLIP's decoder",
        [("class_embed_type", &given), ("addition_embed_type", &[None]), ("encoder_hid_dim_type", &[None])],
    )?;
    if let Some(width) = config.encoder_hid_dim {
        return Err(config.refused(format!("encoder_hid_dim is {width}; unCLIP's decoder has null")));
    }
    Ok(())
}

/// Records a step of training: the network on a batch of its own and its loss, with the gradients of what is `trained`;
/// `tokens` counts the image and text tokens of the context. With twice as many output channels as input channels the loss
/// is that of noise and variance ([`DiffusionLoss`](crate::ops::training::DiffusionLoss)), else the squared error of the noise.
///
/// Inputs: `context [B, T, cross]`, `added [B, E]`, `mask [B, T]`, `time [B, W]` (each row's own features),
/// `x_t [B, H, W, C]`, `noise [B, H, W, C]`, and for the variance `x0 [B, H, W, C]` and `coefficients [B, 5]`. Outputs:
/// `model_output [B, H, W, C or 2C]` and `losses`, `[B]` or `[B, 2]`.
///
/// # Errors
/// A configuration that is not implemented, a tensor that is missing or of another shape, or an operation that is not
/// trained.
pub fn training_plan(
    config: &Configured<Config>,
    source: &dyn WeightSource,
    trained: &Trained,
    rows: usize,
    tokens: usize,
) -> Result<Plan> {
    check(config)?;
    let (size, c) = (config.picture_size(config.sample_size)?, config.in_channels);
    let picture = [rows, size, size, c];
    let graph = Graph::to_train("decoder", source, trained);
    let context = graph.input("context", &[rows, tokens, config.cross_attention_dim.unwrap_or(1)]);
    let added = graph.input("added", &[rows, config.time_embedding()]);
    let mask = graph.input("mask", &[rows, tokens]);
    let time = graph.input("time", &[rows, config.time_features()]);
    let x_t = graph.input("x_t", &picture);
    let noise = graph.input("noise", &picture);

    let conditions = Conditions { time, step: None, added: Some(added), context: Some((context, Some(mask))) };
    let predicted = forward(&graph.weights(), config, x_t, &conditions);
    let given = (config.out_channels == 2 * c)
        .then(|| [graph.input("x0", &picture), noise, graph.input("coefficients", &[rows, HYBRID])]);
    let loss = |part| match given {
        Some(given) => predicted.diffusion_loss(given, part),
        None => predicted.squared_error(noise, part),
    };
    graph.output("model_output", predicted);
    graph.output("losses", loss(LossPart::Values));
    graph.output("seed", loss(LossPart::Seed));
    super::differentiated(graph)
}
