//! Whole checkpoints on the CUDA back end's emulator against the CPU: the tiny one of `tests/golden`, which has every
//! block type of the full one, stage by stage; and pictures of the trained one in tf32, f16 and bf16.
#![cfg(all(feature = "cuda-emulator", feature = "tokenizer"))]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use support::golden::MODEL;
use support::pictures::{
    DRAWN, PROMPTS, Steps, TRAINED, agree, agree_on_drawn_noise, agree_on_variations, decibels, run, run_on_cpu,
    run_to_the_decoder, run_unguided,
};
use unclip::Precision;
use unclip::backend::Backend;
use unclip::backend::cpu::Cpu;
use unclip::backend::cuda::Cuda;
use unclip::pipeline::Trace;

/// Enough steps to replay every loop and both super-resolution networks.
const STEPS: Steps = [Some(5), Some(4), Some(3)];

#[test]
fn every_stage_agrees_with_the_cpu_on_the_emulator() {
    agree(MODEL, Box::new(Cuda::emulator()), STEPS);
}

#[test]
fn variations_agree_with_the_cpu_on_the_emulator() {
    agree_on_variations(MODEL, Box::new(Cuda::emulator()), [None, Some(2), Some(2)]);
}

#[test]
fn pictures_agree_with_the_cpu_where_the_kernel_draws_the_noise() {
    let [philox, torch] = DRAWN;
    agree_on_drawn_noise(MODEL, Box::new(Cuda::emulator()), philox, &PROMPTS[..1], [Some(3), Some(2), Some(3)]);
    agree_on_drawn_noise(MODEL, Box::new(Cuda::emulator()), torch, &PROMPTS[..1], [Some(2); 3]);
}

#[cfg(feature = "cuda")]
#[test]
fn every_stage_agrees_with_the_cpu_on_a_gpu() {
    if let Some(gpu) = support::available::available("cuda", Cuda::new(0)) {
        agree(MODEL, Box::new(gpu), STEPS);
    }
}

#[cfg(feature = "cuda")]
#[test]
fn pictures_agree_with_the_cpu_where_a_gpu_draws_the_noise() {
    for noise in DRAWN {
        if let Some(gpu) = support::available::available("cuda", Cuda::new(0)) {
            agree_on_drawn_noise(MODEL, Box::new(gpu), noise, &PROMPTS, STEPS);
        }
    }
}

/// Root mean square of the differences, relative to the root mean square of the expected values.
fn deviation(got: &Trace, want: &Trace, name: &str) -> f64 {
    let (Some((_, got)), Some((_, want))) = (got.get(name), want.get(name)) else { panic!("no {name}") };
    let square = |x: f32| f64::from(x).powi(2);
    let differences = got.iter().zip(&want).map(|(a, b)| square(a - b)).sum::<f64>();
    (differences / want.iter().map(|&x| square(x)).sum::<f64>()).sqrt()
}

/// Unit roundoff of each type: half the distance from 1 to the next value.
const NARROW: [(Precision, f64); 3] =
    [(Precision::Tf32, 1.0 / 2048.0), (Precision::F16, 1.0 / 2048.0), (Precision::Bf16, 1.0 / 256.0)];

/// Compares the networks' outputs for the same input, not pictures: the tiny checkpoint's weights are random, and its
/// first step, which divides by the smallest signal, amplifies any rounding.
#[test]
fn networks_in_narrow_types_give_the_cpus_outputs() {
    let prompt = ["a red frog on a green leaf"];
    let want = run_to_the_decoder(MODEL, Box::new(Cpu::new(2).unwrap()), &prompt);
    let plain = NARROW.map(|(precision, unit)| (Cuda::emulator().with_precision(precision), unit));
    // f16 and bf16 again, with the Hopper kernels.
    let by_warpgroups = NARROW.into_iter().filter(|(precision, _)| *precision != Precision::Tf32);
    let by_warpgroups =
        by_warpgroups.map(|(precision, unit)| (Cuda::hopper_emulator().with_precision(precision), unit));
    for (backend, unit) in plain.into_iter().chain(by_warpgroups) {
        let device = backend.name();
        let got = run_to_the_decoder(MODEL, Box::new(backend), &prompt);
        for name in [
            "text/last_hidden_state",
            "text/text_embeds",
            "prior/step_00/model_output",
            "text_proj/encoder_hidden_states",
            "decoder/step_00/model_output",
        ] {
            let units = deviation(&got, &want, name) / unit;
            println!("{device}: {name:<32} {units:.2} of the type's rounding");
            assert!(units < 4.0, "{device}: {name} deviates by {units:.2} times the type's rounding");
        }
    }
}

/// With many super-resolution steps the first one matters less, and without guidance the difference of the batch's
/// halves is not amplified. `tests/golden/precision.py` compares with diffusers.
#[test]
fn pictures_of_random_weights_in_bf16_are_within_40_db_of_the_cpu_without_guidance() {
    let prompt = ["a red frog on a green leaf"];
    let steps = [Some(5), Some(5), Some(14)];
    let (want, _) = run_unguided(MODEL, Box::new(Cpu::new(2).unwrap()), &prompt, steps);
    for backend in [Cuda::emulator(), Cuda::hopper_emulator()] {
        let backend = backend.with_precision(Precision::Bf16);
        let device = backend.name();
        let (images, _) = run_unguided(MODEL, Box::new(backend), &prompt, steps);
        let decibels = decibels(&images[0], &want[0]);
        println!("{device}: picture without guidance {decibels:.1} dB");
        assert!(decibels > 40.0, "{device}: {decibels:.1} dB");
    }
}

fn the_trained_picture_is_within_40_db_of_the_cpu(backend: Cuda) {
    let prompt = ["a red car on a blue background"];
    let steps = [Some(2), Some(2), Some(2)];
    let (want, _) = run_on_cpu(TRAINED, &prompt, steps);
    let device = backend.name();
    let (images, _) = run(TRAINED, Box::new(backend), &prompt, steps);
    let decibels = decibels(&images[0], &want[0]);
    println!("{device}: picture {decibels:.1} dB");
    assert!(decibels > 40.0, "{device}: {decibels:.1} dB");
}

// A test each, which run side by side.

#[test]
fn a_picture_in_tf32_is_within_40_db_of_the_cpu() {
    the_trained_picture_is_within_40_db_of_the_cpu(Cuda::emulator().with_precision(Precision::Tf32));
}

#[test]
fn a_picture_in_f16_is_within_40_db_of_the_cpu() {
    the_trained_picture_is_within_40_db_of_the_cpu(Cuda::emulator().with_precision(Precision::F16));
}

#[test]
fn a_picture_in_bf16_is_within_40_db_of_the_cpu() {
    the_trained_picture_is_within_40_db_of_the_cpu(Cuda::emulator().with_precision(Precision::Bf16));
}

#[test]
fn a_picture_in_bf16_by_hopper_kernels_is_within_40_db_of_the_cpu() {
    the_trained_picture_is_within_40_db_of_the_cpu(Cuda::hopper_emulator().with_precision(Precision::Bf16));
}
