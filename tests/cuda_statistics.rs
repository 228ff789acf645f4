//! Norm statistics (mean and M2) that matmuls compute for the norms after them, on the emulator: results as on the CPU,
//! the norm's input read once, and statistics for all of Karlo's norms.
#![cfg(feature = "cuda-emulator")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::collections::{HashMap, HashSet};
use support::cases::models::{Drawn, ModelCase, Network, Size};
use support::close::{Rounding, close, unit};
use support::{Random, Tensors};
use unclip::Dtype;
use unclip::Precision;
use unclip::backend::Backend;
use unclip::backend::cpu::{Cpu, Isa};
use unclip::backend::cuda::Cuda;
use unclip::ops::{MatmulUnit, Op, elements};
use unclip::plan::{Graph, Plan, Tensor, ValueId, assign, narrow, with_statistics};

/// The back end with every matmul unit.
fn backends() -> [(Cuda, Precision); 6] {
    let all = [
        (Cuda::emulator(), Precision::F32),
        (Cuda::emulator(), Precision::Tf32),
        (Cuda::emulator(), Precision::F16),
        (Cuda::emulator(), Precision::Bf16),
        (Cuda::hopper_emulator(), Precision::F16),
        (Cuda::hopper_emulator(), Precision::Bf16),
    ];
    all.map(|(backend, precision)| (backend.with_precision(precision), precision))
}

/// Multiples of 1/8, exact in every type, whose products sum without rounding in f32.
fn eighths(length: usize, name: &str) -> Vec<f32> {
    let mut random = Random::named(name);
    (0..length).map(|_| ((random.bits() >> 40) % 33) as f32 / 8.0 - 1.5).collect()
}

/// A plan of one output, its weights, and its input's values.
struct Model {
    plan: Plan,
    weights: Tensors,
    x: Vec<f32>,
}

impl Model {
    fn new(
        input: &[usize],
        tensors: &[(&str, &[usize])],
        model: impl for<'g> Fn(&'g Graph<'g>, Tensor<'g>) -> Tensor<'g>,
    ) -> Model {
        let mut weights = Tensors::default();
        for &(name, shape) in tensors {
            weights.insert(name, shape, eighths(elements(shape), name), Dtype::F32);
        }
        let graph = Graph::new("statistics", &weights);
        // The input is constant, so its cast to the storage type runs once.
        let y = model(&graph, graph.input("x", input));
        graph.output("y", y);
        let plan = graph.finish().unwrap();
        Model { plan, x: eighths(elements(input), "x"), weights }
    }

    fn run(&self, backend: &dyn Backend) -> Vec<f32> {
        let mut executable = backend.prepare(self.plan.clone(), &self.weights).unwrap();
        executable.write("x", &self.x).unwrap();
        executable.run_once().unwrap();
        executable.read("y").unwrap()
    }
}

fn on_the_cpu(model: &Model) -> Vec<f64> {
    model.run(&Cpu::with_isa(2, Isa::detect()).unwrap()).into_iter().map(f64::from).collect()
}

/// Whether a kernel whose name starts with `stem` has run on the emulator.
fn ran(backend: &Cuda, stem: &str) -> bool {
    backend.counters().iter().any(|(entry, ..)| entry.starts_with(stem))
}

/// The norm of a convolution's output. The inputs are exact in every type, and only the output is rounded.
fn norm_of_conv(side: [usize; 2], images: usize, [inputs, channels]: [usize; 2], groups: usize) -> Model {
    let shape = [images, side[0], side[1], inputs];
    let (weight, vector) = ([channels, inputs, 3, 3], [channels]);
    let tensors: [(&str, &[usize]); 4] =
        [("conv.weight", &weight), ("conv.bias", &vector), ("norm.weight", &vector), ("norm.bias", &vector)];
    Model::new(&shape, &tensors, |graph, x| {
        let w = graph.weights();
        x.conv3x3(w.at("conv"), channels).group_norm(w.at("norm"), groups, 1e-5).silu()
    })
}

