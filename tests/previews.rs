//! Guesses of the finished samples while a run samples them.
#![cfg(all(feature = "tokenizer", feature = "png"))]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::ops::ControlFlow;
use support::golden::{MODEL, Recording, channels_last};
use unclip::backend::Backend;
use unclip::backend::cpu::Cpu;
use unclip::image::Image;
use unclip::pipeline::{Event, Pipeline, Prompt, Request, Task};
use unclip::weights::{Checkpoint, LoadOptions};

fn open(backend: Box<dyn Backend>) -> Pipeline {
    Pipeline::open(Checkpoint::open(MODEL, LoadOptions::default()).unwrap(), backend).unwrap()
}

fn cpu() -> Box<Cpu> {
    Box::new(Cpu::new(2).unwrap())
}

/// The recorded run's request.
fn recorded() -> Request {
    let prompts = ["a red frog on a green leaf", "An oil painting of Łódź at night, 1999!"];
    Request::of(Task::Prompts(prompts.map(Prompt::from).to_vec()))
}

fn short() -> Request {
    Request { prior_steps: Some(2), decoder_steps: Some(2), super_res_steps: Some(3), ..Request::new("a fox") }
}

/// What a step takes the finished samples for.
struct Guess {
    /// The loop's name in recordings.
    of: &'static str,
    step: usize,
    values: Vec<f32>,
}

fn run(pipeline: &Pipeline, request: &Request) -> (Vec<Guess>, Vec<Image>) {
    let (pictures, steps) = (request.pictures(), request.super_res_steps.unwrap_or(7));
    let mut seen = Vec::new();
    let images = pipeline.run(request, &mut |event| {
        if let Event::Step { stage, done, latents, .. } = event {
            let of = if stage.name().starts_with("super_res") { "super_res" } else { stage.name() };
            let before = if stage.name() == "super_res_last" { steps - 1 } else { 0 };
            if let Some(values) = latents.guess().unwrap() {
                let sizes = latents.previews().unwrap().map(|all| all.iter().map(|i| [i.height, i.width]).collect());
                let of_picture = vec![[latents.shape()[0]; 2]; pictures];
                assert_eq!(sizes, (latents.shape().len() == 3).then_some(of_picture));
                seen.push(Guess { of, step: before + done - 1, values });
            }
        }
        ControlFlow::Continue(())
    });
    (seen, images.unwrap())
}

#[track_caller]
fn assert_near(got: &[f32], want: &[f32], what: &str) {
    let size = want.iter().fold(0.0f32, |size, x| size.max(x.abs()));
    let worst = got.iter().zip(want).map(|(g, w)| (g - w).abs()).fold(0.0, f32::max);
    assert!(worst <= 1e-3 * size && got.len() == want.len(), "{what}: off by {worst}");
}

#[test]
fn guesses_are_the_originals_and_change_no_picture() {
    let (seen, images) = run(&open(cpu()).previews(1), &recorded());
    assert_eq!(images, open(cpu()).pictures(&recorded()).unwrap());
    let (recording, mut compared) = (Recording::read(), 0);
    for guess in &seen {
        let name = format!("{}/step_{:02}/pred_original", guess.of, guess.step);
        if recording.tensors().tensor(&name).is_ok() {
            let (shape, want) = recording.get(&name);
            assert_near(&guess.values, &channels_last(&shape, &want), &name);
            compared += 1;
        }
    }
    // The first, one middle and the last step of three loops are recorded.
    assert_eq!((compared, seen.len()), (9, 25 + 25 + 7));
    // The last guess is the picture.
    let last = &seen.last().unwrap().values;
    let side = images[0].width;
    let of_guess = Image::from_unit_range(side, side, &last[last.len() / 2..]).unwrap();
    let off = of_guess.pixels.iter().zip(&images[1].pixels).map(|(a, b)| a.abs_diff(*b)).max();
    assert!(off <= Some(1), "{off:?}");
}

#[test]
fn guesses_are_the_same_on_every_back_end() {
    let (want, _) = run(&open(cpu()).previews(1), &short());
    #[cfg_attr(not(any(feature = "wgpu", feature = "cuda-emulator")), expect(unused_mut, reason = "nothing is added"))]
    let mut backends: Vec<Box<dyn Backend>> = Vec::new();
    #[cfg(feature = "wgpu")]
    backends.extend(support::adapters::storing(unclip::Dtype::F32).map(|wgpu| Box::new(wgpu) as Box<dyn Backend>));
    #[cfg(feature = "cuda-emulator")]
    backends.push(Box::new(unclip::backend::cuda::Cuda::emulator()));
    for backend in backends {
        let name = backend.name();
        let (got, _) = run(&open(backend).previews(1), &short());
        assert_eq!(got.len(), want.len(), "{name}");
        got.iter().zip(&want).for_each(|(got, want)| {
            assert_near(&got.values, &want.values, &format!("{name}, {} {}", got.of, got.step));
        });
    }
}

#[test]
fn guesses_are_there_when_they_are_asked_for() {
    assert!(run(&open(cpu()), &short()).0.is_empty());
    let request = Request { decoder_steps: Some(7), ..short() };
    let steps: Vec<(&str, usize)> =
        run(&open(cpu()).previews(3), &request).0.into_iter().map(|guess| (guess.of, guess.step)).collect();
    assert_eq!(steps, [("decoder", 2), ("decoder", 5)]);
}
