//! The mathematics of sampling and training: noise schedules and the coefficients of every step.
//!
//! Nothing here knows a model or a device. A [`schedule`] comes from a checkpoint's [`scheduler`] configuration;
//! [`sampler`] and [`multistep`] make of it the small tensors that a replayed step reads, [`objective`] what a training step
//! reads.

pub mod multistep;
pub mod objective;
pub mod sampler;
pub mod schedule;
pub mod scheduler;

pub use multistep::Run;
pub use objective::Objective;
pub use schedule::{Jump, Schedule};
pub use scheduler::{Sampler, SchedulerConfig};
