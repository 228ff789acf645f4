//! Where pictures go: names, folders, standard output, the terminal.

use super::{assert_refused, command, engine, names, photo, png, run, text};
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

#[cfg(unix)]
#[test]
fn a_link_to_standard_output_brings_the_picture_there_and_stays_a_link() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), &["-o", "file.png"]);
    std::os::unix::fs::symlink("/proc/self/fd/1", dir.path().join("link")).unwrap();
    let expected = fs::read(dir.path().join("file.png")).unwrap();
    for path in ["link", "/dev/stdout", "/proc/self/fd/1"] {
        let output = run(dir.path(), &["-p", "a", "-o", path]);
        assert!(output.status.success() && output.stdout == expected, "{path}: {}", text(&output.stderr));
        // A file in the place of a pipe.
        let arguments = [&["run", "-m", super::MODEL, "-p", "a", "-o", path], &super::SHORT[..]].concat();
        let redirected = fs::File::create(dir.path().join("redirected")).unwrap();
        assert!(command(dir.path(), &arguments).stdout(redirected).status().unwrap().success());
        assert_eq!(fs::read(dir.path().join("redirected")).unwrap(), expected);
    }
    assert!(dir.path().join("link").is_symlink());
    assert_eq!(names(dir.path()), ["file.png", "link", "redirected"]);
    for (arguments, part) in [
        (&["-o", "link", "--json"][..], "--output -: cannot be combined with --json"),
        (&["-o", "x.png", "--grid", "link"], "--grid link: standard output, to which --output alone"),
        (&["-o", "x.png", "--trace", "-"], "--trace -: standard output"),
    ] {
        let output = run(dir.path(), &[&["-p", "a"], arguments].concat());
        assert!(output.status.code() == Some(2) && text(&output.stderr).contains(part), "{output:?}");
    }
}

#[test]
fn outputs_do_not_take_the_place_of_each_other_or_of_what_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |arguments: &[&str], line: &str| {
        let output = run(dir.path(), &[&["--device", "wgpu:99"], arguments].concat());
        assert_refused(dir.path(), &output, 2, &[line]);
    };
    refused(&["-p", "a", "-o", "x.png", "--trace", "x.png"], "--trace x.png: the file that --output writes as x.png");
    refused(&["-p", "a", "-o", "x.png", "--grid", "./x.png"], "--grid ./x.png: the file that --output writes as x.png");
    refused(&["-p", "a", "-b", "2", "-o", "x-%d.png", "--grid", "x-1.png"], "the file that --output writes as x-1.png");
    fs::write(dir.path().join("list.txt"), "a frog").unwrap();
    refused(
        &["--prompts", "list.txt", "-o", "x.png", "--trace", "list.txt"],
        "the file that --prompts reads as list.txt",
    );
    let pictures = tempfile::tempdir().unwrap();
    photo(pictures.path());
    let short = ["--decoder-steps", "2", "--super-res-steps", "2", "-o", "photo.png"];
    let over = engine(pictures.path(), &[&["run", "-m", super::MODEL, "-i", "./photo.png"][..], &short].concat());
    assert!(over.status.code() == Some(2) && text(&over.stderr).contains("the file that --image reads as ./photo.png"));
}

#[test]
fn what_a_killed_run_left_is_removed_by_the_next() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("x.png.99999999-3.tmp"), "half").unwrap();
    fs::write(dir.path().join("y.png.99999999-3.tmp"), "of another").unwrap();
    let (_, said) = written(dir.path(), &["-o", "x.png"]);
    assert!(said.contains("removed what killed runs left unfinished: 1"), "{said}");
    assert_eq!(names(dir.path()), ["x.png", "y.png.99999999-3.tmp"]);
}

/// Threads beyond the processors only wait for each other.
#[test]
fn no_more_threads_are_started_than_are_of_use() {
    let dir = tempfile::tempdir().unwrap();
    let (_, said) = written(dir.path(), &["--threads", "100000", "--device", "cpu"]);
    let most = unclip::backend::cpu::Cpu::most_threads();
    let line = said.lines().next().unwrap();
    assert!(line.contains(&format!("{most} threads")), "{line}");
    assert!(
        line.ends_with(&format!("--threads 100000: {most} are enough for the processors of this process")),
        "{line}"
    );
}

/// A path is no text: it may hold any bytes.
#[cfg(target_os = "linux")]
#[test]
fn paths_that_are_not_utf8_work_everywhere() {
    use std::os::unix::ffi::OsStrExt;
    let dir = tempfile::tempdir().unwrap();
    let name = |text: &[u8]| dir.path().join(std::ffi::OsStr::from_bytes(text));
    let model = name(b"mod\xe9l");
    super::copy_folder(Path::new(super::MODEL), &model);
    let inspected = command(dir.path(), &["inspect", "--json"]).arg(&model).output().unwrap();
    assert!(inspected.status.success(), "{}", text(&inspected.stderr));
    let report: serde_json::Value = serde_json::from_slice(&inspected.stdout).unwrap();
    assert!(report["path"].as_str().unwrap().ends_with("mod\u{fffd}l"), "{report}");
    let arguments = [&["run", "--json", "-p", "a"], &super::SHORT[..]].concat();
    let files =
        [("-m", &model), ("-o", &name(b"caf\xe9.png")), ("--grid", &name(b"gr\xefd.png")), ("--trace", &name(b"\xff"))];
    let mut made = command(dir.path(), &arguments);
    files.iter().for_each(|(flag, path)| _ = made.arg(flag).arg(path));
    let made = made.output().unwrap();
    assert!(made.status.success() && files.iter().all(|(_, path)| path.exists()), "{}", text(&made.stderr));
    assert!(text(&made.stdout).contains("caf\u{fffd}.png"), "{made:?}");
}
