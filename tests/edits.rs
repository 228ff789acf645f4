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
