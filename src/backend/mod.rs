//! Back ends: devices that run plans.
//!
//! A [`Backend`] is one device. It [loads](Backend::load) the weights that a [`Plan`] reads, converted to the device's
//! own layouts, and [compiles](Backend::compile) the plan with them: memory for its values is reserved, kernels are
//! chosen. The [`Executable`] is replayed: the caller writes inputs, runs the first part once, then the varying part
//! for every step, and reads outputs. Loaded [`Weights`] are shared: several executables, of other batch sizes for
//! example, use one copy. A back end knows operations and memory, never models.

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

    /// The device's memory, if known.
    fn memory_bytes(&self) -> Option<u64> {
        None
    }

    /// Bytes of its memory that nothing uses at present, if known. For a device that has memory of its own, stages may
    /// stay in all of it.
    fn free_memory_bytes(&self) -> Option<u64> {
        None
    }

    /// Whether loading the weights of one stage while another one runs makes a run shorter: where the device computes by
    /// itself and the host's threads have nothing to do.
    fn loads_ahead(&self) -> bool {
        false
    }

    /// Loads the plan's weights. Those that `held` has in the right layout are shared and not read again. The source
    /// may be dropped afterwards.
    ///
    /// # Errors
    /// A weight cannot be read, the device lacks an operation, or the memory: [`Error::OutOfMemory`].
    fn load(&self, plan: &Plan, source: &dyn WeightSource, held: Option<&Arc<dyn Weights>>)
    -> Result<Arc<dyn Weights>>;

    /// Compiles a plan with its loaded weights.
    ///
    /// # Errors
    /// The weights belong to another plan or back end, or the device lacks an operation, or the memory:
    /// [`Error::OutOfMemory`].
    fn compile(&self, plan: Plan, weights: &Arc<dyn Weights>) -> Result<Box<dyn Executable>>;

    /// Loads and compiles a plan that shares no weights.
    ///
    /// # Errors
    /// As for [`Backend::load`] and [`Backend::compile`].
    fn prepare(&self, plan: Plan, source: &dyn WeightSource) -> Result<Box<dyn Executable>> {
        let weights = self.load(&plan, source, None)?;
        self.compile(plan, &weights)
    }

    /// Measures the device's roofline; `None` if the back end cannot.
    fn roofline(&self) -> Option<Roofline> {
        None
    }
}

/// Weights on a device, in the layouts of the plans that use them.
pub trait Weights: Any + Send + Sync {
    /// Bytes of device memory.
    fn size_bytes(&self) -> u64;

    /// The same weights without some tensors, by name, which are to be loaded anew. What stays is shared.
    fn without(&self, is_stale: &dyn Fn(&str) -> bool) -> Arc<dyn Weights>;
}

/// Downcasts weights to the back end's own type.
fn own<W: Weights>(weights: &Arc<dyn Weights>, backend: &dyn Backend) -> Result<Arc<W>> {
    let any: Arc<dyn Any + Send + Sync> = weights.clone();
    any.downcast()
        .map_err(|_| Error::Device { backend: backend.name(), reason: "the weights belong to another back end".into() })
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
    /// The share of the roofline that work of this cost and time reaches, and whether arithmetic bounds it.
    pub fn share(&self, cost: &Cost, seconds: f64) -> (f64, bool) {
        let (compute, memory) = (cost.flops as f64 / self.flops, cost.bytes as f64 / self.bytes);
        (compute.max(memory) / seconds, compute > memory)
    }
}

/// A compiled plan with its memory.
pub trait Executable: Send {
    /// The plan that it runs.
    fn plan(&self) -> &Plan;

    /// Bytes of device memory for the plan's values and for what is trained, without weights.
    fn size_bytes(&self) -> u64;

    /// Fills an input.
    ///
    /// # Errors
    /// There is no input of this name, type and length.
    fn write(&mut self, input: &str, data: &[f32]) -> Result<()>;

    /// Fills an input of integers.
    ///
    /// # Errors
    /// There is no input of this name, type and length.
    fn write_u32(&mut self, input: &str, data: &[u32]) -> Result<()>;

    /// Runs the part that does not depend on the step. Call it after writing the inputs and before the first step.
    ///
    /// # Errors
    /// The device failed.
    fn run_once(&mut self) -> Result<()>;

    /// Runs the varying part with the input `step` set to `step`, then copies the plan's feeds.
    ///
    /// # Errors
    /// The device failed.
    fn run_step(&mut self, step: u32) -> Result<()>;

    /// The present contents of an input or output.
    ///
    /// # Errors
    /// There is no output or input of this name, or the device failed.
    fn read(&mut self, name: &str) -> Result<Vec<f32>>;

    /// What the executable holds of a trained value.
    ///
    /// # Errors
    /// There is no trained value of this name, or the back end does not train.
    fn read_trained(&mut self, name: &str, _: TrainedPart) -> Result<Vec<f32>> {
        Err(no_training(name))
    }

    /// Sets a trained value, before the first run, or its moments, when training goes on.
    ///
    /// # Errors
    /// There is no trained value of this name and length, or the back end does not train.
    fn write_trained(&mut self, name: &str, _: TrainedPart, _: &[f32]) -> Result<()> {
        Err(no_training(name))
    }

    /// One optimisation step of all trained values with the gradients that runs have added up, which are zero
    /// afterwards. Returns the gradients' norm before clipping.
    ///
    /// # Errors
    /// The back end does not train.
    fn update(&mut self, _: &Update) -> Result<f32> {
        Err(no_training("an optimisation step"))
    }

    /// Waits until the device has executed all calls so far.
    ///
    /// # Errors
    /// The device failed.
    fn finish(&mut self) -> Result<()> {
        Ok(())
    }

    /// Runs the varying part as [`Executable::run_step`] does and measures every launch by the device's clock.
    ///
    /// # Errors
    /// The device has no clock, or failed.
    fn profile_step(&mut self, step: u32) -> Result<Vec<LaunchTime>>;
}

fn no_training(what: &str) -> Error {
    Error::Unsupported { what: format!("{what}: training runs on the CPU") }
}

/// What belongs to a trained value, each of its shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrainedPart {
    /// The value itself.
    Value,
    /// The sum of its gradients since the last optimisation step.
    Gradient,
    /// The running mean of its gradients.
    Mean,
    /// The running mean of their squares.
    Square,
    /// The running average of the value.
    Average,
}

/// One step of AdamW (Loshchilov & Hutter 2019, algorithm 2) with clipping and a running average, in the order of
/// torch's: the value decays first, and `epsilon` is added to the corrected root.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Update {
    /// The number of this step, from 1: what the moments' corrections depend on.
    pub number: u32,
    /// Runs whose gradients were added up; their mean counts.
    pub batches: u32,
    /// Learning rate.
    pub rate: f64,
    /// Decay of the two moments.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Weight decay, times the rate.
    pub decay: f64,
    /// Norm of all gradients together to which larger ones are scaled down.
    pub max_norm: Option<f64>,
    /// Decay of the running average, if one is kept. It begins with the values before the first step.
    pub average: Option<f64>,
}

/// How long one launch of a step took.
#[derive(Clone, Debug, PartialEq)]
pub struct LaunchTime {
    /// The step of the plan that it belongs to; `None` for what counts the sampling steps.
    pub step: Option<usize>,
    /// The kernel's entry point; on the CPU, which launches nothing, the operation.
    pub kernel: &'static str,
    /// Seconds.
    pub seconds: f64,
}