/// What rounds the output of a norm behind a matmul: besides the output, the matmul's output is stored. Its mean is up to
/// two deviations from zero, its elements up to five, and gamma is up to 2.5, so that a unit of an element is up to six
/// units of what the norm makes of it.
fn rounding(precision: Precision, length: usize) -> Rounding {
    let stored = precision.storage();
    let inner = if stored == Dtype::F32 { 0.0 } else { 6.0 * unit(stored) };
    Rounding { stored, inner, length }
}

/// Height and width, images, channels before and behind the convolution, and groups: for tiles of 64 by 80 whose depth
/// is in parts, tiles of 128 by 160, and tiles of pixels; with statistics over 16, 10 and 4 channels.
const NORMS: [([usize; 2], usize, [usize; 2], usize); 3] =
    [([48, 64], 1, [56, 64], 2), ([128, 64], 2, [8, 40], 4), ([64, 96], 3, [8, 168], 6)];

#[test]
fn norms_use_the_statistics_of_matmuls() {
    for (side, images, channels, groups) in NORMS {
        let model = norm_of_conv(side, images, channels, groups);
        let want = on_the_cpu(&model);
        for (backend, precision) in backends() {
            let (got, name) = (model.run(&backend), backend.name());
            close(&got, &want, &rounding(precision, 9 * channels[0]))
                .unwrap_or_else(|e| panic!("{name} of {side:?}: {e}"));
            assert!(ran(&backend, "group_norm_apply"), "{name}: the groups fit into shared memory");
            assert!(!ran(&backend, "group_norm_statistics"), "{name} of {side:?}");
            // A split matmul is summed by another kernel, which then computes the statistics; clusters add up their own.
            let in_parts = channels[0] > 8 && precision != Precision::F32 && !ran(&backend, "matmul_sm90");
            assert_eq!(ran(&backend, "matmul_sum"), in_parts, "{name} of {side:?}");
        }
    }
}

/// Two concatenated matmuls: one group of the norm has channels of both, and one matmul has a norm of its own.
fn norms_of_joined_channels() -> Model {
    let tensors: [(&str, &[usize]); 8] = [
        ("a.weight", &[40, 8]),
        ("a.bias", &[40]),
        ("b.weight", &[32, 8]),
        ("b.bias", &[32]),
        ("norm_a.weight", &[40]),
        ("norm_a.bias", &[40]),
        ("norm.weight", &[72]),
        ("norm.bias", &[72]),
    ];
    Model::new(&[2, 8192, 8], &tensors, |graph, x| {
        let w = graph.weights();
        let (a, b) = (x.linear(w.at("a"), 40), x.linear(w.at("b"), 32));
        let joined = Tensor::concat(&[a, b], 2).group_norm(w.at("norm"), 3, 1e-5);
        Tensor::concat(&[a.group_norm(w.at("norm_a"), 4, 1e-5), joined], 2)
    })
}

#[test]
fn norms_of_concatenated_channels_merge_the_statistics_of_both_parts() {
    let model = norms_of_joined_channels();
    let want = on_the_cpu(&model);
    for (backend, precision) in backends() {
        let (got, name) = (model.run(&backend), backend.name());
        close(&got, &want, &rounding(precision, 8)).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(!ran(&backend, "group_norm_statistics"), "{name}");
    }
}

/// The same models on a GPU, if there is one.
#[cfg(feature = "cuda")]
#[test]
fn norms_use_the_statistics_of_matmuls_on_a_gpu() {
    let conv = |(side, images, channels, groups): ([usize; 2], _, [usize; 2], _)| {
        (norm_of_conv(side, images, channels, groups), 9 * channels[0])
    };
    for (model, length) in NORMS.map(conv).into_iter().chain([(norms_of_joined_channels(), 8)]) {
        let want = on_the_cpu(&model);
        for precision in [Precision::F32, Precision::Tf32, Precision::F16, Precision::Bf16] {
            let opened = Cuda::new(0).map(|gpu| gpu.with_precision(precision));
            let Some(gpu) = support::available::available("cuda", opened) else { return };
            let (got, name) = (model.run(&gpu), gpu.name());
            close(&got, &want, &rounding(precision, length)).unwrap_or_else(|e| panic!("{name}: {e}"));
        }
    }
}

