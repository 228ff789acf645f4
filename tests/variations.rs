//! Variations of a picture against the original pipeline: how the picture is read and prepared, and what comes of it.
#![cfg(all(feature = "tokenizer", feature = "png"))]

mod support;

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use support::files::copy_folder;
use support::golden::{MODEL, Recording, assert_recorded, channels_last};
use unclip::backend::cpu::Cpu;
use unclip::image::{Alpha, Image, ReadOptions};
use unclip::pipeline::{Event, Pipeline, Request, Task, Trace};
use unclip::preprocess::Preprocessor;
use unclip::weights::config::{self, Configured};
use unclip::weights::{Checkpoint, LoadOptions};
use unclip::{Error, Result};

fn open(model: impl AsRef<Path>) -> Result<Pipeline> {
    Pipeline::open(Checkpoint::open(model, LoadOptions::default())?, Box::new(Cpu::new(2)?))
}

fn request() -> Request {
    Request { pictures_per_prompt: 2, seed: 7, ..Request::variation(Recording::variation().image("input")) }
}

fn short() -> Request {
    Request { decoder_steps: Some(3), super_res_steps: Some(2), ..request() }
}

fn run(pipeline: &Pipeline, request: &Request) -> Result<Vec<Image>> {
    pipeline.run(request, &mut |_| ControlFlow::Continue(()))
}

#[test]
fn pictures_are_prepared_to_the_bit_as_the_original_does() {
    let recording = Recording::variation();
    let preprocessor =
        Preprocessor::read(&Checkpoint::open(MODEL, LoadOptions::default()).unwrap(), "feature_extractor").unwrap();
    for (image, prepared) in [("input".to_owned(), "image_encoder/pixel_values".to_owned())]
        .into_iter()
        .chain((0..6).map(|k| (format!("preprocess/{k}/image"), format!("preprocess/{k}/pixel_values"))))
    {
        let (shape, want) = recording.get(&prepared);
        let got = preprocessor.prepare(&recording.image(&image)).unwrap();
        assert!(got == channels_last(&shape, &want), "{image}");
    }
}

/// As `{height, width}`, `[height, width]`, with a longest edge, or so small that the crop has a black border.
#[test]
fn every_spelling_of_a_size_is_resized_to_the_bit_as_the_original_does() {
    let recording = Recording::configurations();
    let mut cases = 0;
    while recording.tensors().tensor(&format!("sizes/{cases}/config")).is_ok() {
        let text = recording.text(&format!("sizes/{cases}/config"));
        let what = String::from_utf8_lossy(&text);
        let preprocessor: Configured<Preprocessor> = config::read(Path::new("c.json"), &text).expect(&what);
        assert_eq!(preprocessor.warnings(), [""; 0], "{what}");
        let (shape, want) = recording.get(&format!("sizes/{cases}/pixel_values"));
        let got = preprocessor.prepare(&recording.image(&format!("sizes/{cases}/image"))).unwrap();
        assert!(got == channels_last(&shape, &want), "{what}");
        cases += 1;
    }
    assert_eq!(cases, 18);
}

