//! Pictures in overlapping tiles: where they lie, and how their results become one picture again.
//!
//! A tile's result weighs nothing at the tile's edges, where the network saw no neighbours, and more and more towards its
//! inside. At every pixel the weights of all tiles sum to 1. So a result changes smoothly from one tile to the next, and
//! where tiles agree it is what they agree on.

use std::ops::Range;

/// Share of an overlap, at each end, in which the tile that ends there weighs nothing.
const MARGIN: f32 = 0.25;

/// Tiles along one side of a picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    /// Where each begins.
    starts: Vec<usize>,
    /// Length of all.
    tile: usize,
    /// Of each tile, a weight for each of its pixels, enlarged.
    weights: Vec<Vec<f32>>,
    /// How much larger results are.
    times: usize,
}

impl Axis {
    /// Tiles of length `tile` that cover `length` and overlap by `overlap` at least, at multiples of `unit`; `length` and
    /// `tile` are such multiples, and `tile` is no longer than `length`.
    pub fn new(length: usize, tile: usize, overlap: usize, unit: usize, times: usize) -> Axis {
        let stride = (tile.saturating_sub(overlap) / unit).max(1) * unit;
        let last = length - tile;
        let count = last.div_ceil(stride) + 1;
        // As even as the unit allows.
        let start = |k: usize| if k + 1 == count { last } else { k * last / (count - 1) / unit * unit };
        let starts: Vec<usize> = (0..count).map(start).collect();
        let ends = |k: usize| [k == 0, k + 1 == count];
        let mut weights: Vec<Vec<f32>> = (0..count).map(|k| ramp(tile * times, overlap * times, ends(k))).collect();
        let mut sums = vec![0.0; length * times];
        for (start, weights) in starts.iter().zip(&weights) {
            weights.iter().zip(&mut sums[start * times..]).for_each(|(weight, sum)| *sum += weight);
        }
        for (start, weights) in starts.iter().zip(&mut weights) {
            weights.iter_mut().zip(&sums[start * times..]).for_each(|(weight, sum)| *weight /= sum);
        }
        Axis { starts, tile, weights, times }
    }

    /// Number of tiles.
    pub fn count(&self) -> usize {
        self.starts.len()
    }

    /// Pixels of a tile.
    pub fn span(&self, tile: usize) -> Range<usize> {
        self.starts[tile]..self.starts[tile] + self.tile
    }

    /// Pixels of a tile's result.
    pub fn large_span(&self, tile: usize) -> Range<usize> {
        let Range { start, end } = self.span(tile);
        start * self.times..end * self.times
    }
}

/// Weights along a tile before they are made to sum to 1: ends at the picture's border do not fall off.
fn ramp(length: usize, overlap: usize, at_border: [bool; 2]) -> Vec<f32> {
    let margin = overlap as f32 * MARGIN;
    let rise = (overlap as f32 - 2.0 * margin).max(1.0);
    let from_end = |pixels: usize, at_border: bool| match at_border {
        true => 1.0,
        false => ((pixels as f32 + 0.5 - margin) / rise).clamp(0.0, 1.0),
    };
    let weight = |i: usize| from_end(i, at_border[0]).min(from_end(length - 1 - i, at_border[1]));
    (0..length).map(weight).collect()
}

/// The part of a picture `[H, W, C]` in these rows and columns.
pub fn cut(picture: &[f32], width: usize, channels: usize, rows: Range<usize>, columns: Range<usize>) -> Vec<f32> {
    let row = |y: usize| &picture[(y * width + columns.start) * channels..(y * width + columns.end) * channels];
    rows.flat_map(row).copied().collect()
}

/// As [`cut`], of a picture `[C, H, W]` with so many pixels in all; the part is `[h, w, C]`.
pub fn cut_planes(
    picture: &[f32],
    width: usize,
    channels: usize,
    rows: Range<usize>,
    columns: Range<usize>,
) -> Vec<f32> {
    let plane = picture.len() / channels;
    let mut part = Vec::with_capacity(rows.len() * columns.len() * channels);
    for y in rows {
        for x in columns.clone() {
            part.extend((0..channels).map(|c| picture[c * plane + y * width + x]));
        }
    }
    part
}

