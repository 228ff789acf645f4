//! Edited pictures of a tiny unCLIP: against diffusers' pipeline with RePaint's loop in its schedulers, as
//! `tests/golden/make_edits.py` recorded it.
#![cfg(feature = "tokenizer")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use support::golden::{MODEL, Recording};
use unclip::backend::Backend;
use unclip::backend::cpu::Cpu;
use unclip::image::Image;
use unclip::pipeline::{Edit, Pipeline, Request};
use unclip::weights::{Checkpoint, LoadOptions};

/// Pictures are rounded to bytes, in which samples that differ in their last bits may fall to either side.
const TOLERANCE: u8 = 2;

fn pipeline(backend: impl Backend + 'static) -> Pipeline {
    Pipeline::open(Checkpoint::open(MODEL, LoadOptions::default()).unwrap(), Box::new(backend)).unwrap()
}

fn request(seed: u64, decoder_steps: usize, edit: Edit) -> Request {
    Request {
        seed,
        prior_steps: Some(3),
        decoder_steps: Some(decoder_steps),
        super_res_steps: Some(3),
        edit: Some(edit),
        ..Request::new("a red frog on a green leaf")
    }
}

fn inpaint(recording: &Recording) -> Edit {
    Edit::inpaint(recording.image("given/photo"), recording.mask_image("given/mask"))
}

