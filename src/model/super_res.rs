//! Super-resolution: a small picture to a large one (Ramesh et al. 2022, section 2.1; Saharia et al. 2021).
//!
//! Two networks of one architecture: the first takes all steps except the last; the second, trained to repair details,
//! takes the last. The input of both is the noisy large picture, concatenated with the small one, enlarged.

use super::Sizes;
use super::unet::{Conditions, Config, UNCONDITIONAL, forward};
use crate::error::Result;
use crate::plan::{Graph, Plan, Tensor, WeightSource};
use crate::weights::config::Configured;

/// Records one of the two networks with its sampling step. `small` is the height and width of the given picture, `size` of
/// the result; `None`, which is refused, where a configuration should have said it.
///
/// Inputs: `small [B, h, w, C]`, `time [S, W]`, `coefficients [S, B, 9]`, `noise [S, B, H, W, C]` or `seeds [B, 4 | 8]`, and per
/// step `x_t [B, H, W, C]`, fed back. Outputs: `upscaled [B, H, W, C]`, `model_output [B, H, W, C]`, `x [B, H, W, C]`.
///
/// # Errors
/// A configuration that is not implemented, or a tensor that is missing or of another shape.
pub fn plan(
    name: &str,
    config: &Configured<Config>,
    source: &dyn WeightSource,
    sizes: &Sizes,
    small: [usize; 2],
    size: [Option<usize>; 2],
) -> Result<Plan> {
    config.require_class(UNCONDITIONAL)?;
    let [height, width] = [config.picture_size(size[0])?, config.picture_size(size[1])?];
    let (pictures, c) = (sizes.pictures, config.out_channels);
    if config.in_channels != 2 * c {
        let reason = format!("in_channels is {}; expected {}, noisy and enlarged picture", config.in_channels, 2 * c);
        return Err(config.refused(reason));
    }
    let graph = Graph::new(name, source);
    let small = graph.input("small", &[pictures, small[0], small[1], c]);
    let time = graph.input("time", &[sizes.steps, config.time_features()]);
    let x_t = graph.step_input("x_t", &[pictures, height, width, c]);
    let step = graph.step_number();

    let upscaled = small.bicubic(height, width);
    let conditions = Conditions { time, step: Some(step), added: None, context: None };
    let predicted = forward(&graph.weights(), config, Tensor::concat(&[x_t, upscaled], 3), &conditions);
    graph.output("upscaled", upscaled);
    sizes.sample(&graph, predicted, x_t, step);
    graph.finish()
}
