//! The mathematics of sampling: noise schedules and the numbers of every step.
//!
//! Nothing here knows a model or a device. A [`schedule`] is read from a checkpoint's scheduler configuration;
//! [`sampler`] turns it and a step count into the small tensors that a replayed step reads.

pub mod sampler;
pub mod schedule;

pub use schedule::{Schedule, SchedulerConfig};
