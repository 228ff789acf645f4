//! GEMM with packed weights, shared by `linear` and `conv2d`.
//!
//! A task computes some rows of some groups of panels. It takes as many panels at once as a tile has, in blocks of
//! depth that fit the L1 cache, and multiplies each block by all rows of the task before the next block. Finished
//! columns pass through the epilogue while they are in the cache.
//!
//! A GEMM crate would need im2col for convolutions and whole weights widened from f16, and it guarantees no order of
//! summation. PERFORMANCE.md compares the speed.
#![allow(unsafe_code)]

use super::lanes::{AlignedVec, sum};
use super::panels::Panels;
use super::simd;
use super::tile::{Isa, MR, NR, PANELS, Tile};
use super::{Machine, for_rows};
use crate::ops::Activation;
use rayon::prelude::*;
use std::cell::Cell;

/// Rows of a task: enough to reuse a block of weights many times, few enough to stay in the L2 cache.
const TASK_ROWS: usize = 96;
/// Depth of a block of panels: 16 to 32 KiB of f32 for all panels of a tile.
fn block_depth(isa: Isa) -> usize {
    if isa.panels() == 1 { 256 } else { 128 }
}

/// Multiply-adds below which one thread is faster than several.
const PARALLEL_THRESHOLD: usize = 1 << 17;

/// Element-wise steps after the matrix product, in this order.
#[derive(Default)]
pub struct Epilogue<'a> {
    /// `[outputs]`
    pub bias: Option<&'a [f32]>,
    /// `[images, outputs]`, and the rows per image.
    pub shift: Option<(&'a [f32], usize)>,
    /// Applied after bias and shift.
    pub activation: Option<Activation>,
    /// `[rows, outputs]`, added last.
    pub residual: Option<&'a [f32]>,
}

/// The left operand of a matrix product, as pointers to the segments of its rows.
///
/// # Safety
/// Every pointer that [`Rows::pointers`] writes must be valid for reading `channels` elements while the matmul runs.
pub unsafe trait Rows: Sync {
    /// Fills `table[tap * rows + i]` with a pointer to the channels of tap `tap` of row `first + i`.
    fn pointers(&self, first: usize, rows: usize, table: &mut [*const f32]);
}

/// A row-major matrix, the left operand of a linear layer.
pub struct Dense<'a> {
    /// `[rows, channels]`
    pub data: &'a [f32],
    /// Elements of a row.
    pub channels: usize,
}

// SAFETY: each pointer comes from a slice of exactly `channels` elements of `data`, which outlives `self`.
unsafe impl Rows for Dense<'_> {
    fn pointers(&self, first: usize, rows: usize, table: &mut [*const f32]) {
        for (i, pointer) in table[..rows].iter_mut().enumerate() {
            *pointer = self.data[(first + i) * self.channels..][..self.channels].as_ptr();
        }
    }
}

/// A pointer to output memory, shared by tasks that write disjoint parts.
#[derive(Clone, Copy)]
pub struct OutputPointer(pub *mut f32);

// SAFETY: the code that creates tasks from an `OutputPointer` gives each a disjoint part of the memory.
unsafe impl Send for OutputPointer {}
// SAFETY: as above.
unsafe impl Sync for OutputPointer {}

impl OutputPointer {
    /// The pointer. A method, so that closures capture the `Sync` wrapper and not its field.
    pub fn get(self) -> *mut f32 {
        self.0
    }
}

#[derive(Default)]
struct Scratch {
    table: Vec<*const f32>,
    c: AlignedVec,
    widened: AlignedVec,
}

// SAFETY: the pointers are only used within the task that wrote them.
unsafe impl Send for Scratch {}

/// A block of depth: whole taps, or a part of one tap's channels.
struct Block {
    tap: usize,
    taps: usize,
    channel: usize,
    channels: usize,
}

fn blocks(panels: &Panels, most: usize) -> Vec<Block> {
    let (taps, channels) = (panels.taps, panels.channels);
    if channels > most {
        let parts = channels.div_ceil(most);
        let each = channels.div_ceil(parts).next_multiple_of(4);
        let part = |tap, i: usize| Block { tap, taps: 1, channel: i * each, channels: each.min(channels - i * each) };
        (0..taps).flat_map(|tap| (0..channels.div_ceil(each)).map(move |i| part(tap, i))).collect()
    } else {
        let each = taps.div_ceil(taps.div_ceil(most / channels));
        (0..taps).step_by(each).map(|tap| Block { tap, taps: each.min(taps - tap), channel: 0, channels }).collect()
    }
}

