//! The left operand of a product on the matrix unit: rows of bf16 in tiles of 16, without im2col.
//!
//! A picture is rounded once into a grid of pixels with zeros for its padding. A tile is 16 pixels in a row, a constant
//! distance apart, and the tap of a window is an offset that all tiles share. Neighbouring rows of the grid share their
//! padding, so that a tile may run on from one row to the next: maps of 8x8 fill four fifths of their tiles. What a tile
//! computes for padding is left out when its sums are stored.
//!
//! For a stride of `s` the grid is kept as `s * s` planes, one for each phase of a pixel's coordinates: the pixels that a
//! tap meets in neighbouring windows are neighbours in one of them.

use super::super::lanes::AlignedVec;
use super::super::{Machine, TASK_ELEMENTS};
use super::unit::{DEPTH, ROW, SIDE};
use super::vectors;
use rayon::prelude::*;
use std::cell::Cell;

/// No output for this row of a tile.
pub const NONE: u32 = u32::MAX;

/// Where the rows of a left operand lie in memory, and their division into tiles and steps. It follows from shapes alone.
pub struct Geometry {
    windows: Windows,
    grid: Grid,
    /// Bytes from one row of a tile to the next.
    pub pitch: usize,
    /// All tiles.
    pub tiles: Vec<RowTile>,
    /// Bytes from a row's start to each step's channels, in the order of the weights' steps.
    pub steps: Vec<usize>,
}

/// 16 rows.
pub struct RowTile {
    /// Bytes to the first row.
    pub start: usize,
    /// The row of the output that each is, or [`NONE`].
    pub outputs: [u32; SIDE],
}

/// The windows of pictures `[N, H, W, C]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Pictures, height, width, channels.
    pub picture: [usize; 4],
    /// Height and width of the output.
    pub output: [usize; 2],
    /// Height and width of the window.
    pub window: [usize; 2],
    /// Distance between neighbouring windows.
    pub stride: usize,
    /// Zeros above and to the left.
    pub padding: usize,
}

impl Windows {
    /// The rows of a matrix `[rows, channels]`: a picture one pixel wide, under a window of one pixel.
    pub fn dense(rows: usize, channels: usize) -> Windows {
        Windows { picture: [1, rows, 1, channels], output: [rows, 1], window: [1, 1], stride: 1, padding: 0 }
    }
}

/// Rows of bf16, filled as a geometry says.
#[derive(Clone, Copy)]
pub struct Operand<'a> {
    /// Where they are.
    pub geometry: &'a Geometry,
    bytes: &'a [u8],
}

thread_local! {
    /// Reused by later products, because new memory would have to be mapped each time. Taken out while in use.
    static MEMORY: Cell<AlignedVec> = Cell::default();
}

/// Bytes of a row of `channels`. An odd number of cache lines where a multiple of four would map the rows of a tile to few
/// sets of the L1 cache.
pub fn pitch_of(channels: usize) -> usize {
    let lines = channels.div_ceil(DEPTH);
    ROW * if lines.is_multiple_of(4) { lines + 1 } else { lines }
}

/// Offsets of a tap's steps.
pub fn channel_steps(channels: usize) -> impl Iterator<Item = usize> + Clone {
    (0..channels.div_ceil(DEPTH)).map(|block| block * ROW)
}

impl Geometry {
    /// The geometry of these windows.
    pub fn new(windows: Windows) -> Geometry {
        let grid = Grid::new(&windows);
        let pitch = pitch_of(windows.picture[3]);
        let taps = (0..windows.window[0] * windows.window[1]).map(|tap| {
            let (r, s) = (tap / windows.window[1], tap % windows.window[1]);
            let phase = r % grid.stride * grid.stride + s % grid.stride;
            ((phase * grid.lines + r / grid.stride) * grid.width + s / grid.stride) * pitch
        });
        let steps = channel_steps(windows.picture[3]);
        let steps = steps.flat_map(|channel| taps.clone().map(move |tap| tap + channel)).collect();
        let tile = |(start, outputs): (usize, [u32; SIDE])| RowTile { start: start * pitch, outputs };
        let tiles = grid.tiles(windows.picture[0], windows.output).into_iter().map(tile).collect();
        Geometry { windows, grid, pitch, tiles, steps }
    }

