//! Pictures that a tiny Kandinsky 2.2 edits against diffusers': as `tests/golden/make_kandinsky_edits.py` recorded them.

use super::kandinsky_pictures::{FOLDER, Opened, assembled, assert_recorded, open, prompts, refused};
use crate::support::golden::Recording;
use std::ops::ControlFlow;
use unclip::backend::Backend;
use unclip::backend::cpu::Cpu;
use unclip::image::Mask;
use unclip::pipeline::{Blend, Edit, Event, Ingredient, Pipeline, Request, Task, Trace, with_prior};
use unclip::weights::{Checkpoint, LoadOptions};

/// A decoder with the autoencoder that all decoders share.
fn pipeline(decoder: &str, backend: impl Backend + 'static) -> Opened {
    let part = |of: &str, part: &str| format!("{FOLDER}/{of}/{part}");
    let parts = [part(decoder, "unet"), part(decoder, "scheduler"), part("decoder", "movq")];
    let folder = assembled(&part(decoder, "model_index.json"), &parts);
    let checkpoint = Checkpoint::open(folder.path(), LoadOptions::default()).unwrap();
    let pipeline = Pipeline::open(with_prior(checkpoint, open("prior")).unwrap(), Box::new(backend)).unwrap();
    Opened { pipeline, folder }
}

fn request(prompt: &str, seed: u64, size: [usize; 2]) -> Request {
    Request { decoder_steps: Some(5), ..prompts(&[prompt], seed, size) }
}

fn redraw(recording: &Recording) -> Request {
    let edit = Some(Edit::redraw(recording.image("given/photo"), Some(0.5)));
    Request { edit, ..request("a red fox", 3, [64; 2]) }
}

fn inpaint(recording: &Recording) -> Request {
    let edit = Some(Edit::inpaint(recording.image("given/wide"), recording.mask_image("given/mask")));
    Request { edit, ..request("a hat", 4, [128, 64]) }
}

#[test]
fn edits_are_those_of_the_original() {
    let recording = Recording::kandinsky_edits();
    let cpu = || Cpu::new(2).unwrap();
    assert_recorded(&pipeline("decoder", cpu()), &redraw(&recording), &recording, "redraw");
    assert_recorded(&pipeline("inpaint", cpu()), &inpaint(&recording), &recording, "inpaint");
    let control = pipeline("controlnet", cpu());
    let hint = Request { hint: Some(recording.image("given/depth")), ..request("a dog", 5, [64; 2]) };
    assert_recorded(&control, &hint, &recording, "hint");
    let edit = Some(Edit::redraw(recording.image("given/photo"), Some(0.8)));
    assert_recorded(&control, &Request { edit, seed: 6, ..hint }, &recording, "hint-redraw");
}

/// As the original's `interpolate`: the prior's draws for each text in turn, and for the negative prompt behind them.
#[test]
fn blends_are_those_of_the_original() {
    let recording = Recording::kandinsky_edits();
    let pipeline = pipeline("decoder", Cpu::new(2).unwrap());
    let [fox, dogs] = ["a red fox", "two dogs"].map(|text| Ingredient::Prompt(text.into()));
    let things = vec![fox, Ingredient::Image(recording.image("given/photo")), dogs];
    let task = Task::Blend(Box::new(Blend::new(things, vec![vec![0.5, 0.4, 0.3]])));
    let plain = Request { task, ..request("", 7, [64; 2]) };
    assert_recorded(&pipeline, &plain, &recording, "blend");
    let negative = Request { negative: Some("blurry".into()), seed: 8, ..plain };
    assert_recorded(&pipeline, &negative, &recording, "blend-negative");
}

/// As the original's pipeline from embedding to embedding: the prior begins from the picture's, a text says where it leads.
#[test]
fn a_text_changes_a_picture_as_in_the_original() {
    let recording = Recording::kandinsky_edits();
    let pipeline = pipeline("decoder", Cpu::new(2).unwrap());
    let task = Task::Variations(vec![recording.image("given/photo")]);
    let text = Some("a red fox".into());
    let plain = Request { task, text, prior_strength: Some(0.6), ..request("", 9, [64; 2]) };
    assert_recorded(&pipeline, &plain, &recording, "changed");
    // Of four steps the default takes one, as the original's does.
    let negative = Some("blurry".into());
    let negative = Request { negative, seed: 10, prior_strength: None, ..plain.clone() };
    assert_recorded(&pipeline, &negative, &recording, "changed-negative");
    let recipe = pipeline.recipe(&negative, 0);
    assert_eq!((recipe.prior_strength, recipe.prior_steps, recipe.prior_guidance), (Some(0.3), Some(4), Some(4.0)));
    let again = recipe.apply(Request { negative: None, text: None, ..negative.clone() });
    assert_eq!(pipeline.pictures(&again).unwrap(), pipeline.pictures(&negative).unwrap());
    for (request, reason) in [
        (Request { prior_strength: Some(0.2), ..plain.clone() }, "prior strength 0.2: of 4 prior steps none would be"),
        (Request { prior_strength: Some(1.5), ..plain.clone() }, "prior strength 1.5: must be above 0 and at most 1"),
        (Request { prior_strength: Some(0.5), ..request("a", 0, [64; 2]) }, "is of use with a picture and a prompt"),
        (Request { text: None, prior_strength: None, ..plain.clone() }, "prior steps: there is no prompt"),
    ] {
        let message = refused(pipeline.route(&request));
        assert!(message.contains(reason), "{message}: {reason}");
    }
}

