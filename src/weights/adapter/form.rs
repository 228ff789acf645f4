//! What an adapter's tensors amount to: the difference that they make to a weight, row by row.
//!
//! A weight is a matrix `[O, K]` here, a convolution's `[O, C R S]`. All differences but whole ones are products:
//!
//! | kind | difference |
//! | --- | --- |
//! | product | `a [O, r] @ b [r, K]` (Hu et al. 2021, LoRA; for a convolution the kernel belongs to b) |
//! | Tucker | `sum_ij core[i, j, t] a[o, i] b[j, c]` at each tap t (LyCORIS, Yeh et al. 2023) |
//! | Hadamard | product of two such matrices, element by element (Hyeon-Woo et al. 2021, LoHa) |
//! | Kronecker | `w1[i, j] w2[p, q]` at row `i P + p` and channel `j Q + q` (LoKr) |
//!
//! Everything is computed in f32 from whatever is stored.

use super::Tensor;
use crate::error::Result;
use rayon::prelude::*;

/// Reads a tensor of the adapter's file.
pub(super) type Read<'a> = &'a (dyn Fn(&Tensor) -> Result<Vec<f32>> + Sync);

/// A matrix of low rank, or a whole one.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Form {
    Whole(Tensor),
    Product {
        a: Tensor,
        b: Tensor,
    },
    /// `core [r1, r2, R, S]`, `b [r2, C]`; `a` is `[O, r1]`, or `[r1, O]` if it is turned.
    Tucker {
        core: Tensor,
        a: Tensor,
        b: Tensor,
        is_turned: bool,
    },
}

/// The difference of a weight.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Delta {
    Form(Form),
    Hadamard(Form, Form),
    Kronecker(Form, Form),
}

impl Form {
    /// The rank; a whole matrix has none.
    pub fn rank(&self) -> Option<usize> {
        match self {
            Form::Whole(_) => None,
            Form::Product { b, .. } | Form::Tucker { b, .. } => Some(b.shape[0]),
        }
    }

    /// Rows of the matrix and the shape of each: `[O]` and `[C, R, S]`.
    ///
    /// # Errors
    /// The factors do not fit each other.
    pub fn shape(&self) -> Result<Vec<usize>, String> {
        let odd = |what: &str, x: &Tensor, y: &Tensor| {
            Err(format!("{what}: {} {:?} and {} {:?} do not fit", x.key, x.shape, y.key, y.shape))
        };
        match self {
            Form::Whole(whole) => Ok(whole.shape.clone()),
            Form::Product { a, b } => match (&a.shape[..], &b.shape[..]) {
                (&[rows, rank, ref ones @ ..], &[same, ref rest @ ..])
                    if rank == same && rank > 0 && !rest.is_empty() && ones.iter().all(|&n| n == 1) =>
                {
                    Ok([&[rows], rest].concat())
                }
                _ => odd("ranks", a, b),
            },
            Form::Tucker { core, a, b, is_turned } => {
                let (&[r1, r2, ref taps @ ..], &[same, channels, ref ones @ ..]) = (&core.shape[..], &b.shape[..])
                else {
                    return odd("ranks", core, b);
                };
                if same != r2 || r1 * r2 == 0 || ones.iter().any(|&n| n != 1) {
                    return odd("ranks", core, b);
                }
                let rows = match (&a.shape[..], is_turned) {
                    (&[rank, rows], true) if rank == r1 => rows,
                    (&[rows, rank, ref ones @ ..], false) if rank == r1 && ones.iter().all(|&n| n == 1) => rows,
                    _ => return odd("ranks", core, a),
                };
                Ok([&[rows, channels], taps].concat())
            }
        }
    }

