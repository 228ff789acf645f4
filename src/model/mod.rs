//! The networks, one file per folder of a diffusers checkpoint.
//!
//! Each is a function that records a [`Plan`] from the component's configuration, the sizes of a run
//! (pictures, steps, guided or not) and the component's tensors. The forward pass is written in the papers' terms. No
//! model holds weights or knows a back end.
//!
//! Letters: `B` pictures, `G` rows of a guidance batch (`2B`, the unconditional half first, or `B` without
//! guidance), `S` steps of the sampling loop, `T` tokens, `D` width of the CLIP embedding. Pictures are channels
//! last.

pub mod autoencoder;
mod blocks;
mod clip;
pub mod decoder;
pub mod image_encoder;
pub mod kandinsky;
pub mod multilingual;
pub mod prior;
pub mod stable_unclip;
pub mod super_res;
pub mod text_encoder;
pub mod text_proj;
pub mod unet;
mod unet_config;

use crate::error::Result;
use crate::ops::{COEFFICIENTS, HISTORY, Rule};
use crate::plan::{Graph, Plan, Tensor, differentiate};

/// The sizes for which a sampling network's plan is recorded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sizes {
    /// `B`, pictures in a batch.
    pub pictures: usize,
    /// `S`, steps that the tables have room for; a run may be shorter.
    pub steps: usize,
    /// Formula of one step; with guidance the model sees `2B` rows.
    pub rule: Rule,
}

/// Ends the recording of a training step: with the gradients that follow from the output `seed`, that of `model_output`.
fn differentiated(graph: Graph<'_>) -> Result<Plan> {
    let plan = graph.finish_to_train()?;
    let [output, seed] =
        ["model_output", "seed"].map(|name| plan.output(name).expect("every training step records it"));
    differentiate(plan, &[(output, seed)])
}

impl Sizes {
    /// `G`, rows of the network's batch.
    pub fn rows(&self) -> usize {
        self.pictures * if self.rule.guided() { 2 } else { 1 }
    }

    /// Records what every sampling network ends in: the step from `x_t [B, ..]` with what the network `predicted`, fed
    /// back. Inputs: `coefficients [S, B, 9]`, and `noise [S, B, ..]` or, where the kernel draws, `seeds [B, 4 | 8]`, or for
    /// a sampler without noise `history [4, B, ..]`, fed back. Outputs: `model_output`, before guidance, and `x [B, ..]`,
    /// after the step, which is returned.
    #[track_caller]
    fn sample<'g>(&self, graph: &'g Graph<'_>, predicted: Tensor<'g>, x_t: Tensor<'g>, step: Tensor<'g>) -> Tensor<'g> {
        let coefficients = graph.input("coefficients", &[self.steps, self.pictures, COEFFICIENTS]).row(step);
        let shape = x_t.shape();
        let x = match self.rule {
            Rule::Multistep(rule) => {
                let history = graph.step_input("history", &[&[HISTORY], &shape[..]].concat());
                let next = predicted.multistep(rule, x_t, coefficients, history);
                graph.feed(next.slice(0, 1, HISTORY), history);
                next.slice(0, 0, 1).reshape(&shape)
            }
            Rule::Ancestral(rule) => match rule.noise.words() {
                None => {
                    let noise = graph.input("noise", &[&[self.steps], &shape[..]].concat()).row(step);
                    predicted.sampler_step(rule, x_t, coefficients, &[noise])
                }
                Some(words) => {
                    let seeds = graph.input_u32("seeds", &[self.pictures, words]);
                    predicted.sampler_step(rule, x_t, coefficients, &[seeds, step])
                }
            },
        };
        graph.output("model_output", predicted);
        graph.output("x", x);
        graph.feed(x, x_t);
        x
    }
}
