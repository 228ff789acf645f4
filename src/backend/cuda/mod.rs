//! The CUDA back end: hand-written PTX kernels, run by NVIDIA's driver or by an emulator on the CPU.
//!
//! Compiling lowers each step to launches, allocates the slots, and loads the kernels. The varying part is captured
//! into a graph once and replayed for every step without any transfer: the step index is counted on the device. This
//! module knows launches, never operations: the geometry is in `ops/`, the arithmetic in `kernels/`.

mod compiled;
mod device;
mod device_slice;
#[cfg(feature = "cuda")]
mod driver;
#[cfg(feature = "cuda-emulator")]
pub mod emulator;
pub mod kernels;
mod loading;
#[cfg(feature = "cases")]
mod sink;
mod tensor_map;
mod weights;

use super::{Backend, Executable, Weights, launches, own};
use crate::dtype::Precision;
use crate::error::Result;
use crate::ops::MatmulUnit;
use crate::plan::{KernelUse, Plan, WeightSource, join_layers, narrow, read_through, with_statistics};
use compiled::{Compiled, Lowered};
use device::Driver;
pub use device_slice::DeviceSlice;
use std::sync::Arc;
pub use tensor_map::{Swizzle, TensorMap};
use weights::CudaWeights;

/// The compute capability with warpgroup instructions. Code for them does not run on newer devices.
const HOPPER: (u32, u32) = (9, 0);

/// The units that multiply matrices in this precision, on a device of this compute capability.
fn matmul_unit(precision: Precision, capability: (u32, u32)) -> MatmulUnit {
    match precision {
        Precision::F32 => MatmulUnit::CudaCores,
        Precision::Tf32 => MatmulUnit::Tf32,
        Precision::F16 | Precision::Bf16 if capability == HOPPER => MatmulUnit::Warpgroup,
        Precision::F16 | Precision::Bf16 => MatmulUnit::Half,
    }
}

fn device_plan(plan: Plan, precision: Precision, unit: MatmulUnit) -> Plan {
    let plan = read_through(with_statistics(narrow(plan, precision.storage()), unit), unit);
    if matches!(unit, MatmulUnit::Half | MatmulUnit::Warpgroup) { join_layers(plan) } else { plan }
}

/// A plan as a device of this compute capability runs it, and the kernels of each step with why they were chosen. It is
/// what [`Cuda`] compiles; no device is needed.
pub fn explain(plan: Plan, precision: Precision, capability: (u32, u32)) -> (Plan, Vec<Vec<KernelUse>>) {
    let unit = matmul_unit(precision, capability);
    let plan = device_plan(plan, precision, unit);
    let kernels = Lowered::new(&plan, unit).describe(&plan);
    (plan, kernels)
}

/// A device that runs PTX.
pub struct Cuda {
    driver: Arc<dyn Driver>,
    precision: Precision,
    #[cfg(feature = "cuda-emulator")]
    emulator: Option<Arc<emulator::Emulator>>,
}

impl Cuda {
    /// Opens a GPU by its index, counted from 0.
    ///
    /// # Errors
    /// No driver, a driver that is too old, no such GPU, or a compute capability below 8.0.
    #[cfg(feature = "cuda")]
    pub fn new(ordinal: usize) -> Result<Cuda> {
        Ok(Cuda {
            driver: Arc::new(driver::Gpu::open(ordinal)?),
            precision: Precision::default(),
            #[cfg(feature = "cuda-emulator")]
            emulator: None,
        })
    }

    /// How many GPUs there are.
    ///
    /// # Errors
    /// There is no driver, or it is too old.
    #[cfg(feature = "cuda")]
    pub fn count() -> Result<usize> {
        driver::start("cuda").map(|(count, _)| count)
    }

    /// The emulator on the CPU, with all its checks.
    #[cfg(feature = "cuda-emulator")]
    pub fn emulator() -> Cuda {
        Cuda::emulator_of((8, 0))
    }

    /// The emulator as a Hopper GPU, compute capability 9.0, which has kernels of its own.
    #[cfg(feature = "cuda-emulator")]
    pub fn hopper_emulator() -> Cuda {
        Cuda::emulator_of(HOPPER)
    }

