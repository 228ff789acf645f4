//! A model as a list: what is computed, in which order, and where it is kept.
//!
//! Model code is run once by the recorder ([`Graph`]) and leaves a [`Plan`]: values with static shapes, and
//! steps that each read some values and write one or more. There are no strides, no views, no control flow. A
//! reshape only renames a value. A back end compiles the plan and replays it.
//!
//! A plan has two parts. Values that depend on the step of the sampling loop (the noisy picture, the step's
//! number) *vary*; every step that reads one belongs to the part that is replayed, all others run once per
//! picture. Nobody marks the border: text keys and values, masked text tokens or the time embeddings of all
//! steps are written in model code where they are used, and move to the first part because nothing that
//! they depend on varies.
//!
//! A network is trained by a plan, too: [`differentiate`] appends the steps that compute the gradients of its trained
//! tensors, which are read from the first step on and change between runs.
//!
//! Invariants, checked where a plan is finished: a value is written by one step at most and before it is
//! read; an output never shares memory with an input of the same step; inputs and what the replayed part
//! needs of the first part keep their memory to the end.

mod differentiate;
mod fuse;
mod graph;
mod join_layers;
mod listing;
mod narrow;
mod read_through;
mod slots;
mod statistics;
mod stored;
mod trained;

pub use differentiate::differentiate;
pub use fuse::fuse;
pub use graph::{Graph, Tensor, Weights};
pub use join_layers::join_layers;
pub use listing::{KernelUse, Listing};
pub use narrow::narrow;
pub use read_through::read_through;
pub use slots::{Slots, assign};
pub use statistics::with_statistics;
pub use stored::StoredTensor;
pub use trained::{LowRank, Trained};

use crate::dtype::{Dtype, StoredDtype};
use crate::error::{Error, Result};
use crate::ops::{Op, Operation, elements};
use std::borrow::Cow;
use std::path::Path;

/// Index of a value in [`Plan::values`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub usize);

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Written by the caller before a run; `varies` if before (or by a feed after) every step.
    Input {
        /// Its name.
        name: String,
        /// Whether steps of the sampling loop see different contents.
        varies: bool,
    },
    /// A tensor of the checkpoint.
    Weight(String),
    /// A trained tensor: the caller writes it before the first run, an optimisation step changes it. It varies.
    Parameter(String),
    /// The output of a step.
    Computed,
    /// The same memory under another shape.
    Alias(ValueId),
}

/// One tensor of a plan: contiguous, its last dimension fastest.
#[derive(Clone, Debug)]
pub struct Value {
    /// Its size in every dimension.
    pub shape: Vec<usize>,
    /// The type of its elements.
    pub dtype: Dtype,
    /// Where it comes from.
    pub origin: Origin,
}

impl Value {
    /// Bytes of its elements, rounded up to whole words of four bytes.
    pub fn size_bytes(&self) -> usize {
        (elements(&self.shape) * self.dtype.size_bytes()).next_multiple_of(4)
    }
}

/// One operation on values.
#[derive(Clone, Debug)]
pub struct Step {
    /// What is done.
    pub op: Op,
    /// What it reads, in the operation's order.
    pub inputs: Vec<ValueId>,
    /// What it writes: the operation's result, and behind it what a pass of a back end has added.
    pub outputs: Vec<ValueId>,
    /// Where in the model: the weight's path, or the line that recorded it.
    pub label: String,
}

impl Step {
    /// The operation's result.
    pub fn output(&self) -> ValueId {
        self.outputs[0]
    }
}

/// A recorded model; see the module's documentation.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Which model and part.
    pub name: String,
    /// All tensors.
    pub values: Vec<Value>,
    /// All operations in order; the first [`once`](Plan::once) of them do not vary.
    pub steps: Vec<Step>,
    /// How many leading steps run once per picture.
    pub once: usize,
    /// What the caller reads, by name.
    pub outputs: Vec<(String, ValueId)>,
    /// Copies `(from, to)` made in this order after each run of the varying part, such as `x_{t-1}` to `x_t`.
    pub feeds: Vec<(ValueId, ValueId)>,
    /// Trained values, each with a value that is added to its gradient whenever that is computed; empty unless
    /// [`differentiate`] made the plan.
    pub gradients: Vec<(ValueId, ValueId)>,
}

