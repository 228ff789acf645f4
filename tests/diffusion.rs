//! The mathematics of sampling against what torch and diffusers computed (`golden/make.py`).

use std::path::Path;

use safetensors::SafeTensors;
use unclip::diffusion::sampler::{coefficients, time_features};
use unclip::diffusion::{Schedule, SchedulerConfig};
use unclip::noise::{NoiseDtype, TorchGenerator};
use unclip::ops::{Noise, Prediction, SamplerStep, Variance, element};
use unclip::weights::config;

/// One golden file.
struct Golden(Vec<u8>);

impl Golden {
    fn open(name: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
        Golden(std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
    }

    fn file(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.0).expect("a golden file is a safetensors file")
    }

    fn f32(&self, name: &str) -> Vec<f32> {
        let file = self.file();
        let (values, []) = file.tensor(name).expect(name).data().as_chunks() else { panic!("{name} is not f32") };
        values.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
    }

    fn timesteps(&self, name: &str) -> Vec<u32> {
        let file = self.file();
        let (values, []) = file.tensor(name).expect(name).data().as_chunks() else { panic!("{name} is not i64") };
        values.iter().map(|&bytes| i64::from_le_bytes(bytes) as u32).collect()
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Distance in steps of the float format, 0 for equal values; signs must agree.
fn ulps(a: f32, b: f32) -> u32 {
    if a == b { 0 } else { a.to_bits().abs_diff(b.to_bits()) }
}

fn schedule() -> Schedule {
    Schedule::new(&SchedulerConfig::default())
}

#[test]
fn tables_have_the_bits_of_diffusers() {
    let golden = Golden::open("schedule.safetensors");
    let ours = schedule();
    assert_eq!(bits(&ours.betas), bits(&golden.f32("betas")));
    assert_eq!(bits(&ours.alpha_bar), bits(&golden.f32("alphas_cumprod")));
}

#[test]
fn timesteps_are_those_of_diffusers() {
    let golden = Golden::open("schedule.safetensors");
    for steps in [7, 25] {
        let theirs = golden.timesteps(&format!("timesteps/{steps}"));
        assert_eq!(schedule().timesteps("steps", steps).unwrap(), theirs);
    }
}

/// torch with MKL rounds square roots and logarithms differently from machine to machine; ours are correctly rounded. So
/// the last bit may differ.
#[test]
fn coefficients_agree_to_2_ulps_with_steps_of_diffusers_on_zeros_and_ones() {
    let golden = Golden::open("schedule.safetensors");
    for steps in [7, 25] {
        let theirs = golden.f32(&format!("coefficients/{steps}"));
        let schedule = schedule();
        let rows = coefficients(&schedule, &schedule.timesteps("steps", steps).unwrap(), 1.0);
        // The ninth is the guidance scale.
        let ours: Vec<f32> = rows.iter().flat_map(|row| &row[..8]).copied().collect();
        assert_eq!(ours.len(), theirs.len());
        for (i, (&a, &b)) in ours.iter().zip(&theirs).enumerate() {
            assert!(ulps(a, b) <= 2, "step {} of {steps}, coefficient {}: {a:e}, diffusers {b:e}", i / 8, i % 8);
        }
    }
}

/// With diffusers' own coefficients, so that only the arithmetic of a step is compared.
#[test]
fn steps_have_the_bits_of_diffusers_in_all_four_forms() {
    const IMAGE: usize = 3 * 16;
    let golden = Golden::open("schedule.safetensors");
    let [x_t, output, noise] = ["sample", "output", "noise"].map(|name| golden.f32(&format!("step/{name}")));
    for steps in [7, 25] {
        let coefficients = golden.f32(&format!("coefficients/{steps}"));
        let (rows, _) = coefficients.as_chunks::<8>();
        for (prediction_name, prediction) in [("epsilon", Prediction::Epsilon), ("sample", Prediction::Sample)] {
            for (variance_name, variance) in
                [("fixed_small_log", Variance::Fixed), ("learned_range", Variance::LearnedRange)]
            {
                let rule = SamplerStep { prediction, variance, clip: Some(1.0), guided: false, noise: Noise::Given };
                let key = format!("step/{steps}/{prediction_name}/{variance_name}");
                let (x0, next) = (golden.f32(&format!("{key}/x0")), golden.f32(&format!("{key}/prev")));
                assert_eq!(x0.len(), steps * IMAGE);
                for (k, row) in rows.iter().enumerate() {
                    let row = &[&row[..], &[1.0]].concat().try_into().unwrap();
                    for i in 0..IMAGE {
                        let ours = element(&rule, row, 0.0, output[i], output[IMAGE + i], x_t[i], noise[i]);
                        let at = k * IMAGE + i;
                        assert_eq!(ours.x0.to_bits(), x0[at].to_bits(), "{key}, step {k}, element {i}: x0");
                        // The exponential of the learned variance is the C library's here and MKL's there.
                        let tolerance = if variance == Variance::LearnedRange { 2.4e-7 } else { 0.0 };
                        let difference = (ours.next - next[at]).abs();
                        assert!(difference <= tolerance, "{key}, step {k}, element {i}: {difference:e}");
                    }
                }
            }
        }
    }
}

#[test]
fn time_features_agree_with_torch_to_one_ulp_of_the_angle() {
    let golden = Golden::open("schedule.safetensors");
    let timesteps = golden.timesteps("timesteps/7");
    for (name, width, flip, shift) in
        [("320_true_0", 320, true, 0.0), ("48_true_0", 48, true, 0.0), ("33_false_1", 33, false, 1.0)]
    {
        let ours = time_features(&timesteps, width, flip, shift);
        let theirs = golden.f32(&format!("time/{name}"));
        assert_eq!(ours.len(), theirs.len());
        for (i, (a, b)) in ours.iter().zip(&theirs).enumerate() {
            // The largest angle of a timestep is the timestep itself.
            let tolerance = f32::EPSILON * (1.0 + timesteps[i / width] as f32);
            assert!((a - b).abs() <= tolerance, "{name} {i}: {a} and {b}");
        }
    }
}

/// The tiny checkpoint's stages as the pipeline ran them: what the schedulers received and what they returned.
#[test]
fn recorded_steps_of_the_pipeline_are_reproduced() {
    let golden = Golden::open("tiny-run.safetensors");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny");
    for (stage, steps, guidance) in [("prior", 25, Some(4.0)), ("decoder", 25, Some(8.0)), ("super_res", 7, None)] {
        let path = folder.join(format!("{stage}_scheduler/scheduler_config.json"));
        let config = config::read::<SchedulerConfig>(&path, &std::fs::read(&path).unwrap()).unwrap();
        let rule = config.step(guidance.is_some(), Noise::Given);
        let schedule = Schedule::new(&config);
        let timesteps = schedule.timesteps("steps", steps).unwrap();
        assert_eq!(timesteps, golden.timesteps(&format!("{stage}/timesteps")));
        let rows = coefficients(&schedule, &timesteps, guidance.unwrap_or(1.0));
        // Torch's layout: two pictures, channels first. A learned variance is the second half of an output's
        // channels; the upscaled picture is the second half of super-resolution's input.
        let output_parts = if rule.variance == Variance::LearnedRange { 2 } else { 1 };
        let input_parts = if stage == "super_res" { 2 } else { 1 };
        let conditional = if guidance.is_some() { 2 } else { 0 };
        for k in [0, steps / 2, steps - 1] {
            let tensor = |name: &str| golden.f32(&format!("{stage}/step_{k:02}/{name}"));
            let (input, output) = (tensor("model_input"), tensor("model_output"));
            let (x0, next) = (tensor("pred_original"), tensor("latents"));
            let guided = tensor(if guidance.is_some() { "guided" } else { "model_output" });
            let noise = if k + 1 < steps { tensor("noise") } else { vec![0.0; next.len()] };
            let image = next.len() / 2;
            for i in 0..next.len() {
                let (picture, i_in) = (i / image, i % image);
                let at = |row: usize, part: usize| output[(row * output_parts + part) * image + i_in];
                let (u, c) = (at(picture, 0), at(conditional + picture, 0));
                let v = at(conditional + picture, output_parts - 1);
                let x_t = input[picture * input_parts * image + i_in];
                let ours = element(&rule, &rows[k], u, c, v, x_t, noise[i]);
                let case = format!("{stage}, step {k}, element {i}");
                assert_eq!(ours.guided, guided[picture * output_parts * image + i_in], "{case}");
                // A last bit of the square roots is worth 1 / sqrt(alpha_bar) in x0, up to the clipping.
                let tolerance = 1e-6 * (1.0 + x_t.abs() / rows[k][1]).min(10.0);
                assert!((ours.x0 - x0[i]).abs() <= tolerance, "{case}: x0 {} for {}", ours.x0, x0[i]);
                assert!((ours.next - next[i]).abs() <= 2e-6, "{case}: {} for {}", ours.next, next[i]);
            }
        }
    }
}

#[test]
fn noise_has_the_bits_of_torch_draw_after_draw() {
    let golden = Golden::open("noise.safetensors");
    for seed in [0, 1234, (1 << 40) + 5] {
        let mut generator = TorchGenerator::new(seed);
        for (draw, size) in [16, 24, 768, 15, 3, 12288, 17].into_iter().enumerate() {
            let mut ours = vec![0.0; size];
            generator.fill_normal(NoiseDtype::F32, &mut ours);
            assert_eq!(bits(&ours), bits(&golden.f32(&format!("{seed}/{draw}_{size}"))), "seed {seed}, draw {draw}");
        }
    }
}
