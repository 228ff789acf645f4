//! Checkpoints in two folders: that of a decoder, and that of the prior that makes its image embeddings.
//!
//! Put together the prior's components have names with a prefix, as diffusers' combined pipelines save them.

use super::family::kind;
use crate::error::{Error, Result};
use crate::weights::{Checkpoint, LoadOptions};
use std::path::Path;

/// What stands before the names of the prior's components.
pub const PREFIX: &str = "prior_";
/// The prior itself, once it is part of a checkpoint.
const PRIOR: &str = "prior_prior";

/// The class of the prior that a checkpoint needs and has not.
fn lacking(checkpoint: &Checkpoint) -> Option<&'static str> {
    let of_prior = kind(checkpoint).ok()?.of_prior?;
    (checkpoint.class_name() != of_prior && !checkpoint.has(PRIOR)).then_some(of_prior)
}

/// Whether a checkpoint has its prior in another folder.
pub fn lacks_prior(checkpoint: &Checkpoint) -> bool {
    lacking(checkpoint).is_some()
}

/// Whether a checkpoint is a prior alone.
pub fn is_prior(checkpoint: &Checkpoint) -> bool {
    kind(checkpoint).is_ok_and(|kind| kind.of_prior == Some(checkpoint.class_name()))
}

/// Whether a folder is the checkpoint of a prior that this one lacks.
pub fn is_prior_of(folder: &Path, checkpoint: &Checkpoint) -> bool {
    let prior = Checkpoint::open(folder, LoadOptions::default());
    prior.is_ok_and(|prior| lacking(checkpoint) == Some(prior.class_name()))
}

/// The checkpoint with the prior of another folder.
///
/// # Errors
/// [`Error::Config`] if that is the folder of something else, such as the prior of another family.
pub fn with_prior(checkpoint: Checkpoint, prior: Checkpoint) -> Result<Checkpoint> {
    let found = prior.class_name();
    let reason = match lacking(&checkpoint) {
        Some(wanted) if wanted == found => return Ok(checkpoint.beside(PREFIX, prior)),
        Some(wanted) => format!("_class_name: expected {wanted} beside {}, found {found:?}", checkpoint.class_name()),
        None => format!("{} needs no prior of another folder", checkpoint.class_name()),
    };
    Err(Error::config(prior.path().join("model_index.json"), reason))
}