/// `out [m, outputs] = epilogue(rows * panels)`.
pub fn matmul(
    machine: &Machine,
    m: usize,
    rows: &impl Rows,
    panels: &Panels,
    epilogue: &Epilogue<'_>,
    out: &mut [f32],
) {
    let n = panels.outputs;
    assert_eq!(out.len(), m * n, "the planner gave the output another size");
    let row_tasks = m.div_ceil(TASK_ROWS);
    let task_rows = m.div_ceil(row_tasks).next_multiple_of(MR);
    let row_tasks = m.div_ceil(task_rows);
    let parallel = machine.threads > 1 && m * n * panels.taps * panels.channels >= PARALLEL_THRESHOLD;
    let per_tile = machine.isa.panels();
    let bundles = panels.count().div_ceil(per_tile);
    let groups = if parallel { (8 * machine.threads).div_ceil(row_tasks).clamp(1, bundles) } else { 1 };
    let group = bundles.div_ceil(groups);
    let groups = bundles.div_ceil(group);
    let blocks = blocks(panels, block_depth(machine.isa));
    let out = OutputPointer(out.as_mut_ptr());
    let task = |scratch: &mut Scratch, index: usize| {
        let first = index / groups * task_rows;
        let height = task_rows.min(m - first);
        scratch.table.resize(panels.taps * height, std::ptr::null());
        rows.pointers(first, height, &mut scratch.table);
        let end = panels.count().min((index % groups + 1) * group * per_tile);
        for panel in (index % groups * group * per_tile..end).step_by(per_tile) {
            let count = per_tile.min(end - panel);
            scratch.c.resize(height * count * NR);
            multiply(machine, panels, panel, count, &blocks, height, scratch);
            // SAFETY: tasks and panels are disjoint rectangles of `out`, which has all rows and columns.
            unsafe { finish(machine, epilogue, &mut scratch.c, (first, panel * NR), count * NR, n, out.get()) };
        }
    };
    if parallel {
        (0..row_tasks * groups).into_par_iter().for_each_init(Scratch::default, task);
    } else {
        let mut scratch = Scratch::default();
        (0..row_tasks * groups).for_each(|index| task(&mut scratch, index));
    }
}

/// Multiplies all rows of a task by `count` panels into `scratch.c [height, count * NR]`.
fn multiply(
    machine: &Machine,
    panels: &Panels,
    panel: usize,
    count: usize,
    blocks: &[Block],
    height: usize,
    scratch: &mut Scratch,
) {
    debug_assert!(count <= PANELS);
    for (number, block) in blocks.iter().enumerate() {
        let from = block.tap * panels.channels + block.channel;
        let (weights, panel_stride) =
            panels.block(panel, count, from, block.taps * block.channels, machine.isa, &mut scratch.widened);
        for row in (0..height).step_by(MR) {
            let tile = Tile {
                rows: scratch.table[block.tap * height + row..].as_ptr(),
                stride: height,
                segments: block.taps,
                offset: block.channel,
                depth: block.channels,
                panel: weights.as_ptr(),
                panel_stride,
                panels: count,
                c: scratch.c[row * count * NR..].as_mut_ptr(),
                ldc: count * NR,
                height: MR.min(height - row),
                accumulate: number > 0,
                pairs: panels.pairs,
            };
            // SAFETY: the table holds `height` pointers per tap, each valid for all channels (`Rows`); each panel's
            // block has `taps * channels` rows; `c` has `height` rows of `count * NR`.
            unsafe { tile.run(machine.isa) };
        }
    }
}

thread_local! {
    /// Reused by later calls; taken out while in use.
    static ROUNDED: Cell<AlignedVec> = Cell::default();
}

