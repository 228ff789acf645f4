//! Weight files and checkpoint folders: what is read, and that nothing damaged gets through or panics.

#![allow(clippy::unwrap_used)] // a failed expectation ends a test, as it should

#[path = "weights/configurations.rs"]
mod configurations;
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use safetensors::{Dtype as Stored, serialize, tensor::TensorView};
use tempfile::TempDir;
use unclip::pipeline::inspect;
use unclip::plan::WeightSource;
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

    refused(b"\x02\0\0", "at least 8 bytes, found 3");
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
    refused(&raw(r#"{"a":{"dtype":"F4","shape":[3],"data_offsets":[0,1]}}"#, 1), "F4 [3] does not end with a byte");
    refused(&raw(r#"{"a":{"dtype":"C64","shape":[2],"data_offsets":[0,8]}}"#, 8), "expected 16 bytes for C64 [2]");
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

/// The files that people have under the name of a weight file, and what each is to be called.
const OTHER_FILES: [(&[u8], &str, &str); 9] = [
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "a Git LFS pointer", "git lfs pull"),
    (b"<!DOCTYPE html><title>401</title>", "a web page (HTML)", "download it again"),
    (b"{\"error\":\"Repository not found\"}", "a JSON text that begins \"{", "download it again"),
    (b"Entry not found", "a text that begins \"Entry not found\"", "download it again"),
    (b"PK\x03\x04\0\0\x08\x08\0\0\0\0\0\0archive/data.pkl", "a PyTorch checkpoint", "safetensors.torch.save_file"),
    (b"PK\x03\x04\0\0\0\0\0\0\0\0\0\0", "a zip archive", "safetensors.torch.save_file"),
    (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "a Python pickle", "safetensors.torch.save_file"),
    (b"GGUF\x03\0\0\0\x20\0\0\0\0\0\0\0", "a GGUF file", "safetensors"),
    (b"", "an empty file", "download it again"),
];

#[test]
fn a_file_that_is_something_else_is_called_what_it_is() {
    for (bytes, name, remedy) in OTHER_FILES {
        refused(bytes, &format!("expected a safetensors file, found {name}"));
        refused(bytes, remedy);
        if name.starts_with("a JSON") {
            continue; // is what was expected, and has no `_class_name`
        }
        let dir = checkpoint(&[("model_index.json", bytes)]);
        let text = message(Checkpoint::open(dir.path(), LoadOptions::default()));
        assert!(text.contains("model_index.json: expected a ") && text.contains(&format!("found {name}")), "{text}");
    }
}

#[test]
fn a_tensor_of_any_type_is_kept_and_refused_when_it_is_asked_for() {
    for (dtype, bytes) in [("F8_E8M0", 4), ("C64", 32), ("F8_E4M3FNUZ", 4), ("F4", 2), ("I8", 4), ("F8_E4M3", 4)] {
        let header = format!(
            r#"{{"a":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}},
                "b":{{"dtype":"{dtype}","shape":[4],"data_offsets":[4,{}]}}}}"#,
            4 + bytes
        );
        let dir = checkpoint(&[CONFIG, ("prior/model.safetensors", &raw(&header, 4 + bytes))]);
        let component = prior(&dir, true, None).unwrap();
        assert_eq!(component.f32s("a").unwrap(), [0.0]);
        component.require("a", &[1]).unwrap();
        assert_eq!((component.info("b").unwrap().elements(), component.total_bytes()), (4, 4 + bytes as u64));
        // At recording, which reads no tensor, and at loading.
        let wanted = format!("tensor b: expected F32, F16, BF16 or F64, found {dtype} [4]");
        for refused in
            [message(component.require("b", &[4])), message(component.load("b")), message(component.f32s("b"))]
        {
            assert!(refused.contains("model.safetensors: ") && refused.ends_with(&wanted), "{refused}");
        }
    }
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
        ("{}", "_class_name: expected one of UnCLIPPipeline, UnCLIPImageVariationPipeline, KandinskyV22Pipeline"),
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
    assert!(bf16.contains("no component has weights of variant bf16, found fp16"), "{bf16}");
    // A component without it has its plain files read, and says so.
    let dir = checkpoint(&[
        CONFIG,
        ("prior/model.safetensors", &file_of(&[("x", 1.0)])),
        ("decoder/model.fp16.safetensors", b""),
    ]);
    let index = br#"{"_class_name":"UnCLIPPipeline","prior":["diffusers","A"],"decoder":["diffusers","B"]}"#;
    fs::write(dir.path().join("model_index.json"), index).unwrap();
    let plain = prior(&dir, true, Some("fp16")).unwrap();
    assert_eq!((plain.variant(), plain.f32s("x").unwrap()), (None, vec![1.0]));
    let warning = &plain.warnings()[0];
    assert!(warning.contains("prior: no weights of variant fp16") && warning.contains("plain"), "{warning}");
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
    assert!(component.warnings().is_empty());
    let path = WeightSource::path(&component, "b");
    assert!(path.ends_with(SHARD[1]), "{}", path.display());
    // The index says what is taken: not what it does not list, and of two one.
    fs::write(dir.path().join(SHARD[0]), file_of(&[("a", 3.0), ("another", 4.0), ("b", 5.0)])).unwrap();
    let component = prior(&dir, true, None).unwrap();
    assert_eq!((component.f32s("a").unwrap(), component.f32s("b").unwrap()), (vec![3.0], vec![2.0]));
    assert_eq!((component.tensors().len(), component.total_bytes()), (2, 8));
    assert!(component.warnings()[0].ends_with("passed over what the index does not take from it: another, b"));
    fs::remove_file(dir.path().join(SHARD[1])).unwrap();
    let missing = message(prior(&dir, true, None));
    assert!(missing.contains("index.json: weight_map names the shard") && missing.contains("missing"), "{missing}");
}

#[test]
fn an_index_that_disagrees_with_its_shards_is_refused() {
    let (one, two) = (&SHARD[0][6..], &SHARD[1][6..]);
    for (map, expected) in [
        (format!(r#"{{"a":"{two}","b":"{one}"}}"#), "it is not there".to_string()),
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
        ("decoder", "expected a safetensors file, found a text that begins \"12345678901234567\""),
        ("text_proj", "a pickle"),
        ("decoder_scheduler", "EOF"),
        ("text_encoder", "missing from the checkpoint: text_encoder"),
    ] {
        let problem = by_name[name].problem.as_deref().unwrap_or_default();
        assert!(problem.contains(expected), "{name}: {problem}");
    }
}
