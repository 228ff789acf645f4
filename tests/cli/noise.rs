//! Whose noise a picture has: the flags, what is kept of them, and what nobody draws.

use super::{chunk, engine, png, run, text};
use serde_json::{Value, json};
use std::fs;

#[test]
fn noise_of_a_card_is_kept_in_picture_and_events_and_each_picture_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let noise = ["--noise", "torch-cuda:RTX-3060", "--noise-dtype", "bf16", "--generator", "one"];
    let rest = ["a lion", "-s", "5", "-b", "2", "-o", "%d.png", "--grid", "sheet.png", "--json", "--device", "cpu"];
    let made = run(dir.path(), &[&noise[..], &rest[..]].concat());
    assert!(made.status.success(), "{}", text(&made.stderr));
    let start: Value = serde_json::from_str(text(&made.stdout).lines().next().unwrap()).unwrap();
    let kept: Value = serde_json::from_str(&chunk(&dir.path().join("1.png"), "unclip")).unwrap();
    for (recipe, generator) in [(&start["recipe"], "one:1/2"), (&kept, "one:2/2")] {
        let found = ["noise", "noise_dtype", "generator", "seed"].map(|key| recipe[key].clone());
        assert_eq!(json!(found), json!(["torch-cuda:28x1536", "bf16", generator, 5]), "{recipe}");
    }
    let again = |arguments: &[&str]| {
        let from = ["run", "-m", super::MODEL, "--device", "cpu", "--from"];
        let output = engine(dir.path(), &[&from[..], arguments].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
    };
    let bytes = |name: &str| fs::read(dir.path().join(name)).unwrap();
    again(&["1.png", "-o", "again.png"]);
    assert_eq!(bytes("again.png"), bytes("1.png"));
    again(&["sheet.png", "-o", "s%d.png"]);
    assert_eq!([bytes("s0.png"), bytes("s1.png")], [bytes("0.png"), bytes("1.png")]);
    // Flags come before the settings.
    again(&["1.png", "-o", "other.png", "--noise", "torch", "--generator", "each", "--noise-dtype", "f32"]);
    run(dir.path(), &["a lion", "-s", "5", "-o", "plain.png", "--device", "cpu"]);
    assert_eq!(png(&dir.path().join("other.png")).0, png(&dir.path().join("plain.png")).0);
}

#[test]
fn noise_that_nobody_draws_is_refused_in_one_line_that_names_the_flag() {
    let dir = tempfile::tempdir().unwrap();
    for (arguments, parts) in [
        (&["--noise", "torch-cuda:rtx-9999"][..], &["--noise", "card \"rtx-9999\"", "28x1536", "rtx-3060"][..]),
        (&["--noise", "torch-cuda:0x0"], &["--noise", "0 multiprocessors"]),
        (&["--noise", "torch-cuda:28x1000"], &["--noise", "1000 threads", "multiple of 256"]),
        (&["--noise", "rain"], &["--noise", "expected torch, torch-2.11, torch-cuda, torch-cuda:CARD or philox"]),
        (&["--noise-dtype", "f64"], &["--noise-dtype", "f32, f16, bf16"]),
        (&["--generator", "two"], &["--generator", "expected each, one, or one:3/8"]),
        (&["--noise", "philox", "--noise-dtype", "f16"], &["--noise-dtype f16: philox draws in f32"]),
        (&["--noise", "philox", "--generator", "one"], &["--generator one: philox has a generator for each picture"]),
        (
            &["--generator", "one:2/3", "-b", "3"],
            &["--generator one:2/3: 3 pictures are asked for, but that run has 2"],
        ),
    ] {
        let refused = run(dir.path(), &[&["a"], arguments].concat());
        let error = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(2), "{arguments:?}: {error}");
        assert!(parts.iter().all(|part| error.contains(part)), "{arguments:?}: {error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "{arguments:?}");
    }
}
