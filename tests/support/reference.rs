//! Every operation as the plainest loops that compute its formula, in f64, independent of all back ends.

use super::{Data, Problem};
use unclip::noise::NoiseDtype;
use unclip::ops::{
    Activation, Attention, Concat, Conv2d, Embed, GroupNorm, Linear, Modulate, Noise, Op, Operation, Pointwise,
    Prediction, Resize, SamplerStep, Slice, Variance,
};

/// A tensor in double precision.
struct Wide {
    shape: Vec<usize>,
    x: Vec<f64>,
}

impl Wide {
    fn width(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }
}

/// Terms at the end of sums that are left out, as by a kernel that stops too early.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lack {
    /// Of the sum behind an element: over the depth of a matrix product, an attention's keys, a norm's group or row, a
    /// picture's taps.
    pub terms: usize,
    /// Of an attention's scores: columns of a head.
    pub columns: usize,
}

/// The problem's output.
pub fn run(problem: &Problem) -> Vec<f64> {
    run_lacking(problem, Lack::default())
}

/// What comes out where terms are left out. Means are still divided by the number of all terms.
pub fn run_lacking(problem: &Problem, lack: Lack) -> Vec<f64> {
    let shape = problem.op.shape(&problem.shapes()).expect("the case's shapes fit");
    let inputs: Vec<Wide> = problem
        .tensors
        .iter()
        .map(|t| {
            let x = match &t.data {
                Data::Floats(x) => x.iter().map(|&v| f64::from(v)).collect(),
                Data::Integers(x) => x.iter().map(|&v| f64::from(v)).collect(),
            };
            Wide { shape: t.shape.clone(), x }
        })
        .collect();
    match &problem.op {
        Op::Attention(op) => attention(op, &inputs, lack),
        Op::Concat(op) => concat(op, &inputs, &shape),
        Op::Conv2d(op) => conv2d(op, &inputs, &shape, lack.terms),
        Op::Convert(_) => inputs[0].x.clone(),
        Op::Embed(op) => embed(op, &inputs),
        Op::Geglu(_) => geglu(&inputs[0]),
        Op::GroupNorm(op) => group_norm(op, &inputs, lack.terms),
        Op::LayerNorm(op) => layer_norm(f64::from(op.eps), &inputs, lack.terms),
        Op::Linear(op) => linear(op, &inputs, lack.terms),
        Op::Modulate(op) => modulate(op, &inputs),
        Op::Multistep(op) => multistep(op.guided, &inputs),
        Op::Pointwise(op) => pointwise(op, &inputs),
        Op::Resize(op) => resize(op, &inputs[0], &shape, lack.terms),
        Op::SamplerStep(op) => sampler_step(op, &inputs),
        Op::Slice(op) => slice(op, &inputs[0]),
        Op::Training(op) => unreachable!("{op:?} is in tests/gradients.rs"),
    }
}

/// How many terms the longest sum behind an element has; what the tolerance grows with.
pub fn reduction(problem: &Problem) -> usize {
    let shapes = problem.shapes();
    match &problem.op {
        Op::Attention(op) => {
            let (extra, own) = op.keys(&shapes);
            extra + own + shapes[0][2] / op.heads
        }
        Op::Conv2d(_) => shapes[1][1..].iter().product(),
        Op::GroupNorm(op) => shapes[0][1..].iter().product::<usize>() / op.groups,
        Op::LayerNorm(_) | Op::Linear(_) => shapes[0][shapes[0].len() - 1],
        Op::Resize(_) => 16,
        Op::Concat(_) | Op::Convert(_) | Op::Embed(_) | Op::Geglu(_) | Op::Modulate(_) => 1,
        Op::Multistep(_) => 1,
        Op::Pointwise(_) | Op::SamplerStep(_) | Op::Slice(_) => 1,
        Op::Training(op) => unreachable!("{op:?} is in tests/gradients.rs"),
    }
}

fn activate(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::QuickGelu => x / (1.0 + (-1.702 * x).exp()),
        Activation::Gelu => x * normal_distribution(x),
    }
}

