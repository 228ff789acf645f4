//! The picture while it is sampled: `--preview`.

use super::{assert_refused, engine, names, png, run, text};

#[test]
fn a_preview_is_a_whole_picture_that_becomes_the_finished_one() {
    let dir = tempfile::tempdir().unwrap();
    let output = run(dir.path(), &["-p", "a fox", "--preview", "now.png", "-o", "out.png"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let [now, out] = ["now.png", "out.png"].map(|name| png(&dir.path().join(name)).0);
    let off = now.iter().zip(&out).map(|(a, b)| a.abs_diff(*b)).max();
    assert!(now.len() == out.len() && off <= Some(1), "{off:?}");
    // The settings make the same picture without previews; two pictures are on one sheet, in the format of the name.
    assert!(run(dir.path(), &["-p", "a fox", "-o", "plain.png"]).status.success());
    assert_eq!(png(&dir.path().join("plain.png")).0, out);
    let two = run(dir.path(), &["-p", "a fox", "-b", "2", "--preview", "two.jpg", "--every", "2", "-o", "%d.png"]);
    assert!(two.status.success(), "{}", text(&two.stderr));
    let sheet = unclip::image::Image::read(dir.path().join("two.jpg"), &Default::default()).unwrap();
    assert_eq!([sheet.width, sheet.height], [128, 64]);
    assert!(!names(dir.path()).iter().any(|name| name.ends_with(".tmp")));
}

#[test]
fn a_preview_that_cannot_be_is_refused_before_the_run() {
    let dir = tempfile::tempdir().unwrap();
    for (arguments, code, reason) in [
        (&["--every", "2"][..], 2, "--every: no preview is asked for"),
        (&["--preview", "a.gif"], 2, "--preview a.gif: expected a name that ends in png"),
        (&["--preview", "-"], 2, "--preview -: standard output"),
        (&["--preview", "o.png", "-o", "o.png"], 2, "o.png"),
        (&["--preview", "none/../.."], 5, "cannot write"),
    ] {
        let output = run(dir.path(), &[&["-p", "a"], arguments].concat());
        assert_refused(dir.path(), &output, code, &[reason]);
    }
    assert_eq!(engine(dir.path(), &["run", "-p", "a", "--preview", "a.png", "--every", "0"]).status.code(), Some(2));
}
