//! The one measure of agreement for all operations and back ends.

use std::fmt::Write;
use unclip::Dtype;

/// Half the distance from one to the next number of a floating-point type.
fn unit(precision: Dtype) -> f64 {
    match precision {
        Dtype::F32 => 2f64.powi(-24),
        Dtype::F16 => 2f64.powi(-11),
        Dtype::Bf16 => 2f64.powi(-8),
        other => unreachable!("no case computes in {other}"),
    }
}

/// How far an element may be off, relative to the larger of its own size and the tensor's root mean square.
///
/// Rounding errors of a sum of `length` random terms grow with its square root; the constant covers elementary
/// functions and the few roundings outside of the sum.
pub fn tolerance(precision: Dtype, length: usize) -> f64 {
    unit(precision) * (16.0 + 4.0 * (length as f64).sqrt())
}

/// Compares element by element and returns the largest normalised error, which is at most one.
///
/// # Errors
/// A sentence with the worst element's index, both values and its error in units of the tolerance.
pub fn close(got: &[f32], want: &[f64], precision: Dtype, length: usize) -> Result<f64, String> {
    if got.len() != want.len() {
        return Err(format!("{} elements instead of {}", got.len(), want.len()));
    }
    let finite: Vec<f64> = want.iter().copied().filter(|w| w.is_finite()).collect();
    let rms = (finite.iter().map(|w| w * w).sum::<f64>() / finite.len().max(1) as f64).sqrt();
    let allowed = tolerance(precision, length);
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
    if worst <= 1.0 {
        return Ok(worst);
    }
    let mut message = format!("{wrong} of {} elements are off, element {at} most: ", got.len());
    let _ = write!(message, "{} instead of {}, {worst:.2} times what is allowed", got[at], want[at]);
    Err(message)
}
