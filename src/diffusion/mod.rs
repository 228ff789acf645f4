//! The mathematics of sampling: noise schedules, the numbers of every step, seeded noise.
//!
//! Nothing here knows a model or a device. A [`schedule`] is read from a checkpoint's scheduler configuration;
//! [`sampler`] turns it and a step count into the small tensors that a replayed step reads; [`noise`] makes the
//! random numbers, the same on every device for the same seed.

pub mod noise;
pub mod sampler;
pub mod schedule;

pub use noise::{NoiseKind, NoiseSource};
pub use schedule::{Schedule, SchedulerConfig};
