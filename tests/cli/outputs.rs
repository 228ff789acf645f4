//! Where pictures go: names, folders, standard output, the terminal.

use super::{command, engine, names, png, run, text};
use std::fs;
use std::path::Path;

fn written(dir: &Path, arguments: &[&str]) -> (String, String) {
    let output = run(dir, &[&["-p", "a"], arguments].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    (text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_second_run_leaves_the_pictures_of_the_first_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(written(dir.path(), &[]).0, "out.png\n");
    let first = fs::read(dir.path().join("out.png")).unwrap();
    let (name, said) = written(dir.path(), &["-s", "1"]);
    assert_eq!(name, "out-001.png\n");
    assert!(said.contains("out.png is there; writing out-001.png"), "{said}");
    let (several, said) = written(dir.path(), &["-b", "2"]);
    assert_eq!(several, "out-002.png\nout-003.png\n");
    assert!(said.contains("out-001.png is there; writing out-002.png"), "{said}");
    assert_eq!(fs::read(dir.path().join("out.png")).unwrap(), first);
    // A file that is named is meant.
    assert_eq!(written(dir.path(), &["-s", "1", "-o", "out.png"]).0, "out.png\n");
    assert_ne!(fs::read(dir.path().join("out.png")).unwrap(), first);
}

#[test]
fn files_that_a_longer_run_left_are_named() {
    let dir = tempfile::tempdir().unwrap();
    assert!(!written(dir.path(), &["-b", "4", "-o", "v-%02d.png"]).1.contains("earlier run"));
    let (_, said) = written(dir.path(), &["-b", "2", "-o", "v-%02d.png"]);
    assert!(said.contains("v-02.png to v-03.png are of an earlier run"), "{said}");
}

#[test]
fn folders_are_made_and_a_percent_sign_is_no_number() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(written(dir.path(), &["-o", "a/b/50%done.png", "--grid", "c/d.png"]).0, "a/b/50%done.png\n");
    assert!(dir.path().join("a/b/50%done.png").is_file() && dir.path().join("c/d.png").is_file());
}

#[test]
fn a_picture_goes_to_standard_output_and_nothing_else_does() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), &["-o", "file.png"]);
    let output = run(dir.path(), &["-p", "a", "-o", "-"]);
    assert!(output.status.success() && output.stdout == fs::read(dir.path().join("file.png")).unwrap());
    assert!(text(&output.stderr).contains("1 picture of 64x64"), "{}", text(&output.stderr));
    assert_eq!(names(dir.path()), ["file.png"]);
    let refused = |arguments: &[&str], part: &str| {
        let output = run(dir.path(), &[&["-p", "a", "-o", "-"], arguments].concat());
        let error = text(&output.stderr);
        assert!(output.status.code() == Some(2) && error.contains("engine: --output -: "), "{error}");
        assert!(error.contains(part), "{error}");
    };
    refused(&["-b", "2"], "takes one picture, 2");
    refused(&["--json"], "--json");
    refused(&["--show"], "--show");
}

/// A run is not lost because no one can read its report.
#[cfg(target_os = "linux")]
#[test]
fn a_full_standard_output_does_not_cost_the_pictures() {
    for style in [&[][..], &["--json"]] {
        let dir = tempfile::tempdir().unwrap();
        let arguments =
            [&["run", "-m", super::MODEL, "-p", "a", "-b", "2", "--grid", "g.png"], &super::SHORT[..], style];
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let output = command(dir.path(), &arguments.concat()).stdout(full).output().unwrap();
        assert_eq!(output.status.code(), Some(5), "{output:?}");
        assert!(text(&output.stderr).contains("engine: cannot write standard output: No space left"), "{output:?}");
        assert_eq!(names(dir.path()), ["g.png", "out-000.png", "out-001.png"]);
    }
}

#[test]
fn pictures_are_shown_in_the_way_that_was_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let shown = |how: &str| written(dir.path(), &["-q", "-o", "x.png", how]).0;
    let blocks = shown("--show=blocks");
    assert_eq!(blocks.matches('▀').count() % 22, 0, "{blocks}"); // 24 lines are assumed where there is no terminal
    assert!(blocks.starts_with("\x1b[38;2;") && blocks.ends_with("\x1b[0m\n"));
    assert!(shown("--show=sixel").starts_with("\x1bP0;1;0q\"1;1;64;64#0;2;"));
    assert!(shown("--show=kitty").starts_with("\x1b_Ga=T,f=100,q=2,"));
    assert!(shown("--show=iterm").starts_with("\x1b]1337;File=inline=1;size="));
    // Nobody watches a pipe.
    let (nothing, said) = written(dir.path(), &["-o", "x.png", "--show"]);
    assert!(nothing == "x.png\n" && said.contains("no terminal"), "{nothing} {said}");
}

#[test]
fn a_sheet_can_be_made_again() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), &["-p", "b", "-b", "2", "-s", "3", "-n", "worm", "--grid", "sheet.png", "-o", "a%d.png"]);
    let again = ["run", "-m", super::MODEL, "--from", "sheet.png", "--grid", "again.png", "-o", "b%d.png"];
    assert!(engine(dir.path(), &again).status.success());
    let bytes = |name: &str| fs::read(dir.path().join(name)).unwrap();
    assert_eq!(names(dir.path()).len(), 10);
    for k in 0..4 {
        assert_eq!(bytes(&format!("a{k}.png")), bytes(&format!("b{k}.png")));
    }
    assert_eq!(bytes("sheet.png"), bytes("again.png"));
    assert_eq!(png(&dir.path().join("sheet.png")).0.len(), 4 * 64 * 64 * 3);
}
