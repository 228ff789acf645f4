//! The linear and conv2d cases through burn's wgpu back end and through this crate's, on one adapter in one run.
//!
//! `cargo run --release` prints a line per case: both times, both rates, and the ratio; above one, this crate is faster.
//! Both compute the bare matmul or convolution in f32, without the case's epilogue (bias, activation, shift, residual).
//! burn may autotune before it is timed.

#[path = "../../../../tests/support/mod.rs"]
#[allow(dead_code)]
mod support;

use burn_tensor::module::{conv2d, linear};
use burn_tensor::ops::ConvOptions;
use burn_tensor::{Device, DeviceKind, Tensor, TensorData};
use std::time::Instant;
use support::close::{Rounding, close};
use support::{Data, Problem, cases};
use unclip::backend::wgpu::{Kind, Options, Wgpu};
use unclip::ops::{Conv2d, Linear, Op, Operation};

/// Seconds per case and side, after the warm-up.
const SECONDS: f64 = 0.4;
/// Warm-up runs, for compilation and burn's autotuning.
const WARM: usize = 3;
/// Rounds, alternating between both sides; the best of each counts.
const ROUNDS: usize = 3;

fn main() {
    let ours = Wgpu::new(Options::default()).expect("an adapter");
    let kind = if ours.adapter().kind == Kind::Software { DeviceKind::Cpu } else { DeviceKind::DefaultDevice };
    let device = Device::wgpu(kind);
    println!("{}", ours.adapter());
    println!("{:<34} {:>10} {:>10} {:>9} {:>9} {:>7}", "case", "burn ms", "ours ms", "burn GF/s", "ours GF/s", "ratio");
    let filter = std::env::args().nth(1).unwrap_or_default();
    let (mut slower, mut logs) = (0, Vec::new());
    for case in cases::all().into_iter().filter(|c| !c.heavy && c.name.contains(&filter)) {
        if !matches!(case.op, Op::Linear(_) | Op::Conv2d(_)) || case.inputs[0].shape.len() < 2 {
            continue;
        }
        let problem = bare(&case.problem());
        let mut executable = problem.prepare(&ours).expect("the case compiles");
        let mut run_ours = |times: usize| {
            for _ in 0..times {
                executable.run_step(0).expect("the device works");
            }
            executable.read("y").expect("the device works");
        };
        let run_burn = prepare_burn(&problem, &device);
        // burn does not report a failed kernel.
        let length = support::reference::reduction(&problem);
        let got = in_our_order(&problem, run_burn(1));
        if let Err(reason) = close(&got, &support::reference::run(&problem), &Rounding::f32(length)) {
            println!("{:<34} burn is wrong and not timed: {reason}", case.name);
            continue;
        }
        let (mut burn_s, mut ours_s) = (f64::INFINITY, f64::INFINITY);
        for _ in 0..ROUNDS {
            burn_s = burn_s.min(time(|times| _ = run_burn(times)));
            ours_s = ours_s.min(time(&mut run_ours));
        }
        let shapes = problem.shapes();
        let output = problem.op.shape(&shapes).expect("the case's shapes fit");
        let gflop = problem.op.flops(&shapes, &output) as f64 / 1e9;
        let ratio = burn_s / ours_s;
        slower += usize::from(ratio < 1.0);
        logs.push(ratio.ln());
        println!(
            "{:<34} {:>10.3} {:>10.3} {:>9.2} {:>9.2} {:>7.2}",
            case.name,
            burn_s * 1e3,
            ours_s * 1e3,
            gflop / burn_s,
            gflop / ours_s,
            ratio
        );
    }
    let mean = (logs.iter().sum::<f64>() / logs.len().max(1) as f64).exp();
    println!("{} cases, geometric mean of the ratios {mean:.2}, burn faster in {slower}", logs.len());
}

/// Seconds per run; `run` waits for the device after the last one.
fn time(mut run: impl FnMut(usize)) -> f64 {
    run(WARM);
    let started = Instant::now();
    run(1);
    let one = started.elapsed().as_secs_f64();
    let times = ((SECONDS / ROUNDS as f64 / one) as usize).clamp(1, 200);
    let started = Instant::now();
    run(times);
    started.elapsed().as_secs_f64() / times as f64
}

/// The operation on tensors in burn's layouts, as a function of the number of runs.
fn prepare_burn(problem: &Problem, device: &Device) -> Box<dyn Fn(usize) -> Vec<f32>> {
    let floats = |i: usize| match &problem.tensors[i].data {
        Data::Floats(x) => x.clone(),
        Data::Integers(_) => panic!("matmuls have no integer inputs"),
    };
    let data = |x: Vec<f32>, shape: Vec<usize>| TensorData::new(x, shape);
    let shape = |i: usize| problem.tensors[i].shape.clone();
    match &problem.op {
        Op::Linear(_) => {
            let (n, k) = (shape(1)[0], shape(1)[1]);
            let x = Tensor::<2>::from_data(data(floats(0), vec![floats(0).len() / k, k]), device);
            // burn's weights are [K, N].
            let weight = Tensor::<2>::from_data(data(transposed(&floats(1), 1, n, k), vec![k, n]), device);
            Box::new(move |times| {
                let mut y = None;
                for _ in 0..times {
                    y = Some(linear(x.clone(), weight.clone(), None));
                }
                y.map(read).unwrap_or_default()
            })
        }
        Op::Conv2d(op) => {
            let (x, w) = (shape(0), shape(1));
            let pictures = transposed(&floats(0), x[0], x[1] * x[2], x[3]);
            let pictures = Tensor::<4>::from_data(data(pictures, vec![x[0], x[3], x[1], x[2]]), device);
            let weight = Tensor::<4>::from_data(data(floats(1), w.clone()), device);
            let (stride, padding) = (op.stride, op.padding);
            Box::new(move |times| {
                let mut y = None;
                for _ in 0..times {
                    let options = ConvOptions::new([stride, stride], [padding, padding], [1, 1], 1);
                    y = Some(conv2d(pictures.clone(), weight.clone(), None, options));
                }
                y.map(read).unwrap_or_default()
            })
        }
        other => panic!("{} is not a matmul", other.name()),
    }
}

fn read<const D: usize>(y: Tensor<D>) -> Vec<f32> {
    y.into_data().to_vec().expect("burn computes in f32")
}

/// The problem without its epilogue.
fn bare(problem: &Problem) -> Problem {
    let op = match &problem.op {
        Op::Linear(_) => Linear::default().into(),
        Op::Conv2d(op) => Conv2d { bias: false, shift: false, residual: false, ..op.clone() }.into(),
        other => other.clone(),
    };
    Problem { op, tensors: problem.tensors[..2].to_vec() }
}

/// Reorders burn's channels-first result.
fn in_our_order(problem: &Problem, y: Vec<f32>) -> Vec<f32> {
    let shape = problem.op.shape(&problem.shapes()).expect("the case's shapes fit");
    match problem.op {
        Op::Conv2d(_) => transposed(&y, shape[0], shape[3], shape[1] * shape[2]),
        _ => y,
    }
}

/// `[batch, a, b]` to `[batch, b, a]`.
fn transposed(x: &[f32], batch: usize, a: usize, b: usize) -> Vec<f32> {
    (0..batch * a * b).map(|i| x[i / (a * b) * a * b + i % a * b + i % (a * b) / a]).collect()
}
