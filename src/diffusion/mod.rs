//! The mathematics of sampling: noise schedules and the coefficients of every step.
//!
//! Nothing here knows a model or a device. A [`schedule`] comes from a checkpoint's scheduler configuration;
//! [`sampler`] makes of it the small tensors that a replayed step reads.

pub mod sampler;
pub mod schedule;

pub use schedule::{Jump, Schedule, SchedulerConfig};
