//! Autoencoders against diffusers': decoder and encoder of MoVQ, with spatial and with plain normalisations, and of the KL
//! autoencoder, on every back end.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::path::Path;
use support::golden::{Recording, channels_last};
use unclip::Dtype;
use unclip::backend::Backend;
use unclip::backend::cpu::Cpu;
use unclip::cases::Tensors;
use unclip::model::autoencoder::{self, Config};
use unclip::plan::Plan;
use unclip::weights::config::{self, Configured};

/// Largest error of an element relative to the tensor's root mean square.
const TOLERANCE: f64 = 1e-4;

fn recorded_model(recording: &Recording, name: &str) -> (Configured<Config>, Tensors) {
    let config: Configured<Config> =
        config::read(Path::new("config.json"), &recording.text(&format!("{name}/config"))).unwrap();
    assert!(config.warnings().is_empty(), "{:?}", config.warnings());
    let mut weights = Tensors::default();
    for (full, _) in recording.tensors().tensors() {
        if let Some(tensor) = full.strip_prefix(&format!("{name}/weights/")) {
            let (shape, values) = recording.halves(&full);
            weights.insert(tensor, &shape, values, Dtype::F16);
        }
    }
    (config, weights)
}

/// Relative error of a plan's output for a recorded input.
fn error(
    backend: &dyn Backend,
    weights: &Tensors,
    plan: Plan,
    recording: &Recording,
    [from, to, input, output]: [&str; 4],
) -> f64 {
    let mut executable = backend.prepare(plan, weights).unwrap();
    let (shape, given) = recording.get(from);
    executable.write(input, &channels_last(&shape, &given)).unwrap();
    executable.run_once().unwrap();
    let got = executable.read(output).unwrap();
    let (shape, want) = recording.get(to);
    let want = channels_last(&shape, &want);
    assert_eq!(got.len(), want.len(), "{to}");
    let rms = (want.iter().map(|&w| f64::from(w).powi(2)).sum::<f64>() / want.len() as f64).sqrt();
    let errors = got.iter().zip(&want).map(|(g, w)| f64::from(g - w).abs() / rms);
    errors.fold(0.0, |worst, e| if e.is_nan() || e > worst { e } else { worst })
}

fn check(backend: &dyn Backend) {
    let recording = Recording::autoencoders();
    for name in ["movq", "movq_group", "kl"] {
        let (config, weights) = recorded_model(&recording, name);
        let factor = config.factor();
        let decoder = autoencoder::decoder(&config, &weights, 2, [5, 3]).unwrap();
        let encoder = autoencoder::encoder(&config, &weights, 2, [3 * factor, 4 * factor]).unwrap();
        for (plan, from, to, output) in
            [(decoder, "latents", "decoded", "picture"), (encoder, "picture", "encoded", "latents")]
        {
            let names = [from, to].map(|tensor| format!("{name}/{tensor}"));
            let worst = error(backend, &weights, plan, &recording, [&names[0], &names[1], from, output]);
            println!("{}: {name}, {to}: {worst:.1e}", backend.name());
            assert!(worst <= TOLERANCE, "{}: {name}, {to}: off by {worst:.1e} of the tensor's size", backend.name());
        }
    }
}

#[test]
fn autoencoders_answer_as_the_original_on_the_cpu() {
    check(&Cpu::new(2).unwrap());
}

#[cfg(feature = "wgpu")]
#[test]
fn autoencoders_answer_as_the_original_on_wgpu() {
    if let Some(adapter) = support::adapters::storing(Dtype::F32) {
        check(&adapter);
    }
}

#[cfg(feature = "cuda-emulator")]
#[test]
fn autoencoders_answer_as_the_original_on_the_emulator() {
    check(&unclip::backend::cuda::Cuda::emulator());
}

#[test]
fn every_tensor_but_the_codebook_is_used_by_encoder_or_decoder() {
    let recording = Recording::autoencoders();
    for name in ["movq", "movq_group", "kl"] {
        let (config, weights) = recorded_model(&recording, name);
        let decoder = autoencoder::decoder(&config, &weights, 1, [1, 1]).unwrap();
        let encoder = autoencoder::encoder(&config, &weights, 1, [config.factor(); 2]).unwrap();
        let used =
            |tensor: &str| [&decoder, &encoder].iter().any(|plan| plan.weights().any(|(name, _)| name == tensor));
        let prefix = format!("{name}/weights/");
        let tensors = recording.tensors();
        let names = tensors.names().into_iter().filter_map(|full| full.strip_prefix(&prefix));
        let unused: Vec<&str> = names.filter(|tensor| !used(tensor)).collect();
        let codebook: &[&str] = if name == "kl" { &[] } else { &["quantize.embedding.weight"] };
        assert_eq!(unused, codebook, "{name}");
    }
}

#[test]
fn pictures_that_cannot_be_halved_often_enough_are_refused() {
    let recording = Recording::autoencoders();
    let (config, weights) = recorded_model(&recording, "kl");
    let error = autoencoder::encoder(&config, &weights, 1, [8, 10]).unwrap_err().to_string();
    assert!(error.contains("10x8 pixels; expected multiples of 4"), "{error}");
    assert!(autoencoder::decoder(&config, &weights, 1, [0, 3]).is_err());
}
