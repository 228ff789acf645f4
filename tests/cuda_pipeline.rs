//! A whole checkpoint through the CUDA back end on the emulator against the CPU, stage by stage: the tiny one of
//! `tests/golden`, which has every block type of the full one, and pictures of the trained one in narrower numbers.
#![cfg(all(feature = "cuda-emulator", feature = "tokenizer"))]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::ops::ControlFlow;
use unclip::backend::Backend;
use unclip::backend::cpu::Cpu;
use unclip::backend::cuda::{Cuda, Precision};
use unclip::image::Image;
use unclip::pipeline::{Pipeline, Request, Trace};
use unclip::weights::{Checkpoint, LoadOptions};

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/tiny");
const TRAINED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/default");

fn run(model: &str, backend: Box<dyn Backend>, prompts: &[&str], steps: [Option<usize>; 3]) -> (Vec<Image>, Trace) {
    let checkpoint = Checkpoint::open(model, LoadOptions::default()).unwrap();
    let pipeline = Pipeline::open(checkpoint, backend).unwrap();
    let mut request = Request::new(prompts[0]);
    request.prompts = prompts.iter().map(|p| (*p).into()).collect();
    [request.prior_steps, request.decoder_steps, request.super_res_steps] = steps;
    let mut trace = Trace::on();
    let images = pipeline.run_traced(&request, &mut |_| ControlFlow::Continue(()), &mut trace).unwrap();
    (images, trace)
}

/// Largest difference of any tensor of a stage, relative to that tensor's largest magnitude, with the tensor's name.
fn worst(got: &Trace, want: &Trace, stage: &str) -> (f32, String) {
    let mut worst = (0.0, String::new());
    for name in want.names().filter(|n| n.starts_with(stage)) {
        let (Some((shape, a)), Some((other, b))) = (want.get(name), got.get(name)) else { continue };
        assert_eq!(shape, other, "{name}");
        assert!(b.iter().all(|x| x.is_finite()), "{name}");
        let size = a.iter().fold(f32::MIN_POSITIVE, |m, x| m.max(x.abs()));
        let error = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0f32, f32::max) / size;
        if error > worst.0 {
            worst = (error, name.to_owned());
        }
    }
    worst
}

/// Holds all stages and the pictures against the CPU's.
fn check(backend: Box<dyn Backend>) {
    let name = backend.name();
    // As many steps as it takes to replay every loop and both enlarging networks.
    let run = |backend| {
        let prompts = ["a red frog on a green leaf", "An oil painting of Łódź at night, 1999!"];
        run(TINY, backend, &prompts, [Some(5), Some(4), Some(3)])
    };
    let (want_images, want) = run(Box::new(Cpu::new(2).unwrap()));
    let (images, got) = run(backend);
    for stage in ["text/", "uncond/", "prior/", "text_proj/", "decoder/", "super_res/"] {
        let (error, tensor) = worst(&got, &want, stage);
        println!("{name}: {stage:<12} {error:.1e} in {tensor}");
        assert!(error < 2e-3, "{tensor} differs by {error} of its largest element");
    }
    let pixels = images.iter().zip(&want_images).flat_map(|(a, b)| a.pixels.iter().zip(&b.pixels));
    let most = pixels.map(|(a, b)| a.abs_diff(*b)).max().unwrap();
    println!("{name}: pictures     {most} of 255");
    assert!(most <= 2, "a pixel differs by {most} of 255");
}

#[test]
fn every_stage_agrees_with_the_cpu_on_the_emulator() {
    check(Box::new(Cuda::emulator()));
}

#[cfg(feature = "cuda")]
#[test]
fn every_stage_agrees_with_the_cpu_on_a_gpu() {
    if let Some(gpu) = support::every::available("cuda", Cuda::new(0)) {
        check(Box::new(gpu));
    }
}

/// Peak signal-to-noise ratio in dB of a picture against the one that it should be.
fn psnr(got: &Image, want: &Image) -> f64 {
    let square = |(a, b): (&u8, &u8)| f64::from(a.abs_diff(*b)).powi(2);
    let mean = got.pixels.iter().zip(&want.pixels).map(square).sum::<f64>() / want.pixels.len() as f64;
    10.0 * (255.0 * 255.0 / mean.max(1e-12)).log10()
}

/// Root mean square of the differences, relative to that of what it should be.
fn deviation(got: &Trace, want: &Trace, name: &str) -> f64 {
    let (Some((_, got)), Some((_, want))) = (got.get(name), want.get(name)) else { panic!("no {name}") };
    let square = |x: f32| f64::from(x).powi(2);
    let differences = got.iter().zip(&want).map(|(a, b)| square(a - b)).sum::<f64>();
    (differences / want.iter().map(|&x| square(x)).sum::<f64>()).sqrt()
}

/// What each type rounds numbers to: half the distance from one to the next.
const NARROW: [(Precision, f64); 3] =
    [(Precision::Tf32, 1.0 / 2048.0), (Precision::F16, 1.0 / 2048.0), (Precision::Bf16, 1.0 / 256.0)];

/// The tiny checkpoint's weights are random, so that its first step, which divides by the smallest signal, makes any
/// rounding a picture of its own; what each network puts out for the same input is held to the CPU's instead.
#[test]
fn networks_of_narrow_numbers_put_out_what_the_cpu_does() {
    let prompt = ["a red frog on a green leaf"];
    let steps = [Some(2), Some(2), Some(2)];
    let (want_images, want) = run(TINY, Box::new(Cpu::new(2).unwrap()), &prompt, steps);
    let plain = NARROW.map(|(precision, unit)| (Cuda::emulator().with_precision(precision), unit));
    // The same halves by the kernels for warpgroups.
    let by_warpgroups = NARROW.into_iter().filter(|(precision, _)| *precision != Precision::Tf32);
    let by_warpgroups =
        by_warpgroups.map(|(precision, unit)| (Cuda::hopper_emulator().with_precision(precision), unit));
    for (backend, unit) in plain.into_iter().chain(by_warpgroups) {
        let device = backend.name();
        let (images, got) = run(TINY, Box::new(backend), &prompt, steps);
        for name in [
            "text/last_hidden_state",
            "text/text_embeds",
            "prior/step_00/model_output",
            "text_proj/encoder_hidden_states",
            "decoder/step_00/model_output",
        ] {
            let units = deviation(&got, &want, name) / unit;
            println!("{device}: {name:<32} {units:.2} of the type's rounding");
            assert!(units < 4.0, "{device}: {name} deviates by {units:.2} times the type's rounding");
        }
        println!("{device}: picture {:.1} dB", psnr(&images[0], &want_images[0]));
    }
}

#[test]
fn pictures_of_narrow_numbers_are_within_40_db_of_the_cpu() {
    let prompt = ["a red car on a blue background"];
    let steps = [Some(2), Some(2), Some(2)];
    let (want, _) = run(TRAINED, Box::new(Cpu::new(2).unwrap()), &prompt, steps);
    let plain = NARROW.map(|(precision, _)| Cuda::emulator().with_precision(precision));
    let by_warpgroups = Cuda::hopper_emulator().with_precision(Precision::Bf16);
    for backend in plain.into_iter().chain([by_warpgroups]) {
        let device = backend.name();
        let (images, _) = run(TRAINED, Box::new(backend), &prompt, steps);
        let decibels = psnr(&images[0], &want[0]);
        println!("{device}: picture {decibels:.1} dB");
        assert!(decibels > 40.0, "{device}: {decibels:.1} dB");
    }
}
