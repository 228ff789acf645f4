//! What the tests and benchmarks of operations share: one list of cases, reference loops, one tolerance.
//!
//! A [`cases::Case`] describes one step; [`cases::Case::problem`] draws its tensors; [`Problem::prepare`] compiles
//! it for any back end. [`reference::run`] computes the same step in f64 and [`close::close`] compares.
#![allow(dead_code, reason = "every test and benchmark uses a part of this")]

pub mod cases;
pub mod close;
pub mod every;
pub mod files;
pub mod golden;
pub mod header;
#[cfg(feature = "tokenizer")]
pub mod pictures;
#[cfg(feature = "cuda-emulator")]
pub mod ptx;
pub mod recipes;
pub mod reference;

use close::Precision;
use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;
use unclip::backend::{Backend, Executable};
use unclip::error::{Error, Result};
use unclip::ops::{Op, Operation, elements};
use unclip::plan::{Element, Origin, Plan, Step, Stored, Value, ValueId, WeightSource};

/// Random numbers that need no crate and never change: SplitMix64 (Steele et al. 2014).
pub struct Random(pub u64);

impl Random {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
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
    Numbers(Vec<f32>),
    Rows(Vec<u32>),
}

/// A tensor of a problem; `stored` if it is a weight, with the type that its file has.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub shape: Vec<usize>,
    pub data: Data,
    pub stored: Option<Precision>,
}

impl Tensor {
    pub fn numbers_mut(&mut self) -> &mut Vec<f32> {
        match &mut self.data {
            Data::Numbers(x) => x,
            Data::Rows(_) => panic!("row numbers where numbers were expected"),
        }
    }
}

/// One step with its tensors: what every back end must agree on.
#[derive(Clone, Debug)]
pub struct Problem {
    pub op: Op,
    pub tensors: Vec<Tensor>,
}

impl Problem {
    pub fn shapes(&self) -> Vec<&[usize]> {
        self.tensors.iter().map(|t| t.shape.as_slice()).collect()
    }

    /// A plan of one varying step: inputs `in0..`, weights `in0..`, output `y`.
    pub fn plan(&self) -> Plan {
        let origin = |i: usize, t: &Tensor| match t.stored {
            Some(_) => Origin::Weight(format!("in{i}")),
            None => Origin::Input { name: format!("in{i}"), varies: true },
        };
        let element = |t: &Tensor| if matches!(t.data, Data::Rows(_)) { Element::U32 } else { Element::F32 };
        let mut values: Vec<Value> = self
            .tensors
            .iter()
            .enumerate()
            .map(|(i, t)| Value { shape: t.shape.clone(), element: element(t), origin: origin(i, t) })
            .collect();
        let shape = self.op.shape(&self.shapes()).expect("the case's shapes fit");
        values.push(Value { shape, element: Element::F32, origin: Origin::Computed });
        let output = ValueId(self.tensors.len());
        let inputs = (0..self.tensors.len()).map(ValueId).collect();
        Plan {
            name: self.op.name().to_owned(),
            values,
            steps: vec![Step { op: self.op.clone(), inputs, output, label: "case".to_owned() }],
            once: 0,
            outputs: vec![("y".to_owned(), output)],
            feeds: Vec::new(),
        }
    }

    /// Compiled, with all inputs written: ready for `run_step`.
    pub fn prepare(&self, backend: &dyn Backend) -> Box<dyn Executable> {
        let mut weights = Tensors::default();
        for (i, tensor) in self.tensors.iter().enumerate() {
            if let (Some(stored), Data::Numbers(x)) = (tensor.stored, &tensor.data) {
                weights.insert(&format!("in{i}"), &tensor.shape, x.clone(), stored);
            }
        }
        let mut executable = backend.compile(self.plan(), &weights).expect("the case compiles");
        for (i, tensor) in self.tensors.iter().enumerate().filter(|(_, t)| t.stored.is_none()) {
            let name = format!("in{i}");
            match &tensor.data {
                Data::Numbers(x) => executable.write(&name, x),
                Data::Rows(x) => executable.write_rows(&name, x),
            }
            .expect("the input exists");
        }
        executable
    }

