//! The tokenizer against transformers' own results, see `golden/make_tokenizer.py`.

#![cfg(feature = "tokenizer")]
#![allow(clippy::unwrap_used)] // a failed expectation ends a test, as it should

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use tempfile::TempDir;
use unclip::tokenizer::Tokenizer;
use unclip::weights::{Checkpoint, LoadOptions};
use unclip::{Error, Result};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// A checkpoint with a copy of a golden tokenizer folder, in which `changes` replace files (null removes one).
fn checkpoint(folder: &str, changes: &Map<String, Value>) -> (TempDir, Checkpoint) {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("model_index.json"), r#"{"_class_name":"UnCLIPPipeline"}"#).unwrap();
    let target = dir.path().join("tokenizer");
    fs::create_dir(&target).unwrap();
    for entry in fs::read_dir(golden().join(folder)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), target.join(entry.file_name())).unwrap();
    }
    for (name, content) in changes {
        match content {
            Value::Null => fs::remove_file(target.join(name)).unwrap(),
            Value::String(text) => fs::write(target.join(name), text).unwrap(),
            json => fs::write(target.join(name), json.to_string()).unwrap(),
        }
    }
    let checkpoint = Checkpoint::open(dir.path(), LoadOptions::default()).unwrap();
    (dir, checkpoint)
}

fn load(folder: &str, changes: Value, length: usize) -> Result<Tokenizer> {
    let (_dir, checkpoint) = checkpoint(folder, changes.as_object().unwrap());
    Tokenizer::from_checkpoint(&checkpoint, "tokenizer", length)
}

#[test]
fn every_prompt_gives_the_ids_and_the_cut_of_transformers() {
    let golden: Value = serde_json::from_slice(&fs::read(golden().join("tokenizer.json")).unwrap()).unwrap();
    let mut failures = Vec::new();
    let mut checked = 0;
    for case in golden["cases"].as_array().unwrap() {
        let length = case["length"].as_u64().unwrap() as usize;
        let pad = case["pad"].as_u64().unwrap() as u32;
        let tokenizer = load(case["folder"].as_str().unwrap(), case["changes"].clone(), length).unwrap();
        for prompt in case["prompts"].as_array().unwrap() {
            let text = prompt["prompt"].as_str().unwrap();
            let mut ids: Vec<u32> = serde_json::from_value(prompt["ids"].clone()).unwrap();
            let tokens = tokenizer.encode(text).unwrap();
            let mask: Vec<bool> = (0..length).map(|i| i < ids.len()).collect();
            ids.resize(length, pad);
            if tokens.ids != ids || tokens.mask != mask || tokens.cut.as_deref() != prompt["cut"].as_str() {
                failures.push(format!("{}: {text:?}\n got {tokens:?}\nwant {prompt}", case["name"]));
            }
            checked += 1;
        }
    }
    assert!(failures.is_empty(), "{} of {checked} differ:\n{}", failures.len(), failures.join("\n"));
    assert!(checked > 100);
}

#[test]
fn a_prompt_that_just_fits_is_not_cut() {
    let tokenizer = load("tokenizer-eos", json!({}), 32).unwrap();
    assert_eq!(tokenizer.context_length(), 32);
    let fits = tokenizer.encode(&"x ".repeat(30)).unwrap();
    assert_eq!((fits.cut, fits.mask), (None, vec![true; 32]));
    let over = tokenizer.encode(&"x ".repeat(31)).unwrap();
    assert_eq!((over.cut.as_deref(), over.ids), (Some("x"), fits.ids));
}

#[test]
fn every_id_is_below_the_size_of_the_vocabulary() {
    let tokenizer = load("tokenizer", json!({}), 77).unwrap();
    assert_eq!(tokenizer.vocab_size(), 674);
    let tokens = tokenizer.encode("<|endoftext|> zzz 猫!").unwrap();
    assert!(tokens.ids.iter().all(|id| *id < 674));
}

#[test]
fn damaged_folders_are_refused_by_file_and_reason() {
    let config = |extra: Value| {
        let mut config = json!({"pad_token": "!"});
        config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        json!({"tokenizer_config.json": config})
    };
    for (changes, expected) in [
        (json!({"vocab.json": null}), "vocab.json: no such file"),
        (json!({"merges.txt": null}), "merges.txt: no such file"),
        (json!({"vocab.json": "{"}), "vocab.json: EOF"),
        (json!({"vocab.json": {"a": -1}}), "vocab.json: a: invalid value"),
        (json!({"merges.txt": "#version: 0.2\na b c\n"}), "merges.txt: merge 2: expected two parts"),
        (json!({"merges.txt": "a b\n\n"}), "merge 2: expected two parts"),
        (json!({"merges.txt": "a nothing\n"}), "\"nothing\" is not in the vocabulary"),
        (json!({"merges.txt": "<|startoftext|> <|startoftext|>\n"}), "is not in the vocabulary"),
        (json!({"tokenizer_config.json": "[]"}), "tokenizer_config.json: invalid type"),
        (config(json!({"model_max_length": 76})), "model_max_length: expected 77, which the models take, found 76"),
        (config(json!({"padding_side": "left"})), "padding_side: expected \"right\", found \"left\""),
        (config(json!({"added_tokens_decoder": {"x": {"content": "!"}}})), "added_tokens_decoder: expected ids"),
        (config(json!({"added_tokens_decoder": {"1": 2}})), "expected a token, found 2"),
        (json!({"tokenizer.json": {"model": {"vocab": {}}}}), "tokenizer.json: missing field `merges`"),
    ] {
        let error = load("tokenizer", changes.clone(), 77).expect_err(&changes.to_string());
        assert!(matches!(error, Error::Config { .. }), "{error:?}");
        assert!(error.to_string().contains(expected), "{changes}: expected {expected:?} in {error}");
    }
    assert!(load("tokenizer", json!({}), 1).is_err());
}

#[test]
fn a_length_that_is_not_given_is_the_models_length() {
    let tokenizer = load("tokenizer", json!({"tokenizer_config.json": {"model_max_length": 1e30}}), 12).unwrap();
    assert_eq!(tokenizer.encode("a b c").unwrap().ids.len(), 12);
}

#[test]
fn no_text_makes_the_tokenizer_panic() {
    let tokenizer = load("tokenizer", json!({}), 77).unwrap();
    for c in (0..=0x10ffff).step_by(97).filter_map(char::from_u32) {
        assert_eq!(tokenizer.encode(&format!("{c}a{c}{c} !{c}")).unwrap().ids.len(), 77);
    }
    assert!(tokenizer.encode(&"long ".repeat(100_000)).unwrap().cut.unwrap().len() > 100_000);
}
