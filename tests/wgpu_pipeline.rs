//! A whole checkpoint on the WGSL back end against the CPU, stage by stage: the tiny one of `tests/golden`, which has
//! every block type of the full one.
#![cfg(all(feature = "wgpu", feature = "tokenizer"))]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::ops::ControlFlow;
use support::every;
use unclip::backend::Backend;
use unclip::backend::cpu::Cpu;
use unclip::backend::wgpu::{Options, Wgpu};
use unclip::image::Image;
use unclip::pipeline::{Pipeline, Request, Trace};
use unclip::plan::Element;
use unclip::weights::{Checkpoint, LoadOptions};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/tiny");

fn run(backend: Box<dyn Backend>) -> (Vec<Image>, Trace) {
    let checkpoint = Checkpoint::open(MODEL, LoadOptions::default()).unwrap();
    let pipeline = Pipeline::open(checkpoint, backend).unwrap();
    let mut request = Request::new("a red frog on a green leaf");
    request.prompts.push("An oil painting of Łódź at night, 1999!".into());
    let mut trace = Trace::on();
    let images = pipeline.run_traced(&request, &mut |_| ControlFlow::Continue(()), &mut trace).unwrap();
    (images, trace)
}

fn open(storage: Element) -> Option<Box<dyn Backend>> {
    let backend = every::available("wgpu", Wgpu::new(Options::default()))?;
    if storage == Element::F16 && !backend.adapter().f16 {
        println!("skipped: the adapter lacks f16");
        return None;
    }
    Some(Box::new(Wgpu::new(Options { storage, ..Options::default() }).unwrap()))
}

/// Largest difference of any tensor of a stage, relative to that tensor's largest magnitude, with the tensor's name.
fn worst(got: &Trace, want: &Trace, stage: &str) -> (f32, String) {
    let mut worst = (0.0, String::new());
    for name in want.names().filter(|n| n.starts_with(stage)) {
        let (Some((shape, a)), Some((other, b))) = (want.get(name), got.get(name)) else { continue };
        assert_eq!(shape, other, "{name}");
        let size = a.iter().fold(f32::MIN_POSITIVE, |m, x| m.max(x.abs()));
        let error = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0f32, |m, d| if d > m { d } else { m }) / size;
        assert!(b.iter().all(|x| x.is_finite()), "{name}");
        if error > worst.0 {
            worst = (error, name.to_owned());
        }
    }
    worst
}

const STAGES: [&str; 6] = ["text/", "uncond/", "prior/", "text_proj/", "decoder/", "super_res/"];

#[test]
fn every_stage_agrees_with_the_cpu_in_single_precision() {
    let Some(backend) = open(Element::F32) else { return };
    let (want_images, want) = run(Box::new(Cpu::new(2).unwrap()));
    let (images, got) = run(backend);
    for stage in STAGES {
        let (error, name) = worst(&got, &want, stage);
        println!("{stage:<12} {error:.1e} in {name}");
        assert!(error < 2e-3, "{name} differs by {error} of its largest element");
    }
    let pixels = images.iter().zip(&want_images).flat_map(|(a, b)| a.pixels.iter().zip(&b.pixels));
    let most = pixels.map(|(a, b)| a.abs_diff(*b)).max().unwrap();
    println!("pictures     {most} of 255");
    assert!(most <= 2, "a pixel differs by {most} of 255");
}

#[test]
fn pictures_in_half_precision_are_within_40_db_of_the_cpu() {
    let Some(backend) = open(Element::F16) else { return };
    let (want_images, want) = run(Box::new(Cpu::new(2).unwrap()));
    let (images, got) = run(backend);
    for stage in STAGES {
        let (error, name) = worst(&got, &want, stage);
        println!("{stage:<12} {error:.1e} in {name}");
    }
    for (a, b) in images.iter().zip(&want_images) {
        let square = |(a, b): (&u8, &u8)| f64::from(a.abs_diff(*b)).powi(2);
        let mean = a.pixels.iter().zip(&b.pixels).map(square).sum::<f64>() / a.pixels.len() as f64;
        let decibels = 10.0 * (255.0 * 255.0 / mean.max(1e-12)).log10();
        println!("picture      {decibels:.1} dB");
        assert!(decibels > 40.0, "{decibels:.1} dB");
    }
}
