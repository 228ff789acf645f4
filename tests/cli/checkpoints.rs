//! Checkpoints as people have them: what loads as in the original, what is refused, and that it is refused before work.

use super::*;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors, serialize};
use std::collections::BTreeMap;

const DIFFUSERS: &str = "diffusion_pytorch_model.safetensors";

/// Type, shape and bytes of the tensors of a file.
pub type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn read(path: &Path) -> Tensors {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensor =
        |(name, view): (String, TensorView<'_>)| (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec()));
    file.tensors().into_iter().map(tensor).collect()
}

fn write(path: &Path, tensors: &Tensors) {
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, bytes))| (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    fs::write(path, serialize(views, None).unwrap()).unwrap();
}

pub fn edit(path: &Path, change: impl FnOnce(&mut Tensors)) {
    let mut tensors = read(path);
    change(&mut tensors);
    write(path, &tensors);
}

fn rename(path: &Path, rename: impl Fn(&str) -> String) {
    edit(path, |tensors| *tensors = std::mem::take(tensors).into_iter().map(|(name, t)| (rename(&name), t)).collect());
}

/// Sets keys of a JSON file.
fn set(path: &Path, keys: Value) {
    let mut config: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    fs::write(path, serde_json::to_vec(&config).unwrap()).unwrap();
}

fn fill(path: &Path, tensor: &str, value: f32) {
    edit(path, |tensors| {
        let (_, _, bytes) = tensors.get_mut(tensor).unwrap();
        *bytes = value.to_le_bytes().repeat(bytes.len() / 4);
    });
}

/// `engine run` with few steps on a changed checkpoint.
fn run_on(dir: &Path, model: &Path, more: &[&str]) -> Output {
    engine(
        dir,
        &[&["run", "-m", model.to_str().unwrap(), "-p", "a red frog", "--device", "cpu"], &SHORT[..], more].concat(),
    )
}

/// Into two shards, with what the index does not list in the first.
fn shard(folder: &Path) {
    let tensors = read(&folder.join(DIFFUSERS));
    fs::remove_file(folder.join(DIFFUSERS)).unwrap();
    let mut map = serde_json::Map::new();
    for part in 0..2 {
        let file = format!("diffusion_pytorch_model-0000{}-of-00002.safetensors", part + 1);
        let mut own: Tensors = tensors.iter().skip(part).step_by(2).map(|(k, v)| (k.clone(), v.clone())).collect();
        map.extend(own.keys().map(|name| (name.clone(), file.clone().into())));
        if part == 0 {
            own.insert("another.weight".into(), (Dtype::F32, vec![1], vec![0; 4]));
        }
        write(&folder.join(file), &own);
    }
    let index = serde_json::json!({"metadata": {}, "weight_map": map});
    fs::write(folder.join(format!("{DIFFUSERS}.index.json")), index.to_string()).unwrap();
}

#[test]
fn a_checkpoint_in_every_old_and_new_spelling_draws_the_same_picture() {
    let (dir, model) = copy();
    assert!(run_on(dir.path(), Path::new(MODEL), &["-o", "want.png"]).status.success());
    rename(&model.join("text_encoder/model.safetensors"), |name| name.replacen("text_model.", "", 1));
    let old = [("to_q.", "query."), ("to_k.", "key."), ("to_v.", "value."), ("to_out.0.", "proj_attn.")];
    let decoder = model.join("decoder").join(DIFFUSERS);
    rename(&decoder, |name| old.iter().fold(name.to_owned(), |name, (new, old)| name.replace(new, old)));
    edit(&decoder, |tensors| {
        _ = tensors.insert("unused_scale".into(), (Dtype::F8_E8M0, vec![4], vec![1; 4]));
        _ = tensors.insert("unused_wave".into(), (Dtype::C64, vec![1], vec![1; 8]));
    });
    let lists = r#"{"attention_head_dim": [8, 8, 8, 8], "layers_per_block": [1, 1, 1, 1], "sample_size": [16, 16],
        "only_cross_attention": [false, false, false, false]}"#;
    set(&model.join("decoder/config.json"), serde_json::from_str(lists).unwrap());
    fs::rename(&decoder, model.join("decoder/diffusion_pytorch_model.fp16.safetensors")).unwrap();
    shard(&model.join("super_res_first"));
    let text = fs::read(model.join("text_encoder/config.json")).unwrap();
    let text: Value = serde_json::from_slice(&text).unwrap();
    let nested = serde_json::json!({"model_type": "clip", "text_config": text, "vision_config": {}});
    fs::write(model.join("text_encoder/config.json"), nested.to_string()).unwrap();

    let output = run_on(dir.path(), &model, &["-o", "got.png", "--variant", "fp16"]);
    let said = super::text(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert_eq!(png(&dir.path().join("got.png")).0, png(&dir.path().join("want.png")).0);
    for part in
        ["prior: no weights of variant fp16; took the plain ones", "another.weight", "unused_scale, unused_wave"]
    {
        assert!(said.contains(part), "{part}: {said}");
    }
    let inspected = engine(dir.path(), &["inspect", model.to_str().unwrap(), "--variant", "fp16"]);
    assert!(inspected.status.success(), "{}", super::text(&inspected.stderr));
    assert!(super::text(&inspected.stdout).contains("F32 C64 F8_E8M0"), "{}", super::text(&inspected.stdout));
    assert!(super::text(&inspected.stderr).contains("prior: no weights of variant fp16"));
}

