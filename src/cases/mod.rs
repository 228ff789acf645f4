//! Operations and whole networks with data for all their tensors, to test and time back ends with.
//!
//! [`ops::all`] lists one-step problems: the models' real shapes, the widths of small models, and sizes that fit no tile.
//! [`models::all`] lists one sampling step of the prior, the decoder and super-resolution in three sizes, the largest
//! Karlo's. Weights are drawn from a generator with a fixed seed, the same on every machine; nothing is read from disk.
//! The crate's tests compare the operations with f64 references, and `cargo bench` and `engine bench` time the same
//! lists. A new back end can be tested in the same way.
//!
//! Names are `stem/what`, with the stem of the operation's or the network's file.

pub mod models;
pub mod ops;
mod samplers;
mod workload;

pub use ops::{Case, all, named};
pub use workload::{Timing, Workload, cost, profile, rounds, time, workloads};

use crate::backend::{Backend, Executable};
use crate::dtype::{Dtype, StoredDtype};
use crate::error::{Error, Result};
use crate::ops::{Op, Operation, elements};
use crate::plan::{Origin, Plan, Step, TensorData, Value, ValueId, WeightSource};
use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

/// A random generator without a dependency, the same for ever: SplitMix64 (Steele et al. 2014).
pub struct Random(
    /// The state; any value is a seed.
    pub u64,
);

/// What SplitMix64 adds to its state for each draw.
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

impl Random {
    /// A generator seeded by a name (FNV-1a): a new name does not change the data of another.
    pub fn named(name: &str) -> Random {
        Random(name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3)))
    }

    /// The generator after `draws` draws.
    pub fn at(seed: u64, draws: u64) -> Random {
        Random(seed.wrapping_add(draws.wrapping_mul(GAMMA)))
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GAMMA);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `[0, 1)`.
    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Standard normal (Box & Muller 1958).
    pub fn normal(&mut self) -> f64 {
        let (u, v) = (1.0 - self.uniform(), self.uniform());
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }
}

/// The elements of a tensor.
#[derive(Clone, Debug)]
pub enum Data {
    /// Floats.
    Floats(Vec<f32>),
    /// Integers: row indices, seeds, a step.
    Integers(Vec<u32>),
}

/// A tensor of a problem.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// All elements, the last dimension fastest.
    pub data: Data,
    /// The stored type of a weight; `None` for an input.
    pub stored: Option<Dtype>,
}

impl Tensor {
    /// The floats.
    ///
    /// # Panics
    /// If the elements are integers.
    pub fn floats_mut(&mut self) -> &mut Vec<f32> {
        match &mut self.data {
            Data::Floats(x) => x,
            Data::Integers(_) => panic!("expected floats, found integers"),
        }
    }
}

/// One step with its tensors, on which all back ends must agree.
#[derive(Clone, Debug)]
pub struct Problem {
    /// The operation.
    pub op: Op,
    /// Its inputs, in the operation's order.
    pub tensors: Vec<Tensor>,
}

impl Problem {
    /// The shapes of all tensors.
    pub fn shapes(&self) -> Vec<&[usize]> {
        self.tensors.iter().map(|t| t.shape.as_slice()).collect()
    }

    /// A plan of one varying step: inputs `in0..`, weights `in0..`, output `y`.
    ///
    /// # Panics
    /// If the tensors do not fit the operation.
    pub fn plan(&self) -> Plan {
        let origin = |i: usize, t: &Tensor| match t.stored {
            Some(_) => Origin::Weight(format!("in{i}")),
            // Converted to the storage type in the once part, so that a step is the operation alone.
            None => Origin::Input { name: format!("in{i}"), varies: false },
        };
        let dtype = |t: &Tensor| if matches!(t.data, Data::Integers(_)) { Dtype::U32 } else { Dtype::F32 };
        let mut values: Vec<Value> = self
            .tensors
            .iter()
            .enumerate()
            .map(|(i, t)| Value { shape: t.shape.clone(), dtype: dtype(t), origin: origin(i, t) })
            .collect();
        let shape = self.op.shape(&self.shapes()).expect("the case's shapes fit");
        values.push(Value { shape, dtype: Dtype::F32, origin: Origin::Computed });
        let output = ValueId(self.tensors.len());
        let inputs = (0..self.tensors.len()).map(ValueId).collect();
        Plan {
            name: self.op.name().to_owned(),
            values,
            steps: vec![Step { op: self.op.clone(), inputs, outputs: vec![output], label: "case".to_owned() }],
            once: 0,
            outputs: vec![("y".to_owned(), output)],
            gradients: Vec::new(),
            feeds: Vec::new(),
        }
    }

