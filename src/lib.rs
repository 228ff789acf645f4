//! Text to image, and image to variations, with the unCLIP (DALL-E 2) architecture, from first principles: its own
//! kernels, no framework.
//!
//! # From a prompt to pixels
//! 1. [`tokenizer`] makes 77 token ids of the prompt, [`model::text_encoder`] an embedding and a state per token.
//! 2. [`model::prior`], a transformer, samples an image embedding that fits the text. For variations of a picture,
//!    [`model::image_encoder`] makes it of that picture instead, as [`preprocess`] prepares it, and the text is empty.
//! 3. [`model::text_proj`] mixes both into what the decoder attends to.
//! 4. [`model::decoder`], a U-Net, samples a picture of 64 x 64 from noise.
//! 5. [`model::super_res`], two more U-Nets, sample the picture of 256 x 256.
//!
//! # Embedding
//! ```no_run
//! use std::ops::ControlFlow;
//! use unclip::backend::cpu::Cpu;
//! use unclip::image::Format;
//! use unclip::pipeline::{Event, Pipeline, Recipe, Request};
//! use unclip::weights::{Checkpoint, LoadOptions};
//!
//! # #[cfg(all(feature = "tokenizer", feature = "png"))]
//! # fn main() -> unclip::Result<()> {
//! let checkpoint = Checkpoint::open("karlo", LoadOptions::default())?; // or weights::default_model()
//! let pipeline = Pipeline::open(checkpoint, Box::new(Cpu::new(0)?))?;
//! let request = Request { seed: 7, pictures_per_prompt: 4, ..Request::new("a red apple") };
//! let images = pipeline.run(&request, &mut |event| {
//!     if let Event::Step { stage, done, steps, .. } = event {
//!         println!("{stage}: {done} of {steps}");
//!     }
//!     ControlFlow::Continue(()) // Break ends the run after this step
//! })?;
//! for (k, image) in images.iter().enumerate() {
//!     let recipe = pipeline.recipe(&request, k);
//!     Recipe::write(&[recipe], image, format!("apple-{k}.png"), Format::Png)?;
//! }
//! # Ok(())
//! # }
//! # #[cfg(not(all(feature = "tokenizer", feature = "png")))]
//! # fn main() {}
//! ```
//!
//! * **Threads.** A [`Pipeline`](pipeline::Pipeline) is `Send + Sync`, and several threads may run requests on it at once.
//!   The CPU back end has a thread pool of its own; a run blocks its caller.
//! * **Memory.** Pictures of a request are worked on in groups. Intermediate values of a group stay below
//!   [`Pipeline::memory_limit`](pipeline::Pipeline::memory_limit), except that one picture is always possible; weights
//!   come on top. [`Plan::totals`](plan::Plan::totals) says what both take.
//! * **Devices.** [`backend::cpu`], and with their features `backend::wgpu` and `backend::cuda`; a back end of one's own
//!   is an implementation of [`backend::Backend`].
//! * **Features.** `tokenizer` takes prompts as text; without it a caller gives
//!   [`Tokens`](model::text_encoder::Tokens). `png` reads and writes files with a picture's
//!   [`Recipe`](pipeline::Recipe), `formats` other formats than PNG, too. `default-model` makes a small model a part of the program.
//! * **Errors** are one [`Error`]. Nothing panics on user data, and nothing is printed.
//!
//! # How it is built
//! Each layer uses only those below it; no back end knows a model, no model knows a back end.
//!
//! | layer | what it does |
//! | --- | --- |
//! | [`pipeline`] | runs the stages in order and connects their inputs and outputs |
//! | [`train`] | optimisation steps of a network, whole or by low-rank adapters |
//! | [`model`], [`diffusion`] | the networks as functions that record a plan; schedules and sampling coefficients |
//! | [`plan`] | a network as a list of steps over values: the recorder, fusions, and which values share memory |
//! | [`ops`] | the operations of a step: parameters, shape rules, costs |
//! | [`backend`] | compiles a plan for a device once and replays it every step |
//! | `cases` | operations and networks to test and time back ends with (feature `cases`) |
//! | [`weights`] | checkpoints in the diffusers layout, mapped into memory and checked before use; adapters in front of them |
//! | [`noise`] | seeded Gaussian noise, the same bits on every machine |
//! | [`sniff`] | what a file is that is not what its name says, for error messages |
//!
//! # Invariants
//! * A network is recorded once for each stage and batch size; the sampling loop replays the plan. The recorder finds
//!   what does not depend on the step; that is computed once per picture.
//! * Shapes are static, tensors contiguous, pictures channels last. A step never writes to a tensor that it reads.
//! * A picture depends on checkpoint, prompt or given picture, settings and seed only: not on the number of threads,
//!   nor on the rest of its batch. Where one generator serves a run, its place in that run is a setting.
//! * User data never panics. Every failure is an [`Error`] that names file, tensor or setting, and what was expected.
//! * Training is a plan as well: [`plan::differentiate`] appends the steps that compute gradients, and nothing is taped at
//!   run time. Only trained tensors change, and only between runs.
//! * Deliberately absent: eager autograd, dynamic shapes, strided views, pickled weights.

#![warn(clippy::unwrap_used)]

pub mod backend;
#[cfg(feature = "cases")]
pub mod cases;
pub mod diffusion;
mod dtype;
pub mod error;
pub mod image;
pub mod model;
pub mod noise;
pub mod ops;
pub mod output;
pub mod pipeline;
pub mod plan;
pub mod preprocess;
pub mod sniff;
#[cfg(feature = "tokenizer")]
pub mod tokenizer;
pub mod train;
pub mod weights;

/// The README's code, compiled with the tests.
#[cfg(all(doctest, feature = "tokenizer", feature = "png", feature = "default-model"))]
#[doc = include_str!("../README.md")]
pub struct Readme;

pub use dtype::{Dtype, Precision, StoredDtype};
pub use error::{Error, Result};
