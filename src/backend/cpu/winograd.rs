//! 3x3 convolution with a quarter of the multiplications: Winograd's F(4x4, 3x3).
//!
//! The output is divided into tiles of 4x4 pixels. A tile's 6x6 inputs are transformed to 36 points per channel, and so
//! are the weights; the sum over channels is one small matrix product per point ([`transform`]).
//!
//! Intermediate values stay in or near the L2 cache. Tiles are processed in blocks of [`TILES`]: first their points are
//! computed for all channels, then one bundle of panels after the other is multiplied with the block. Weights are
//! transformed at every use, [`DEPTH`] channels at a time. For a full block that takes a twentieth of the time of the
//! matrix products; kept, transformed weights would take four times the memory and bandwidth, eight times for f16
//! files.
//!
//! Sums run over the channels in order, whatever the block size, so results depend neither on threads nor on the batch.
#![allow(unsafe_code)]

use super::Machine;
use super::lanes::AlignedVec;
use super::matmul::{Epilogue, OutputPointer};
use super::panels::Panels;
use super::tile::{MR, NR, PANELS, Tile};
use super::winograd_transform::{self as transform, POINTS, SIDE, TAPS, WINDOW};
use crate::ops::Conv2d;
use rayon::prelude::*;
use std::cell::Cell;

/// Tiles of a block: enough to amortise the transformation of weights, few enough for their sums to stay in the cache.
const TILES: usize = 16 * MR;
/// Channels whose transformed weights are in memory at a time.
const DEPTH: usize = 64;
/// Elements of transformed inputs in memory at a time: 16 MiB.
const WAVE: usize = 4 << 20;

/// Elements from one point's matrix to the next. One cache line of padding: at a distance of whole pages all points of
/// a tile would map to the same few sets of the L1 cache.
fn plane(rows: usize, columns: usize) -> usize {
    rows * columns + NR
}

/// Whether a convolution `x [N, H, W, C]`, `weight [O, C, R, S]` uses Winograd. Depends on the shape of one picture
/// only, so that results do not depend on the batch.
pub fn suits(op: &Conv2d, x: &[usize], weight: &[usize]) -> bool {
    let useful = x[1] * x[2];
    let computed = x[1].next_multiple_of(SIDE) * x[2].next_multiple_of(SIDE);
    let channels = x[3].is_multiple_of(NR) && x[3] >= 2 * NR && weight[0] >= 2 * NR;
    weight[2..] == [3, 3] && op.stride == 1 && op.padding == [1, 1] && channels && 2 * useful >= computed
}

/// Transformed weights and sums of one task.
#[derive(Default)]
struct Scratch {
    widened: AlignedVec,
    weights: AlignedVec,
    sums: AlignedVec,
}

thread_local! {
    /// Reused by later calls, because new memory would have to be mapped each time. Taken out while in use; a nested
    /// task on the same thread then allocates its own.
    static SCRATCH: Cell<Scratch> = Cell::default();
    static POINTS_OF_WAVE: Cell<AlignedVec> = Cell::default();
}

/// One call's tensors and sizes.
struct Problem<'a> {
    machine: &'a Machine,
    x: &'a [f32],
    panels: &'a Panels,
    epilogue: &'a Epilogue<'a>,
    zeros: Vec<f32>,
    height: usize,
    width: usize,
    /// Tiles of a picture, down and across.
    grid: [usize; 2],
    out: OutputPointer,
}

/// `out [N, H, W, O]` from `x [N, H, W, C]`.
pub fn run(machine: &Machine, x: &[f32], shape: &[usize], panels: &Panels, epilogue: &Epilogue<'_>, out: &mut [f32]) {
    let (height, width, channels) = (shape[1], shape[2], shape[3]);
    assert_eq!(out.len(), shape[0] * height * width * panels.outputs, "the planner gave the output another size");
    assert!(channels == panels.channels && panels.taps == TAPS && channels.is_multiple_of(NR));
    let grid = [height.div_ceil(SIDE), width.div_ceil(SIDE)];
    let tiles = shape[0] * grid[0] * grid[1];
    let zeros = vec![0.0; channels];
    let out = OutputPointer(out.as_mut_ptr());
    let problem = Problem { machine, x, panels, epilogue, zeros, height, width, grid, out };
    let block = tiles.div_ceil(tiles.div_ceil(TILES)).next_multiple_of(MR);
    let per_block = channels.div_ceil(DEPTH) * POINTS * plane(block, DEPTH);
    let wave = (WAVE / per_block).max(machine.threads);
    let mut points = POINTS_OF_WAVE.take();
    points.resize(wave.min(tiles.div_ceil(block)) * per_block);
    for first in (0..tiles).step_by(wave * block) {
        problem.wave(first, (wave * block).min(tiles - first), block, per_block, &mut points);
    }
    POINTS_OF_WAVE.set(points);
}

