//! What only training records: gradients of the other operations, losses, and the factor of an adapter.
//!
//! Only the CPU has kernels for these; GPU back ends refuse a plan with one of them by name. Everything is in f32.

mod attention;
mod loss;
mod moving;
mod norm;
mod pointwise;
mod product;

pub use attention::{AttentionKeys, AttentionQueries};
pub use loss::{DiffusionLoss, HYBRID, LossPart, SquaredError};
pub use moving::{ResizeGradient, Scatter};
pub use norm::{LayerNormGain, LayerNormGradient, NormGradient, NormSums, NormVector, VectorOf};
pub use pointwise::{Scale, Slope, Sum};
pub use product::{ConvInput, ConvWeight, LinearInput, LinearWeight};

use super::reverse::{Reverse, no_rule};
use super::{Launch, Op, Operand, Operation, StorageRule, Tiles};

/// What each of them says about itself.
trait Rule {
    fn name(&self) -> &'static str;
    fn shape(&self, inputs: &[&[usize]]) -> Result<Vec<usize>, String>;
    fn flops(&self, inputs: &[&[usize]], output: &[usize]) -> u64;

    /// Gradients are not differentiated again.
    fn backward(&self, _: &mut Reverse<'_>) -> Result<(), String> {
        no_rule(self.name())
    }
}

macro_rules! training {
    ($($variant:ident),* $(,)?) => {
        /// One of the operations of training.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Training {
            $(#[doc = concat!("See [`", stringify!($variant), "`].")] $variant($variant),)*
        }

        $(impl From<$variant> for Op {
            fn from(op: $variant) -> Op {
                Op::Training(Training::$variant(op))
            }
        })*

        impl Operation for Training {
            fn name(&self) -> &'static str {
                match self { $(Training::$variant(op) => op.name(),)* }
            }
            fn shape(&self, inputs: &[&[usize]]) -> Result<Vec<usize>, String> {
                match self { $(Training::$variant(op) => op.shape(inputs),)* }
            }
            fn flops(&self, inputs: &[&[usize]], output: &[usize]) -> u64 {
                match self { $(Training::$variant(op) => op.flops(inputs, output),)* }
            }
            fn backward(&self, reverse: &mut Reverse<'_>) -> Result<(), String> {
                match self { $(Training::$variant(op) => op.backward(reverse),)* }
            }
            fn storage_rule(&self, _: Operand) -> StorageRule {
                StorageRule::F32
            }
            fn wgsl(&self, _: &[&[usize]], _: &[usize], _: Tiles) -> Vec<Launch> {
                unreachable!("GPU back ends refuse plans that train")
            }
        }
    };
}

training!(
    AttentionKeys,
    AttentionQueries,
    ConvInput,
    ConvWeight,
    DiffusionLoss,
    LayerNormGain,
    LayerNormGradient,
    LinearInput,
    LinearWeight,
    NormGradient,
    NormSums,
    NormVector,
    ResizeGradient,
    Scale,
    Scatter,
    Slope,
    SquaredError,
    Sum
);

impl Training {
    /// The operation with another gradient of the same value added to its result, if it can.
    pub(crate) fn with_residual(&self) -> Option<Op> {
        match self {
            Training::LinearInput(op) if !op.residual => Some(LinearInput { residual: true }.into()),
            Training::ConvInput(op) if !op.residual => Some(ConvInput { residual: true, ..op.clone() }.into()),
            _ => None,
        }
    }

    /// Whether its second input is a product's weight, read the other way round.
    pub(crate) fn turns_weight(&self) -> bool {
        matches!(self, Training::LinearInput(_) | Training::ConvInput(_))
    }
}
