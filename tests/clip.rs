//! Texts and pictures in CLIP's space against the original: logits of a CLIP alone, and of checkpoints that have one.
#![cfg(all(feature = "tokenizer", feature = "png"))]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use support::files::copy_folder;
use support::golden::{MODEL, Recording};
use unclip::backend::Backend;
use unclip::backend::cpu::Cpu;
use unclip::image::Image;
use unclip::pipeline::{Classify, Event, Pipeline, Request, cosine, with_prior};
use unclip::weights::{Checkpoint, LoadOptions};
use unclip::{Error, Result};

fn golden(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(folder)
}

fn open(folder: impl AsRef<Path>) -> Checkpoint {
    Checkpoint::open(folder, LoadOptions::default()).unwrap()
}

fn on_cpu(folder: impl AsRef<Path>) -> Result<Pipeline> {
    Pipeline::open(Checkpoint::open(folder, LoadOptions::default())?, Box::new(Cpu::new(2)?))
}

fn kandinsky() -> Checkpoint {
    with_prior(open(golden("kandinsky-2-2/decoder")), open(golden("kandinsky-2-2/prior"))).unwrap()
}

fn go_on(_: Event<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn recorded(name: &str) -> Vec<String> {
    serde_json::from_slice(&Recording::clip().text(name)).unwrap()
}

fn pictures() -> Vec<Image> {
    (0..3).map(|k| Recording::clip().image(&format!("picture/{k}"))).collect()
}

fn classify() -> Classify {
    Classify::new(recorded("labels")).templates(recorded("templates"))
}

/// Logits by label, of each picture.
fn logits(pipeline: &Pipeline, classify: &Classify) -> Vec<Vec<f32>> {
    let classifier = pipeline.classifier(classify, &mut go_on).unwrap();
    let scores = pipeline.classify(&classifier, &pictures(), &mut go_on).unwrap();
    let by_label = |scores: &Vec<unclip::pipeline::Score>| {
        let mut scores = scores.clone();
        scores.sort_by_key(|score| score.label);
        scores.iter().map(|score| score.logit).collect()
    };
    scores.iter().map(by_label).collect()
}

#[track_caller]
fn assert_near(got: &[Vec<f32>], want: &str, tolerance: f32) {
    let (shape, want) = Recording::clip().get(want);
    assert_eq!([got.len(), got[0].len()], shape[..]);
    let worst = got.iter().flatten().zip(&want).map(|(g, w)| (g - w).abs()).fold(0.0, f32::max);
    println!("{worst:.1e}");
    assert!(worst <= tolerance, "off by {worst:e}: {got:?} instead of {want:?}");
}

fn backends() -> Vec<Box<dyn Backend>> {
    #[cfg_attr(not(any(feature = "wgpu", feature = "cuda-emulator")), expect(unused_mut, reason = "nothing is added"))]
    let mut all: Vec<Box<dyn Backend>> = vec![Box::new(Cpu::new(2).unwrap())];
    #[cfg(feature = "wgpu")]
    all.extend(support::adapters::storing(unclip::Dtype::F32).map(|wgpu| Box::new(wgpu) as Box<dyn Backend>));
    #[cfg(feature = "cuda-emulator")]
    all.push(Box::new(unclip::backend::cuda::Cuda::emulator()));
    all
}

#[test]
fn logits_are_those_of_the_original_on_every_back_end() {
    for backend in backends() {
        let pipeline = Pipeline::open(open(golden("clip")), backend).unwrap();
        assert_near(&logits(&pipeline, &classify()), "clip/logits", 1e-4);
        let one = Classify::new(recorded("labels")).templates(&recorded("templates")[..1]);
        assert_near(&logits(&pipeline, &one), "clip/logits_of_one", 1e-4);
        for (name, checkpoint) in [("tiny", open(MODEL)), ("kandinsky", kandinsky())] {
            let backend = if pipeline.backend().name().contains("cpu") { Cpu::new(2).unwrap() } else { continue };
            let pipeline = Pipeline::open(checkpoint, Box::new(backend)).unwrap();
            assert_near(&logits(&pipeline, &classify()), &format!("{name}/logits"), 1e-4);
        }
    }
}

#[test]
fn the_scale_is_the_checkpoints_or_the_callers_or_clips() {
    let scale = |pipeline: &Pipeline, classify: &Classify| {
        let classifier = pipeline.classifier(classify, &mut go_on).unwrap();
        (classifier.scale(), classifier.has_own_scale())
    };
    let clip = on_cpu(golden("clip")).unwrap();
    let (own, is_own) = scale(&clip, &classify());
    assert!((own - 3.2f32.exp()).abs() < 0.02 && is_own, "{own}");
    assert_eq!(scale(&clip, &classify().scale(7.0)), (7.0, true));
    assert_eq!(scale(&on_cpu(MODEL).unwrap(), &classify()), (100.0, false));
}

#[test]
fn embeddings_are_those_of_the_original_and_not_normalised() {
    let clip = on_cpu(golden("clip")).unwrap();
    let texts: Vec<_> = recorded("labels").iter().map(|label| format!("a photo of {label}").as_str().into()).collect();
    assert_near(&clip.embed_texts(&texts, &mut go_on).unwrap(), "clip/texts", 1e-4);
    let embeddings = clip.embed_pictures(&pictures(), &mut go_on).unwrap();
    assert_near(&embeddings, "clip/pictures", 1e-4);
    assert_near(&on_cpu(MODEL).unwrap().embed_pictures(&pictures(), &mut go_on).unwrap(), "tiny/pictures", 1e-4);
    assert!((cosine(&embeddings[0], &embeddings[0]) - 1.0).abs() < 1e-6);
    assert_eq!(clip.embed_pictures(&[], &mut go_on).unwrap().len(), 0);
}

#[test]
fn many_pictures_give_what_each_gives_alone() {
    let clip = on_cpu(golden("clip")).unwrap().memory_limit(1);
    let all = clip.embed_pictures(&pictures(), &mut go_on).unwrap();
    for (picture, together) in pictures().into_iter().zip(all) {
        assert_eq!(clip.embed_pictures(&[picture], &mut go_on).unwrap(), [together]);
    }
}

#[test]
fn encoding_ends_when_its_observer_wants_to() {
    let clip = on_cpu(golden("clip")).unwrap();
    let stopped = clip.embed_pictures(&pictures(), &mut |_| ControlFlow::Break(()));
    assert!(matches!(stopped, Err(Error::Cancelled)), "{stopped:?}");
}

#[test]
fn a_clip_in_the_hubs_cache_and_with_a_processor_of_transformers_5_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let snapshot = dir.path().join("models--org--clip/snapshots/abc");
    copy_folder(&golden("clip"), &snapshot);
    let preprocessor = fs::read_to_string(snapshot.join("preprocessor_config.json")).unwrap();
    let whole = format!("{{\"image_processor\": {preprocessor}, \"processor_class\": \"CLIPProcessor\"}}");
    fs::write(snapshot.join("processor_config.json"), whole).unwrap();
    fs::remove_file(snapshot.join("preprocessor_config.json")).unwrap();
    let pipeline = on_cpu(dir.path().join("models--org--clip")).unwrap();
    assert_eq!(pipeline.checkpoint().name(), "org/clip");
    assert_near(&pipeline.embed_pictures(&pictures(), &mut go_on).unwrap(), "clip/pictures", 1e-4);
}

