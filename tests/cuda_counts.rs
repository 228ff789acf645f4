//! Instructions and traffic of the PTX kernels, counted by the emulator: the tables of `PERFORMANCE.md`. Kernels that
//! are bound by memory may move at most a tenth more than the least possible.
#![cfg(feature = "cuda-emulator")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use unclip::Dtype;
use unclip::Precision;
use unclip::backend::cuda::Cuda;
use unclip::backend::cuda::emulator::Counters;
use unclip::backend::cuda::explain;
use unclip::cases;
use unclip::cases::models::{Drawn, ModelCase, Network, Size};
use unclip::ops::{MatmulUnit, Op, Operand, Operation};
use unclip::plan::{Cost, narrow};

/// Limit of moved bytes, relative to the least possible.
const MOST: f64 = 1.1;
/// The limit for group norms that read their input twice: three accesses instead of two, and the partial statistics.
const MOST_READ_TWICE: f64 = 1.55;

/// Cases bound by arithmetic.
const MATMULS: [&str; 6] = [
    "linear/text-encoder-mlp",
    "linear/large-tiles-even",
    "conv2d/karlo-320",
    "conv2d/karlo-640",
    "attention/prior",
    "attention/decoder-8px",
];
/// Cases bound by memory.
const MEMORY_BOUND: [&str; 21] = [
    "group_norm/karlo-320",
    "group_norm/karlo-1280",
    "group_norm/decoder-64px",
    "group_norm/in-parts",
    "layer_norm/text-encoder",
    "layer_norm/image-encoder",
    "layer_norm/prior-batch",
    "pointwise/silu-shared",
    "pointwise/add-decoder-64px",
    "pointwise/add-channels",
    "pointwise/scale-shift",
    "concat/skip",
    "slice/shared",
    "embed/text-tokens",
    "embed/time-shifts",
    "resize/double",
    "resize/halve",
    "resize/bicubic-picture",
    "sampler_step/decoder-64px",
    "sampler_step/philox-256px",
    "sampler_step/torch-256px",
];

/// A line of the table.
struct Row {
    kernels: Vec<String>,
    counted: Counters,
    least: Cost,
}

const HEAD: &str = "| case | kernels | MFLOP | instructions, thousands | least KiB | moved KiB | ratio | \
                    cached KiB | sectors per request |\n|---|---|---|---|---|---|---|---|---|";

impl Row {
    fn ratio(&self) -> f64 {
        self.counted.moved_bytes() as f64 / self.least.bytes as f64
    }

    fn print(&self, case: &str, precision: &str) {
        let Row { kernels, counted, least } = self;
        println!(
            "| {case}, {precision} | {} | {:.1} | {:.1} | {:.0} | {:.0} | {:.2} | {:.0} | {:.1} |",
            kernels.join(", "),
            least.flops as f64 / 1e6,
            counted.instructions as f64 / 1e3,
            least.bytes as f64 / 1024.0,
            counted.moved_bytes() as f64 / 1024.0,
            self.ratio(),
            counted.cached_read_bytes as f64 / 1024.0,
            counted.sectors_per_request()
        );
    }
}

/// Runs a case and counts its step, without the loading of its weights and the casts of its inputs to the storage type.
fn count(name: &str, backend: Cuda, precision: Precision) -> Row {
    let storage = precision.storage();
    let backend = backend.with_precision(precision);
    let problem = cases::named(name).problem();
    problem.run(&backend).unwrap();
    let plan = narrow(problem.plan(), storage);
    let steps: Vec<_> = plan.steps.iter().filter(|step| step.label == "case").cloned().collect();
    let to_storage = format!("_f32_{}", storage.name());
    let is_copy =
        |entry: &str| plan.steps.len() > steps.len() && entry.starts_with("convert") && entry.ends_with(&to_storage);
    let is_loading = |entry: &str| entry.starts_with("unpack_weight");
    let ran = backend.counters().into_iter().filter(|(entry, ..)| !is_copy(entry) && !is_loading(entry));
    let (kernels, counted): (Vec<String>, Vec<Counters>) = ran.map(|(entry, _, counted)| (entry, counted)).unzip();
    Row { kernels, counted: counted.into_iter().sum(), least: plan.cost(&steps) }
}

