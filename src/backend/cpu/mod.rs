//! The CPU back end: channels last, f32 arithmetic, threads by rayon.
//!
//! Loading packs the weights of matrix products (`panels`, or `amx` for Intel's matrix unit) and keeps the others as f32.
//! Running is a loop over the
//! plan's steps, with the only `match` over [`Op`] in `Compiled::run`. Each operation has a file with the same stem as
//! under `ops/`.
//!
//! Results do not depend on the number of threads: work is divided by output element, and long sums are divided into
//! chunks whose size depends only on the shapes.

mod amx;
mod arena;
mod attention;
mod concat;
mod conv2d;
mod convert;
mod embed;
mod geglu;
mod group_norm;
mod lanes;
mod layer_norm;
mod linear;
mod matmul;
mod modulate;
mod multistep;
mod panels;
mod pointwise;
mod resize;
mod roofline;
mod sampler_step;
mod simd;
mod slice;
mod tile;
mod training;
mod weights;
mod winograd;
mod winograd_transform;

pub use tile::Isa;

use super::{Backend, Executable, LaunchTime, Roofline, TrainedPart, Update, Weights, not_loaded, own};
use crate::dtype::Dtype;
use crate::dtype::Precision;
use crate::error::{Error, Result};
use crate::ops::{Op, Operation, elements};
use crate::plan::{Plan, Slots, Step, TensorData, ValueId, WeightSource, assign};
use amx::{Forms, Geometry};
use arena::Arena;
use lanes::AlignedVec;
use panels::{PanelFormat, Panels};
use rayon::prelude::*;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;
use weights::{CpuWeights, Packed, Stored, wanted};

/// The CPU as a device.
pub struct Cpu {
    pool: Arc<rayon::ThreadPool>,
    machine: Machine,
}

/// Properties of the machine that operations use.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// Instruction set.
    pub isa: Isa,
    /// Number of threads.
    pub threads: usize,
    /// How the weights of matrix products are packed.
    pub weights: Packing,
}

/// How the weights of matrix products are packed, and so how they are multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Packing {
    /// In panels, for vectors.
    Panels(PanelFormat),
    /// In bf16, for the matrix unit.
    Tiles,
}

/// Threads that the process may use at once.
fn available_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

impl Cpu {
    /// The CPU with `threads` threads; 0 means as many as the process may use. No more than [`Cpu::most_threads`] are
    /// started: beyond that they only wait for each other.
    ///
    /// # Errors
    /// The operating system refuses to start the threads.
    pub fn new(threads: usize) -> Result<Cpu> {
        Cpu::with_isa(threads, Isa::detect())
    }

