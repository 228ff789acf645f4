//! A plan on the device: one allocation for all slots, and the list of calls to replay.

use super::device::{Call, CapturedGraph, Driver, LoadedKernel};
use super::device_slice::DeviceSlice;
use super::kernels;
use super::tensor_map::TensorMap;
use super::weights::{CudaWeights, Order};
use crate::backend::{Executable, LaunchTime, launches};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::ops::{Launch, MatmulUnit, Operand, Operation, elements};
use crate::plan::{KernelUse, Plan, Slots, Step, ValueId, assign};
use std::collections::HashMap;
use std::sync::Arc;

/// Alignment of allocations and of the tensors in them, for vector loads.
pub(super) const ALIGNMENT: u64 = 256;
/// Limit of a grid's second and third dimension; the first allows 2^31 - 1.
const MOST_BLOCKS: u32 = 65_535;

/// A launch and the memory it makes stale.
struct Dispatch {
    /// The step of the plan that it belongs to.
    step: usize,
    /// The full name of the kernel's entry point.
    entry: &'static str,
    call: Call,
    /// Memory that the step overwrites, at its first launch.
    fresh: Vec<DeviceSlice>,
}

/// Size of the scratch memory of a step's launches.
fn scratch_bytes<'a>(launches: impl Iterator<Item = &'a Launch>) -> u64 {
    let end = |tensor: &Operand| if let Operand::Scratch { first, count } = tensor { first + count } else { 0 };
    4 * launches.flat_map(|launch| &launch.tensors).map(end).max().unwrap_or(0) as u64
}

pub(super) struct Compiled {
    plan: Plan,
    slots: Slots,
    driver: Arc<dyn Driver>,
    /// The allocation of all slots, and their offsets in it.
    memory: u64,
    size_bytes: u64,
    offsets: Vec<u64>,
    /// Scratch memory of the launches within a step, after the slots.
    scratch: u64,
    matmul: MatmulUnit,
    weights: HashMap<(ValueId, Order), DeviceSlice>,
    /// Keeps their memory.
    _weights: Arc<CudaWeights>,
    dispatches: Vec<Dispatch>,
    /// Number of dispatches that run once.
    once: usize,
    /// The launch that increments the step index on the device; `None` if the plan has no input `step`.
    counter: Option<(&'static str, Call)>,
    /// The graph of the varying part, its feeds, and the increment of the step index.
    captured: Option<CapturedGraph>,
    /// The step index on the device.
    device_step: Option<u32>,
}

/// A plan's launches.
pub(super) struct Lowered {
    /// Each with the step that it belongs to.
    pub launches: Vec<(usize, Launch)>,
    /// Number of launches that run once.
    once: usize,
}

impl Lowered {
    pub fn new(plan: &Plan, matmul: MatmulUnit) -> Lowered {
        let (launches, once) = launches::lower(plan, |op, inputs, outputs| op.ptx(inputs, outputs, matmul));
        Lowered { launches, once }
    }

    /// The kernels of each step, by the full names of their entry points.
    pub fn describe(&self, plan: &Plan) -> Vec<Vec<KernelUse>> {
        launches::describe(plan, &self.launches, |step, launch| {
            let [source, elem] = types(plan, step, launch);
            let found = kernels::find(launch.stem, launch.entry, source, elem);
            found.map_or(launch.entry, |(_, entry)| entry).to_owned()
        })
    }
}

/// The type of a launch's tensor.
fn element(plan: &Plan, step: &Step, tensor: Operand) -> Dtype {
    match tensor {
        Operand::Input(i) | Operand::Packed(i) => plan.values[step.inputs[i].0].dtype,
        Operand::Output(i) => plan.values[step.outputs[i].0].dtype,
        Operand::Scratch { .. } => Dtype::F32,
    }
}

/// The types of a launch's first and last tensor, which decide between the variants of its kernel.
fn types(plan: &Plan, step: &Step, launch: &Launch) -> [Dtype; 2] {
    let ends = [launch.tensors.first(), launch.tensors.last()];
    ends.map(|tensor| tensor.map_or(Dtype::F32, |&tensor| element(plan, step, tensor)))
}

impl Compiled {
    pub fn new(
        driver: Arc<dyn Driver>,
        plan: Plan,
        matmul: MatmulUnit,
        lowered: &Lowered,
        held: Arc<CudaWeights>,
    ) -> Result<Compiled> {
        let weights = held.of(&plan, matmul, &lowered.launches, &driver.name())?;
        let Lowered { launches, once } = lowered;
        let slots = assign(&plan);
        let mut end = 0;
        let mut offsets = Vec::new();
        for &words in &slots.words {
            offsets.push(end);
            end += (4 * words as u64).next_multiple_of(ALIGNMENT);
        }
        let scratch = end;
        end += scratch_bytes(launches.iter().map(|(_, launch)| launch)).next_multiple_of(ALIGNMENT);
        let memory = driver.allocate(end.max(ALIGNMENT))?;
        // From here on the destructor frees the memory.
        let mut compiled = Compiled {
            plan,
            slots,
            driver,
            memory,
            offsets,
            scratch: memory + scratch,
            matmul,
            weights,
            _weights: held,
            size_bytes: end,
            dispatches: Vec::new(),
            once: *once,
            counter: None,
            captured: None,
            device_step: None,
        };
        compiled.bind(launches)?;
        Ok(compiled)
    }

