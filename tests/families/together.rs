//! Pictures of several requests in one run: each is that of its request alone.

use super::kandinsky_pictures::open;
use crate::support::golden::MODEL;
use std::ops::ControlFlow;
use unclip::backend::cpu::Cpu;
use unclip::image::Image;
use unclip::pipeline::{Blend, Edit, Event, Ingredient, Pipeline, Request, Task, with_prior};
use unclip::weights::{Checkpoint, LoadOptions};

fn pipeline(checkpoint: Checkpoint) -> Pipeline {
    Pipeline::open(checkpoint, Box::new(Cpu::new(2).unwrap())).unwrap()
}

fn at(folder: &str) -> Checkpoint {
    Checkpoint::open(folder, LoadOptions::default()).unwrap()
}

/// Requests that differ in all that rows may differ in.
fn different(first: Request, task: impl Fn(usize) -> Task) -> [Request; 3] {
    let negative = |text: &str| first.negative.as_ref().map(|_| text.into());
    [
        Request { task: task(0), pictures_per_prompt: 2, negative: negative("grey"), ..first.clone() },
        Request { task: task(1), seed: 77, decoder_guidance: Some(3.5), negative: negative("red"), ..first.clone() },
        Request { task: task(2), seed: 5, decoder_guidance: Some(1.25), ..first.clone() },
    ]
}

#[track_caller]
fn assert_alone(pipeline: Pipeline, requests: &[Request]) {
    let alone: Vec<Image> = requests.iter().flat_map(|request| pipeline.pictures(request).unwrap()).collect();
    let mut order = Vec::new();
    let together = pipeline.run_together(requests, None, &mut |event| {
        if let Event::Picture { index, .. } = event {
            order.push(index);
        }
        ControlFlow::Continue(())
    });
    assert!(together.unwrap() == alone);
    assert_eq!(order, (0..alone.len()).collect::<Vec<_>>());
    assert!(alone.windows(2).all(|pair| pair[0] != pair[1]), "a test of equal pictures tests nothing");
}

fn prompts(k: usize) -> Task {
    Task::Prompts(vec![["a red fox", "two dogs at night", "a"][k].into()])
}

fn given(k: usize) -> Task {
    let pixels = (0..3 * 40 * 30).map(|i| (i * (7 + k) % 251) as u8).collect();
    Task::Variations(vec![Image { width: 40, height: 30, pixels }])
}

fn short(task: Task) -> Request {
    let is_prompt = matches!(task, Task::Prompts(_));
    Request {
        prior_steps: is_prompt.then_some(2),
        decoder_steps: Some(2),
        decoder_guidance: Some(2.0),
        ..Request::of(task)
    }
}

#[test]
fn unclips_pictures_are_the_same_together_as_alone() {
    let base = Request { negative: Some("blurry".into()), super_res_steps: Some(2), ..short(prompts(0)) };
    assert_alone(pipeline(at(MODEL)), &different(base, prompts));
    assert_alone(pipeline(at(MODEL)), &different(Request { super_res_steps: Some(2), ..short(given(0)) }, given));
}

#[test]
fn kandinskys_pictures_are_the_same_together_as_alone() {
    let open = || pipeline(with_prior(open("decoder"), open("prior")).unwrap());
    let size = Some([64; 2]);
    assert_alone(open(), &different(Request { size, ..short(prompts(0)) }, prompts));
    assert_alone(open(), &different(Request { size, negative: Some("blurry".into()), ..short(prompts(0)) }, prompts));
    assert_alone(open(), &different(Request { size, ..short(given(0)) }, given));
}

#[test]
fn stable_unclips_pictures_are_the_same_together_as_alone() {
    let size = Some([64; 2]);
    let open = || pipeline(at("tests/golden/stable-unclip"));
    assert_alone(open(), &different(Request { size, ..short(prompts(0)) }, prompts));
    assert_alone(open(), &different(Request { size, noise_level: Some(200), ..short(given(0)) }, given));
}

#[test]
fn previews_of_a_run_say_whose_they_are_in_whatever_groups_it_is_made() {
    let requests = different(Request { super_res_steps: Some(2), ..short(prompts(0)) }, prompts);
    let previews = |pipeline: Pipeline| {
        let mut found: Vec<(usize, Image)> = Vec::new();
        let run = pipeline.run_together(&requests, Some(1), &mut |event| {
            if let Event::Step { latents, .. } = event
                && let Some(images) = latents.previews().unwrap()
            {
                found.extend(images.into_iter().enumerate().map(|(row, image)| (latents.first() + row, image)));
            }
            ControlFlow::Continue(())
        });
        run.unwrap();
        found.sort_by_key(|(picture, _)| *picture);
        found
    };
    let whole = previews(pipeline(at(MODEL)));
    assert_eq!(whole.len(), 4 * 4, "two steps of the decoder and two of super-resolution for each picture");
    assert!(previews(pipeline(at(MODEL)).memory_limit(1)) == whole);
}

#[test]
fn requests_of_other_shapes_or_kinds_are_not_joined() {
    let pipeline = pipeline(at(MODEL));
    let base = short(prompts(0));
    let image = Image { width: 8, height: 8, pixels: vec![9; 192] };
    let varied = Request::variation(image.clone());
    let said = Request { text: Some("a".into()), ..varied.clone() };
    assert!(
        pipeline.can_join(&varied, &varied) && pipeline.can_join(&said, &said) && !pipeline.can_join(&varied, &said)
    );
    assert!(!pipeline.can_join(&said, &Request { prior_strength: Some(0.5), ..said.clone() }));
    let ingredients = ["a", "b"].map(|text| Ingredient::Prompt(text.into())).to_vec();
    let others = [
        Request { decoder_steps: Some(3), ..base.clone() },
        Request { prior_guidance: Some(1.0), decoder_guidance: Some(1.0), ..base.clone() },
        Request { negative: Some("x".into()), ..base.clone() },
        Request { noise: unclip::noise::NoiseKind::Philox, ..base.clone() },
        Request { edit: Some(Edit::redraw(image.clone(), None)), ..base.clone() },
        Request { decoder_steps: Some(2), ..Request::variation(image) },
        Request::of(Task::Blend(Box::new(Blend::path(ingredients, 2)))),
    ];
    for other in others {
        assert!(!pipeline.can_join(&base, &other) && !pipeline.can_join(&other, &base), "{other:?}");
        let both = pipeline.run_together(&[base.clone(), other], None, &mut |_| ControlFlow::Continue(()));
        assert!(both.unwrap_err().to_string().starts_with("requests: of different kinds"));
    }
    assert!(pipeline.can_join(&base, &Request { seed: 9, pictures_per_prompt: 3, ..base.clone() }));
}
