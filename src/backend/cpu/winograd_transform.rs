//! The three linear maps of Winograd's convolution F(4x4, 3x3), sixteen channels at a time.
//!
//! A 1-D convolution with 4 outputs and 3 weights is a product of polynomials, evaluated at the points 0, a, -a, b, -b
//! and infinity (Toom and Cook; for pictures Winograd 1980 and Lavin & Gray 2016, section 4): six multiplications
//! instead of twelve, and in two dimensions 36 instead of 144. With `a = 1/sqrt(2)` and `b = sqrt(2)`, whose powers
//! stay near one, the rounding error in f32 is twice that of a plain sum; with the usual 1 and 2 it is four times that
//! (relative to the output's root mean square, 320 channels).
#![allow(unsafe_code)]
#![allow(clippy::needless_range_loop, reason = "i and j are rows and columns of several matrices")]

use super::lanes::{LANES, Lanes, on_lanes};

/// Outputs of a tile per dimension.
pub const SIDE: usize = 4;
/// Inputs of a tile per dimension.
pub const WINDOW: usize = SIDE + 2;
/// Points of a tile, each a multiplication.
pub const POINTS: usize = WINDOW * WINDOW;
/// Taps of the window.
pub const TAPS: usize = 9;

/// The points `a` and `b`.
const A: f32 = std::f32::consts::FRAC_1_SQRT_2;
const B: f32 = std::f32::consts::SQRT_2;

/// Inputs to points: each row holds the coefficients of the modulus divided by one of its factors.
#[inline(always)]
fn input_line<L: Lanes>(d: [L; WINDOW]) -> [L; WINDOW] {
    let even_a = d[2].mul_add(-2.0, d[4]);
    let odd_a = d[3].mul_add(A, d[1].mul(-B));
    let even_b = d[2].mul_add(-0.5, d[4]);
    let odd_b = d[3].mul_add(B, d[1].mul(-A));
    [
        d[2].mul_add(-2.5, d[0].add(d[4])),
        even_a.add(odd_a),
        even_a.sub(odd_a),
        even_b.add(odd_b),
        even_b.sub(odd_b),
        d[3].mul_add(-2.5, d[1].add(d[5])),
    ]
}

/// Weights to points: the polynomial `g0 + g1 x + g2 x^2` at each of them, divided by the modulus' derivative there.
#[inline(always)]
fn weight_line<L: Lanes>(g: [L; 3]) -> [L; WINDOW] {
    let even_a = g[2].mul_add(-1.0 / 3.0, g[0].mul(-2.0 / 3.0));
    let odd_a = g[1].mul(-2.0 / 3.0 * A);
    let even_b = g[2].mul_add(1.0 / 3.0, g[0].mul(1.0 / 6.0));
    let odd_b = g[1].mul(B / 6.0);
    [g[0], even_a.add(odd_a), even_a.sub(odd_a), even_b.add(odd_b), even_b.sub(odd_b), g[2]]
}

/// Sums at the points to outputs.
#[inline(always)]
fn output_line<L: Lanes>(m: [L; WINDOW]) -> [L; SIDE] {
    let (even_a, odd_a) = (m[1].add(m[2]), m[1].sub(m[2]));
    let (even_b, odd_b) = (m[3].add(m[4]), m[3].sub(m[4]));
    [
        m[0].add(even_a).add(even_b),
        odd_b.mul_add(B, odd_a.mul(A)),
        even_b.mul_add(2.0, even_a.mul(0.5)),
        odd_b.mul_add(2.0 * B, odd_a.mul_add(0.5 * A, m[5])),
    ]
}

on_lanes! {
    /// Transforms one input tile to its points: `out[point * plane + c]` for `channels` channels, a multiple of
    /// sixteen.
    ///
    /// # Safety
    /// Each of the pixels must point to `channels` readable elements, `out` to `POINTS` planes of which the first
    /// `channels` elements are writable. The machine must have the instructions.
    pub unsafe fn input(pixels: &[*const f32; POINTS], offset: usize, channels: usize, out: *mut f32, plane: usize)
        = input_tile
}

