//! Embedding lookups: rows of a table by index.

use crate::ops::{Embed, elements};

pub fn run(op: &Embed, table: &[f32], shape: &[usize], rows: &[u32], out: &mut [f32]) {
    match op {
        Embed::Lookup => {
            for (y, &id) in out.chunks_exact_mut(shape[1]).zip(rows) {
                y.copy_from_slice(&table[id as usize * shape[1]..][..shape[1]]);
            }
        }
        Embed::Token => {
            for (b, (y, &position)) in out.chunks_exact_mut(shape[2]).zip(rows).enumerate() {
                y.copy_from_slice(&table[(b * shape[1] + position as usize) * shape[2]..][..shape[2]]);
            }
        }
        Embed::Row => {
            let width = elements(&shape[1..]);
            out.copy_from_slice(&table[rows[0] as usize * width..][..width]);
        }
    }
}