#[test]
fn a_variant_that_no_component_has_is_refused() {
    let (dir, model) = copy();
    let parts = ["no component has weights of variant fp16", "only plain files"];
    let output = run_on(dir.path(), &model, &["--variant", "fp16"]);
    assert_refused(dir.path(), &output, 3, &parts);
    assert!(!text(&output.stderr).contains("built-in"));
    let inspect = engine(dir.path(), &["inspect", "--variant", "fp16", model.to_str().unwrap()]);
    assert_refused(dir.path(), &inspect, 3, &parts);
}

#[cfg(feature = "default-model")]
#[test]
fn the_built_in_model_has_no_variants_to_choose() {
    let dir = tempfile::tempdir().unwrap();
    for command in [&["run", "-p", "a"][..], &["inspect"], &["plan", "--stage", "prior"]] {
        let output = engine(dir.path(), &[command, &["--variant", "fp16"]].concat());
        assert_refused(dir.path(), &output, 2, &["--variant fp16: the built-in model has no variants"]);
    }
}

/// Whatever is wrong with any component that the request needs, no stage has begun.
#[test]
fn a_fault_of_the_last_component_is_found_before_the_first_stage() {
    let int8 = |tensors: &mut Tensors| {
        let (dtype, _, bytes) = tensors.get_mut("conv_out.bias").unwrap();
        *dtype = Dtype::I8;
        bytes.truncate(bytes.len() / 4);
    };
    let float8 = |tensors: &mut Tensors| {
        let (dtype, _, bytes) = tensors.get_mut("conv_in.weight").unwrap();
        *dtype = Dtype::F8_E4M3;
        bytes.truncate(bytes.len() / 4);
    };
    let page = b"<!DOCTYPE html><title>401</title>";
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n";
    type Damage<'a> = &'a dyn Fn(&Path);
    let damages: [(Damage, &[&str]); 6] = [
        (&|file| edit(file, int8), &["conv_out.bias", "expected F32, F16, BF16 or F64, found I8 [3]"]),
        (&|file| edit(file, float8), &["conv_in.weight", "found F8_E4M3"]),
        (&|file| edit(file, |tensors| _ = tensors.remove("conv_in.bias")), &["conv_in.bias", "no such tensor"]),
        (&|file| fs::write(file, page).unwrap(), &["found a web page (HTML)", "download it again"]),
        (&|file| fs::write(file, pointer).unwrap(), &["found a Git LFS pointer", "git lfs pull"]),
        (&|file| fs::write(file, b"PK\x03\x04".repeat(50)).unwrap(), &["found a zip archive", "safetensors"]),
    ];
    for (damage, parts) in damages {
        let (dir, model) = copy();
        let file = model.join("super_res_last").join(DIFFUSERS);
        damage(&file);
        let output = run_on(dir.path(), &model, &["--json"]);
        assert_refused(
            dir.path(),
            &output,
            3,
            &[&["super_res_last/diffusion_pytorch_model.safetensors"], parts].concat(),
        );
        assert!(!text(&output.stdout).contains("\"begin\""), "{}", text(&output.stdout));
        let inspected = engine(dir.path(), &["inspect", model.to_str().unwrap()]);
        assert_refused(dir.path(), &inspected, 3, &["would not load: super_res_last"]);
        assert!(text(&inspected.stdout).contains(parts[0]), "{}", text(&inspected.stdout));
    }
}

