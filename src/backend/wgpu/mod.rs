//! The WGSL back end: any GPU with a Vulkan, Metal or DirectX 12 driver, through wgpu.
//!
//! Compiling lowers each step to launches, creates their pipelines and bind groups, and allocates one buffer per slot.
//! Replaying is one encoder and one submission per step; nothing is read back between steps, and only the step index is
//! written. This module knows launches, never operations: the geometry is in `ops/`, the arithmetic in `shaders/`.

mod adapters;
mod cache;
mod compiled;
mod device;
pub mod shaders;
mod upload;
mod weights;

pub use adapters::{Adapter, Choice, Kind, adapters};
pub use device::Traffic;

use super::{Backend, Executable, Weights, launches, own};
use crate::dtype::{Dtype, Precision};
use crate::error::{Error, Result};
use crate::ops::Tiles;
use crate::plan::{KernelUse, Plan, WeightSource, narrow};
use cache::Cache;
use compiled::{Compiled, Kernels};
use device::Device;
use std::path::Path;
use std::sync::Arc;
use weights::WgpuWeights;

/// Options of the back end.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The adapter.
    pub adapter: Choice,
    /// Storage type of tensors; kernels always compute in f32.
    pub storage: Dtype,
    /// The matmul variant; `None` is the adapter's default. [`Tiles::Matrices`] needs f16 storage.
    pub tiles: Option<Tiles>,
    /// Whether to use subgroup operations if the adapter has them.
    pub subgroups: bool,
    /// Lowers the limit of a binding, in bytes; larger weights are split, as on smaller adapters.
    pub largest_tensor: Option<u64>,
}

impl Default for Options {
    fn default() -> Self {
        Options { adapter: Choice::Best, storage: Dtype::F32, tiles: None, subgroups: true, largest_tensor: None }
    }
}

/// An adapter as a device.
pub struct Wgpu {
    device: Arc<Device>,
    options: Options,
}

impl Wgpu {
    /// Opens an adapter.
    ///
    /// # Errors
    /// There is no such adapter, it cannot be opened, or it lacks a requested feature.
    pub fn new(options: Options) -> Result<Wgpu> {
        if options.storage == Dtype::Bf16 {
            let what = "storage in bf16 on wgpu, whose shading language has no such type; f32 and f16 are possible";
            return Err(Error::Unsupported { what: what.to_owned() });
        }
        let matrices = options.tiles == Some(Tiles::Matrices);
        let device = Device::open(options.adapter, options.largest_tensor, matrices)?;
        if options.storage == Dtype::F16 && !device.adapter.f16 {
            return Err(device.error("the adapter lacks SHADER_F16; f32 is possible"));
        }
        if matrices && device.adapter.matrices.is_none() {
            return Err(device.error("the adapter lacks cooperative matrices, f16 with f32 accumulation, 8x8 or 16x16"));
        }
        if matrices && options.storage != Dtype::F16 {
            return Err(device.error("cooperative matrices multiply f16, and storage is f32"));
        }
        Ok(Wgpu { device: Arc::new(device), options })
    }

    /// Caches compiled kernels in a folder, if the adapter supports it. Has no effect after the first plan was
    /// compiled.
    pub fn cache_kernels(mut self, folder: &Path) -> Wgpu {
        if let Some(device) = Arc::get_mut(&mut self.device) {
            let cache = Cache::open(&device.device, &device.adapter, folder);
            // A failure here affects only the cache.
            device.cache = cache.filter(|_| device.check(String::new).is_ok());
        }
        self
    }

    /// The adapter that was opened.
    pub fn adapter(&self) -> &Adapter {
        &self.device.adapter
    }

    /// A plan as the adapter runs it, and the kernels of each step with why they were chosen.
    pub fn explain(&self, plan: Plan) -> (Plan, Vec<Vec<KernelUse>>) {
        let plan = narrow(plan, self.options.storage);
        let launches = compiled::lower(&plan, self.kernels().tiles);
        let kernels = launches::describe(&plan, &launches, |_, launch| launch.entry.to_owned());
        (plan, kernels)
    }

    fn kernels(&self) -> Kernels {
        let Options { tiles, subgroups, .. } = self.options;
        Kernels { tiles: self.device.adapter.tiles(tiles, subgroups), subgroups }
    }

    /// Submissions, transfers and allocations so far, over all executables.
    pub fn traffic(&self) -> Traffic {
        self.device.traffic()
    }
}

impl Backend for Wgpu {
    fn name(&self) -> String {
        let storage = self.options.storage.name();
        let tiles = self.device.adapter.tiles(self.options.tiles, self.options.subgroups);
        let Adapter { number, name, .. } = &self.device.adapter;
        format!("wgpu:{number} ({name}, {storage}, operands in {tiles:?})")
    }

    fn precision(&self) -> Precision {
        if self.options.storage == Dtype::F16 { Precision::F16 } else { Precision::F32 }
    }

    fn load(
        &self,
        plan: &Plan,
        source: &dyn WeightSource,
        held: Option<&Arc<dyn Weights>>,
    ) -> Result<Arc<dyn Weights>> {
        launches::refuse_training(self.name(), plan)?;
        let held = held.map(|weights| own::<WgpuWeights>(weights, self)).transpose()?;
        let plan = narrow(plan.clone(), self.options.storage);
        let launches = compiled::lower(&plan, self.kernels().tiles);
        Ok(Arc::new(WgpuWeights::load(&self.device, &plan, &launches, source, held.as_deref())?))
    }

    fn compile(&self, plan: Plan, weights: &Arc<dyn Weights>) -> Result<Box<dyn Executable>> {
        launches::refuse_training(self.name(), &plan)?;
        let weights = own::<WgpuWeights>(weights, self)?;
        let plan = narrow(plan, self.options.storage);
        let compiled = Compiled::new(Arc::clone(&self.device), plan, &weights, self.kernels())?;
        if let Some(cache) = &self.device.cache {
            cache.save();
        }
        Ok(Box::new(compiled))
    }
}