    /// The CPU with a given instruction set, for tests and benchmarks.
    ///
    /// # Errors
    /// As for [`Cpu::new`]; or the machine lacks the instructions.
    pub fn with_isa(threads: usize, isa: Isa) -> Result<Cpu> {
        let failed = |reason: String| Error::Device { backend: "cpu".to_owned(), reason };
        if !isa.available() {
            return Err(failed(format!("this machine has no {}", isa.name())));
        }
        let threads = if threads == 0 { available_threads() } else { threads.min(Cpu::most_threads()) };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).thread_name(|i| format!("cpu-{i}")).build();
        let pool = pool.map_err(|e| failed(format!("cannot start {threads} threads: {e}")))?;
        Ok(Cpu {
            pool: Arc::new(pool),
            machine: Machine { isa, threads, weights: Packing::Panels(PanelFormat::Stored) },
        })
    }

    /// Most threads that are started: four times as many as the process may use.
    pub fn most_threads() -> usize {
        4 * available_threads()
    }

    /// Sets the precision, f32 or bf16. In bf16 the weights of matrix products take half the memory. With [`Isa::Amx`] all
    /// matrix products multiply bf16 by bf16 on the matrix unit. On AMD processors with fast bf16 dot products, linear
    /// layers and 1x1 convolutions use them, at twice the rate; elsewhere the weights are widened to f32 block by block.
    ///
    /// # Errors
    /// Any other precision.
    pub fn with_precision(mut self, precision: Precision) -> Result<Cpu> {
        let pairs = self.machine.isa.has_avx512() && tile::pairs_are_fast();
        self.machine.weights = match precision {
            Precision::F32 => Packing::Panels(PanelFormat::Stored),
            Precision::Bf16 if self.machine.isa == Isa::Amx => Packing::Tiles,
            Precision::Bf16 if pairs => Packing::Panels(PanelFormat::Bf16Pairs),
            Precision::Bf16 => Packing::Panels(PanelFormat::Bf16),
            Precision::F16 | Precision::Tf32 => {
                let what = format!("{precision} on the CPU, which computes in f32 or bf16");
                return Err(Error::Unsupported { what });
            }
        };
        Ok(self)
    }

    /// Whether this machine multiplies bf16 at a higher rate than f32: with AMX, or with AMD's dot products.
    pub fn multiplies_bf16_fast() -> bool {
        Isa::Amx.available() || tile::pairs_are_fast()
    }

    /// bf16 as with [`Isa::Amx`], on any machine: without the instructions their sums are computed in plain Rust, bit for
    /// bit, for tests. Slow.
    #[must_use]
    pub fn with_modelled_tiles(mut self) -> Cpu {
        self.machine.weights = Packing::Tiles;
        self
    }

    /// Why [`Isa::detect`] passed over a processor's matrix unit, if it has one: the system refused its registers.
    pub fn tiles_refused() -> Option<String> {
        match amx::amx() {
            amx::Amx::Refused(number) => Some(format!(
                "the system does not allow this processor's AMX (error {number}): computing with {}",
                Isa::detect().name()
            )),
            amx::Amx::Ready | amx::Amx::Missing => None,
        }
    }

    /// Number of threads.
    pub fn threads(&self) -> usize {
        self.machine.threads
    }
}