/// Numbers that describe what a part of a plan costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Cost {
    /// Floating-point operations, a multiply-add counted as two.
    pub flops: u64,
    /// Bytes of all inputs and outputs of all steps, each counted once per step.
    pub bytes: u64,
    /// Number of steps.
    pub steps: usize,
}

impl Plan {
    /// The value that owns the memory of `id`.
    pub fn root(&self, id: ValueId) -> ValueId {
        match self.values[id.0].origin {
            Origin::Alias(of) => self.root(of),
            _ => id,
        }
    }

    /// The shape of a value.
    pub fn shape(&self, id: ValueId) -> &[usize] {
        &self.values[id.0].shape
    }

    /// The shapes of what a step writes.
    pub fn output_shapes(&self, step: &Step) -> Vec<&[usize]> {
        step.outputs.iter().map(|&id| self.shape(id)).collect()
    }

    /// The shapes of what a step reads.
    pub fn input_shapes(&self, step: &Step) -> Vec<&[usize]> {
        step.inputs.iter().map(|&id| self.shape(id)).collect()
    }

    /// The input of that name, with its value.
    pub fn input(&self, name: &str) -> Option<ValueId> {
        let position = self.values.iter().position(|v| matches!(&v.origin, Origin::Input { name: n, .. } if n == name));
        position.map(ValueId)
    }

    /// The output of that name.
    pub fn output(&self, name: &str) -> Option<ValueId> {
        self.outputs.iter().find(|(n, _)| n == name).map(|(_, id)| *id)
    }

    /// Names and values of all tensors that the plan takes from the checkpoint.
    pub fn weights(&self) -> impl Iterator<Item = (&str, ValueId)> {
        self.values.iter().enumerate().filter_map(|(i, v)| match &v.origin {
            Origin::Weight(name) => Some((name.as_str(), ValueId(i))),
            _ => None,
        })
    }

    /// Names and values of all trained tensors.
    pub fn trained(&self) -> impl Iterator<Item = (&str, ValueId)> {
        self.values.iter().enumerate().filter_map(|(i, v)| match &v.origin {
            Origin::Parameter(name) => Some((name.as_str(), ValueId(i))),
            _ => None,
        })
    }

    /// Whether the plan trains, which needs a back end with kernels for that.
    pub fn trains(&self) -> bool {
        self.trained().next().is_some() || self.steps.iter().any(|step| matches!(step.op, Op::Training(_)))
    }

    /// Number of parameters of all weights and trained tensors.
    pub fn parameters(&self) -> u64 {
        self.weights().chain(self.trained()).map(|(_, id)| elements(self.shape(id)) as u64).sum()
    }

    /// The steps that run once and those that are replayed.
    pub fn parts(&self) -> (&[Step], &[Step]) {
        self.steps.split_at(self.once)
    }

    /// What the given steps cost.
    pub fn cost(&self, steps: &[Step]) -> Cost {
        let mut cost = Cost { steps: steps.len(), ..Cost::default() };
        for step in steps {
            let output = self.shape(step.output());
            cost.flops += step.op.flops(&self.input_shapes(step), output);
            let mut moved: usize = step.outputs.iter().map(|id| self.values[id.0].size_bytes()).sum();
            for (i, input) in step.inputs.iter().enumerate() {
                let input = &self.values[input.0];
                moved += match &step.op {
                    // Lookups and slices read only what they give.
                    Op::Embed(_) | Op::Slice(_) if i == 0 => elements(output) * input.dtype.size_bytes(),
                    // A row of the table.
                    Op::GroupNorm(op) if op.table && i == 3 => input.size_bytes() / input.shape[0],
                    Op::Conv2d(op) if op.table && i == op.shift_at() => input.size_bytes() / input.shape[0],
                    _ => input.size_bytes(),
                };
            }
            cost.bytes += moved as u64;
        }
        cost
    }
}

