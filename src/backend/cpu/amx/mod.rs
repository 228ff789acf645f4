//! Products of bf16 with sums in f32 on Intel's matrix unit, AMX.
//!
//! * [`permit`]: whether the processor and the system allow it.
//! * [`unit`]: blocks of 32 rows by 32 columns in tile registers, and the same in plain Rust.
//! * [`weights`]: the right operand, packed when a plan is loaded.
//! * [`rows`]: the left operand, rounded to bf16 when a step runs; a convolution's windows are read in place.
//! * [`forms`]: the values that are written as operands in the first place.
//! * [`attention`]: both products of attention.
//! * [`vectors`]: loops around them.
//!
//! A task multiplies some tiles of rows by some panels of weights. It takes one panel after the other, which stays in the
//! L2 cache for all its rows, and sums a block over the whole depth without leaving the registers. The block passes through
//! the epilogue in f32 while it is in the L1 cache. Each sum has one order, whatever the tasks and the batch.
#![allow(unsafe_code)]

pub mod attention;
mod forms;
mod permit;
mod rows;
mod unit;
mod vectors;
mod weights;

pub use forms::Forms;
pub use permit::{Amx, amx};
pub use rows::Geometry;
pub use weights::TileWeights;

use super::lanes::{AlignedVec, LANES, Lanes, on_lanes};
use super::matmul::{Epilogue, OutputPointer};
use super::roofline::on_threads;
use super::{Isa, Machine, simd};
use rayon::prelude::*;
use rows::{NONE, Operand, RowTile};
use std::time::{Duration, Instant};
use unit::{BLOCK, Block, DEPTH, ROW, SIDE, STEP, Unit};

/// Bytes of rows of a task: they share the L2 cache with a panel.
const TASK_BYTES: usize = 3 << 19;
/// Multiply-adds below which one thread is faster than several.
const PARALLEL_THRESHOLD: usize = 1 << 20;

/// A product's weights, and where its left operand lies.
#[derive(Clone, Copy)]
pub struct Tiled<'a> {
    pub weights: &'a TileWeights,
    pub geometry: &'a Geometry,
    /// Whether the left operand is kept as such ([`Forms`]).
    pub kept: bool,
}

impl Tiled<'_> {
    /// `out [rows, outputs] = epilogue(x * weights)`.
    pub fn multiply(&self, machine: &Machine, x: &[f32], epilogue: &Epilogue<'_>, out: &mut [f32]) {
        if self.kept {
            return product(machine, self.geometry.operand(x), self.weights, epilogue, out);
        }
        self.geometry.with_narrowed(machine, x, |operand| product(machine, operand, self.weights, epilogue, out));
    }
}

fn product(machine: &Machine, operand: Operand<'_>, weights: &TileWeights, epilogue: &Epilogue<'_>, out: &mut [f32]) {
    let (n, geometry) = (weights.outputs, operand.geometry);
    assert_eq!(out.len(), geometry.rows() * n, "the planner gave the output another size");
    assert_eq!(geometry.steps.len(), weights.steps(), "operands of one depth");
    let tiles = geometry.tiles.len();
    let parallel = machine.threads > 1 && out.len() * weights.channels * weights.taps >= PARALLEL_THRESHOLD;
    let most = (TASK_BYTES / (SIDE * geometry.pitch)).clamp(2, 64);
    let group = tiles.div_ceil(tiles.div_ceil(most)).next_multiple_of(2);
    let row_tasks = tiles.div_ceil(group);
    let column_tasks = if parallel { (8 * machine.threads).div_ceil(row_tasks).clamp(1, weights.count()) } else { 1 };
    let panels = weights.count().div_ceil(column_tasks);
    let column_tasks = weights.count().div_ceil(panels);
    let out = OutputPointer(out.as_mut_ptr());
    let task = |index: usize| {
        let rows = &geometry.tiles[index / column_tasks * group..][..group.min(tiles - index / column_tasks * group)];
        let first = index % column_tasks * panels;
        let unit = Unit::begin(machine.isa);
        let mut sums = Sums([0.0; BLOCK * BLOCK]);
        for panel in first..weights.count().min(first + panels) {
            for pair in rows.chunks(2) {
                multiply(&unit, operand, pair, weights.panel(panel), &mut sums);
                // SAFETY: every row of the output is a row of one tile, and every column of one panel; tasks have disjoint
                // tiles or disjoint panels.
                unsafe { finish(machine, epilogue, pair, &mut sums, (panel * BLOCK, n), out.get()) };
            }
        }
    };
    if parallel {
        (0..row_tasks * column_tasks).into_par_iter().for_each(task);
    } else {
        (0..row_tasks * column_tasks).for_each(task);
    }
}

