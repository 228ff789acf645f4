//! Super-resolution: a small picture to a large one (Ramesh et al. 2022, section 2.1; Saharia et al. 2021).
//!
//! Two networks of one architecture: the first takes all steps except the last; the second, trained to repair details,
//! takes the last. The input of both is the noisy large picture, concatenated with the small one, enlarged.

use super::Sizes;
use super::unet::{Conditions, Config, UNCONDITIONAL, forward};
use crate::error::Result;
use crate::ops::training::LossPart;
use crate::plan::{Graph, Plan, Tensor, Trained, WeightSource};
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
    let [height, width] = checked(config, size)?;
    let (pictures, c) = (sizes.pictures, config.out_channels);
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

/// Height and width, of a configuration that is one of super-resolution.
fn checked(config: &Configured<Config>, size: [Option<usize>; 2]) -> Result<[usize; 2]> {
    config.require_class(UNCONDITIONAL)?;
    let [height, width] = [config.picture_size(size[0])?, config.picture_size(size[1])?];
    let c = config.out_channels;
    if config.in_channels != 2 * c {
        let reason = format!("in_channels is {}; expected {}, noisy and enlarged picture", config.in_channels, 2 * c);
        return Err(config.refused(reason));
    }
    Ok([height, width])
}

/// Records a step of training: the network on a batch of its own and the squared error of the noise, with the gradients of
/// what is `trained`. The network is convolutional, so `size` may be that of a crop.
///
/// Inputs: `time [B, W]` (each row's own features), `x_t [B, H, W, C]`, `upscaled [B, H, W, C]` (the small picture, enlarged)
/// and `noise [B, H, W, C]`. Outputs: `model_output [B, H, W, C]` and `losses [B]`.
///
/// # Errors
/// As for [`plan`]; or an operation that is not trained.
pub fn training_plan(
    name: &str,
    config: &Configured<Config>,
    source: &dyn WeightSource,
    trained: &Trained,
    rows: usize,
    size: [usize; 2],
) -> Result<Plan> {
    let [height, width] = checked(config, size.map(Some))?;
    let picture = [rows, height, width, config.out_channels];
    let graph = Graph::to_train(name, source, trained);
    let time = graph.input("time", &[rows, config.time_features()]);
    let [x_t, upscaled, noise] = ["x_t", "upscaled", "noise"].map(|name| graph.input(name, &picture));

    let conditions = Conditions { time, step: None, added: None, context: None };
    let predicted = forward(&graph.weights(), config, Tensor::concat(&[x_t, upscaled], 3), &conditions);
    graph.output("model_output", predicted);
    graph.output("losses", predicted.squared_error(noise, LossPart::Values));
    graph.output("seed", predicted.squared_error(noise, LossPart::Seed));
    super::differentiated(graph)
}
