//! Gradients of attention, head by head. Probabilities are computed again for a block of queries; all products run on the
//! GEMM of `linear`.
#![allow(unsafe_code)]

use super::super::Machine;
use super::super::attention::Problem;
use super::super::matmul::{Dense, Epilogue, OutputPointer, matmul};
use super::super::panels::{PanelFormat, Panels};
use crate::ops::Attention;
use crate::plan::TensorData;
use rayon::prelude::*;

/// Queries of a block, whose scores are in memory at a time.
const QUERIES: usize = 96;

/// One head of one sequence.
struct Head<'a> {
    problem: &'a Problem<'a>,
    batch: usize,
    head: usize,
    /// Each `[keys, d]`, packed to be multiplied by queries and by gradients.
    keys: Panels,
    values: Panels,
    /// One thread: heads are tasks.
    machine: Machine,
}

/// What a block of queries has.
struct Block {
    /// `[rows, d]`
    queries: Vec<f32>,
    /// Gradients of the output, `[rows, d]`.
    gradients: Vec<f32>,
    /// `[rows, keys]`
    probabilities: Vec<f32>,
    /// Gradients of the scores, `[rows, keys]`.
    scores: Vec<f32>,
}

impl<'a> Head<'a> {
    fn new(problem: &'a Problem<'a>, batch: usize, head: usize) -> Head<'a> {
        let (keys, d) = (problem.keys(), problem.head);
        let pack = |row: &dyn Fn(usize) -> &'a [f32]| {
            let rows: Vec<f32> = (0..keys).flat_map(|j| row(j).iter().copied()).collect();
            Panels::pack(&TensorData::F32(rows.into()), keys, d, 1, PanelFormat::Stored)
        };
        Head {
            problem,
            batch,
            head,
            keys: pack(&|j| problem.key(batch, head, j)),
            values: pack(&|j| problem.value(batch, head, j)),
            machine: Machine { threads: 1, ..*problem.machine },
        }
    }

    /// Probabilities of queries `first..first + rows` and the gradients of their scores, given those of the output.
    fn block(&self, gradient: &[f32], output: &[f32], first: usize, rows: usize) -> Block {
        let Head { problem, batch, head, .. } = *self;
        let (keys, d) = (problem.keys(), problem.head);
        let of = |t: &[f32]| -> Vec<f32> {
            (first..first + rows).flat_map(|i| problem.row_of(t, batch, head, i).iter().copied()).collect()
        };
        let queries: Vec<f32> =
            (first..first + rows).flat_map(|i| problem.query(batch, head, i).iter().copied()).collect();
        let gradients = of(gradient);
        let outputs = of(output);
        let product = |left: &[f32], right: &Panels| {
            let mut out = vec![0.0; rows * keys];
            matmul(&self.machine, rows, &Dense { data: left, channels: d }, right, &Epilogue::default(), &mut out);
            out
        };
        let mut probabilities = product(&queries, &self.keys);
        let mut scores = product(&gradients, &self.values);
        for i in 0..rows {
            let p = &mut probabilities[i * keys..][..keys];
            let sum = problem.softmax(batch, first + i, p);
            p.iter_mut().for_each(|p| *p /= sum);
            let along = gradients[i * d..][..d].iter().zip(&outputs[i * d..]);
            let mean = along.map(|(g, o)| f64::from(*g) * f64::from(*o)).sum::<f64>() as f32;
            scores[i * keys..][..keys].iter_mut().zip(p).for_each(|(s, p)| *s = *p * (*s - mean));
        }
        Block { queries, gradients, probabilities, scores }
    }

    /// `left^T right` of a block, added to `sum [keys, d]`.
    fn add_outer(&self, left: &[f32], right: &[f32], sum: &mut Vec<f32>) {
        let (keys, d) = (self.problem.keys(), self.problem.head);
        let rows = right.len() / d;
        let turned: Vec<f32> = (0..keys).flat_map(|j| left[j..].iter().step_by(keys).copied()).collect();
        let mut out = vec![0.0; keys * d];
        let epilogue = Epilogue { residual: Some(sum), ..Epilogue::default() };
        let rows_of = Dense { data: &turned, channels: rows };
        matmul(&self.machine, keys, &rows_of, &Panels::turned(right, rows, d, 1), &epilogue, &mut out);
        *sum = out;
    }
}

pub fn queries(machine: &Machine, op: &Attention, inputs: &[&[f32]], shapes: &[&[usize]], out: &mut [f32]) {
    let problem = Problem::new(machine, op, &inputs[2..], &shapes[2..]);
    let [batch, queries, width] = [shapes[0][0], shapes[0][1], shapes[0][2]];
    let (keys, d) = (problem.keys(), problem.head);
    let out = OutputPointer(out.as_mut_ptr());
    (0..batch * op.heads).into_par_iter().for_each(|index| {
        let (batch, head) = (index / op.heads, index % op.heads);
        let own = Head::new(&problem, batch, head);
        let rows_of_keys: Vec<f32> = (0..keys).flat_map(|j| problem.key(batch, head, j).iter().copied()).collect();
        let turned = Panels::turned(&rows_of_keys, keys, d, 1);
        for first in (0..queries).step_by(QUERIES) {
            let rows = QUERIES.min(queries - first);
            let block = own.block(inputs[0], inputs[1], first, rows);
            let mut part = vec![0.0; rows * d];
            let scores = Dense { data: &block.scores, channels: keys };
            matmul(&own.machine, rows, &scores, &turned, &Epilogue::default(), &mut part);
            for (i, row) in part.chunks_exact(d).enumerate() {
                let at = (batch * queries + first + i) * width + head * d;
                // SAFETY: each head of each query of the output [B, Tq, D] is written by one task.
                let to = unsafe { std::slice::from_raw_parts_mut(out.get().add(at), d) };
                to.iter_mut().zip(row).for_each(|(to, x)| *to = x * problem.scale());
            }
        }
    });
}

pub fn keys(machine: &Machine, op: &Attention, inputs: &[&[f32]], shapes: &[&[usize]], out: &mut [f32]) {
    let problem = Problem::new(machine, op, &inputs[2..], &shapes[2..]);
    let [batch, queries, width] = [shapes[0][0], shapes[0][1], shapes[0][2]];
    let (keys, d) = (problem.keys(), problem.head);
    let out = OutputPointer(out.as_mut_ptr());
    (0..batch * op.heads).into_par_iter().for_each(|index| {
        let (batch, head) = (index / op.heads, index % op.heads);
        let own = Head::new(&problem, batch, head);
        let [mut of_keys, mut of_values] = [0; 2].map(|_| vec![0.0; keys * d]);
        for first in (0..queries).step_by(QUERIES) {
            let block = own.block(inputs[0], inputs[1], first, QUERIES.min(queries - first));
            own.add_outer(&block.scores, &block.queries, &mut of_keys);
            own.add_outer(&block.probabilities, &block.gradients, &mut of_values);
        }
        for j in 0..keys {
            let at = (batch * keys + j) * 2 * width + head * d;
            for (part, scale, column) in [(&of_keys, problem.scale(), 0), (&of_values, 1.0, width)] {
                // SAFETY: each head of each key of the output [B, Te + Tk, 2D] is written by one task.
                let to = unsafe { std::slice::from_raw_parts_mut(out.get().add(at + column), d) };
                to.iter_mut().zip(&part[j * d..]).for_each(|(to, x)| *to = x * scale);
            }
        }
    });
}
