//! An opened adapter: buffers, pipelines, submissions and error handling.
//!
//! wgpu reports most failures through a callback, whose default panics. Here the callback stores the first failure, and
//! the code that made the call retrieves it with [`Device::check`]. Objects created after a failure are invalid but
//! harmless.

use super::adapters::{self, Adapter, Choice};
use super::cache::Cache;
use super::shaders::{Variant, render};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::ops::{Launch, Operand};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

/// Counters of a device: submissions, transfers and allocations so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Submissions.
    pub submits: u64,
    /// Bytes copied to the device, weights included.
    pub bytes_written: u64,
    /// Bytes copied from the device.
    pub bytes_read: u64,
    /// Bytes allocated for slots.
    pub slot_bytes: u64,
    /// Bytes allocated for weights.
    pub weight_bytes: u64,
}

#[derive(Default)]
pub(super) struct Counters {
    pub submits: AtomicU64,
    pub bytes_written: AtomicU64,
    pub bytes_read: AtomicU64,
    pub slot_bytes: AtomicU64,
    pub weight_bytes: AtomicU64,
}

/// A compiled kernel and the layout of its bind groups.
#[derive(Clone)]
pub(super) struct Pipeline {
    pub pipeline: wgpu::ComputePipeline,
    pub layout: wgpu::BindGroupLayout,
}

/// The first failure that was not reported yet.
#[derive(Default)]
struct Failure {
    reason: Option<String>,
    /// Whether it was the memory.
    memory: bool,
    /// Whether the device was lost. From then on every call fails, mostly without an error.
    lost: bool,
}

pub(super) struct Device {
    pub device: wgpu::Device,
    pub queue: wgpu::Queue,
    pub adapter: Adapter,
    pub limits: wgpu::Limits,
    pub counters: Counters,
    failure: Arc<Mutex<Failure>>,
    pipelines: Mutex<HashMap<(&'static str, Variant, usize), Pipeline>>,
    /// Compiled kernels on disk, if the adapter can cache them.
    pub cache: Option<Cache>,
}

/// Ignores poisoning: no critical section here leaves its data inconsistent when it panics.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The token wgpu requires before it enables experimental features.
#[allow(unsafe_code)]
fn experimental_token() -> wgpu::ExperimentalFeatures {
    // SAFETY: cooperative matrices are the only experimental feature in use, by kernels that naga has validated. Their
    // known hazard is a load or store out of bounds. Here matrices are in workgroup memory at offsets that depend only
    // on constants and on the index of a square, which is checked (shaders/matrices.wgsl).
    unsafe { wgpu::ExperimentalFeatures::enabled() }
}

impl Device {
    /// Opens an adapter with all its limits and the optional features that kernels use. `largest_tensor` lowers the
    /// limit of a binding; `matrices` requests cooperative matrices.
    pub fn open(choice: Choice, largest_tensor: Option<u64>, matrices: bool) -> Result<Device> {
        let (handle, mut adapter) = adapters::choose(choice)?;
        let mut limits = handle.limits();
        // Bindings are multiples of four bytes.
        adapter.largest_tensor = adapter.largest_tensor.min(largest_tensor.unwrap_or(u64::MAX)) & !3;
        limits.max_storage_buffer_binding_size = limits.max_storage_buffer_binding_size.min(adapter.largest_tensor);
        let mut useful = wgpu::Features::SHADER_F16
            | wgpu::Features::SUBGROUP
            | wgpu::Features::TIMESTAMP_QUERY
            | wgpu::Features::PIPELINE_CACHE;
        let mut experimental_features = wgpu::ExperimentalFeatures::disabled();
        if matrices && adapter.matrices.is_some() {
            useful |= wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX;
            experimental_features = experimental_token();
        }
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("unclip"),
            required_features: handle.features() & useful,
            required_limits: limits,
            experimental_features,
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            ..wgpu::DeviceDescriptor::default()
        };
        let opened = pollster::block_on(handle.request_device(&descriptor));
        let (device, queue) = opened.map_err(|e| Error::Device {
            backend: adapter.name.clone(),
            reason: format!("the adapter cannot be opened: {e}"),
        })?;
        let failure: Arc<Mutex<Failure>> = Arc::default();
        let (uncaptured, lost) = (Arc::clone(&failure), Arc::clone(&failure));
        device.on_uncaptured_error(Arc::new(move |e: wgpu::Error| {
            let mut failure = lock(&uncaptured);
            if failure.reason.is_none() {
                failure.memory = matches!(e, wgpu::Error::OutOfMemory { .. });
                failure.reason = Some(match e {
                    wgpu::Error::OutOfMemory { .. } => "out of memory".to_owned(),
                    wgpu::Error::Validation { description, .. } | wgpu::Error::Internal { description, .. } => {
                        description
                    }
                });
            }
        }));
        device.set_device_lost_callback(move |_, message| {
            let mut failure = lock(&lost);
            failure.reason = Some(format!("the device was lost: {message}"));
            failure.memory = false;
            failure.lost = true;
        });
        let limits = device.limits();
        let counters = Counters::default();
        Ok(Device { device, queue, adapter, limits, counters, failure, pipelines: Mutex::default(), cache: None })
    }