    fn load(&self, read: Read<'_>) -> Result<Rows> {
        Ok(match self {
            Form::Whole(whole) => Rows::Whole(read(whole)?),
            Form::Product { a, b } => Rows::Product { rank: b.shape[0], a: read(a)?, b: read(b)? },
            Form::Tucker { core, a, b, is_turned } => {
                let ranks = [core.shape[0], core.shape[1]];
                let stored = read(a)?;
                let rows = stored.len() / ranks[0];
                let a = if *is_turned { turned(&stored, rows) } else { stored };
                Rows::Tucker { ranks, a, core: read(core)?, b: turned(&read(b)?, b.shape[1]) }
            }
        })
    }
}

/// `[rows, columns]` of `[columns, rows]`.
fn turned(matrix: &[f32], rows: usize) -> Vec<f32> {
    let columns = matrix.len() / rows.max(1);
    (0..rows).flat_map(|row| (0..columns).map(move |column| matrix[column * rows + row])).collect()
}

/// Factors in memory.
enum Rows {
    Whole(Vec<f32>),
    Product {
        rank: usize,
        a: Vec<f32>,
        b: Vec<f32>,
    },
    /// `a [O, r1]`, `core [r1, r2 T]`, `b [C, r2]`.
    Tucker {
        ranks: [usize; 2],
        a: Vec<f32>,
        core: Vec<f32>,
        b: Vec<f32>,
    },
}

impl Rows {
    /// Writes row `o`.
    fn row(&self, o: usize, out: &mut [f32]) {
        let width = out.len();
        match self {
            Rows::Whole(values) => out.copy_from_slice(&values[o * width..(o + 1) * width]),
            Rows::Product { rank, a, b } => combine(&a[o * rank..(o + 1) * rank], b, out),
            Rows::Tucker { ranks: [r1, r2], a, core, b } => {
                // The row's core `[r2, T]`, then the channels of it.
                let mut own = vec![0.0; core.len() / r1];
                combine(&a[o * r1..(o + 1) * r1], core, &mut own);
                let taps = own.len() / r2;
                for (channel, out) in out.chunks_exact_mut(taps).enumerate() {
                    combine(&b[channel * r2..(channel + 1) * r2], &own, out);
                }
            }
        }
    }

    /// All rows `[rows, width]`.
    fn matrix(&self, rows: usize, width: usize) -> Vec<f32> {
        let mut matrix = vec![0.0; rows * width];
        matrix.chunks_exact_mut(width.max(1)).enumerate().for_each(|(o, row)| self.row(o, row));
        matrix
    }
}

/// `out = sum_i factors[i] rows[i]`.
fn combine(factors: &[f32], rows: &[f32], out: &mut [f32]) {
    out.fill(0.0);
    for (factor, row) in factors.iter().zip(rows.chunks_exact(out.len().max(1))) {
        for (out, x) in out.iter_mut().zip(row) {
            *out += factor * x;
        }
    }
}

impl Delta {
    /// The shape of the difference.
    ///
    /// # Errors
    /// The factors do not fit each other.
    pub fn shape(&self) -> Result<Vec<usize>, String> {
        match self {
            Delta::Form(form) => form.shape(),
            Delta::Hadamard(one, two) => {
                let (one, two) = (one.shape()?, two.shape()?);
                if one == two { Ok(one) } else { Err(format!("hada_w1 makes {one:?} and hada_w2 {two:?}")) }
            }
            Delta::Kronecker(one, two) => match (&one.shape()?[..], &two.shape()?[..]) {
                (&[a, c], &[rows, channels, ref taps @ ..]) => Ok([&[a * rows, c * channels], taps].concat()),
                (one, two) => Err(format!("lokr_w1 makes {one:?} and lokr_w2 {two:?}")),
            },
        }
    }

    /// The rank; `None` where nothing has one.
    pub fn rank(&self) -> Option<usize> {
        match self {
            Delta::Form(form) => form.rank(),
            Delta::Hadamard(one, _) => one.rank(),
            // As LyCORIS does: that of the second factor decides.
            Delta::Kronecker(one, two) => two.rank().or(one.rank()),
        }
    }

