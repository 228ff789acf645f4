//! Seeded Gaussian noise, the same bits on every machine.
//!
//! A picture depends on its prompt, its seed and the noise that is asked for, so noise does not come from a device's own
//! generator. [`NoiseKind`] says whose draws the seed stands for:
//! * torch's CPU generator, in two releases: a seed gives the picture that diffusers gives. It is sequential.
//! * torch's CUDA generator, and this crate's own [`Philox`]. Both are counter-based: a value is a function of seed, draw
//!   and index, which threads and devices can compute in any order.
//!
//! Two more settings matter to who made the original: [`NoiseDtype`], the type in which that pipeline ran, and
//! [`Generators`], whether it had a generator for each picture or one for all.
//!
//! Draws in order: the prior's first latents and one draw for each step except the last, then the same for the decoder and
//! for super-resolution. Every picture has its own [`NoiseSource`], also where it takes its share of common draws. Of
//! counter-based generators the sampler step's kernel makes the draws of the steps itself, from [`Seeds`].

mod box_muller;
mod card;
mod kind;
mod parse;
mod philox;
mod source;
mod torch;
mod torch_cuda;

pub use card::Card;
pub use kind::{Generators, NoiseDtype, NoiseKind};
pub use parse::Refused;
pub use philox::{Philox, philox4x32_10};
pub use source::{NoiseSource, Seeds, slerp};
pub use torch::{TorchGenerator, TorchRelease};
pub use torch_cuda::TorchCudaGenerator;
