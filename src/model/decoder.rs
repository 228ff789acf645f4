//! The decoder: image embedding and text to a small picture, the GLIDE way with the CLIP embedding added
//! (Ramesh et al. 2022, section 2.1).

use super::Sizes;
use super::unet::{Conditions, Config, forward};
use crate::error::{Error, Result};
use crate::ops::Variance;
use crate::plan::{Graph, Plan, WeightSource};

/// Records the decoder with its sampling step; `tokens` counts the image and text tokens of the context.
///
/// Inputs: `context [G, T, cross]`, `added [G, E]`, `mask [G, T]`, `time [S, W]`, `coefficients [S, B, 9]`,
/// `noise [S, B, H, W, C]` or `seeds [B, 4]`, and per step `x_t [B, H, W, C]`, fed back. Outputs:
/// `model_output [G, H, W, C or 2C]` before guidance and `x [B, H, W, C]` after the step.
///
/// # Errors
/// A configuration that is not implemented, or a tensor that is missing or of another shape.
pub fn plan(config: &Config, source: &dyn WeightSource, run: &Sizes, tokens: usize) -> Result<Plan> {
    config.check(source.path())?;
    let learned = run.rule.variance == Variance::LearnedRange;
    let c = config.in_channels;
    if config.out_channels != if learned { 2 * c } else { c } {
        let reason = format!(
            "out_channels is {} for {c} in_channels; the decoder's scheduler asks for {}",
            config.out_channels,
            if learned { "twice as many, noise and variance" } else { "as many" },
        );
        return Err(Error::config(source.path(), reason));
    }
    let size = picture_size(config, source, config.sample_size)?;
    let (rows, pictures) = (run.rows(), run.pictures);
    let graph = Graph::new("decoder", source);
    let context = graph.input("context", &[rows, tokens, config.cross_attention_dim.unwrap_or(1)]);
    let added = graph.input("added", &[rows, config.time_embedding()]);
    let mask = graph.input("mask", &[rows, tokens]);
    let time = graph.input("time", &[run.steps, config.time_features()]);
    let x_t = graph.step_input("x_t", &[pictures, size, size, c]);
    let step = graph.step_number();

    let conditions = Conditions { time, step, added: Some(added), context: Some((context, mask)) };
    let predicted = forward(&graph.weights(), config, x_t.repeat(rows / pictures), &conditions);
    run.sample(&graph, predicted, x_t, step);
    graph.finish()
}

/// The picture's side, which the network must be able to halve as often as it does.
pub(super) fn picture_size(config: &Config, source: &dyn WeightSource, size: Option<usize>) -> Result<usize> {
    let unit = 1 << config.halvings();
    match size {
        Some(size) if size > 0 && size % unit == 0 => Ok(size),
        found => {
            let found = found.map_or("null".to_owned(), |s| s.to_string());
            let reason =
                format!("sample_size is {found}; it must be a multiple of {unit}, the smallest picture inside");
            Err(Error::config(source.path(), reason))
        }
    }
}
