//! `engine enlarge` as a person meets it.

use super::support::golden::Recording;
use super::{MODEL, assert_refused, engine, names, png, text};
use std::path::Path;
use unclip::image::{Format, Texts};

fn given(dir: &Path) {
    let picture = Recording::clip().image("picture/1"); // 17 x 31
    picture.write(dir.join("small.png"), Format::Png, &Texts::default()).unwrap();
}

fn enlarge(dir: &Path, arguments: &[&str]) -> std::process::Output {
    engine(dir, &[&["enlarge", "-m", MODEL, "--device", "cpu", "--super-res-steps", "2"], arguments].concat())
}

#[test]
fn a_picture_becomes_four_times_as_large_and_its_seed_is_chosen() {
    let dir = tempfile::tempdir().unwrap();
    given(dir.path());
    let output = enlarge(dir.path(), &["-i", "small.png", "-o", "big.png"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "big.png\n");
    let big = unclip::image::Image::read(dir.path().join("big.png"), &Default::default()).unwrap();
    assert_eq!([big.width, big.height], [68, 124]);
    // Several at once, numbered, each with the next seed; tiles of another size.
    let both = ["-i", "small.png", "-i", "small.png", "-o", "%d.webp", "--json", "--tile", "24"];
    let output = enlarge(dir.path(), &both);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let events = text(&output.stdout);
    assert!(events.contains("\"path\":\"1.webp\"") && events.contains("\"seed\":1"), "{events}");
    let read = |name: &str| unclip::image::Image::read(dir.path().join(name), &Default::default()).unwrap();
    assert_ne!(read("0.webp").pixels, read("1.webp").pixels);
    let piped = enlarge(dir.path(), &["-i", "small.png", "-o", "-"]);
    assert_eq!(piped.stdout, std::fs::read(dir.path().join("big.png")).unwrap());
}

#[test]
fn what_cannot_be_enlarged_is_named_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let files = tempfile::tempdir().unwrap();
    given(files.path());
    std::fs::write(files.path().join("broken.png"), b"\x89PNG").unwrap();
    let at = |name: &str| files.path().join(name).to_str().unwrap().to_owned();
    let (small, broken) = (at("small.png"), at("broken.png"));
    for (arguments, code, reason) in [
        (&["-i", small.as_str(), "--times", "3"][..], 2, "--times 3: this checkpoint enlarges 4 times"),
        (&["-i", &small, "--tile", "3"], 2, "--tile 3: must be a multiple of"),
        (&["-i", &small, "--super-res-steps", "1"], 2, "--super-res-steps 1: "),
        (&["-i", &small, "--times", "65536"], 2, "--times 65536: the result would have 1114112x2031616 pixels"),
        (&["-i", &small, "-o", &small], 2, "the file that --image reads"),
        (&["-i", &small, "-i", &small, "-o", "one.png"], 2, "2 pictures need a name with a number"),
        (&["-i", &broken], 5, "broken.png"),
    ] {
        let model = ["enlarge", "-m", MODEL, "--device", "cpu"];
        let output = engine(dir.path(), &[&model[..], arguments].concat());
        assert_refused(dir.path(), &output, code, &[reason]);
    }
    let kandinsky = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/kandinsky-2-2/decoder");
    let clip = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/clip");
    for model in [kandinsky, clip] {
        let output = engine(dir.path(), &["enlarge", "-m", model, "-i", &small]);
        assert_refused(dir.path(), &output, 3, &["this checkpoint has no super-resolution"]);
    }
    assert!(names(dir.path()).is_empty() && png(&files.path().join("small.png")).0.len() == 3 * 17 * 31);
}
