//! Outputs that are wrong in the ways in which kernels go wrong: what any measure of agreement has to refuse.

use super::Problem;
use super::reference::{Lack, run_lacking};
use unclip::ops::{Op, Operation, Resize};

/// One way to be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// Nothing was written.
    Zeros,
    Negated,
    /// The last [`BLOCK`] terms of every sum are missing.
    MissingTerms,
    /// The last [`BLOCK`] columns of every head are missing from an attention's scores.
    MissingColumns,
    /// Two rows next to each other in the middle of the output have changed places.
    SwappedRows,
    /// The last tile of rows holds what belongs one row higher.
    ShiftedRows,
    /// The last tile of columns holds what belongs one column to the left.
    ShiftedColumns,
}

/// Terms that one step of a kernel adds to its sums, and the rows and columns of its tiles.
const BLOCK: usize = 32;

impl Mutation {
    pub const ALL: [Mutation; 7] = [
        Mutation::Zeros,
        Mutation::Negated,
        Mutation::MissingTerms,
        Mutation::MissingColumns,
        Mutation::SwappedRows,
        Mutation::ShiftedRows,
        Mutation::ShiftedColumns,
    ];

    /// Why it leaves the output of a case as it is, if it does.
    pub fn without_effect(self, name: &str, problem: &Problem) -> Option<&'static str> {
        let [rows, columns] = sides(problem);
        let by_rows = matches!(self, Mutation::SwappedRows | Mutation::ShiftedRows);
        match (self, &problem.op) {
            (Mutation::MissingTerms, op) if !sums(op) => return Some("no sums"),
            (Mutation::MissingColumns, op) if !matches!(op, Op::Attention(_)) => return Some("no scores"),
            (Mutation::ShiftedColumns, _) if columns == 1 => return Some("one column"),
            _ if by_rows && rows == 1 => return Some("one row"),
            _ => {}
        }
        NAMED.iter().find(|(case, mutations, _)| *case == name && mutations.contains(&self)).map(|(.., why)| *why)
    }

    /// The wrong output, where `want` is the right one.
    pub fn apply(self, problem: &Problem, want: &[f64]) -> Vec<f64> {
        let [rows, columns] = sides(problem);
        let mut got = want.to_vec();
        match self {
            Mutation::Zeros => got.fill(0.0),
            Mutation::Negated => got.iter_mut().for_each(|x| *x = -*x),
            Mutation::MissingTerms => return run_lacking(problem, Lack { terms: terms(problem), columns: 0 }),
            Mutation::MissingColumns => {
                return run_lacking(problem, Lack { terms: 0, columns: head(problem).min(BLOCK) });
            }
            Mutation::SwappedRows if rows == 1 => {}
            Mutation::SwappedRows => {
                let second = (rows / 2).max(1);
                (0..columns).for_each(|c| got.swap((second - 1) * columns + c, second * columns + c));
            }
            Mutation::ShiftedRows => {
                for row in last_tile(rows).filter(|row| *row > 0) {
                    got[row * columns..][..columns].copy_from_slice(&want[(row - 1) * columns..][..columns]);
                }
            }
            Mutation::ShiftedColumns => {
                for (got, want) in got.chunks_mut(columns).zip(want.chunks(columns)) {
                    last_tile(columns).filter(|c| *c > 0).for_each(|c| got[c] = want[c - 1]);
                }
            }
        }
        got
    }
}

/// Mutations that leave single cases as they are.
const NAMED: &[(&str, &[Mutation], &str)] = &[
    ("attention/one-query-one-key", SUMS, "the weight of the only key is one"),
    ("attention/one-key-for-many", SUMS, "the weight of the only key is one"),
    ("attention/one-key-for-many", ROWS, "every query gets the value of the only key"),
    ("conv2d/one-row", &[Mutation::MissingTerms], "the last row of taps is below the only row of pixels"),
    ("layer_norm/width-1", ROWS, "the only feature of every row is its mean, and beta is what is left"),
    ("resize/bicubic-one-pixel", ROWS, "every pixel is the only one of the input"),
    ("resize/double-one-pixel", ROWS, "every pixel is the only one of the input"),
];
const SUMS: &[Mutation] = &[Mutation::MissingTerms, Mutation::MissingColumns];
const ROWS: &[Mutation] = &[Mutation::SwappedRows, Mutation::ShiftedRows];

/// Whether an element is a sum of several of the inputs' elements.
fn sums(op: &Op) -> bool {
    match op {
        Op::Attention(_) | Op::Conv2d(_) | Op::GroupNorm(_) | Op::LayerNorm(_) | Op::Linear(_) => true,
        Op::Resize(op) => *op != Resize::NearestDouble,
        Op::Concat(_) | Op::Convert(_) | Op::Embed(_) | Op::Geglu(_) | Op::Modulate(_) => false,
        Op::Multistep(_) => false,
        Op::Pointwise(_) | Op::SamplerStep(_) | Op::Slice(_) => false,
        Op::Training(op) => unreachable!("{op:?} is in tests/gradients.rs"),
    }
}

/// How many terms are missing: a step, or the whole of a shorter sum; of a softmax, which has no value without any key, the
/// half of fewer keys; of a picture's taps, which kernels write out, one.
fn terms(problem: &Problem) -> usize {
    let shapes = problem.shapes();
    match &problem.op {
        Op::Attention(op) => {
            let (extra, own) = op.keys(&shapes);
            if extra + own > BLOCK { BLOCK } else { (extra + own) / 2 }
        }
        Op::Resize(_) => 1,
        _ => super::reference::reduction(problem).min(BLOCK),
    }
}

/// Columns of an attention's head.
fn head(problem: &Problem) -> usize {
    match &problem.op {
        Op::Attention(op) => problem.tensors[0].shape[2] / op.heads,
        _ => 0,
    }
}

/// The output's rows, all dimensions but the last together, and its columns.
fn sides(problem: &Problem) -> [usize; 2] {
    let shape = problem.op.shape(&problem.shapes()).expect("the case's shapes fit");
    let (columns, rows) = shape.split_last().expect("an output has a dimension");
    [rows.iter().product(), *columns]
}

/// Rows or columns of the last tile, which may be the only one.
fn last_tile(length: usize) -> std::ops::Range<usize> {
    (length - 1) / BLOCK * BLOCK..length
}
