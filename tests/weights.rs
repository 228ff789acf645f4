//! Weight files and checkpoint folders: what is read, and that nothing damaged gets through or panics.

#![allow(clippy::unwrap_used)] // a failed expectation ends a test, as it should

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use safetensors::{Dtype as Stored, serialize, tensor::TensorView};
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use unclip::diffusion::SchedulerConfig;
use unclip::model::{image_encoder, prior, text_encoder, text_proj, unet};
use unclip::pipeline::inspect;
use unclip::preprocess::Preprocessor;
use unclip::weights::config::{self, Schema};
use unclip::weights::{Checkpoint, Component, LoadOptions, WeightFile};
use unclip::{Dtype, Error};

/// A file of three tensors in two types, written by the format's own crate.
fn small_file() -> Vec<u8> {
    let (a, b, c) = (floats(&[1.0, -2.5, 0.0, 3.25, 1e-8, 7.0]), vec![0x00, 0x3c, 0x00, 0xc0], vec![7u8; 16]);
    let views = [
        ("layer.weight", TensorView::new(Stored::F32, vec![2, 3], &a).unwrap()),
        ("layer.bias", TensorView::new(Stored::F16, vec![2], &b).unwrap()),
        ("position_ids", TensorView::new(Stored::I64, vec![1, 2], &c).unwrap()),
    ];
    serialize(views, Some([("format".into(), "pt".into())].into_iter().collect())).unwrap()
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// A file with one F32 tensor per pair of name and value.
fn file_of(tensors: &[(&str, f32)]) -> Vec<u8> {
    let bytes: BTreeMap<&str, Vec<u8>> = tensors.iter().map(|(n, v)| (*n, floats(&[*v]))).collect();
    serialize(bytes.iter().map(|(n, b)| (*n, TensorView::new(Stored::F32, vec![1], b).unwrap())), None).unwrap()
}

/// A file with the given header text and `data` bytes of zeros.
fn raw(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

/// Opens `bytes` in each of the three ways, checks that they agree, and returns the reason of the refusal.
fn reason(bytes: &[u8]) -> Option<String> {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("x.safetensors");
    fs::write(&path, bytes).unwrap();
    let leaked: &'static [u8] = bytes.to_vec().leak();
    let ways = [WeightFile::open(&path, true), WeightFile::open(&path, false), WeightFile::from_memory(&path, leaked)];
    let mut reasons = ways.map(|opened| match opened {
        Ok(_) => None,
        Err(Error::WeightFile { path: named, reason }) => {
            assert_eq!(named, path);
            assert!(!reason.contains('\n'), "{reason}");
            Some(reason)
        }
        Err(other) => panic!("expected Error::WeightFile, got {other:?}"),
    });
    assert_eq!(reasons[0], reasons[1]);
    assert_eq!(reasons[0], reasons[2]);
    reasons[0].take()
}

fn refused(bytes: &[u8], expected: &str) {
    let reason = reason(bytes).unwrap_or_else(|| panic!("accepted, expected: {expected}"));
    assert!(reason.contains(expected), "expected {expected:?} in {reason:?}");
}

#[test]
fn every_prefix_of_a_file_is_refused() {
    let file = small_file();
    assert_eq!(reason(&file), None);
    for len in 0..file.len() {
        assert!(reason(&file[..len]).is_some(), "the first {len} of {} bytes were accepted", file.len());
    }
}

#[test]
fn no_bit_flip_in_the_header_panics() {
    let file = small_file();
    let header = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    for at in 0..header {
        for bit in 0..8 {
            let mut flipped = file.clone();
            flipped[at] ^= 1 << bit;
            let flipped: &'static [u8] = flipped.leak();
            // A flip inside a name is a valid file with another name: then its bytes have to be readable.
            if let Ok(file) = WeightFile::from_memory(Path::new("x"), flipped) {
                for info in file.tensors().values() {
                    assert_eq!(file.bytes(info).unwrap().len(), info.size_bytes);
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), json in "\\PC{0,80}") {
        _ = WeightFile::from_memory(Path::new("x"), bytes.leak());
        _ = WeightFile::from_memory(Path::new("x"), raw(&format!("{{\"a\":{json}}}"), 8).leak());
    }
}

#[test]
fn each_breach_of_the_format_is_named() {
    let t = |name: &str, from: usize, to: usize| {
        format!(r#""{name}":{{"dtype":"U8","shape":[{}],"data_offsets":[{from},{to}]}}"#, to.saturating_sub(from))
    };
    let header = |entries: &[String]| format!("{{{}}}", entries.join(","));
    assert_eq!(reason(&raw(&header(&[t("a", 0, 4), t("b", 4, 8)]), 8)), None);
    assert_eq!(reason(&raw("{}", 0)), None);

    refused(&[], "at least 8 bytes, found 0");
    refused(&raw(&header(&[t("a", 0, 4), t("a", 4, 8)]), 8), "\"a\" appears twice");
    refused(&raw(r#"{"__metadata__":{},"__metadata__":{}}"#, 0), "\"__metadata__\" appears twice");
    refused(&raw(&header(&[t("a", 0, 5), t("b", 4, 8)]), 8), "overlap: tensor \"b\" begins at byte 4");
    refused(&raw(&header(&[t("a", 0, 4), t("b", 5, 8)]), 8), "hole: bytes 4..5");
    refused(&raw(&header(&[t("a", 1, 8)]), 8), "hole: bytes 0..1");
    refused(&raw(&header(&[t("a", 0, 4)]), 5), "found 1 more bytes");
    refused(&raw(&header(&[t("a", 0, 4)]), 3), "truncated: expected 4 bytes of tensors");
    refused(&raw(&header(&[t("a", 4, 0)]), 4), "expected 0 bytes");
    refused(&raw(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#, 4), "expected 8 bytes for F32 [2]");
    refused(&raw(r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}"#, 0), "larger than");
    refused(&raw(r#"{"a":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}"#, 1), "type F4");
    refused(
        &raw(r#"{"a":{"dtype":"F33","shape":[1],"data_offsets":[0,4]}}"#, 4),
        "tensor \"a\": unknown variant `F33`",
    );
    refused(&raw(r#"{"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}}"#, 1), "tensor \"a\": invalid value");
    refused(&raw(r#"{"a":{"dtype":"U8","shape":[1]}}"#, 1), "missing field `data_offsets`");
    refused(&raw("[]", 0), "begins with '{'");
    refused(&raw("{} {}", 0), "trailing characters");
    refused(&raw("{\"a\"", 0), "EOF");
    refused(b"\x02\0\0\0\0\0\0\0\xff\xfe", "UTF-8");
    refused(&u64::MAX.to_le_bytes(), "header of at most 100000000 bytes");
    refused(&1000u64.to_le_bytes(), "expected a header of 1000 bytes, only 0 follow");

    let many: Vec<String> = (0..=100_000).map(|i| t(&i.to_string(), 0, 0)).collect();
    refused(&raw(&header(&many), 0), "more than 100000 tensors");
}

#[test]
fn opening_what_is_no_file_is_refused() {
    let dir = TempDir::new().unwrap();
    assert!(matches!(WeightFile::open(dir.path(), true), Err(Error::WeightFile { .. })));
    assert!(matches!(WeightFile::open(&dir.path().join("none"), true), Err(Error::Io { action: "open", .. })));
}

/// A checkpoint folder with `model_index.json` and the given files.
fn checkpoint(files: &[(&str, &[u8])]) -> TempDir {
    let dir = TempDir::new().unwrap();
    let index = br#"{"_class_name":"UnCLIPPipeline","prior":["diffusers","PriorTransformer"],"extra":[null,null]}"#;
    for (path, bytes) in [("model_index.json", &index[..])].iter().chain(files) {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    dir
}

fn prior(dir: &TempDir, mmap: bool, variant: Option<&str>) -> Result<Component, Error> {
    Checkpoint::open(dir.path(), LoadOptions { mmap, variant: variant.map(str::to_string) })?.component("prior")
}

fn message<T>(result: Result<T, Error>) -> String {
    result.err().expect("an error").to_string()
}

const CONFIG: (&str, &[u8]) = ("prior/config.json", br#"{"num_layers": 2, "act": null}"#);

#[test]
fn mapped_read_and_embedded_checkpoints_give_the_same_tensors() {
    let file: &'static [u8] = small_file().leak();
    let dir = checkpoint(&[CONFIG, ("prior/diffusion_pytorch_model.safetensors", file)]);
    let index: &'static [u8] = fs::read(dir.path().join("model_index.json")).unwrap().leak();
    let table = vec![
        ("model_index.json", index),
        CONFIG,
        ("prior/diffusion_pytorch_model.safetensors", file),
        ("priority/model.safetensors", &[]),
    ];
    let embedded = Checkpoint::embedded("made up", table.leak(), LoadOptions::default()).unwrap();
    assert!(embedded.has("prior") && embedded.has("model_index.json") && !embedded.has("prio"));

    let ways =
        [prior(&dir, true, None).unwrap(), prior(&dir, false, None).unwrap(), embedded.component("prior").unwrap()];
    for component in &ways {
        assert_eq!(component.f32s("layer.weight").unwrap(), [1.0, -2.5, 0.0, 3.25, 1e-8, 7.0]);
        assert_eq!(component.f32s("layer.bias").unwrap(), [1.0, -2.0]);
        assert_eq!(*component.bytes("position_ids").unwrap(), [7; 16]);
        assert_eq!(component.total_bytes(), 24 + 4 + 16);
        assert_eq!(component.variant(), None);
        let names: Vec<&str> = component.tensors().map(|(name, _)| name).collect();
        assert_eq!(names, ["layer.bias", "layer.weight", "position_ids"]);
        let info = component.info("layer.weight").unwrap();
        assert_eq!((&info.dtype, info.shape.as_slice(), info.elements()), (&Dtype::F32.into(), &[2, 3][..], 6));
        assert!(component.info("layer").is_none());
        component.check_unchanged().unwrap();

        let integer = message(component.f32s("position_ids"));
        assert!(integer.contains("tensor position_ids: expected F32, F16, BF16 or F64, found I64 [1, 2]"), "{integer}");
        let missing = message(component.bytes("nope"));
        assert!(missing.contains("tensor nope: expected a tensor of this name, found none"), "{missing}");
    }
    fn shared<T: Send + Sync>(_: &[T]) {}
    shared(&ways);
}

/// Reads one of the tiny checkpoint's files with some keys replaced: the warnings, or the error.
fn changed_config<T: Schema>(file: &str, change: Value) -> Result<Vec<String>, String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny").join(file);
    let mut config: Map<String, Value> = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config.extend(change.as_object().unwrap().clone());
    let text = serde_json::to_vec(&config).unwrap();
    config::read::<T>(&path, &text).map(|config| config.warnings().to_vec()).map_err(|e| e.to_string())
}

#[test]
fn every_key_of_the_shipped_checkpoints_is_known() {
    // The default model's files have all arguments of the classes of diffusers 0.42, tiny's those of 0.11.
    for model in ["tests/golden/tiny", "models/default"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(model);
        let checkpoint = Checkpoint::open(folder, LoadOptions::default()).unwrap();
        fn warnings<T: Schema>(checkpoint: &Checkpoint, file: &str) -> Vec<String> {
            checkpoint.config::<T>(file).unwrap().warnings().to_vec()
        }
        let mut all = warnings::<text_encoder::Config>(&checkpoint, "text_encoder/config.json");
        all.extend(warnings::<image_encoder::Config>(&checkpoint, "image_encoder/config.json"));
        all.extend(warnings::<prior::Config>(&checkpoint, "prior/config.json"));
        all.extend(warnings::<text_proj::Config>(&checkpoint, "text_proj/config.json"));
        for unet in ["decoder", "super_res_first", "super_res_last"] {
            all.extend(warnings::<unet::Config>(&checkpoint, &format!("{unet}/config.json")));
        }
        for stage in ["prior", "decoder", "super_res"] {
            let file = format!("{stage}_scheduler/scheduler_config.json");
            all.extend(warnings::<SchedulerConfig>(&checkpoint, &file));
        }
        all.extend(warnings::<Preprocessor>(&checkpoint, "feature_extractor/preprocessor_config.json"));
        assert_eq!(all, [""; 0], "{model}");
    }
}

#[test]
fn keys_that_would_change_the_result_are_refused_with_file_key_and_values() {
    fn refused<T: Schema>(file: &str, change: Value) {
        let key = change.as_object().unwrap().keys().next().unwrap().clone();
        let error = changed_config::<T>(file, change).expect_err(&key);
        assert!(error.contains(&format!("{file}: {key} is ")), "{error}");
        assert!(error.contains("this engine knows ") || error.contains("expected "), "{error}");
    }
    for change in [
        json!({"time_embedding_act_fn": "gelu"}),
        json!({"timestep_post_act": "silu"}),
        json!({"mid_block_only_cross_attention": true}),
        json!({"time_embedding_type": "fourier"}),
        json!({"class_embed_type": null}),
        json!({"conv_in_kernel": 1}),
        json!({"resnet_out_scale_factor": 1.41}),
        json!({"encoder_hid_dim_type": "text_proj"}),
        json!({"addition_embed_type": "image"}),
        json!({"num_attention_heads": 8}),
        json!({"attention_head_dim": 0}),
        json!({"norm_num_groups": null}),
        json!({"_class_name": "UNet3DConditionModel"}),
    ] {
        refused::<unet::Config>("decoder/config.json", change);
    }
    for change in [
        json!({"mid_block_type": null}),
        json!({"num_class_embeds": 5}),
        json!({"add_attention": true}),
        json!({"act_fn": "mish"}),
        json!({"layers_per_block": [1, 1, 1, 1]}),
    ] {
        refused::<unet::Config>("super_res_first/config.json", change);
    }
    for change in [
        json!({"norm_in_type": "layer"}),
        json!({"encoder_hid_proj_type": null}),
        json!({"added_emb_type": null}),
        json!({"additional_embeddings": 3}),
        json!({"time_embed_dim": 5}),
    ] {
        refused::<prior::Config>("prior/config.json", change);
    }
    refused::<text_encoder::Config>("text_encoder/config.json", json!({"hidden_act": "gelu_new"}));
    refused::<image_encoder::Config>("image_encoder/config.json", json!({"num_channels": 1}));
    refused::<text_proj::Config>("text_proj/config.json", json!({"time_embed_dim": "wide"}));
    let longest = json!({"shortest_edge": 28, "longest_edge": 30});
    for change in [json!({"size": longest}), json!({"do_pad": true}), json!({"resample": 2})] {
        refused::<Preprocessor>("feature_extractor/preprocessor_config.json", change);
    }
    let types = json!({"down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D", "A", "B"]});
    let error = changed_config::<unet::Config>("decoder/config.json", types).unwrap_err();
    assert!(error.contains("down_block_types has \"AttnDownBlock2D\"; this engine knows"), "{error}");
}

#[test]
fn keys_without_effect_and_configurations_inside_another_are_read() {
    let quiet = |found: Result<Vec<String>, String>| assert_eq!(found.unwrap(), [""; 0]);
    quiet(changed_config::<unet::Config>("decoder/config.json", json!({"dropout": 0.5, "upcast_attention": true})));
    quiet(changed_config::<unet::Config>("decoder/config.json", json!({"act_fn": "swish", "sample_size": null})));
    quiet(changed_config::<text_encoder::Config>("text_encoder/config.json", json!({"id2label": {"0": "A"}})));
    quiet(changed_config::<Preprocessor>("feature_extractor/preprocessor_config.json", json!({"size": 28})));
    let text = br#"{"model_type": "clip", "text_config": {"hidden_size": 24, "vocab_size": 99}, "vision_config": {}}"#;
    let nested = config::read::<text_encoder::Config>(Path::new("config.json"), text).unwrap();
    assert_eq!((nested.hidden_size, nested.vocab_size, nested.max_position_embeddings), (24, 99, 77));
    let unknown = changed_config::<unet::Config>("decoder/config.json", json!({"use_ema": true})).unwrap();
    assert!(unknown[0].ends_with("ignored keys that UNet2DConditionModel does not have: use_ema"), "{unknown:?}");
}

#[test]
fn a_folder_that_is_no_checkpoint_is_refused() {
    let open = |dir: &Path| Checkpoint::open(dir, LoadOptions::default());
    let dir = TempDir::new().unwrap();
    let none = dir.path().join("none");
    assert!(message(open(&none)).contains("no such folder"));
    assert!(message(open(dir.path())).contains("model_index.json: no such file"));
    for (text, expected) in [
        ("{", "model_index.json: EOF"),
        ("[]", "expected a map"),
        ("{}", "_class_name: expected UnCLIPPipeline or UnCLIPImageVariationPipeline, found none"),
        (r#"{"_class_name":"StableDiffusionPipeline"}"#, "found \"StableDiffusionPipeline\""),
    ] {
        fs::write(dir.path().join("model_index.json"), text).unwrap();
        let error = open(dir.path()).and_then(|checkpoint| inspect(&checkpoint)).expect_err("an error");
        assert!(matches!(error, Error::Config { .. }));
        assert!(error.to_string().contains(expected), "{error}");
    }
    assert!(message(open(&dir.path().join("model_index.json"))).contains("expected a checkpoint folder"));
}

#[test]
fn everything_missing_is_listed_at_once() {
    let dir = checkpoint(&[CONFIG]);
    let checkpoint = Checkpoint::open(dir.path(), LoadOptions::default()).unwrap();
    assert!(checkpoint.require(&["prior"]).is_ok());
    let missing = message(checkpoint.require(&["prior", "decoder", "text_proj"]));
    assert!(missing.ends_with("missing from the checkpoint: decoder, text_proj"), "{missing}");
    assert!(message(checkpoint.component("decoder")).contains("decoder"));
    assert!(message(checkpoint.component("prior")).contains("expected weights in diffusion_pytorch_model.safetensors"));
    assert!(message(checkpoint.read("../secret")).contains("inside the checkpoint"));
    assert!(!checkpoint.has("..") && !checkpoint.has("/"));
}

#[test]
fn pickled_weights_alone_are_unsupported() {
    let dir = checkpoint(&[CONFIG, ("prior/diffusion_pytorch_model.bin", b"PK")]);
    let error = prior(&dir, true, None).unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error:?}");
    assert!(error.to_string().contains("only diffusion_pytorch_model.bin (a pickle)"), "{error}");
}

#[test]
fn variants_are_chosen_by_name_and_reported() {
    let (plain, fp16) = (file_of(&[("x", 1.0)]), file_of(&[("x", 2.0)]));
    let dir = checkpoint(&[CONFIG, ("prior/model.fp16.safetensors", &fp16)]);
    let only = prior(&dir, true, None).unwrap();
    assert_eq!((only.variant(), only.f32s("x").unwrap()), (Some("fp16"), vec![2.0]));
    fs::write(dir.path().join("prior/model.safetensors"), plain).unwrap();
    assert_eq!(prior(&dir, true, None).unwrap().f32s("x").unwrap(), [1.0]);
    assert_eq!(prior(&dir, true, Some("fp16")).unwrap().f32s("x").unwrap(), [2.0]);
    let bf16 = message(prior(&dir, true, Some("bf16")));
    assert!(bf16.contains("expected weights of variant bf16, found the plain files, fp16"), "{bf16}");
}

const INDEX: &str = "prior/diffusion_pytorch_model.safetensors.index.json";
const SHARD: [&str; 2] = [
    "prior/diffusion_pytorch_model-00001-of-00002.safetensors",
    "prior/diffusion_pytorch_model-00002-of-00002.safetensors",
];

fn with_index(weight_map: &str) -> TempDir {
    let index = format!(r#"{{"metadata":{{"total_size":8}},"weight_map":{weight_map}}}"#);
    let (a, b) = (file_of(&[("a", 1.0)]), file_of(&[("b", 2.0)]));
    checkpoint(&[CONFIG, (INDEX, index.as_bytes()), (SHARD[0], &a), (SHARD[1], &b)])
}

#[test]
fn shards_join_into_one_component() {
    let (one, two) = (&SHARD[0][6..], &SHARD[1][6..]);
    let dir = with_index(&format!(r#"{{"a":"{one}","b":"{two}"}}"#));
    let component = prior(&dir, true, None).unwrap();
    assert_eq!(component.files().len(), 2);
    assert_eq!(component.total_bytes(), 8);
    assert_eq!((component.f32s("a").unwrap(), component.f32s("b").unwrap()), (vec![1.0], vec![2.0]));
    fs::remove_file(dir.path().join(SHARD[1])).unwrap();
    let missing = message(prior(&dir, true, None));
    assert!(missing.contains("index.json: weight_map names the shard") && missing.contains("missing"), "{missing}");
}

#[test]
fn an_index_that_disagrees_with_its_shards_is_refused() {
    let (one, two) = (&SHARD[0][6..], &SHARD[1][6..]);
    for (map, expected) in [
        (format!(r#"{{"a":"{two}","b":"{one}"}}"#), "puts elsewhere".to_string()),
        (format!(r#"{{"a":"{one}","b":"{two}","c":"{two}"}}"#), "puts tensor \"c\" into".into()),
        (format!(r#"{{"a":"{one}","a":"{two}"}}"#), "\"a\" appears twice".into()),
        (format!(r#"{{"a":"../{one}"}}"#), "inside this folder".into()),
        (format!(r#"{{"a":"/tmp/{one}"}}"#), "inside this folder".into()),
        (r#"{"a":"..\\x"}"#.into(), "inside this folder".into()),
        (r#"{"a":1}"#.into(), "invalid type".into()),
        ("null".into(), "invalid type".into()),
    ] {
        let text = message(prior(&with_index(&map), true, None));
        assert!(text.contains("index.json") && text.contains(&expected), "{map}: {text}");
    }
}

/// Opens a one-tensor component and changes its file with `change`.
fn changed(mmap: bool, change: impl FnOnce(PathBuf)) -> Component {
    let dir = checkpoint(&[CONFIG, ("prior/model.safetensors", &file_of(&[("x", 1.0)]))]);
    let component = prior(&dir, mmap, None).unwrap();
    change(dir.path().join("prior/model.safetensors"));
    component
}

#[test]
fn a_shortened_file_is_reported_before_its_bytes_are_used() {
    for mmap in [true, false] {
        let component = changed(mmap, |path| fs::File::options().write(true).open(path).unwrap().set_len(10).unwrap());
        assert!(matches!(component.f32s("x"), Err(Error::Changed { .. })), "mmap {mmap}");
        assert!(matches!(component.check_unchanged(), Err(Error::Changed { .. })), "mmap {mmap}");
    }
}

#[test]
fn a_rewritten_file_is_reported_afterwards() {
    for mmap in [true, false] {
        let component = changed(mmap, |path| {
            let file = fs::File::options().write(true).open(path).unwrap();
            file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        });
        assert!(matches!(component.check_unchanged(), Err(Error::Changed { .. })), "mmap {mmap}");
    }
}

#[test]
fn a_file_replaced_by_rename_stays_the_one_that_was_opened() {
    for mmap in [true, false] {
        let component = changed(mmap, |path| {
            let new = path.with_extension("new");
            fs::write(&new, file_of(&[("x", 2.0)])).unwrap();
            fs::rename(new, path).unwrap();
        });
        assert_eq!(component.f32s("x").unwrap(), [1.0]);
        component.check_unchanged().unwrap();
    }
}

#[test]
fn inspect_goes_on_past_broken_components() {
    let dir = checkpoint(&[
        CONFIG,
        ("prior/diffusion_pytorch_model.safetensors", &small_file()),
        ("decoder/config.json", b"{}"),
        ("decoder/diffusion_pytorch_model.safetensors", b"12345678901234567"),
        ("text_proj/config.json", b"{}"),
        ("text_proj/diffusion_pytorch_model.bin", b""),
        ("prior_scheduler/scheduler_config.json", b"{}"),
        ("decoder_scheduler/scheduler_config.json", b"{"),
        ("tokenizer/vocab.json", b"{}"),
        ("tokenizer/merges.txt", b""),
    ]);
    let reports = inspect(&Checkpoint::open(dir.path(), LoadOptions::default()).unwrap()).unwrap();
    let by_name: BTreeMap<&str, _> = reports.iter().map(|r| (r.name.as_str(), r)).collect();
    assert_eq!(by_name.len(), 10);
    let prior = by_name["prior"];
    assert_eq!((prior.class.as_str(), prior.parameters, prior.bytes), ("PriorTransformer", 8, 44));
    assert_eq!(
        prior.dtypes,
        BTreeMap::from([(Dtype::F16, 1), (Dtype::F32, 1), (Dtype::I64, 1)].map(|(dtype, n)| (dtype.into(), n)))
    );
    assert_eq!(prior.files, ["prior/diffusion_pytorch_model.safetensors"]);
    assert_eq!(prior.problem, None);
    assert_eq!(by_name["prior_scheduler"].problem, None);
    assert_eq!(by_name["tokenizer"].problem, None);
    for (name, expected) in [
        ("decoder", "header of at most"),
        ("text_proj", "a pickle"),
        ("decoder_scheduler", "EOF"),
        ("text_encoder", "missing from the checkpoint: text_encoder"),
    ] {
        let problem = by_name[name].problem.as_deref().unwrap_or_default();
        assert!(problem.contains(expected), "{name}: {problem}");
    }
}
