//! Matrix products with packed weights: what `linear` and `conv2d` have in common.
//!
//! The product is cut into blocks of rows and groups of panels, one task each. A task takes as many panels at once as
//! a tile has; their rows come in blocks small enough for the first-level cache, and each block meets all rows of the
//! task before the next is touched. Finished columns pass through the epilogue while they are still in the cache.
//!
//! A crate for matrix products would need a convolution's windows copied out and half-precision weights widened as a
//! whole, and promises no order of summation; PERFORMANCE.md compares the speed.
#![allow(unsafe_code)]

use super::lanes::{Aligned, sum};
use super::panels::Panels;
use super::simd;
use super::tile::{Isa, MR, NR, PANELS, Tile};
use super::{Machine, for_rows};
use crate::ops::Activation;
use rayon::prelude::*;
use std::cell::Cell;

/// Rows of a task: enough to use a block of weights many times, few enough to stay in the second-level cache.
const TASK_ROWS: usize = 96;
/// Rows of a block of panels, all of a tile together: 16 to 32 KiB in single precision.
fn block_depth(isa: Isa) -> usize {
    if isa.panels() == 1 { 256 } else { 128 }
}

/// Multiply-adds below which threads cost more than they bring.
const WORTH_SHARING: usize = 1 << 17;

/// What happens to a finished element, in this order.
#[derive(Default)]
pub struct Epilogue<'a> {
    /// `[outputs]`
    pub bias: Option<&'a [f32]>,
    /// `[images, outputs]`, with the number of rows of an image.
    pub shift: Option<(&'a [f32], usize)>,
    /// Applied after bias and shift.
    pub activation: Option<Activation>,
    /// `[rows, outputs]`, added last.
    pub residual: Option<&'a [f32]>,
}

/// A row's segments: fills `table[tap * rows + i]` with a pointer to the channels that tap `tap` of row
/// `first + i` reads.
///
/// # Safety
/// Every pointer written must stay valid for reading `channels` numbers as long as the product runs.
pub unsafe trait Rows: Sync {
    /// See the trait.
    fn pointers(&self, first: usize, rows: usize, table: &mut [*const f32]);
}

/// Consecutive rows of a matrix: the rows of a linear layer.
pub struct Dense<'a> {
    /// `[rows, channels]`
    pub data: &'a [f32],
    /// Elements of a row.
    pub channels: usize,
}

// SAFETY: each pointer is made from a slice of exactly `channels` numbers of `data`, which outlives `self`.
unsafe impl Rows for Dense<'_> {
    fn pointers(&self, first: usize, rows: usize, table: &mut [*const f32]) {
        for (i, pointer) in table[..rows].iter_mut().enumerate() {
            *pointer = self.data[(first + i) * self.channels..][..self.channels].as_ptr();
        }
    }
}

/// A pointer that tasks may share because each writes its own part.
#[derive(Clone, Copy)]
pub struct Shared(pub *mut f32);

// SAFETY: whoever makes tasks from a `Shared` gives each a part of the memory of its own.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// The pointer, as a method so that closures take the whole wrapper along.
    pub fn get(self) -> *mut f32 {
        self.0
    }
}

#[derive(Default)]
struct Scratch {
    table: Vec<*const f32>,
    c: Aligned,
    widened: Aligned,
}

// SAFETY: the pointers are only used within the task that wrote them.
unsafe impl Send for Scratch {}

/// Rows of the panels that are multiplied in one go: whole taps, or a part of one tap.
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
pub fn product(
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
    let share = machine.threads > 1 && m * n * panels.taps * panels.channels >= WORTH_SHARING;
    let together = machine.isa.panels();
    let bundles = panels.count().div_ceil(together);
    let groups = if share { (8 * machine.threads).div_ceil(row_tasks).clamp(1, bundles) } else { 1 };
    let group = bundles.div_ceil(groups);
    let groups = bundles.div_ceil(group);
    let blocks = blocks(panels, block_depth(machine.isa));
    let out = Shared(out.as_mut_ptr());
    let task = |scratch: &mut Scratch, index: usize| {
        let first = index / groups * task_rows;
        let height = task_rows.min(m - first);
        scratch.table.resize(panels.taps * height, std::ptr::null());
        rows.pointers(first, height, &mut scratch.table);
        let end = panels.count().min((index % groups + 1) * group * together);
        for panel in (index % groups * group * together..end).step_by(together) {
            let count = together.min(end - panel);
            scratch.c.reserve(height * count * NR);
            multiply(machine, panels, panel, count, &blocks, height, scratch);
            // SAFETY: tasks and panels are disjoint rectangles of `out`, which has room for all rows and columns.
            unsafe { finish(machine, epilogue, &mut scratch.c, (first, panel * NR), count * NR, n, out.get()) };
        }
    };
    if share {
        (0..row_tasks * groups).into_par_iter().for_each_init(Scratch::default, task);
    } else {
        let mut scratch = Scratch::default();
        (0..row_tasks * groups).for_each(|index| task(&mut scratch, index));
    }
}

