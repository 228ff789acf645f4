//! Slices: every `step`-th entry of a range of one dimension.

use super::for_rows;
use crate::ops::{Slice, elements};

pub fn run(op: &Slice, x: &[f32], shape: &[usize], out: &mut [f32]) {
    let below = elements(&shape[op.axis + 1..]);
    let (width, source) = (op.length * below, shape[op.axis] * below);
    for_rows(out, width, |first, rows| {
        for (i, row) in rows.chunks_exact_mut(width).enumerate() {
            let from = &x[(first + i) * source..][..source];
            for (k, entry) in row.chunks_exact_mut(below).enumerate() {
                entry.copy_from_slice(&from[(op.start + k * op.step) * below..][..below]);
            }
        }
    });
}
