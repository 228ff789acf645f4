//! Attention on the matrix unit: queries, keys, values and the softmax's weights are rounded to bf16; scores, softmax and
//! sums are f32. A task packs the keys and values of its head once and takes 32 queries at a time.
#![allow(unsafe_code)]

use super::super::attention::Problem;
use super::super::lanes::AlignedVec;
use super::super::matmul::OutputPointer;
use super::super::simd;
use super::rows::{channel_steps, pitch_of};
use super::unit::{BLOCK, Block, DEPTH, ROW, SIDE, STEP, Unit};
use super::vectors;
use std::ops::Range;

/// Packed operands and results of a task. Lengths are in f32, two elements of bf16 each.
#[derive(Default)]
pub struct Scratch {
    /// `[keys / 32][head / 32]` steps.
    keys: AlignedVec,
    /// `[head / 32][keys / 32]` steps.
    values: AlignedVec,
    queries: AlignedVec,
    scores: AlignedVec,
    weights: AlignedVec,
    sums: Vec<f32>,
    out: AlignedVec,
}

/// Computes queries `rows` of one head of one sequence.
pub fn attend(
    problem: &Problem<'_>,
    (batch, head): (usize, usize),
    rows: Range<usize>,
    scratch: &mut Scratch,
    out: OutputPointer,
) {
    let (width, isa) = (problem.head, problem.machine.isa);
    pack(problem, batch, head, scratch);
    let columns = problem.keys().next_multiple_of(BLOCK);
    let (head_steps, key_steps): (Vec<usize>, Vec<usize>) =
        (channel_steps(width).collect(), channel_steps(columns).collect());
    let (query_pitch, weight_pitch, stride) = (pitch_of(width), pitch_of(columns), width.next_multiple_of(BLOCK));
    scratch.queries.resize(BLOCK * query_pitch / 4);
    scratch.scores.resize(BLOCK * columns);
    scratch.weights.resize(BLOCK * weight_pitch / 4);
    scratch.out.resize(BLOCK * stride);
    let unit = Unit::begin(isa);
    for first in rows.clone().step_by(BLOCK) {
        let height = BLOCK.min(rows.end - first);
        let queries: &mut [u16] = bytemuck::cast_slice_mut(&mut scratch.queries);
        for (i, to) in queries.chunks_exact_mut(query_pitch / 2).take(height).enumerate() {
            vectors::narrow_rows(isa, problem.query(batch, head, first + i), width, to, query_pitch / 2);
        }
        let scores = Sums { sums: &mut scratch.scores, stride: columns, height };
        multiply(&unit, (&scratch.queries, query_pitch), &head_steps, &scratch.keys, scores);
        scratch.sums.clear();
        let weights: &mut [u16] = bytemuck::cast_slice_mut(&mut scratch.weights);
        for (i, to) in weights.chunks_exact_mut(weight_pitch / 2).take(height).enumerate() {
            let row = &mut scratch.scores[i * columns..][..columns];
            problem.hide(batch, first + i, row, f32::NEG_INFINITY);
            scratch.sums.push(vectors::softmax(isa, row, problem.scale(), &mut to[..columns]));
        }
        let sums = Sums { sums: &mut scratch.out, stride, height };
        multiply(&unit, (&scratch.weights, weight_pitch), &key_steps, &scratch.values, sums);
        for (i, row) in scratch.out.chunks_exact_mut(stride).take(height).enumerate() {
            // SAFETY: each head of each query is computed by one task.
            unsafe { problem.store(batch, head, first + i, 1.0 / scratch.sums[i], &mut row[..width], out) };
        }
    }
}

/// Packs keys and values, with zeros behind the last key and the head's last element.
fn pack(problem: &Problem<'_>, batch: usize, head: usize, scratch: &mut Scratch) {
    /// Pairs of elements of a tile.
    const PAIRS: usize = SIDE * SIDE;
    let (keys, width, isa) = (problem.keys(), problem.head, problem.machine.isa);
    let (blocks, steps) = (keys.div_ceil(BLOCK), width.div_ceil(DEPTH));
    scratch.keys.resize(blocks * steps * STEP / 4);
    scratch.keys.fill(0.0);
    scratch.values.resize(blocks * steps * STEP / 4);
    scratch.values.fill(0.0);
    let pairs: &mut [u32] = bytemuck::cast_slice_mut(&mut scratch.keys);
    let mut narrow = vec![0u16; width.next_multiple_of(2)];
    for j in 0..keys {
        vectors::narrow_rows(isa, problem.key(batch, head, j), width, &mut narrow[..width], width);
        let column = j / BLOCK * steps * 2 * PAIRS + j % BLOCK / SIDE * PAIRS + j % SIDE;
        for (p, pair) in narrow.as_chunks::<2>().0.iter().enumerate() {
            pairs[column + p / SIDE * 2 * PAIRS + p % SIDE * SIDE] = u32::from(pair[1]) << 16 | u32::from(pair[0]);
        }
    }
    let pairs: &mut [u32] = bytemuck::cast_slice_mut(&mut scratch.values);
    let zeros = vec![0.0; width];
    for j in (0..keys).step_by(2) {
        let low = problem.value(batch, head, j);
        let high = if j + 1 < keys { problem.value(batch, head, j + 1) } else { &zeros };
        for (tile, (low, high)) in low.chunks(SIDE).zip(high.chunks(SIDE)).enumerate() {
            let step = tile / 2 * blocks + j / DEPTH;
            let at = step * 2 * PAIRS + tile % 2 * PAIRS + j % DEPTH / 2 * SIDE;
            simd::narrow_pairs(isa, low, high, &mut pairs[at..][..low.len()]);
        }
    }
}

/// Sums `[32, stride]`, of which `height` rows are wanted.
struct Sums<'a> {
    sums: &'a mut AlignedVec,
    stride: usize,
    height: usize,
}

/// `sums = rows * panels`, where `rows` are 32 with the given pitch in bytes.
fn multiply(unit: &Unit, (rows, pitch): (&AlignedVec, usize), steps: &[usize], panels: &AlignedVec, to: Sums<'_>) {
    let rows: &[u8] = bytemuck::cast_slice(rows);
    assert!(rows.len() == BLOCK * pitch && to.sums.len() == BLOCK * to.stride && steps.len() * ROW <= pitch);
    let tiles = [rows.as_ptr(), rows[SIDE * pitch..].as_ptr()];
    let panels: &[u8] = bytemuck::cast_slice(panels);
    for (number, panel) in panels.chunks_exact(steps.len() * STEP).enumerate() {
        let block = Block {
            tiles: &tiles[..to.height.div_ceil(SIDE)],
            pitch,
            steps,
            weights: panel.as_ptr(),
            sums: to.sums[number * BLOCK..to.stride].as_mut_ptr(),
            stride: to.stride,
        };
        // SAFETY: there are 32 rows of `pitch` bytes, no fewer than the steps have; the panel has all steps; the sums have
        // 32 rows of `stride`, of which this block writes 32 columns.
        unsafe { block.run(unit) };
    }
}