/// The limit of moved bytes for a case.
fn most(name: &str, kernels: &[String]) -> f64 {
    match cases::named(name).op {
        Op::GroupNorm(_) if kernels.len() > 1 => MOST_READ_TWICE,
        _ => MOST,
    }
}

#[test]
fn memory_bound_operations_move_little_more_than_the_least() {
    println!("{HEAD}");
    let mut failures = Vec::new();
    for name in MEMORY_BOUND {
        for precision in [Precision::F32, Precision::F16, Precision::Bf16] {
            let label = precision.storage().name();
            let row = count(name, Cuda::emulator(), precision);
            row.print(name, label);
            let most = most(name, &row.kernels);
            if row.ratio() > most {
                failures.push(format!("{name} in {label}: {:.2} times the least, the limit is {most}", row.ratio()));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// `matmul_sum` adds up the parts of a split matmul, reading each element once, and applies the epilogue.
#[test]
fn the_sum_of_a_split_matmul_moves_little_more_than_the_least() {
    for name in ["linear/prior-attention", "conv2d/karlo-320"] {
        let problem = cases::named(name).problem();
        let shapes = problem.shapes();
        let output = problem.op.shape(&shapes).unwrap();
        let plan = narrow(problem.plan(), Dtype::F16);
        let step = plan.steps.last().unwrap();
        let launches = problem.op.ptx(&shapes, &[&output], MatmulUnit::Half);
        let launch = launches.iter().find(|launch| launch.stem == "matmul_sum").unwrap();
        let mut tensors = launch.tensors.clone();
        tensors.retain(|tensor| *tensor != Operand::Input(0));
        let least = tensors.into_iter().map(|tensor| match tensor {
            Operand::Input(i) | Operand::Packed(i) => plan.values[step.inputs[i].0].size_bytes(),
            Operand::Output(_) => plan.values[step.output().0].size_bytes(),
            Operand::Scratch { count, .. } => 4 * count,
        });
        let least: usize = least.sum();
        let backend = Cuda::emulator().with_precision(Precision::F16);
        problem.run(&backend).unwrap();
        let counters = backend.counters();
        let (entry, _, counted) = counters.iter().find(|(entry, ..)| entry.starts_with("matmul_sum")).unwrap();
        let ratio = counted.moved_bytes() as f64 / least as f64;
        println!("{entry} for {name}: {} bytes of at least {least}, {ratio:.2}", counted.moved_bytes());
        assert!(ratio <= MOST, "{name}: {ratio:.2}");
    }
}

#[test]
fn matmuls_on_tensor_cores_take_at_most_a_third_of_the_instructions() {
    println!("{HEAD}");
    for name in MATMULS {
        let rows = [
            (Cuda::emulator(), Precision::F32, "f32"),
            (Cuda::emulator(), Precision::Tf32, "tf32"),
            (Cuda::emulator(), Precision::F16, "f16"),
            (Cuda::hopper_emulator(), Precision::F16, "f16 on sm_90"),
        ]
        .map(|(backend, precision, label)| {
            let row = count(name, backend, precision);
            row.print(name, label);
            row.counted.instructions
        });
        let [f32, _, f16, warpgroups] = rows;
        assert!(3 * f16 <= f32 && 3 * warpgroups <= f32, "{name}: {rows:?} instructions");
    }
}

/// Launches of the kernels of a Karlo step on compute capability 9.0 in f16, and how many there may be.
#[test]
fn a_step_takes_few_launches() {
    for (network, most) in [(Network::Decoder, 271), (Network::SuperRes, 200)] {
        let case = ModelCase { network, size: Size::Karlo };
        let plan = case.plan(1, &Drawn::new(Dtype::F16)).unwrap();
        let (plan, kernels) = explain(plan, Precision::F16, (9, 0));
        let mut entries: BTreeMap<&str, usize> = BTreeMap::new();
        for used in kernels[plan.once..].iter().flatten() {
            *entries.entry(&used.entry).or_default() += 1;
        }
        let launches: usize = entries.values().sum();
        println!("{}: {launches} launches a step, {entries:?}", case.name());
        assert!(launches <= most, "{}: {launches} launches a step, at most {most} are allowed", case.name());
    }
}