#[test]
fn a_size_that_the_original_cannot_resize_to_is_refused_with_its_key() {
    for size in [
        r#"{"longest_edge": 30}"#,
        r#"{"shortest_edge": 28, "longest_edge": "x"}"#,
        r#"{"height": 28}"#,
        r#"{"max_height": 28, "max_width": 28}"#,
        "[28]",
        "[28, 28, 3]",
        "0",
        "1e9",
        "\"big\"",
    ] {
        let read = |text: String| {
            let read: Result<Configured<Preprocessor>> = config::read(Path::new("c.json"), text.as_bytes());
            read.expect_err(&text).to_string()
        };
        let message = read(format!(r#"{{"size": {size}, "crop_size": 8}}"#));
        assert!(message.contains("c.json: size is ") && message.contains("this engine knows"), "{message}");
        let message = read(format!(r#"{{"size": 8, "crop_size": {size}}}"#));
        assert!(message.contains("c.json: crop_size is "), "{message}");
    }
    let flat = Image { width: 4000, height: 1, pixels: vec![7; 12_000] };
    let text = br#"{"size": {"shortest_edge": 10, "longest_edge": 20}, "crop_size": 8}"#;
    let preprocessor: Configured<Preprocessor> = config::read(Path::new("c.json"), text).unwrap();
    assert!(preprocessor.prepare(&flat).unwrap_err().to_string().contains("4000x1 pixels"));
}

#[test]
fn a_long_thin_picture_needs_no_more_than_its_middle() {
    let preprocessor =
        Preprocessor::read(&Checkpoint::open(MODEL, LoadOptions::default()).unwrap(), "feature_extractor").unwrap();
    let thin = Image { width: 1, height: 1 << 24, pixels: vec![7; 3 << 24] };
    assert_eq!(preprocessor.prepare(&thin).unwrap().len(), 28 * 28 * 3);
}

#[test]
fn pngs_of_all_kinds_are_read_as_pillow_reads_them() {
    let recording = Recording::variation();
    let tensors = recording.tensors();
    let kinds: Vec<&str> = tensors.names().into_iter().filter_map(|name| name.strip_suffix("/file")).collect();
    assert_eq!(kinds.len(), 14);
    // Recorded by `load_image`, which drops transparency.
    let mut options = ReadOptions::default();
    options.alpha = Alpha::Drop;
    for kind in kinds {
        let file = tensors.tensor(&format!("{kind}/file")).unwrap();
        assert_eq!(Image::decode(file.data(), &options).unwrap(), recording.image(&format!("{kind}/rgb")), "{kind}");
    }
}

#[test]
fn every_recorded_tensor_of_the_original_variations_is_reproduced() {
    let mut trace = Trace::on();
    let pipeline = open(MODEL).unwrap();
    let images = pipeline.run_traced(&request(), &mut |_| ControlFlow::Continue(()), &mut trace).unwrap();
    assert_recorded(&Recording::variation(), &trace, &images, 1e-3);
}

#[test]
fn each_variation_can_be_made_again_alone_and_the_picture_makes_the_difference() {
    let pipeline = open(MODEL).unwrap();
    let mut both = short();
    let other = Image { width: 30, height: 30, pixels: (0..2700).map(|i| i as u8).collect() };
    let given = Recording::variation().image("input");
    both.task = Task::Variations(vec![given.clone(), other.clone()]);
    let all = run(&pipeline, &both).unwrap();
    assert_eq!(all.len(), 4);
    let alone = Request { task: Task::Variations(vec![other]), seed: 10, pictures_per_prompt: 1, ..short() };
    assert_eq!(run(&pipeline, &alone).unwrap()[0], all[3]);
    let of_first = Request { task: Task::Variations(vec![given]), ..alone };
    assert_ne!(run(&pipeline, &of_first).unwrap()[0], all[3]);
}

#[test]
fn a_checkpoint_for_variations_needs_no_prior_and_makes_the_same_pictures() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    copy_folder(Path::new(MODEL), &model);
    for name in ["prior", "prior_scheduler"] {
        fs::remove_dir_all(model.join(name)).unwrap();
    }
    let index = fs::read_to_string(model.join("model_index.json")).unwrap();
    fs::write(model.join("model_index.json"), index.replace("UnCLIPPipeline", "UnCLIPImageVariationPipeline")).unwrap();
    let pipeline = open(&model).unwrap();
    assert_eq!(run(&pipeline, &short()).unwrap(), run(&open(MODEL).unwrap(), &short()).unwrap());
    let error = run(&pipeline, &Request::new("a cat")).unwrap_err();
    assert!(
        matches!(error, Error::Config { .. }) && error.to_string().contains("missing from the checkpoint: prior"),
        "{error}"
    );
    fs::remove_dir_all(model.join("image_encoder")).unwrap();
    let error = open(&model).err().expect("nothing left to run");
    assert!(error.to_string().ends_with("model: missing from the checkpoint: image_encoder"), "{error}");
}

#[test]
fn what_is_missing_or_not_implemented_is_named_before_anything_is_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    copy_folder(Path::new(MODEL), &model);
    let refused = |request: &Request, parts: &[&str]| {
        let error = open(&model).unwrap().run(request, &mut |event| panic!("{event:?}")).unwrap_err();
        assert!(parts.iter().all(|p| error.to_string().contains(p)), "{error}");
        error
    };
    let error = refused(&Request { prior_steps: Some(9), ..short() }, &["prior steps", "picture"]);
    assert!(matches!(error, Error::Request { .. }), "{error:?}");
    let refused = |parts: &[&str]| {
        let error = refused(&short(), parts);
        assert!(matches!(error, Error::Config { .. }), "{error:?}");
    };
    let settings = model.join("feature_extractor/preprocessor_config.json");
    let good = fs::read_to_string(&settings).unwrap();
    for (from, to, part) in [
        ("\"resample\": 3", "\"resample\": 2", "resample is 2"),
        ("\"do_center_crop\": true", "\"do_center_crop\": false", "do_center_crop is false"),
        ("\"shortest_edge\": 28", "\"longest_edge\": 28", "size is {\"longest_edge\":28}"),
        ("\"height\": 28", "\"height\": 30", "crop_size"),
        ("0.26862954", "0", "image_std"),
    ] {
        assert!(good.contains(from), "{from}");
        fs::write(&settings, good.replace(from, to)).unwrap();
        refused(&["preprocessor_config.json", part]);
    }
    fs::write(&settings, good.replace(": 28", ": 35")).unwrap();
    refused(&["image_encoder", "image_size is 28", "35"]);
    fs::remove_dir_all(model.join("feature_extractor")).unwrap();
    refused(&["model: missing from the checkpoint: feature_extractor", "variations"]);
    // Prompts need none of it.
    assert!(
        run(
            &open(&model).unwrap(),
            &Request { prior_steps: Some(2), task: Task::Prompts(vec!["a".into()]), ..short() }
        )
        .is_ok()
    );
}

#[test]
fn a_picture_that_is_none_is_refused() {
    let empty = Image { width: 0, height: 3, pixels: Vec::new() };
    let short_of_pixels = Image { width: 2, height: 2, pixels: vec![0; 11] };
    for image in [empty, short_of_pixels] {
        let error = run(&open(MODEL).unwrap(), &Request::variation(image)).unwrap_err();
        assert!(matches!(&error, Error::Request { what, .. } if what == "image"), "{error}");
    }
}

#[test]
fn the_image_encoder_takes_the_place_of_the_prior() {
    let mut stages = Vec::new();
    let observe = &mut |event: Event<'_>| {
        if let Event::Begin { stage, .. } = event {
            stages.push(stage.name());
        }
        ControlFlow::Continue(())
    };
    open(MODEL).unwrap().run(&short(), observe).unwrap();
    assert_eq!(stages, ["text_encoder", "image_encoder", "text_proj", "decoder", "super_res_first", "super_res_last"]);
}