    pub fn error(&self, reason: impl Into<String>) -> Error {
        let Adapter { number, name, .. } = &self.adapter;
        Error::Device { backend: format!("wgpu:{number} ({name})"), reason: reason.into() }
    }

    /// Returns the first failure since the last call, if any, as an error; `doing` describes what the caller did.
    pub fn check(&self, doing: impl FnOnce() -> String) -> Result<()> {
        let mut failure = lock(&self.failure);
        let reason = if failure.lost { failure.reason.clone() } else { failure.reason.take() };
        match reason {
            Some(reason) => Err(match self.error(format!("{}: {reason}", doing())) {
                Error::Device { backend, reason } if failure.memory => Error::OutOfMemory { backend, reason },
                error => error,
            }),
            None => Ok(()),
        }
    }

    /// Allocates a buffer for a tensor. The error names the tensor, `what`, if the adapter's limits or memory are
    /// exceeded.
    pub fn buffer(&self, what: &dyn Fn() -> String, bytes: u64) -> Result<wgpu::Buffer> {
        let (binding, buffer) = (self.limits.max_storage_buffer_binding_size, self.limits.max_buffer_size);
        for (limit, name) in [(binding, "max_storage_buffer_binding_size"), (buffer, "max_buffer_size")] {
            if bytes > limit {
                let reason = format!("{} needs {bytes} bytes; the adapter's {name} is {limit}", what());
                return Err(self.error(reason));
            }
        }
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        // At least a `vec4<f32>`, the largest element of a kernel's array.
        let size = bytes.max(16);
        let buffer =
            self.device.create_buffer(&wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false });
        self.check(|| format!("allocating {bytes} bytes for {}", what()))?;
        Ok(buffer)
    }

    /// Copies to the device; `data` may be reused at once. Its length is a multiple of four.
    pub fn write(&self, buffer: &wgpu::Buffer, offset: u64, data: &[u8]) {
        self.queue.write_buffer(buffer, offset, data);
        self.counters.bytes_written.fetch_add(data.len() as u64, Ordering::Relaxed);
    }

    /// Submits commands; the index is for [`Device::wait`].
    pub fn submit(&self, commands: Option<wgpu::CommandBuffer>) -> wgpu::SubmissionIndex {
        self.counters.submits.fetch_add(1, Ordering::Relaxed);
        self.queue.submit(commands)
    }

    /// Waits for a submission, or for all of them.
    pub fn wait(&self, submission: Option<wgpu::SubmissionIndex>) -> Result<()> {
        let polled = self.device.poll(wgpu::PollType::Wait { submission_index: submission, timeout: None });
        self.check(|| "waiting for the device".to_owned())?;
        polled.map(|_| ()).map_err(|e| self.error(format!("waiting for the device: {e}")))
    }

    /// Waits for all submissions, then copies from the device.
    pub fn read(&self, buffer: &wgpu::Buffer, bytes: u64) -> Result<Vec<u8>> {
        let staging = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("read back"),
            size: bytes,
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        self.check(|| format!("allocating {bytes} bytes to read back"))?;
        let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        encoder.copy_buffer_to_buffer(buffer, 0, &staging, 0, bytes);
        let submission = self.submit(Some(encoder.finish()));
        let (sender, receiver) = mpsc::channel();
        staging.map_async(wgpu::MapMode::Read, .., move |result| _ = sender.send(result));
        self.wait(Some(submission))?;
        let mapped = receiver.try_recv().map_err(|_| self.error("reading back: the device did not respond"))?;
        mapped.map_err(|e| self.error(format!("reading back: {e}")))?;
        let view = staging.get_mapped_range(..).map_err(|e| self.error(format!("reading back: {e}")))?;
        self.counters.bytes_read.fetch_add(bytes, Ordering::Relaxed);
        Ok(view.to_vec())
    }

    /// The compiled kernel of a launch, compiled once per device. `first` is the name and value of a pipeline constant,
    /// if the value is not 0.
    pub fn pipeline(&self, launch: &Launch, variant: Variant, first: Option<(&str, usize)>) -> Result<Pipeline> {
        let key = (launch.entry, variant, first.map_or(0, |(_, value)| value));
        if let Some(known) = lock(&self.pipelines).get(&key) {
            return Ok(known.clone());
        }
        let text = render(launch.stem, variant).ok_or_else(|| self.error(format!("no kernel {}", launch.stem)))?;
        let module = self.device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some(launch.stem),
            source: wgpu::ShaderSource::Wgsl(text.into()),
        });
        let entry = |(binding, kind): (usize, wgpu::BufferBindingType)| wgpu::BindGroupLayoutEntry {
            binding: binding as u32,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer { ty: kind, has_dynamic_offset: false, min_binding_size: None },
            count: None,
        };
        let storage = |t: &Operand| wgpu::BufferBindingType::Storage { read_only: !matches!(t, Operand::Output(_)) };
        let kinds = launch.tensors.iter().map(storage).chain([wgpu::BufferBindingType::Uniform]);
        let entries: Vec<wgpu::BindGroupLayoutEntry> = kinds.enumerate().map(entry).collect();
        let layout = self.device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some(launch.entry),
            entries: &entries,
        });
        let pipeline_layout = self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(launch.entry),
            bind_group_layouts: &[Some(&layout)],
            ..wgpu::PipelineLayoutDescriptor::default()
        });
        let constants: Vec<(&str, f64)> = first.iter().map(|&(name, value)| (name, value as f64)).collect();
        let options = wgpu::PipelineCompilationOptions {
            constants: &constants,
            // Every kernel writes its workgroup memory before it reads it.
            zero_initialize_workgroup_memory: false,
        };
        let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(launch.entry),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some(launch.entry),
            compilation_options: options,
            cache: self.cache.as_ref().map(|cache| &cache.pipelines),
        });
        self.check(|| format!("compiling the kernel {} for {:?}", launch.entry, variant.elem))?;
        if let Some(cache) = &self.cache {
            cache.mark_changed();
        }
        let compiled = Pipeline { pipeline, layout };
        lock(&self.pipelines).insert(key, compiled.clone());
        Ok(compiled)
    }

    /// The variant of a kernel for the types of its first tensor and its output.
    pub fn variant(&self, source: Dtype, elem: Dtype, subgroups: bool) -> Variant {
        Variant { source, elem, subgroups: subgroups && self.adapter.subgroups, side: self.adapter.matrices }
    }

    pub fn traffic(&self) -> Traffic {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Traffic {
            submits: read(&self.counters.submits),
            bytes_written: read(&self.counters.bytes_written),
            bytes_read: read(&self.counters.bytes_read),
            slot_bytes: read(&self.counters.slot_bytes),
            weight_bytes: read(&self.counters.weight_bytes),
        }
    }
}

