//! Whole pictures against the original: a tiny checkpoint with every block type of the full one, and a recording of
//! diffusers' pipeline on it (`tests/golden/make.py`). And what must not change a picture: threads, batches, memory.
#![cfg(feature = "tokenizer")]

mod support;

use std::ops::ControlFlow;
use support::golden::{MODEL, Recording};
use support::pictures::{self, TRAINED, decibels, run_on_cpu};
use unclip::Error;
use unclip::Precision;
use unclip::backend::cpu::Cpu;
use unclip::diffusion::sampler::coefficients;
use unclip::diffusion::{Schedule, SchedulerConfig};
use unclip::image::Image;
use unclip::noise::{NoiseKind, NoiseSource};
use unclip::ops::{Noise, element};
use unclip::pipeline::{Event, Pipeline, Prompt, Request, Task, Trace};
use unclip::weights::{Checkpoint, LoadOptions, config};

/// Errors of a step grow in the steps after it; what one network may be off by is in `tests/models.rs`.
const TOLERANCE: f32 = 1e-3;

fn pipeline(threads: usize) -> Pipeline {
    let checkpoint = Checkpoint::open(MODEL, LoadOptions::default()).unwrap();
    Pipeline::open(checkpoint, Box::new(Cpu::new(threads).unwrap())).unwrap()
}

fn prompts(texts: &[&str]) -> Task {
    Task::Prompts(texts.iter().map(|&text| text.into()).collect())
}

fn recorded_request() -> Request {
    Request::of(prompts(&["a red frog on a green leaf", "An oil painting of Łódź at night, 1999!"]))
}

fn run(pipeline: &Pipeline, request: &Request) -> Vec<Image> {
    pipeline.run(request, &mut |_| ControlFlow::Continue(())).unwrap()
}

#[test]
fn every_recorded_tensor_of_the_original_run_is_reproduced() {
    let mut trace = Trace::on();
    let images = pipeline(2).run_traced(&recorded_request(), &mut |_| ControlFlow::Continue(()), &mut trace).unwrap();
    support::golden::assert_recorded(&Recording::read(), &trace, &images, TOLERANCE);
}

#[test]
fn a_trace_that_lacks_tensors_does_not_agree_with_one_that_has_them() {
    let trace = |super_res_steps| pictures::run_on_cpu(MODEL, &["a"], [Some(2), Some(2), Some(super_res_steps)]).1;
    let (whole, shorter, empty) = (trace(3), trace(2), Trace::on());
    let stages = pictures::OF_PROMPTS;
    let same = pictures::worst_of_each(&whole, &whole, &stages).unwrap();
    assert!(same.len() == stages.len() && same.iter().all(|(error, _)| *error == 0.0), "{same:?}");
    for (got, want) in [(&empty, &whole), (&whole, &empty), (&shorter, &whole), (&whole, &shorter), (&empty, &empty)] {
        assert!(pictures::worst_of_each(got, want, &stages).unwrap_err().contains("has the tensors"));
    }
    // A stage that is not part of the request, and one that is and is not looked for.
    let error = pictures::worst_of_each(&whole, &whole, &pictures::OF_VARIATIONS).unwrap_err();
    assert!(error.contains("tensors of no stage") && error.contains("prior/step_00/latents"), "{error}");
    let with_encoder = [&stages[..], &["image_encoder/"]].concat();
    let error = pictures::worst_of_each(&whole, &whole, &with_encoder).unwrap_err();
    assert!(error.contains("image_encoder/ has the tensors []"), "{error}");
}

#[test]
fn a_seed_gives_the_same_bytes_with_one_and_with_two_threads() {
    let request = recorded_request();
    let first = run(&pipeline(1), &request);
    for _ in 0..10 {
        assert_eq!(run(&pipeline(2), &request), first);
    }
}

#[test]
fn each_picture_of_a_run_can_be_made_again_alone() {
    let mut all = recorded_request();
    all.pictures_per_prompt = 2;
    all.seed = 40;
    let pictures = run(&pipeline(2), &all);
    for (k, picture) in pictures.iter().enumerate() {
        let mut alone = all.clone();
        let Task::Prompts(prompts) = &all.task else { panic!("they are prompts") };
        alone.task = Task::Prompts(vec![prompts[k / 2].clone()]);
        alone.pictures_per_prompt = 1;
        alone.seed = 40 + k as u64;
        assert_eq!(&run(&pipeline(2), &alone)[0], picture, "picture {k}");
    }
    assert!((1..4).all(|k| pictures[k] != pictures[0]));
}

#[test]
fn little_memory_changes_no_picture() {
    let mut request = recorded_request();
    request.pictures_per_prompt = 3;
    for noise in [NoiseKind::Torch, NoiseKind::Philox] {
        request.noise = noise;
        assert_eq!(run(&pipeline(2).memory_limit(1), &request), run(&pipeline(2), &request));
    }
}