/// Some panels for all rows of a task into `scratch.c [height, count * NR]`.
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
            // SAFETY: the table holds `height` pointers per tap, each good for all channels (`Rows`); each panel's
            // block has `taps * channels` rows; `c` has `height` rows of `count * NR`.
            unsafe { tile.run(machine.isa) };
        }
    }
}

thread_local! {
    /// Kept from call to call; taken out while in use.
    static ROUNDED: Cell<Aligned> = Cell::default();
}

/// Gives `with` the left side of a product as its panels want it: `x` itself, or rounded to bf16, two numbers in the place
/// of one.
pub fn with_operand(machine: &Machine, panels: &Panels, x: &[f32], with: impl FnOnce(&[f32])) {
    if !panels.pairs {
        return with(x);
    }
    let mut rounded = ROUNDED.take();
    rounded.reserve(x.len() / 2);
    for_rows(&mut rounded, 1, |first, part| {
        let from = &x[2 * first..][..2 * part.len()];
        simd::narrow_bf16(machine.isa, from, bytemuck::cast_slice_mut(part));
    });
    with(&rounded);
    ROUNDED.set(rounded);
}

/// Epilogue of some columns, `c [rows, columns]` from row `first` and `column` on, then out to memory.
///
/// # Safety
/// `out` must have room for rows `first..` (as many as `c` holds) of `n` numbers, of which columns
/// `column..column + columns` are written by nobody else meanwhile.
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
            // SAFETY: both have `width` numbers.
            unsafe { sum(isa, row.as_ptr(), constant.as_ptr(), width, row.as_mut_ptr()) };
        }
    }
    if let Some(activation) = epilogue.activation {
        simd::activate(isa, activation, c);
    }
    for (i, row) in c.chunks_exact_mut(columns).enumerate() {
        let at = (first + i) * n + column;
        let residual = epilogue.residual.map_or(std::ptr::null(), |residual| residual[at..][..width].as_ptr());
        // SAFETY: the caller gave this rectangle to this task alone; the residual has `width` numbers too.
        unsafe { sum(isa, row.as_ptr(), residual, width, out.add(at)) };
    }
}

#[cfg(test)]
mod tests {
    use super::super::panels::PanelFormat;
    use super::*;
    use crate::plan::TensorData;
    use std::borrow::Cow;

    fn numbers(length: usize) -> Vec<f32> {
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
                assert!(block.taps == 1 || block.channels == channels, "several taps are whole ones");
                next += block.taps * block.channels;
                assert!(block.taps * block.channels <= most);
            }
            assert_eq!(next, channels * taps, "{channels} channels, {taps} taps");
        }
    }

    #[test]
    fn a_product_does_not_touch_what_lies_beyond_its_last_column() {
        let (m, n, k) = (7, 19, 5);
        let (x, w) = (numbers(m * k), numbers(n * k));
        let panels = Panels::pack(&TensorData::F32(Cow::Borrowed(&w)), n, k, 1, PanelFormat::Stored);
        let machine = Machine { isa: Isa::detect(), threads: 1, weights: PanelFormat::Stored };
        let mut out = vec![f32::NAN; m * n];
        product(&machine, m, &Dense { data: &x, channels: k }, &panels, &Epilogue::default(), &mut out);
        for (i, y) in out.iter().enumerate() {
            // Multiples of 1/32 and small: every sum is exact.
            let want: f32 = (0..k).map(|c| x[i / n * k + c] * w[i % n * k + c]).sum();
            assert_eq!(*y, want, "row {}, column {}", i / n, i % n);
        }
    }
}
