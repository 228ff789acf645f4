//! The command line as a person or a program meets it: files, exit codes, one clear line for every mistake.
#![cfg(feature = "cli")]

#[cfg(feature = "tokenizer")]
#[path = "cli/adapters.rs"]
mod adapters;
#[path = "cli/blends.rs"]
mod blends;
#[path = "cli/checkpoints.rs"]
mod checkpoints;
#[cfg(feature = "tokenizer")]
#[path = "cli/clip.rs"]
mod clip;
#[path = "cli/devices.rs"]
mod devices;
#[path = "cli/edits.rs"]
mod edits;
#[path = "cli/enlarge.rs"]
mod enlarge;
#[cfg(all(feature = "default-model", feature = "tokenizer"))]
#[path = "cli/families.rs"]
mod families;
#[path = "cli/formats.rs"]
mod formats;
#[path = "cli/noise.rs"]
mod noise;
#[path = "cli/outputs.rs"]
mod outputs;
#[path = "cli/plans.rs"]
mod plans;
#[path = "cli/previews.rs"]
mod previews;
#[path = "cli/subjects.rs"]
mod subjects;
mod support;

use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use support::files::copy_folder;
use support::golden::MODEL;
use tempfile::TempDir;
use unclip::image::{Format, Texts};

/// Few steps: what is tested here does not depend on the picture.
const SHORT: [&str; 6] = ["--prior-steps", "2", "--decoder-steps", "2", "--super-res-steps", "2"];

/// The command in a folder, without what the user's environment would say, and without a desktop.
fn command(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_engine"));
    command.args(arguments).current_dir(dir);
    for variable in ["MODEL", "PRIOR", "DEVICE", "DTYPE", "THREADS"] {
        command.env_remove(format!("ENGINE_{variable}"));
    }
    command.env_remove("XDG_RUNTIME_DIR").env("HF_HUB_CACHE", dir.join("hub"));
    command
}

fn engine(dir: &Path, arguments: &[&str]) -> Output {
    command(dir, arguments).output().unwrap()
}

/// `engine run` on the tiny checkpoint in an empty folder.
fn run(dir: &Path, arguments: &[&str]) -> Output {
    engine(dir, &[&["run", "-m", MODEL], &SHORT[..], arguments].concat())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Fails with the exit code and one line that contains each of `parts`, and leaves nothing in the folder.
#[track_caller]
fn assert_refused(dir: &Path, output: &Output, code: i32, parts: &[&str]) {
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{error}");
    let line: Vec<&str> = error.lines().filter(|l| l.starts_with("engine: ")).collect();
    assert!(line.len() == 1 && !error.contains("panicked"), "{error}");
    assert!(parts.iter().all(|part| line[0].contains(part)), "{line:?} should contain {parts:?}");
    assert!(!names(dir).iter().any(|name| name.contains("png")), "{:?}", names(dir));
}

/// Pixels and text chunks of a PNG.
fn png(path: &Path) -> (Vec<u8>, Vec<(String, String)>) {
    let mut reader = png::Decoder::new(BufReader::new(fs::File::open(path).unwrap())).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    reader.next_frame(&mut pixels).unwrap();
    reader.finish().unwrap();
    let info = reader.info();
    let latin = info.uncompressed_latin1_text.iter().map(|t| (t.keyword.clone(), t.text.clone()));
    let utf8 = info.utf8_text.iter().map(|t| (t.keyword.clone(), t.get_text().unwrap()));
    (pixels, latin.chain(utf8).collect())
}

/// One text chunk of a PNG.
fn chunk(path: &Path, keyword: &str) -> String {
    let (_, chunks) = png(path);
    chunks.iter().find(|(key, _)| key == keyword).unwrap_or_else(|| panic!("{keyword}: {chunks:?}")).1.clone()
}

/// A copy of the tiny checkpoint that may be damaged.
fn copy() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    copy_folder(Path::new(MODEL), &model);
    (dir, model)
}