/// FLOP/s of all threads on operands in the L1 cache, a multiply-add counted as two: the best of several short runs.
pub fn peak_flops(isa: Isa, threads: usize) -> f64 {
    /// Blocks between two looks at the clock.
    const CALLS: usize = 1000;
    let steps = [0; 8];
    let one = || {
        let unit = Unit::begin(isa);
        let operands = AlignedVec::zeros(steps.len() * STEP / size_of::<f32>());
        let mut sums = Sums([0.0; BLOCK * BLOCK]);
        let (rows, weights) = (operands.as_ptr().cast::<u8>(), operands.as_ptr().cast());
        let tiles = [rows, rows];
        let sums = sums.0.as_mut_ptr();
        let block = Block { tiles: &tiles, pitch: ROW, steps: &steps, weights, sums, stride: BLOCK };
        let (started, mut calls) = (Instant::now(), 0);
        while started.elapsed() < Duration::from_millis(40) {
            // SAFETY: sixteen rows and eight steps of weights lie in the operands, 32 rows of 32 sums in `sums`.
            (0..CALLS).for_each(|_| unsafe { block.run(&unit) });
            calls += CALLS;
        }
        (calls * steps.len() * 2 * BLOCK * BLOCK * DEPTH) as f64 / started.elapsed().as_secs_f64()
    };
    (0..5).map(|_| on_threads(threads, &one)).fold(0.0, f64::max)
}

/// The sums of a block, on cache lines of their own.
#[repr(align(64))]
struct Sums([f32; BLOCK * BLOCK]);

fn multiply(unit: &Unit, operand: Operand<'_>, pair: &[RowTile], panel: &[u8], sums: &mut Sums) {
    let starts: [*const u8; 2] = std::array::from_fn(|t| operand.from(pair[t.min(pair.len() - 1)].start).as_ptr());
    let block = Block {
        tiles: &starts[..pair.len()],
        pitch: operand.geometry.pitch,
        steps: &operand.geometry.steps,
        weights: panel.as_ptr(),
        sums: sums.0.as_mut_ptr(),
        stride: BLOCK,
    };
    // SAFETY: the operand's memory has all rows of its tiles for all steps (`rows`), the panel all steps, and the sums 16
    // rows of 32 for each of two tiles.
    unsafe { block.run(unit) };
}

/// Applies the epilogue to a block, whose first column is `column`, and stores it in the rows of its outputs.
///
/// # Safety
/// `out` must have rows of `n` elements for all outputs of the tiles, of which no other thread accesses these columns
/// meanwhile.
unsafe fn finish(
    machine: &Machine,
    epilogue: &Epilogue<'_>,
    pair: &[RowTile],
    sums: &mut Sums,
    (column, n): (usize, usize),
    out: *mut f32,
) {
    let width = BLOCK.min(n - column);
    let part = |x: &[f32], at: usize| x[at..][..width].as_ptr();
    let bias = epilogue.bias.map_or(std::ptr::null(), |bias| part(bias, column));
    let shift = |row: usize| epilogue.shift.map_or(std::ptr::null(), |(x, each)| part(x, row / each * n + column));
    let residual = |row: usize| epilogue.residual.map_or(std::ptr::null(), |x| part(x, row * n + column));
    let rows = || pair.iter().flat_map(|tile| tile.outputs).enumerate().filter(|(_, row)| *row != NONE);
    let Some(activation) = epilogue.activation else {
        for (i, row) in rows() {
            let (from, row) = (sums.0[i * BLOCK..].as_ptr(), row as usize);
            // SAFETY: the sums have 32 columns; the others `width`, of which this task owns those of the output.
            unsafe { add(machine.isa, [from, bias, shift(row), residual(row)], width, out.add(row * n + column)) };
        }
        return;
    };
    let null = std::ptr::null();
    for (i, row) in rows() {
        let own = sums.0[i * BLOCK..].as_mut_ptr();
        // SAFETY: as above, in place.
        unsafe { add(machine.isa, [own, bias, shift(row as usize), null], width, own) };
    }
    simd::activate(machine.isa, activation, &mut sums.0[..pair.len() * SIDE * BLOCK]);
    for (i, row) in rows() {
        let (from, row) = (sums.0[i * BLOCK..].as_ptr(), row as usize);
        // SAFETY: as above.
        unsafe { add(machine.isa, [from, residual(row), null, null], width, out.add(row * n + column)) };
    }
}

on_lanes! {
    /// The sum of up to four vectors, in their order; a null one is left out. The result may be the first.
    ///
    /// # Safety
    /// `count` elements must be readable at each vector and writable at `to`. The machine must have the instructions.
    pub unsafe fn add(terms: [*const f32; 4], count: usize, to: *mut f32) = add_lanes
}

#[inline(always)]
unsafe fn add_lanes<L: Lanes>(terms: [*const f32; 4], count: usize, to: *mut f32) {
    let [first, others @ ..] = terms;
    let whole = count - count % LANES;
    for i in (0..whole).step_by(LANES) {
        // SAFETY: `i + 16` is at most `count`.
        unsafe {
            let mut sum = L::load(first.add(i));
            for term in others.into_iter().filter(|term| !term.is_null()) {
                sum = sum.add(L::load(term.add(i)));
            }
            sum.store(to.add(i));
        }
    }
    for i in whole..count {
        // SAFETY: `i` is below `count`.
        unsafe {
            let others = others.into_iter().filter(|term| !term.is_null());
            *to.add(i) = others.fold(*first.add(i), |sum, term| sum + *term.add(i));
        }
    }
}
