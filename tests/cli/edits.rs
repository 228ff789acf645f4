//! `engine edit` on the tiny checkpoint: what changes, what stays to the byte, what is refused.

use super::formats::given;
use super::{MODEL, SHORT, assert_refused, engine, names, text};
use std::path::Path;
use tempfile::TempDir;
use unclip::image::{Format, Image, Mask, ReadOptions, Texts};
use unclip::pipeline::Recipe;

fn read(path: &Path) -> Image {
    Image::read(path, &ReadOptions::default()).unwrap()
}

/// A picture of 100x80 pixels, none of them alike.
fn photo(dir: &Path) -> Image {
    let pixels = (0..80).flat_map(|y| (0..100).flat_map(move |x| [2 * x as u8, 3 * y as u8, (x ^ y) as u8]));
    let image = Image { width: 100, height: 80, pixels: pixels.collect() };
    image.write(dir.join("photo.png"), Format::Png, &Texts::default()).unwrap();
    image
}

#[track_caller]
fn edited(dir: &Path, arguments: &[&str]) {
    let command = ["edit", "--device", "cpu", "-m", MODEL, "-i", "photo.png"];
    let output = engine(dir, &[&command[..], &SHORT, arguments].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
}

/// Pixels of the edit that are not the photo's, with their distance from the rectangle.
fn changed(photo: &Image, edit: &Image, [left, top, width, height]: [usize; 4]) -> Vec<f32> {
    assert_eq!([edit.width, edit.height], [photo.width, photo.height]);
    let pixels = photo.pixels.chunks_exact(3).zip(edit.pixels.chunks_exact(3)).enumerate();
    let beside = |at: usize, from: usize, length: usize| from.saturating_sub(at) + at.saturating_sub(from + length - 1);
    let distance = |at: usize| {
        let [x, y] = [beside(at % photo.width, left, width), beside(at / photo.width, top, height)];
        (x as f32).hypot(y as f32)
    };
    pixels.filter(|(_, (old, new))| old != new).map(|(at, _)| distance(at)).collect()
}

#[test]
fn beyond_the_seam_an_edit_is_the_given_picture_to_the_byte() {
    let dir = TempDir::new().unwrap();
    let photo = photo(dir.path());
    for seam in ["0", "5"] {
        edited(dir.path(), &["--box", "60,20,20,30", "--seam", seam, "a fox", "-b", "2", "-o", "%d.png"]);
        let [first, second] = ["0.png", "1.png"].map(|name| read(&dir.path().join(name)));
        let changed = changed(&photo, &first, [60, 20, 20, 30]);
        let inside = changed.iter().filter(|distance| **distance == 0.0).count();
        assert!(inside > 500, "{inside} of 600 pixels inside are new");
        let furthest = changed.iter().fold(0.0f32, |most, distance| most.max(*distance));
        let seam: f32 = seam.parse().unwrap();
        assert!(furthest < seam + 1.0, "seam {seam}: {furthest}");
        assert_ne!(first, second, "seeds change what is inside");
    }
    let recipe = Recipe::read(dir.path().join("1.png")).unwrap().swap_remove(0);
    let edited = recipe.edited.clone().unwrap();
    assert_eq!((&*edited.image, edited.masked, edited.strength, edited.resample), ("photo.png", true, None, 1));
    assert_eq!(([recipe.width, recipe.height], recipe.seed), ([100, 80], 1));
    assert!(recipe.request().unwrap_err().to_string().contains("photo.png"));
    let (empty, edit) = (TempDir::new().unwrap(), dir.path().join("1.png"));
    let again = engine(empty.path(), &["run", "-m", MODEL, "--from", edit.to_str().unwrap()]);
    assert_refused(empty.path(), &again, 2, &["1.png", "an edit of photo.png"]);
}

/// The same part by a mask's file, by transparency and by a rectangle; with more steps it is another picture.
#[test]
fn a_part_is_named_by_a_mask_a_rectangle_or_transparency() {
    let dir = TempDir::new().unwrap();
    photo(dir.path());
    let mask = Mask::from_fn(100, 80, |x, y| (60..80).contains(&x) && (20..50).contains(&y));
    let grey = Image { width: 100, height: 80, pixels: mask.pixels.iter().flat_map(|value| [*value; 3]).collect() };
    grey.write(dir.path().join("mask.png"), Format::Png, &Texts::default()).unwrap();
    let made = |name: &str, arguments: &[&str]| {
        edited(dir.path(), &[&["a fox", "-o", name], arguments].concat());
        read(&dir.path().join(name))
    };
    let by_box = made("box.png", &["--box", "60,20,20,30"]);
    assert_eq!(made("mask-out.png", &["--mask", "mask.png"]), by_box);
    assert_ne!(made("again.png", &["--mask", "mask.png", "--resample", "2"]), by_box);
    assert_eq!(made("wide.png", &["--extend", "left=20,bottom=3"]).width, 120);
    assert_eq!(made("all.png", &["--strength", "0.5"]).width, 64, "redrawn at the checkpoint's size");

    given(dir.path(), "exact/png-rgba", "clear.png");
    let clear = Mask::read_transparency(dir.path().join("clear.png"), &ReadOptions::default()).unwrap().unwrap();
    let opaque = read(&dir.path().join("clear.png"));
    let arguments = ["edit", "--device", "cpu", "-m", MODEL, "-i", "clear.png", "--mask", "alpha", "-o", "c.png"];
    let output = engine(dir.path(), &[&arguments[..], &SHORT, &["--seam", "0", "a"]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let edit = read(&dir.path().join("c.png"));
    for (at, (old, new)) in opaque.pixels.chunks_exact(3).zip(edit.pixels.chunks_exact(3)).enumerate() {
        assert!(old == new || clear.is_new(at % opaque.width, at / opaque.width), "pixel {at}");
    }
    assert_eq!(Mask::read_transparency(dir.path().join("photo.png"), &ReadOptions::default()).unwrap(), None);
}

#[test]
fn edits_that_cannot_be_made_are_named_and_leave_nothing() {
    let (dir, photos) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    photo(photos.path());
    let path = photos.path().join("photo.png");
    let photo = path.to_str().unwrap();
    for (arguments, code, parts) in [
        (&["--mask", "alpha"][..], 2, ["--mask alpha", "is transparent"]),
        (&["--mask", "nothing.png"], 5, ["nothing.png", "No such file"]),
        (&["--box", "100,0,5,5"], 2, ["--box 100,0,5,5", "100x80 pixels"]),
        (&["--box", "0,0,100,80"], 2, ["--mask", "all is white"]),
        (&["--extend", "left=0"], 2, ["--mask", "nothing is white"]),
        (&["--seam", "3"], 2, ["--seam 3", "without --mask, --box or --extend"]),
        (&["--strength", "0"], 2, ["--strength 0", "above 0 and at most 1"]),
        (&["--strength", "0.3"], 2, ["--strength 0.3", "of 2 decoder steps none"]),
        (&["--resample", "65", "--box", "1,1,9,9"], 2, ["--resample 65", "1 to 64"]),
        (&["--resample", "2"], 2, ["--resample 2", "with a mask alone"]),
        (&["--hint", photo], 2, ["--hint", "sees none"]),
        (&["--box", "1,1,9,9", "-o", photo], 2, ["--output", "--image"]),
    ] {
        let command = ["edit", "--device", "cpu", "-m", MODEL, "-i", photo, "a fox"];
        assert_refused(dir.path(), &engine(dir.path(), &[&command[..], &SHORT, arguments].concat()), code, &parts);
    }
    assert_eq!(names(dir.path()), [""; 0]);
}

#[test]
fn noise_is_found_and_used_and_noise_is_taken_out() {
    let dir = TempDir::new().unwrap();
    let photo = photo(dir.path());
    let run = |arguments: &[&str]| {
        let output =
            engine(dir.path(), &[&arguments[..1], &["--device", "cpu", "-m", MODEL], &arguments[1..]].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    run(&["invert", "-i", "photo.png", "--decoder-steps", "4", "-o", "noise.safetensors"]);
    let from = ["run", "-i", "photo.png", "--noise-from", "noise.safetensors", "--super-res-steps", "2", "-o"];
    run(&[&from[..], &["a.png"]].concat());
    run(&["run", "-i", "photo.png", "--decoder-steps", "4", "--super-res-steps", "2", "-o", "b.png"]);
    let [a, b] = ["a.png", "b.png"].map(|name| read(&dir.path().join(name)));
    assert!(a != b && [a.width, a.height] == [64, 64]);
    let json = run(&["denoise", "-i", "photo.png", "--sigma", "0.2", "--json", "-o", "clean.png"]);
    assert!(json.contains(r#""event":"picture""#) && json.contains(r#""sigma":0.2"#), "{json}");
    let clean = read(&dir.path().join("clean.png"));
    assert!(clean != photo && [clean.width, clean.height] == [photo.width, photo.height]);

    let empty = TempDir::new().unwrap();
    let path = dir.path().join("photo.png");
    let given = path.to_str().unwrap();
    for (arguments, code, parts) in [
        (&["run", "-i", given, "--noise-from", given][..], 5, ["photo.png", "that engine invert writes"]),
        (
            &["invert", "-i", given, "--decoder-steps", "1", "-o", "n.safetensors"],
            2,
            ["--decoder-steps 1", "must be 2"],
        ),
        (&["denoise", "-i", given, "--sigma", "0.1", "-p", "--json"], 2, ["--prompt --json", "a flag"]),
    ] {
        let all = [&arguments[..1], &["--device", "cpu", "-m", MODEL], &arguments[1..]].concat();
        assert_refused(empty.path(), &engine(empty.path(), &all), code, &parts);
    }
    assert_eq!(names(empty.path()), [""; 0]);
}
