//! `engine blend` on the tiny checkpoint: frames, their ends, what is refused.

use super::{MODEL, SHORT, assert_refused, engine, names, text};
use std::path::Path;
use tempfile::TempDir;
use unclip::image::{Format, Image, ReadOptions, Texts};
use unclip::pipeline::{Recipe, Subject};

fn read(path: &Path) -> Image {
    Image::read(path, &ReadOptions::default()).unwrap()
}

/// Two pictures, a.png and b.png.
fn photos(dir: &Path) {
    for (name, shift) in [("a.png", 0), ("b.png", 90)] {
        let pixels = (0..40).flat_map(|y| (0..50).flat_map(move |x| [5 * x as u8, 3 * y as u8, shift]));
        let image = Image { width: 50, height: 40, pixels: pixels.collect() };
        image.write(dir.join(name), Format::Png, &Texts::default()).unwrap();
    }
}

#[track_caller]
fn made(dir: &Path, command: &[&str], arguments: &[&str]) {
    let all = [command, &["--device", "cpu", "-m", MODEL], &SHORT[2..], arguments].concat();
    let output = engine(dir, &all);
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[test]
fn the_first_and_the_last_frame_are_plain_variations() {
    let dir = TempDir::new().unwrap();
    photos(dir.path());
    let picture = |name: &str| read(&dir.path().join(name));
    let both = ["-i", "a.png", "-i", "b.png", "-s", "3"];
    let path = [&both[..], &["--frames", "3", "-o", "f%d.png", "--gif", "f.gif"]].concat();
    made(dir.path(), &["blend"], &path);
    for (given, seed, frame) in [("a.png", "3", "f0.png"), ("b.png", "3", "f2.png")] {
        made(dir.path(), &["run"], &["-i", given, "-s", seed, "-o", "v.png"]);
        assert_eq!(picture("v.png"), picture(frame), "{frame}");
    }
    assert_ne!(picture("f1.png"), picture("f0.png"));
    assert_eq!(picture("f.gif").width, 64);
    // The frame in the middle is the mixture of halves; the same noise for all.
    made(dir.path(), &["blend"], &[&both[..], &["-o", "half.png"]].concat());
    assert_eq!(picture("half.png"), picture("f1.png"));
    made(dir.path(), &["blend"], &[&both[..], &["--weights", "1,3", "-o", "scaled.png"]].concat());
    made(dir.path(), &["blend"], &[&both[..], &["--weights", "0.25,0.75", "-o", "quarter.png"]].concat());
    assert_eq!(picture("scaled.png"), picture("quarter.png"));

    // With the noise of two seeds the last frame is a variation of the second one.
    let noises = [&both[..], &["--frames", "2", "--noise-blend", "-o", "n%d.png"]].concat();
    made(dir.path(), &["blend"], &noises);
    made(dir.path(), &["run"], &["-i", "b.png", "-s", "4", "-o", "v.png"]);
    assert_eq!((picture("n0.png"), picture("n1.png")), (picture("f0.png"), picture("v.png")));

    let recipe = Recipe::read(dir.path().join("f1.png")).unwrap().swap_remove(0);
    let Subject::Blend(blended) = &recipe.subject else { panic!("{recipe:?}") };
    assert_eq!((&*blended.of, &blended.weights[..], recipe.seed), ("a.png + b.png", &[0.5, 0.5][..], 3));
    assert!(recipe.request().unwrap_err().to_string().contains("a.png + b.png"));
}

#[test]
fn a_text_difference_moves_a_picture_step_by_step() {
    let dir = TempDir::new().unwrap();
    photos(dir.path());
    let picture = |name: &str| read(&dir.path().join(name));
    let moved = ["-i", "a.png", "--from", "a cat", "--to", "a lion"];
    made(dir.path(), &["blend"], &[&moved[..], &["--frames", "2", "--amount", "0.5", "-o", "m%d.png"]].concat());
    made(dir.path(), &["run"], &["-i", "a.png", "-o", "v.png"]);
    assert_eq!(picture("m0.png"), picture("v.png"));
    made(dir.path(), &["blend"], &[&moved[..], &["--amount", "0.5", "-o", "half.png"]].concat());
    assert!(picture("half.png") == picture("m1.png") && picture("m1.png") != picture("m0.png"));
    // A text needs the prior.
    made(dir.path(), &["blend"], &["-i", "a.png", "-p", "a fox", "--prior-steps", "2", "-o", "both.png"]);
}

#[test]
fn blends_that_cannot_be_made_are_named_and_leave_nothing() {
    let (dir, given) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    photos(given.path());
    let [a, b] = ["a.png", "b.png"].map(|name| given.path().join(name).to_str().unwrap().to_owned());
    for (arguments, parts) in [
        (&["-i", &a][..], ["--image", "1 to blend; at least two"]),
        (&["-i", &a, "-i", &b, "--weights", "1"], ["--weights", "1 for 2 things"]),
        (&["-i", &a, "-i", &b, "--weights", "0,0"], ["--weights", "not all of them 0"]),
        (&["-i", &a, "-i", &b, "--weights", "2,-1"], ["--weights -1", "at least 0"]),
        (&["-i", &a, "-i", &b, "--frames", "3", "-o", "x.png"], ["--output x.png", "a name with a number"]),
        (&["-i", &a, "--from", "a", "--to", "b", "--amount", "1.5"], ["--amount 1.5", "from 0 to 1"]),
        (&["-i", &a, "-i", &b, "--generator", "one"], ["--generator one", "a generator each"]),
        (&["-i", &a, "-i", &b, "--prior-steps", "3"], ["--prior-steps", "no prompt"]),
    ] {
        let all = [&["blend", "--device", "cpu", "-m", MODEL], arguments].concat();
        assert_refused(dir.path(), &engine(dir.path(), &all), 2, &parts);
    }
    assert_eq!(names(dir.path()), [""; 0]);
}