    /// What it is the geometry of.
    pub fn windows(&self) -> &Windows {
        &self.windows
    }

    /// Rows of the output.
    pub fn rows(&self) -> usize {
        self.windows.picture[0] * self.windows.output[0] * self.windows.output[1]
    }

    /// Elements of f32 in whose space the rows lie.
    pub fn words(&self) -> usize {
        self.grid.stride * self.grid.stride * self.grid.lines * self.grid.width * self.pitch / size_of::<f32>()
    }

    /// Fills the rows. `write(first, rows)` writes pixels `first..` of all pictures, as many as there are rows.
    pub fn fill(&self, memory: &mut [f32], write: impl Fn(usize, &mut [u16]) + Sync) {
        let (grid, [pictures, height, width, channels]) = (&self.grid, self.windows.picture);
        let (pitch, padding) = (self.pitch / 2, self.windows.padding);
        let line = grid.width * pitch;
        // Without padding one picture's lines follow the other's.
        let seamless = grid.stride == 1 && padding == 0 && [grid.height, grid.width] == [height, width];
        let per_task = (TASK_ELEMENTS / (grid.width * channels)).max(1);
        let rows: &mut [u16] = &mut bytemuck::cast_slice_mut(memory)[..2 * self.words()];
        rows.par_chunks_mut(per_task * line).enumerate().for_each(|(task, lines)| {
            let first = task * per_task;
            if seamless {
                let present = (pictures * height).saturating_sub(first).min(lines.len() / line);
                let (lines, rest) = lines.split_at_mut(present * line);
                if present > 0 {
                    write(first * width, lines);
                }
                return rest.fill(0);
            }
            for (i, to) in lines.chunks_exact_mut(line).enumerate() {
                let (phase, at) = ((first + i) / grid.lines, (first + i) % grid.lines);
                let (picture, y) = (at / grid.height, at % grid.height * grid.stride + phase / grid.stride);
                if picture >= pictures || !(padding..padding + height).contains(&y) {
                    to.fill(0);
                    continue;
                }
                let pixel = (picture * height + y - padding) * width;
                if grid.stride == 1 {
                    let (before, pixels) = to.split_at_mut(padding * pitch);
                    let (pixels, after) = pixels.split_at_mut(width * pitch);
                    before.fill(0);
                    write(pixel, pixels);
                    after.fill(0);
                    continue;
                }
                for (column, to) in to.chunks_exact_mut(pitch).enumerate() {
                    let x = column * grid.stride + phase % grid.stride;
                    match x.checked_sub(padding).filter(|x| *x < width) {
                        Some(x) => write(pixel + x, to),
                        None => to.fill(0),
                    }
                }
            }
        });
    }

    /// Fills the rows from f32 and calls `with` with them.
    pub fn with_narrowed(&self, machine: &Machine, x: &[f32], with: impl FnOnce(Operand<'_>)) {
        let (channels, pitch) = (self.windows.picture[3], self.pitch / 2);
        let mut memory = MEMORY.take();
        memory.resize(self.words());
        self.fill(&mut memory, |first, rows| {
            let from = &x[first * channels..][..rows.len() / pitch * channels];
            vectors::narrow_rows(machine.isa, from, channels, rows, pitch);
        });
        with(self.operand(&memory));
        MEMORY.set(memory);
    }

    /// Fills the rows with what `compute(first, rows)` makes of pixels `first..`, in f32. It makes a few at a time, which
    /// are rounded while they are in the L1 cache.
    pub fn fill_computed(&self, machine: &Machine, memory: &mut [f32], compute: impl Fn(usize, &mut [f32]) + Sync) {
        /// Elements that are made at a time.
        const PART: usize = 4096;
        let (channels, pitch) = (self.windows.picture[3], self.pitch / 2);
        let each = (PART / channels).max(1);
        self.fill(memory, |first, rows| {
            let mut part = vec![0.0; each.min(rows.len() / pitch) * channels];
            for (i, rows) in rows.chunks_mut(each * pitch).enumerate() {
                let part = &mut part[..rows.len() / pitch * channels];
                compute(first + i * each, part);
                vectors::narrow_rows(machine.isa, part, channels, rows, pitch);
            }
        });
    }

    /// Rows that were filled.
    pub fn operand<'a>(&'a self, memory: &'a [f32]) -> Operand<'a> {
        Operand { geometry: self, bytes: &bytemuck::cast_slice(memory)[..4 * self.words()] }
    }
}

impl<'a> Operand<'a> {
    /// The memory from a byte of a tile on.
    pub fn from(self, byte: usize) -> &'a [u8] {
        &self.bytes[byte..]
    }
}

