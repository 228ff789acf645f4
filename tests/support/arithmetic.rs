//! What back ends round: the operands that they read, and what they make of them.

use super::close::{Rounding, unit};
use super::{Data, Problem, reference};
use unclip::Dtype;
use unclip::ops::{Attention, Op};
use unclip::plan::{Plan, Step, narrow};

/// How a back end computes, as far as it shows in results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arithmetic {
    /// Tensors in f32 or f16, everything else in f32.
    Plain(Dtype),
    /// Tensors in f16 or bf16, matrix products on tensor cores.
    TensorCores(Dtype),
    /// Tensors in f32, operands of matrix products rounded to tf32.
    Tf32,
    /// Tensors in f32, weights of matrix products in bf16.
    Bf16Weights,
    /// Tensors in f32, both operands of matrix products in bf16; those of attention, too, where they are multiplied in tiles.
    Bf16Operands,
}

/// Columns of the widest head whose attention is computed on tensor cores.
const WIDEST_HEAD: usize = 64;

/// What rounding the softmax's weights to the storage type may do to an element of an attention, in the type's units.
///
/// On tensor cores the weights `p` are an operand, and operands have the storage type. Each is off by at most a unit of its
/// own size, half of that on average. An element is a sum of `p v` over the keys, its error a sum of the same terms times
/// independent errors, so it is relative to the element's size whatever the number of keys: half a unit as standard
/// deviation, of which the largest among 10^5 elements is four or five times as much.
const ROUNDED_SOFTMAX: f64 = 3.0;

impl Arithmetic {
    /// All of them.
    pub const ALL: [Arithmetic; 7] = [
        Arithmetic::Plain(Dtype::F32),
        Arithmetic::Plain(Dtype::F16),
        Arithmetic::TensorCores(Dtype::F16),
        Arithmetic::TensorCores(Dtype::Bf16),
        Arithmetic::Tf32,
        Arithmetic::Bf16Weights,
        Arithmetic::Bf16Operands,
    ];

    fn storage(self) -> Dtype {
        match self {
            Arithmetic::Plain(dtype) | Arithmetic::TensorCores(dtype) => dtype,
            Arithmetic::Tf32 | Arithmetic::Bf16Weights | Arithmetic::Bf16Operands => Dtype::F32,
        }
    }

    /// The problem with the values that such a back end multiplies.
    pub fn operands(self, problem: &Problem) -> Problem {
        let mut read = problem.clone();
        let (plan, step) = self.planned(problem);
        for (tensor, input) in read.tensors.iter_mut().zip(&step.inputs) {
            round(&mut tensor.data, plan.values[input.0].dtype);
        }
        if matches!(problem.op, Op::Linear(_) | Op::Conv2d(_)) {
            let rounded: &mut [_] = match self {
                Arithmetic::Plain(_) | Arithmetic::TensorCores(_) => &mut [],
                Arithmetic::Tf32 | Arithmetic::Bf16Operands => &mut read.tensors[..2],
                Arithmetic::Bf16Weights => &mut read.tensors[1..2],
            };
            for tensor in rounded {
                match self {
                    Arithmetic::Tf32 => tensor.floats_mut().iter_mut().for_each(|x| *x = tf32(*x)),
                    _ => round(&mut tensor.data, Dtype::Bf16),
                }
            }
        }
        if let (Arithmetic::Bf16Operands, Op::Attention(op)) = (self, &problem.op) {
            let operands = if op.extra { 5 } else { 3 };
            read.tensors[..operands].iter_mut().for_each(|tensor| round(&mut tensor.data, Dtype::Bf16));
        }
        read
    }

    /// How far such a back end's output may be off that of [`Arithmetic::operands`].
    pub fn rounding(self, problem: &Problem) -> Rounding {
        let (plan, step) = self.planned(problem);
        let stored = plan.values[step.output().0].dtype;
        let inner = match (self, &problem.op) {
            (Arithmetic::TensorCores(dtype), Op::Attention(Attention { heads, .. }))
                if problem.tensors[0].shape[2] / heads <= WIDEST_HEAD =>
            {
                ROUNDED_SOFTMAX * unit(dtype)
            }
            (Arithmetic::Bf16Operands, Op::Attention(_)) => ROUNDED_SOFTMAX * unit(Dtype::Bf16),
            _ => 0.0,
        };
        Rounding { stored, inner, length: reference::reduction(problem) }
    }

    /// The plan as the back end stores its values, and the step that is the operation: others copy its inputs.
    fn planned(self, problem: &Problem) -> (Plan, Step) {
        let plan = narrow(problem.plan(), self.storage());
        let step = plan.steps.iter().find(|step| step.label == "case").expect("a problem's plan has its step").clone();
        (plan, step)
    }
}

fn round(data: &mut Data, dtype: Dtype) {
    let Data::Floats(x) = data else { return };
    match dtype {
        Dtype::F32 => {}
        Dtype::F16 => x.iter_mut().for_each(|x| *x = half::f16::from_f32(*x).to_f32()),
        Dtype::Bf16 => x.iter_mut().for_each(|x| *x = half::bf16::from_f32(*x).to_f32()),
        other => unreachable!("no floats are stored in {other}"),
    }
}

/// Ten bits of fraction, ties away from zero, as `cvt.rna.tf32.f32` in PTX.
fn tf32(x: f32) -> f32 {
    if x.is_finite() { f32::from_bits((x.to_bits() + 0x1000) & !0x1fff) } else { x }
}
