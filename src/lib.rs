//! Text to image with the unCLIP (DALL-E 2) architecture.

pub mod backend;
pub mod diffusion;
pub mod error;
pub mod image;
pub mod model;
pub mod ops;
pub mod output;
pub mod pipeline;
pub mod plan;
#[cfg(feature = "tokenizer")]
pub mod tokenizer;
pub mod weights;

pub use error::{Error, Result};