#[test]
fn given_pictures_are_resized_as_pillow_does_it() {
    let recording = Recording::kandinsky_edits();
    let given = |name: &str| recording.image(name);
    assert_eq!(given("given/photo").resized(64, 64), given("resized/photo"));
    assert_eq!(given("given/wide").resized(128, 64), given("resized/larger"));
    assert_eq!(given("given/photo").resized(180, 20), given("resized/thin"));
    let tensors = recording.tensors();
    assert_eq!(
        recording.mask_image("given/mask").resized(128, 64).pixels,
        tensors.tensor("resized/mask").unwrap().data()
    );
}

#[cfg(feature = "wgpu")]
#[test]
fn edits_on_wgpu_are_those_of_the_original() {
    if let Some(adapter) = crate::support::adapters::storing(unclip::Dtype::F32) {
        let recording = Recording::kandinsky_edits();
        assert_recorded(&pipeline("inpaint", adapter), &inpaint(&recording), &recording, "inpaint");
    }
}

#[cfg(feature = "cuda-emulator")]
#[test]
fn edits_on_the_emulator_are_those_of_the_original() {
    let recording = Recording::kandinsky_edits();
    let pipeline = pipeline("decoder", unclip::backend::cuda::Cuda::emulator());
    assert_recorded(&pipeline, &redraw(&recording), &recording, "redraw");
}

/// A decoder without channels for what stays keeps it as well: its latents are put back after every step.
#[test]
fn any_decoder_keeps_what_a_mask_leaves_alone() {
    let recording = Recording::kandinsky_edits();
    let pipeline = pipeline("decoder", Cpu::new(2).unwrap());
    let image = recording.image("given/wide");
    let mask = Mask::from_fn(image.width, image.height, |x, _| x >= 60);
    let made = |seed| {
        let edit = Some(Edit::inpaint(image.clone(), mask.clone()));
        let mut trace = Trace::on();
        let observer = &mut |_: Event<'_>| ControlFlow::Continue(());
        pipeline.run_traced(&Request { edit, ..request("a hat", seed, [128, 64]) }, observer, &mut trace).unwrap();
        let (shape, latents) = trace.get("decoder/latents").unwrap();
        assert_eq!(shape, [1, 4, 8, 16]);
        latents
    };
    // Column 60 of 90 is 10.7 of 16; what is new spreads by one position.
    let (first, second) = (made(1), made(2));
    let [stays, new]: [Vec<usize>; 2] =
        [true, false].map(|side| (0..512).filter(|at| (at % 16 < 10) == side).collect());
    assert!(stays.iter().all(|&at| first[at] == second[at]));
    // Some are clipped to the same bound.
    let differ = new.iter().filter(|&&at| first[at] != second[at]).count();
    assert!(differ > 170, "{differ} of {}", new.len());
}

#[test]
fn edits_that_a_decoder_cannot_make_are_refused_before_any_work() {
    let recording = Recording::kandinsky_edits();
    let cpu = || Cpu::new(1).unwrap();
    let (plain, inpainting, control) =
        (pipeline("decoder", cpu()), pipeline("inpaint", cpu()), pipeline("controlnet", cpu()));
    let hint = Some(recording.image("given/depth"));
    let photo = recording.image("given/photo");
    let strength = |strength| Some(Edit::redraw(photo.clone(), Some(strength)));
    let resampled = Some(Edit::inpaint(recording.image("given/wide"), recording.mask_image("given/mask")).resampled(2));
    let elsewhere = Some(Edit::inpaint(photo.clone(), recording.mask_image("given/mask")));
    let plain_request = || request("a", 0, [64; 2]);
    for (pipeline, request, reason) in [
        (&inpainting, plain_request(), "mask: none is given, but this decoder makes parts"),
        (&inpainting, Request { edit: strength(0.5), ..plain_request() }, "mask: none is given"),
        (&control, plain_request(), "hint: none is given"),
        (&plain, Request { hint: hint.clone(), ..plain_request() }, "hint: the decoder of this checkpoint sees none"),
        (&plain, Request { edit: strength(0.1), ..plain_request() }, "strength 0.1: of 5 decoder steps none"),
        (&plain, Request { edit: strength(1.5), ..plain_request() }, "strength 1.5: must be above 0 and at most 1"),
        (&plain, Request { edit: strength(f32::NAN), ..plain_request() }, "strength NaN: must be above 0"),
        (&plain, Request { edit: resampled, ..plain_request() }, "resample 2: decoders of latents take each step once"),
        (&plain, Request { edit: elsewhere, ..plain_request() }, "mask: 90x70 pixels; expected the picture's 200x150"),
    ] {
        let message = refused(pipeline.route(&request));
        assert!(message.contains(reason), "{message}: {reason}");
    }
}