/// Adds tile `[row, column]`'s result `[h, w, C]` to a picture `[H, W, C]` with its weights.
pub fn add(
    picture: &mut [f32],
    width: usize,
    channels: usize,
    [down, across]: [&Axis; 2],
    at: [usize; 2],
    part: &[f32],
) {
    let (rows, columns) = (down.large_span(at[0]), across.large_span(at[1]));
    let lines = part.chunks_exact(columns.len() * channels);
    for ((y, weight), line) in rows.zip(&down.weights[at[0]]).zip(lines) {
        let target = &mut picture[(y * width + columns.start) * channels..][..line.len()];
        let pixels = target.chunks_exact_mut(channels).zip(line.chunks_exact(channels));
        for ((to, from), own) in pixels.zip(&across.weights[at[1]]) {
            to.iter_mut().zip(from).for_each(|(to, from)| *to += weight * own * from);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_every_pixel_with_weights_that_sum_to_one() {
        for (length, tile, overlap, unit) in [
            (64, 64, 16, 1),
            (66, 64, 16, 2),
            (100, 64, 16, 1),
            (1024, 64, 16, 2),
            (120, 64, 16, 4),
            (9, 4, 2, 1),
            (5, 2, 1, 1),
        ] {
            for times in [1, 4] {
                let axis = Axis::new(length, tile, overlap, unit, times);
                let mut sums = vec![0.0f32; length * times];
                for k in 0..axis.count() {
                    let span = axis.span(k);
                    assert!(span.start.is_multiple_of(unit) && span.end <= length, "{span:?} of {length}");
                    if k > 0 {
                        assert!(
                            axis.span(k - 1).end >= span.start + overlap.min(tile - unit),
                            "{length} {tile}: {span:?}"
                        );
                    }
                    axis.weights[k].iter().zip(&mut sums[axis.large_span(k)]).for_each(|(weight, sum)| *sum += weight);
                }
                assert!(sums.iter().all(|sum| (sum - 1.0).abs() < 1e-6), "{length} {tile} {overlap}: {sums:?}");
            }
        }
        assert_eq!(Axis::new(64, 64, 16, 1, 4).count(), 1);
    }

    #[test]
    fn weights_never_jump() {
        let axis = Axis::new(150, 64, 16, 2, 4);
        for k in 0..axis.count() {
            for pair in axis.weights[k].windows(2) {
                assert!((pair[0] - pair[1]).abs() < 0.04, "{pair:?}");
            }
        }
        // Nor where a tile begins.
        assert_eq!((axis.weights[1][0], axis.weights[1][15]), (0.0, 0.0));
        assert!(axis.weights[1][20] > 0.0);
    }

    #[test]
    fn what_is_cut_and_added_is_the_picture_again() {
        let (height, width, channels) = (11, 9, 2);
        let picture: Vec<f32> = (0..height * width * channels).map(|i| i as f32).collect();
        let planes: Vec<f32> = (0..picture.len()).map(|i| picture[i % 99 * 2 + i / 99]).collect();
        let [down, across] = [Axis::new(height, 5, 2, 1, 1), Axis::new(width, 4, 2, 1, 1)];
        let mut sum = vec![0.0; picture.len()];
        for row in 0..down.count() {
            for column in 0..across.count() {
                let part = cut(&picture, width, channels, down.span(row), across.span(column));
                assert_eq!(part, cut_planes(&planes, width, channels, down.span(row), across.span(column)));
                add(&mut sum, width, channels, [&down, &across], [row, column], &part);
            }
        }
        assert!(sum.iter().zip(&picture).all(|(a, b)| (a - b).abs() < 1e-3));
    }
}
