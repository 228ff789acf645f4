//! Kandinsky's decoders: U-Nets that sample latents of [MoVQ](super::autoencoder) and see an image embedding, that of
//! Kandinsky 2.1 a text, too (Razzhigaev et al. 2023, section 3).
//!
//! Embeddings enter twice, through layers of the network's own: as tokens that every position attends to, and added to the
//! time embedding. Both are computed once for all steps.

use super::Sizes;
use super::unet::{CONDITIONAL, Conditions, Config, forward};
use crate::error::Result;
use crate::plan::{Graph, Plan, Tensor, WeightSource, Weights};
use crate::weights::config::Configured;

/// Tokens that an image embedding becomes, alone and beside a text. The original's classes have no key for it.
const TOKENS: [usize; 2] = [32, 10];
/// Of the normalisations of the conditions.
const EPS: f32 = 1e-5;
/// Channels and strides of the convolutions that a hint passes, all 3x3 with a SiLU between them.
const HINT: [(usize, usize); 8] = [(16, 1), (16, 1), (32, 2), (32, 1), (96, 2), (96, 1), (256, 2), (4, 1)];
/// Pixels of a hint for each position of the latents, along each side.
pub const HINT_FACTOR: usize = 8;

/// What the network sees beside the noisy latents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beside {
    /// Nothing.
    Nothing,
    /// Input `known [B, h, w, C + 1]`: the latents that stay, 0 where they do not, and a map of 1 and 0.
    Known,
    /// Input `hint [B, 8 h, 8 w, 3]` in 0..1, such as a map of depths, which becomes 4 more channels.
    Hint,
}

impl Beside {
    /// What the network of a configuration sees.
    ///
    /// # Errors
    /// The number of its input channels is none of the three.
    pub fn of(config: &Configured<Config>) -> Result<Beside> {
        let (channels, c) = (config.in_channels, latent_channels(config));
        let has_hint = config.addition_embed_type.as_deref() == Some("image_hint");
        match (has_hint, channels) {
            (false, _) if channels == c => Ok(Beside::Nothing),
            (false, _) if channels == 2 * c + 1 => Ok(Beside::Known),
            (true, _) if channels == c + HINT[HINT.len() - 1].0 => Ok(Beside::Hint),
            _ => {
                let wanted = if has_hint { format!("{}", c + 4) } else { format!("{c}, or {} to inpaint", 2 * c + 1) };
                Err(config.refused(format!("in_channels is {channels}; expected {wanted}")))
            }
        }
    }
}

/// Channels of the latents: the network predicts a variance for each, which no sampler of this family reads.
fn latent_channels(config: &Config) -> usize {
    config.out_channels / 2
}

/// Refuses a network that is no decoder of this kind; `sees_text` tells Kandinsky 2.1's from 2.2's.
///
/// # Errors
/// Names the key that tells, or a number of input channels that is none of [`Beside`].
pub fn check(config: &Configured<Config>, sees_text: bool) -> Result<()> {
    config.require_class(CONDITIONAL)?;
    let (what, addition, projection): (_, &[_], _) = match sees_text {
        true => ("Kandinsky 2.1's decoder", &[Some("text_image")], Some("text_image_proj")),
        false => ("Kandinsky 2.2's decoder", &[Some("image"), Some("image_hint")], Some("image_proj")),
    };
    config.require_conditions(
        what,
        [("class_embed_type", &[None]), ("addition_embed_type", addition), ("encoder_hid_dim_type", &[projection])],
    )?;
    if config.encoder_hid_dim.is_none() {
        let width = if sees_text { "the text states' width" } else { "the image embedding's width" };
        return Err(config.refused(format!("encoder_hid_dim is null; expected {width}")));
    }
    Beside::of(config).map(drop)
}

