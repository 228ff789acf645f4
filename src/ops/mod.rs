//! Provisional: the list of operations.
pub mod sampler_step;