    /// Kernels and arguments of all launches.
    fn bind(&mut self, launches: &[(usize, Launch)]) -> Result<()> {
        for of_step in launches.chunk_by(|(a, _), (b, _)| a == b) {
            self.bind_step(of_step)?;
        }
        if let Some(step) = self.plan.input("step") {
            let (entry, kernel) = self.load_entry("advance", "advance", [Dtype::F32; 2])?;
            let tensors = vec![self.range(step, false), self.range(step, true)];
            let label = "advance, after the last step".to_owned();
            let (maps, scalars) = (Vec::new(), vec![1]);
            let call = Call { kernel, grid: [1; 3], maps, tensors, scalars, shared_bytes: 0, cluster: 1, label };
            self.counter = Some((entry, call));
        }
        Ok(())
    }

    /// Kernels and arguments of one step's launches.
    fn bind_step(&mut self, launches: &[(usize, Launch)]) -> Result<()> {
        let index = launches[0].0;
        let step = &self.plan.steps[index];
        // Discarded before the step's first launch only: concatenation writes its output with several launches, and the
        // sum of a split matmul reads what the launch before it wrote.
        let bytes = scratch_bytes(launches.iter().map(|(_, launch)| launch));
        let scratch = DeviceSlice { address: self.scratch, bytes, written: true };
        let outputs = step.outputs.iter().map(|&output| self.range(output, true));
        let mut fresh: Vec<DeviceSlice> = outputs.chain([scratch]).collect();
        fresh.retain(|range| range.bytes > 0);
        for (_, launch) in launches {
            let (entry, kernel) = self.load(step, launch)?;
            let error = |reason: String| Error::Device { backend: self.driver.name(), reason };
            let label = format!("{}, {}", launch.entry, step.label);
            if kernel.threads != launch.threads {
                let (found, wanted) = (kernel.threads, launch.threads);
                return Err(error(format!(
                    "{label}: the kernel has blocks of {found} threads, its launch of {wanted}"
                )));
            }
            if launch.grid[0] > i32::MAX as u32 || launch.grid[1..].iter().any(|&n| n > MOST_BLOCKS) {
                return Err(error(format!("{label}: a grid of {:?} blocks is too large", launch.grid)));
            }
            let mut tensors: Vec<DeviceSlice> =
                launch.tensors.iter().map(|&tensor| self.tensor(step, tensor)).collect();
            // The first tensors have tensor maps.
            let (mut maps, mut shared_bytes, mut cluster) = (Vec::new(), 0, 1);
            if let Some(tiling) = &launch.tiling {
                let elements = launch.tensors.iter().map(|&tensor| element(&self.plan, step, tensor));
                let walks = tiling.walks.iter().zip(tensors.drain(..tiling.walks.len())).zip(elements);
                maps = walks.map(|((walk, tensor), dtype)| TensorMap::new(walk, tensor, dtype)).collect();
                (shared_bytes, cluster) = (tiling.shared_bytes, tiling.cluster);
            }
            let scalars = launch.scalars.iter().map(|s| s.bits()).collect();
            let call = Call { kernel, grid: launch.grid, maps, tensors, scalars, shared_bytes, cluster, label };
            self.dispatches.push(Dispatch { step: index, entry, call, fresh: std::mem::take(&mut fresh) });
        }
        Ok(())
    }

    /// The kernel of a launch, for the types of its first and last tensor.
    fn load(&self, step: &Step, launch: &Launch) -> Result<(&'static str, LoadedKernel)> {
        self.load_entry(launch.stem, launch.entry, types(&self.plan, step, launch))
    }

    fn load_entry(&self, stem: &str, entry: &str, [source, elem]: [Dtype; 2]) -> Result<(&'static str, LoadedKernel)> {
        let missing = || Error::Unsupported {
            what: format!("{entry} from {} to {} on {}", source.name(), elem.name(), self.driver.name()),
        };
        let (text, entry) = kernels::find(stem, entry, source, elem).ok_or_else(missing)?;
        Ok((entry, self.driver.load(text, entry)?))
    }

    /// The memory of a launch's tensor.
    fn tensor(&self, step: &Step, tensor: Operand) -> DeviceSlice {
        match tensor {
            Operand::Packed(i) => self.weights[&(self.plan.root(step.inputs[i]), Order::of(self.matmul))],
            Operand::Input(i) => self.range(step.inputs[i], false),
            Operand::Output(i) => self.range(step.outputs[i], true),
            Operand::Scratch { first, count } => {
                DeviceSlice { address: self.scratch + 4 * first as u64, bytes: 4 * count as u64, written: true }
            }
        }
    }