#[test]
fn pointers_and_pages_are_named_in_place_of_any_file() {
    let all = ["model_index.json", "prior/config.json", "prior_scheduler/scheduler_config.json"];
    let of_text = ["tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer/tokenizer_config.json"];
    for (bytes, name) in [
        (&b"version https://git-lfs.github.com/spec/v1\n"[..], "a Git LFS pointer"),
        (b"<html>401", "a web page (HTML)"),
    ] {
        for file in all.iter().chain(&of_text) {
            let (dir, model) = copy();
            fs::write(model.join(file), bytes).unwrap();
            let output = run_on(dir.path(), &model, &[]);
            let own = file.rsplit('/').next().unwrap();
            assert_refused(dir.path(), &output, 3, &[&format!("{own}: expected "), &format!("found {name}")]);
        }
    }
}

#[test]
fn not_finite_values_are_blamed_on_the_component_in_which_they_arise() {
    for (file, tensor, stage) in [
        ("text_encoder/model.safetensors", "text_projection.weight", "text_encoder"),
        ("text_encoder/model.safetensors", "text_model.final_layer_norm.bias", "text_encoder"),
        ("prior/diffusion_pytorch_model.safetensors", "clip_std", "prior"),
        ("text_proj/diffusion_pytorch_model.safetensors", "embedding_proj.bias", "text_proj"),
        ("text_proj/diffusion_pytorch_model.safetensors", "encoder_hidden_states_proj.bias", "text_proj"),
        ("decoder/diffusion_pytorch_model.safetensors", "conv_in.bias", "decoder"),
        ("super_res_last/diffusion_pytorch_model.safetensors", "conv_in.bias", "super_res_last"),
    ] {
        let (dir, model) = copy();
        fill(&model.join(file), tensor, f32::NAN);
        let output = run_on(dir.path(), &model, &[]);
        let said = format!("engine: {stage}: output contains NaN or infinity in f32: its weights are damaged");
        assert_refused(dir.path(), &output, 1, &[&said]);
    }
    let (dir, model) = copy();
    fill(&model.join("prior").join(DIFFUSERS), "proj_in.bias", f32::INFINITY);
    let output = run_on(dir.path(), &model, &["--dtype", "bf16"]);
    assert_refused(dir.path(), &output, 1, &["prior: ", "in bf16: half precision may be too narrow", "try f32"]);
}

#[test]
fn default_steps_that_no_schedule_has_are_refused_by_every_command() {
    let (dir, model) = copy();
    set(&model.join("model_index.json"), serde_json::json!({"_engine_defaults": {"super_res_steps": 0}}));
    let model = model.to_str().unwrap();
    for command in [&["run", "-p", "a", "-m"][..], &["inspect"], &["plan", "--stage", "super_res_first", "-m"]] {
        let output = engine(dir.path(), &[command, &[model]].concat());
        assert_eq!(output.status.code(), Some(3));
        let said = text(&output.stderr);
        assert!(said.contains("model_index.json: _engine_defaults: super-resolution steps 0: "), "{command:?}: {said}");
    }
}

#[test]
fn a_folder_of_the_hubs_cache_opens_its_snapshot_and_says_which() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("cache/models--a--b");
    let snapshots = model.join("snapshots");
    copy_folder(Path::new(MODEL), &snapshots.join("0123abcd"));
    for folder in [&model, &snapshots] {
        let output = engine(dir.path(), &["inspect", folder.to_str().unwrap()]);
        let said = text(&output.stderr);
        assert!(output.status.success() && said.contains("took its snapshot ") && said.contains("0123abcd"), "{said}");
    }
    let output = run_on(dir.path(), &model, &[]);
    assert!(output.status.success() && text(&output.stderr).contains("0123abcd"), "{}", text(&output.stderr));
    assert!(chunk(&dir.path().join("out.png"), "unclip").contains("\"a/b\""));
    fs::remove_file(dir.path().join("out.png")).unwrap();
    fs::create_dir(snapshots.join("4567")).unwrap();
    assert_refused(dir.path(), &run_on(dir.path(), &model, &[]), 3, &["several snapshots", "0123abcd", "4567"]);
    fs::create_dir(model.join("refs")).unwrap();
    fs::write(model.join("refs/main"), "0123abcd").unwrap();
    assert!(engine(dir.path(), &["inspect", model.to_str().unwrap()]).status.success());
}
