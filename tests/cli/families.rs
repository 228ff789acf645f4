//! Checkpoints of other families than Karlo's on the command line.

use super::{assert_refused, copy_folder, engine, names, text};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const STEPS: [&str; 4] = ["--prior-steps", "2", "--decoder-steps", "2"];

/// What a command says that must succeed.
#[track_caller]
fn said(dir: &Path, arguments: &[&str]) -> String {
    let output = engine(dir, arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

fn kandinsky(part: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/kandinsky-2-2").join(part)
}

#[test]
fn kandinskys_prior_is_found_beside_the_decoder_and_a_picture_says_its_size() {
    let dir = TempDir::new().unwrap();
    let decoder = kandinsky("decoder");
    let model = ["run", "--device", "cpu", "-m", decoder.to_str().unwrap()];
    said(dir.path(), &[&model[..], &STEPS, &["-p", "a fox", "--size", "128x64", "-o", "a.png"]].concat());
    // The same settings again, from the picture; and with the prior named.
    said(dir.path(), &[&model[..], &["--from", "a.png", "-o", "b.png"]].concat());
    let prior = kandinsky("prior");
    let named = ["--prior", prior.to_str().unwrap(), "--from", "a.png", "-o", "c.png"];
    said(dir.path(), &[&model[..], &named].concat());
    let bytes = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
    assert!(bytes("a.png") == bytes("b.png") && bytes("a.png") == bytes("c.png"));
    let shown = said(dir.path(), &["inspect", "a.png"]);
    assert!(shown.contains("width             128") && shown.contains("height            64"), "{shown}");
    assert!(!shown.contains("super"), "{shown}");
}

#[test]
fn inspect_looks_at_decoder_and_prior_together_and_at_a_prior_alone() {
    let dir = TempDir::new().unwrap();
    let shown = said(dir.path(), &["inspect", kandinsky("decoder").to_str().unwrap()]);
    for name in ["movq", "unet", "prior_prior", "prior_text_encoder", "prior_image_encoder"] {
        assert!(shown.contains(name) && !shown.contains("would not load"), "{shown}");
    }
    said(dir.path(), &["inspect", kandinsky("prior").to_str().unwrap()]);
}

#[test]
fn a_prior_in_the_wrong_place_is_named_in_one_line() {
    let dir = TempDir::new().unwrap();
    let (decoder, prior) = (kandinsky("decoder"), kandinsky("prior"));
    let [decoder, prior] = [&decoder, &prior].map(|path| path.to_str().unwrap());
    for (arguments, code, reason) in [
        (&["-m", prior][..], 3, "this folder is Kandinsky's prior"),
        (&["-m", decoder, "--prior", decoder], 3, "expected KandinskyV22PriorPipeline"),
        (&["-m", "built-in", "--prior", prior], 2, "needs no prior of another folder"),
        (&["-m", decoder, "--super-res-steps", "7"], 2, "no super-resolution"),
    ] {
        let all = [&["run", "--device", "cpu", "-p", "a"], arguments].concat();
        assert_refused(dir.path(), &engine(dir.path(), &all), code, &[reason]);
    }
    assert_eq!(names(dir.path()), [""; 0]);
}

/// A picture that a text changes, and the same from its settings.
#[test]
fn kandinskys_prior_begins_from_a_picture_with_a_prompt_beside_it() {
    let dir = TempDir::new().unwrap();
    let decoder = kandinsky("decoder");
    let model = ["run", "--device", "cpu", "-m", decoder.to_str().unwrap()];
    let size = ["--size", "64"];
    said(dir.path(), &[&model[..], &STEPS, &size, &["-p", "a fox", "-o", "fox.png"]].concat());
    let given = ["-i", "fox.png"];
    let changed = ["-p", "two dogs", "--prior-strength", "0.75", "--prior-steps", "4", "--decoder-steps", "2"];
    said(dir.path(), &[&model[..], &size, &given, &changed, &["-o", "dogs.png"]].concat());
    said(dir.path(), &[&model[..], &["--from", "dogs.png", "-o", "again.png"]].concat());
    let bytes = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
    assert!(bytes("dogs.png") == bytes("again.png") && bytes("dogs.png") != bytes("fox.png"));
    let shown = said(dir.path(), &["inspect", "dogs.png"]);
    assert!(shown.contains("two dogs") && shown.contains("0.75"), "{shown}");
    for (arguments, reason) in [
        (&["-p", "a", "--prior-strength", "0.5"][..], "--prior-strength 0.5: is of use with a picture and a prompt"),
        (&["-i", "fox.png", "--prior-steps", "4"], "--prior-steps cannot be combined with --image"),
        (&["-i", "fox.png", "-p", "a", "--prior-strength", "2"], "--prior-strength 2: must be above 0 and at most 1"),
    ] {
        let output = engine(dir.path(), &[&model[..], arguments, &["-o", "no.png"]].concat());
        let message = text(&output.stderr);
        assert!(output.status.code() == Some(2) && message.contains(reason), "{message}");
    }
}

/// Kandinsky 2.1's tiny decoder with the autoencoder of 2.2's, and its prior beside it.
fn older(dir: &Path) -> String {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    for part in ["decoder", "prior"] {
        copy_folder(&golden.join("kandinsky-2-1").join(part), &dir.join(part));
    }
    copy_folder(&golden.join("kandinsky-2-2/decoder/movq"), &dir.join("decoder/movq"));
    dir.join("decoder").to_str().unwrap().to_owned()
}

#[test]
fn kandinsky_2_1_is_run_inspected_and_planned_and_takes_no_prior_of_2_2() {
    let dir = TempDir::new().unwrap();
    let models = TempDir::new().unwrap();
    let model = older(models.path());
    let run = ["run", "--device", "cpu", "-m", &model];
    let ask = ["-p", "a red fox", "-n", "blurry", "--size", "64", "-o", "a.png"];
    said(dir.path(), &[&run[..], &STEPS, &ask].concat());
    said(dir.path(), &[&run[..], &["--from", "a.png", "-o", "b.png"]].concat());
    let bytes = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
    assert!(bytes("a.png") == bytes("b.png"));
    let shown = said(dir.path(), &["inspect", &model]);
    for part in ["prior_prior", "text_encoder", "tokenizer", "unet", "movq"] {
        assert!(shown.contains(part) && !shown.contains("would not load") && !shown.contains("not used"), "{shown}");
    }
    for (stage, part) in [("text_encoder", "LinearTransformation"), ("unet", "text_proj"), ("movq_encoder", "conv2d")] {
        let plan = said(dir.path(), &["plan", "-m", &model, "--stage", stage]);
        assert!(plan.contains(part), "{plan}");
    }
    let later = kandinsky("prior");
    let output = engine(dir.path(), &[&run[..], &["-p", "a", "--prior", later.to_str().unwrap()]].concat());
    let message = text(&output.stderr);
    let reason = "_class_name: expected KandinskyPriorPipeline beside KandinskyPipeline, found \"KandinskyV22Prior";
    assert!(output.status.code() == Some(3) && message.contains(reason), "{message}");
}

fn stable_unclip() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/stable-unclip").to_str().unwrap().to_owned()
}

/// A picture to vary, with or without a text; and a prompt.
#[test]
fn stable_unclip_varies_pictures_and_makes_them_from_prompts_and_pictures_say_how() {
    let dir = TempDir::new().unwrap();
    let model = stable_unclip();
    let run = ["run", "--device", "cpu", "-m", &model, "--size", "64", "--decoder-steps", "2"];
    let given = ["-i", "prompt.png"];
    let talk = ["-p", "a fox", "-n", "blurry", "--noise-level", "300", "--sampler", "dpm++", "-o", "said.png"];
    said(dir.path(), &[&run[..], &["-p", "a fox", "--prior-steps", "2", "-o", "prompt.png"]].concat());
    said(dir.path(), &[&run[..], &given, &["-o", "varied.png"]].concat());
    said(dir.path(), &[&run[..], &given, &talk].concat());
    let again = ["run", "--device", "cpu", "-m", &model, "--from", "said.png", "-o", "again.png"];
    said(dir.path(), &[&again[..], &given].concat());
    let bytes = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
    assert!(bytes("said.png") == bytes("again.png") && bytes("said.png") != bytes("varied.png"));
    let shown = said(dir.path(), &["inspect", "said.png"]);
    for part in ["dpm++", "300", "a fox", "blurry"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let shown = said(dir.path(), &["inspect", &model]);
    assert!(shown.contains("image_normalizer") && !shown.contains("would not load"), "{shown}");
    let plan = said(dir.path(), &["plan", "-m", &model, "--stage", "unet"]);
    assert!(plan.contains("multistep") && plan.contains("geglu"), "{plan}");
    let (empty, photo) = (TempDir::new().unwrap(), dir.path().join("prompt.png"));
    for (arguments, reason) in [
        (&["-p", "a", "-p", "b"][..], "--prompt b: beside --image there is one at most"),
        (&["--noise-level", "1000"], "--noise-level 1000: must be 0 to 999"),
        (&["--prior-steps", "3"], "--prior-steps cannot be combined with --image"),
    ] {
        let all = [&run[..], &["-i", photo.to_str().unwrap()], arguments].concat();
        assert_refused(empty.path(), &engine(empty.path(), &all), 2, &[reason]);
    }
    let karlo = ["run", "-m", "built-in", "-p", "a", "--sampler", "euler"];
    assert_refused(empty.path(), &engine(empty.path(), &karlo), 2, &["--sampler: this checkpoint has one only"]);
}
