//! One opened adapter: memory, pipelines, submissions, and everything that can go wrong with them.
//!
//! wgpu reports most failures through callbacks and otherwise panics in its default handler. Here a handler keeps the
//! first failure, and whoever did something asks for it afterwards with [`Device::check`]. What was created meanwhile
//! is invalid but harmless.

use super::adapters::{self, Adapter, Choice};
use super::cache::Cache;
use super::shaders::{Variant, render};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::ops::{Launch, Operand};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

/// What went to and from a device so far; tests hold back ends to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Command buffers handed over.
    pub submits: u64,
    /// Bytes written to the device, weights included.
    pub bytes_written: u64,
    /// Bytes read back.
    pub bytes_read: u64,
    /// Bytes of all slots that were allocated.
    pub slot_bytes: u64,
    /// Bytes of all weights that were allocated.
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

/// A kernel ready to run, with the layout that its bind groups need.
#[derive(Clone)]
pub(super) struct Pipeline {
    pub pipeline: wgpu::ComputePipeline,
    pub layout: wgpu::BindGroupLayout,
}

/// What went wrong and has not been told yet.
#[derive(Default)]
struct Fault {
    first: Option<String>,
    /// Whether the device is gone; from then on everything fails, and most of it silently.
    lost: bool,
}

pub(super) struct Device {
    pub device: wgpu::Device,
    pub queue: wgpu::Queue,
    pub adapter: Adapter,
    pub limits: wgpu::Limits,
    pub counters: Counters,
    fault: Arc<Mutex<Fault>>,
    pipelines: Mutex<HashMap<(&'static str, Variant, usize), Pipeline>>,
    /// Compiled kernels on disk.
    pub cache: Option<Cache>,
}

/// A mutex is only poisoned by a panic between two assignments, which leaves nothing half done here.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The leave that wgpu wants for what it calls experimental.
#[allow(unsafe_code)]
fn experiments() -> wgpu::ExperimentalFeatures {
    // SAFETY: the one such feature that is used is cooperative matrices, by kernels that naga has validated; its known
    // dangers, loads and stores out of bounds, do not arise, because matrices lie in shared memory at places that depend
    // on nothing but constants and the number of a square, which is checked (shaders/matrices.wgsl).
    unsafe { wgpu::ExperimentalFeatures::enabled() }
}

impl Device {
    /// Opens an adapter with all of its limits, the size of tensors lowered to what is asked for, and those optional
    /// features that kernels can use; cooperative `matrices` only if they are asked for.
    pub fn open(choice: Choice, largest_tensor: Option<u64>, matrices: bool) -> Result<Device> {
        let (handle, mut adapter) = adapters::choose(choice)?;
        let mut limits = handle.limits();
        // Bindings are whole words.
        adapter.largest_tensor = adapter.largest_tensor.min(largest_tensor.unwrap_or(u64::MAX)) & !3;
        limits.max_storage_buffer_binding_size = limits.max_storage_buffer_binding_size.min(adapter.largest_tensor);
        let mut useful = wgpu::Features::SHADER_F16
            | wgpu::Features::SUBGROUP
            | wgpu::Features::TIMESTAMP_QUERY
            | wgpu::Features::PIPELINE_CACHE;
        let mut experimental_features = wgpu::ExperimentalFeatures::disabled();
        if matrices && adapter.matrices.is_some() {
            useful |= wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX;
            experimental_features = experiments();
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
        let fault: Arc<Mutex<Fault>> = Arc::default();
        let (uncaptured, lost) = (Arc::clone(&fault), Arc::clone(&fault));
        device.on_uncaptured_error(Arc::new(move |e: wgpu::Error| {
            lock(&uncaptured).first.get_or_insert(match e {
                wgpu::Error::OutOfMemory { .. } => "out of memory".to_owned(),
                wgpu::Error::Validation { description, .. } | wgpu::Error::Internal { description, .. } => description,
            });
        }));
        device.set_device_lost_callback(move |_, message| {
            let mut fault = lock(&lost);
            fault.first = Some(format!("the device was lost: {message}"));
            fault.lost = true;
        });
        let limits = device.limits();
        let counters = Counters::default();
        Ok(Device { device, queue, adapter, limits, counters, fault, pipelines: Mutex::default(), cache: None })
    }

    pub fn error(&self, reason: impl Into<String>) -> Error {
        let Adapter { number, name, .. } = &self.adapter;
        Error::Device { backend: format!("wgpu:{number} ({name})"), reason: reason.into() }
    }

    /// The first failure since the last call, if any; `doing` says what the caller was at.
    pub fn check(&self, doing: impl FnOnce() -> String) -> Result<()> {
        let mut fault = lock(&self.fault);
        let first = if fault.lost { fault.first.clone() } else { fault.first.take() };
        match first {
            Some(reason) => Err(self.error(format!("{}: {reason}", doing()))),
            None => Ok(()),
        }
    }

    /// Memory for a tensor; `what` is named if it is too large for the adapter or for what is left.
    pub fn buffer(&self, what: &dyn Fn() -> String, bytes: u64) -> Result<wgpu::Buffer> {
        let (binding, buffer) = (self.limits.max_storage_buffer_binding_size, self.limits.max_buffer_size);
        for (limit, name) in [(binding, "max_storage_buffer_binding_size"), (buffer, "max_buffer_size")] {
            if bytes > limit {
                let reason = format!("{} needs {bytes} bytes; the adapter's {name} is {limit}", what());
                return Err(self.error(reason));
            }
        }
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        // Room for a vector of four, the largest element that a kernel binds.
        let size = bytes.max(16);
        let buffer =
            self.device.create_buffer(&wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false });
        self.check(|| format!("allocating {bytes} bytes for {}", what()))?;
        Ok(buffer)
    }