#[test]
fn what_a_clip_lacks_is_named_and_pictures_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let clip = dir.path().join("clip");
    copy_folder(&golden("clip"), &clip);
    fs::remove_file(clip.join("preprocessor_config.json")).unwrap();
    fs::remove_file(clip.join("vocab.json")).unwrap();
    let error = on_cpu(&clip).err().unwrap().to_string();
    assert!(error.contains("missing from the checkpoint: feature_extractor, tokenizer"), "{error}");
    let error = on_cpu(golden("clip")).unwrap().pictures(&Request::new("a fox")).unwrap_err().to_string();
    assert!(error.starts_with("not supported: ") && error.contains("a CLIP alone"), "{error}");
    // Stable unCLIP's own text encoder has no projection; it embeds pictures all the same.
    let stable = dir.path().join("stable");
    copy_folder(&golden("stable-unclip"), &stable);
    for part in ["prior", "prior_scheduler", "prior_text_encoder", "prior_tokenizer"] {
        fs::remove_dir_all(stable.join(part)).unwrap();
    }
    let index = r#"{"_class_name": "StableUnCLIPImg2ImgPipeline"}"#;
    fs::write(stable.join("model_index.json"), index).unwrap();
    let stable = on_cpu(&stable).unwrap();
    let error = stable.classifier(&classify(), &mut go_on).unwrap_err().to_string();
    assert!(error.contains("missing from the checkpoint: prior") && error.contains("has no projection"), "{error}");
    assert_eq!(stable.embed_pictures(&pictures(), &mut go_on).unwrap().len(), 3);
    // Variations alone need no image encoder to open.
    let karlo = dir.path().join("karlo");
    copy_folder(Path::new(MODEL), &karlo);
    fs::remove_dir_all(karlo.join("image_encoder")).unwrap();
    let error = on_cpu(&karlo).unwrap().embed_pictures(&pictures(), &mut go_on).unwrap_err().to_string();
    assert!(error.contains("image_encoder; needed for embeddings of pictures"), "{error}");
}