/// Values around 1000 with a spread of a thousandth of that, which a sum of squares would lose.
#[test]
fn statistics_keep_a_spread_that_is_small_relative_to_the_mean() {
    let tensors: [(&str, &[usize]); 4] =
        [("a.weight", &[40, 8]), ("a.bias", &[40]), ("norm.weight", &[40]), ("norm.bias", &[40])];
    let mut model = Model::new(&[2, 8192, 8], &tensors, |graph, x| {
        x.linear(graph.weights().at("a"), 40).group_norm(graph.weights().at("norm"), 4, 1e-5)
    });
    model.weights.insert("a.bias", &[40], vec![1000.0; 40], Dtype::F32);
    let want = on_the_cpu(&model);
    for precision in [Precision::F32, Precision::Tf32] {
        let backend = Cuda::emulator().with_precision(precision);
        let y = model.run(&backend);
        // The input's f32 rounding error is relative to the mean, a thousand times the spread.
        let worst = y.iter().zip(&want).map(|(&y, want)| (f64::from(y) - want).abs()).fold(0.0, f64::max);
        assert!(!ran(&backend, "group_norm_statistics") && worst < 1e-3, "off by {worst}");
    }
}

#[test]
fn karlos_norms_have_statistics_or_fit_into_shared_memory() {
    for (network, element, matmul) in [
        (Network::Decoder, Dtype::F32, MatmulUnit::CudaCores),
        (Network::Decoder, Dtype::F32, MatmulUnit::Tf32),
        (Network::Decoder, Dtype::F16, MatmulUnit::Half),
        (Network::Decoder, Dtype::F16, MatmulUnit::Warpgroup),
        (Network::SuperRes, Dtype::F32, MatmulUnit::CudaCores),
        (Network::SuperRes, Dtype::F32, MatmulUnit::Tf32),
        (Network::SuperRes, Dtype::F16, MatmulUnit::Half),
        (Network::SuperRes, Dtype::F16, MatmulUnit::Warpgroup),
    ] {
        let case = ModelCase { network, size: Size::Karlo };
        let plan = narrow(case.plan(1, &Drawn::new(element)).unwrap(), element);
        let plan = with_statistics(plan, matmul);
        let (mut in_block, mut found, mut without) = (0, 0, Vec::new());
        for step in &plan.steps {
            let Op::GroupNorm(op) = &step.op else { continue };
            match op.wants_statistics(plan.shape(step.output()), matmul) {
                None => in_block += 1,
                Some(_) if op.statistics.is_empty() => without.push(step.label.clone()),
                Some(_) => found += 1,
            }
        }
        let kib: usize = statistics(&plan).map(|id| plan.values[id.0].size_bytes() / 1024).sum();
        println!("{} with {matmul:?}: {in_block} norms in one block, {found} with statistics, {kib} KiB", case.name());
        assert!(without.is_empty(), "{} with {matmul:?}: {without:?}", case.name());
        assert!(found > 0, "{}", case.name());
    }
}

/// The values that hold statistics.
fn statistics(plan: &Plan) -> impl Iterator<Item = ValueId> {
    plan.steps.iter().flat_map(|step| &step.outputs[1..]).copied()
}

#[test]
fn statistics_are_values_that_share_slots_and_are_whole_when_they_are_read() {
    let case = ModelCase { network: Network::SuperRes, size: Size::Karlo };
    let plan = with_statistics(case.plan(1, &Drawn::new(Dtype::F32)).unwrap(), MatmulUnit::Tf32);
    let slots = assign(&plan);
    let mut owners: HashMap<usize, ValueId> = HashMap::new();
    let mut read = 0;
    for step in &plan.steps {
        if let Op::GroupNorm(op) = &step.op {
            for &id in &step.inputs[step.inputs.len() - op.statistics.len()..] {
                assert_eq!(owners[&slots.of[id.0].unwrap()], id, "{}", step.label);
                read += 1;
            }
        }
        for &id in &step.outputs {
            owners.insert(slots.of[id.0].unwrap(), id);
        }
    }
    let own: HashSet<usize> = statistics(&plan).map(|id| slots.of[id.0].unwrap()).collect();
    println!("{} tensors of statistics, read {read} times, in {} slots", statistics(&plan).count(), own.len());
    assert!(read > 0 && own.len() < statistics(&plan).count());
    assert!(plan.to_string().contains(", 3] @"), "a listing shows them");
}