#[test]
fn weights_that_are_read_give_the_picture_of_weights_that_are_mapped() {
    let checkpoint = Checkpoint::open(MODEL, LoadOptions { mmap: false, variant: None }).unwrap();
    let read = Pipeline::open(checkpoint, Box::new(Cpu::new(2).unwrap())).unwrap();
    assert_eq!(run(&read, &recorded_request()), run(&pipeline(2), &recorded_request()));
}

#[test]
fn prompt_negative_seed_and_generator_each_make_a_difference() {
    let request =
        Request { decoder_steps: Some(3), prior_steps: Some(3), super_res_steps: Some(2), ..recorded_request() };
    let pipeline = pipeline(2);
    let plain = run(&pipeline, &request);
    let others = [
        Request { task: prompts(&["a cat", "a dog"]), ..request.clone() },
        Request { negative: Some("a leaf".into()), ..request.clone() },
        Request { seed: 1000, ..request.clone() },
        Request { noise: NoiseKind::Philox, ..request.clone() },
        Request { prior_guidance: Some(1.0), decoder_guidance: Some(1.0), ..request.clone() },
    ];
    for other in others {
        assert!(run(&pipeline, &other).iter().zip(&plain).all(|(a, b)| a != b), "{other:?}");
    }
    // diffusers' unconditional text is the empty one.
    assert_eq!(run(&pipeline, &Request { negative: Some("".into()), ..request }), plain);
}

/// The steps' noise as the sequence of draws has it, and the samples that each step made of noise of its own.
#[test]
fn noise_that_the_steps_draw_is_the_one_sequence_of_each_picture() {
    let loops = [("prior", 4), ("decoder", 3), ("super_res", 4)];
    let [prior_steps, decoder_steps, super_res_steps] = loops.map(|(_, steps)| Some(steps));
    let own = Request { noise: NoiseKind::Philox, seed: u64::MAX, ..recorded_request() };
    let request = Request { prior_steps, decoder_steps, super_res_steps, ..own };
    let mut trace = Trace::on();
    pipeline(2).run_traced(&request, &mut |_| ControlFlow::Continue(()), &mut trace).unwrap();
    let mut sources = [u64::MAX, 0].map(|seed| NoiseSource::new(NoiseKind::Philox, seed));
    for (name, steps) in loops {
        let file = format!("{MODEL}/{name}_scheduler/scheduler_config.json");
        let config = config::read::<SchedulerConfig>(file.as_ref(), &std::fs::read(&file).unwrap()).unwrap();
        let schedule = Schedule::new(&config);
        let rows = coefficients(&schedule, &schedule.timesteps("steps", steps).unwrap(), 1.0);
        // Guidance is in what the trace calls guided.
        let rule = config.step(false, Noise::Given);
        let mut draw = |recorded: Vec<f32>, what: &str| {
            let size = recorded.len() / sources.len();
            for (source, got) in sources.iter_mut().zip(recorded.chunks_exact(size)) {
                let mut want = vec![0.0; size];
                source.fill_normal(&mut want);
                assert_eq!(got, want, "{what} of {name}");
            }
            recorded
        };
        let mut x_t = draw(trace.get(&format!("{name}/initial_latents")).unwrap().1, "latents");
        let image = x_t.len() / 2;
        for (step, row) in rows.iter().enumerate() {
            let tensor = |what: &str| trace.get(&format!("{name}/step_{step:02}/{what}")).unwrap().1;
            let noise = if step + 1 < steps { draw(tensor("noise"), "noise") } else { vec![0.0; x_t.len()] };
            let (guided, next) = (tensor("guided"), tensor("latents"));
            for i in 0..x_t.len() {
                let at = i / image * (guided.len() / 2) + i % image;
                let variance = guided.get(at + image).copied().unwrap_or(0.0);
                let want = element(&rule, row, 0.0, guided[at], variance, x_t[i], noise[i]).next;
                assert_eq!(next[i], want, "{name}, step {step}, element {i}");
            }
            x_t = next;
        }
    }
}

