//! Pictures of a tiny Kandinsky 2.2 against diffusers': as `tests/golden/make_kandinsky_pictures.py` recorded them.

use crate::support::golden::Recording;
use std::path::Path;
use unclip::backend::Backend;
use unclip::backend::cpu::Cpu;
use unclip::noise::Generators;
use unclip::pipeline::{Keep, Pipeline, Prompt, Request, Task, lacks_prior, with_prior};
use unclip::weights::{Checkpoint, LoadOptions};
use unclip::{Error, Result};

pub(super) const FOLDER: &str = "tests/golden/kandinsky-2-2";
/// Pictures are rounded to bytes, in which latents that differ in their last bits may fall to either side.
const TOLERANCE: u8 = 2;

/// A pipeline, and the folder from which it reads.
pub(super) struct Opened {
    pub pipeline: Pipeline,
    pub folder: tempfile::TempDir,
}

impl std::ops::Deref for Opened {
    type Target = Pipeline;

    fn deref(&self) -> &Pipeline {
        &self.pipeline
    }
}

/// A checkpoint's folder with this `model_index.json` and copies of these components.
pub(super) fn assembled(index: &str, parts: &[String]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for from in parts.iter().map(Path::new) {
        let to = dir.path().join(from.file_name().unwrap());
        std::fs::create_dir(&to).unwrap();
        for file in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
            std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
        }
    }
    std::fs::copy(index, dir.path().join("model_index.json")).unwrap();
    dir
}

pub(super) fn open(part: &str) -> Checkpoint {
    Checkpoint::open(format!("{FOLDER}/{part}"), LoadOptions::default()).unwrap()
}

fn pipeline(backend: impl Backend + 'static) -> Pipeline {
    Pipeline::open(with_prior(open("decoder"), open("prior")).unwrap(), Box::new(backend)).unwrap()
}

fn request(task: Task, seed: u64, size: [usize; 2]) -> Request {
    Request { seed, size: Some(size), prior_steps: None, decoder_steps: Some(3), ..Request::of(task) }
}

pub(super) fn prompts(texts: &[&str], seed: u64, size: [usize; 2]) -> Request {
    let prompts = texts.iter().map(|&text| Prompt::from(text)).collect();
    Request { prior_steps: Some(4), ..request(Task::Prompts(prompts), seed, size) }
}

#[track_caller]
pub(super) fn assert_recorded(pipeline: &Pipeline, request: &Request, recording: &Recording, name: &str) {
    let (got, want) = (pipeline.pictures(request).unwrap(), recording.images(&format!("{name}/pictures")));
    assert_eq!(got.len(), want.len(), "{name}");
    for (got, want) in got.iter().zip(&want) {
        assert_eq!((got.width, got.height), (want.width, want.height), "{name}");
        let worst = got.pixels.iter().zip(&want.pixels).map(|(&a, &b)| a.abs_diff(b)).max();
        println!("{name} on {}: at most {worst:?} of 255", pipeline.backend().name());
        assert!(worst <= Some(TOLERANCE), "{name}: off by {worst:?} of 255");
    }
}

#[test]
fn pictures_are_those_of_the_original() {
    let recording = Recording::kandinsky_pictures();
    let pipeline = pipeline(Cpu::new(2).unwrap());
    let check = |request: Request, name: &str| assert_recorded(&pipeline, &request, &recording, name);
    check(prompts(&["a red fox"], 3, [128, 64]), "prompt");
    let negative = Some(Prompt::from("blurry"));
    check(Request { negative, ..prompts(&["a red fox"], 3, [64; 2]) }, "negative");
    // Both prompts and their negative ones take their noise from one generator.
    let (negative, generator) = (Some(Prompt::from("a cat")), Generators::One);
    check(Request { negative, generator, ..prompts(&["a fox", "two dogs"], 9, [64; 2]) }, "one");
    let (prior_guidance, decoder_guidance) = (Some(1.0), Some(1.0));
    check(Request { prior_guidance, decoder_guidance, ..prompts(&["a red fox"], 5, [64; 2]) }, "unguided");
    check(request(Task::Variations(vec![recording.image("variation/given")]), 7, [64; 2]), "variation");
}

