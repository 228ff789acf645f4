//! Attention in blocks of queries: scores against all keys, softmax, weighted sum of the values. Only the scores of
//! [`QUERIES`] rows are in memory at a time. Each task packs the keys and values of its head into panels once, so that
//! both matrix products run on [`Tile`], or on the matrix unit ([`amx::attention`]).
#![allow(unsafe_code)]

use super::amx;
use super::lanes::AlignedVec;
use super::matmul::OutputPointer;
use super::simd;
use super::tile::{MR, NR, Tile};
use super::{Machine, Packing};
use crate::ops::Attention;
use rayon::prelude::*;

/// Queries of a block: eight tiles share each panel of keys while it is in the L1 cache.
const QUERIES: usize = 8 * MR;
/// Depth of a block of values: 8 KiB of each panel.
const BLOCK_DEPTH: usize = 128;
/// Multiply-adds below which one thread is faster than several.
const PARALLEL_THRESHOLD: usize = 1 << 17;

#[derive(Default)]
struct Scratch {
    keys: AlignedVec,
    values: AlignedVec,
    scores: AlignedVec,
    sums: Vec<f32>,
    out: AlignedVec,
    tiles: amx::attention::Scratch,
}

/// One call's tensors and sizes.
pub struct Problem<'a> {
    pub machine: &'a Machine,
    op: &'a Attention,
    q: &'a [f32],
    own: (&'a [f32], &'a [f32]),
    extra: (&'a [f32], &'a [f32]),
    /// `[B, M]` and `M`.
    mask: Option<(&'a [f32], usize)>,
    queries: usize,
    own_keys: usize,
    extra_keys: usize,
    width: usize,
    /// Elements of a head.
    pub head: usize,
}

pub fn run(machine: &Machine, op: &Attention, inputs: &[&[f32]], shapes: &[&[usize]], out: &mut [f32]) {
    let problem = Problem::new(machine, op, inputs, shapes);
    let Problem { queries, own_keys, extra_keys, .. } = problem;
    let batch = shapes[0][0];
    let heads = batch * op.heads;
    let work = heads * queries * (own_keys + extra_keys) * problem.head;
    let parallel = machine.threads > 1 && work >= PARALLEL_THRESHOLD;
    let parts = if parallel { (4 * machine.threads).div_ceil(heads) } else { 1 };
    let part = queries.div_ceil(parts).next_multiple_of(QUERIES);
    let parts = queries.div_ceil(part);
    let out = OutputPointer(out.as_mut_ptr());
    let task = |scratch: &mut Scratch, index: usize| {
        let (head, first) = (index / parts, index % parts * part);
        let rows = first..queries.min(first + part);
        let (batch, head) = (head / op.heads, head % op.heads);
        match machine.weights {
            Packing::Panels(_) => problem.attend(batch, head, rows, scratch, out),
            Packing::Tiles => amx::attention::attend(&problem, (batch, head), rows, &mut scratch.tiles, out),
        }
    };
    if parallel {
        (0..heads * parts).into_par_iter().for_each_init(Scratch::default, task);
    } else {
        let mut scratch = Scratch::default();
        (0..heads * parts).for_each(|index| task(&mut scratch, index));
    }
}

