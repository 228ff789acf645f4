//! Pictures of a tiny Stable unCLIP against diffusers': as `tests/golden/make_stable_unclip_pictures.py` recorded them.

use crate::families::kandinsky_pictures::{assert_recorded, refused};
use crate::support::golden::Recording;
use std::path::Path;
use unclip::backend::Backend;
use unclip::backend::cpu::Cpu;
use unclip::diffusion::Sampler;
use unclip::noise::Generators;
use unclip::pipeline::{Keep, Pipeline, Prompt, Request, Task, Trace};
use unclip::weights::{Checkpoint, LoadOptions};

const FOLDER: &str = "tests/golden/stable-unclip";

fn pipeline(backend: impl Backend + 'static) -> Pipeline {
    Pipeline::open(Checkpoint::open(FOLDER, LoadOptions::default()).unwrap(), Box::new(backend)).unwrap()
}

fn variation(recording: &Recording, seed: u64, steps: usize) -> Request {
    let task = Task::Variations(vec![recording.image("variation/given")]);
    Request { seed, size: Some([64; 2]), decoder_steps: Some(steps), ..Request::of(task) }
}

/// All samplers, levels of noise, sides that cannot be halved, one generator for all.
fn variations(recording: &Recording) -> [(&'static str, Request); 5] {
    let of = |seed, steps| variation(recording, seed, steps);
    let text = Some(Prompt::from("a red fox"));
    let said = Request { text: text.clone(), negative: Some("blurry".into()), noise_level: Some(300), ..of(4, 3) };
    let shared = Request { pictures_per_prompt: 2, generator: Generators::One, noise_level: Some(700), ..of(5, 3) };
    [
        ("variation", of(3, 6)),
        ("said", Request { sampler: Some(Sampler::Ddpm), ..said }),
        ("shared", Request { sampler: Some(Sampler::Ddim), ..shared }),
        ("odd", Request { sampler: Some(Sampler::Euler), size: Some([56, 72]), ..of(6, 3) }),
        ("unguided", Request { sampler: Some(Sampler::DpmSolver), decoder_guidance: Some(1.0), text, ..of(7, 4) }),
    ]
}

fn prompt() -> Request {
    Request {
        negative: Some("blurry".into()),
        pictures_per_prompt: 2,
        generator: Generators::One,
        seed: 8,
        size: Some([64; 2]),
        prior_steps: Some(4),
        decoder_steps: Some(3),
        ..Request::new("a red fox")
    }
}

#[test]
fn pictures_are_those_of_the_original() {
    let recording = Recording::stable_unclip_pictures();
    let pipeline = pipeline(Cpu::new(2).unwrap()).keep(Keep::Everything, None);
    assert_eq!(pipeline.warnings(), [""; 0]);
    for (name, request) in variations(&recording) {
        assert_recorded(&pipeline, &request, &recording, name);
    }
    assert_recorded(&pipeline, &prompt(), &recording, "prompt");
}

#[cfg(feature = "wgpu")]
#[test]
fn pictures_on_wgpu_are_those_of_the_original() {
    if let Some(adapter) = crate::support::adapters::storing(unclip::Dtype::F32) {
        let recording = Recording::stable_unclip_pictures();
        let pipeline = pipeline(adapter);
        for (name, request) in variations(&recording).into_iter().take(2) {
            assert_recorded(&pipeline, &request, &recording, name);
        }
    }
}

#[cfg(feature = "cuda-emulator")]
#[test]
fn pictures_on_the_emulator_are_those_of_the_original() {
    let recording = Recording::stable_unclip_pictures();
    let [.., (name, request)] = variations(&recording);
    assert_recorded(&pipeline(unclip::backend::cuda::Cuda::emulator()), &request, &recording, name);
}

/// A recipe holds all that makes a picture again, also one of several of one generator.
#[test]
fn a_recipe_makes_the_same_picture_again() {
    let recording = Recording::stable_unclip_pictures();
    let pipeline = pipeline(Cpu::new(2).unwrap());
    let [_, (_, said), (_, shared), ..] = variations(&recording);
    for (request, k) in [(&said, 0), (&shared, 1), (&prompt(), 1)] {
        let recipe = pipeline.recipe(request, k);
        let json = serde_json::to_string(&recipe).unwrap();
        let read: unclip::pipeline::Recipe = serde_json::from_str(&json).unwrap();
        assert_eq!(read, recipe);
        let again = match &request.task {
            Task::Variations(_) => read.apply(Request::variation(recording.image("variation/given"))),
            _ => read.request().unwrap(),
        };
        assert_eq!(pipeline.pictures(&again).unwrap()[0], pipeline.pictures(request).unwrap()[k]);
    }
    let recipe = pipeline.recipe(&variation(&recording, 0, 2), 0);
    assert_eq!((recipe.sampler, recipe.noise_level, recipe.prior_steps), (Some(Sampler::Pndm), Some(0), None));
    assert_eq!((recipe.decoder_guidance, recipe.width, recipe.height), (10.0, 64, 64));
}

/// Without steps of noise, noise of any kind is drawn for embedding and latents alone, and a trace says what was drawn.
#[test]
fn a_trace_has_every_call_of_the_model_and_other_noise_works_as_well() {
    let recording = Recording::stable_unclip_pictures();
    let pipeline = pipeline(Cpu::new(2).unwrap());
    let mut trace = Trace::on();
    let request = variation(&recording, 3, 2);
    let quiet = &mut |_: unclip::pipeline::Event<'_>| std::ops::ControlFlow::Continue(());
    pipeline.run_traced(&request, quiet, &mut trace).unwrap();
    let names: Vec<&str> = trace.names().collect();
    for name in ["labels", "decoder/timesteps", "decoder/step_02/guided", "decoder/step_02/latents", "image/u8"] {
        assert!(names.contains(&name), "{name}: {names:?}");
    }
    // Two steps of PLMS are three calls.
    assert!(!names.iter().any(|name| name.contains("step_03") || name.ends_with("/noise")), "{names:?}");
    let philox = Request { noise: unclip::noise::NoiseKind::Philox, ..request.clone() };
    let ddpm = Request { sampler: Some(Sampler::Ddpm), ..philox.clone() };
    for request in [philox, ddpm] {
        assert_ne!(pipeline.pictures(&request).unwrap(), pipeline.pictures(&variation(&recording, 3, 2)).unwrap());
    }
}

#[test]
fn settings_that_do_not_fit_are_refused_before_any_work() {
    let recording = Recording::stable_unclip_pictures();
    let pipeline = pipeline(Cpu::new(1).unwrap());
    let of = || variation(&recording, 0, 3);
    let given = recording.image("variation/given");
    let two = Task::Variations(vec![given.clone(), given]);
    for (request, reason) in [
        (Request { size: Some([60, 64]), ..of() }, "size 60: a side must be a multiple of 8, at most 8192"),
        (Request { noise_level: Some(1000), ..of() }, "noise level 1000: must be 0 to 999"),
        (Request { decoder_steps: Some(1000), ..of() }, "decoder steps 1000: must be 1 to 999"),
        (Request { super_res_steps: Some(7), ..of() }, "no super-resolution"),
        (Request { generator: Generators::One, task: two, ..of() }, "have a generator each"),
        (Request { prior_steps: Some(1001), ..prompt() }, "prior steps 1001: must be 1 to 1000"),
    ] {
        let message = refused(pipeline.route(&request));
        assert!(message.contains(reason), "{message}");
    }
}

/// The checkpoint after a change, in a folder of its own.
fn changed(change: impl FnOnce(&Path)) -> Result<(tempfile::TempDir, Pipeline), String> {
    let folder = tempfile::tempdir().unwrap();
    copy(Path::new(FOLDER), folder.path());
    change(folder.path());
    let checkpoint = Checkpoint::open(folder.path(), LoadOptions::default()).unwrap();
    let opened = Pipeline::open(checkpoint, Box::new(Cpu::new(1).unwrap()));
    opened.map(|pipeline| (folder, pipeline)).map_err(|error| error.to_string())
}

fn replace(file: &Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(file).unwrap();
    assert!(text.contains(from), "{text}");
    std::fs::write(file, text.replace(from, to)).unwrap();
}

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            std::fs::create_dir(&target).unwrap();
            copy(&path, &target);
        } else {
            std::fs::copy(path, target).unwrap();
        }
    }
}

