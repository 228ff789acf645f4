//! A compiled plan: buffers, pipelines, bind groups, and the list of dispatches to replay.

use super::device::Device;
use super::upload::Order;
use super::weights::{Part, PlanWeights, WgpuWeights};
use crate::backend::{Executable, LaunchTime, launches};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::ops::{Launch, Operand, Operation, Tiles, elements};
use crate::plan::{Origin, Plan, Slots, Step, ValueId, assign};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A launch, ready to be encoded.
struct Dispatch {
    /// The step of the plan that it belongs to.
    step: usize,
    entry: &'static str,
    pipeline: wgpu::ComputePipeline,
    bind_group: wgpu::BindGroup,
    grid: [u32; 3],
}

impl Dispatch {
    fn encode(&self, pass: &mut wgpu::ComputePass<'_>) {
        let [x, y, z] = self.grid;
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, &self.bind_group, &[]);
        pass.dispatch_workgroups(x, y, z);
    }
}

pub(super) struct Compiled {
    plan: Plan,
    slots: Slots,
    device: Arc<Device>,
    /// One buffer per slot: WebGPU tracks the use of whole buffers.
    memory: Vec<wgpu::Buffer>,
    weights: PlanWeights,
    dispatches: Vec<Dispatch>,
    /// Number of dispatches that run once.
    once: usize,
    /// The last submission. It is waited for after the next one, so the device always has work and at most two steps
    /// are in flight.
    in_flight: Option<wgpu::SubmissionIndex>,
}

/// A launch for one part of a split weight.
struct PartLaunch {
    /// The step of the plan that it belongs to.
    step: usize,
    launch: Launch,
    part: usize,
    /// Name and value of the kernel constant with the part's first row, if there are several parts.
    first: Option<(&'static str, usize)>,
}

/// Selection of kernels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernels {
    pub tiles: Tiles,
    pub subgroups: bool,
}

/// The launches of a plan, each with the step that it belongs to.
pub(super) fn lower(plan: &Plan, tiles: Tiles) -> Vec<(usize, Launch)> {
    launches::lower(plan, |op, inputs, outputs| op.wgsl(inputs, outputs[0], tiles)).0
}