    /// The step's output on a back end.
    pub fn run(&self, backend: &dyn Backend) -> Vec<f32> {
        let mut executable = self.prepare(backend);
        executable.run_once().expect("the device works");
        executable.run_step(0).expect("the device works");
        executable.read("y").expect("the output exists")
    }

    /// The part of the problem that belongs to one entry of the batch.
    pub fn alone(&self, batch: usize, of: usize) -> Problem {
        let mut alone = self.clone();
        for tensor in alone.tensors.iter_mut().filter(|t| t.stored.is_none()) {
            let part = tensor.shape[0] / of;
            tensor.shape[0] = part;
            let length: usize = tensor.shape.iter().product();
            let range = batch * length..(batch + 1) * length;
            match &mut tensor.data {
                Data::Numbers(x) => *x = x[range].to_vec(),
                Data::Rows(x) => *x = x[range].to_vec(),
            }
        }
        alone
    }
}

/// Weights in memory, in any storage type.
#[derive(Default)]
pub struct Tensors(HashMap<String, (Vec<usize>, Stored<'static>)>);

impl Tensors {
    /// Stores numbers, rounded to the type.
    pub fn insert(&mut self, name: &str, shape: &[usize], x: Vec<f32>, stored: Precision) {
        assert_eq!(shape.iter().product::<usize>(), x.len(), "{name} {shape:?}");
        let elements = match stored {
            Precision::F32 => Stored::F32(Cow::Owned(x)),
            Precision::F16 => Stored::F16(x.iter().map(|&v| half::f16::from_f32(v)).collect()),
            Precision::BF16 => Stored::BF16(x.iter().map(|&v| half::bf16::from_f32(v)).collect()),
        };
        self.0.insert(name.to_owned(), (shape.to_vec(), elements));
    }

    /// Normal numbers of a deviation that keeps products of this shape near one.
    pub fn insert_random(&mut self, name: &str, shape: &[usize], random: &mut Random) {
        let length: usize = shape.iter().product();
        let deviation = 1.0 / ((length / shape[0]) as f64).sqrt();
        let x = (0..length).map(|_| (random.normal() * deviation) as f32).collect();
        self.insert(name, shape, x, Precision::F32);
    }
}

impl WeightSource for Tensors {
    fn shape(&self, tensor: &str) -> Option<Vec<usize>> {
        self.0.get(tensor).map(|(shape, _)| shape.clone())
    }

    fn load(&self, tensor: &str) -> Result<Stored<'_>> {
        self.0.get(tensor).map(|(_, x)| x.clone()).ok_or_else(|| Error::Weights {
            path: self.path().to_path_buf(),
            tensor: tensor.to_owned(),
            expected: "a tensor".to_owned(),
            found: "none".to_owned(),
        })
    }

    fn path(&self) -> &Path {
        Path::new("memory")
    }
}

/// The inputs of a plan with numbers for the given picture.
pub fn inputs(plan: &Plan, picture: u64) -> Vec<(String, Vec<f32>)> {
    let mut random = Random(picture);
    let mut inputs = Vec::new();
    for value in &plan.values {
        if let (Origin::Input { name, .. }, Element::F32) = (&value.origin, value.element) {
            inputs.push((name.clone(), (0..elements(&value.shape)).map(|_| random.normal() as f32).collect()));
        }
    }
    inputs
}

/// Two pictures of three steps each: all outputs after every step.
pub fn replay(executable: &mut dyn Executable) -> Vec<Vec<f32>> {
    let plan = executable.plan().clone();
    let mut seen = Vec::new();
    for picture in 0..2 {
        for (name, data) in inputs(&plan, picture) {
            executable.write(&name, &data).expect("the plan runs");
        }
        executable.run_once().expect("the plan runs");
        for step in 0..3 {
            executable.run_step(step).expect("the plan runs");
            seen.extend(plan.outputs.iter().map(|(name, _)| executable.read(name).expect("the plan runs")));
        }
    }
    seen
}
