//! Decoder and encoder of MoVQ, with spatial and with plain normalisations, and of the KL autoencoder.

use crate::support::golden::{Recording, channels_last};
use crate::{assert_close, on_every_backend, recorded_model, write};
use unclip::backend::Backend;
use unclip::cases::Tensors;
use unclip::model::autoencoder::{self, Config};
use unclip::weights::config::Configured;

const MODELS: [&str; 3] = ["movq", "movq_group", "kl"];

fn model(recording: &Recording, name: &str) -> (Configured<Config>, Tensors) {
    recorded_model(recording, name)
}

fn answers_as_the_original(backend: &dyn Backend) {
    let recording = Recording::autoencoders();
    for name in MODELS {
        let (config, weights) = model(&recording, name);
        let factor = config.factor();
        let decoder = autoencoder::decoder(&config, &weights, 2, [5, 3]).unwrap();
        let encoder = autoencoder::encoder(&config, &weights, 2, [3 * factor, 4 * factor]).unwrap();
        for (plan, input, recorded, output) in
            [(decoder, "latents", "decoded", "picture"), (encoder, "picture", "encoded", "latents")]
        {
            let mut executable = backend.prepare(plan, &weights).unwrap();
            write(&mut *executable, input, &recording, &format!("{name}/{input}"));
            executable.run_once().unwrap();
            let (shape, want) = recording.get(&format!("{name}/{recorded}"));
            let got = executable.read(output).unwrap();
            assert_close(&got, &channels_last(&shape, &want), &format!("{}: {name}, {recorded}", backend.name()));
        }
    }
}

on_every_backend!(answers_as_the_original);

#[test]
fn every_tensor_but_the_codebook_is_used_by_encoder_or_decoder() {
    let recording = Recording::autoencoders();
    for name in MODELS {
        let (config, weights) = model(&recording, name);
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
    let (config, weights) = model(&recording, "kl");
    let error = autoencoder::encoder(&config, &weights, 1, [8, 10]).unwrap_err().to_string();
    assert!(error.contains("10x8 pixels; expected multiples of 4"), "{error}");
    assert!(autoencoder::decoder(&config, &weights, 1, [0, 3]).is_err());
}