    /// Copies to the device; the data is taken before this returns. Lengths are multiples of four.
    pub fn write(&self, buffer: &wgpu::Buffer, offset: u64, data: &[u8]) {
        self.queue.write_buffer(buffer, offset, data);
        self.counters.bytes_written.fetch_add(data.len() as u64, Ordering::Relaxed);
    }

    /// Hands commands over; the number is for [`Device::wait`].
    pub fn submit(&self, commands: Option<wgpu::CommandBuffer>) -> wgpu::SubmissionIndex {
        self.counters.submits.fetch_add(1, Ordering::Relaxed);
        self.queue.submit(commands)
    }

    /// Waits for a submission, or for the last one.
    pub fn wait(&self, submission: Option<wgpu::SubmissionIndex>) -> Result<()> {
        let polled = self.device.poll(wgpu::PollType::Wait { submission_index: submission, timeout: None });
        self.check(|| "waiting for the device".to_owned())?;
        polled.map(|_| ()).map_err(|e| self.error(format!("waiting for the device: {e}")))
    }

    /// Copies from the device, after everything submitted so far.
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
        let mapped = receiver.try_recv().map_err(|_| self.error("reading back: the device never answered"))?;
        mapped.map_err(|e| self.error(format!("reading back: {e}")))?;
        let view = staging.get_mapped_range(..).map_err(|e| self.error(format!("reading back: {e}")))?;
        self.counters.bytes_read.fetch_add(bytes, Ordering::Relaxed);
        Ok(view.to_vec())
    }

    /// The compiled kernel of a launch; kernels are compiled once for a device. `first` is a constant of the kernel with
    /// its value, if that is not 0.
    pub fn pipeline(&self, launch: &Launch, variant: Variant, first: Option<(&str, usize)>) -> Result<Pipeline> {
        let key = (launch.entry, variant, first.map_or(0, |(_, value)| value));
        if let Some(known) = lock(&self.pipelines).get(&key) {
            return Ok(known.clone());
        }
        let text =
            render(launch.stem, variant).ok_or_else(|| self.error(format!("there is no kernel {}", launch.stem)))?;
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
            // Every kernel writes what it shares before it reads it.
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
            cache.grew();
        }
        let made = Pipeline { pipeline, layout };
        lock(&self.pipelines).insert(key, made.clone());
        Ok(made)
    }

    /// The variant of a kernel whose first tensor and output are stored like this.
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
mod tests {
    use super::*;

    /// Any adapter; without one there is nothing to be lost.
    fn device() -> Option<Device> {
        let opened = Device::open(Choice::Best, None, false);
        if let Err(reason) = &opened {
            println!("skipped: {reason}");
        }
        opened.ok()
    }

    #[test]
    fn a_lost_device_gives_errors_that_name_it_and_no_panic() {
        let Some(device) = device() else { return };
        let buffer = device.buffer(&|| "a tensor".to_owned(), 64).expect("64 bytes are there");
        device.device.destroy();
        device.write(&buffer, 0, &[0; 64]);
        let encoder = device.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        device.submit(Some(encoder.finish()));
        let text = device.read(&buffer, 64).expect_err("nothing can be read any more").to_string();
        assert!(text.contains(&device.adapter.name), "{text}");
        // The loss itself is reported when the device is next looked after, and stays.
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
        };
        let variant = device.variant(Dtype::F32, Dtype::F32, false);
        let refused = device.pipeline(&launch, variant, None).err().expect("a binding is missing").to_string();
        assert!(refused.contains("slice") && refused.contains(&device.adapter.name), "{refused}");
        launch.stem = "no such kernel";
        assert!(device.pipeline(&launch, variant, None).is_err());
    }
}
