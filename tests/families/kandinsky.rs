//! Kandinsky 2.2's decoder: from an image embedding alone, to inpaint, and with a hint.

use crate::support::golden::{Recording, channels_last};
use crate::{assert_close, on_every_backend, recorded_model, write};
use unclip::backend::Backend;
use unclip::cases::Tensors;
use unclip::diffusion::sampler::time_features;
use unclip::model::kandinsky::{self, Beside};
use unclip::model::{Sizes, decoder, unet};
use unclip::ops::{Noise, Prediction, Rule, SamplerStep, Variance};
use unclip::weights::config::Configured;

/// Of the recording.
const TIMESTEP: u32 = 821;
const SIZE: [usize; 2] = [6, 4];
const SIZES: Sizes = Sizes {
    pictures: 1,
    steps: 1,
    rule: Rule::Ancestral(SamplerStep {
        prediction: Prediction::Epsilon,
        variance: Variance::Fixed,
        clip: Some(1.0),
        guided: true,
        noise: Noise::Given,
    }),
};

fn model(recording: &Recording, name: &str) -> (Configured<unet::Config>, Tensors) {
    recorded_model(recording, name)
}

fn answers_as_the_original(backend: &dyn Backend) {
    let recording = Recording::kandinsky();
    for (name, beside, input) in
        [("decoder", Beside::Nothing, ""), ("inpaint", Beside::Known, "known"), ("depth", Beside::Hint, "hint")]
    {
        let (config, weights) = model(&recording, name);
        assert_eq!(Beside::of(&config).unwrap(), beside);
        let plan = kandinsky::plan(&config, &weights, &SIZES, None, SIZE).unwrap();
        let mut executable = backend.prepare(plan, &weights).unwrap();
        write(&mut *executable, "image_embeds", &recording, &format!("{name}/image_embeds"));
        write(&mut *executable, "x_t", &recording, &format!("{name}/x_t"));
        if beside != Beside::Nothing {
            write(&mut *executable, input, &recording, &format!("{name}/beside"));
        }
        executable.write("time", &time_features(&[TIMESTEP], config.time_features(), true, 0.0)).unwrap();
        // The step behind the network reads them; its result is not looked at.
        for input in ["coefficients", "noise"] {
            let id = executable.plan().input(input).unwrap();
            let length = executable.plan().shape(id).iter().product();
            executable.write(input, &vec![1.0; length]).unwrap();
        }
        executable.run_once().unwrap();
        executable.run_step(0).unwrap();
        // The original gives the variance as well, which its scheduler drops.
        let (shape, want) = recording.get(&format!("{name}/output"));
        let want = channels_last(&shape, &want);
        let want: Vec<f32> = want.chunks_exact(shape[1]).flat_map(|pixel| &pixel[..shape[1] / 2]).copied().collect();
        let got = executable.read("model_output").unwrap();
        assert_close(&got, &want, &format!("{}: {name}", backend.name()));
    }
}

on_every_backend!(answers_as_the_original);

#[test]
fn every_tensor_is_used() {
    let recording = Recording::kandinsky();
    for name in ["decoder", "inpaint", "depth"] {
        let (config, weights) = model(&recording, name);
        let plan = kandinsky::plan(&config, &weights, &SIZES, None, SIZE).unwrap();
        let prefix = format!("{name}/weights/");
        let tensors = recording.tensors();
        let is_used = |tensor: &str| plan.weights().any(|(name, _)| name == tensor);
        let names = tensors.names().into_iter().filter_map(|full| full.strip_prefix(&prefix));
        assert_eq!(names.filter(|tensor| !is_used(tensor)).count(), 0, "{name}");
    }
}

#[test]
fn the_image_embedding_becomes_tokens_and_keys_once_for_all_steps() {
    let recording = Recording::kandinsky();
    let (config, weights) = model(&recording, "depth");
    let plan = kandinsky::plan(&config, &weights, &SIZES, None, SIZE).unwrap();
    let (once, each) = plan.parts();
    let [once, each] = [once, each].map(|steps| steps.iter().map(|step| step.label.as_str()).collect::<Vec<_>>());
    for part in ["encoder_hid_proj", "add_embedding", "add_k_proj", "add_v_proj", "time_emb_proj"] {
        assert!(once.iter().any(|label| label.contains(part)), "{part}: {once:?}");
        assert!(!each.iter().any(|label| label.contains(part)), "{part}: {each:?}");
    }
}

#[test]
fn a_decoder_of_another_family_is_refused_by_the_key_that_tells_them_apart() {
    let recording = Recording::kandinsky();
    let (config, weights) = model(&recording, "decoder");
    let error = decoder::plan(&config, &weights, &SIZES, 5).unwrap_err().to_string();
    assert!(error.starts_with("config.json: class_embed_type is null; unCLIP's decoder has \"identity\""), "{error}");
    // The original projects the text with it where the kind of projection is null.
    let text = r#""class_embed_type": "identity", "encoder_hid_dim": 40"#;
    let configurations = Recording::configurations();
    let given = String::from_utf8(configurations.text("unet/config")).unwrap();
    let given = given.replace(r#""class_embed_type": "identity""#, text);
    let given: Configured<unet::Config> =
        unclip::weights::config::read(std::path::Path::new("config.json"), given.as_bytes()).unwrap();
    let error = decoder::plan(&given, &weights, &SIZES, 5).unwrap_err().to_string();
    assert!(error.contains("encoder_hid_dim is 40; unCLIP's decoder has null"), "{error}");
    let text = String::from_utf8(configurations.text("unet/config")).unwrap();
    let karlo: Configured<unet::Config> =
        unclip::weights::config::read(std::path::Path::new("config.json"), text.as_bytes()).unwrap();
    let error = kandinsky::plan(&karlo, &weights, &SIZES, None, SIZE).unwrap_err().to_string();
    assert!(error.contains("class_embed_type is \"identity\"; Kandinsky 2.2's decoder has null"), "{error}");
}
