//! Concatenations and rows of tables that the CUDA back end leaves to the kernels that read them: the result is that of
//! the plan as it was recorded, and nothing copies.
#![cfg(feature = "cuda-emulator")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use support::close::{Rounding, close};
use support::{Random, Tensors};
use unclip::backend::Backend;
use unclip::backend::cpu::{Cpu, Isa};
use unclip::backend::cuda::{Cuda, explain};
use unclip::ops::elements;
use unclip::plan::{Graph, Plan, Tensor, Weights};
use unclip::{Dtype, Precision};

/// Multiples of 1/8, whose products sum without rounding in f32.
fn eighths(length: usize, name: &str) -> Vec<f32> {
    let mut random = Random::named(name);
    (0..length).map(|_| ((random.bits() >> 40) % 33) as f32 / 8.0 - 1.5).collect()
}

/// A weight whose outputs are inputs, so that nothing is rounded where they are stored.
fn selection(shape: &[usize]) -> Vec<f32> {
    let [outputs, inputs] = [shape[0], shape[1]];
    (0..outputs * inputs).map(|i| if i % inputs == (7 * (i / inputs) + 3) % inputs { 1.0 } else { 0.0 }).collect()
}

struct Model {
    plan: Plan,
    weights: Tensors,
    inputs: Vec<(&'static str, Vec<f32>)>,
    outputs: Vec<String>,
}

/// Channels of the picture and of the steps' embedding.
const CHANNELS: usize = 24;
/// Steps of a table, and the one that is run.
const STEPS: usize = 3;
const STEP: u32 = 2;

impl Model {
    /// `model` of a picture of so many images and pixels, of an embedding for each step and image, and of the step. Weights
    /// below `chosen` are selections.
    fn new(
        images: usize,
        [height, width]: [usize; 2],
        tensors: &[(&str, &[usize])],
        model: impl for<'g> Fn(&Weights<'g>, Tensor<'g>, Tensor<'g>, Tensor<'g>) -> Vec<Tensor<'g>>,
    ) -> Model {
        let mut weights = Tensors::default();
        for &(name, shape) in tensors {
            let selects = name.starts_with("chosen") && name.ends_with("weight");
            let values = if selects { selection(shape) } else { eighths(elements(shape), name) };
            weights.insert(name, shape, values, Dtype::F32);
        }
        let graph = Graph::new("read through", &weights);
        let (picture, embedding) = ([images, height, width, CHANNELS], [STEPS, images, CHANNELS]);
        let (x, time) = (graph.step_input("x", &picture), graph.input("time", &embedding));
        let made = model(&graph.weights(), x, time, graph.step_number());
        let outputs: Vec<String> = (0..made.len()).map(|i| format!("y{i}")).collect();
        made.into_iter().zip(&outputs).for_each(|(y, name)| graph.output(name, y));
        let plan = graph.finish().unwrap();
        let inputs = [("x", elements(&picture)), ("time", elements(&embedding))];
        let inputs = inputs.into_iter().filter(|(name, _)| plan.input(name).is_some());
        Model { inputs: inputs.map(|(name, length)| (name, eighths(length, name))).collect(), plan, weights, outputs }
    }

    fn run(&self, backend: &dyn Backend) -> Vec<Vec<f32>> {
        let mut executable = backend.prepare(self.plan.clone(), &self.weights).unwrap();
        self.inputs.iter().for_each(|(name, values)| executable.write(name, values).unwrap());
        executable.run_once().unwrap();
        executable.run_step(STEP).unwrap();
        self.outputs.iter().map(|name| executable.read(name).unwrap()).collect()
    }