impl Compiled {
    pub fn new(device: Arc<Device>, plan: Plan, weights: &WgpuWeights, kernels: Kernels) -> Result<Compiled> {
        let launches = lower(&plan, kernels.tiles);
        let weights = weights.of(&device, &plan, &launches)?;
        let slots = assign(&plan);
        let mut memory = Vec::new();
        for (slot, &words) in slots.words.iter().enumerate() {
            let bytes = 4 * words as u64;
            memory.push(device.buffer(&|| describe_slot(&plan, &slots, slot), bytes)?);
            device.counters.slot_bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        let mut compiled =
            Compiled { slots, device, memory, weights, dispatches: Vec::new(), once: 0, in_flight: None, plan };
        let runs: Vec<PartLaunch> =
            launches.into_iter().flat_map(|launch| compiled.runs(launch, kernels.tiles)).collect();
        compiled.once = runs.iter().filter(|run| run.step < compiled.plan.once).count();
        compiled.bind(&runs, kernels.subgroups)?;
        Ok(compiled)
    }

    /// The launch, or one for each part of a split weight.
    fn runs(&self, (step, launch): (usize, Launch), tiles: Tiles) -> Vec<PartLaunch> {
        let Some((weight, parts)) = self.weights.divided(&self.plan, step, &launch) else {
            return vec![PartLaunch { step, launch, part: 0, first: None }];
        };
        let part = |(part, Part { rows, .. }): (usize, &Part)| {
            let launch = weight.part(&launch, tiles, rows.len());
            PartLaunch { step, launch, part, first: Some((weight.first, rows.start)) }
        };
        parts.iter().enumerate().map(part).collect()
    }

    /// Pipelines and bind groups of all launches.
    fn bind(&mut self, runs: &[PartLaunch], subgroups: bool) -> Result<()> {
        let scalar_bytes = |launch: &Launch| (4 * launch.scalars.len() as u64).next_multiple_of(16);
        let alignment = u64::from(self.device.limits.min_uniform_buffer_offset_alignment.max(16));
        let stride = runs.iter().map(|run| scalar_bytes(&run.launch)).max().unwrap_or(16).next_multiple_of(alignment);
        let size = stride * runs.len().max(1) as u64;
        let uniforms = self.device.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("scalars"),
            size,
            usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        self.device.check(|| format!("allocating {size} bytes for the scalars of {}", self.plan.name))?;
        let mut scalars = vec![0u8; size as usize];
        for (number, PartLaunch { step: index, launch, part, first }) in runs.iter().enumerate() {
            let step = &self.plan.steps[*index];
            let offset = stride * number as u64;
            for (i, scalar) in launch.scalars.iter().enumerate() {
                scalars[offset as usize + 4 * i..][..4].copy_from_slice(&scalar.bits().to_le_bytes());
            }
            let most = self.device.limits.max_compute_workgroups_per_dimension;
            if launch.grid.iter().any(|&groups| groups > most) {
                let Step { label, .. } = step;
                let reason = format!(
                    "{label}: {} needs a grid of {:?} workgroups; the adapter's max_compute_workgroups_per_dimension is {most}",
                    launch.entry, launch.grid
                );
                return Err(self.device.error(reason));
            }
            let leading = match launch.tensors[0] {
                Operand::Input(i) | Operand::Packed(i) => step.inputs[i],
                Operand::Output(i) => step.outputs[i],
                Operand::Scratch { .. } => return Err(self.no_scratch(step)),
            };
            let dtype = |id: ValueId| self.plan.values[id.0].dtype;
            let variant = self.device.variant(dtype(leading), dtype(step.output()), subgroups);
            let pipeline = self.device.pipeline(launch, variant, *first)?;
            let tensors = launch.tensors.iter().map(|&tensor| self.binding(step, tensor, *part));
            let tensors = tensors.collect::<Result<Vec<_>>>()?;
            let uniform =
                wgpu::BufferBinding { buffer: &uniforms, offset, size: wgpu::BufferSize::new(scalar_bytes(launch)) };
            let entries: Vec<wgpu::BindGroupEntry<'_>> = tensors
                .into_iter()
                .chain([uniform])
                .enumerate()
                .map(|(i, b)| wgpu::BindGroupEntry { binding: i as u32, resource: wgpu::BindingResource::Buffer(b) })
                .collect();
            let bind_group = self.device.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some(&step.label),
                layout: &pipeline.layout,
                entries: &entries,
            });
            self.device.check(|| format!("{}: binding the tensors of {}", step.label, launch.entry))?;
            let (step, entry) = (*index, launch.entry);
            self.dispatches.push(Dispatch { step, entry, pipeline: pipeline.pipeline, bind_group, grid: launch.grid });
        }
        self.device.write(&uniforms, 0, &scalars);
        Ok(())
    }

    /// The memory of a launch's tensor, or of one part of a split weight.
    fn binding(&self, step: &Step, tensor: Operand, part: usize) -> Result<wgpu::BufferBinding<'_>> {
        let weight = |id: ValueId, order: Order| {
            let buffer = self.weights.part(self.plan.root(id), order, part);
            (buffer, buffer.size())
        };
        let (buffer, bytes) = match tensor {
            Operand::Packed(i) => weight(step.inputs[i], Order::packed(self.plan.shape(step.inputs[i]))),
            Operand::Input(i) if self.is_weight(step.inputs[i]) => weight(step.inputs[i], Order::Stored),
            Operand::Input(i) => self.memory_of(step.inputs[i]),
            Operand::Output(i) => self.memory_of(step.outputs[i]),
            Operand::Scratch { .. } => return Err(self.no_scratch(step)),
        };
        // At least a `vec4<f32>`, the largest element of a kernel's array.
        Ok(wgpu::BufferBinding { buffer, offset: 0, size: wgpu::BufferSize::new(bytes.max(16)) })
    }

    fn no_scratch(&self, step: &Step) -> Error {
        self.device.error(format!("{}: WGSL kernels use no scratch memory", step.label))
    }

    fn is_weight(&self, id: ValueId) -> bool {
        self.slots.of[self.plan.root(id).0].is_none()
    }

    /// Buffer and size of a value. Not for split weights, which only launches read, through `binding`.
    fn memory_of(&self, id: ValueId) -> (&wgpu::Buffer, u64) {
        let root = self.plan.root(id);
        let buffer = match self.slots.of[root.0] {
            Some(slot) => &self.memory[slot],
            None => self.weights.part(root, Order::Stored, 0),
        };
        (buffer, self.plan.values[root.0].size_bytes() as u64)
    }

    /// Encodes and submits a range of dispatches, and the feeds after them.
    fn run(&mut self, range: Range<usize>, feeds: bool) -> Result<()> {
        let mut encoder = self.device.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            self.dispatches[range].iter().for_each(|dispatch| dispatch.encode(&mut pass));
        }
        for (from, to) in self.plan.feeds.iter().filter(|_| feeds) {
            let ((from, bytes), (to, _)) = (self.memory_of(*from), self.memory_of(*to));
            encoder.copy_buffer_to_buffer(from, 0, to, 0, bytes);
        }
        let submission = self.device.submit(Some(encoder.finish()));
        self.device.check(|| format!("running {}", self.plan.name))?;
        match self.in_flight.replace(submission) {
            Some(earlier) => self.device.wait(Some(earlier)),
            None => Ok(()),
        }
    }

    /// Runs dispatches in a pass each, with timestamps before and after, and waits for them.
    fn run_timed(&self, dispatches: &[Dispatch]) -> Result<Vec<LaunchTime>> {
        /// Half the limit of a query set.
        const MOST: usize = 2048;
        let device = &*self.device;
        let seconds_per_tick = f64::from(device.queue.get_timestamp_period()) * 1e-9;
        let mut times = Vec::with_capacity(dispatches.len());
        for part in dispatches.chunks(MOST) {
            let count = 2 * part.len() as u32;
            let queries = device.device.create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("times"),
                ty: wgpu::QueryType::Timestamp,
                count,
            });
            let resolved = device.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("times"),
                size: 8 * u64::from(count),
                usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: false,
            });
            let mut encoder = device.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            for (i, dispatch) in part.iter().enumerate() {
                let timestamp_writes = Some(wgpu::ComputePassTimestampWrites {
                    query_set: &queries,
                    beginning_of_pass_write_index: Some(2 * i as u32),
                    end_of_pass_write_index: Some(2 * i as u32 + 1),
                });
                let descriptor = wgpu::ComputePassDescriptor { label: None, timestamp_writes };
                dispatch.encode(&mut encoder.begin_compute_pass(&descriptor));
            }
            encoder.resolve_query_set(&queries, 0..count, &resolved, 0);
            device.submit(Some(encoder.finish()));
            device.check(|| format!("timing {}", self.plan.name))?;
            let ticks: Vec<u64> = bytemuck::allocation::pod_collect_to_vec(&device.read(&resolved, resolved.size())?);
            times.extend(part.iter().zip(ticks.chunks_exact(2)).map(|(dispatch, ticks)| LaunchTime {
                step: Some(dispatch.step),
                kernel: dispatch.entry,
                seconds: ticks[1].saturating_sub(ticks[0]) as f64 * seconds_per_tick,
            }));
        }
        Ok(times)
    }

    /// Writes the step's index, where the plan has one.
    fn write_step(&mut self, step: u32) -> Result<()> {
        if self.plan.input("step").is_some() { self.write_u32("step", &[step]) } else { Ok(()) }
    }

    /// The memory of an input; an error unless name, type and length match.
    fn target(&self, name: &str, dtype: Dtype, length: usize) -> Result<&wgpu::Buffer> {
        let wrong = |reason: String| Error::Shape { at: format!("{}, input {name}", self.plan.name), reason };
        let id = self.plan.input(name).ok_or_else(|| wrong("the plan has no such input".to_owned()))?;
        let value = &self.plan.values[id.0];
        if value.dtype != dtype || elements(&value.shape) != length {
            let found = format!("{length} elements of {dtype:?} for {:?} of {:?}", value.shape, value.dtype);
            return Err(wrong(found));
        }
        Ok(self.memory_of(id).0)
    }
}