/// A stored tensor's elements, borrowed from a memory map where the bytes are aligned.
#[derive(Clone, Debug)]
pub enum TensorData<'a> {
    /// Single precision.
    F32(Cow<'a, [f32]>),
    /// Half precision.
    F16(Cow<'a, [half::f16]>),
    /// Single precision cut to its upper sixteen bits.
    Bf16(Cow<'a, [half::bf16]>),
}

impl TensorData<'_> {
    /// Type of the elements.
    pub fn dtype(&self) -> Dtype {
        match self {
            TensorData::F32(_) => Dtype::F32,
            TensorData::F16(_) => Dtype::F16,
            TensorData::Bf16(_) => Dtype::Bf16,
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            TensorData::F32(v) => v.len(),
            TensorData::F16(v) => v.len(),
            TensorData::Bf16(v) => v.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements' bytes in the order of this machine, little-endian wherever files are mapped.
    pub fn bytes(&self) -> &[u8] {
        match self {
            TensorData::F32(v) => bytemuck::cast_slice(v),
            TensorData::F16(v) => bytemuck::cast_slice(v),
            TensorData::Bf16(v) => bytemuck::cast_slice(v),
        }
    }

    /// All elements as f32.
    pub fn to_f32(&self) -> Vec<f32> {
        use half::slice::HalfFloatSliceExt;
        let widened = |len: usize, convert: &dyn Fn(&mut [f32])| {
            let mut out = vec![0.0; len];
            convert(&mut out);
            out
        };
        match self {
            TensorData::F32(v) => v.to_vec(),
            TensorData::F16(v) => widened(v.len(), &|out| v.convert_to_f32_slice(out)),
            TensorData::Bf16(v) => widened(v.len(), &|out| v.convert_to_f32_slice(out)),
        }
    }
}

/// The types that weights may be stored in, for messages.
pub(crate) const FLOATS: &str = "F32, F16, BF16 or F64";

/// Where a model's tensors come from: a component of a checkpoint, or made-up weights of a test.
pub trait WeightSource: Sync {
    /// The tensor's type and shape, if there is such a tensor.
    fn find(&self, tensor: &str) -> Option<(StoredDtype, Vec<usize>)>;

    /// Checks that there is such a tensor, of this shape and of a type that [`WeightSource::load`] reads: what a model
    /// asks for when it is recorded. A source that makes up its tensors learns their shapes here.
    ///
    /// # Errors
    /// There is no such tensor, or it has another shape or type.
    fn require(&self, tensor: &str, shape: &[usize]) -> Result<()> {
        let (expected, found) = match self.find(tensor) {
            Some((dtype, found)) if found == shape && dtype.is_float() => return Ok(()),
            Some((dtype, found)) if found == shape => (FLOATS.to_owned(), format!("{dtype} {found:?}")),
            Some((_, found)) => (format!("shape {shape:?}"), format!("shape {found:?}")),
            None => (format!("shape {shape:?}"), "no such tensor".to_owned()),
        };
        Err(Error::Weights { path: self.path(tensor).to_path_buf(), tensor: tensor.to_owned(), expected, found })
    }

    /// The tensor's elements in stored order.
    ///
    /// # Errors
    /// The tensor is missing, of a type that is no floating-point number, or cannot be read.
    fn load(&self, tensor: &str) -> Result<TensorData<'_>>;

    /// The tensor's bytes, to be read in pieces. A source in files overrides this, so that no whole tensor is held.
    ///
    /// # Errors
    /// As for [`WeightSource::load`].
    fn open(&self, tensor: &str) -> Result<StoredTensor<'_>> {
        Ok(self.load(tensor)?.into())
    }

    /// The file or folder to name in messages about the tensor.
    fn path(&self, tensor: &str) -> &Path;
}
