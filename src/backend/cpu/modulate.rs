//! Scale and shift by maps of a coarser grid, row by row of the image.

use super::{Machine, for_rows, simd};
use crate::ops::Modulate;

pub fn run(machine: &Machine, op: &Modulate, inputs: [(&[f32], &[usize]); 3], out: &mut [f32]) {
    let [(x, shape), (scale, maps), (shift, _)] = inputs;
    let [height, width, c] = [shape[1], shape[2], shape[3]];
    let k = height / maps[1];
    for_rows(out, width * c, |first, rows| {
        for (at, row) in rows.chunks_exact_mut(width * c).enumerate() {
            let line = first + at;
            // Rows of the maps are numbered through all images, too, because k divides the height.
            let map = line / k * maps[2] * c;
            let x = &x[line * width * c..][..width * c];
            for (j, (y, x)) in row.chunks_exact_mut(c).zip(x.chunks_exact(c)).enumerate() {
                let at = map + j / k * c;
                for ((y, x), (s, t)) in y.iter_mut().zip(x).zip(scale[at..][..c].iter().zip(&shift[at..][..c])) {
                    *y = x * s + t;
                }
            }
            if let Some(activation) = op.activation {
                simd::activate(machine.isa, activation, row);
            }
        }
    });
}