/// Calls `with` with the left operand in the format of the panels: `x` itself, or `x` rounded to bf16, two elements in
/// the space of one.
pub fn with_left_operand(machine: &Machine, panels: &Panels, x: &[f32], with: impl FnOnce(&[f32])) {
    if !panels.pairs {
        return with(x);
    }
    let mut rounded = ROUNDED.take();
    rounded.resize(x.len() / 2);
    for_rows(&mut rounded, 1, |first, part| {
        let from = &x[2 * first..][..2 * part.len()];
        simd::narrow_bf16(machine.isa, from, bytemuck::cast_slice_mut(part));
    });
    with(&rounded);
    ROUNDED.set(rounded);
}

/// Applies the epilogue to `c [rows, columns]`, which starts at row `first` and column `column`, and stores it in
/// `out`.
///
/// # Safety
/// `out` must have rows of `n` elements for all rows of `c` from `first` on. No other task may write the columns
/// `column..column + columns` of these rows meanwhile.
unsafe fn finish(
    machine: &Machine,
    epilogue: &Epilogue<'_>,
    c: &mut [f32],
    (first, column): (usize, usize),
    columns: usize,
    n: usize,
    out: *mut f32,
) {
    let (isa, width) = (machine.isa, columns.min(n - column));
    for (i, row) in c.chunks_exact_mut(columns).enumerate() {
        let row = &mut row[..width];
        for constant in [epilogue.bias, epilogue.shift.map(|(shift, positions)| &shift[(first + i) / positions * n..])]
            .into_iter()
            .flatten()
        {
            let constant = &constant[column..][..width];
            // SAFETY: both have `width` elements.
            unsafe { sum(isa, row.as_ptr(), constant.as_ptr(), width, row.as_mut_ptr()) };
        }
    }
    if let Some(activation) = epilogue.activation {
        simd::activate(isa, activation, c);
    }
    for (i, row) in c.chunks_exact_mut(columns).enumerate() {
        let at = (first + i) * n + column;
        let residual = epilogue.residual.map_or(std::ptr::null(), |residual| residual[at..][..width].as_ptr());
        // SAFETY: only this task writes this rectangle; the residual has `width` elements too.
        unsafe { sum(isa, row.as_ptr(), residual, width, out.add(at)) };
    }
}

#[cfg(test)]
mod tests {
    use super::super::Packing;
    use super::super::panels::PanelFormat;
    use super::*;
    use crate::plan::TensorData;
    use std::borrow::Cow;

    fn values(length: usize) -> Vec<f32> {
        (0..length).map(|i| ((i * 37 + 11) % 64) as f32 / 32.0 - 1.0).collect()
    }

    #[test]
    fn blocks_cover_every_row_of_a_panel_once_and_in_order() {
        let sizes = [(1, 1), (3, 9), (28, 9), (29, 9), (100, 9), (256, 9), (257, 9), (1027, 1), (2560, 4)];
        for ((channels, taps), most) in sizes.into_iter().flat_map(|size| [(size, 128), (size, 256)]) {
            let panels = Panels::pack(
                &TensorData::F32(Cow::Owned(vec![0.0; channels * taps])),
                1,
                channels,
                taps,
                PanelFormat::Stored,
            );
            let mut next = 0;
            for block in blocks(&panels, most) {
                assert_eq!(block.tap * channels + block.channel, next, "{channels} channels, {taps} taps");
                assert!(
                    block.taps == 1 || block.channels == channels,
                    "a block of several taps has all their channels"
                );
                next += block.taps * block.channels;
                assert!(block.taps * block.channels <= most);
            }
            assert_eq!(next, channels * taps, "{channels} channels, {taps} taps");
        }
    }

    #[test]
    fn a_matmul_reads_nothing_beyond_its_last_column() {
        let (m, n, k) = (7, 19, 5);
        let (x, w) = (values(m * k), values(n * k));
        let panels = Panels::pack(&TensorData::F32(Cow::Borrowed(&w)), n, k, 1, PanelFormat::Stored);
        let machine = Machine { isa: Isa::detect(), threads: 1, weights: Packing::Panels(PanelFormat::Stored) };
        let mut out = vec![f32::NAN; m * n];
        matmul(&machine, m, &Dense { data: &x, channels: k }, &panels, &Epilogue::default(), &mut out);
        for (i, y) in out.iter().enumerate() {
            // Small multiples of 1/32: every sum is exact.
            let want: f32 = (0..k).map(|c| x[i / n * k + c] * w[i % n * k + c]).sum();
            assert_eq!(*y, want, "row {}, column {}", i / n, i % n);
        }
    }
}
