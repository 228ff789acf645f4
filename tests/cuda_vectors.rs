//! Kernels whose threads own vectors: which shapes have them, and that tensors in halves keep their bits.
#![cfg(feature = "cuda-emulator")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use support::{Random, Tensors};
use unclip::Precision;
use unclip::backend::Backend;
use unclip::backend::cpu::{Cpu, Isa};
use unclip::backend::cuda::Cuda;
use unclip::cases;
use unclip::ops::{MatmulUnit, Operation};
use unclip::plan::{Graph, Tensor};

/// Multiples of 1/8, exact in every type, as are their sums of four.
fn eighths(length: usize) -> Vec<f32> {
    let mut random = Random::named("vectors");
    (0..length).map(|_| ((random.bits() >> 40) % 33) as f32 / 8.0 - 1.5).collect()
}

/// Copies of all kinds, of tensors in the storage type: the first step stores the input in it.
fn moves<'g>(x: Tensor<'g>, rows: &[usize; 4]) -> Tensor<'g> {
    let [n, height, width, c] = *rows;
    let stored = x + x;
    let joined = Tensor::concat(&[stored, stored.slice(3, c - 16, 16)], 3);
    let halved = joined.double().halve();
    let table = halved.reshape(&[n, height * width * (c + 16)]);
    let shift = table.slice(1, 0, c + 16);
    let even = Tensor::concat(&[halved.add_channels(shift), halved], 0).slice_by(1, 0, 2, height / 2);
    even.clamp(-5.0, 5.0)
}

#[test]
fn vectors_of_halves_keep_their_bits() {
    // In vectors, the last of a block beyond the end; and in single elements.
    for shape in [[2, 6, 7, 24], [2, 4, 5, 21]] {
        let source = Tensors::default();
        let graph = Graph::new("moves", &source);
        graph.output("y", moves(graph.input("x", &shape), &shape));
        let plan = graph.finish().unwrap();
        let run = |backend: &dyn Backend| {
            let mut executable = backend.prepare(plan.clone(), &source).unwrap();
            executable.write("x", &eighths(shape.iter().product())).unwrap();
            executable.run_once().unwrap();
            executable.read("y").unwrap()
        };
        let want = run(&Cpu::with_isa(1, Isa::detect()).unwrap());
        for precision in [Precision::F32, Precision::F16, Precision::Bf16] {
            let backend = Cuda::emulator().with_precision(precision);
            assert_eq!(run(&backend), want, "{shape:?} in {}", precision.name());
            let type_name = precision.storage().name();
            for stem in ["concat", "slice", "resize_by_two"] {
                let vectors = if shape[3] % 8 == 0 { "_x16" } else { "" };
                let entry = format!("{stem}{vectors}_{type_name}_{type_name}");
                assert!(backend.counters().iter().any(|(ran, ..)| *ran == entry), "no {entry}");
            }
        }
    }
}

#[test]
fn vectors_are_chosen_where_every_run_of_neighbours_is_whole_vectors() {
    let entry = |name: &str| {
        let case = cases::named(name);
        let shapes: Vec<&[usize]> = case.inputs.iter().map(|input| input.shape.as_slice()).collect();
        let output = case.op.shape(&shapes).unwrap();
        case.op.ptx(&shapes, &[&output], MatmulUnit::Half).pop().unwrap().entry
    };
    for (name, wanted) in [
        ("pointwise/silu-vectors", "pointwise_x16"),
        ("pointwise/silu", "pointwise"),
        ("pointwise/add-vector", "pointwise"),
        ("pointwise/add-channels", "pointwise_x16"),
        ("pointwise/scale-shift-odd", "pointwise"),
        ("geglu/unclip", "geglu_x16"),
        ("geglu/odd", "geglu"),
        ("modulate/movq-4", "modulate_x16"),
        ("modulate/movq-8-odd-width", "modulate"),
        ("concat/skip", "concat_x16"),
        ("concat/odd-channels", "concat"),
        ("convert/picture", "convert_x16"),
        ("convert/odd", "convert"),
        ("slice/channels-in-vectors", "slice_x16"),
        ("slice/rows-in-vectors", "slice_x16"),
        ("slice/heads-strided", "slice"),
        ("slice/shared", "slice"),
        ("embed/text-tokens", "embed_x16"),
        ("embed/odd", "embed"),
        ("resize/double", "resize_by_two_x16"),
        ("resize/halve-odd", "resize_by_two"),
    ] {
        assert_eq!(entry(name), wanted, "{name}");
    }
}
