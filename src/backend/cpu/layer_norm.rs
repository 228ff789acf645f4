//! Layer normalisation of each row, with statistics in f64.

use super::amx::Geometry;
use super::{Machine, store_rows};
use crate::ops::LayerNorm;

/// `form`: how the output is kept for a product, if it is.
pub fn run(machine: &Machine, op: &LayerNorm, inputs: &[&[f32]], form: Option<&Geometry>, out: &mut [f32]) {
    let [x, gamma, beta] = [0, 1, 2].map(|i| inputs[i]);
    let d = gamma.len();
    store_rows(machine, form, out, d, |first, rows| {
        for (i, y) in rows.chunks_exact_mut(d).enumerate() {
            let row = &x[(first + i) * d..][..d];
            let mean = row.iter().map(|&v| f64::from(v)).sum::<f64>() / d as f64;
            let variance = row.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / d as f64;
            let inverse = 1.0 / (variance + f64::from(op.eps)).sqrt();
            for c in 0..d {
                let normalised = ((f64::from(row[c]) - mean) * inverse) as f32;
                y[c] = normalised * gamma[c] + beta[c];
            }
        }
    });
}