    /// Runs it on the emulator of a Hopper GPU or another, holds it against the CPU, and gives the launches of kernels
    /// whose names start like this and how many bytes were moved beside the least that the device's plan can.
    fn check(&self, hopper: bool, precision: Precision, stem: &str, length: usize) -> (u64, f64) {
        let want = self.run(&Cpu::with_isa(2, Isa::detect()).unwrap());
        let backend = if hopper { Cuda::hopper_emulator() } else { Cuda::emulator() }.with_precision(precision);
        let rounding = Rounding { stored: precision.storage(), inner: 0.0, length };
        for ((got, want), output) in self.run(&backend).iter().zip(&want).zip(&self.outputs) {
            let want: Vec<f64> = want.iter().map(|&y| f64::from(y)).collect();
            close(got, &want, &rounding).unwrap_or_else(|e| panic!("{output} on {}: {e}", backend.name()));
        }
        let counters = backend.counters();
        let launches =
            counters.iter().filter(|(entry, ..)| entry.starts_with(stem)).map(|(_, launches, _)| launches).sum();
        let moved: u64 = counters.iter().map(|(.., counted)| counted.moved_bytes()).sum();
        let (plan, _) = explain(self.plan.clone(), precision, if hopper { (9, 0) } else { (8, 0) });
        (launches, moved as f64 / plan.cost(&plan.steps).bytes as f64)
    }
}

/// The skip connection of a U-Net: what is concatenated goes to a norm and to two convolutions.
fn skip(images: usize, side: [usize; 2], parts: [usize; 2], outputs: usize, groups: usize, window: bool) -> Model {
    let both = parts[0] + parts[1];
    let tensors: [(&str, &[usize]); 10] = [
        ("chosen.a.weight", &[parts[0], CHANNELS, 1, 1]),
        ("chosen.a.bias", &[parts[0]]),
        ("chosen.b.weight", &[parts[1], CHANNELS, 1, 1]),
        ("chosen.b.bias", &[parts[1]]),
        ("norm.weight", &[both]),
        ("norm.bias", &[both]),
        ("shortcut.weight", &[outputs, both, 1, 1]),
        ("shortcut.bias", &[outputs]),
        ("conv.weight", &[outputs, both, 3, 3]),
        ("conv.bias", &[outputs]),
    ];
    Model::new(images, side, &tensors, |w, x, _, _| {
        let [a, b] = [("chosen.a", parts[0]), ("chosen.b", parts[1])].map(|(name, c)| x.conv1x1(w.at(name), c));
        let joined = Tensor::concat(&[a, b], 3);
        let normal = joined.group_norm(w.at("norm"), groups, 1e-5).silu();
        let mut made = vec![normal, joined.conv1x1(w.at("shortcut"), outputs)];
        made.extend(window.then(|| joined.conv3x3(w.at("conv"), outputs)));
        made
    })
}

#[test]
fn a_skip_connection_is_read_from_its_two_tensors() {
    // Groups across the border, tiles with rows outside the picture; parts of a tile's columns; k in parts.
    for (images, side, parts, outputs, groups) in
        [(2, [8, 16], [64, 16], 40, 8), (1, [16, 16], [128, 72], 168, 20), (1, [16, 24], [64, 64], 8, 8)]
    {
        let model = skip(images, side, parts, outputs, groups, true);
        for precision in [Precision::F16, Precision::Bf16] {
            let (copies, _) = model.check(true, precision, "concat", 9 * (parts[0] + parts[1]));
            assert_eq!(copies, 0, "{parts:?}");
        }
    }
}

/// Without a copy: the least is that of the plan in which the readers have the two tensors.
#[test]
fn two_tensors_side_by_side_are_read_once_by_each_reader() {
    let model = skip(2, [32, 64], [64, 64], 64, 8, false);
    let (copies, moved) = model.check(true, Precision::F16, "concat", 128);
    println!("{moved:.2} times the least bytes");
    assert!(copies == 0 && moved < 1.1, "{moved:.2}");
}

#[test]
fn a_concatenation_stays_where_a_reader_has_no_kernel_for_two_tensors() {
    // A first part that ends within a k-step; channels that are no whole vectors; a device without the kernel.
    for (parts, hopper) in [([72, 56], true), ([64, 6], true), ([64, 16], false)] {
        let model = skip(1, [16, 16], parts, 16, 2, true);
        let (copies, _) = model.check(hopper, Precision::F16, "concat", 9 * (parts[0] + parts[1]));
        assert_eq!(copies, 2, "{parts:?}");
    }
}

/// A convolution's shift and a norm's style, each the present step's row of what a layer makes of all embeddings.
fn rows_of_tables(images: usize, side: [usize; 2]) -> Model {
    let tensors: [(&str, &[usize]); 10] = [
        ("chosen.shifts.weight", &[40, CHANNELS]),
        ("chosen.shifts.bias", &[40]),
        ("chosen.styles.weight", &[80, CHANNELS]),
        ("chosen.styles.bias", &[80]),
        ("conv.weight", &[40, CHANNELS, 3, 3]),
        ("conv.bias", &[40]),
        ("chosen.a.weight", &[40, CHANNELS, 1, 1]),
        ("chosen.a.bias", &[40]),
        ("norm.weight", &[40]),
        ("norm.bias", &[40]),
    ];
    Model::new(images, side, &tensors, |w, x, time, step| {
        let [shift, style] =
            [("chosen.shifts", 40), ("chosen.styles", 80)].map(|(name, c)| time.linear(w.at(name), c).row(step));
        let a = x.conv1x1(w.at("chosen.a"), 40).group_norm(w.at("norm"), 4, 1e-5).scale_shift(style).silu();
        vec![x.conv3x3(w.at("conv"), 40).add_channels(shift), a]
    })
}

#[test]
fn kernels_read_the_present_steps_row_of_a_table() {
    for (hopper, precision, rows) in
        [(true, Precision::F16, 0), (true, Precision::Bf16, 0), (false, Precision::F16, 1), (false, Precision::F32, 2)]
    {
        let (copies, _) = rows_of_tables(2, [16, 16]).check(hopper, precision, "embed", 9 * CHANNELS);
        assert_eq!(copies, rows, "{}", precision.name());
    }
}
