//! Text to image with the unCLIP (DALL-E 2) architecture.

pub mod diffusion;
pub mod error;
pub mod image;
#[cfg(feature = "tokenizer")]
pub mod tokenizer;
pub mod weights;

pub use error::{Error, Result};