impl<'a> Problem<'a> {
    /// The operation's inputs.
    pub fn new(machine: &'a Machine, op: &'a Attention, inputs: &[&'a [f32]], shapes: &[&[usize]]) -> Problem<'a> {
        let (extra_keys, own_keys) = op.keys(shapes);
        let (queries, width) = (shapes[0][1], shapes[0][2]);
        Problem {
            machine,
            op,
            q: inputs[0],
            own: (inputs[1], inputs[2]),
            extra: if op.extra { (inputs[3], inputs[4]) } else { (&[], &[]) },
            mask: op.mask.then(|| (inputs[inputs.len() - 1], shapes[shapes.len() - 1][1])),
            queries,
            own_keys,
            extra_keys,
            width,
            head: width / op.heads,
        }
    }
}

impl Problem<'_> {
    /// All keys, the extra ones first.
    pub fn keys(&self) -> usize {
        self.extra_keys + self.own_keys
    }

    /// One head's part of a query.
    pub fn query(&self, batch: usize, head: usize, i: usize) -> &[f32] {
        self.row_of(self.q, batch, head, i)
    }

    /// The same part of a tensor that is laid out as the queries are.
    pub fn row_of<'t>(&self, tensor: &'t [f32], batch: usize, head: usize, i: usize) -> &'t [f32] {
        &tensor[(batch * self.queries + i) * self.width + head * self.head..][..self.head]
    }

    /// One head's part of a key.
    pub fn key(&self, batch: usize, head: usize, j: usize) -> &[f32] {
        self.row(batch, head, j, self.extra.0, self.own.0)
    }

    /// One head's part of a value.
    pub fn value(&self, batch: usize, head: usize, j: usize) -> &[f32] {
        self.row(batch, head, j, self.extra.1, self.own.1)
    }

    /// One head's slice of row `j`, counting the extra rows first, then the own rows.
    fn row<'a>(&self, batch: usize, head: usize, j: usize, extra: &'a [f32], own: &'a [f32]) -> &'a [f32] {
        let (data, row) = match j.checked_sub(self.extra_keys) {
            None => (extra, batch * self.extra_keys + j),
            Some(j) => (own, batch * self.own_keys + j),
        };
        &data[row * self.width + head * self.head..][..self.head]
    }

    /// Computes queries `rows` of one head of one sequence.
    fn attend(
        &self,
        batch: usize,
        head: usize,
        rows: std::ops::Range<usize>,
        scratch: &mut Scratch,
        out: OutputPointer,
    ) {
        self.pack(batch, head, scratch);
        let columns = self.keys().next_multiple_of(NR);
        let width = self.head.next_multiple_of(NR);
        scratch.scores.resize(QUERIES * columns);
        scratch.out.resize(QUERIES * width);
        for first in rows.clone().step_by(QUERIES) {
            let height = QUERIES.min(rows.end - first);
            self.score(batch, head, first, height, columns, scratch);
            scratch.sums.clear();
            for i in 0..height {
                let row = &mut scratch.scores[i * columns..][..columns];
                scratch.sums.push(self.softmax(batch, first + i, row));
            }
            self.weighted_sum(height, columns, width, scratch);
            for i in 0..height {
                let row = &mut scratch.out[i * width..][..self.head];
                // SAFETY: each head of each query is computed by one task.
                unsafe { self.store(batch, head, first + i, 1.0 / scratch.sums[i], row, out) };
            }
        }
    }

    /// Stores one head of one query's output, scaled.
    ///
    /// # Safety
    /// `out` must be the output `[B, Tq, D]`, and no other thread may access this head of this query meanwhile.
    pub unsafe fn store(
        &self,
        batch: usize,
        head: usize,
        query: usize,
        scale: f32,
        row: &mut [f32],
        out: OutputPointer,
    ) {
        let at = (batch * self.queries + query) * self.width + head * self.head;
        assert_eq!(row.len(), self.head);
        row.iter_mut().for_each(|value| *value *= scale);
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(row.as_ptr(), out.get().add(at), self.head) };
    }

    /// Packs keys into panels of sixteen keys, values into panels of sixteen columns.
    fn pack(&self, batch: usize, head: usize, scratch: &mut Scratch) {
        let (keys, d) = (self.keys(), self.head);
        scratch.keys.resize(keys.next_multiple_of(NR) * d);
        scratch.keys.fill(0.0);
        scratch.values.resize(keys * d.next_multiple_of(NR));
        scratch.values.fill(0.0);
        for (number, panel) in scratch.keys.chunks_exact_mut(d * NR).enumerate() {
            let first = number * NR;
            for j in 0..NR.min(keys - first) {
                let key = self.key(batch, head, first + j);
                panel[j..].iter_mut().step_by(NR).zip(key).for_each(|(to, from)| *to = *from);
            }
        }
        for (number, panel) in scratch.values.chunks_exact_mut(keys * NR).enumerate() {
            let columns = NR.min(d - number * NR);
            for (j, to) in panel.chunks_exact_mut(NR).enumerate() {
                let value = &self.value(batch, head, j)[number * NR..][..columns];
                match <&[f32; NR]>::try_from(value) {
                    Ok(value) => to.copy_from_slice(value),
                    Err(_) => to[..columns].copy_from_slice(value),
                }
            }
        }
    }

    /// `scores [height, columns] = q k^T`.
    fn score(&self, batch: usize, head: usize, first: usize, height: usize, columns: usize, scratch: &mut Scratch) {
        let rows: [*const f32; QUERIES] =
            std::array::from_fn(|i| self.query(batch, head, first + i.min(height - 1)).as_ptr());
        let per_tile = self.machine.isa.panels();
        for (number, bundle) in scratch.keys.chunks(per_tile * self.head * NR).enumerate() {
            for row in (0..height).step_by(MR) {
                let tile = Tile {
                    rows: rows[row..].as_ptr(),
                    stride: 0,
                    segments: 1,
                    offset: 0,
                    depth: self.head,
                    panel: bundle.as_ptr(),
                    panel_stride: self.head * NR,
                    panels: bundle.len() / (self.head * NR),
                    c: scratch.scores[row * columns + number * per_tile * NR..].as_mut_ptr(),
                    ldc: columns,
                    height: MR.min(height - row),
                    accumulate: false,
                    pairs: false,
                };
                // SAFETY: each row pointer is valid for the head's width; each panel has that many rows; the scores
                // have QUERIES rows of `columns`, a multiple of NR.
                unsafe { tile.run(self.machine.isa) };
            }
        }
    }

    /// The factor of scores.
    pub fn scale(&self) -> f32 {
        1.0 / (self.head as f32).sqrt()
    }

    /// Writes `value` over the scores of the keys that a query does not attend to, and returns how many keys come before
    /// those that lie in its future.
    pub fn hide(&self, batch: usize, query: usize, row: &mut [f32], value: f32) -> usize {
        let own = if self.op.causal { query + self.own_keys - self.queries + 1 } else { self.own_keys };
        let seen = self.extra_keys + own;
        let hidden = self.mask.map_or(&[][..], |(mask, m)| &mask[batch * m..][..m.min(seen)]);
        for (score, _) in row.iter_mut().zip(hidden).filter(|(_, keep)| **keep == 0.0) {
            *score = value;
        }
        row[seen..].fill(value);
        seen
    }

    /// Turns the scores of one query into unnormalised probabilities, zero for masked keys. Returns their sum.
    pub fn softmax(&self, batch: usize, query: usize, row: &mut [f32]) -> f32 {
        let seen = self.hide(batch, query, row, f32::NEG_INFINITY);
        let sum = simd::exponentials(self.machine.isa, &mut row[..seen], self.scale());
        self.hide(batch, query, row, 0.0);
        sum
    }

    /// `out [height, width] = scores * values`.
    fn weighted_sum(&self, height: usize, columns: usize, width: usize, scratch: &mut Scratch) {
        let (keys, per_tile) = (self.keys(), self.machine.isa.panels());
        let rows: [*const f32; QUERIES] = std::array::from_fn(|i| scratch.scores[i * columns..][..columns].as_ptr());
        for from in (0..keys).step_by(BLOCK_DEPTH) {
            let depth = BLOCK_DEPTH.min(keys - from);
            for (number, bundle) in scratch.values.chunks(per_tile * keys * NR).enumerate() {
                for row in (0..height).step_by(MR) {
                    let tile = Tile {
                        rows: rows[row..].as_ptr(),
                        stride: 0,
                        segments: 1,
                        offset: from,
                        depth,
                        panel: bundle[from * NR..].as_ptr(),
                        panel_stride: keys * NR,
                        panels: bundle.len() / (keys * NR),
                        c: scratch.out[row * width + number * per_tile * NR..].as_mut_ptr(),
                        ldc: width,
                        height: MR.min(height - row),
                        accumulate: from > 0,
                        pairs: false,
                    };
                    // SAFETY: each row has `columns >= keys` scores; each panel has `keys` rows; the output has QUERIES
                    // rows of `width`, a multiple of NR.
                    unsafe { tile.run(self.machine.isa) };
                }
            }
        }
    }
}
