//! `--lora`, `engine merge` and `engine inspect` of adapters on the tiny checkpoint.

use super::{MODEL, SHORT, assert_refused, engine, names, png, run, text};
use std::fs;
use std::path::Path;
use tempfile::TempDir;
use unclip::pipeline::Recipe;

const ADAPTERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/adapters");

fn file(name: &str) -> String {
    format!("{ADAPTERS}/{name}")
}

#[track_caller]
fn made(dir: &Path, arguments: &[&str]) -> String {
    let output = engine(dir, &[&["run", "--device", "cpu"], &SHORT[..], arguments].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stderr)
}

#[test]
fn pictures_with_adapters_are_those_of_the_merged_checkpoint_and_are_made_again_from_their_settings() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::copy(file("kohya.safetensors"), at("style.safetensors")).unwrap();
    let folder = file("peft-folder") + ":-0.5";
    let given = ["--lora", "style.safetensors:0.75", "--lora", &folder];
    let base = ["-m", MODEL, "an apple"];
    made(dir.path(), &[&base[..], &["-o", "base.png"]].concat());
    made(dir.path(), &[&base[..], &given, &["-o", "with.png"]].concat());
    made(dir.path(), &[&base[..], &["--lora", "style.safetensors:0", "-o", "zero.png"]].concat());
    let pixels = |name: &str| png(&at(name)).0;
    assert_ne!(pixels("with.png"), pixels("base.png"));
    assert_eq!(pixels("zero.png"), pixels("base.png"));

    let merged = engine(dir.path(), &[&["merge", "-m", MODEL, "-o", "merged"], &given[..]].concat());
    assert!(merged.status.success(), "{}", text(&merged.stderr));
    assert!(text(&merged.stderr).contains("14 tensors changed"), "{}", text(&merged.stderr));
    made(dir.path(), &["-m", "merged", "an apple", "-o", "merged.png"]);
    assert_eq!(pixels("merged.png"), pixels("with.png"));

    let recipe = Recipe::read(at("with.png")).unwrap().swap_remove(0);
    let used: Vec<(&str, f32)> = recipe.adapters.iter().map(|used| (used.name.as_str(), used.scale)).collect();
    assert_eq!(used, [("style.safetensors", 0.75), ("peft-folder", -0.5)]);
    let again = |more: &[&str]| {
        run(dir.path(), &[&["--device", "cpu", "--from", "with.png", "-o", "again.png"], more].concat())
    };
    fs::rename(at("merged"), at("model")).unwrap();
    let lacking = again(&[]);
    let error = text(&lacking.stderr);
    assert_eq!(lacking.status.code(), Some(2), "{error}");
    assert!(
        error.contains("--from with.png: made with the adapter peft-folder at -0.5, which is neither beside"),
        "{error}"
    );
    super::copy_folder(file("peft-folder").as_ref(), &at("peft-folder"));
    assert!(again(&[]).status.success());
    assert_eq!(pixels("again.png"), pixels("with.png"));
    fs::copy(file("kohya-f16.safetensors"), at("style.safetensors")).unwrap();
    let error = text(&again(&[]).stderr);
    assert!(error.contains("style.safetensors at 0.75, and what has that name is another file"), "{error}");
    // What is named takes the place of what the settings say.
    assert!(again(&["--lora", "style.safetensors:0"]).status.success());
    assert_eq!(pixels("again.png"), pixels("base.png"));
}

#[test]
fn adapters_that_cannot_be_used_are_refused_in_one_line_before_the_work() {
    let dir = TempDir::new().unwrap();
    let [dora, kohya] = [file("dora-out.safetensors"), file("kohya.safetensors")];
    fs::write(dir.path().join("text.safetensors"), "no adapter").unwrap();
    for (lora, code, parts) in [
        ("none.safetensors:0.5".to_owned(), 5, &["cannot open none.safetensors"][..]),
        ("text.safetensors".to_owned(), 3, &["text.safetensors", "expected"]),
        (dora.clone() + ":0.5", 2, &["--lora 0.5", "DoRA has no scale but 1"]),
        (MODEL.to_owned() + "/prior/diffusion_pytorch_model.safetensors", 3, &["no adapter"]),
    ] {
        assert_refused(dir.path(), &run(dir.path(), &["a", "--lora", &lora]), code, parts);
    }
    let both = run(dir.path(), &["a", "--lora", &dora, "--lora", &kohya]);
    assert_refused(dir.path(), &both, 3, &["dora-out.safetensors", "cannot stand beside kohya.safetensors"]);
    let scale = run(dir.path(), &["a", "--lora", &(kohya.clone() + ":much")]);
    assert!(
        scale.status.code() == Some(2) && text(&scale.stderr).contains("expected a scale"),
        "{}",
        text(&scale.stderr)
    );
    // The built-in model has other sizes.
    let other = engine(dir.path(), &["run", "a", "--lora", &kohya]);
    if cfg!(feature = "default-model") {
        assert_refused(dir.path(), &other, 3, &["kohya.safetensors", "does not fit built-in model"]);
    }
    let merge = |more: &[&str]| engine(dir.path(), &[&["merge", "-m", MODEL, "-o", "new"], more].concat());
    assert_refused(dir.path(), &merge(&[]), 2, &["--lora", "missing"]);
    fs::create_dir_all(dir.path().join("new/x")).unwrap();
    assert_refused(dir.path(), &merge(&["--lora", &kohya]), 2, &["--output", "is there already"]);
    assert_eq!(names(dir.path()), ["new", "text.safetensors"]);
}

#[test]
fn inspect_says_what_an_adapter_changes_and_what_would_not_apply() {
    let dir = TempDir::new().unwrap();
    let inspect = |arguments: &[&str]| engine(dir.path(), &[&["inspect"], arguments].concat());
    let kohya = file("kohya.safetensors");
    let plain = text(&inspect(&[&kohya]).stdout);
    for part in ["kohya and LyCORIS", "LoRA", "33, F32", "rank        2", "1.5", "tiny.safetensors", "networks.lora"] {
        assert!(plain.contains(part), "{part}: {plain}");
    }
    let fitted = inspect(&[&kohya, "-m", MODEL]);
    let shown = text(&fitted.stdout);
    assert!(fitted.status.success() && shown.contains("fits        tiny: 11 tensors"), "{shown}");
    for part in
        ["decoder     add_k_proj x1, add_v_proj x1, time_emb_proj x1, to_out.0 x1", "text_encoder fc1 x1, fc2 x1"]
    {
        assert!(shown.contains(part), "{shown}");
    }
    let prior = format!("{MODEL}/prior");
    let json = text(&inspect(&[&file("peft-rslora"), "-m", MODEL, "--json"]).stdout);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let scale = json["modules"][0]["scale"].as_f64().unwrap();
    assert!((scale - 3.0 / 2f64.sqrt()).abs() < 1e-6 && json["base"] == "tiny", "{json}");
    if cfg!(feature = "default-model") {
        let other = inspect(&[&kohya, "-m", "built-in"]);
        let shown = text(&other.stdout);
        assert!(other.status.code() == Some(3) && shown.contains("would not apply: "), "{shown}");
    }
    let none = inspect(&[&prior, "-m", MODEL]);
    assert!(none.status.code() == Some(2) && text(&none.stderr).contains("--model"), "{}", text(&none.stderr));
}