#[inline(always)]
unsafe fn input_tile<L: Lanes>(
    pixels: &[*const f32; POINTS],
    offset: usize,
    channels: usize,
    out: *mut f32,
    plane: usize,
) {
    for c in (0..channels).step_by(LANES) {
        let mut half = [[L::splat(0.0); WINDOW]; WINDOW];
        for j in 0..WINDOW {
            // SAFETY: `c + 16` is at most `channels`.
            let column = std::array::from_fn(|i| unsafe { L::load(pixels[i * WINDOW + j].add(offset + c)) });
            let column = input_line(column);
            for i in 0..WINDOW {
                half[i][j] = column[i];
            }
        }
        for (i, row) in half.into_iter().enumerate() {
            for (j, value) in input_line(row).into_iter().enumerate() {
                // SAFETY: as above, in the plane of this point.
                unsafe { value.store(out.add((i * WINDOW + j) * plane + c)) };
            }
        }
    }
}

on_lanes! {
    /// Transforms the weights of sixteen outputs to their points: `rows` channels of `taps[tap][row][16]` to
    /// `out[point * plane + row * 16 ..]`.
    ///
    /// # Safety
    /// Each tap must point to `rows * 16` readable elements, `out` to `POINTS` planes whose first `rows * 16` elements
    /// are writable. The machine must have the instructions.
    pub unsafe fn weights(taps: &[*const f32; TAPS], rows: usize, out: *mut f32, plane: usize) = weights_panel
}

#[inline(always)]
unsafe fn weights_panel<L: Lanes>(taps: &[*const f32; TAPS], rows: usize, out: *mut f32, plane: usize) {
    for at in (0..rows).map(|row| row * LANES) {
        let mut half = [[L::splat(0.0); 3]; WINDOW];
        for j in 0..3 {
            // SAFETY: `at + 16` is at most `rows * 16`.
            let column = weight_line(std::array::from_fn(|i| unsafe { L::load(taps[i * 3 + j].add(at)) }));
            for i in 0..WINDOW {
                half[i][j] = column[i];
            }
        }
        for (i, row) in half.into_iter().enumerate() {
            for (j, value) in weight_line(row).into_iter().enumerate() {
                // SAFETY: as above, in the plane of this point.
                unsafe { value.store(out.add((i * WINDOW + j) * plane + at)) };
            }
        }
    }
}

on_lanes! {
    /// Transforms a tile's sums at the points, `sums[point * plane ..]`, to sixteen channels of its pixels; adds
    /// `constant`, and `residual` unless that is null. Only the `size` rows and columns inside the picture are stored.
    /// `strides` are the distances between rows and between pixels of `out` and `residual`.
    ///
    /// # Safety
    /// `sums` must point to `POINTS` planes that start with sixteen readable elements. Each stored pixel must have
    /// sixteen writable elements in `out` and readable ones in `residual`. The machine must have the instructions.
    pub unsafe fn output(
        sums: *const f32,
        plane: usize,
        constant: &[f32; LANES],
        residual: *const f32,
        out: *mut f32,
        strides: [usize; 2],
        size: [usize; 2],
    ) = output_tile
}

#[inline(always)]
unsafe fn output_tile<L: Lanes>(
    sums: *const f32,
    plane: usize,
    constant: &[f32; LANES],
    residual: *const f32,
    out: *mut f32,
    strides: [usize; 2],
    size: [usize; 2],
) {
    // SAFETY: each plane starts with sixteen elements.
    let load = |i: usize, j: usize| unsafe { L::load(sums.add((i * WINDOW + j) * plane)) };
    let columns: [[L; SIDE]; WINDOW] = std::array::from_fn(|j| output_line(std::array::from_fn(|i| load(i, j))));
    // SAFETY: sixteen elements.
    let constant = unsafe { L::load(constant.as_ptr()) };
    let half: [[L; WINDOW]; SIDE] = std::array::from_fn(|i| std::array::from_fn(|j| columns[j][i]));
    for (i, row) in half.into_iter().enumerate().take(size[0]) {
        for (j, value) in output_line(row).into_iter().enumerate().take(size[1]) {
            let at = i * strides[0] + j * strides[1];
            let value = value.add(constant);
            // SAFETY: the pixel lies inside.
            unsafe {
                let value = if residual.is_null() { value } else { value.add(L::load(residual.add(at))) };
                value.store(out.add(at));
            }
        }
    }
}