/// A norm after its matmul moves its input, its output and the statistics; in halves every block reads those of its own
/// channels, in f32 a launch before it merges them.
#[test]
fn norms_with_statistics_read_their_input_once() {
    println!("| case | kernels | least KiB | moved KiB | ratio | sectors per request |\n|---|---|---|---|---|---|");
    for (backend, precision, matmul, channels) in [
        (Cuda::emulator(), Precision::F32, MatmulUnit::CudaCores, 320),
        (Cuda::emulator(), Precision::Tf32, MatmulUnit::Tf32, 320),
        (Cuda::emulator(), Precision::F16, MatmulUnit::Half, 640),
        (Cuda::hopper_emulator(), Precision::F16, MatmulUnit::Warpgroup, 640),
    ] {
        let backend = backend.with_precision(precision);
        let [weight, vector] = [vec![channels, 8], vec![channels]];
        let tensors: [(&str, &[usize]); 4] =
            [("a.weight", &weight), ("a.bias", &vector), ("norm.weight", &vector), ("norm.bias", &vector)];
        let model = Model::new(&[2, 4096, 8], &tensors, |graph, x| {
            x.linear(graph.weights().at("a"), channels).group_norm(graph.weights().at("norm"), 32, 1e-5)
        });
        model.run(&backend);
        let (shape, bytes) = ([2, 4096, channels], 2 * 4096 * channels * precision.storage().size_bytes());
        let plan = narrow(model.plan.clone(), precision.storage());
        let plan = with_statistics(plan, matmul);
        let of_product: usize = statistics(&plan).map(|id| plan.values[id.0].size_bytes()).sum();
        let norm: Vec<_> =
            backend.counters().into_iter().filter(|(entry, ..)| entry.starts_with("group_norm")).collect();
        // Including the statistics that the matmul writes.
        let moved = norm.iter().map(|(.., counted)| counted.moved_bytes()).sum::<u64>() as usize + of_product;
        let least = 2 * bytes + 8 * channels;
        let ratio = moved as f64 / least as f64;
        let kernels: Vec<&str> = norm.iter().map(|(entry, ..)| entry.as_str()).collect();
        let apply = norm.iter().find(|(entry, ..)| entry.starts_with("group_norm_apply")).unwrap();
        println!(
            "| group_norm of {shape:?} after its matmul, {} | {} | {} | {} | {ratio:.2} | {:.1} |",
            backend.name(),
            kernels.join(", "),
            least / 1024,
            moved / 1024,
            apply.2.sectors_per_request()
        );
        let merging = usize::from(precision.storage() == Dtype::F32);
        assert!(ratio < 1.13 && kernels.len() == 1 + merging, "{kernels:?}: {ratio:.2}");
    }
}

/// Channels that do not fill a k-step of `matmul_sm90`: the rest of the step must not contain weights of the next tap.
#[test]
fn an_infinite_weight_reaches_only_its_own_output() {
    let tensors: [(&str, &[usize]); 2] = [("conv.weight", &[16, 72, 3, 3]), ("conv.bias", &[16])];
    let mut model = Model::new(&[1, 16, 16, 72], &tensors, |graph, x| x.conv3x3(graph.weights().at("conv"), 16));
    let mut weight = eighths(16 * 72 * 9, "conv.weight");
    // The middle of the window, which is inside everywhere, of channel 3 to output 5.
    weight[(5 * 72 + 3) * 9 + 4] = f32::INFINITY;
    model.weights.insert("conv.weight", &[16, 72, 3, 3], weight, Dtype::F32);
    // Without zeros: zero times infinity is NaN.
    model.x = model.x.iter().map(|&x| if x == 0.0 { 1.0 } else { x }).collect();
    for precision in [Precision::F16, Precision::Bf16] {
        for backend in [Cuda::emulator(), Cuda::hopper_emulator()] {
            let backend = backend.with_precision(precision);
            for (i, y) in model.run(&backend).into_iter().enumerate() {
                assert_eq!(y.is_infinite(), i % 16 == 5, "{}: {y} at {i}", backend.name());
                assert!(!y.is_nan(), "{}: {i}", backend.name());
            }
        }
    }
}
