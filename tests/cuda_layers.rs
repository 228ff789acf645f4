//! Linear layers of one input that the CUDA back end joins into one step: each output is that of its own layer, in as
//! few launches as the device has kernels for.
#![cfg(feature = "cuda-emulator")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use support::close::{Rounding, close};
use support::{Random, Tensors};
use unclip::backend::Backend;
use unclip::backend::cpu::{Cpu, Isa};
use unclip::backend::cuda::Cuda;
use unclip::ops::elements;
use unclip::plan::{Graph, Plan};
use unclip::{Dtype, Precision};

const NAMES: [&str; 3] = ["q", "k", "v"];

/// Multiples of 1/8, whose products sum without rounding in f32.
fn eighths(length: usize, name: &str) -> Vec<f32> {
    let mut random = Random::named(name);
    (0..length).map(|_| ((random.bits() >> 40) % 33) as f32 / 8.0 - 1.5).collect()
}

/// Queries, keys and values of `x [1, rows, depth]`, with `width` columns each.
fn layers(rows: usize, depth: usize, width: usize) -> (Plan, Tensors, Vec<f32>) {
    let mut weights = Tensors::default();
    for name in NAMES {
        for (part, shape) in [("weight", &[width, depth][..]), ("bias", &[width])] {
            let name = format!("{name}.{part}");
            let values = eighths(elements(shape), &name);
            weights.insert(&name, shape, values, Dtype::F32);
        }
    }
    let graph = Graph::new("layers", &weights);
    let x = graph.input("x", &[1, rows, depth]);
    for name in NAMES {
        graph.output(name, x.linear(graph.weights().at(name), width));
    }
    let plan = graph.finish().unwrap();
    (plan, weights, eighths(rows * depth, "x"))
}

fn outputs(backend: &dyn Backend, plan: &Plan, weights: &Tensors, x: &[f32]) -> [Vec<f32>; 3] {
    let mut executable = backend.prepare(plan.clone(), weights).unwrap();
    executable.write("x", x).unwrap();
    executable.run_once().unwrap();
    NAMES.map(|name| executable.read(name).unwrap())
}

#[test]
fn queries_keys_and_values_are_those_of_their_own_layers() {
    // Few rows; a tile per layer and less; parts of tiles, of two columns and rows of tiles; a depth in parts.
    for (rows, depth, width) in [(6, 264, 40), (13, 24, 16), (100, 64, 48), (200, 64, 200), (40, 1280, 160)] {
        let (plan, weights, x) = layers(rows, depth, width);
        let cpu = Cpu::with_isa(2, Isa::detect()).unwrap();
        let want = outputs(&cpu, &plan, &weights, &x).map(|y| y.into_iter().map(f64::from).collect::<Vec<_>>());
        for (backend, precision) in [
            (Cuda::emulator(), Precision::F32),
            (Cuda::emulator(), Precision::Bf16),
            (Cuda::hopper_emulator(), Precision::F16),
            (Cuda::hopper_emulator(), Precision::Bf16),
        ] {
            let backend = backend.with_precision(precision);
            let got = outputs(&backend, &plan, &weights, &x);
            let rounding = Rounding { stored: precision.storage(), inner: 0.0, length: depth };
            for ((got, want), layer) in got.iter().zip(&want).zip(NAMES) {
                let at = format!("{layer} of {rows} x {depth} to {width} on {}", backend.name());
                close(got, want, &rounding).unwrap_or_else(|e| panic!("{at}: {e}"));
            }
            let launches = |stem: &str| {
                let of_stem = backend.counters().into_iter().filter(|(entry, ..)| entry.starts_with(stem));
                of_stem.map(|(_, launches, _)| launches).sum::<u64>()
            };
            let [few, by_warpgroups] = [launches("linear_rows"), launches("matmul_sm90")];
            match precision {
                Precision::F32 => assert_eq!(few + by_warpgroups, 0),
                _ if rows <= 16 => assert_eq!(few, 1, "{rows} rows on {}", backend.name()),
                _ if backend.name().contains("sm_90") => assert_eq!(by_warpgroups, 1, "{rows} rows"),
                _ => assert_eq!(launches("linear_mma"), 3, "{rows} rows"),
            }
        }
    }
}