    /// Compiled, with all inputs written: ready for `run_step`.
    ///
    /// # Errors
    /// The back end cannot do it.
    pub fn prepare(&self, backend: &dyn Backend) -> Result<Box<dyn Executable>> {
        let mut weights = Tensors::default();
        for (i, tensor) in self.tensors.iter().enumerate() {
            if let (Some(stored), Data::Floats(x)) = (tensor.stored, &tensor.data) {
                weights.insert(&format!("in{i}"), &tensor.shape, x.clone(), stored);
            }
        }
        let mut executable = backend.prepare(self.plan(), &weights)?;
        for (i, tensor) in self.tensors.iter().enumerate().filter(|(_, t)| t.stored.is_none()) {
            let name = format!("in{i}");
            match &tensor.data {
                Data::Floats(x) => executable.write(&name, x)?,
                Data::Integers(x) => executable.write_u32(&name, x)?,
            }
        }
        executable.run_once()?;
        Ok(executable)
    }

    /// The step's output on a back end.
    ///
    /// # Errors
    /// The back end cannot do it.
    pub fn run(&self, backend: &dyn Backend) -> Result<Vec<f32>> {
        let mut executable = self.prepare(backend)?;
        executable.run_step(0)?;
        executable.read("y")
    }

    /// The problem of one entry of the batch.
    pub fn alone(&self, batch: usize, of: usize) -> Problem {
        let mut alone = self.clone();
        for tensor in alone.tensors.iter_mut().filter(|t| t.stored.is_none()) {
            let part = tensor.shape[0] / of;
            tensor.shape[0] = part;
            let length = elements(&tensor.shape);
            let range = batch * length..(batch + 1) * length;
            match &mut tensor.data {
                Data::Floats(x) => *x = x[range].to_vec(),
                Data::Integers(x) => *x = x[range].to_vec(),
            }
        }
        alone
    }
}

/// Weights in memory, in any storage type.
#[derive(Default)]
pub struct Tensors(HashMap<String, (Vec<usize>, TensorData<'static>)>);

impl Tensors {
    /// Stores elements, rounded to the type.
    ///
    /// # Panics
    /// If their number does not fit the shape.
    pub fn insert(&mut self, name: &str, shape: &[usize], x: Vec<f32>, stored: Dtype) {
        assert_eq!(elements(shape), x.len(), "{name} {shape:?}");
        self.0.insert(name.to_owned(), (shape.to_vec(), store(x, stored)));
    }

    /// Normal values whose deviation keeps the elements of matmuls of this shape near one.
    pub fn insert_random(&mut self, name: &str, shape: &[usize], random: &mut Random) {
        let deviation = 1.0 / ((elements(shape) / shape[0]) as f64).sqrt();
        let x = (0..elements(shape)).map(|_| (random.normal() * deviation) as f32).collect();
        self.insert(name, shape, x, Dtype::F32);
    }
}

impl WeightSource for Tensors {
    fn find(&self, tensor: &str) -> Option<(StoredDtype, Vec<usize>)> {
        self.0.get(tensor).map(|(shape, data)| (data.dtype().into(), shape.clone()))
    }

    fn load(&self, tensor: &str) -> Result<TensorData<'_>> {
        self.0.get(tensor).map(|(_, x)| x.clone()).ok_or_else(|| missing(tensor))
    }

    fn path(&self, _: &str) -> &Path {
        Path::new("memory")
    }
}

/// The error for a weight that was not inserted.
fn missing(tensor: &str) -> Error {
    Error::Weights {
        path: "memory".into(),
        tensor: tensor.to_owned(),
        expected: "a tensor".to_owned(),
        found: "none".to_owned(),
    }
}

/// The elements in a storage type.
///
/// # Panics
/// If it is not f32, f16 or bf16.
fn store(x: Vec<f32>, stored: Dtype) -> TensorData<'static> {
    use half::slice::HalfFloatSliceExt;
    match stored {
        Dtype::F32 => TensorData::F32(Cow::Owned(x)),
        Dtype::F16 => {
            let mut narrow = vec![half::f16::ZERO; x.len()];
            narrow.convert_from_f32_slice(&x);
            TensorData::F16(narrow.into())
        }
        Dtype::Bf16 => {
            let mut narrow = vec![half::bf16::ZERO; x.len()];
            narrow.convert_from_f32_slice(&x);
            TensorData::Bf16(narrow.into())
        }
        other => panic!("weights are f32, f16 or bf16, not {other}"),
    }
}