/// Describes a slot for messages: its largest value and the step that writes it.
fn describe_slot(plan: &Plan, slots: &Slots, slot: usize) -> String {
    let values = (0..plan.values.len()).filter(|&v| slots.of[v] == Some(slot));
    let Some(v) = values.max_by_key(|&v| plan.values[v].size_bytes()) else { return format!("slot {slot}") };
    let what = match &plan.values[v].origin {
        Origin::Input { name, .. } => format!("input {name}"),
        _ => match plan.steps.iter().find(|s| s.output().0 == v) {
            Some(step) => format!("the output of {} {}", step.op.name(), step.label),
            None => format!("value {v}"),
        },
    };
    format!("{what} {:?} of {}", plan.values[v].shape, plan.name)
}

impl Executable for Compiled {
    fn plan(&self) -> &Plan {
        &self.plan
    }

    fn size_bytes(&self) -> u64 {
        self.slots.bytes()
    }

    fn write(&mut self, input: &str, data: &[f32]) -> Result<()> {
        self.device.write(self.target(input, Dtype::F32, data.len())?, 0, bytemuck::cast_slice(data));
        self.device.check(|| format!("writing the input {input}"))
    }

    fn write_u32(&mut self, input: &str, data: &[u32]) -> Result<()> {
        self.device.write(self.target(input, Dtype::U32, data.len())?, 0, bytemuck::cast_slice(data));
        self.device.check(|| format!("writing the input {input}"))
    }

    fn run_once(&mut self) -> Result<()> {
        self.run(0..self.once, false)
    }

    fn run_step(&mut self, step: u32) -> Result<()> {
        self.write_step(step)?;
        self.run(self.once..self.dispatches.len(), true)
    }

    fn read(&mut self, name: &str) -> Result<Vec<f32>> {
        let id = self.plan.output(name).or_else(|| self.plan.input(name));
        let id = id.ok_or_else(|| Error::Shape {
            at: self.plan.name.clone(),
            reason: format!("the plan has no output or input {name}"),
        })?;
        let value = &self.plan.values[self.plan.root(id).0];
        let (buffer, bytes) = self.memory_of(id);
        let bytes = self.device.read(buffer, bytes)?;
        let length = elements(&value.shape) * value.dtype.size_bytes();
        Ok(launches::to_f32(value.dtype, &bytes[..length]))
    }

    fn finish(&mut self) -> Result<()> {
        match self.in_flight.take() {
            Some(last) => self.device.wait(Some(last)),
            None => Ok(()),
        }
    }

    fn profile_step(&mut self, step: u32) -> Result<Vec<LaunchTime>> {
        if !self.device.adapter.timestamps {
            return Err(self.device.error("the adapter has no timestamp queries, which time single kernels"));
        }
        self.write_step(step)?;
        let times = self.run_timed(&self.dispatches[self.once..])?;
        // The feeds alone.
        self.run(self.dispatches.len()..self.dispatches.len(), true)?;
        Ok(times)
    }
}