    /// Adds the difference, times `scale`, to a weight of `shape`.
    ///
    /// # Errors
    /// The adapter's file cannot be read.
    pub fn add(&self, read: Read<'_>, scale: f32, weight: &mut [f32], shape: &[usize]) -> Result<()> {
        // A vector is one row.
        let width = if shape.len() < 2 { weight.len() } else { weight.len() / shape[0].max(1) };
        let mut each = |row: &(dyn Fn(usize, &mut [f32]) + Sync)| {
            weight.par_chunks_exact_mut(width.max(1)).enumerate().for_each_init(
                || vec![0.0; width],
                |delta, (o, weight)| {
                    row(o, delta);
                    for (w, d) in weight.iter_mut().zip(&*delta) {
                        *w += scale * d;
                    }
                },
            );
        };
        match self {
            Delta::Form(form) => {
                let rows = form.load(read)?;
                each(&|o, delta| rows.row(o, delta));
            }
            Delta::Hadamard(one, two) => {
                let [one, two] = [one.load(read)?, two.load(read)?];
                each(&|o, delta| {
                    let mut other = vec![0.0; delta.len()];
                    one.row(o, delta);
                    two.row(o, &mut other);
                    delta.iter_mut().zip(other).for_each(|(x, y)| *x *= y);
                });
            }
            Delta::Kronecker(one, two) => {
                let sizes = |form: &Form| form.shape().expect("checked when the adapter was read");
                let (outer, inner) = (sizes(one), sizes(two));
                let inner_width: usize = inner[1..].iter().product();
                let one = one.load(read)?.matrix(outer[0], outer[1]);
                let two = two.load(read)?.matrix(inner[0], inner_width);
                each(&|o, delta| {
                    let (i, p) = (o / inner[0], o % inner[0]);
                    let row = &two[p * inner_width..(p + 1) * inner_width];
                    let factors = &one[i * outer[1]..(i + 1) * outer[1]];
                    for (factor, part) in factors.iter().zip(delta.chunks_exact_mut(inner_width)) {
                        part.iter_mut().zip(row).for_each(|(x, y)| *x = factor * y);
                    }
                });
            }
        }
        Ok(())
    }
}

/// Which entries of a weight have a norm in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Axis {
    /// A norm for each output.
    Outputs,
    /// A norm for each input channel.
    Inputs,
}

/// Scales a weight so that its norms are these magnitudes (Liu et al. 2024, DoRA). What is all zero stays so.
pub(super) fn set_norms(weight: &mut [f32], shape: &[usize], magnitude: &[f32], axis: Axis) {
    let width = weight.len() / shape[0].max(1);
    let square = |x: &f32| f64::from(*x) * f64::from(*x);
    let factor = |magnitude: f32, squares: f64| {
        if squares > 0.0 { (f64::from(magnitude) / squares.sqrt()) as f32 } else { 1.0 }
    };
    match axis {
        Axis::Outputs => weight.par_chunks_exact_mut(width.max(1)).zip(magnitude).for_each(|(row, &m)| {
            let factor = factor(m, row.iter().map(square).sum());
            row.iter_mut().for_each(|x| *x *= factor);
        }),
        Axis::Inputs => {
            let taps = width / shape[1].max(1);
            let mut squares = vec![0.0; shape[1]];
            for row in weight.chunks_exact(width.max(1)) {
                for (sum, taps) in squares.iter_mut().zip(row.chunks_exact(taps.max(1))) {
                    *sum += taps.iter().map(square).sum::<f64>();
                }
            }
            let factors: Vec<f32> = magnitude.iter().zip(squares).map(|(&m, squares)| factor(m, squares)).collect();
            weight.par_chunks_exact_mut(width.max(1)).for_each(|row| {
                for (factor, taps) in factors.iter().zip(row.chunks_exact_mut(taps.max(1))) {
                    taps.iter_mut().for_each(|x| *x *= factor);
                }
            });
        }
    }
}
