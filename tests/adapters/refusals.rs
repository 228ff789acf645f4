//! What is refused or warned of, and the scale rules of files that no library of today writes.

use super::{on_tiny, open, tiny};
use half::{bf16, f16};
use safetensors::{Dtype as Stored, serialize, tensor::TensorView};
use std::fs;
use std::path::PathBuf;
use tempfile::TempDir;
use unclip::Error;
use unclip::plan::WeightSource;
use unclip::weights::{Adapter, Adapters, Checkpoint, LoadOptions};

type Entry<'a> = (&'a str, &'a [usize], Vec<f32>);

/// Writes f32 tensors to a file.
fn file(dir: &TempDir, name: &str, tensors: &[Entry<'_>], metadata: &[(&str, &str)]) -> PathBuf {
    let bytes: Vec<Vec<u8>> =
        tensors.iter().map(|(_, _, v)| v.iter().flat_map(|x| x.to_le_bytes()).collect()).collect();
    let views = tensors
        .iter()
        .zip(&bytes)
        .map(|((key, shape, _), bytes)| (*key, TensorView::new(Stored::F32, shape.to_vec(), bytes).unwrap()));
    let metadata = metadata.iter().map(|(key, text)| ((*key).to_owned(), (*text).to_owned())).collect();
    let path = dir.path().join(name);
    fs::write(&path, serialize(views, Some(metadata)).unwrap()).unwrap();
    path
}

/// What [`Adapters::new`] says of a file on the tiny checkpoint.
fn met(tensors: &[Entry<'_>], metadata: &[(&str, &str)]) -> Result<Vec<String>, Error> {
    let dir = TempDir::new().unwrap();
    let adapter = Adapter::open(file(&dir, "a.safetensors", tensors, metadata))?;
    let adapters = Adapters::new(&tiny(), vec![(adapter, 1.0)])?;
    Ok(adapters.warnings().map(str::to_owned).collect())
}

const Q: &str = "lora_prior_transformer_blocks_0_attn1_to_q";

fn key(leaf: &str) -> String {
    format!("{Q}.{leaf}")
}

/// A pair of the prior's first query, of rank 2.
fn pair(metadata: &[(&str, &str)]) -> Result<Vec<String>, Error> {
    let (down, up) = (key("lora_down.weight"), key("lora_up.weight"));
    met(&[(&down, &[2, 48], vec![0.1; 96]), (&up, &[48, 2], vec![0.1; 96])], metadata)
}

fn refused(tensors: &[Entry<'_>], parts: &[&str]) {
    let error = met(tensors, &[]).expect_err("a refusal").to_string();
    assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    assert!(!error.contains('\n'), "{error}");
}

#[test]
fn a_base_that_is_named_is_compared_and_one_that_is_not_is_warned_of() {
    assert_eq!(pair(&[("ss_sd_model_name", "/models/TINY.safetensors")]).unwrap(), Vec::<String>::new());
    let unnamed = pair(&[]).unwrap();
    assert!(unnamed.len() == 1 && unnamed[0].contains("nothing in it names the checkpoint"), "{unnamed:?}");
    let other = pair(&[("ss_sd_model_name", "another")]).unwrap();
    assert!(other.len() == 1 && other[0].contains("made for another"), "{other:?}");
    // Karlo's kind of checkpoint, whatever it is called.
    assert_eq!(pair(&[("ss_base_model_version", "karlo-v1-alpha")]).unwrap().len(), 1);
    for base in ["kandinsky-community/kandinsky-2-2-prior", "kandinsky-community/kandinsky-2-1", "sdxl_base_v1-0"] {
        let error = pair(&[("ss_base_model_version", base)]).unwrap_err().to_string();
        assert!(error.contains(&format!("made for {base}")) && error.contains("UnCLIPPipeline"), "{error}");
    }
    assert!(on_tiny("peft-folder", 1.0).warnings().next().is_none());
}

#[test]
fn a_text_encoders_adapter_leaves_the_other_tower_of_a_whole_clip_alone() {
    let clip = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/clip");
    let checkpoint = Checkpoint::open(clip, LoadOptions::default()).unwrap();
    let component = checkpoint.component("text_encoder").unwrap();
    let width = component.find("text_model.encoder.layers.0.self_attn.q_proj.weight").unwrap().1[0];
    assert!(component.find("vision_model.encoder.layers.0.self_attn.q_proj.weight").is_some());
    let dir = TempDir::new().unwrap();
    let stem = "lora_te_text_model_encoder_layers_0_self_attn_q_proj";
    let diff = format!("{stem}.diff_b");
    let adapter = Adapter::open(file(&dir, "a.safetensors", &[(&diff, &[width], vec![1.0; width])], &[])).unwrap();
    let fit = adapter.fit(&checkpoint).unwrap();
    let paths: Vec<&str> = fit.modules.iter().map(|module| module.path.as_str()).collect();
    assert_eq!(paths, ["text_model.encoder.layers.0.self_attn.q_proj"], "{:?}", fit.problems);
}

#[test]
fn factors_that_are_missing_or_do_not_fit_are_named() {
    let (down, up) = (key("lora_down.weight"), key("lora_up.weight"));
    refused(&[(&down, &[2, 48], vec![0.1; 96])], &[Q, "up is missing"]);
    refused(&[(&up, &[48, 2], vec![0.1; 96])], &[Q, "down is missing"]);
    refused(&[(&down, &[2, 48], vec![0.1; 96]), (&up, &[48, 3], vec![0.1; 144])], &["ranks", "[48, 3]", "[2, 48]"]);
    let other = [(down.as_str(), &[2usize, 64][..], vec![0.1; 128]), (up.as_str(), &[48, 2][..], vec![0.1; 96])];
    refused(&other, &["makes [48, 64], the base has [48, 48]", "a.safetensors"]);
    refused(&[(&key("alpha"), &[], vec![1.0])], &["a scale without a difference"]);
    refused(&[(&down, &[2, 48], vec![f32::NAN; 96])], &["NaN or infinity", &down]);
    refused(&[(&key("alpha"), &[2], vec![1.0; 2])], &["expected one number"]);
    refused(&[(&key("hada_w1_a"), &[48, 1], vec![0.0; 48])], &["hada_w1_b is missing"]);
    refused(&[(&key("lokr_w1"), &[2, 2], vec![0.0; 4])], &["lokr_w2 is missing"]);
    let both = [(key("diff"), &[48usize, 48][..]), (key("w_norm"), &[48, 48][..])];
    refused(&[(&both[0].0, both[0].1, vec![0.0; 2304]), (&both[1].0, both[1].1, vec![0.0; 2304])], &["several kinds"]);
    refused(&[(&key("dora_scale"), &[48, 1], vec![1.0; 48])], &["without a difference"]);
}

#[test]
fn names_that_mean_nothing_are_listed_with_the_nearest_that_do() {
    let (down, up) = (key("lora_down.weight"), key("lora_up.weight"));
    let strange = "lora_prior_transformer_blocks_0_attn1_to_w";
    let (a, b) = (format!("{strange}.lora_down.weight"), format!("{strange}.lora_up.weight"));
    let fits: [Entry<'_>; 2] = [(&down, &[2, 48], vec![0.1; 96]), (&up, &[48, 2], vec![0.1; 96])];
    let strange_pair: [Entry<'_>; 2] = [(&a, &[2, 48], vec![0.1; 96]), (&b, &[48, 2], vec![0.1; 96])];
    let all: Vec<Entry<'_>> = fits.iter().chain(&strange_pair).cloned().collect();
    refused(&all, &[strange, "nearest: transformer_blocks.0.attn1.to_"]);
    refused(&strange_pair, &["no such module", "the nearest name is"]);
    refused(
        &[(&down, &[2, 48], vec![0.1; 96]), ("tower.weight", &[1], vec![0.0])],
        &["tower.weight", "no kind of adapter"],
    );
    refused(&[("lora_te2_x.diff", &[1], vec![0.0])], &["lora_te2_", "the checkpoint has no part"]);
    let network = Adapter::open(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/golden/tiny/prior/diffusion_pytorch_model.safetensors"
    ));
    assert!(network.unwrap_err().to_string().contains("no adapter"));
}

#[test]
fn kinds_that_are_not_read_are_refused_by_name() {
    for (leaf, kind) in [
        ("oft_blocks", "OFT"),
        ("oft_R.weight", "OFT"),
        ("boft_R", "BOFT"),
        ("a1.weight", "GLoRA"),
        ("on_input", "IA3"),
        ("ia3_l", "IA3"),
        ("down_list.0", "DyLoRA"),
        ("vera_lambda_b", "VeRA"),
    ] {
        let error = met(&[(&key(leaf), &[1], vec![0.0])], &[]).unwrap_err();
        assert!(matches!(&error, Error::Unsupported { what } if what.contains(&format!("{kind} (tensor"))), "{error}");
    }
    let config = [("lora_adapter_metadata", r#"{"peft_type": "OFT"}"#)];
    assert!(pair(&config).unwrap_err().to_string().contains("peft_type: expected LORA"));
}

#[test]
fn dora_is_refused_beside_others_and_with_a_scale() {
    for (given, part) in [
        (vec![("dora-out", 0.5)], "DoRA has no scale but 1"),
        (vec![("dora-peft", 1.0), ("kohya", 1.0)], "cannot stand beside kohya.safetensors"),
        (vec![("kohya", f32::NAN)], "expected a number"),
    ] {
        let adapters = given.iter().map(|(name, scale)| (open(name), *scale)).collect();
        let error = Adapters::new(&tiny(), adapters).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    // Of other networks they may be.
    let beside = vec![(open("dora-peft"), 1.0), (open("peft-model"), 0.5)];
    let mut adapters = Adapters::new(&tiny(), beside).unwrap();
    assert!(adapters.set_scales(&[0.0, 0.5]).is_err() && adapters.set_scales(&[1.0]).is_err());
    let stale = adapters.set_scales(&[1.0, 0.25]).unwrap();
    assert_eq!((stale.len(), stale["prior"].len(), adapters.scales()), (1, 3, vec![1.0, 0.25]));
}

/// A checkpoint with one layer, `[2, 3]` with a bias, stored as f32, f16 or bf16.
fn base(dir: &TempDir, dtype: Stored) -> Checkpoint {
    let stored = |values: &[f32]| -> Vec<u8> {
        values
            .iter()
            .flat_map(|x| match dtype {
                Stored::F16 => f16::from_f32(*x).to_le_bytes().to_vec(),
                Stored::BF16 => bf16::from_f32(*x).to_le_bytes().to_vec(),
                _ => x.to_le_bytes().to_vec(),
            })
            .collect()
    };
    let (weight, bias) = (stored(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), stored(&[0.5, -0.5]));
    let views = [
        ("net.layer.weight", TensorView::new(dtype, vec![2, 3], &weight).unwrap()),
        ("net.layer.bias", TensorView::new(dtype, vec![2], &bias).unwrap()),
    ];
    fs::create_dir(dir.path().join("prior")).unwrap();
    fs::write(dir.path().join("model_index.json"), r#"{"_class_name": "UnCLIPPipeline", "prior": ["d", "P"]}"#)
        .unwrap();
    fs::write(dir.path().join("prior/model.safetensors"), serialize(views, None).unwrap()).unwrap();
    Checkpoint::open(dir.path(), LoadOptions::default()).unwrap()
}

/// Weight and bias of that checkpoint with an adapter of rank 2 whose product is 4 everywhere, and more tensors.
fn merged(dtype: Stored, more: &[Entry<'_>], scale: f32) -> [Vec<f32>; 2] {
    let dir = TempDir::new().unwrap();
    let checkpoint = base(&dir, dtype);
    let mut tensors: Vec<Entry<'_>> =
        vec![("net.layer.lora_A.weight", &[2, 3], vec![1.0; 6]), ("net.layer.lora_B.weight", &[2, 2], vec![2.0; 4])];
    tensors.extend_from_slice(more);
    let adapter = Adapter::open(file(&dir, "a.safetensors", &tensors, &[])).unwrap();
    let adapters = Adapters::new(&checkpoint, vec![(adapter, scale)]).unwrap();
    let component = checkpoint.component("prior").unwrap();
    let source = adapters.over(&component);
    ["net.layer.weight", "net.layer.bias"].map(|name| {
        assert_eq!(source.load(name).unwrap().dtype(), source.open(name).unwrap().dtype());
        assert_eq!(source.find(name).unwrap().0, component.find(name).unwrap().0);
        source.load(name).unwrap().to_f32()
    })
}

#[test]
fn scales_that_are_stored_follow_the_rules_of_who_wrote_them() {
    let first = |more: &[Entry<'_>], scale| merged(Stored::F32, more, scale)[0][0];
    let alpha = |alpha: f32| -> Vec<Entry<'_>> { vec![("net.layer.alpha", &[], vec![alpha])] };
    assert_eq!([first(&[], 1.0), first(&alpha(1.0), 1.0), first(&alpha(0.0), 1.0)], [5.0, 3.0, 5.0]);
    assert_eq!([first(&alpha(1.0), -2.0), first(&[("net.layer.scale", &[], vec![3.0])], 1.0)], [-3.0, 13.0]);
    let both: [Entry<'_>; 2] = [("net.layer.scale", &[], vec![3.0]), ("net.layer.alpha", &[1], vec![8.0])];
    assert_eq!(first(&both, 1.0), 13.0);
    // A bias of peft's second factor has the pair's scale; without one the base's stays.
    let bias: [Entry<'_>; 2] = [("net.layer.lora_B.bias", &[2], vec![1.0, 2.0]), ("net.layer.alpha", &[], vec![4.0])];
    assert_eq!(merged(Stored::F32, &bias, 0.5)[1], [1.5, 1.5]);
    assert_eq!(merged(Stored::F32, &[], 1.0)[1], [0.5, -0.5]);
}

#[test]
fn merged_weights_are_rounded_once_to_the_type_of_the_base() {
    // 4 / 3 has no exact value in any of them.
    let more: [Entry<'_>; 1] = [("net.layer.alpha", &[], vec![2.0 / 3.0])];
    let exact: Vec<f32> = merged(Stored::F32, &more, 1.0)[0].clone();
    let halves: Vec<f32> = exact.iter().map(|x| f16::from_f32(*x).to_f32()).collect();
    assert!(merged(Stored::F16, &more, 1.0)[0] == halves && halves != exact);
    let brains: Vec<f32> = exact.iter().map(|x| bf16::from_f32(*x).to_f32()).collect();
    assert!(merged(Stored::BF16, &more, 1.0)[0] == brains && brains != halves);
}
