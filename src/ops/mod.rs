//! The vocabulary of a plan: what a step can do.
//!
//! An operation is plain data: its parameters, the rule that gives the output's shape from the inputs'
//! shapes, and what it costs. It holds no tensors and knows no back end. Each lives in a file of its own
//! under one stem that returns as `backend/cpu/<stem>.rs`; [`Op`] is the closed list of them, so that a
//! back end is one exhaustive `match` and the compiler names whatever was forgotten.
//!
//! Inputs come in the order that each operation documents; optional ones are announced by a flag of the
//! operation and follow the required ones.

mod attention;
mod concat;
mod conv2d;
mod convert;
mod embed;
mod geglu;
mod group_norm;
mod launch;
mod layer_norm;
mod linear;
mod matmul;
mod modulate;
mod multistep;
mod pointwise;
mod resize;
mod reverse;
mod sampler_step;
mod slice;
mod statistics;
pub mod training;

pub use attention::Attention;
pub use concat::Concat;
pub use conv2d::Conv2d;
pub use convert::Convert;
pub use embed::Embed;
pub use geglu::Geglu;
pub use group_norm::GroupNorm;
#[cfg(any(feature = "cuda", feature = "cuda-emulator"))]
pub(crate) use launch::spread;
pub use launch::{Choice, Launch, Operand, Scalar, StorageRule, Tiles, Tiling, Walk, WeightSplit};
pub use layer_norm::LayerNorm;
pub use linear::Linear;
pub(crate) use matmul::MOST_LAYERS;
pub use matmul::{MatmulUnit, output_tile};
pub use modulate::Modulate;
pub use multistep::{HISTORY, Multistep, Rule, combined};
pub use pointwise::{Activation, Pointwise};
pub(crate) use resize::{CUBIC, LANCZOS, Resampling, resampling_window};
pub use resize::{Resize, cubic_taps};
pub use reverse::{Made, Reverse, Source};
pub use sampler_step::{COEFFICIENTS, Noise, Prediction, SamplerStep, StepResult, Variance, element};
pub use slice::Slice;
pub use statistics::{OutputTile, Statistics};
pub use training::Training;

/// What every operation can say about itself without running.
pub trait Operation {
    /// The stem of its file, as listings and profiles print it.
    fn name(&self) -> &'static str;

    /// The output's shape, or the rule that the inputs break.
    ///
    /// # Errors
    /// One sentence with the shapes involved; the recorder adds where it happened.
    fn shape(&self, inputs: &[&[usize]]) -> Result<Vec<usize>, String>;

    /// Floating-point operations, a multiply-add counted as two. Zero for operations that only move data.
    fn flops(&self, inputs: &[&[usize]], output: &[usize]) -> u64;

    /// Records how the gradients of its inputs follow from that of its output. Where training does not meet the operation,
    /// it says so.
    ///
    /// # Errors
    /// There is no rule, or not for these flags.
    fn backward(&self, reverse: &mut Reverse<'_>) -> Result<(), String>;

    /// The type of its tensors if the plan's storage type is narrower than f32.
    fn storage_rule(&self, _tensor: Operand) -> StorageRule {
        StorageRule::Storage
    }

    /// The WGSL kernels that compute it, one after the other, for shapes that meet the shape rule.
    fn wgsl(&self, inputs: &[&[usize]], output: &[usize], tiles: Tiles) -> Vec<Launch>;

    /// The weight that its WGSL kernels take in parts, where a device does not bind the whole.
    fn weight_split(&self) -> Option<WeightSplit> {
        None
    }

    /// The PTX kernels that compute it: the plain launches, with operands in shared memory, unless an operation says
    /// otherwise. A matrix product with a second output leaves [`Statistics`] there.
    fn ptx(&self, inputs: &[&[usize]], outputs: &[&[usize]], _: MatmulUnit) -> Vec<Launch> {
        self.wgsl(inputs, outputs[0], Tiles::Shared)
    }
}

macro_rules! operations {
    ($($variant:ident),* $(,)?) => {
        /// One step's operation with its parameters.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Op {
            $(#[doc = concat!("See [`", stringify!($variant), "`].")] $variant($variant),)*
        }

        $(impl From<$variant> for Op {
            fn from(op: $variant) -> Op {
                Op::$variant(op)
            }
        })*

        impl Operation for Op {
            fn name(&self) -> &'static str {
                match self { $(Op::$variant(op) => op.name(),)* }
            }
            fn shape(&self, inputs: &[&[usize]]) -> Result<Vec<usize>, String> {
                match self { $(Op::$variant(op) => op.shape(inputs),)* }
            }
            fn flops(&self, inputs: &[&[usize]], output: &[usize]) -> u64 {
                match self { $(Op::$variant(op) => op.flops(inputs, output),)* }
            }
            fn backward(&self, reverse: &mut Reverse<'_>) -> Result<(), String> {
                match self { $(Op::$variant(op) => op.backward(reverse),)* }
            }
            fn storage_rule(&self, tensor: Operand) -> StorageRule {
                match self { $(Op::$variant(op) => op.storage_rule(tensor),)* }
            }
            fn wgsl(&self, inputs: &[&[usize]], output: &[usize], tiles: Tiles) -> Vec<Launch> {
                match self { $(Op::$variant(op) => op.wgsl(inputs, output, tiles),)* }
            }
            fn weight_split(&self) -> Option<WeightSplit> {
                match self { $(Op::$variant(op) => op.weight_split(),)* }
            }
            fn ptx(&self, inputs: &[&[usize]], outputs: &[&[usize]], unit: MatmulUnit) -> Vec<Launch> {
                match self { $(Op::$variant(op) => op.ptx(inputs, outputs, unit),)* }
            }
        }
    };
}

operations!(
    Attention,
    Concat,
    Conv2d,
    Convert,
    Embed,
    Geglu,
    GroupNorm,
    LayerNorm,
    Linear,
    Modulate,
    Multistep,
    Pointwise,
    Resize,
    SamplerStep,
    Slice,
    Training
);

/// Number of elements of a shape.
pub fn elements(shape: &[usize]) -> usize {
    shape.iter().product()
}

/// `condition` or the sentence.
fn require(condition: bool, reason: impl FnOnce() -> String) -> Result<(), String> {
    if condition { Ok(()) } else { Err(reason()) }
}

/// The last dimension, the one that holds channels or features.
fn width(shape: &[usize]) -> usize {
    shape.last().copied().unwrap_or(1)
}

/// The number of inputs is fixed by the recorder, so this only guards hand-made plans.
fn count(inputs: &[&[usize]], wanted: usize) -> Result<(), String> {
    require(inputs.len() == wanted, || format!("takes {wanted} inputs, got {}", inputs.len()))
}