    /// The emulator as a device with so many bytes of memory.
    #[cfg(feature = "cuda-emulator")]
    pub fn emulator_with_memory(bytes: u64) -> Cuda {
        Cuda::emulate(emulator::Emulator::new((8, 0)).with_memory(bytes))
    }

    #[cfg(feature = "cuda-emulator")]
    fn emulator_of(capability: (u32, u32)) -> Cuda {
        Cuda::emulate(emulator::Emulator::new(capability))
    }

    #[cfg(feature = "cuda-emulator")]
    fn emulate(emulator: emulator::Emulator) -> Cuda {
        let emulator = Arc::new(emulator);
        Cuda { driver: emulator.clone(), precision: Precision::default(), emulator: Some(emulator) }
    }

    /// No device: all calls are taken and none does anything. Kernels are chosen as for a Hopper GPU. It times the host's
    /// part of loading and compiling.
    #[cfg(feature = "cases")]
    pub fn sink() -> Cuda {
        let sink = sink::Sink { capability: HOPPER, end: std::sync::atomic::AtomicU64::new(1 << 20) };
        Cuda {
            driver: Arc::new(sink),
            precision: Precision::default(),
            #[cfg(feature = "cuda-emulator")]
            emulator: None,
        }
    }

    /// The same device in another precision.
    pub fn with_precision(self, precision: Precision) -> Cuda {
        Cuda { precision, ..self }
    }

    /// The compute capability, by which kernels are chosen.
    pub fn capability(&self) -> (u32, u32) {
        self.driver.capability()
    }

    /// The units that compute matmuls.
    fn matmul_unit(&self) -> MatmulUnit {
        matmul_unit(self.precision, self.capability())
    }

    /// The plan as the device runs it.
    fn device_plan(&self, plan: Plan) -> Plan {
        device_plan(plan, self.precision, self.matmul_unit())
    }

    /// Launches and counters of each kernel on the emulator so far, by entry; empty for a real device.
    #[cfg(feature = "cuda-emulator")]
    pub fn counters(&self) -> Vec<(String, u64, emulator::Counters)> {
        self.emulator.as_ref().map(|e| e.counters()).unwrap_or_default()
    }

    /// Allocations on the emulator that are not freed; none for a real device, which keeps no count.
    #[cfg(feature = "cuda-emulator")]
    pub fn allocations(&self) -> usize {
        self.emulator.as_ref().map_or(0, |e| e.allocations())
    }
}

impl Backend for Cuda {
    fn name(&self) -> String {
        match self.precision {
            Precision::F32 => self.driver.name(),
            other => format!("{} in {}", self.driver.name(), other.name()),
        }
    }

    fn precision(&self) -> Precision {
        self.precision
    }

    fn memory_bytes(&self) -> Option<u64> {
        self.driver.memory_bytes()
    }

    fn free_memory_bytes(&self) -> Option<u64> {
        self.driver.free_memory_bytes()
    }

    fn loads_ahead(&self) -> bool {
        true
    }

    fn load(
        &self,
        plan: &Plan,
        source: &dyn WeightSource,
        held: Option<&Arc<dyn Weights>>,
    ) -> Result<Arc<dyn Weights>> {
        launches::refuse_training(self.name(), plan)?;
        let held = held.map(|weights| own::<CudaWeights>(weights, self)).transpose()?;
        let plan = self.device_plan(plan.clone());
        let matmul = self.matmul_unit();
        let Lowered { launches, .. } = Lowered::new(&plan, matmul);
        Ok(Arc::new(CudaWeights::load(&self.driver, &plan, matmul, &launches, source, held.as_deref())?))
    }

    fn compile(&self, plan: Plan, weights: &Arc<dyn Weights>) -> Result<Box<dyn Executable>> {
        launches::refuse_training(self.name(), &plan)?;
        let weights = own::<CudaWeights>(weights, self)?;
        let plan = self.device_plan(plan);
        let matmul = self.matmul_unit();
        let lowered = Lowered::new(&plan, matmul);
        Ok(Box::new(Compiled::new(Arc::clone(&self.driver), plan, matmul, &lowered, weights)?))
    }
}