/// Phi(x) by its Maclaurin series, and by Laplace's continued fraction of the tail where that would cancel.
fn normal_distribution(x: f64) -> f64 {
    let density = (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt();
    if x.abs() < 3.0 {
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= x * x / f64::from(2 * n + 1);
            sum += term;
        }
        return 0.5 + density * sum;
    }
    let far = x.abs();
    let fraction = (1..200).rev().fold(far, |f, n| far + f64::from(n) / f);
    let tail = density / fraction;
    if x < 0.0 { tail } else { 1.0 - tail }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

fn linear(op: &Linear, inputs: &[Wide], lack: usize) -> Vec<f64> {
    let (x, weight) = (&inputs[0], &inputs[1]);
    let (n, k) = (weight.shape[0], weight.shape[1]);
    let mut y = Vec::new();
    for row in x.x.chunks(k) {
        for o in 0..n {
            let mut v = dot(&row[..k - lack], &weight.x[o * k..(o + 1) * k - lack]);
            if op.bias {
                v += inputs[2].x[o];
            }
            if let Some(activation) = op.activation {
                v = activate(activation, v);
            }
            if op.residual {
                v += inputs[2 + usize::from(op.bias)].x[y.len()];
            }
            y.push(v);
        }
    }
    y
}

fn conv2d(op: &Conv2d, inputs: &[Wide], shape: &[usize], lack: usize) -> Vec<f64> {
    let (x, weight) = (&inputs[0], &inputs[1]);
    let (h, w, c) = (x.shape[1], x.shape[2], x.shape[3]);
    let (r_side, s_side) = (weight.shape[2], weight.shape[3]);
    let [images, out_h, out_w, outputs] = shape else { panic!("a picture has four dimensions") };
    // [O, C, R, S] to [O, R, S, C], so that channels are next to each other as in x.
    let mut taps = vec![0.0; weight.x.len()];
    for (i, v) in weight.x.iter().enumerate() {
        let (s, r) = (i % s_side, i / s_side % r_side);
        let (channel, o) = (i / s_side / r_side % c, i / s_side / r_side / c);
        taps[((o * r_side + r) * s_side + s) * c + channel] = *v;
    }
    for of_output in taps.chunks_mut(r_side * s_side * c) {
        let kept = of_output.len() - lack;
        of_output[kept..].fill(0.0);
    }
    let mut y = Vec::new();
    for n in 0..*images {
        for (i, j) in (0..*out_h).flat_map(|i| (0..*out_w).map(move |j| (i, j))) {
            for o in 0..*outputs {
                let mut v = 0.0;
                for (r, s) in (0..r_side).flat_map(|r| (0..s_side).map(move |s| (r, s))) {
                    let row = (i * op.stride + r) as isize - op.padding[0] as isize;
                    let column = (j * op.stride + s) as isize - op.padding[0] as isize;
                    if row < 0 || column < 0 || row >= h as isize || column >= w as isize {
                        continue;
                    }
                    let pixel = ((n * h + row as usize) * w + column as usize) * c;
                    let tap = ((o * r_side + r) * s_side + s) * c;
                    v += dot(&x.x[pixel..pixel + c], &taps[tap..tap + c]);
                }
                let mut next = 2;
                for (present, at) in [(op.bias, o), (op.shift, n * outputs + o), (op.residual, y.len())] {
                    if present {
                        v += inputs[next].x[at];
                        next += 1;
                    }
                }
                y.push(v);
            }
        }
    }
    y
}

fn attention(op: &Attention, inputs: &[Wide], lack: Lack) -> Vec<f64> {
    let (q, k, v) = (&inputs[0], &inputs[1], &inputs[2]);
    let (batch, queries, width) = (q.shape[0], q.shape[1], q.shape[2]);
    let own = k.shape[1];
    let extra = if op.extra { inputs[3].shape[1] } else { 0 };
    let mask = op.mask.then(|| &inputs[inputs.len() - 1]);
    let d = width / op.heads;
    let mut y = vec![0.0; q.x.len()];
    for b in 0..batch {
        // Row j of the extra rows followed by the own rows.
        let row = |own_rows: &Wide, which: usize, j: usize, head: usize| -> Vec<f64> {
            let (from, at) = if j < extra { (&inputs[which], b * extra + j) } else { (own_rows, b * own + j - extra) };
            from.x[at * width + head * d..][..d].to_vec()
        };
        for head in 0..op.heads {
            let keys: Vec<Vec<f64>> = (0..extra + own).map(|j| row(k, 3, j, head)).collect();
            let values: Vec<Vec<f64>> = (0..extra + own).map(|j| row(v, 4, j, head)).collect();
            for i in 0..queries {
                let at = (b * queries + i) * width + head * d;
                let allowed = |j: usize| {
                    let masked = mask.is_some_and(|m| j < m.shape[1] && m.x[b * m.shape[1] + j] == 0.0);
                    let later = op.causal && j >= extra && j - extra > i + own - queries;
                    !masked && !later && j < extra + own - lack.terms
                };
                let scores: Vec<f64> = (0..extra + own)
                    .map(|j| {
                        let product = dot(&q.x[at..at + d - lack.columns], &keys[j][..d - lack.columns]);
                        if allowed(j) { product / (d as f64).sqrt() } else { f64::NEG_INFINITY }
                    })
                    .collect();
                let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
                let sum: f64 = weights.iter().sum();
                for (weight, value) in weights.iter().zip(&values) {
                    for c in 0..d {
                        y[at + c] += weight / sum * value[c];
                    }
                }
            }
        }
    }
    y
}

fn group_norm(op: &GroupNorm, inputs: &[Wide], lack: usize) -> Vec<f64> {
    let (x, c) = (&inputs[0], inputs[0].width());
    let images = x.shape[0];
    let (image, per_group) = (x.x.len() / images, c / op.groups);
    let mut y = vec![0.0; x.x.len()];
    for n in 0..images {
        for g in 0..op.groups {
            let members: Vec<usize> = (n * image..(n + 1) * image).filter(|i| i % c / per_group == g).collect();
            let summed = &members[..members.len() - lack];
            let mean = summed.iter().map(|&i| x.x[i]).sum::<f64>() / members.len() as f64;
            let variance = summed.iter().map(|&i| (x.x[i] - mean).powi(2)).sum::<f64>() / members.len() as f64;
            for &i in &members {
                let channel = i % c;
                let normal = (x.x[i] - mean) / (variance + f64::from(op.eps)).sqrt();
                let mut v = normal * inputs[1].x[channel] + inputs[2].x[channel];
                if op.style {
                    let style = &inputs[3].x[n * 2 * c..][..2 * c];
                    v = v * (1.0 + style[channel]) + style[c + channel];
                }
                y[i] = op.activation.map_or(v, |activation| activate(activation, v));
            }
        }
    }
    y
}

fn layer_norm(eps: f64, inputs: &[Wide], lack: usize) -> Vec<f64> {
    let d = inputs[0].width();
    let mut y = Vec::new();
    for row in inputs[0].x.chunks(d) {
        let mean = row[..d - lack].iter().sum::<f64>() / d as f64;
        let variance = row[..d - lack].iter().map(|v| (v - mean).powi(2)).sum::<f64>() / d as f64;
        y.extend((0..d).map(|c| (row[c] - mean) / (variance + eps).sqrt() * inputs[1].x[c] + inputs[2].x[c]));
    }
    y
}

fn pointwise(op: &Pointwise, inputs: &[Wide]) -> Vec<f64> {
    let x = &inputs[0];
    let (c, image) = (x.width(), x.x.len() / x.shape.first().copied().unwrap_or(1));
    let other = |i: usize| inputs[1].x[i % inputs[1].x.len()];
    let of = |(i, &v): (usize, &f64)| match op {
        Pointwise::Activation(activation) => activate(*activation, v),
        Pointwise::Add => v + other(i),
        Pointwise::Multiply => v * other(i),
        Pointwise::AddChannels => v + inputs[1].x[i / image * c + i % c],
        Pointwise::ScaleShift => {
            let style = &inputs[1].x[i / image * 2 * c..][..2 * c];
            v * (1.0 + style[i % c]) + style[c + i % c]
        }
        Pointwise::Clamp { low, high } => v.clamp(f64::from(*low), f64::from(*high)),
    };
    x.x.iter().enumerate().map(of).collect()
}

fn geglu(x: &Wide) -> Vec<f64> {
    let halves = x.x.chunks_exact(x.width()).map(|row| row.split_at(row.len() / 2));
    halves
        .flat_map(|(values, gates)| values.iter().zip(gates).map(|(v, g)| v * activate(Activation::Gelu, *g)))
        .collect()
}

fn modulate(op: &Modulate, inputs: &[Wide]) -> Vec<f64> {
    let (x, maps) = (&inputs[0], &inputs[1].shape);
    let factor = x.shape[1] / maps[1];
    let of = |(i, &v): (usize, &f64)| {
        let [n, row, column, c] = coordinates(i, &x.shape)[..] else { unreachable!("a picture has four dimensions") };
        let at = offset(&[n, row / factor, column / factor, c], maps);
        let v = v * inputs[1].x[at] + inputs[2].x[at];
        op.activation.map_or(v, |activation| activate(activation, v))
    };
    x.x.iter().enumerate().map(of).collect()
}

/// Index in every dimension of element `i` of a tensor.
fn coordinates(mut i: usize, shape: &[usize]) -> Vec<usize> {
    let mut at: Vec<usize> = shape
        .iter()
        .rev()
        .map(|&n| {
            let k = i % n;
            i /= n;
            k
        })
        .collect();
    at.reverse();
    at
}

fn offset(at: &[usize], shape: &[usize]) -> usize {
    at.iter().zip(shape).fold(0, |i, (k, n)| i * n + k)
}

fn concat(op: &Concat, inputs: &[Wide], shape: &[usize]) -> Vec<f64> {
    (0..shape.iter().product())
        .map(|i| {
            let mut at = coordinates(i, shape);
            let mut part = 0;
            while at[op.axis] >= inputs[part].shape[op.axis] {
                at[op.axis] -= inputs[part].shape[op.axis];
                part += 1;
            }
            inputs[part].x[offset(&at, &inputs[part].shape)]
        })
        .collect()
}

fn slice(op: &Slice, x: &Wide) -> Vec<f64> {
    let mut shape = x.shape.clone();
    shape[op.axis] = op.length;
    (0..shape.iter().product())
        .map(|i| {
            let mut at = coordinates(i, &shape);
            at[op.axis] = op.start + op.step * at[op.axis];
            x.x[offset(&at, &x.shape)]
        })
        .collect()
}

fn resize(op: &Resize, x: &Wide, shape: &[usize], lack: usize) -> Vec<f64> {
    let pixel = |n: usize, i: usize, j: usize, c: usize| x.x[offset(&[n, i, j, c], &x.shape)];
    let of = |index: usize| {
        let at = coordinates(index, shape);
        let (n, i, j, c) = (at[0], at[1], at[2], at[3]);
        match op {
            Resize::NearestDouble => pixel(n, i / 2, j / 2, c),
            Resize::MeanHalve => {
                let square = [(0, 0), (0, 1), (1, 0), (1, 1)];
                square[..4 - lack].iter().map(|(r, s)| pixel(n, 2 * i + r, 2 * j + s, c)).sum::<f64>() / 4.0
            }
            Resize::Bicubic { height, width } => {
                let all = (0..x.shape[1]).flat_map(|r| (0..x.shape[2]).map(move |s| (r, s)));
                let weight = |(r, s)| cubic_weight(i, r, x.shape[1], *height) * cubic_weight(j, s, x.shape[2], *width);
                let taps: Vec<_> = all.map(|at| (at, weight(at))).filter(|(_, weight)| *weight != 0.0).collect();
                let sum: f64 = taps.iter().map(|(_, weight)| weight).sum();
                let summed = &taps[..taps.len() - lack];
                summed.iter().map(|((r, s), weight)| weight * pixel(n, *r, *s, c)).sum::<f64>() / sum
            }
        }
    };
    (0..shape.iter().product()).map(of).collect()
}

/// Weight of input pixel `from` for output pixel `to`: Keys 1981 eq. 4 with a = -1/2 at the distance of their
/// centres, stretched by the scale when the picture shrinks. Not yet divided by the sum.
fn cubic_weight(to: usize, from: usize, inputs: usize, outputs: usize) -> f64 {
    let scale = inputs as f64 / outputs as f64;
    let distance = ((from as f64 + 0.5) - (to as f64 + 0.5) * scale).abs() / scale.max(1.0);
    let (a, s) = (-0.5, distance);
    match s {
        _ if s < 1.0 => (a + 2.0) * s.powi(3) - (a + 3.0) * s.powi(2) + 1.0,
        _ if s < 2.0 => a * s.powi(3) - 5.0 * a * s.powi(2) + 8.0 * a * s - 4.0 * a,
        _ => 0.0,
    }
}

fn embed(op: &Embed, inputs: &[Wide]) -> Vec<f64> {
    let (table, rows) = (&inputs[0], &inputs[1].x);
    let row = |i: usize, width: usize| table.x[i * width..][..width].to_vec();
    match op {
        Embed::Lookup => rows.iter().flat_map(|&id| row(id as usize, table.width())).collect(),
        Embed::Token => {
            let per_batch = table.shape[1];
            rows.iter().enumerate().flat_map(|(b, &at)| row(b * per_batch + at as usize, table.width())).collect()
        }
        Embed::Row => row(rows[0] as usize, table.shape[1..].iter().product()),
    }
}

fn sampler_step(op: &SamplerStep, inputs: &[Wide]) -> Vec<f64> {
    let (output, x_t, row) = (&inputs[0], &inputs[1].x, &inputs[2].x);
    let c = inputs[1].width();
    let noise = match op.noise {
        Noise::Given => inputs[3].x.clone(),
        Noise::Philox => drawn(&inputs[3].x, inputs[4].x[0], x_t.len() / inputs[1].shape[0] / c, c),
        Noise::TorchCuda(dtype) => {
            drawn_as_torch(&inputs[3].x, inputs[4].x[0], x_t.len() / inputs[1].shape[0] / c, c, dtype)
        }
    };
    let wide = output.width();
    let conditional_at = if op.guided { output.x.len() / 2 } else { 0 };
    let picture = x_t.len() / inputs[1].shape[0];
    (0..x_t.len())
        .map(|i| {
            let row = &row[9 * (i / picture)..][..9];
            let at = i / c * wide + i % c;
            let conditional = output.x[conditional_at + at];
            let out = if op.guided { output.x[at] + row[8] * (conditional - output.x[at]) } else { conditional };
            let mut x0 = match op.prediction {
                Prediction::Epsilon => (x_t[i] - row[0] * out) / row[1],
                Prediction::Sample => out,
                Prediction::Velocity => row[1] * x_t[i] - row[0] * out,
            };
            if let Some(range) = op.clip {
                x0 = x0.clamp(-f64::from(range), f64::from(range));
            }
            let sigma = match op.variance {
                Variance::Fixed => row[4],
                Variance::LearnedRange => {
                    let f = (output.x[conditional_at + at + c] + 1.0) / 2.0;
                    ((f * row[5] + (1.0 - f) * row[6]) / 2.0).exp()
                }
            };
            row[2] * x0 + row[3] * x_t[i] + row[7] * sigma * noise[i]
        })
        .collect()
}

fn multistep(guided: bool, inputs: &[Wide]) -> Vec<f64> {
    let (output, x_t, history) = (&inputs[0].x, &inputs[1].x, &inputs[3].x);
    let (count, picture) = (x_t.len(), x_t.len() / inputs[1].shape[0]);
    let row = |i: usize| &inputs[2].x[9 * (i / picture)..][..9];
    let estimate = |i: usize| {
        let out = if guided { output[i] + row(i)[8] * (output[count + i] - output[i]) } else { output[i] };
        row(i)[0] * x_t[i] + row(i)[1] * out
    };
    let next = |i: usize| {
        let kept: f64 = (0..4).map(|age| row(i)[4 + age] * history[age * count + i]).sum();
        row(i)[2] * x_t[i] + row(i)[3] * estimate(i) + kept
    };
    let kept = history[..3 * count].iter().copied();
    (0..count).map(next).chain((0..count).map(estimate)).chain(kept).collect()
}

const WORD: u64 = 1 << 32;

/// Noise by seed, draw and element: the words of Salmon et al. 2011, their uniforms by Box & Muller 1958.
fn drawn(seeds: &[f64], step: f64, positions: usize, c: usize) -> Vec<f64> {
    let element = |seed: &[f64], i: usize| {
        let number = (u128::from(seed[2] as u64) + (u128::from(seed[3] as u64) << 32) + step as u128) as u64;
        let counter = [(i / 4) as u64, 0, number % WORD, number / WORD];
        let words = philox(counter, [seed[0] as u64, seed[1] as u64]);
        let pair = &words[i % 4 / 2 * 2..];
        let (u1, u2) = ((pair[0] / 256 + 1) as f64 / 2f64.powi(24), (pair[1] / 256) as f64 / 2f64.powi(24));
        let angle = std::f64::consts::TAU * u2;
        (-2.0 * u1.ln()).sqrt() * if i.is_multiple_of(2) { angle.cos() } else { angle.sin() }
    };
    let of_picture = |seed| (0..positions * c).map(move |at| element(seed, at % c * positions + at / c));
    seeds.chunks_exact(4).flat_map(of_picture).collect()
}

/// Noise as torch draws it on a card, from `seeds [B, 8]` as `ops/sampler_step.rs` has them: element `i` belongs to thread
/// `i mod T`, which makes it `i div T`-th; a counter has four, sines before cosines.
fn drawn_as_torch(seeds: &[f64], step: f64, positions: usize, c: usize, dtype: NoiseDtype) -> Vec<f64> {
    let element = |seed: &[f64], i: usize| {
        let [key0, key1, low, high, counters, threads, thread, turn] = seed.try_into().expect("eight words");
        let [counters, threads, thread, turn] = [counters, threads, thread, turn].map(|word: f64| word as u128);
        let place = thread + turn * threads + i as u128;
        let turn = place / threads;
        let number = low as u128 + ((high as u128) << 32) + step as u128 * counters + turn / 4;
        let number = number as u64;
        let counter = [number % WORD, number / WORD, (place % threads) as u64, 0];
        let words = philox(counter, [key0 as u64, key1 as u64]);
        // The two roundings to f32 are part of what torch does: near 1 they decide the radius.
        let uniform = |word: u64| f64::from(word as f32 / 2f32.powi(32) + 2f32.powi(-33));
        let pair = &words[turn as usize % 4 / 2 * 2..];
        let (u1, angle) = (uniform(pair[0]), std::f64::consts::TAU * uniform(pair[1]));
        let z = (-2.0 * u1.ln()).sqrt() * if turn.is_multiple_of(2) { angle.sin() } else { angle.cos() };
        match dtype {
            NoiseDtype::F32 => z,
            NoiseDtype::F16 => half::f16::from_f64(z).to_f64(),
            NoiseDtype::Bf16 => half::bf16::from_f64(z).to_f64(),
        }
    };
    let of_picture = |seed| (0..positions * c).map(move |at| element(seed, at % c * positions + at / c));
    seeds.chunks_exact(8).flat_map(of_picture).collect()
}

fn philox(counter: [u64; 4], key: [u64; 2]) -> [u64; 4] {
    (0..10).fold(counter, |[a, b, c, d], round| {
        let (p, q) = (a * 0xd251_1f53, c * 0xcd9e_8d57);
        let [k0, k1] = [(key[0] + round * 0x9e37_79b9) % WORD, (key[1] + round * 0xbb67_ae85) % WORD];
        [(q / WORD) ^ b ^ k0, q % WORD, (p / WORD) ^ d ^ k1, p % WORD]
    })
}
