//! Pictures in every format: what is given, what is written, and the settings that travel with them.

use super::support::golden::Recording;
use super::{MODEL, assert_refused, engine, names, png, run, text};
use serde_json::Value;
use std::fs;
use std::path::Path;
use unclip::image::{Image, ReadOptions};

const VARIATION: [&str; 7] = ["run", "-m", MODEL, "--decoder-steps", "2", "--super-res-steps", "2"];

fn read(path: &Path) -> Image {
    Image::read(path, &ReadOptions::default()).unwrap()
}

/// Writes a recorded file under a name of its own.
pub(super) fn given(dir: &Path, recorded: &str, name: &str) {
    let recording = Recording::pictures();
    fs::write(dir.join(name), recording.tensors().tensor(&format!("{recorded}/file")).unwrap().data()).unwrap();
}

#[test]
fn pictures_are_written_as_their_names_say() {
    let dir = tempfile::tempdir().unwrap();
    let written = |arguments: &[&str]| {
        let output = run(dir.path(), &[&["-p", "a"], arguments].concat());
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        output.stdout
    };
    written(&["-o", "a.png"]);
    let picture = read(&dir.path().join("a.png"));
    written(&["-o", "a.jpg", "--grid", "g.webp"]);
    written(&["-o", "b.JPEG", "--quality", "20"]);
    written(&["-o", "c.webp"]);
    written(&["-o", "d", "--format", "webp"]);
    assert_eq!(text(&written(&["--format", "jpg"])), "out.jpg\n");
    assert_eq!(text(&written(&["--format", "jpeg", "-b", "2"])), "out-000.jpg\nout-001.jpg\n");
    let piped = written(&["-o", "-", "--format", "jpeg"]);
    let bytes = |name: &str| fs::read(dir.path().join(name)).unwrap();
    assert_eq!(piped, bytes("a.jpg"));
    assert_eq!(bytes("out.jpg"), bytes("a.jpg"));
    for name in ["a.jpg", "b.JPEG", "out-001.jpg"] {
        assert!(bytes(name).starts_with(b"\xff\xd8\xff"), "{name}");
    }
    assert!(bytes("b.JPEG").len() < bytes("a.jpg").len());
    for name in ["g.webp", "c.webp", "d"] {
        assert!(bytes(name).starts_with(b"RIFF") && read(&dir.path().join(name)) == picture, "{name}");
    }
}

#[test]
fn formats_that_contradict_names_and_endings_that_mean_nothing_are_refused_before_work() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |arguments: &[&str], part: &str| {
        let output = run(dir.path(), &[&["-p", "a", "--device", "wgpu:99"], arguments].concat());
        assert_refused(dir.path(), &output, 2, &[part]);
        assert!(names(dir.path()).is_empty());
    };
    refused(&["-o", "a.gif"], "--output a.gif: expected a name that ends in png, jpg, jpeg, jpe, jfif, webp");
    refused(&["-o", "a.webp", "--grid", "g.tiff"], "--grid g.tiff: expected a name that ends in png");
    refused(&["-o", "a.webp", "--format", "jpeg"], "--output a.webp: the name says webp and --format jpg");
    refused(&["-o", "a.webp", "--quality", "80"], "--quality 80: no picture is written as a JPEG");
    refused(&["--alpha", "drop"], "--alpha: no picture is read; it goes with --image");
    // What is too long for a JPEG is known when the device is.
    let long = "word ".repeat(8000);
    let output = run(dir.path(), &["-p", &long, "-o", "a.jpg"]);
    assert_refused(dir.path(), &output, 2, &["--format: the settings are too long for a JPEG"]);
}

#[test]
fn settings_are_inspected_and_used_again_from_every_format() {
    let dir = tempfile::tempdir().unwrap();
    let made = ["-p", "a lion, 猫", "-n", "<worm>", "-s", "5", "-b", "2", "--device", "cpu"];
    for ending in ["png", "jpg", "webp"] {
        let (name, sheet) = (format!("%d.{ending}"), format!("sheet.{ending}"));
        assert!(run(dir.path(), &[&made[..], &["-o", &name, "--grid", &sheet]].concat()).status.success());
        let inspected = |name: &str, how: &[&str]| {
            let output = engine(dir.path(), &[&["inspect", name], how].concat());
            assert!(output.status.success(), "{}", text(&output.stderr));
            text(&output.stdout)
        };
        let table = inspected(&format!("1.{ending}"), &[]);
        assert!(table.lines().any(|line| line == "prompt            a lion, 猫"), "{table}");
        assert!(table.lines().any(|line| line == "seed              6"), "{table}");
        let json: Value = serde_json::from_str(&inspected(&sheet, &["--json"])).unwrap();
        assert_eq!(json["recipes"].as_array().unwrap().len(), 2);
        assert_eq!((&json["recipes"][1]["negative"], &json["path"]), (&"<worm>".into(), &sheet.as_str().into()));
        assert!(json["parameters"].as_str().unwrap().starts_with("a lion, 猫\nNegative prompt: <worm>\nSteps: 2, "));
        let again =
            ["run", "-m", MODEL, "--device", "cpu", "--from", &format!("1.{ending}"), "-o", &format!("x.{ending}")];
        assert!(engine(dir.path(), &again).status.success());
        let bytes = |name: String| fs::read(dir.path().join(name)).unwrap();
        assert_eq!(bytes(format!("1.{ending}")), bytes(format!("x.{ending}")));
    }
}