/// Records the decoder with its sampling step for latents of `size`, height and width, which the network must be able to
/// halve at every level; for one that sees a `text` of so many tokens, too.
///
/// Inputs: `image_embeds [G, D]`, of the unconditional half first, with a text `text_embeds [G, D]` and `hidden [G, T, E]`,
/// all tokens of which are seen, padding included; `time [S, W]`, `coefficients [S, B, 9]`, `noise` or
/// `seeds`, what [`Beside`] names, and per step `x_t [B, h, w, C]`, fed back. Outputs: `model_output [G, h, w, C]` before
/// guidance, without the variance, and `x [B, h, w, C]` after the step.
///
/// *Source* diffusers' `UNet2DConditionModel` with `ImageTimeEmbedding`, `ImageHintTimeEmbedding` and `ImageProjection`, or
/// `TextImageTimeEmbedding` and `TextImageProjection`, which do not normalise what they make of an image.
///
/// # Errors
/// A configuration that is not implemented, or a tensor that is missing or of another shape.
pub fn plan(
    config: &Configured<Config>,
    source: &dyn WeightSource,
    sizes: &Sizes,
    text: Option<usize>,
    size: [usize; 2],
) -> Result<Plan> {
    check(config, text.is_some())?;
    let (states, cross) = (config.encoder_hid_dim.unwrap_or(1), config.cross_attention_dim.unwrap_or(1));
    // Beside a text no key has the image embedding's width: the class takes that of the context.
    let width = if text.is_some() { cross } else { states };
    let [height, wide] = size;
    config.picture_size(Some(height))?;
    config.picture_size(Some(wide))?;
    let beside = Beside::of(config)?;
    let (rows, pictures, c) = (sizes.rows(), sizes.pictures, latent_channels(config));
    let graph = Graph::new("decoder", source);
    let w = graph.weights();
    let image = graph.input("image_embeds", &[rows, width]);
    let time = graph.input("time", &[sizes.steps, config.time_features()]);
    let x_t = graph.step_input("x_t", &[pictures, height, wide, c]);
    let step = graph.step_number();

    let (projection, addition) = (w.at("encoder_hid_proj"), w.at("add_embedding"));
    let count = TOKENS[usize::from(text.is_some())];
    let tokens = image.linear(projection.at("image_embeds"), count * cross).reshape(&[rows, count, cross]);
    let added = image.linear(addition.at("image_proj"), config.time_embedding());
    let (tokens, added) = match text {
        None => (tokens.layer_norm(projection.at("norm"), EPS), added.layer_norm(addition.at("image_norm"), EPS)),
        Some(length) => {
            let hidden = graph.input("hidden", &[rows, length, states]).linear(projection.at("text_proj"), cross);
            let text = graph.input("text_embeds", &[rows, width]);
            let text = text.linear(addition.at("text_proj"), config.time_embedding());
            (Tensor::concat(&[tokens, hidden], 1), text.layer_norm(addition.at("text_norm"), EPS) + added)
        }
    };

    let x = match beside {
        Beside::Nothing => x_t,
        Beside::Known => Tensor::concat(&[x_t, graph.input("known", &[pictures, height, wide, c + 1])], 3),
        Beside::Hint => {
            let sides = [HINT_FACTOR * height, HINT_FACTOR * wide];
            let hint = graph.input("hint", &[pictures, sides[0], sides[1], 3]);
            Tensor::concat(&[x_t, hint_features(&addition.at("input_hint_block"), hint)], 3)
        }
    };
    let conditions = Conditions { time, step: Some(step), added: Some(added), context: Some((tokens, None)) };
    let predicted = forward(&w, config, x.repeat(rows / pictures), &conditions);
    sizes.sample(&graph, predicted.slice(3, 0, c), x_t, step);
    graph.finish()
}

/// The hint's channels beside the latents. Activations lie between the convolutions in the original's list, so that these
/// have every other number.
fn hint_features<'g>(w: &Weights<'g>, hint: Tensor<'g>) -> Tensor<'g> {
    HINT.iter().enumerate().fold(hint, |x, (i, &(channels, stride))| {
        let x = if i > 0 { x.silu() } else { x };
        x.conv(w.at(2 * i), channels, 3, stride, [1, 1], true)
    })
}