#[cfg(test)]
#[allow(dead_code, reason = "these tests skip in one way only")]
#[path = "../../../tests/support/available.rs"]
mod available;

#[cfg(test)]
mod tests {
    use super::available::available;
    use super::*;

    /// Any adapter, if there is one.
    fn device() -> Option<Device> {
        available("wgpu", Device::open(Choice::Best, None, false))
    }

    #[test]
    fn a_lost_device_gives_errors_that_name_it_and_no_panic() {
        let Some(device) = device() else { return };
        let buffer = device.buffer(&|| "a tensor".to_owned(), 64).expect("64 bytes are there");
        device.device.destroy();
        device.write(&buffer, 0, &[0; 64]);
        let encoder = device.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        device.submit(Some(encoder.finish()));
        let text = device.read(&buffer, 64).expect_err("a lost device cannot be read").to_string();
        assert!(text.contains(&device.adapter.name), "{text}");
        // The loss is reported at the next poll, and remains.
        _ = device.wait(None);
        assert!(device.buffer(&|| "another tensor".to_owned(), 64).is_err());
    }

    #[test]
    fn more_memory_than_there_is_gives_an_error_that_names_the_tensor() {
        let Some(device) = device() else { return };
        let largest = device.limits.max_storage_buffer_binding_size.min(device.limits.max_buffer_size);
        let text = device.buffer(&|| "tensor w".to_owned(), largest + 4).expect_err("it is too large").to_string();
        assert!(text.contains("tensor w") && text.contains(&largest.to_string()), "{text}");
    }

    #[test]
    fn a_kernel_that_is_refused_gives_an_error_with_its_name() {
        let Some(device) = device() else { return };
        let mut launch = Launch {
            stem: "slice",
            entry: "slice",
            threads: 256,
            grid: [1, 1, 1],
            tensors: vec![Operand::Output(0)],
            scalars: Vec::new(),
            tiling: None,
            choice: crate::ops::Choice { tile: None, split: 1, reason: "".into() },
        };
        let variant = device.variant(Dtype::F32, Dtype::F32, false);
        let refused = device.pipeline(&launch, variant, None).err().expect("a binding is missing").to_string();
        assert!(refused.contains("slice") && refused.contains(&device.adapter.name), "{refused}");
        launch.stem = "no such kernel";
        assert!(device.pipeline(&launch, variant, None).is_err());
    }
}