/// Sides are rounded up, as the original does.
#[test]
fn a_size_is_rounded_up_with_a_line_and_a_second_run_loads_nothing() {
    let recording = Recording::kandinsky_pictures();
    let pipeline = pipeline(Cpu::new(2).unwrap()).keep(Keep::Everything, None);
    let request = prompts(&["a red fox"], 3, [100, 50]);
    let mut lines = Vec::new();
    let images = pipeline.run(&request, &mut |event| {
        if let unclip::pipeline::Event::Warning(line) = event {
            lines.push(line.to_owned());
        }
        std::ops::ControlFlow::Continue(())
    });
    assert_eq!(images.unwrap(), pipeline.pictures(&prompts(&["a red fox"], 3, [128, 64])).unwrap());
    assert_eq!(lines, ["100x50 pixels are rounded up to 128x64"]);
    let before = pipeline.counts();
    assert_recorded(&pipeline, &prompts(&["a red fox"], 3, [128, 64]), &recording, "prompt");
    assert_eq!(pipeline.counts(), before);
    assert_eq!(pipeline.recipe(&request, 0).request().unwrap().size, Some([128, 64]));
}

/// The unconditional image embedding is a constant of the checkpoint.
#[test]
fn clips_mean_colour_is_encoded_once_on_each_device() {
    let recording = Recording::kandinsky_pictures();
    let pipeline = pipeline(Cpu::new(2).unwrap()).keep(Keep::Nothing, None);
    let request = prompts(&["a red fox"], 3, [128, 64]);
    let encodes = |pipeline: &Pipeline| {
        pipeline.route(&request).unwrap().iter().any(|(stage, _)| stage.name() == "prior_image_encoder")
    };
    assert!(encodes(&pipeline));
    assert_recorded(&pipeline, &request, &recording, "prompt");
    let all = pipeline.counts().loads;
    assert!(!encodes(&pipeline));
    assert_recorded(&pipeline, &request, &recording, "prompt");
    assert_eq!(pipeline.counts().loads, 2 * all - 1);
    assert!(encodes(&pipeline.with_backend(Box::new(Cpu::new(1).unwrap()))));
}

#[cfg(feature = "wgpu")]
#[test]
fn pictures_on_wgpu_are_those_of_the_original() {
    if let Some(adapter) = crate::support::adapters::storing(unclip::Dtype::F32) {
        let request = prompts(&["a red fox"], 3, [128, 64]);
        assert_recorded(&pipeline(adapter), &request, &Recording::kandinsky_pictures(), "prompt");
    }
}

#[cfg(feature = "cuda-emulator")]
#[test]
fn pictures_on_the_emulator_are_those_of_the_original() {
    let request = Request { negative: Some(Prompt::from("blurry")), ..prompts(&["a red fox"], 3, [64; 2]) };
    let pipeline = pipeline(unclip::backend::cuda::Cuda::emulator());
    assert_recorded(&pipeline, &request, &Recording::kandinsky_pictures(), "negative");
}

pub(super) fn refused<T>(result: Result<T>) -> String {
    match result {
        Ok(_) => panic!("nothing was refused"),
        Err(Error::Config { path, reason }) => format!("{}: {reason}", path.display()),
        Err(other) => other.to_string(),
    }
}

#[test]
fn folders_and_settings_that_do_not_fit_are_refused_before_any_work() {
    assert!(lacks_prior(&open("decoder")) && !lacks_prior(&open("prior")));
    let cpu = || Box::new(Cpu::new(1).unwrap());
    let alone = refused(Pipeline::open(open("decoder"), cpu()));
    assert!(alone.contains("prior_prior") && alone.contains("--prior"), "{alone}");
    let prior = refused(Pipeline::open(open("prior"), cpu()));
    assert!(prior.contains("this folder is Kandinsky's prior"), "{prior}");
    let twice = refused(with_prior(open("decoder"), open("decoder")));
    assert!(twice.contains("expected KandinskyV22PriorPipeline"), "{twice}");
    let pipeline = pipeline(Cpu::new(1).unwrap());
    let prompt = || prompts(&["a"], 0, [64; 2]);
    for (request, reason) in [
        (Request { size: Some([0, 64]), ..prompt() }, "size 0: a side must be 1 to 8192 pixels"),
        (Request { super_res_steps: Some(7), ..prompt() }, "no super-resolution"),
        (Request { decoder_steps: Some(1000), ..prompt() }, "decoder steps 1000: must be 1 to 999"),
        (Request { prior_steps: Some(1), ..prompt() }, "prior steps 1: must be 2 to 1000"),
    ] {
        let message = refused(pipeline.route(&request));
        assert!(message.contains(reason), "{message}");
    }
}
