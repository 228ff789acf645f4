//! Pictures of other sizes, bit for bit as Pillow makes them.
//!
//! Pillow works on bytes: each direction is a weighted sum over a window, with weights in fixed point, and is rounded to
//! bytes before the other one begins. With a reducing gap, a picture that shrinks by more than a factor of two along a side
//! is first averaged over whole blocks.

use super::Image;
use crate::ops::{CUBIC, LANCZOS, Resampling, resampling_window};
use std::iter::repeat_n;
use std::ops::Range;

impl Image {
    /// The picture in another size, bicubic and with a reducing gap of 1: as Kandinsky's pipelines prepare given pictures.
    /// Proportions are those of the new size.
    ///
    /// *Source* Pillow's `Image.resize`.
    ///
    /// # Panics
    /// If a side is 0, or the picture has not as many bytes as its sides say.
    #[must_use]
    pub fn resized(&self, width: usize, height: usize) -> Image {
        if [width, height] == [self.width, self.height] {
            return self.clone();
        }
        let from = [self.width, self.height];
        let blocks = [from[0] / width, from[1] / height].map(|factor| factor.max(1));
        let pixels = if blocks == [1, 1] {
            resample::<3>(&self.pixels, from.map(Span::whole), [width, height], &CUBIC)
        } else {
            let reduced = reduce(self, blocks);
            let span = |k: usize| Span {
                pixels: [reduced.width, reduced.height][k],
                length: from[k] as f64 / blocks[k] as f64,
            };
            resample::<3>(&reduced.pixels, [span(0), span(1)], [width, height], &CUBIC)
        };
        Image { width, height, pixels }
    }
}

/// Grey values `[height, width]` in another size, by Lanczos' filter with three lobes.
pub(super) fn resized_grey(pixels: &[u8], from: [usize; 2], to: [usize; 2]) -> Vec<u8> {
    if from == to { pixels.to_vec() } else { resample::<1>(pixels, from.map(Span::whole), to, &LANCZOS) }
}

/// Means of blocks of so many pixels in width and height; those at the right and lower border may be smaller.
///
/// *Source* Pillow's `Reduce.c`, whose division is a multiplication by a number of 32 bits.
fn reduce(image: &Image, [across, down]: [usize; 2]) -> Image {
    let [width, height] = [image.width.div_ceil(across), image.height.div_ceil(down)];
    let mut pixels = Vec::with_capacity(3 * width * height);
    for y in 0..height {
        let rows = y * down..((y + 1) * down).min(image.height);
        for x in 0..width {
            let columns = x * across..((x + 1) * across).min(image.width);
            let count = (rows.len() * columns.len()) as u32;
            let factor = ((1u64 << 32) / (256 * u64::from(count))) as u32;
            for c in 0..3 {
                let in_row = |row: usize| columns.clone().map(move |column| (row * image.width + column) * 3 + c);
                let sum: u32 = rows.clone().flat_map(in_row).map(|at| u32::from(image.pixels[at])).sum();
                pixels.push(((sum + count / 2).wrapping_mul(factor) >> 24) as u8);
            }
        }
    }
    Image { width, height, pixels }
}

/// The part of a side that is resized: from its first pixel on.
#[derive(Clone, Copy)]
pub(crate) struct Span {
    /// Pixels of the side.
    pixels: usize,
    /// Of which so many count, the last one perhaps in part.
    length: f64,
}

impl Span {
    /// All of a side.
    pub fn whole(pixels: usize) -> Span {
        Span { pixels, length: pixels as f64 }
    }
}

/// `pixels [height, width, C]` in another size, width first; all of the result is kept.
fn resample<const C: usize>(pixels: &[u8], from: [Span; 2], to: [usize; 2], filter: &Resampling) -> Vec<u8> {
    let [across, down] = [0, 1].map(|k| Axis::new(from[k], to[k], to[k], filter));
    let sides = from.map(|span| span.pixels);
    let [columns, rows] = [&across, &down].map(|axis| axis.reach.clone());
    let kept = pixels.chunks_exact(C * sides[0]).skip(rows.start).take(rows.len());
    let part: Vec<u8> = kept.flat_map(|row| &row[C * columns.start..C * columns.end]).copied().collect();
    resize_both::<C>(&part, [&across, &down], sides, to)
}

