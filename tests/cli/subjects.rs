//! What pictures are made from: prompts, files of prompts, the settings of a picture; seeds; models of the hub.

use super::support::files::copy_folder;
use super::{MODEL, SHORT, assert_refused, chunk, command, engine, names, photo, png, run, text};
use serde_json::Value;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

fn prompts(dir: &Path) -> Vec<String> {
    let settings = |name: String| -> Value { serde_json::from_str(&chunk(&dir.join(name), "unclip")).unwrap() };
    let pictures = names(dir).into_iter().filter(|name| name.starts_with("out"));
    pictures.map(|name| settings(name)["prompt"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn prompts_come_from_the_line_from_a_file_and_from_standard_input() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("list.txt"), "a lion\r\n\n  a frog\n").unwrap();
    let output = run(dir.path(), &["a red apple", "-p", "a pear", "--prompts", "list.txt"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(prompts(dir.path()), ["a red apple", "a pear", "a lion", "a frog"]);

    let piped = tempfile::tempdir().unwrap();
    let arguments = [&["run", "-m", MODEL, "--prompts", "-"], &SHORT[..]].concat();
    let mut child = command(piped.path(), &arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all("кошка\n猫".as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(prompts(piped.path()), ["кошка", "猫"]);
}

#[test]
fn a_text_may_begin_with_a_hyphen_and_a_seed_may_not_be_negative() {
    let dir = tempfile::tempdir().unwrap();
    let output = run(dir.path(), &["-p", "-rainy street", "-n", "-blurry"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let settings: Value = serde_json::from_str(&chunk(&dir.path().join("out.png"), "unclip")).unwrap();
    assert_eq!((&settings["prompt"], &settings["negative"]), (&"-rainy street".into(), &"-blurry".into()));
    let negative = run(dir.path(), &["-p", "a", "-s", "-1"]);
    assert_eq!(negative.status.code(), Some(2));
    assert!(text(&negative.stderr).contains("seeds begin at 0; expected an integer from 0 to"), "{negative:?}");
    let forgotten = run(dir.path(), &["-p", "a", "-n", "--grid", "x.png"]);
    assert_eq!(forgotten.status.code(), Some(2));
}

#[test]
fn what_other_programs_read_as_files_gets_a_hint() {
    let dir = tempfile::tempdir().unwrap();
    let refused =
        |arguments: &[&str], parts: &[&str]| assert_refused(dir.path(), &run(dir.path(), arguments), 2, parts);
    refused(&["-p", "@list.txt"], &["engine: --prompt @list.txt: --prompts list.txt reads"]);
    refused(&["-p", "-"], &["engine: --prompt -: --prompts - reads"]);
    refused(&["a", "red", "apple"], &["engine: PROMPT \"red\": ", "in quotes"]);
    fs::write(dir.path().join("empty.txt"), "\n").unwrap();
    refused(&["--prompts", "empty.txt"], &["engine: --prompts empty.txt: no text in it"]);
    assert_refused(dir.path(), &run(dir.path(), &["--prompts", "none.txt"]), 5, &["cannot read none.txt"]);
    let text_of_a_file = tempfile::tempdir().unwrap();
    photo(text_of_a_file.path());
    let output = run(text_of_a_file.path(), &["photo.png"]);
    assert!(text(&output.stderr).contains("engine: --prompt photo.png: a file; --image photo.png"), "{output:?}");
}

#[test]
fn a_random_seed_is_reported_and_makes_the_picture_again() {
    let dir = tempfile::tempdir().unwrap();
    let output = run(dir.path(), &["a", "-s", "random", "-o", "a.png"]);
    let said = text(&output.stderr);
    let seed = said.lines().find_map(|line| line.strip_prefix("seed ")).unwrap_or_else(|| panic!("{said}"));
    assert!(run(dir.path(), &["a", "-s", seed, "-o", "b.png"]).status.success());
    let bytes = |name: &str| fs::read(dir.path().join(name)).unwrap();
    assert_eq!(bytes("a.png"), bytes("b.png"));
    let json = text(&run(dir.path(), &["a", "-s", "random", "--json"]).stdout);
    let start: Value = serde_json::from_str(json.lines().next().unwrap()).unwrap();
    assert!(start["recipe"]["seed"].as_u64().is_some_and(|other| seed.parse() != Ok(other)), "{start}");
}

#[test]
fn a_picture_is_made_again_from_its_own_settings_and_flags_change_some() {
    let dir = tempfile::tempdir().unwrap();
    let first = ["a lion", "-n", "worm", "-s", "5", "--noise", "philox", "--prior-guidance", "1.1", "--dtype", "bf16"];
    assert!(run(dir.path(), &[&first[..], &["--device", "cpu", "-o", "a.png"]].concat()).status.success());
    let from = |arguments: &[&str]| {
        let output =
            engine(dir.path(), &[&["run", "-m", MODEL, "--device", "cpu", "--from", "a.png"], arguments].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
    };
    from(&["-o", "b.png"]);
    let bytes = |name: &str| fs::read(dir.path().join(name)).unwrap();
    assert_eq!(bytes("a.png"), bytes("b.png"));
    from(&["-o", "c.png", "-s", "6", "--decoder-steps", "3", "a frog", "--dtype", "f32"]);
    let settings: Value = serde_json::from_str(&chunk(&dir.path().join("c.png"), "unclip")).unwrap();
    let of = |key: &str| &settings[key];
    assert_eq!(
        (of("prompt"), of("seed"), of("decoder_steps"), of("dtype")),
        (&"a frog".into(), &6.into(), &3.into(), &"f32".into())
    );
    assert_eq!((of("negative"), of("noise"), of("prior_steps")), (&"worm".into(), &"philox".into(), &2.into()));
}

#[test]
fn a_variation_is_made_again_from_the_picture_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("pictures");
    fs::create_dir(&folder).unwrap();
    photo(&folder);
    let made = ["--image", "pictures/photo.png", "--decoder-steps", "2", "--super-res-steps", "2"];
    let made = engine(dir.path(), &[&["run", "-m", MODEL, "-o", "pictures/v.png"], &made[..]].concat());
    assert!(made.status.success(), "{}", text(&made.stderr));
    let again = ["run", "-m", MODEL, "--from", "pictures/v.png", "-o"];
    assert!(engine(dir.path(), &[&again[..], &["again.png"]].concat()).status.success());
    let pixels = |name: &str| png(&dir.path().join(name)).0;
    assert_eq!(pixels("pictures/v.png"), pixels("again.png"));
    fs::remove_file(folder.join("photo.png")).unwrap();
    let missing = engine(dir.path(), &[&again[..], &["x.png"]].concat());
    assert_eq!(missing.status.code(), Some(2));
    assert!(text(&missing.stderr).contains("a variation of photo.png, which is neither"), "{missing:?}");
}

#[test]
fn settings_that_cannot_be_used_are_named() {
    let dir = tempfile::tempdir().unwrap();
    assert!(run(dir.path(), &["a", "-o", "a.png"]).status.success());
    let without = engine(dir.path(), &["run", "--from", "a.png"]);
    assert_eq!(without.status.code(), Some(2));
    assert!(text(&without.stderr).contains("engine: --from a.png: made with the checkpoint tiny"), "{without:?}");
    let plain = tempfile::tempdir().unwrap();
    photo(plain.path());
    let output = engine(plain.path(), &["run", "-m", MODEL, "--from", "photo.png"]);
    assert_eq!(output.status.code(), Some(5));
    assert!(text(&output.stderr).contains("photo.png: the picture has no settings"), "{output:?}");
}

#[test]
fn a_model_of_the_hub_is_found_in_its_cache_or_the_command_that_fetches_it_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let hub = ["run", "-m", "made-up/karlo", "a"];
    let missing = engine(dir.path(), &[&hub[..], &SHORT].concat());
    assert_refused(dir.path(), &missing, 3, &["made-up/karlo", "`hf download made-up/karlo --exclude '*.bin'`"]);
    let snapshot = dir.path().join("hub/models--made-up--karlo/snapshots/0123");
    copy_folder(Path::new(MODEL), &snapshot);
    let found = engine(dir.path(), &[&hub[..], &SHORT, &["--device", "cpu"]].concat());
    assert!(found.status.success(), "{}", text(&found.stderr));
    assert!(text(&found.stderr).starts_with("made-up/karlo on cpu"), "{}", text(&found.stderr));
    // The picture's settings say where its model is.
    let again = engine(dir.path(), &["run", "--from", "out.png", "-o", "again.png", "--device", "cpu"]);
    assert!(again.status.success(), "{}", text(&again.stderr));
    let bytes = |name: &str| fs::read(dir.path().join(name)).unwrap();
    assert_eq!(bytes("out.png"), bytes("again.png"));
}