#[test]
fn pictures_of_other_programs_have_their_text_shown_and_are_no_settings_to_start_from() {
    let dir = tempfile::tempdir().unwrap();
    for ending in ["jpeg", "webp"] {
        let name = format!("web.{ending}");
        given(dir.path(), &format!("settings/{ending}"), &name);
        let shown = text(&engine(dir.path(), &["inspect", &name]).stdout);
        assert!(
            shown.starts_with("settings of another program, as its text:\na cat, 猫\nNegative prompt: dog\nSteps: 20")
        );
        let from = engine(dir.path(), &["run", "-m", MODEL, "--from", &name]);
        assert_refused(
            dir.path(),
            &from,
            5,
            &[&name, "the picture has settings of another program alone (parameters)"],
        );
    }
    given(dir.path(), "exact/gif-grey", "plain.gif");
    for arguments in [&["inspect", "plain.gif"][..], &["run", "-m", MODEL, "--from", "plain.gif"]] {
        let output = engine(dir.path(), arguments);
        assert_refused(dir.path(), &output, 5, &["cannot read plain.gif: the picture has no settings"]);
    }
}

#[test]
fn given_pictures_are_upright_and_over_white_in_any_format_under_any_name() {
    let dir = tempfile::tempdir().unwrap();
    let varied = |name: &str, more: &[&str]| {
        let output = engine(dir.path(), &[&VARIATION[..], &["-i", name, "-o", "v.png"], more].concat());
        assert!(output.status.success(), "{name}: {}", text(&output.stderr));
        png(&dir.path().join("v.png")).0
    };
    given(dir.path(), "exact/png-exif-6", "lying.png");
    let upright = read(&dir.path().join("lying.png"));
    assert_eq!((upright.width, upright.height), (5, 7));
    upright.write(dir.path().join("upright.png"), unclip::image::Format::Png, &Default::default()).unwrap();
    given(dir.path(), "exact/webp-exif", "photo.png");
    assert_eq!(varied("lying.png", &[]), varied("upright.png", &[]));
    assert_eq!(varied("photo.png", &[]), varied("upright.png", &[]));

    given(dir.path(), "exact/webp-rgba", "clear.webp");
    let over_white = read(&dir.path().join("clear.webp"));
    over_white.write(dir.path().join("white.png"), unclip::image::Format::Png, &Default::default()).unwrap();
    let white = varied("clear.webp", &[]);
    assert_eq!(white, varied("white.png", &[]));
    let dropped = varied("clear.webp", &["--alpha", "drop"]);
    assert_ne!(white, dropped);
    // The settings say so, and the picture can be made again.
    fs::rename(dir.path().join("v.png"), dir.path().join("first.png")).unwrap();
    assert!(engine(dir.path(), &["run", "-m", MODEL, "--from", "first.png", "-o", "v.png"]).status.success());
    assert_eq!(png(&dir.path().join("v.png")).0, dropped);
}

#[test]
fn a_picture_beyond_the_limit_is_refused_with_the_flag_that_raises_it() {
    let dir = tempfile::tempdir().unwrap();
    given(dir.path(), "exact/png-rgba", "a.png");
    let varied = |megapixels: &str| {
        let arguments = ["-i", "a.png", "-o", "v.webp", "--max-megapixels", megapixels];
        engine(dir.path(), &[&VARIATION[..], &arguments].concat())
    };
    let refused = text(&varied("0").stderr);
    let line =
        "engine: cannot read a.png: 19x13 is too large: 0.000247 megapixels, at most 0; --max-megapixels allows more";
    assert_eq!(refused.trim_end(), line);
    assert!(varied("1").status.success());
}

#[test]
fn what_is_named_like_a_picture_is_inspected_as_one() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("empty.png"), "").unwrap();
    for (name, found) in [("nothere.png", "cannot open nothere.png"), ("empty.png", "an empty file")] {
        let output = engine(dir.path(), &["inspect", name]);
        let line = text(&output.stderr);
        assert!(output.status.code() == Some(5) && line.contains(found), "{line}");
    }
}