/// The pixels of all pictures in lines, one picture below the other. Both axes are measured in strides.
struct Grid {
    stride: usize,
    /// Pixels of a line.
    width: usize,
    /// Lines of a picture.
    height: usize,
    /// Lines of a plane: those of all pictures, and those that the last tiles reach into.
    lines: usize,
}

impl Grid {
    fn new(windows: &Windows) -> Grid {
        let ([pictures, height, width, _], stride) = (windows.picture, windows.stride);
        let side = |length: usize, outputs: usize, window: usize| {
            let reached = (outputs - 1) * stride + window;
            let beyond = reached.saturating_sub(windows.padding + length);
            // What lies beyond the end may be the padding before the start of the next line, if no window starts there.
            let shared = stride == 1 && beyond <= windows.padding && outputs <= windows.padding + length;
            if shared { windows.padding + length } else { reached.max(windows.padding + length).div_ceil(stride) }
        };
        let height = side(height, windows.output[0], windows.window[0]);
        let width = side(width, windows.output[1], windows.window[1]);
        // The last tile starts at an output; its other rows and its taps lie up to 15 pixels and a window further.
        let [down, across] = windows.window.map(|length| (length - 1) / stride);
        let lines = pictures * height + down + (across + SIDE).div_ceil(width);
        Grid { stride, width, height, lines }
    }