/// The machine's memory. Only Linux says it in a file.
pub(crate) fn machine_memory_bytes() -> Option<u64> {
    let about = std::fs::read_to_string("/proc/meminfo").ok()?;
    let total = about.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(total.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

impl Backend for Cpu {
    fn name(&self) -> String {
        let weights = match self.machine.weights {
            Packing::Panels(PanelFormat::Stored) => "",
            Packing::Panels(PanelFormat::Bf16) => ", weights in bf16",
            Packing::Panels(PanelFormat::Bf16Pairs) => ", bf16 dot products",
            Packing::Tiles => ", bf16 in tiles",
        };
        // f32 has no use for the tiles.
        let isa = match (self.machine.isa, self.machine.weights) {
            (Isa::Amx, packing) if packing != Packing::Tiles => Isa::Avx512,
            (isa, _) => isa,
        };
        format!("cpu ({}, {} threads{weights})", isa.name(), self.machine.threads)
    }

    fn precision(&self) -> Precision {
        match self.machine.weights {
            Packing::Panels(PanelFormat::Stored) => Precision::F32,
            Packing::Panels(PanelFormat::Bf16 | PanelFormat::Bf16Pairs) | Packing::Tiles => Precision::Bf16,
        }
    }

    fn memory_bytes(&self) -> Option<u64> {
        machine_memory_bytes()
    }

    fn load(
        &self,
        plan: &Plan,
        source: &dyn WeightSource,
        held: Option<&Arc<dyn Weights>>,
    ) -> Result<Arc<dyn Weights>> {
        if plan.trains() && self.precision() != Precision::F32 {
            let what = format!("{}: training in {} on the CPU, which trains in f32", plan.name, self.precision());
            return Err(Error::Unsupported { what });
        }
        let held = held.map(|weights| own::<CpuWeights>(weights, self)).transpose()?;
        let weights = self.pool.install(|| CpuWeights::load(plan, source, held.as_deref(), self.machine.weights))?;
        Ok(Arc::new(weights))
    }

    fn compile(&self, plan: Plan, weights: &Arc<dyn Weights>) -> Result<Box<dyn Executable>> {
        let weights = own::<CpuWeights>(weights, self)?;
        let missing = |name: &str| not_loaded(self.name(), &plan, name);
        let mut packed = HashMap::new();
        let mut constants = HashMap::new();
        for (name, id, layout) in wanted(&plan, self.machine.weights) {
            match weights.0.get(&(name.to_owned(), layout)).ok_or_else(|| missing(name))? {
                Stored::Packed(weight) => _ = packed.insert(id, weight.clone()),
                Stored::Plain(weight) => _ = constants.insert(id, weight.clone()),
            }
        }
        let forms = if self.machine.weights == Packing::Tiles { Forms::of(&plan) } else { Forms::default() };
        let mut slots = assign(&plan);
        for (value, words) in forms.kept() {
            let slot = slots.of[value.0].expect("every computed value has a slot");
            slots.words[slot] = slots.words[slot].max(words);
        }
        let memory = slots.words.iter().map(|&n| AlignedVec::zeros(n)).collect();
        let (pool, machine) = (self.pool.clone(), self.machine);
        let arena = Arena::of(&plan);
        Ok(Box::new(Compiled { plan, slots, forms, packed, constants, arena, memory, pool, machine }))
    }

    fn roofline(&self) -> Option<Roofline> {
        let Machine { isa, threads, weights } = self.machine;
        let flops = match weights {
            Packing::Panels(_) => roofline::peak_flops(isa, threads),
            Packing::Tiles => amx::peak_flops(isa, threads),
        };
        Some(Roofline { flops, bytes: roofline::stream_bytes(threads) })
    }
}

/// Outputs, channels and taps of a product's weight.
fn matrix(shape: &[usize]) -> [usize; 3] {
    [shape[0], shape[1], elements(&shape[2..])]
}

/// The right operand of a product.
enum Right<'a> {
    Panels(&'a Panels),
    Tiles(amx::Tiled<'a>),
}

struct Compiled {
    plan: Plan,
    slots: Slots,
    forms: Forms,
    packed: HashMap<ValueId, Arc<Packed>>,
    constants: HashMap<ValueId, Arc<Vec<f32>>>,
    /// Trained values with their gradients.
    arena: Arena,
    /// Memory of each slot. A step's output is taken out while the step runs; the planner puts a step's output and
    /// inputs into different slots.
    memory: Vec<AlignedVec>,
    pool: Arc<rayon::ThreadPool>,
    machine: Machine,
}

impl Compiled {
    /// The elements of a value; empty for a weight that exists only as panels.
    fn data(&self, id: ValueId) -> &[f32] {
        let root = self.plan.root(id);
        match self.slots.of[root.0] {
            Some(slot) => &self.memory[slot][..self.words(root)],
            None => match self.arena.value(root) {
                Some(value) => value,
                None => self.constants.get(&root).map_or(&[], |weight| weight),
            },
        }
    }

    /// Words of a computed value.
    fn words(&self, root: ValueId) -> usize {
        self.forms.of_value(root).map_or_else(|| elements(self.plan.shape(root)), Geometry::words)
    }

    /// Runs steps; `done` is called after each with its index.
    fn run_steps(&mut self, range: std::ops::Range<usize>, mut done: impl FnMut(usize) + Send) {
        let pool = self.pool.clone();
        pool.install(|| {
            for i in range {
                let step = &self.plan.steps[i];
                let slot = self.slots.of[step.output().0].expect("every computed value has a slot");
                let length = self.words(step.output());
                let mut output = std::mem::take(&mut self.memory[slot]);
                self.run(i, &mut output[..length]);
                self.memory[slot] = output;
                self.accumulate(i);
                done(i);
            }
        });
    }

    /// Adds what a step has written to the gradients that it is a part of.
    fn accumulate(&mut self, step: usize) {
        for place in self.arena.gradients_of(step) {
            let value = self.plan.steps[step].output();
            let slot = self.slots.of[value.0].expect("every computed value has a slot");
            self.arena.accumulate(place, &self.memory[slot]);
        }
    }

    /// A step's weight, packed now because it is trained and so another one in every step.
    fn pack_trained(&self, step: &Step) -> Option<Packed> {
        if !matches!(step.op, Op::Linear(_) | Op::Conv2d(_)) {
            return None;
        }
        let weight = self.arena.value(self.plan.root(step.inputs[1]))?;
        let [outputs, channels, taps] = matrix(self.plan.shape(step.inputs[1]));
        let weight = TensorData::F32(weight.into());
        Some(Packed::Panels(Panels::pack(&weight, outputs, channels, taps, PanelFormat::Stored)))
    }

    /// A step's weight the other way round. Of a frozen one no second copy is kept: it is turned when it is read.
    fn turned(&self, step: &Step) -> Panels {
        let root = self.plan.root(step.inputs[1]);
        if let Some(weight) = self.arena.value(root) {
            let [outputs, channels, taps] = matrix(self.plan.shape(step.inputs[1]));
            return Panels::turned(weight, outputs, channels, taps);
        }
        match &*self.packed[&root] {
            Packed::Panels(panels) => panels.turn(self.machine.isa),
            Packed::Tiles(_) => unreachable!("nothing is trained in tiles"),
        }
    }

    /// Runs the varying part, then copies the feeds.
    fn run_varying(&mut self, step: u32, done: impl FnMut(usize) + Send) -> Result<()> {
        if self.plan.input("step").is_some() {
            self.write_u32("step", &[step])?;
        }
        self.run_steps(self.plan.once..self.plan.steps.len(), done);
        for (from, to) in self.plan.feeds.clone() {
            let slot = self.slots.of[to.0].expect("every input has a slot");
            let mut target = std::mem::take(&mut self.memory[slot]);
            target.copy_from_slice(self.data(from));
            self.memory[slot] = target;
        }
        Ok(())
    }

    fn run(&self, number: usize, out: &mut [f32]) {
        let step = &self.plan.steps[number];
        let inputs: Vec<&[f32]> = step.inputs.iter().map(|&i| self.data(i)).collect();
        let shapes = self.plan.input_shapes(step);
        let shape = self.plan.shape(step.output());
        let fresh = self.pack_trained(step);
        let right = || match fresh.as_ref().unwrap_or_else(|| &self.packed[&self.plan.root(step.inputs[1])]) {
            Packed::Panels(panels) => Right::Panels(panels),
            Packed::Tiles(weights) => {
                let geometry = self.forms.of_product(number).expect("every product in tiles has a geometry");
                let kept = self.forms.of_value(self.plan.root(step.inputs[0])).is_some();
                Right::Tiles(amx::Tiled { weights, geometry, kept })
            }
        };
        let form = self.forms.of_value(step.output());
        let machine = &self.machine;
        match &step.op {
            Op::Attention(op) => attention::run(machine, op, &inputs, &shapes, out),
            Op::Concat(op) => concat::run(op, &inputs, &shapes, out),
            Op::Conv2d(op) => conv2d::run(machine, op, &inputs, &shapes, right(), shape, out),
            Op::Convert(_) => convert::run(inputs[0], out),
            Op::Embed(op) => embed::run(op, inputs[0], shapes[0], bytemuck::cast_slice(inputs[1]), out),
            Op::Geglu(_) => geglu::run(machine, inputs[0], shape[shape.len() - 1], out),
            Op::GroupNorm(op) => group_norm::run(machine, op, &inputs, shape, form, out),
            Op::LayerNorm(op) => layer_norm::run(machine, op, &inputs, form, out),
            Op::Linear(op) => linear::run(machine, op, &inputs, right(), out),
            Op::Modulate(op) => {
                let with_shape = |i: usize| (inputs[i], shapes[i]);
                modulate::run(machine, op, [0, 1, 2].map(with_shape), out);
            }
            Op::Multistep(op) => multistep::run(op, &inputs, out),
            Op::Pointwise(op) => pointwise::run(machine, op, &inputs, shape, out),
            Op::Resize(op) => resize::run(op, inputs[0], shapes[0], shape, out),
            Op::SamplerStep(op) => sampler_step::run(op, &inputs, shape, out),
            Op::Slice(op) => slice::run(op, inputs[0], shapes[0], out),
            Op::Training(op) => training::run(machine, op, &inputs, &shapes, || self.turned(step), out),
        }
    }

    /// The memory of an input; an error unless name, type and length match.
    fn target(&mut self, name: &str, dtype: Dtype, length: usize) -> Result<&mut [f32]> {
        let wrong = |plan: &Plan, reason: String| Error::Shape { at: format!("{}, input {name}", plan.name), reason };
        let Some(id) = self.plan.input(name) else {
            return Err(wrong(&self.plan, "the plan has no such input".to_owned()));
        };
        let value = &self.plan.values[id.0];
        if value.dtype != dtype || elements(&value.shape) != length {
            let reason = format!("{length} elements of {dtype:?} for {:?} of {:?}", value.shape, value.dtype);
            return Err(wrong(&self.plan, reason));
        }
        let slot = self.slots.of[id.0].expect("every input has a slot");
        Ok(&mut self.memory[slot][..length])
    }
}

impl Executable for Compiled {
    fn plan(&self) -> &Plan {
        &self.plan
    }

    fn size_bytes(&self) -> u64 {
        self.slots.bytes() + self.arena.size_bytes()
    }

    fn write(&mut self, input: &str, data: &[f32]) -> Result<()> {
        self.target(input, Dtype::F32, data.len())?.copy_from_slice(data);
        Ok(())
    }

    fn write_u32(&mut self, input: &str, data: &[u32]) -> Result<()> {
        self.target(input, Dtype::U32, data.len())?.copy_from_slice(bytemuck::cast_slice(data));
        Ok(())
    }

    fn run_once(&mut self) -> Result<()> {
        self.run_steps(0..self.plan.once, |_| ());
        Ok(())
    }

    fn run_step(&mut self, step: u32) -> Result<()> {
        self.run_varying(step, |_| ())
    }

    fn read(&mut self, name: &str) -> Result<Vec<f32>> {
        let id = self.plan.output(name).or_else(|| self.plan.input(name));
        let id = id.ok_or_else(|| Error::Shape {
            at: self.plan.name.clone(),
            reason: format!("the plan has no output or input {name}"),
        })?;
        Ok(self.data(id).to_vec())
    }

    fn read_trained(&mut self, name: &str, part: TrainedPart) -> Result<Vec<f32>> {
        Ok(self.arena.part(&self.plan, name, part)?.to_vec())
    }

    fn write_trained(&mut self, name: &str, part: TrainedPart, data: &[f32]) -> Result<()> {
        self.arena.write(&self.plan, name, part, data)
    }

    fn update(&mut self, update: &Update) -> Result<f32> {
        let (pool, isa) = (self.pool.clone(), self.machine.isa);
        Ok(pool.install(|| self.arena.update(isa, update)))
    }

    fn profile_step(&mut self, step: u32) -> Result<Vec<LaunchTime>> {
        let mut ends = Vec::with_capacity(self.plan.steps.len());
        let mut before = Instant::now();
        self.run_varying(step, |i| {
            let now = Instant::now();
            ends.push((i, (now - before).as_secs_f64()));
            before = now;
        })?;
        let launch =
            |(i, seconds): (usize, f64)| LaunchTime { step: Some(i), kernel: self.plan.steps[i].op.name(), seconds };
        Ok(ends.into_iter().map(launch).collect())
    }
}

/// Elements per task of a cheap loop: enough to outweigh the cost of a task.
const TASK_ELEMENTS: usize = 1 << 15;

/// Calls `f(first, rows)` for chunks of whole rows of `width` of `out`, in parallel if `out` is large.
fn for_rows(out: &mut [f32], width: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
    let rows = (TASK_ELEMENTS / width.max(1)).max(1);
    if out.len() <= 2 * rows * width {
        return f(0, out);
    }
    out.par_chunks_mut(rows * width).enumerate().for_each(|(i, chunk)| f(i * rows, chunk));
}

/// [`for_rows`] of all rows of an output; for one that is kept as an operand the rows are rounded into their places.
fn store_rows(
    machine: &Machine,
    form: Option<&Geometry>,
    out: &mut [f32],
    width: usize,
    f: impl Fn(usize, &mut [f32]) + Sync,
) {
    match form {
        None => for_rows(out, width, f),
        Some(geometry) => geometry.fill_computed(machine, out, f),
    }
}
