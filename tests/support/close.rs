//! The one measure of agreement for all operations and back ends.

use std::fmt::Write;
use unclip::Dtype;

/// Half the distance from one to the next value of a floating-point type.
pub fn unit(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F32 => 2f64.powi(-24),
        Dtype::F16 => 2f64.powi(-11),
        Dtype::Bf16 => 2f64.powi(-8),
        other => unreachable!("no case computes in {other}"),
    }
}

/// Roundings of f32 outside of the longest sum: elementary functions, whose errors are a few units, and what is added
/// behind the sum.
const AROUND_SUMS: f64 = 16.0;
/// Standard deviations of a sum of independent roundings that are allowed.
const DEVIATIONS: f64 = 4.0;

/// What rounds an output on its way, and so how far it may be off.
///
/// The operands are not in it: references compute from the values that a back end reads, rounded as it stores them. What is
/// left has three terms, relative to the larger of an element and the tensor's root mean square:
///
/// * `unit(stored)`, once: the most that rounding to nearest does when the output is stored. With no factor before it, an
///   error of any other origin shows wherever the exact value lies near the middle between two that can be stored, be it
///   a hundred times smaller than the unit. An output in f32 has no such term; its last rounding is one of those below.
/// * `inner`, for an operation that rounds something between its operands and its sums; zero for all others.
/// * `2^-24 (16 + 4 sqrt(length))`. Sums are in f32, and the error of a sum of `length` random terms grows with the square
///   root of their number. The storage type has no part in it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rounding {
    /// The type in which the output is stored.
    pub stored: Dtype,
    /// Relative error of what is rounded before the sums.
    pub inner: f64,
    /// Terms of the longest sum behind an element.
    pub length: usize,
}

impl Rounding {
    /// Everything in f32.
    pub fn f32(length: usize) -> Rounding {
        Rounding { stored: Dtype::F32, inner: 0.0, length }
    }

    /// How far an element may be off, relative to the larger of its own size and the tensor's root mean square.
    fn allowed(&self) -> f64 {
        let stored = if self.stored == Dtype::F32 { 0.0 } else { unit(self.stored) };
        stored + self.inner + unit(Dtype::F32) * (AROUND_SUMS + DEVIATIONS * (self.length as f64).sqrt())
    }
}

/// Compares element by element and returns the largest part of what is allowed that was used, at most one.
///
/// # Errors
/// A sentence with the worst element's index, both values and its error in units of what is allowed.
pub fn close(got: &[f32], want: &[f64], rounding: &Rounding) -> Result<f64, String> {
    if got.len() != want.len() {
        return Err(format!("{} elements instead of {}", got.len(), want.len()));
    }
    let (worst, at, wrong) = worst(got, want, rounding);
    if worst <= 1.0 {
        return Ok(worst);
    }
    let mut message = format!("{wrong} of {} elements are off, element {at} most: ", got.len());
    let _ = write!(message, "{} instead of {}, {worst:.2} times what is allowed", got[at], want[at]);
    Err(message)
}

/// The largest error in units of what is allowed, which element has it, and how many have one above one.
pub fn worst(got: &[f32], want: &[f64], rounding: &Rounding) -> (f64, usize, usize) {
    let finite: Vec<f64> = want.iter().copied().filter(|w| w.is_finite()).collect();
    let rms = (finite.iter().map(|w| w * w).sum::<f64>() / finite.len().max(1) as f64).sqrt();
    let allowed = rounding.allowed();
    let (mut worst, mut at, mut wrong) = (0.0, 0, 0);
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        let g = f64::from(g);
        let same = g == w || (g.is_nan() && w.is_nan());
        let error = if same { 0.0 } else { (g - w).abs() / (allowed * rms.max(w.abs()).max(f64::MIN_POSITIVE)) };
        let error = if error.is_nan() { f64::INFINITY } else { error };
        wrong += usize::from(error > 1.0);
        if error > worst {
            (worst, at) = (error, i);
        }
    }
    (worst, at, wrong)
}
