//! A whole checkpoint through the CUDA back end on the emulator against the CPU, stage by stage: the tiny one of
//! `tests/golden`, which has every block type of the full one.
#![cfg(all(feature = "cuda-emulator", feature = "tokenizer"))]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::ops::ControlFlow;
use unclip::backend::Backend;
use unclip::backend::cpu::Cpu;
use unclip::backend::cuda::Cuda;
use unclip::image::Image;
use unclip::pipeline::{Pipeline, Request, Trace};
use unclip::weights::{Checkpoint, LoadOptions};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/tiny");

fn run(backend: Box<dyn Backend>) -> (Vec<Image>, Trace) {
    let checkpoint = Checkpoint::open(MODEL, LoadOptions::default()).unwrap();
    let pipeline = Pipeline::open(checkpoint, backend).unwrap();
    let mut request = Request::new("a red frog on a green leaf");
    request.prompts.push("An oil painting of Łódź at night, 1999!".into());
    // As many steps as it takes to replay every loop and both enlarging networks.
    (request.prior_steps, request.decoder_steps, request.super_res_steps) = (Some(5), Some(4), Some(3));
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
