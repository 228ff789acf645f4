//! Whole checkpoints on the WGSL back end against the CPU, stage by stage: the tiny one of `tests/golden`, which has
//! every block type of the full one, and the trained one that ships.
#![cfg(all(feature = "wgpu", feature = "tokenizer"))]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use support::adapters;
use support::golden::MODEL;
use support::pictures::{
    DRAWN, OF_PROMPTS, PROMPTS, Steps, TRAINED, agree, agree_on_drawn_noise, agree_on_variations, decibels, run,
    run_on_cpu, worst_of_each,
};
use unclip::Dtype;
use unclip::backend::Backend;
use unclip::backend::wgpu::Options;
use unclip::ops::Tiles;

/// Cooperative matrices are used only on request, with f16 storage.
fn open(storage: Dtype, tiles: Option<Tiles>) -> Option<Box<dyn Backend>> {
    Some(Box::new(adapters::open(Options { storage, tiles, ..Options::default() })?))
}

/// The minimum number of steps, one for each super-resolution network, because software adapters are slow.
const FEW: Steps = [Some(2), Some(2), Some(2)];

#[test]
fn every_stage_agrees_with_the_cpu_in_f32() {
    let Some(backend) = open(Dtype::F32, None) else { return };
    agree(MODEL, backend, [None; 3]);
}

#[test]
fn variations_agree_with_the_cpu_in_f32() {
    for model in [MODEL, TRAINED] {
        let Some(backend) = open(Dtype::F32, None) else { return };
        agree_on_variations(model, backend, FEW);
    }
}

#[test]
fn pictures_agree_with_the_cpu_where_the_kernel_draws_the_noise() {
    for (noise, steps) in DRAWN.into_iter().zip([[None; 3], FEW]) {
        let Some(backend) = open(Dtype::F32, None) else { return };
        agree_on_drawn_noise(MODEL, backend, noise, &PROMPTS, steps);
    }
}

#[test]
fn every_stage_of_the_trained_model_agrees_with_the_cpu_in_f32() {
    let Some(backend) = open(Dtype::F32, None) else { return };
    agree(TRAINED, backend, FEW);
}

/// Compares pictures of a checkpoint in f16 with the CPU's.
fn within_40_db(model: &str, tiles: Option<Tiles>, prompts: &[&str], steps: Steps) {
    let Some(backend) = open(Dtype::F16, tiles) else { return };
    println!("{}", backend.name());
    let (want_images, want) = run_on_cpu(model, prompts, steps);
    let (images, got) = run(model, backend, prompts, steps);
    for (error, tensor) in worst_of_each(&got, &want, &OF_PROMPTS).unwrap() {
        println!("{error:.1e} in {tensor}");
    }
    for (a, b) in images.iter().zip(&want_images) {
        let decibels = decibels(a, b);
        println!("picture      {decibels:.1} dB");
        assert!(decibels > 40.0, "{decibels:.1} dB");
    }
}

#[test]
fn pictures_in_f16_are_within_40_db_of_the_cpu() {
    within_40_db(MODEL, None, &PROMPTS, [None; 3]);
}

#[test]
fn a_picture_of_the_trained_model_in_f16_is_within_40_db_of_the_cpu() {
    for tiles in [None, Some(Tiles::Matrices)] {
        within_40_db(TRAINED, tiles, &["a red car on a blue background"], FEW);
    }
}