#[test]
fn a_prompt_becomes_a_picture_that_carries_its_settings() {
    let dir = tempfile::tempdir().unwrap();
    let output = run(dir.path(), &["-p", "a red apple, ripe", "-n", "worm", "-s", "5"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!((text(&output.stdout).as_str(), names(dir.path())), ("out.png\n", vec!["out.png".to_owned()]));
    let (pixels, chunks) = png(&dir.path().join("out.png"));
    assert_eq!(pixels.len(), 64 * 64 * 3);
    let chunk = |key: &str| chunks.iter().find(|(k, _)| k == key).unwrap().1.clone();
    let parameters = chunk("parameters");
    assert!(parameters.starts_with("a red apple, ripe\nNegative prompt: worm\nSteps: 2, "), "{parameters}");
    assert!(parameters.contains("Seed: 5, Size: 64x64, Model: tiny"), "{parameters}");
    let request: Value = serde_json::from_str(&chunk("unclip")).unwrap();
    assert_eq!((&request["prompt"], &request["seed"]), (&"a red apple, ripe".into(), &5.into()));
    assert_eq!((&request["super_res_steps"], &request["decoder_guidance"]), (&2.into(), &8.0.into()));
}

#[cfg(feature = "default-model")]
#[test]
fn the_built_in_model_draws_what_was_asked_whatever_was_asked() {
    let dir = tempfile::tempdir().unwrap();
    let output = engine(dir.path(), &["run", "a red apple", "--device", "cpu"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("built-in model"), "{}", text(&output.stderr));
    let (pixels, chunks) = png(&dir.path().join("out.png"));
    assert!(chunks.iter().any(|(_, text)| text.contains("Model: built-in model ")), "{chunks:?}");
    let middle = &pixels[pixels.len() / 2 + 64 * 3..][..3];
    assert!(middle[0] > 150 && middle[1] < 110 && middle[2] < 130, "not red: {middle:?}");
    // Nothing, another script, more than fits: pictures, with a warning for what was cut.
    let long = "a dog in the garden ".repeat(20);
    let odd = engine(dir.path(), &["run", "-p", "", "-p", "кошка 猫", "-p", &long, "--device", "cpu"]);
    assert!(odd.status.success() && text(&odd.stderr).contains("too long"), "{}", text(&odd.stderr));
    assert_eq!(names(dir.path()), ["out-000.png", "out-001.png", "out-002.png", "out.png"]);
    let missing = engine(dir.path(), &["run", "-p", "a", "-m", "nowhere"]);
    assert!(text(&missing.stderr).contains("without --model and ENGINE_MODEL the built-in model is used"));
}

/// A recorded picture as a file.
fn photo(dir: &Path) {
    let photo = support::golden::Recording::variation().image("input");
    photo.write(dir.join("photo.png"), Format::Png, &Texts::default()).unwrap();
}

#[test]
fn a_picture_becomes_variations_that_say_of_what() {
    let dir = tempfile::tempdir().unwrap();
    photo(dir.path());
    let short = ["--decoder-steps", "2", "--super-res-steps", "2", "--json", "-b", "2", "-s", "5", "-o", "v%d.png"];
    let output = engine(dir.path(), &[&["run", "-m", MODEL, "--image", "photo.png"], &short[..]].concat());
    assert!(output.status.success() && output.stderr.is_empty(), "{}", text(&output.stderr));
    let events: Vec<Value> = text(&output.stdout).lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert!(events.iter().any(|e| e["event"] == "end" && e["stage"] == "image_encoder"));
    let pictures: Vec<&Value> = events.iter().filter(|e| e["event"] == "picture").collect();
    assert_eq!((pictures.len(), &pictures[1]["image"], &pictures[1]["seed"]), (2, &"photo.png".into(), &6.into()));
    let (_, chunks) = png(&dir.path().join("v1.png"));
    let chunk = |key: &str| chunks.iter().find(|(k, _)| k == key).unwrap().1.clone();
    assert!(chunk("parameters").starts_with("\nSteps: 2, ") && chunk("parameters").contains("Variation of: photo.png"));
    let request: Value = serde_json::from_str(&chunk("unclip")).unwrap();
    assert_eq!((&request["image"], &request["seed"]), (&"photo.png".into(), &6.into()));
    assert!(request.get("prompt").is_none() && request.get("prior_steps").is_none(), "{request}");
}

#[cfg(feature = "default-model")]
#[test]
fn the_built_in_model_makes_variations() {
    let dir = tempfile::tempdir().unwrap();
    let red = unclip::image::Image { width: 70, height: 64, pixels: [220, 20, 30].repeat(70 * 64) };
    red.write(dir.path().join("red.png"), Format::Png, &Texts::default()).unwrap();
    let output = engine(dir.path(), &["run", "-i", "red.png", "--device", "cpu", "--decoder-steps", "4"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(png(&dir.path().join("out.png")).0.len(), 128 * 128 * 3);
}

#[test]
fn images_that_cannot_be_varied_are_named() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("photo.jpg"), b"\xff\xd8\xff").unwrap();
    let image =
        |path: &str, more: &[&str]| engine(dir.path(), &[&["run", "-m", MODEL, "--image", path], more].concat());
    assert_refused(dir.path(), &image("none", &[]), 5, &["cannot open none"]);
    assert_refused(dir.path(), &image("photo.jpg", &[]), 5, &["photo.jpg", "a JPEG picture"]);
    let (without, model) = copy();
    fs::remove_dir_all(model.join("image_encoder")).unwrap();
    let model = model.to_str().unwrap();
    let photos = tempfile::tempdir().unwrap();
    photo(photos.path());
    let photo = photos.path().join("photo.png");
    let photo = photo.to_str().unwrap();
    let missing = engine(without.path(), &["run", "-m", model, "--image", photo]);
    assert_refused(without.path(), &missing, 3, &[model, "missing from the checkpoint: image_encoder", "variations"]);
    let both = "--prompt: cannot be combined with a picture to vary: a variation starts from the picture's embedding";
    for prompt in [&["-p", "a"][..], &["a"]] {
        assert_refused(dir.path(), &image(photo, prompt), 2, &[both]);
    }
    let prior = image(photo, &["--prior-guidance", "2"]);
    assert_refused(dir.path(), &prior, 2, &["--prior-guidance cannot be combined with --image", "no prior"]);
    let itself = image(photo, &["-o", photo]);
    assert_refused(dir.path(), &itself, 2, &["--output", "photo.png: the file that --image reads"]);
}

#[test]
fn pictures_are_numbered_and_each_can_be_made_alone() {
    let dir = tempfile::tempdir().unwrap();
    let output = run(dir.path(), &["-p", "a", "-p", "b", "-b", "2", "-s", "7", "--grid", "sheet.png", "-q"]);
    assert!(output.status.success() && output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");
    assert_eq!(names(dir.path()), ["out-000.png", "out-001.png", "out-002.png", "out-003.png", "sheet.png"]);
    assert!(run(dir.path(), &["-p", "b", "-s", "10", "-o", "alone-%d.png", "--threads", "1"]).status.success());
    let pixels = |name: &str| png(&dir.path().join(name)).0;
    assert_eq!(pixels("out-003.png"), pixels("alone-0.png"));
    assert_ne!(pixels("out-002.png"), pixels("out-003.png"));
    assert_eq!(pixels("sheet.png").len(), 4 * pixels("out-000.png").len());
}

#[test]
fn json_events_tell_the_whole_run() {
    let dir = tempfile::tempdir().unwrap();
    let output = run(dir.path(), &["-p", "a", "--json", "--trace", "t.safetensors"]);
    assert!(output.status.success() && output.stderr.is_empty(), "{}", text(&output.stderr));
    let events: Vec<Value> = text(&output.stdout).lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let count = |name: &str| events.iter().filter(|e| e["event"] == name).count();
    assert_eq!((count("begin"), count("loaded"), count("end"), count("step"), count("picture")), (6, 6, 6, 6, 1));
    assert_eq!(events.last().unwrap()["event"], "done");
    let start = &events[0];
    assert_eq!((&start["event"], &start["pictures"]), (&"start".into(), &1.into()));
    let settings: Value = serde_json::from_str(&chunk(&dir.path().join("out.png"), "unclip")).unwrap();
    assert_eq!(start["recipe"], settings);
    assert!(settings["device"].as_str().is_some_and(|device| !device.is_empty()) && settings["dtype"] == "f32");
    let trace = fs::read(dir.path().join("t.safetensors")).unwrap();
    let names = safetensors::SafeTensors::deserialize(&trace).unwrap();
    assert!(names.tensor("decoder/step_01/latents").is_ok() && names.tensor("image/u8").is_ok());
}

#[test]
fn wrong_usage_is_named_and_exits_with_2() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |arguments: &[&str], parts: &[&str]| {
        let output = engine(dir.path(), &[&["run", "-m", MODEL, "-p", "a"], arguments].concat());
        assert_refused(dir.path(), &output, 2, parts);
    };
    // Before the device is opened: there is none of this number.
    let absent = ["--device", "wgpu:99"];
    refused(&[&absent[..], &["--prior-steps", "0"]].concat(), &["engine: --prior-steps 0: must be 2 to 1000"]);
    refused(&[&absent[..], &["--super-res-steps", "1"]].concat(), &["engine: --super-res-steps 1: must be 2 to 1000"]);
    refused(&["--decoder-guidance", "nan"], &["engine: --decoder-guidance NaN: must be finite"]);
    refused(&["-b", "0"], &["engine: --batch 0: must be at least 1"]);
    refused(&["-b", "70000"], &["engine: --batch 70000: must not make more than 65536 pictures"]);
    refused(&["-b", "2", "-o", "x.png"], &["engine: --output x.png: 2 pictures", "%03d"]);
    refused(&["--dtype", "tf32", "--device", "cpu"], &["engine: --dtype tf32: the CPU computes in f32 or bf16"]);
    refused(&["--matrices", "--device", "cpu"], &["--matrices", "--device wgpu"]);
    refused(&["--matrices", "--device", "wgpu"], &["--matrices", "--dtype f16"]);
    let no_prompt = engine(dir.path(), &["run", "-m", MODEL]);
    assert_refused(
        dir.path(),
        &no_prompt,
        2,
        &["engine: PROMPT: missing; give one in quotes, or with --image a picture"],
    );
    let seed = run(dir.path(), &["-p", "a", "-s", "lucky"]);
    assert!(seed.status.code() == Some(2) && text(&seed.stderr).contains("or random"), "{seed:?}");
}

#[test]
fn flags_have_variables_and_flags_come_before_them() {
    let dir = tempfile::tempdir().unwrap();
    let with = |variable: &str, value: &str, arguments: &[&str]| {
        command(dir.path(), arguments).env(variable, value).output().unwrap()
    };
    let prompt = [&["run", "-p", "a"][..], &SHORT].concat();
    let model = with("ENGINE_MODEL", MODEL, &[&prompt[..], &["-v"]].concat());
    assert!(model.status.success() && text(&model.stderr).contains("tiny on "), "{model:?}");
    let inspect = with("ENGINE_MODEL", MODEL, &["inspect"]);
    assert!(text(&inspect.stdout).contains("433340"), "{inspect:?}");
    let device = with("ENGINE_DEVICE", "wgpu:99", &[&prompt[..], &["-m", MODEL, "-o", "x.png"]].concat());
    assert_eq!(device.status.code(), Some(4), "{device:?}");
    let flag = with("ENGINE_DEVICE", "wgpu:99", &[&prompt[..], &["-m", MODEL, "--device", "cpu"]].concat());
    assert!(flag.status.success(), "{flag:?}");
    let threads = with("ENGINE_THREADS", "1", &[&prompt[..], &["-m", MODEL, "--device", "cpu"]].concat());
    assert!(text(&threads.stderr).contains("1 threads"), "{threads:?}");
    let dtype = with("ENGINE_DTYPE", "bf16", &[&prompt[..], &["-m", MODEL, "--device", "cpu", "--json"]].concat());
    assert!(text(&dtype.stdout).contains("\"dtype\":\"bf16\""), "{dtype:?}");
}

#[test]
fn the_device_that_computes_is_always_said() {
    let dir = tempfile::tempdir().unwrap();
    let said = |arguments: &[&str]| text(&run(dir.path(), &[&["-p", "a"], arguments].concat()).stderr);
    assert!(said(&["--device", "cpu"]).starts_with("tiny on cpu ("), "{}", said(&["--device", "cpu"]));
    assert!(said(&[]).starts_with("tiny on "), "{}", said(&[]));
    assert_eq!(said(&["-q"]), "");
}

#[test]
fn nothing_foreign_is_said_where_there_is_no_desktop() {
    let dir = tempfile::tempdir().unwrap();
    let output = engine(dir.path(), &["devices"]);
    assert!(output.status.success() && output.stderr.is_empty(), "{}", text(&output.stderr));
}

#[test]
fn unwritable_outputs_are_found_before_the_work_and_exit_with_5() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    fs::create_dir(dir.path().join("folder")).unwrap();
    for flag in ["-o", "--trace", "--grid"] {
        let inside = run(dir.path(), &["-p", "a", flag, "file/x"]);
        assert_refused(dir.path(), &inside, 5, &["cannot create the folder file: "]);
        let output = run(dir.path(), &["-p", "a", flag, "folder", "--json"]);
        assert_refused(dir.path(), &output, 5, &["cannot write folder"]);
        let events = text(&output.stdout);
        assert!(events.lines().count() == 1 && events.contains("\"exit_code\":5"), "{events}");
    }
}

#[test]
fn damaged_checkpoints_are_named_and_exit_with_3() {
    let refused = |damage: &dyn Fn(&Path), parts: &[&str]| {
        let (dir, model) = copy();
        damage(&model);
        let model = model.to_str().unwrap();
        let output = engine(dir.path(), &[&["run", "-m", model, "-p", "a"], &SHORT[..]].concat());
        assert_refused(dir.path(), &output, 3, parts);
        let inspected = engine(dir.path(), &["inspect", model]);
        assert_refused(dir.path(), &inspected, 3, &["would not"]);
        let table = text(&inspected.stdout) + &text(&inspected.stderr);
        assert!(parts.iter().any(|part| table.contains(part)), "{table} should name one of {parts:?}");
    };
    let weights = "decoder/diffusion_pytorch_model.safetensors";
    refused(&|m| fs::remove_dir_all(m.join("prior")).unwrap(), &["missing from the checkpoint: prior"]);
    refused(&|m| fs::remove_file(m.join(weights)).unwrap(), &["decoder", "diffusion_pytorch_model.safetensors"]);
    let truncate = |m: &Path| {
        let bytes = fs::read(m.join(weights)).unwrap();
        fs::write(m.join(weights), &bytes[..bytes.len() - 100]).unwrap();
    };
    refused(&truncate, &[weights, "truncated"]);
    let edit = |file: &'static str, from: &'static str, to: &'static str| {
        move |m: &Path| {
            let old = fs::read_to_string(m.join(file)).unwrap();
            assert!(old.contains(from), "{file} has no {from}");
            fs::write(m.join(file), old.replace(from, to)).unwrap();
        }
    };
    refused(&edit("decoder/config.json", "\"silu\"", "\"sinus\""), &["decoder", "act_fn", "sinus"]);
    refused(&edit("prior/config.json", "\"num_layers\": 2", "\"num_layers\": 3"), &["prior", "transformer_blocks.2"]);
    let scheduler = "decoder_scheduler/scheduler_config.json";
    refused(&edit(scheduler, "\"epsilon\"", "\"velocity\""), &[scheduler, "prediction_type", "velocity"]);
}

#[test]
fn a_missing_checkpoint_is_named() {
    let dir = tempfile::tempdir().unwrap();
    for command in [&["run", "-p", "a", "-m"][..], &["inspect"], &["plan", "--stage", "prior", "-m"]] {
        let output = engine(dir.path(), &[command, &["no/such/model"]].concat());
        assert_refused(dir.path(), &output, 3, &["no/such/model", "no such folder"]);
    }
}

#[test]
fn inspect_lists_every_component() {
    let dir = tempfile::tempdir().unwrap();
    let output = engine(dir.path(), &["inspect", MODEL]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let table = text(&output.stdout);
    for part in ["decoder ", "prior_scheduler", "193454", "433340", "tokenizer/vocab.json"] {
        assert!(table.contains(part), "{part} is not in\n{table}");
    }
    let json = engine(dir.path(), &["inspect", MODEL, "--json"]);
    let report: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!((&report["parameters"], report["components"].as_array().unwrap().len()), (&433_340.into(), 12));
    assert!(table.contains("default steps: prior 25, decoder 25, super-resolution 7"), "{table}");
    assert_eq!((&report["defaults"]["decoder_guidance"], &report["subjects"]), (&8.0.into(), &Value::Array(vec![])));
}

#[cfg(feature = "default-model")]
#[test]
fn what_the_built_in_model_knows_is_listed_and_hinted_at() {
    let dir = tempfile::tempdir().unwrap();
    let table = text(&engine(dir.path(), &["inspect"]).stdout);
    assert!(table.contains("knows 172 things:\n  dog, cat, rabbit, ") && table.contains("default steps: prior 10"));
    assert!(table.lines().all(|line| line.len() < 125), "{table}");
    let report: Value = serde_json::from_slice(&engine(dir.path(), &["inspect", "--json"]).stdout).unwrap();
    assert_eq!(report["subjects"][0], serde_json::json!(["dog", "puppy", "dog face"]));
    let nothing = engine(dir.path(), &["run"]);
    assert_refused(dir.path(), &nothing, 2, &["such as \"a dog\" or ", "--image"]);
    let short = ["--prior-steps", "2", "--decoder-steps", "2", "--super-res-steps", "2", "--device", "cpu"];
    let said = |prompt: &str| text(&engine(dir.path(), &[&["run", prompt], &short[..]].concat()).stderr);
    assert!(said("a volcano").contains("\"a volcano\": none of the 172 things"), "{}", said("a volcano"));
    assert!(!said("two puppies").contains("none of the"), "{}", said("two puppies"));
}

#[test]
fn bench_compares_with_an_earlier_run() {
    let folder = tempfile::tempdir().unwrap();
    let run = |more: &[&str]| {
        let bench = ["bench", "--device", "cpu", "--threads", "1", "--seconds", "0", "--filter", "linear/rows-7"];
        engine(folder.path(), &[&bench[..], more].concat())
    };
    let json = run(&["--json"]);
    assert_eq!(json.status.code(), Some(0), "{}", text(&json.stderr));
    let mut report: Value = serde_json::from_slice(&json.stdout).unwrap();
    let case = &report["cases"][0];
    assert_eq!((&case["name"], &case["samples"]), (&"linear/rows-7".into(), &5.into()));
    assert_eq!(case["flops"], 2 * 7 * 37 * 21);

    // As if it had taken a second, and as if it had taken no time.
    for (seconds, code, said) in [(1.0, 0, ""), (1e-12, 1, "engine: slower: linear/rows-7 ")] {
        for key in ["median_s", "least_s", "most_s"] {
            report["cases"][0][key] = seconds.into();
        }
        fs::write(folder.path().join("before.json"), report.to_string()).unwrap();
        let compared = run(&["--compare", "before.json"]);
        assert_eq!(compared.status.code(), Some(code), "{}", text(&compared.stderr));
        assert!(text(&compared.stderr).contains(said), "{}", text(&compared.stderr));
        assert_eq!(text(&compared.stdout).contains(" slower"), code == 1);
    }
    fs::write(folder.path().join("before.json"), "{}").unwrap();
    assert_refused(folder.path(), &run(&["--compare", "before.json"]), 2, &["--compare", "before.json"]);
    assert_refused(folder.path(), &run(&["--compare", "none.json"]), 5, &["none.json"]);
    assert_refused(
        folder.path(),
        &engine(folder.path(), &["bench", "--filter", "no such"]),
        2,
        &["--filter", "--list"],
    );
    assert_refused(folder.path(), &engine(folder.path(), &["bench", "--seconds=-1"]), 2, &["--seconds", "-1"]);
}

#[test]
fn devices_are_listed_and_one_that_is_not_there_exits_with_4() {
    let dir = tempfile::tempdir().unwrap();
    let output = engine(dir.path(), &["devices"]);
    let table = text(&output.stdout);
    assert!(output.status.success() && table.starts_with("cpu "), "{output:?}");
    assert_eq!(table.matches("<- auto").count(), 1, "{table}");
    for line in table.lines() {
        let name = line.split_whitespace().next().unwrap();
        assert!(!line.contains(&format!("{name}:")) && line.matches(&format!("{name} ")).count() == 1, "{line}");
    }
    let json = engine(dir.path(), &["devices", "--json"]);
    let devices: Vec<Value> = serde_json::from_slice(&json.stdout).unwrap();
    assert!(devices[0]["device"] == "cpu" && devices.len() == table.lines().count(), "{devices:?}");
    #[cfg(target_os = "linux")]
    assert!(devices[0]["memory_bytes"].as_u64().is_some_and(|bytes| bytes > 1 << 28), "{devices:?}");
    let missing = run(dir.path(), &["-p", "a", "--device", "wgpu:99"]);
    assert_refused(dir.path(), &missing, 4, &["wgpu"]);
    let unknown = run(dir.path(), &["-p", "a", "--device", "abacus"]);
    assert!(unknown.status.code() == Some(2) && text(&unknown.stderr).contains("wgpu[:N]"), "{unknown:?}");
}

#[test]
fn help_has_examples_and_completions_know_the_flags() {
    let dir = tempfile::tempdir().unwrap();
    let help = engine(dir.path(), &["run", "--help"]);
    assert!(help.status.success(), "{help:?}");
    let help = text(&help.stdout);
    for part in ["\nWhat:\n  [PROMPT]", "\nHow:\n", "\nWhere:\n", "\nOutput:\n", "\nExamples:\n", "[env: ENGINE_MODEL"]
    {
        assert!(help.contains(part), "{part:?} is not in\n{help}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let script = engine(dir.path(), &["completions", shell]);
        assert!(script.status.success() && text(&script.stdout).contains("decoder-guidance"), "{shell}");
        assert!(text(&script.stdout).contains("cuda-emulator"), "{shell}");
        let guessed = command(dir.path(), &["completions"]).env("SHELL", format!("/usr/bin/{shell}")).output().unwrap();
        assert!(guessed.stdout == script.stdout, "{shell}");
    }
    let unknown = command(dir.path(), &["completions"]).env("SHELL", "/bin/unheard-of").output().unwrap();
    assert_refused(dir.path(), &unknown, 2, &["engine: SHELL: not known", "bash"]);
}

/// Ctrl-C in the middle of a run.
#[cfg(unix)]
#[test]
fn an_interrupted_run_leaves_no_picture_and_exits_with_130() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_engine"))
        .args(["run", "-m", MODEL, "-p", "a", "-b", "8", "--decoder-steps", "1000", "--json"])
        .current_dir(dir.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let started = |line: &str| line.contains("\"step\"") && line.contains("decoder");
    assert!(lines.by_ref().any(|line| started(&line.unwrap())));
    let kill = Command::new("sh").args(["-c", &format!("kill -INT {}", child.id())]).status().unwrap();
    assert!(kill.success());
    let last = lines.map(Result::unwrap).last().unwrap();
    assert!(last.contains("interrupted") && last.contains("130"), "{last}");
    let output = child.wait_with_output().unwrap();
    assert_refused(dir.path(), &output, 130, &["interrupted"]);
    assert!(names(dir.path()).is_empty());
}
