//! What runs a plan.
//!
//! A [`Backend`] is one device. It [loads](Backend::load) the weights that a [`Plan`] reads, converted to the device's
//! own layouts, and [compiles](Backend::compile) the plan with them: memory for its values is reserved, kernels are
//! chosen. The [`Executable`] is replayed: the caller writes inputs, runs the first part once, then the varying part for
//! every step, and reads outputs. Loaded [`Weights`] are shared: several executables, of other batch sizes for example,
//! use one copy. A back end knows operations and memory, never models.

pub mod cpu;
#[cfg(any(feature = "cuda", feature = "cuda-emulator"))]
pub mod cuda;
#[cfg(any(feature = "cuda", feature = "cuda-emulator", feature = "wgpu"))]
mod launches;
#[cfg(feature = "wgpu")]
pub mod wgpu;

use crate::dtype::Precision;
use crate::error::{Error, Result};
use crate::plan::{Cost, Plan, WeightSource};
use std::any::Any;
use std::sync::Arc;

/// A device that can compile plans.
pub trait Backend: Send + Sync {
    /// How the device is named on the command line and in messages.
    fn name(&self) -> String;

    /// How tensors are stored and matrices multiplied.
    fn precision(&self) -> Precision {
        Precision::F32
    }

    /// The device's memory, where it can be asked for.
    fn memory_bytes(&self) -> Option<u64> {
        None
    }

    /// Loads the plan's weights. What `held` has in the layout that the plan needs is shared and not read again. The
    /// source may be dropped afterwards.
    ///
    /// # Errors
    /// A weight cannot be read, or the device lacks the memory or an operation.
    fn load(&self, plan: &Plan, source: &dyn WeightSource, held: Option<&Arc<dyn Weights>>)
    -> Result<Arc<dyn Weights>>;

    /// Prepares all steps of a plan whose weights are loaded.
    ///
    /// # Errors
    /// The weights are another plan's or back end's, or the device lacks the memory or an operation.
    fn compile(&self, plan: Plan, weights: &Arc<dyn Weights>) -> Result<Box<dyn Executable>>;

    /// Loads and compiles a plan whose weights nothing else needs.
    ///
    /// # Errors
    /// As for [`Backend::load`] and [`Backend::compile`].
    fn prepare(&self, plan: Plan, source: &dyn WeightSource) -> Result<Box<dyn Executable>> {
        let weights = self.load(&plan, source, None)?;
        self.compile(plan, &weights)
    }

    /// What the device could do at best, measured now; `None` where nothing measures it.
    fn roofline(&self) -> Option<Roofline> {
        None
    }
}

/// Weights on a device, each in the layouts that plans asked for.
pub trait Weights: Any + Send + Sync {
    /// Bytes of device memory.
    fn size_bytes(&self) -> u64;
}

/// Weights as their own back end keeps them.
fn own<W: Weights>(weights: &Arc<dyn Weights>, backend: &dyn Backend) -> Result<Arc<W>> {
    let any: Arc<dyn Any + Send + Sync> = weights.clone();
    any.downcast().map_err(|_| Error::Device { backend: backend.name(), reason: "these weights are elsewhere".into() })
}

/// The error of a plan whose weights were not loaded.
fn not_loaded(backend: String, plan: &Plan, tensor: &str) -> Error {
    Error::Device { backend, reason: format!("{}: tensor {tensor} was not loaded for this plan", plan.name) }
}

/// The two rates that bound every operation (Williams et al. 2009).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Roofline {
    /// Floating-point operations per second, a multiply-add counted as two.
    pub flops: f64,
    /// Bytes per second between memory and the device.
    pub bytes: f64,
}

impl Roofline {
    /// The share of the nearer bound that something reaches which costs so much and takes so long, and whether that bound
    /// is the rate of arithmetic.
    pub fn share(&self, cost: &Cost, seconds: f64) -> (f64, bool) {
        let (compute, memory) = (cost.flops as f64 / self.flops, cost.bytes as f64 / self.bytes);
        (compute.max(memory) / seconds, compute > memory)
    }
}

/// A compiled plan with its memory.
pub trait Executable: Send {
    /// The plan that it runs.
    fn plan(&self) -> &Plan;

    /// Bytes of device memory for the plan's values; weights are not counted.
    fn size_bytes(&self) -> u64;

    /// Fills an input.
    ///
    /// # Errors
    /// There is no input of that name and length.
    fn write(&mut self, input: &str, data: &[f32]) -> Result<()>;

    /// Fills an input of integers.
    ///
    /// # Errors
    /// There is no input of that name and length.
    fn write_u32(&mut self, input: &str, data: &[u32]) -> Result<()>;

    /// Runs the part that does not vary. To be called after the inputs have been written and before the first step.
    ///
    /// # Errors
    /// The device failed.
    fn run_once(&mut self) -> Result<()>;

    /// Runs the varying part with the input `step` set to this number, then makes the plan's feeds.
    ///
    /// # Errors
    /// The device failed.
    fn run_step(&mut self, step: u32) -> Result<()>;

    /// The present contents of an input or output.
    ///
    /// # Errors
    /// There is none of that name, or the device failed.
    fn read(&mut self, name: &str) -> Result<Vec<f32>>;

    /// Waits until the device has done what it was asked for so far.
    ///
    /// # Errors
    /// The device failed.
    fn finish(&mut self) -> Result<()> {
        Ok(())
    }

    /// Seconds spent in each step of the plan so far, if the executable was asked to measure.
    fn profile(&self) -> Option<&[f64]> {
        None
    }
}
