//! Text to image with the unCLIP (DALL-E 2) architecture.

pub mod diffusion;
pub mod error;
pub mod ops;
pub mod weights;

pub use error::{Error, Result};
