//! Concatenation: copies each input's rows to their offset in the wider rows.

use super::for_rows;
use crate::ops::{Concat, elements};

pub fn run(op: &Concat, inputs: &[&[f32]], shapes: &[&[usize]], out: &mut [f32]) {
    let widths: Vec<usize> = shapes.iter().map(|s| elements(&s[op.axis..])).collect();
    let total: usize = widths.iter().sum();
    for_rows(out, total, |first, rows| {
        for (i, row) in rows.chunks_exact_mut(total).enumerate() {
            let mut at = 0;
            for (input, &width) in inputs.iter().zip(&widths) {
                row[at..at + width].copy_from_slice(&input[(first + i) * width..][..width]);
                at += width;
            }
        }
    });
}