/// Resizes both directions of the part of a picture that the two axes reach; `from` and `to` are width and height of the
/// whole picture before and after, which decide the order.
pub(crate) fn resize_both<const C: usize>(
    part: &[u8],
    [across, down]: [&Axis; 2],
    from: [usize; 2],
    to: [usize; 2],
) -> Vec<u8> {
    let columns = across.reach.len();
    // Pillow 13 resizes the height first if it loses more than twice as many pixels as the width.
    if to[1] < from[1] && from[1] - to[1] > 2 * from[0].saturating_sub(to[0]) {
        across.rows::<C>(&down.columns::<C>(part, columns), columns)
    } else {
        down.columns::<C>(&across.rows::<C>(part, columns), across.kept())
    }
}

/// Fraction bits of a fixed-point weight.
const FRACTION: u32 = 22;

/// One direction of the resize: a window of input pixels and weights for each output position that is kept.
pub(crate) struct Axis {
    /// Input pixels that some window reads.
    pub reach: Range<usize>,
    windows: Vec<Window>,
    /// Output positions before and after the windows, where what is kept lies outside of the resized picture: black.
    outside: [usize; 2],
}

struct Window {
    /// Counted from the start of the reach.
    first: usize,
    weights: Vec<i32>,
}

impl Axis {
    /// From a side to `resized` pixels, of which the middle `kept` are computed.
    ///
    /// *Source* Pillow's `Resample.c`, with its integer weights. A side that keeps its length has weights of 1.
    pub fn new(from: Span, resized: usize, kept: usize, filter: &Resampling) -> Axis {
        let window = |i: usize| {
            let (first, weights) = resampling_window(filter, from.pixels, from.length, resized, i);
            let fixed = |w: f64| {
                let w = w * f64::from(1 << FRACTION);
                (w + 0.5f64.copysign(w)) as i32
            };
            Window { first, weights: weights.into_iter().map(fixed).collect() }
        };
        let before = kept.saturating_sub(resized).div_ceil(2);
        let start = resized.saturating_sub(kept) / 2;
        let mut windows: Vec<Window> = (start..start + kept.min(resized)).map(window).collect();
        let first = windows[0].first;
        windows.iter_mut().for_each(|window| window.first -= first);
        let last = &windows[windows.len() - 1];
        let outside = [before, kept - windows.len() - before];
        Axis { reach: first..first + last.first + last.weights.len(), windows, outside }
    }

    /// Output positions that are kept.
    fn kept(&self) -> usize {
        self.outside[0] + self.windows.len() + self.outside[1]
    }

    /// Resizes each row of `pixels [.., width, C]`, where width is that of the reach: `[.., kept, C]`.
    fn rows<const C: usize>(&self, pixels: &[u8], width: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(pixels.len() / width * self.windows.len());
        let [before, after] = self.outside.map(|positions| repeat_n(0, C * positions));
        for row in pixels.chunks_exact(C * width) {
            out.extend(before.clone());
            for window in &self.windows {
                out.extend((0..C).map(|c| window.sum(row[C * window.first + c..].iter().step_by(C))));
            }
            out.extend(after.clone());
        }
        out
    }

    /// Resizes each column of `pixels [.., width, C]`, where the height is that of the reach: `[kept, width, C]`.
    fn columns<const C: usize>(&self, pixels: &[u8], width: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(C * width * self.windows.len());
        let [before, after] = self.outside.map(|positions| repeat_n(0, C * width * positions));
        out.extend(before);
        for window in &self.windows {
            let seen = &pixels[C * width * window.first..];
            out.extend((0..C * width).map(|at| window.sum(seen[at..].iter().step_by(C * width))));
        }
        out.extend(after);
        out
    }
}

impl Window {
    /// The weighted sum, rounded to a byte.
    fn sum<'a>(&self, pixels: impl Iterator<Item = &'a u8>) -> u8 {
        let terms = self.weights.iter().zip(pixels).map(|(&weight, &byte)| weight * i32::from(byte));
        let sum = terms.fold(1 << (FRACTION - 1), i32::wrapping_add);
        (sum >> FRACTION).clamp(0, 255) as u8
    }
}