#[test]
fn events_tell_the_stages_in_order_and_any_of_them_can_end_the_run() {
    let pipeline = pipeline(2);
    let request =
        Request { decoder_steps: Some(2), prior_steps: Some(2), super_res_steps: Some(3), ..recorded_request() };
    let (mut stages, mut steps, mut events) = (Vec::new(), Vec::new(), 0);
    let observe = &mut |event: Event<'_>| {
        events += 1;
        match event {
            Event::Begin { stage, .. } => stages.push(stage.name()),
            Event::Step { stage, done, steps: total, .. } => steps.push((stage.name(), done, total)),
            Event::Warning(text) => panic!("{text}"),
            _ => {}
        }
        ControlFlow::Continue(())
    };
    pipeline.run(&request, observe).unwrap();
    assert_eq!(stages, ["text_encoder", "prior", "text_proj", "decoder", "super_res_first", "super_res_last"]);
    let expected = [
        ("prior", 1, 2),
        ("prior", 2, 2),
        ("decoder", 1, 2),
        ("decoder", 2, 2),
        ("super_res_first", 1, 2),
        ("super_res_first", 2, 2),
        ("super_res_last", 1, 1),
    ];
    assert_eq!(steps, expected);
    for last in 1..=events {
        let mut left = last;
        let stop = &mut |_: Event<'_>| {
            left -= 1;
            if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        assert!(matches!(pipeline.run(&request, stop), Err(Error::Cancelled)), "event {last}");
    }
}

#[test]
fn a_long_prompt_is_cut_with_a_warning_that_quotes_the_rest() {
    let request = Request {
        decoder_steps: Some(2),
        prior_steps: Some(2),
        super_res_steps: Some(2),
        ..Request::new("frog ".repeat(100).as_str())
    };
    let mut warnings = Vec::new();
    let observe = &mut |event: Event<'_>| {
        if let Event::Warning(text) = event {
            warnings.push(text.to_owned());
        }
        ControlFlow::Continue(())
    };
    pipeline(2).run(&request, observe).unwrap();
    assert!(warnings.len() == 1 && warnings[0].contains("77 tokens") && warnings[0].contains("frog"), "{warnings:?}");
}

#[test]
fn a_key_that_its_class_does_not_have_is_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    support::files::copy_folder(MODEL.as_ref(), &model);
    let file = model.join("decoder/config.json");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replacen('{', "{ \"tokens_per_second\": 3,", 1)).unwrap();
    let checkpoint = Checkpoint::open(&model, LoadOptions::default()).unwrap();
    let pipeline = Pipeline::open(checkpoint, Box::new(Cpu::new(2).unwrap())).unwrap();
    let request =
        Request { decoder_steps: Some(2), prior_steps: Some(2), super_res_steps: Some(2), ..Request::new("a frog") };
    let mut warnings = Vec::new();
    let run = pipeline.run(&request, &mut |event| {
        if let Event::Warning(text) = event {
            warnings.push(text.to_owned());
        }
        ControlFlow::Continue(())
    });
    run.unwrap();
    assert!(
        warnings.len() == 1 && warnings[0].contains("decoder/config.json") && warnings[0].contains("tokens_per_second")
    );
}

#[test]
fn settings_out_of_range_are_refused_before_anything_is_loaded() {
    let request = recorded_request();
    let bad = [
        (Request { task: prompts(&[]), ..request.clone() }, "prompt"),
        (Request { pictures_per_prompt: 0, ..request.clone() }, "pictures per prompt"),
        (Request { prior_steps: Some(0), ..request.clone() }, "prior steps"),
        (Request { decoder_steps: Some(1001), ..request.clone() }, "decoder steps"),
        (Request { super_res_steps: Some(1), ..request.clone() }, "super-resolution steps"),
        (Request { prior_guidance: Some(f32::NAN), ..request.clone() }, "prior guidance"),
        (Request { decoder_guidance: Some(f32::INFINITY), ..request.clone() }, "decoder guidance"),
    ];
    for (request, named) in bad {
        let error = pipeline(1).run(&request, &mut |event| panic!("{event:?}")).unwrap_err();
        assert!(matches!(&error, Error::Request { what, .. } if what == named), "{named}: {error}");
    }
    let wrong = Prompt::Tokens(unclip::model::text_encoder::Tokens { ids: vec![0], mask: vec![true], cut: None });
    let error = run_error(&Request { task: Task::Prompts(vec![wrong]), ..request });
    assert!(error.to_string().contains("77"), "{error}");
}

fn run_error(request: &Request) -> Error {
    pipeline(1).run(request, &mut |_| ControlFlow::Continue(())).unwrap_err()
}

#[test]
fn pictures_from_products_of_bf16_are_within_35_db_of_single_precision() {
    let prompts = ["a red apple", "a lighthouse at night", "a yellow duck on a lake"];
    let steps = [None; 3];
    let (images, _) = pictures::run(
        TRAINED,
        Box::new(Cpu::new(2).unwrap().with_precision(Precision::Bf16).unwrap()),
        &prompts,
        steps,
    );
    for (image, want) in images.iter().zip(run_on_cpu(TRAINED, &prompts, steps).0) {
        let found = decibels(image, &want);
        println!("{found:.1} dB");
        assert!(found > 35.0, "{found} dB");
        assert_ne!(image.pixels, want.pixels, "bf16 was not used");
    }
}
