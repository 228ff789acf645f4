//! Weights larger than the adapter's binding limit: split into parts with a launch for each, they give the same
//! results.
#![cfg(feature = "wgpu")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use support::adapters;
use support::arithmetic::Arithmetic;
use support::close::{Rounding, close};
use support::{Data, Problem, Random, Tensors, reference};
use unclip::Dtype;
use unclip::backend::Backend;
use unclip::backend::cpu::Cpu;
use unclip::backend::wgpu::{Options, Wgpu};
use unclip::cases::Tensor;
use unclip::ops::{Activation, Conv2d, Embed, Linear, Op, Tiles, elements};
use unclip::plan::Graph;

/// Limit of a binding in these tests.
const LARGEST: u64 = 64 << 10;

/// Random tensors of these shapes, stored as weights or not.
fn problem(op: impl Into<Op>, shapes: &[(&[usize], bool)]) -> Problem {
    let mut random = Random(4);
    let tensors = shapes.iter().map(|&(shape, stored)| {
        // Exact in f16, so that every storage type starts with the same values.
        let data = (0..elements(shape)).map(|_| half::f16::from_f64(random.normal() * 0.1).to_f32()).collect();
        Tensor { shape: shape.to_vec(), data: Data::Floats(data), stored: stored.then_some(Dtype::F16) }
    });
    Problem { op: op.into(), tensors: tensors.collect() }
}

/// Weights of more than [`LARGEST`] bytes in f16 too, whose last part is narrower than the others.
fn problems() -> Vec<(&'static str, Problem)> {
    let linear = Linear { bias: true, activation: Some(Activation::Silu), residual: true, also: 0 };
    let conv2d =
        Conv2d { stride: 1, padding: [1, 1], bias: true, shift: true, residual: true, behind: false, table: false };
    let product: &[(&[usize], bool)] = &[(&[37, 200], false), (&[421, 200], true), (&[421], true), (&[37, 421], false)];
    let window: &[(&[usize], bool)] = &[
        (&[2, 3, 5, 20], false),
        (&[293, 20, 3, 3], true),
        (&[293], true),
        (&[2, 293], false),
        (&[2, 3, 5, 293], false),
    ];
    let mut lookup = problem(Embed::Lookup, &[(&[1501, 33], true)]);
    let mut random = Random(5);
    // The first and last row of the table, rows at the ends of parts, and random ones.
    let mut ids: Vec<u32> = (0..40).map(|_| random.bits() as u32 % 1501).collect();
    ids.extend([0, 1500, 447, 448, 449, 959, 960]);
    lookup.tensors.push(Tensor { shape: vec![1, ids.len()], data: Data::Integers(ids), stored: None });
    vec![("linear", problem(linear, product)), ("conv2d", problem(conv2d, window)), ("embed", lookup)]
}

#[test]
fn weights_in_parts_match_the_reference() {
    for (name, problem) in problems() {
        for storage in [Dtype::F32, Dtype::F16] {
            let arithmetic = Arithmetic::Plain(storage);
            let want = reference::run(&arithmetic.operands(&problem));
            let matrices = (storage == Dtype::F16).then_some(Tiles::Matrices);
            let ways = [Tiles::Registers, Tiles::Lanes, Tiles::Shared];
            for tiles in ways.into_iter().chain(matrices) {
                let options = Options { storage, tiles: Some(tiles), ..Options::default() };
                let Some(whole) = adapters::open(options) else { continue };
                let parts = Wgpu::new(Options { largest_tensor: Some(LARGEST), ..options }).unwrap();
                let got = problem.run(&parts).unwrap();
                let rounding = arithmetic.rounding(&problem);
                close(&got, &want, &rounding).unwrap_or_else(|e| panic!("{name} on {}: {e}", parts.name()));
                assert_eq!(got, problem.run(&whole).unwrap(), "{name} on {}", parts.name());
                assert!(parts.traffic().weight_bytes > LARGEST, "{name}: nothing to divide");
                assert_eq!(parts.traffic().weight_bytes, whole.traffic().weight_bytes, "{name}");
            }
        }
    }
}

#[test]
fn a_divided_weight_may_be_read_by_several_steps() {
    let small = Options { largest_tensor: Some(LARGEST), ..Options::default() };
    let Some(backend) = adapters::open(small) else { return };
    let mut weights = Tensors::default();
    weights.insert_random("w.weight", &[200, 200], &mut Random(7));
    let graph = Graph::new("shared", &weights);
    let x = graph.input("x", &[3, 200]);
    let first = x.project(graph.weights().at("w"), 200);
    graph.output("y", first.silu().project(graph.weights().at("w"), 200));
    let plan = graph.finish().unwrap();
    let run = |backend: &dyn Backend| support::replay(backend.prepare(plan.clone(), &weights).unwrap().as_mut());
    for (got, want) in run(&backend).iter().zip(&run(&Cpu::new(1).unwrap())) {
        let want: Vec<f64> = want.iter().map(|&v| f64::from(v)).collect();
        close(got, &want, &Rounding::f32(400)).unwrap();
    }
    assert!(backend.traffic().weight_bytes < 2 * 224 * 200 * 4, "the weight is there once");
}