#[test]
fn components_that_do_not_belong_together_are_named() {
    for (file, from, to, reason) in [
        (
            "image_normalizer/config.json",
            "16",
            "17",
            "image_encoder/config.json: projection_dim is 16, but the image normaliser's embedding_dim is 17",
        ),
        ("unet/config.json", r#""cross_attention_dim": 24"#, r#""cross_attention_dim": 23"#, "hidden_size is 24"),
        (
            "unet/config.json",
            r#"input_dim": 32"#,
            r#"input_dim": 31"#,
            "twice the image normaliser's embedding_dim is 32",
        ),
        ("vae/config.json", "AutoencoderKL", "VQModel", "expected AutoencoderKL"),
        ("scheduler/scheduler_config.json", "PNDMScheduler", "HeunScheduler", r#"_class_name is "HeunScheduler""#),
    ] {
        let opened = changed(|folder| replace(&folder.join(file), from, to));
        let error = opened.err().unwrap_or_else(|| panic!("{file} was accepted"));
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn a_folder_of_variations_needs_no_prior_and_says_so_to_prompts() {
    let variations = changed(|folder| {
        let index = folder.join("model_index.json");
        replace(&index, r#""StableUnCLIPPipeline""#, r#""StableUnCLIPImg2ImgPipeline""#);
        replace(&index, r#""prior""#, r#""_prior""#);
        std::fs::remove_dir_all(folder.join("prior")).unwrap();
    });
    let (_folder, variations) = variations.unwrap();
    assert!(variations.route(&variation(&Recording::stable_unclip_pictures(), 0, 3)).is_ok());
    let message = refused(variations.route(&prompt()));
    assert!(message.contains("pictures from prompts") && message.contains("prior"), "{message}");
}
