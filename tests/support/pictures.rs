//! Whole checkpoints on a back end against the CPU, stage by stage and by their pictures.

use super::golden::Recording;
use std::ops::ControlFlow;
use unclip::Error;
use unclip::backend::Backend;
use unclip::backend::cpu::Cpu;
use unclip::image::Image;
use unclip::noise::Generators;
use unclip::pipeline::{Event, Pipeline, Request, Task, Trace};
use unclip::weights::{Checkpoint, LoadOptions};

/// The trained model that ships.
pub const TRAINED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/default");

/// What whole checkpoints are asked for.
pub const PROMPTS: [&str; 2] = ["a red frog on a green leaf", "An oil painting of Łódź at night, 1999!"];
/// How the names begin of what a request for prompts leaves in its trace, stage by stage; the embeddings of pictures are a
/// tensor of their own.
pub const OF_PROMPTS: [&str; 8] =
    ["text/", "uncond/", "prior/", "image_embeds", "text_proj/", "decoder/", "super_res/", "image/"];
/// The same for variations of a picture, which have no prior.
pub const OF_VARIATIONS: [&str; 8] =
    ["text/", "uncond/", "image_encoder/", "image_embeds", "text_proj/", "decoder/", "super_res/", "image/"];

/// Steps of prior, decoder and super-resolution, where they are not the checkpoint's.
pub type Steps = [Option<usize>; 3];

/// Pictures and all tensors on the way to them, from the noise of torch.
pub fn run(model: &str, backend: Box<dyn Backend>, prompts: &[&str], steps: Steps) -> (Vec<Image>, Trace) {
    run_request(model, backend, of_prompts(prompts), steps)
}

/// The same without guidance.
pub fn run_unguided(model: &str, backend: Box<dyn Backend>, prompts: &[&str], steps: Steps) -> (Vec<Image>, Trace) {
    let request = Request { prior_guidance: Some(1.0), decoder_guidance: Some(1.0), ..of_prompts(prompts) };
    run_request(model, backend, request, steps)
}

fn of_prompts(prompts: &[&str]) -> Request {
    Request::of(Task::Prompts(prompts.iter().map(|p| (*p).into()).collect()))
}

fn run_request(model: &str, backend: Box<dyn Backend>, request: Request, steps: Steps) -> (Vec<Image>, Trace) {
    let checkpoint = Checkpoint::open(model, LoadOptions::default()).unwrap();
    let pipeline = Pipeline::open(checkpoint, backend).unwrap();
    let [prior_steps, decoder_steps, super_res_steps] = steps;
    let request = Request { prior_steps, decoder_steps, super_res_steps, ..request };
    let mut trace = Trace::on();
    let images = pipeline.run_traced(&request, &mut |_| ControlFlow::Continue(()), &mut trace).unwrap();
    (images, trace)
}

/// The tensors up to the decoder's first step. What comes after it is not computed.
pub fn run_to_the_decoder(model: &str, backend: Box<dyn Backend>, prompts: &[&str]) -> Trace {
    let checkpoint = Checkpoint::open(model, LoadOptions::default()).unwrap();
    let pipeline = Pipeline::open(checkpoint, backend).unwrap();
    let request = Request { prior_steps: Some(2), decoder_steps: Some(2), ..of_prompts(prompts) };
    let mut trace = Trace::on();
    let stop = &mut |event: Event<'_>| match event {
        Event::Step { stage, .. } if stage.name() == "decoder" => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    };
    assert!(matches!(pipeline.run_traced(&request, stop, &mut trace), Err(Error::Cancelled)));
    trace
}

/// The same on the CPU.
pub fn run_on_cpu(model: &str, prompts: &[&str], steps: Steps) -> (Vec<Image>, Trace) {
    run(model, Box::new(Cpu::new(2).unwrap()), prompts, steps)
}

/// Largest difference of any tensor of each stage, relative to that tensor's largest magnitude, with the tensor's name.
///
/// # Errors
/// A stage left no tensors, or others than it should have, or there is a tensor of no stage; integers differ, or a number
/// is none.
pub fn worst_of_each(got: &Trace, want: &Trace, stages: &[&str]) -> Result<Vec<(f32, String)>, String> {
    let of_no_stage: Vec<&str> =
        want.names().chain(got.names()).filter(|name| !stages.iter().any(|stage| name.starts_with(stage))).collect();
    if !of_no_stage.is_empty() {
        return Err(format!("tensors of no stage in {stages:?}: {of_no_stage:?}"));
    }
    stages.iter().map(|stage| worst(got, want, stage)).collect()
}

