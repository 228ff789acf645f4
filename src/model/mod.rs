//! The networks, one file per folder of a diffusers checkpoint.
//!
//! Each is a function that records a [`Plan`](crate::plan::Plan): it takes the component's typed configuration, the
//! sizes of one run (how many pictures, how many steps, guided or not) and the component's tensors, and writes the
//! forward pass in the paper's words. No model holds weights or knows a back end.
//!
//! Letters: `B` pictures, `G` rows of a guidance batch (`2B`, the unconditional half first, or `B` without
//! guidance), `S` steps of the sampling loop, `T` tokens, `D` width of the CLIP embedding. Pictures are channels
//! last.

mod blocks;
pub mod decoder;
pub mod prior;
pub mod super_res;
pub mod text_encoder;
pub mod text_proj;
pub mod unet;

use crate::error::{Error, Result};
use std::fmt::Display;
use std::path::Path;

/// The sizes of one sampling run, from which a plan is recorded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Run {
    /// `B`, pictures made together.
    pub pictures: usize,
    /// `S`, steps of the sampling loop that this model takes part in.
    pub steps: usize,
    /// Formula of one step; with guidance the model sees `2B` rows.
    pub rule: crate::ops::SamplerStep,
}

impl Run {
    /// `G`, rows that the model sees at once.
    pub fn rows(&self) -> usize {
        self.pictures * if self.rule.guidance.is_some() { 2 } else { 1 }
    }
}

/// Refuses a configuration value that this engine does not implement.
fn legal<T: PartialEq + Display>(path: &Path, key: &str, found: &T, known: &[T]) -> Result<()> {
    if known.contains(found) {
        return Ok(());
    }
    let known: Vec<String> = known.iter().map(T::to_string).collect();
    Err(Error::config(path, format!("{key} is {found}; this engine knows {}", known.join(", "))))
}

/// Refuses sizes that would make empty or undivided tensors.
fn sized(path: &Path, sizes: &[(&str, usize)]) -> Result<()> {
    match sizes.iter().find(|(_, size)| *size == 0) {
        Some((key, _)) => Err(Error::config(path, format!("{key} is 0; it must be at least 1"))),
        None => Ok(()),
    }
}