    /// The memory of a value.
    fn range(&self, id: ValueId, written: bool) -> DeviceSlice {
        let root = self.plan.root(id);
        match self.slots.of[root.0] {
            Some(slot) => DeviceSlice {
                address: self.memory + self.offsets[slot],
                bytes: self.plan.values[root.0].size_bytes() as u64,
                written,
            },
            None => self.weights[&(root, Order::Stored)],
        }
    }

    fn launch(&self, dispatches: &[Dispatch]) -> Result<()> {
        for Dispatch { call, fresh, .. } in dispatches {
            fresh.iter().try_for_each(|range| self.driver.discard(range.address, range.bytes))?;
            self.driver.launch(call)?;
        }
        Ok(())
    }

    /// Launches the varying part, its feeds, and the increment of the step index.
    fn launch_step(&self) -> Result<()> {
        self.launch(&self.dispatches[self.once..])?;
        self.copy_feeds()?;
        self.counter.iter().try_for_each(|(_, call)| self.driver.launch(call))
    }

    fn copy_feeds(&self) -> Result<()> {
        self.plan.feeds.iter().try_for_each(|(from, to)| {
            let (from, to) = (self.range(*from, false), self.range(*to, true));
            self.driver.copy(from.address, to.address, to.bytes)
        })
    }

    /// Makes the step index on the device `step`. In a loop it is already.
    fn set_step(&mut self, step: u32) -> Result<()> {
        if self.counter.is_some() && self.device_step != Some(step) {
            self.write_u32("step", &[step])?;
        }
        self.device_step = Some(step.wrapping_add(1));
        Ok(())
    }

    /// The memory of an input; an error unless name, type and length match.
    fn target(&self, name: &str, dtype: Dtype, length: usize) -> Result<DeviceSlice> {
        let wrong = |reason: String| Error::Shape { at: format!("{}, input {name}", self.plan.name), reason };
        let id = self.plan.input(name).ok_or_else(|| wrong("the plan has no such input".to_owned()))?;
        let value = &self.plan.values[id.0];
        if value.dtype != dtype || elements(&value.shape) != length {
            let found = format!("{length} elements of {dtype:?} for {:?} of {:?}", value.shape, value.dtype);
            return Err(wrong(found));
        }
        Ok(self.range(id, true))
    }
}

impl Executable for Compiled {
    fn plan(&self) -> &Plan {
        &self.plan
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn write(&mut self, input: &str, data: &[f32]) -> Result<()> {
        let to = self.target(input, Dtype::F32, data.len())?;
        self.driver.write(to.address, bytemuck::cast_slice(data))
    }

    fn write_u32(&mut self, input: &str, data: &[u32]) -> Result<()> {
        let to = self.target(input, Dtype::U32, data.len())?;
        if input == "step" {
            self.device_step = data.first().copied();
        }
        self.driver.write(to.address, bytemuck::cast_slice(data))
    }

    fn run_once(&mut self) -> Result<()> {
        self.launch(&self.dispatches[..self.once])
    }

    fn run_step(&mut self, step: u32) -> Result<()> {
        self.set_step(step)?;
        let captured = match self.captured {
            Some(captured) => captured,
            None => self.driver.capture(&mut || self.launch_step())?,
        };
        self.captured = Some(captured);
        self.driver.replay(captured)
    }

    fn profile_step(&mut self, step: u32) -> Result<Vec<LaunchTime>> {
        self.set_step(step)?;
        let varying = self.dispatches[self.once..].iter().map(|d| (Some(d.step), d.entry, &d.call));
        let launches: Vec<_> = varying.chain(self.counter.iter().map(|(entry, call)| (None, *entry, call))).collect();
        let seconds = self.driver.time(&launches.iter().map(|(_, _, call)| *call).collect::<Vec<_>>())?;
        self.copy_feeds()?;
        let named = launches.iter().zip(seconds);
        Ok(named.map(|(&(step, kernel, _), seconds)| LaunchTime { step, kernel, seconds }).collect())
    }

    fn finish(&mut self) -> Result<()> {
        self.driver.finish()
    }

    fn read(&mut self, name: &str) -> Result<Vec<f32>> {
        let id = self.plan.output(name).or_else(|| self.plan.input(name));
        let id = id.ok_or_else(|| Error::Shape {
            at: self.plan.name.clone(),
            reason: format!("the plan has no output or input {name}"),
        })?;
        let value = &self.plan.values[id.0];
        let length = elements(&value.shape) * value.dtype.size_bytes();
        let bytes = self.driver.read(self.range(id, false).address, length)?;
        Ok(launches::to_f32(value.dtype, &bytes))
    }
}

impl Drop for Compiled {
    fn drop(&mut self) {
        self.captured.iter().for_each(|&captured| self.driver.release(captured));
        self.driver.free(self.memory);
    }
}
