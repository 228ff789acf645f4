//! A step of a multistep sampler: [`combined`] for every element.

use crate::ops::{COEFFICIENTS, HISTORY, Multistep, combined};

/// The state of latents is small: one thread is enough.
pub fn run(op: &Multistep, inputs: &[&[f32]], out: &mut [f32]) {
    let (output, x_t, history) = (inputs[0], inputs[1], inputs[3]);
    let (rows, _) = inputs[2].as_chunks::<COEFFICIENTS>();
    let (count, image) = (x_t.len(), x_t.len() / rows.len());
    // With guidance the conditional half follows the unconditional one.
    let half = if op.guided { count } else { 0 };
    for i in 0..count {
        let kept: [f32; HISTORY] = std::array::from_fn(|age| history[age * count + i]);
        let [_, estimate, next] = combined(*op, &rows[i / image], [output[i], output[half + i]], x_t[i], kept);
        out[i] = next;
        out[count + i] = estimate;
        (1..HISTORY).for_each(|age| out[(age + 1) * count + i] = kept[age - 1]);
    }
}