/// The cases that were recorded.
fn recorded(recording: &Recording) -> [(&'static str, Request); 4] {
    let both = inpaint(recording).resampled(2).with_strength(Some(0.8));
    [
        ("inpaint", Request { pictures_per_prompt: 2, ..request(3, 3, inpaint(recording)) }),
        ("resample", request(4, 3, inpaint(recording).resampled(3))),
        ("redraw", request(5, 4, Edit::redraw(recording.image("given/photo"), Some(0.5)))),
        ("both", request(6, 5, both)),
    ]
}

#[track_caller]
fn assert_near(got: &[Image], want: &[Image], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (got, want) in got.iter().zip(want) {
        assert_eq!((got.width, got.height), (want.width, want.height), "{what}");
        let worst = got.pixels.iter().zip(&want.pixels).map(|(&a, &b)| a.abs_diff(b)).max();
        println!("{what}: at most {worst:?} of 255");
        assert!(worst <= Some(TOLERANCE), "{what}: off by {worst:?} of 255");
    }
}

#[test]
fn edits_are_those_of_the_original_pipeline_with_repaints_loop() {
    let recording = Recording::edits();
    let pipeline = pipeline(Cpu::new(2).unwrap());
    for (name, request) in recorded(&recording) {
        assert_near(&pipeline.pictures(&request).unwrap(), &recording.images(name), name);
    }
}

#[cfg(feature = "wgpu")]
#[test]
fn edits_on_wgpu_are_those_of_the_original_pipeline() {
    if let Some(adapter) = support::adapters::storing(unclip::Dtype::F32) {
        let recording = Recording::edits();
        let [_, (name, request), ..] = recorded(&recording);
        assert_near(&pipeline(adapter).pictures(&request).unwrap(), &recording.images(name), name);
    }
}

#[cfg(feature = "cuda-emulator")]
#[test]
fn edits_on_the_emulator_are_those_of_the_original_pipeline() {
    let recording = Recording::edits();
    let [.., (name, request)] = recorded(&recording);
    let pipeline = pipeline(unclip::backend::cuda::Cuda::emulator());
    assert_near(&pipeline.pictures(&request).unwrap(), &recording.images(name), name);
}

/// The noise of what stays comes behind that of the steps, whoever draws it.
#[test]
fn a_picture_is_the_same_alone_and_in_a_batch_with_every_noise() {
    use unclip::noise::NoiseKind;
    let recording = Recording::edits();
    let pipeline = pipeline(Cpu::new(2).unwrap());
    for noise in [NoiseKind::Torch, NoiseKind::Philox] {
        let both = Request { noise, pictures_per_prompt: 2, ..request(3, 3, inpaint(&recording).resampled(2)) };
        let second = Request { noise, seed: 4, pictures_per_prompt: 1, ..both.clone() };
        let (both, second) = (pipeline.pictures(&both).unwrap(), pipeline.pictures(&second).unwrap());
        assert_eq!(both[1], second[0], "{noise}");
        assert_ne!(both[0], both[1]);
    }
}

/// What the built-in model draws, and what it makes of its own drawings.
#[cfg(feature = "default-model")]
mod drawings {
    use super::{Cpu, Edit, Image, Pipeline, Request};
    use std::ops::ControlFlow;
    use std::sync::Arc;
    use unclip::image::Mask;
    use unclip::noise::{NoiseKind, NoiseSource};
    use unclip::pipeline::{Event, Keep};

    fn pipeline() -> Pipeline {
        let checkpoint = unclip::weights::default_model().unwrap();
        Pipeline::open(checkpoint, Box::new(Cpu::new(2).unwrap())).unwrap().keep(Keep::Everything, None)
    }

    fn ignore(_: Event<'_>) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    /// Peak signal-to-noise ratio.
    fn decibels(a: &Image, b: &Image) -> f64 {
        let square = |(a, b): (&u8, &u8)| (f64::from(*a) - f64::from(*b)).powi(2);
        let mean = a.pixels.iter().zip(&b.pixels).map(square).sum::<f64>() / a.pixels.len() as f64;
        20.0 * 255f64.log10() - 10.0 * mean.log10()
    }

    #[test]
    fn a_picture_comes_back_from_its_noise() {
        let pipeline = pipeline();
        let picture = pipeline.pictures(&Request::new("a red apple")).unwrap().swap_remove(0);
        let plain = Request::variation(picture.clone());
        let inversion = pipeline.invert(&picture, &plain, &mut ignore).unwrap();
        assert_eq!(inversion.timesteps.len(), 50);
        let from = Request { inversion: Some(Arc::new(inversion)), decoder_guidance: Some(1.0), ..plain.clone() };
        let back = pipeline.pictures(&from).unwrap().swap_remove(0);
        let (back, other) = (decibels(&picture, &back), decibels(&picture, &pipeline.pictures(&plain).unwrap()[0]));
        assert!(back >= 28.0 && back > other + 3.0, "{back} dB, a plain variation {other} dB");
        let refused = pipeline.route(&Request { decoder_steps: Some(9), ..from }).unwrap_err().to_string();
        assert!(refused.contains("an inversion says itself"), "{refused}");
    }

    /// The median of each pixel's square of so many pixels.
    fn median(image: &Image, side: isize) -> Image {
        let at = |x: isize, last: usize| x.clamp(0, last as isize - 1) as usize;
        let value = |i: usize| {
            let (x, y, c) = ((i / 3 % image.width) as isize, (i / 3 / image.width) as isize, i % 3);
            let near = -(side / 2)..=side / 2;
            let square = near.clone().flat_map(|dy| near.clone().map(move |dx| (x + dx, y + dy)));
            let pixel = |(x, y)| image.pixels[(at(y, image.height) * image.width + at(x, image.width)) * 3 + c];
            let mut values: Vec<u8> = square.map(pixel).collect();
            values.sort_unstable();
            values[values.len() / 2]
        };
        Image { pixels: (0..image.pixels.len()).map(value).collect(), ..image.clone() }
    }

    #[test]
    fn noise_goes_and_the_drawing_stays_better_than_with_a_median() {
        let pipeline = pipeline();
        for (prompt, sigma) in [("a lion", 0.1f32), ("a frog", 0.2)] {
            let clean = pipeline.pictures(&Request::new(prompt)).unwrap().swap_remove(0);
            let mut noise = vec![0.0; clean.pixels.len()];
            NoiseSource::new(NoiseKind::Philox, 3).fill_normal(&mut noise);
            let pixel =
                |(byte, noise): (&u8, f32)| (f32::from(*byte) + 255.0 * sigma * noise).round().clamp(0.0, 255.0);
            let pixels = clean.pixels.iter().zip(noise).map(|pair| pixel(pair) as u8).collect();
            let noisy = Image { pixels, ..clean.clone() };
            let found = noisy.noise_level();
            assert!((found / sigma - 1.0).abs() < 0.15, "{prompt}: {found}");
            let request = Request::variation(noisy.clone());
            let made = decibels(&clean, &pipeline.denoise(&noisy, found, &request, &mut ignore).unwrap());
            let medians = [3, 5, 7].map(|side| decibels(&clean, &median(&noisy, side)));
            let best = medians.into_iter().fold(0.0, f64::max);
            println!("{prompt}, {sigma}: {made:.1} dB, a median {best:.1} dB");
            assert!(made >= best + 3.0, "{prompt}: {made} dB, a median {best} dB");
        }
    }

    /// Larger pictures pass through overlapping tiles, smaller ones are extended.
    #[test]
    fn pictures_of_any_size_lose_their_noise() {
        let pipeline = pipeline();
        // The ground of all drawings.
        let white = |width: usize, height: usize| Image { width, height, pixels: vec![255; 3 * width * height] };
        for [width, height] in [[200, 70], [31, 128]] {
            let image = white(width, height);
            let made = pipeline.denoise(&image, 0.05, &Request::variation(image.clone()), &mut ignore).unwrap();
            assert_eq!([made.width, made.height], [width, height]);
            assert!(decibels(&image, &made) > 20.0, "{} dB", decibels(&image, &made));
        }
        let refused = pipeline.denoise(&white(8, 8), 0.0, &Request::variation(white(8, 8)), &mut ignore);
        assert!(refused.unwrap_err().to_string().contains("sigma 0: must be above 0 and below 1"));
    }

    #[test]
    fn a_mask_over_a_drawing_brings_it_back_and_leaves_the_rest() {
        let pipeline = pipeline();
        let drawing = pipeline.pictures(&Request::new("a red apple")).unwrap().swap_remove(0);
        let inside = |x: usize, y: usize| (36..92).contains(&x) && (36..92).contains(&y);
        let mask = Mask::from_fn(drawing.width, drawing.height, inside);
        let edit = Some(Edit::inpaint(drawing.clone(), mask));
        let made = pipeline.pictures(&Request { edit, seed: 5, ..Request::new("a red apple") }).unwrap().swap_remove(0);
        for (at, (old, new)) in drawing.pixels.chunks_exact(3).zip(made.pixels.chunks_exact(3)).enumerate() {
            let (x, y) = (at % drawing.width, at / drawing.width);
            // The networks' own picture, before anything is pasted.
            assert!(old == new || inside(x, y), "{x} {y}");
        }
        let decibels = decibels(&drawing, &made);
        assert!(decibels > 20.0 && made != drawing, "{decibels} dB");
    }
}