fn worst(got: &Trace, want: &Trace, stage: &str) -> Result<(f32, String), String> {
    let [names, others] = [want, got].map(|trace| trace.names().filter(|n| n.starts_with(stage)).collect::<Vec<_>>());
    if names != others || names.is_empty() {
        return Err(format!("{stage} has the tensors {others:?} instead of {names:?}"));
    }
    let mut worst = (0.0, String::new());
    for name in names {
        let (Some((shape, a)), Some((other, b))) = (want.get(name), got.get(name)) else {
            // Tokens, masks and time steps are equal; bytes of pictures are compared as pictures.
            if name != "image/u8" && want.tensor(name) != got.tensor(name) {
                return Err(format!("{name} is not the same"));
            }
            continue;
        };
        if shape != other || b.iter().any(|x| !x.is_finite()) {
            return Err(format!("{name} {other:?} instead of {shape:?}, or not finite"));
        }
        let size = a.iter().fold(f32::MIN_POSITIVE, |m, x| m.max(x.abs()));
        let error = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0f32, f32::max) / size;
        if error > worst.0 {
            worst = (error, name.to_owned());
        }
    }
    Ok(worst)
}

/// Holds all stages and the pictures of a back end that computes in f32 against the CPU's.
pub fn agree(model: &str, backend: Box<dyn Backend>, steps: Steps) {
    agree_on(model, backend, of_prompts(&PROMPTS), steps, &OF_PROMPTS);
}

/// The same of the first recorded variation.
pub fn agree_on_variations(model: &str, backend: Box<dyn Backend>, steps: Steps) {
    let request = Request { seed: 7, ..Request::variation(Recording::variation().image("input")) };
    agree_on(model, backend, request, [None, steps[1], steps[2]], &OF_VARIATIONS);
}

fn agree_on(model: &str, backend: Box<dyn Backend>, request: Request, steps: Steps, stages: &[&str]) {
    let name = backend.name();
    let (want_images, want) = run_request(model, Box::new(Cpu::new(2).unwrap()), request.clone(), steps);
    let (images, got) = run_request(model, backend, request, steps);
    for (error, tensor) in worst_of_each(&got, &want, stages).unwrap() {
        println!("{name}: {error:.1e} in {tensor}");
        assert!(error < 2e-3, "{tensor} differs by {error} of its largest element");
    }
    same_pictures(&name, &images, &want_images);
}

/// Noise that the sampler step draws: Philox's, and from the second picture on that of one generator of three, of a card so
/// small that a thread makes several elements of a picture.
pub const DRAWN: [(&str, Generators); 2] =
    [("philox", Generators::Each), ("torch-cuda:4x1024", Generators::Part { first: 1, of: 3 })];

/// Holds the pictures of a back end whose sampler step draws the noise against the CPU's. Tensors on the way are not
/// compared: a first step divides by the smallest signal, and where that is not clipped depends on the seed.
pub fn agree_on_drawn_noise(
    model: &str,
    backend: Box<dyn Backend>,
    (noise, generator): (&str, Generators),
    prompts: &[&str],
    steps: Steps,
) {
    let name = format!("{} with {noise}", backend.name());
    let request = Request { noise: noise.parse().unwrap(), generator, ..of_prompts(prompts) };
    let (want, _) = run_request(model, Box::new(Cpu::new(2).unwrap()), request.clone(), steps);
    let (got, _) = run_request(model, backend, request, steps);
    same_pictures(&name, &got, &want);
}

fn same_pictures(name: &str, got: &[Image], want: &[Image]) {
    let pixels = got.iter().zip(want).flat_map(|(a, b)| a.pixels.iter().zip(&b.pixels));
    let most = pixels.map(|(a, b)| a.abs_diff(*b)).max().unwrap();
    println!("{name}: pictures     {most} of 255");
    assert!(most <= 2, "a pixel differs by {most} of 255");
}

/// Peak signal-to-noise ratio in dB of a picture against the one that it should be.
pub fn decibels(got: &Image, want: &Image) -> f64 {
    let square = |(a, b): (&u8, &u8)| f64::from(a.abs_diff(*b)).powi(2);
    let mean = got.pixels.iter().zip(&want.pixels).map(square).sum::<f64>() / want.pixels.len() as f64;
    10.0 * (255.0 * 255.0 / mean.max(1e-12)).log10()
}
