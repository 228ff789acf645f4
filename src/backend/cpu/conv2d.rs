//! Convolution as implicit GEMM: a row per output position, a segment of the row per tap. Segments are pointers into
//! the picture, or to zeros beyond its border, so nothing is copied. 3x3 windows use Winograd where it applies
//! ([`winograd`]). The matrix unit has tiles instead of rows ([`super::amx`]).
#![allow(unsafe_code)]

use super::matmul::{Dense, Epilogue, Rows, matmul, with_left_operand};
use super::{Machine, Right, winograd};
use crate::ops::{Conv2d, elements};

/// The windows of a channels-last picture.
struct Windows<'a> {
    x: &'a [f32],
    /// Height, width and channels of a picture.
    picture: [usize; 3],
    /// Height and width of the output.
    output: [usize; 2],
    /// Height and width of the window.
    window: [usize; 2],
    stride: usize,
    /// Zeros above and to the left; those below and to the right show in the output's size.
    padding: usize,
    zeros: Vec<f32>,
}

// SAFETY: each pointer comes from a slice of exactly `channels` elements of `x` or `zeros`, which live as long as
// `self`.
unsafe impl Rows for Windows<'_> {
    fn pointers(&self, first: usize, rows: usize, table: &mut [*const f32]) {
        let [height, width, channels] = self.picture;
        let [out_height, out_width] = self.output;
        for i in 0..rows {
            let row = first + i;
            let (image, position) = (row / (out_height * out_width), row % (out_height * out_width));
            let (top, left) = (position / out_width * self.stride, position % out_width * self.stride);
            for r in 0..self.window[0] {
                for s in 0..self.window[1] {
                    let (y, x) = (top + r, left + s);
                    let inside =
                        y >= self.padding && x >= self.padding && y - self.padding < height && x - self.padding < width;
                    let source = if inside {
                        let at = (image * height + y - self.padding) * width + x - self.padding;
                        &self.x[at * channels..][..channels]
                    } else {
                        &self.zeros[..]
                    };
                    table[(r * self.window[1] + s) * rows + i] = source.as_ptr();
                }
            }
        }
    }
}

pub fn run(
    machine: &Machine,
    op: &Conv2d,
    inputs: &[&[f32]],
    shapes: &[&[usize]],
    weights: Right<'_>,
    shape: &[usize],
    out: &mut [f32],
) {
    let (x, weight) = (shapes[0], shapes[1]);
    let positions = shape[1] * shape[2];
    let mut optional = inputs[2..].iter().copied();
    let epilogue = Epilogue {
        bias: op.bias.then(|| optional.next()).flatten(),
        shift: op.shift.then(|| optional.next()).flatten().map(|shift| (shift, positions)),
        activation: None,
        residual: op.residual.then(|| optional.next()).flatten(),
    };
    let m = shape[0] * positions;
    let panels = match weights {
        Right::Panels(panels) => panels,
        Right::Tiles(tiled) => return tiled.multiply(machine, inputs[0], &epilogue, out),
    };
    if winograd::suits(op, x, weight) {
        return winograd::run(machine, inputs[0], x, panels, &epilogue, out);
    }
    with_left_operand(machine, panels, inputs[0], |data| {
        let channels = panels.channels;
        if elements(&weight[2..]) == 1 && op.stride == 1 && op.padding == [0, 0] {
            return matmul(machine, m, &Dense { data, channels }, panels, &epilogue, out);
        }
        let windows = Windows {
            x: data,
            picture: [x[1], x[2], channels],
            output: [shape[1], shape[2]],
            window: [weight[2], weight[3]],
            stride: op.stride,
            padding: op.padding[0],
            zeros: vec![0.0; channels],
        };
        matmul(machine, m, &windows, panels, &epilogue, out);
    });
}