impl Problem<'_> {
    /// Tiles `first..first + count`, in blocks.
    fn wave(&self, first: usize, count: usize, block: usize, per_block: usize, points: &mut [f32]) {
        let machine = self.machine;
        let parallel = machine.threads > 1;
        let blocks: Vec<(usize, usize)> =
            (0..count).step_by(block).map(|start| (start, block.min(count - start))).collect();
        // Fewer tiles per task where there are few, so that all threads have work.
        let part = count.div_ceil(8 * machine.threads).clamp(1, 16);
        let target = OutputPointer(points.as_mut_ptr());
        let transform = |&(start, tiles, from): &(usize, usize, usize)| {
            for tile in from..tiles.min(from + part) {
                // SAFETY: blocks have disjoint parts of the points, and each tile is transformed by one task.
                unsafe {
                    let block = target.get().add(start / block * per_block);
                    self.transform(first + start + tile, block, tile, tiles);
                }
            }
        };
        let parts: Vec<(usize, usize, usize)> = blocks
            .iter()
            .flat_map(|&(start, tiles)| (0..tiles).step_by(part).map(move |from| (start, tiles, from)))
            .collect();
        let bundles = self.panels.count().div_ceil(PANELS);
        let multiply = |index: usize| {
            let (start, tiles) = blocks[index / bundles];
            let panel = index % bundles * PANELS;
            let count = PANELS.min(self.panels.count() - panel);
            let mut scratch = SCRATCH.take();
            let points = points_of(target, start / block * per_block, per_block);
            self.multiply(first + start, tiles, panel, count, points, &mut scratch);
            SCRATCH.set(scratch);
        };
        if parallel {
            parts.par_iter().for_each(transform);
            (0..blocks.len() * bundles).into_par_iter().for_each(multiply);
        } else {
            parts.iter().for_each(transform);
            (0..blocks.len() * bundles).for_each(multiply);
        }
    }

    /// Transforms one tile into the points of its block of `tiles`: `[slice][point][tile][channel of the slice]`.
    ///
    /// # Safety
    /// `block` must have room for all points of `tiles` tiles; no other task may write tile `at`.
    unsafe fn transform(&self, tile: usize, block: *mut f32, at: usize, tiles: usize) {
        let channels = self.panels.channels;
        let (image, top, left) = self.position(tile);
        let mut pixels = [self.zeros.as_ptr(); POINTS];
        for (i, pixel) in pixels.iter_mut().enumerate() {
            let (y, x) = (top + i / WINDOW, left + i % WINDOW);
            if y >= 1 && x >= 1 && y <= self.height && x <= self.width {
                let position = (image * self.height + y - 1) * self.width + x - 1;
                *pixel = self.x[position * channels..][..channels].as_ptr();
            }
        }
        for from in (0..channels).step_by(DEPTH) {
            let depth = DEPTH.min(channels - from);
            // SAFETY: slices before this one take `POINTS * tiles * from` elements; pixels have all channels.
            unsafe {
                let out = block.add(from / DEPTH * POINTS * plane(tiles, DEPTH) + at * depth);
                transform::input(self.machine.isa, &pixels, from, depth, out, plane(tiles, depth));
            }
        }
    }

    /// Computes `count` panels of the output for a block of tiles, from its points.
    fn multiply(&self, first: usize, tiles: usize, panel: usize, count: usize, points: &[f32], scratch: &mut Scratch) {
        debug_assert!(count <= PANELS);
        let (isa, channels, columns) = (self.machine.isa, self.panels.channels, count * NR);
        scratch.sums.resize(POINTS * plane(TILES, PANELS * NR));
        scratch.weights.resize(POINTS * plane(DEPTH, PANELS * NR));
        for from in (0..channels).step_by(DEPTH) {
            let depth = DEPTH.min(channels - from);
            for p in 0..count {
                let taps = self.panels.taps_of(panel + p, from, depth, isa, &mut scratch.widened).map(<[f32]>::as_ptr);
                // SAFETY: every tap has `depth` rows; a point's weights are `count` panels of `depth` rows.
                unsafe {
                    let out = scratch.weights[p * depth * NR..].as_mut_ptr();
                    transform::weights(isa, &taps, depth, out, plane(depth, columns));
                }
            }
            let slice = &points[from / DEPTH * POINTS * plane(tiles, DEPTH)..];
            for (point, rows) in slice.chunks_exact(plane(tiles, depth)).take(POINTS).enumerate() {
                for row in (0..tiles).step_by(MR) {
                    let height = MR.min(tiles - row);
                    let table: [*const f32; MR] =
                        std::array::from_fn(|r| rows[(row + r.min(height - 1)) * depth..].as_ptr());
                    let tile = Tile {
                        rows: table.as_ptr(),
                        stride: 0,
                        segments: 1,
                        offset: 0,
                        depth,
                        panel: scratch.weights[point * plane(depth, columns)..].as_ptr(),
                        panel_stride: depth * NR,
                        panels: count,
                        c: scratch.sums[point * plane(tiles, columns) + row * columns..].as_mut_ptr(),
                        ldc: columns,
                        height,
                        accumulate: from > 0,
                        pairs: false,
                    };
                    // SAFETY: rows of `depth` elements, `count` panels of `depth` rows, sums of `columns`.
                    unsafe { tile.run(isa) };
                }
            }
        }
        for tile in 0..tiles {
            for p in 0..count {
                let sums = scratch.sums[tile * columns + p * NR..].as_ptr();
                self.finish(first + tile, (panel + p) * NR, sums, plane(tiles, columns));
            }
        }
    }

    /// Transforms one tile's sums of a panel to pixels, applies the epilogue and stores them.
    fn finish(&self, tile: usize, column: usize, sums: *const f32, plane: usize) {
        let (isa, n) = (self.machine.isa, self.panels.outputs);
        let columns = NR.min(n - column);
        let (image, top, left) = self.position(tile);
        let mut constant = [0.0f32; NR];
        if let Some(bias) = self.epilogue.bias {
            constant[..columns].copy_from_slice(&bias[column..][..columns]);
        }
        if let Some((shift, _)) = self.epilogue.shift {
            constant.iter_mut().zip(&shift[image * n + column..][..columns]).for_each(|(c, s)| *c += s);
        }
        let (rows, across) = (SIDE.min(self.height - top), SIDE.min(self.width - left));
        let at = ((image * self.height + top) * self.width + left) * n + column;
        let strides = [self.width * n, n];
        if columns == NR {
            let residual = self.epilogue.residual.map_or(std::ptr::null(), |residual| residual[at..].as_ptr());
            // SAFETY: `sums` points to a tile's sixteen columns in each plane. One task writes each pixel's panel,
            // inside the output [N, H, W, O]; the residual has the same shape.
            unsafe {
                let out = self.out.get().add(at);
                transform::output(isa, sums, plane, &constant, residual, out, strides, [rows, across]);
            }
            return;
        }
        let mut pixels = [0.0f32; SIDE * SIDE * NR];
        // SAFETY: as above; `pixels` has room for the whole tile.
        unsafe {
            let out = pixels.as_mut_ptr();
            transform::output(isa, sums, plane, &constant, std::ptr::null(), out, [SIDE * NR, NR], [rows, across]);
        }
        for (i, j) in (0..rows).flat_map(|i| (0..across).map(move |j| (i, j))) {
            let at = at + i * strides[0] + j * strides[1];
            let pixel = &mut pixels[(i * SIDE + j) * NR..][..columns];
            if let Some(residual) = self.epilogue.residual {
                pixel.iter_mut().zip(&residual[at..]).for_each(|(y, r)| *y += r);
            }
            // SAFETY: as above.
            unsafe { std::ptr::copy_nonoverlapping(pixel.as_ptr(), self.out.get().add(at), columns) };
        }
    }

    /// Picture, first row and first column of a tile.
    fn position(&self, tile: usize) -> (usize, usize, usize) {
        let per_image = self.grid[0] * self.grid[1];
        let index = tile % per_image;
        (tile / per_image, index / self.grid[1] * SIDE, index % self.grid[1] * SIDE)
    }
}

/// Points that all tasks have finished writing.
fn points_of<'a>(from: OutputPointer, start: usize, length: usize) -> &'a [f32] {
    // SAFETY: called with ranges of the wave's points, after all of them were written.
    unsafe { std::slice::from_raw_parts(from.get().add(start), length) }
}
