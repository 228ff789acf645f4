//! Samplers without noise against diffusers' (`golden/make_samplers.py`), on given outputs of a model.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use safetensors::SafeTensors;
use std::path::Path;
use unclip::diffusion::{Run, Sampler, SchedulerConfig};
use unclip::ops::{HISTORY, Multistep, combined};
use unclip::weights::config;

/// Rows are made in f64 where diffusers computes every step in f32; its own error is of this size.
const TOLERANCE: f32 = 5e-6;
const WIDTH: usize = 24;

fn floats(file: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let tensor = file.tensor(name).unwrap_or_else(|error| panic!("{name}: {error}"));
    bytemuck::allocation::pod_collect_to_vec(tensor.data())
}

/// What the model sees at each call and what is left at the end, by the rows of a run.
fn states(run: &Run, x: &[f32], outputs: &[f32]) -> Vec<f32> {
    let mut x: Vec<f32> = x.iter().map(|x| run.start * x).collect();
    let mut history = vec![[0.0; HISTORY]; WIDTH];
    let mut states = x.clone();
    for (row, outputs) in run.coefficients.iter().zip(outputs.chunks_exact(WIDTH)) {
        for ((x, kept), &output) in x.iter_mut().zip(&mut history).zip(outputs) {
            let [_, estimate, next] = combined(Multistep { guided: false }, row, [0.0, output], *x, *kept);
            *x = next;
            kept.rotate_right(1);
            kept[0] = estimate;
        }
        states.extend(&x);
    }
    states
}

#[test]
fn samplers_made_from_one_file_step_as_the_originals_do() {
    let bytes = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/samplers.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let text = String::from_utf8(file.tensor("config").unwrap().data().to_vec()).unwrap();
    let (x, outputs) = (floats(&file, "x"), floats(&file, "outputs"));
    let mut worst = (0.0, String::new());
    for sampler in [Sampler::Pndm, Sampler::Ddim, Sampler::Euler, Sampler::DpmSolver] {
        for prediction in ["v_prediction", "epsilon"] {
            let text = text.replace("v_prediction", prediction);
            let read = config::read::<SchedulerConfig>(Path::new("scheduler_config.json"), text.as_bytes()).unwrap();
            let config = read.sampled_by(Some(sampler)).unwrap();
            for steps in [1, 2, 7, 20] {
                let key = format!("{sampler}/{prediction}/{steps}");
                let run = Run::new(&config, ("steps", steps), 1.0).unwrap();
                assert_eq!(run.timesteps, floats(&file, &format!("{key}/timesteps")), "{key}");
                let (got, want) = (states(&run, &x, &outputs), floats(&file, &format!("{key}/states")));
                assert_eq!(got.len(), want.len(), "{key}");
                for (step, (got, want)) in got.chunks_exact(WIDTH).zip(want.chunks_exact(WIDTH)).enumerate() {
                    let size = want.iter().fold(0f32, |most, x| most.max(x.abs()));
                    let error = got.iter().zip(want).fold(0f32, |most, (g, w)| most.max((g - w).abs())) / size;
                    if error > worst.0 {
                        worst = (error, format!("{key} at call {step}"));
                    }
                    assert!(error <= TOLERANCE, "{key}: off by {error:e} of {size} at call {step}");
                }
            }
        }
    }
    println!("at most {:.1e}: {}", worst.0, worst.1);
}

#[test]
fn numbers_of_steps_that_a_schedule_does_not_have_are_refused() {
    let text = r#"{"_class_name": "PNDMScheduler", "skip_prk_steps": true, "steps_offset": 1, "clip_sample": false}"#;
    let read = config::read::<SchedulerConfig>(Path::new("scheduler_config.json"), text.as_bytes()).unwrap();
    for (sampler, most) in [
        (Sampler::Pndm, 999),
        (Sampler::Ddim, 999),
        (Sampler::Euler, 1000),
        (Sampler::DpmSolver, 999),
        (Sampler::Ddpm, 999),
    ] {
        let config = read.sampled_by(Some(sampler)).unwrap();
        for steps in [0, most + 1] {
            let error = Run::new(&config, ("--steps", steps), 1.0).unwrap_err().to_string();
            assert!(error.contains(&format!("--steps {steps}: must be 1 to {most}")), "{sampler}: {error}");
        }
        for steps in [1, 2, 3, 501, most] {
            let run = Run::new(&config, ("--steps", steps), 7.0).unwrap();
            let calls = steps + usize::from(sampler == Sampler::Pndm && steps > 1);
            assert_eq!((run.timesteps.len(), run.coefficients.len(), run.jumps.len()), (calls, calls, calls));
            assert!(run.coefficients.as_flattened().iter().all(|c| c.is_finite()), "{sampler}, {steps}");
            assert!(run.coefficients.iter().all(|row| row[8] == 7.0));
            assert!(run.timesteps.iter().all(|t| (0.0..1000.0).contains(t)));
        }
    }
}
