//! Gradients of products, as products: of inputs with the turned weight, of weights over the rows or positions.
#![allow(unsafe_code)]

use super::super::matmul::{Dense, Epilogue, Rows, matmul};
use super::super::panels::Panels;
use super::super::{Machine, Right, conv2d, for_rows};
use crate::ops::Conv2d;
use crate::ops::training::{ConvInput, ConvWeight};

pub fn linear_input(machine: &Machine, inputs: &[&[f32]], weight: &Panels, out: &mut [f32]) {
    let epilogue = Epilogue { residual: inputs.get(2).copied(), ..Epilogue::default() };
    let rows = Dense { data: inputs[0], channels: weight.channels };
    matmul(machine, inputs[0].len() / weight.channels, &rows, weight, &epilogue, out);
}

pub fn linear_weight(machine: &Machine, inputs: &[&[f32]], shapes: &[&[usize]], out: &mut [f32]) {
    let (n, k) = (shapes[0][shapes[0].len() - 1], shapes[1][shapes[1].len() - 1]);
    outer(machine, &transposed(inputs[0], n), inputs[1], k, out);
}

/// `out [N, K] = g^T x`, for `g^T [N, M]` and `x [M, K]`.
fn outer(machine: &Machine, g: &[f32], x: &[f32], k: usize, out: &mut [f32]) {
    let m = x.len() / k;
    let panels = Panels::turned(x, m, k, 1);
    matmul(machine, g.len() / m, &Dense { data: g, channels: m }, &panels, &Epilogue::default(), out);
}

/// A matrix with rows of `columns`, the other way round.
fn transposed(x: &[f32], columns: usize) -> Vec<f32> {
    let rows = x.len() / columns;
    let mut out = vec![0.0; x.len()];
    for_rows(&mut out, rows, |first, part| {
        for (i, row) in part.chunks_exact_mut(rows).enumerate() {
            let column = x[first + i..].iter().step_by(columns);
            row.iter_mut().zip(column).for_each(|(to, from)| *to = *from);
        }
    });
    out
}

pub fn conv_input(
    machine: &Machine,
    op: &ConvInput,
    inputs: &[&[f32]],
    shapes: &[&[usize]],
    weight: &Panels,
    out: &mut [f32],
) {
    let (g, w) = (shapes[0], shapes[1]);
    let x = [g[0], op.size[0], op.size[1], w[1]];
    let [rows, columns] = [w[2], w[3]];
    // With stride 1 it is a convolution itself.
    if op.stride == 1 && rows == columns && op.padding.iter().all(|&padding| padding < rows) {
        let padding = op.padding.map(|padding| rows - 1 - padding);
        let residual = op.residual;
        let forward = Conv2d { stride: 1, padding, bias: false, shift: false, residual, behind: false, table: false };
        let turned = [w[1], w[0], rows, columns];
        return conv2d::run(machine, &forward, inputs, &[g, &turned], Right::Panels(weight), &x, out);
    }
    let windows = Spread {
        g: inputs[0],
        shape: [g[1], g[2], g[3]],
        output: op.size,
        window: [rows, columns],
        stride: op.stride,
        padding: op.padding[0],
        zeros: vec![0.0; g[3]],
    };
    let epilogue = Epilogue { residual: inputs.get(2).copied(), ..Epilogue::default() };
    matmul(machine, x[0] * x[1] * x[2], &windows, weight, &epilogue, out);
}

/// For each pixel of a convolution's input and each of its taps, the last first, the position of `g` that read the pixel
/// through that tap, or zeros.
struct Spread<'a> {
    g: &'a [f32],
    /// Height, width and channels of `g`.
    shape: [usize; 3],
    /// Height and width of the convolution's input.
    output: [usize; 2],
    window: [usize; 2],
    stride: usize,
    padding: usize,
    zeros: Vec<f32>,
}

impl Spread<'_> {
    /// The window that reads row or column `at` through tap `tap`, if there is one among `count`.
    fn window_of(&self, at: usize, tap: usize, count: usize) -> Option<usize> {
        let start = (at + self.padding).checked_sub(tap)?;
        (start.is_multiple_of(self.stride) && start / self.stride < count).then_some(start / self.stride)
    }
}

// SAFETY: each pointer comes from a slice of exactly `channels` elements of `g` or `zeros`, which live as long as `self`.
unsafe impl Rows for Spread<'_> {
    fn pointers(&self, first: usize, rows: usize, table: &mut [*const f32]) {
        let [height, width, channels] = self.shape;
        let [across, taps] = [self.output[1], self.window[0] * self.window[1]];
        for i in 0..rows {
            let (image, position) = ((first + i) / (self.output[0] * across), (first + i) % (self.output[0] * across));
            for tap in 0..taps {
                let (r, s) = ((taps - 1 - tap) / self.window[1], (taps - 1 - tap) % self.window[1]);
                let row = self.window_of(position / across, r, height);
                let column = self.window_of(position % across, s, width);
                let source = match (row, column) {
                    (Some(y), Some(x)) => &self.g[((image * height + y) * width + x) * channels..][..channels],
                    _ => &self.zeros[..],
                };
                table[tap * rows + i] = source.as_ptr();
            }
        }
    }
}

pub fn conv_weight(machine: &Machine, op: &ConvWeight, inputs: &[&[f32]], shapes: &[&[usize]], out: &mut [f32]) {
    let (g, x) = (shapes[0], shapes[1]);
    let (outputs, channels) = (g[3], x[3]);
    let g_rows = transposed(inputs[0], outputs);
    let taps = op.window[0] * op.window[1];
    if taps == 1 && op.stride == 1 && op.padding == [0, 0] {
        return outer(machine, &g_rows, inputs[1], channels, out);
    }
    let [height, width] = [x[1], x[2]];
    let mut seen = vec![0.0; g[0] * g[1] * g[2] * channels];
    let mut one = vec![0.0; outputs * channels];
    for tap in 0..taps {
        let (r, s) = (tap / op.window[1], tap % op.window[1]);
        // The pixels that windows see through this tap, a row for each window.
        for_rows(&mut seen, channels, |first, part| {
            for (i, row) in part.chunks_exact_mut(channels).enumerate() {
                let (image, position) = ((first + i) / (g[1] * g[2]), (first + i) % (g[1] * g[2]));
                let y = (position / g[2] * op.stride + r).checked_sub(op.padding[0]).filter(|&y| y < height);
                let x = (position % g[2] * op.stride + s).checked_sub(op.padding[0]).filter(|&x| x < width);
                match (y, x) {
                    (Some(y), Some(x)) => {
                        row.copy_from_slice(&inputs[1][((image * height + y) * width + x) * channels..][..channels]);
                    }
                    _ => row.fill(0.0),
                }
            }
        });
        outer(machine, &g_rows, &seen, channels, &mut one);
        out[tap..].iter_mut().step_by(taps).zip(&one).for_each(|(to, from)| *to = *from);
    }
}
