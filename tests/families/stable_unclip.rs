//! Stable unCLIP's U-Net, with both kinds of transformer blocks.

use crate::support::golden::{Recording, channels_last};
use crate::{assert_close, on_every_backend, recorded_model, write};
use unclip::backend::Backend;
use unclip::cases::Tensors;
use unclip::diffusion::sampler::time_features;
use unclip::model::{Sizes, decoder, kandinsky, stable_unclip, unet};
use unclip::ops::{Noise, Prediction, Rule, SamplerStep, Variance};
use unclip::plan::Plan;
use unclip::weights::config::{self, Configured};

/// Of the recording.
const TIMESTEP: u32 = 821;
const SIZE: [usize; 2] = [7, 5];
const TOKENS: usize = 77;
const MODELS: [&str; 2] = ["linear", "convolution"];
const SIZES: Sizes = Sizes {
    pictures: 1,
    steps: 1,
    rule: Rule::Ancestral(SamplerStep {
        prediction: Prediction::Epsilon,
        variance: Variance::Fixed,
        clip: None,
        guided: true,
        noise: Noise::Given,
    }),
};

fn model(recording: &Recording, name: &str) -> (Configured<unet::Config>, Tensors) {
    recorded_model(recording, name)
}

fn plan(recording: &Recording, name: &str) -> (Plan, Tensors) {
    let (config, weights) = model(recording, name);
    (stable_unclip::plan(&config, &weights, &SIZES, TOKENS, SIZE).unwrap(), weights)
}

/// Sides of 7 and 5 become 4 and 3, then 2 and 2; on the way up a row and a column are dropped again.
fn answers_as_the_original(backend: &dyn Backend) {
    let recording = Recording::stable_unclip();
    for name in MODELS {
        let (plan, weights) = plan(&recording, name);
        let mut executable = backend.prepare(plan, &weights).unwrap();
        for input in ["labels", "hidden", "x_t"] {
            write(&mut *executable, input, &recording, &format!("{name}/{input}"));
        }
        executable.write("time", &time_features(&[TIMESTEP], 8, true, 0.0)).unwrap();
        // The step behind the network reads them; its result is not looked at.
        for input in ["coefficients", "noise"] {
            let id = executable.plan().input(input).unwrap();
            let length = executable.plan().shape(id).iter().product();
            executable.write(input, &vec![1.0; length]).unwrap();
        }
        executable.run_once().unwrap();
        executable.run_step(0).unwrap();
        let (shape, want) = recording.get(&format!("{name}/output"));
        let got = executable.read("model_output").unwrap();
        assert_close(&got, &channels_last(&shape, &want), &format!("{}: {name}", backend.name()));
    }
}

on_every_backend!(answers_as_the_original);

#[test]
fn every_tensor_is_used() {
    let recording = Recording::stable_unclip();
    for name in MODELS {
        let (plan, _) = plan(&recording, name);
        let prefix = format!("{name}/weights/");
        let tensors = recording.tensors();
        let is_used = |tensor: &str| plan.weights().any(|(name, _)| name == tensor);
        let names = tensors.names().into_iter().filter_map(|full| full.strip_prefix(&prefix));
        assert_eq!(names.filter(|tensor| !is_used(tensor)).count(), 0, "{name}");
    }
}

#[test]
fn keys_and_values_of_the_text_and_the_labels_are_computed_once_for_all_steps() {
    let (plan, _) = plan(&Recording::stable_unclip(), "linear");
    let (once, each) = plan.parts();
    let [once, each] = [once, each].map(|steps| steps.iter().map(|step| step.label.as_str()).collect::<Vec<_>>());
    for part in ["class_embedding", "attn2.to_k", "attn2.to_v", "time_emb_proj"] {
        assert!(once.iter().any(|label| label.contains(part)), "{part}: {once:?}");
        assert!(!each.iter().any(|label| label.contains(part)), "{part}: {each:?}");
    }
}

#[test]
fn a_unet_of_another_family_is_refused_by_the_key_that_tells_them_apart() {
    let recording = Recording::stable_unclip();
    let (config, weights) = model(&recording, "linear");
    let error = decoder::plan(&config, &weights, &SIZES, 5).unwrap_err().to_string();
    assert!(error.contains("class_embed_type is \"projection\"; unCLIP's decoder has \"identity\""), "{error}");
    let error = kandinsky::plan(&config, &weights, &SIZES, None, SIZE).unwrap_err().to_string();
    assert!(error.contains("class_embed_type is \"projection\"; Kandinsky 2.2's decoder has null"), "{error}");
    let (config, weights) = recorded_model(&Recording::kandinsky(), "decoder");
    let error = stable_unclip::plan(&config, &weights, &SIZES, TOKENS, SIZE).unwrap_err().to_string();
    assert!(error.contains("class_embed_type is null; Stable unCLIP's U-Net has \"projection\""), "{error}");
}

#[test]
fn blocks_and_sizes_that_are_not_implemented_are_refused() {
    let recording = Recording::stable_unclip();
    let given = String::from_utf8(recording.text("linear/config")).unwrap();
    for (key, reason) in [
        (r#""transformer_layers_per_block": 2"#, "transformer_layers_per_block is 2; this engine knows 1"),
        (r#""dual_cross_attention": true"#, "dual_cross_attention is true; this engine knows false"),
        (r#""downsample_padding": 0"#, "downsample_padding is 0; this engine knows 1"),
    ] {
        let text = given.replacen('{', &format!("{{{key}, "), 1);
        let read = config::read::<unet::Config>(std::path::Path::new("config.json"), text.as_bytes());
        let error = read.unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
    let (config, weights) = model(&recording, "linear");
    assert!(stable_unclip::plan(&config, &weights, &SIZES, TOKENS, [0, 5]).is_err());
}