    /// Where tiles start and which outputs their rows are: each begins at the first output that no tile before it has.
    fn tiles(&self, pictures: usize, output: [usize; 2]) -> Vec<(usize, [u32; SIDE])> {
        let mut tiles: Vec<(usize, [u32; SIDE])> = Vec::new();
        let mut next = 0;
        for picture in 0..pictures {
            for y in 0..output[0] {
                for x in 0..output[1] {
                    let at = (picture * self.height + y) * self.width + x;
                    if tiles.last().is_none_or(|(start, _)| at >= start + SIDE) {
                        tiles.push((at, [NONE; SIDE]));
                    }
                    if let Some((start, outputs)) = tiles.last_mut() {
                        outputs[at - *start] = next;
                    }
                    next += 1;
                }
            }
        }
        tiles
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::{Isa, Packing};
    use half::bf16;

    fn machine() -> Machine {
        Machine { isa: Isa::Portable, threads: 1, weights: Packing::Tiles }
    }

    /// What a row of a tile reads in a step.
    fn read(operand: Operand<'_>, tile: usize, row: usize, step: usize) -> Vec<f32> {
        let geometry = operand.geometry;
        let at = geometry.tiles[tile].start + row * geometry.pitch + geometry.steps[step];
        operand.from(at)[..ROW].as_chunks::<2>().0.iter().map(|x| bf16::from_le_bytes(*x).to_f32()).collect()
    }

    #[test]
    fn every_output_is_one_row_of_one_tile_and_its_steps_are_its_window() {
        // Strides that divide nothing, windows wider than the picture, channels that fill no step.
        let shapes = [
            ([2, 8, 8, 40], [8, 8], [3, 3], 1, 1),
            ([1, 5, 7, 3], [5, 7], [3, 3], 1, 1),
            ([2, 7, 6, 33], [4, 3], [3, 3], 2, 1),
            ([1, 9, 20, 4], [3, 7], [3, 3], 3, 1),
            ([1, 4, 4, 2], [2, 2], [4, 4], 2, 1),
            ([2, 6, 6, 5], [3, 3], [2, 2], 2, 0),
            ([1, 3, 2, 8], [4, 3], [4, 4], 1, 2),
            ([1, 16, 32, 32], [16, 32], [1, 1], 1, 0),
            ([2, 5, 6, 9], [7, 8], [1, 1], 1, 1),
        ];
        for (picture, output, window, stride, padding) in shapes {
            let [n, h, w, c] = picture;
            // Small integers, exact in bf16.
            let x: Vec<f32> = (0..n * h * w * c).map(|i| (i % 251) as f32 + 1.0).collect();
            // Stale contents of the memory would show.
            let geometry = Geometry::new(Windows { picture, output, window, stride, padding });
            let mut memory = vec![7.0; geometry.words()];
            geometry.fill_computed(&machine(), &mut memory, |first, rows| {
                rows.copy_from_slice(&x[first * c..][..rows.len()]);
            });
            let operand = geometry.operand(&memory);
            geometry.with_narrowed(&machine(), &x, |narrowed| assert_eq!(narrowed.bytes, operand.bytes));
            let mut seen = vec![0; n * output[0] * output[1]];
            assert_eq!(
                (geometry.rows(), geometry.steps.len()),
                (seen.len(), c.div_ceil(DEPTH) * window[0] * window[1])
            );
            for (number, tile) in geometry.tiles.iter().enumerate() {
                for (row, &out) in tile.outputs.iter().enumerate() {
                    // Rows that are nobody's are read, too.
                    let steps: Vec<Vec<f32>> =
                        (0..geometry.steps.len()).map(|s| read(operand, number, row, s)).collect();
                    if out == NONE {
                        continue;
                    }
                    let out = out as usize;
                    seen[out] += 1;
                    let (image, i, j) = (out / (output[0] * output[1]), out / output[1] % output[0], out % output[1]);
                    for (s, got) in steps.iter().enumerate() {
                        let (block, tap) = (s / (window[0] * window[1]), s % (window[0] * window[1]));
                        let (y, px) = (i * stride + tap / window[1], j * stride + tap % window[1]);
                        for (k, &got) in got.iter().enumerate() {
                            let channel = block * DEPTH + k;
                            let inside = (padding..padding + h).contains(&y)
                                && (padding..padding + w).contains(&px)
                                && channel < c;
                            let want = if inside {
                                x[((image * h + y - padding) * w + px - padding) * c + channel]
                            } else {
                                0.0
                            };
                            assert_eq!(got, want, "{picture:?} {window:?} / {stride}: output {out}, step {s}, {k}");
                        }
                    }
                }
            }
            assert!(seen.iter().all(|&times| times == 1), "{picture:?}");
        }
    }

    #[test]
    fn small_maps_fill_four_fifths_of_their_tiles() {
        for (side, most) in [(8, 10), (16, 32), (64, 512)] {
            let windows =
                Windows { picture: [2, side, side, 32], output: [side; 2], window: [3; 2], stride: 1, padding: 1 };
            assert!(Geometry::new(windows).tiles.len() <= most, "{side}x{side}");
        }
    }

    #[test]
    fn the_rows_of_a_matrix_are_the_rows_of_its_tiles() {
        let (rows, channels) = (21, 130);
        let x: Vec<f32> = (0..rows * channels).map(|i| (i % 251) as f32).collect();
        let geometry = Geometry::new(Windows::dense(rows, channels));
        assert_eq!((geometry.tiles.len(), geometry.steps.len()), (2, 5));
        let mut memory = vec![7.0; geometry.words()];
        geometry.fill_computed(&machine(), &mut memory, |first, rows| {
            rows.copy_from_slice(&x[first * channels..][..rows.len()]);
        });
        for row in 0..rows {
            assert_eq!(geometry.tiles[row / SIDE].outputs[row % SIDE], row as u32);
            for step in 0..5 {
                let got = read(geometry.operand(&memory), row / SIDE, row % SIDE, step);
                for (k, got) in got.into_iter().enumerate() {
                    let channel = step * DEPTH + k;
                    assert_eq!(got, if channel < channels { x[row * channels + channel] } else { 0.0 });
                }
            }
        }
        assert_eq!(geometry.tiles[1].outputs[5..], [NONE; 11]);
    }
}
