//! Cases of the operations in which a sampling step ends.

use super::ops::{Case, Fill, Input, rows, x};
use crate::noise::{Card, NoiseDtype};
use crate::ops::{COEFFICIENTS, HISTORY, Multistep, Noise, Prediction, SamplerStep, Variance};

/// All of them.
pub fn all() -> Vec<Case> {
    let mut cases = sampler_step();
    cases.extend(multistep());
    cases
}

/// The same coefficients for all pictures, but a guidance scale for each.
fn fixed(pictures: usize, row: &[f32]) -> Input {
    let rows = (0..pictures).flat_map(|picture| [row, &[4.0 + picture as f32]].concat()).collect();
    Input { shape: vec![pictures, COEFFICIENTS], fill: Fill::Fixed(rows), stored: None }
}

/// Rows as a solver of the second order and PLMS have them.
fn multistep() -> Vec<Case> {
    let case = |what: &str, shape: &[usize], guided: bool, row: [f32; 8]| {
        let mut output = shape.to_vec();
        output[0] *= if guided { 2 } else { 1 };
        let history = [&[HISTORY], shape].concat();
        let inputs = vec![x(&output), x(shape), fixed(shape[0], &row), x(&history)];
        Case::new(format!("multistep/{what}"), Multistep { guided }, inputs)
    };
    let solver = [0.8, -0.6, 0.7, 0.9, -0.25, 0.0, 0.0, 0.0];
    let plms = [0.0, 1.0, 1.1, -0.46, 0.49, -0.31, 0.13, -0.075];
    vec![
        case("guided", &[2, 5, 7, 4], true, plms),
        case("plain", &[3, 5, 7, 4], false, solver),
        case("odd", &[3, 11, 3], true, solver),
        case("vectors", &[2, 77], false, plms),
        case("unclip-768px", &[1, 96, 96, 4], true, plms).heavy(),
    ]
}

fn sampler_step() -> Vec<Case> {
    let words =
        |shape: &[usize], x: &[u32]| Input { shape: shape.to_vec(), fill: Fill::Words(x.to_vec()), stored: None };
    let row = [0.6, 0.8, 0.25, 0.7, 0.3, (0.02f32).ln(), (0.013f32).ln(), 1.0];
    let case = |what: &str, shape: &[usize], op: SamplerStep, row: &[f32], noise: Vec<Input>| {
        let mut output = shape.to_vec();
        output[0] *= if op.guided { 2 } else { 1 };
        output[shape.len() - 1] *= if op.variance == Variance::LearnedRange { 2 } else { 1 };
        let inputs = [vec![x(&output), x(shape), fixed(shape[0], row)], noise].concat();
        Case::new(format!("sampler_step/{what}"), op, inputs)
    };
    let mut cases = Vec::new();
    for (p, prediction) in
        [("eps", Prediction::Epsilon), ("sample", Prediction::Sample), ("velocity", Prediction::Velocity)]
    {
        for (v, variance) in [("fixed", Variance::Fixed), ("learned", Variance::LearnedRange)] {
            for (g, guided) in [("plain", false), ("guided", true)] {
                for (c, clip) in [("free", None), ("clipped", Some(1.5))] {
                    let shape = [2, 5 * 7, 3];
                    let op = SamplerStep { prediction, variance, clip, guided, noise: Noise::Given };
                    cases.push(case(&format!("{p}-{v}-{g}-{c}"), &shape, op, &row, vec![x(&shape)]));
                }
            }
        }
    }
    let plain = SamplerStep {
        prediction: Prediction::Sample,
        variance: Variance::Fixed,
        clip: None,
        guided: false,
        noise: Noise::Philox,
    };
    let whole = SamplerStep {
        prediction: Prediction::Epsilon,
        variance: Variance::LearnedRange,
        clip: Some(1.5),
        guided: true,
        noise: Noise::Philox,
    };
    let decoder = SamplerStep { clip: Some(1.0), noise: Noise::Given, ..whole };
    let any = |pictures: usize| vec![rows(&[pictures, 4], u32::MAX), rows(&[1], 25)];
    // From the third step on the index of a draw needs more than 32 bits.
    let carried =
        |step: u32| vec![words(&[2, 4], &[7, 0, u32::MAX - 2, 0, 7, 9, u32::MAX - 2, 5]), words(&[1], &[step])];
    let last = [&row[..7], &[0.0]].concat();
    // The share of each of the images in draws of a card so small that an image has several turns, counters and threads
    // of its own; the counter of step 0; and in what type.
    let torch = |dtype: NoiseDtype, op: SamplerStep| SamplerStep { noise: Noise::TorchCuda(dtype), ..op };
    let share = |card: &str, counter: u64, shape: &[usize], step: u32| {
        let size: usize = shape[1..].iter().product();
        let threads = card.parse::<Card>().expect("a card").threads((shape[0] * size) as u64);
        let counters = (shape[0] * size).div_ceil(4 * threads as usize) as u32;
        let row = |image: usize| {
            let first = (image * size) as u32;
            let counter = [counter as u32, (counter >> 32) as u32];
            [&[77, 1 << 31], &counter[..], &[counters, threads, first % threads, first / threads]].concat()
        };
        let rows: Vec<u32> = (0..shape[0]).flat_map(row).collect();
        vec![words(&[shape[0], 8], &rows), words(&[1], &[step])]
    };
    let before_carry = u64::from(u32::MAX) - 2;
    cases.extend([
        case("philox-whole", &[2, 5, 7, 3], whole, &row, any(2)),
        case("philox-picture", &[3, 101, 103, 3], plain, &row, any(3)),
        case("philox-one-channel", &[2, 29, 1], whole, &row, any(2)),
        case("philox-vectors", &[3, 77], plain, &row, any(3)),
        case("philox-one-position", &[2, 1, 5], whole, &row, any(2)),
        case("philox-before-the-carry", &[2, 35, 3], plain, &row, carried(2)),
        case("philox-after-the-carry", &[2, 35, 3], plain, &row, carried(3)),
        case("philox-last", &[2, 35, 3], whole, &last, any(2)),
        case("torch-whole", &[2, 5, 7, 3], torch(NoiseDtype::F32, whole), &row, share("1x256", 6, &[2, 5, 7, 3], 2)),
        case(
            "torch-picture",
            &[3, 101, 103, 3],
            torch(NoiseDtype::F32, plain),
            &row,
            share("20x1024", 9, &[3, 101, 103, 3], 24),
        ),
        case("torch-few", &[3, 77], torch(NoiseDtype::F32, plain), &row, share("132x2048", 0, &[3, 77], 5)),
        case(
            "torch-carry",
            &[2, 353, 3],
            torch(NoiseDtype::F32, plain),
            &row,
            share("1x256", before_carry, &[2, 353, 3], 1),
        ),
        // Of draws such that no element is within 2e-6 of where its rounding changes.
        case("torch-f16", &[2, 29, 3], torch(NoiseDtype::F16, plain), &row, share("1x256", 16, &[2, 29, 3], 3)),
        case("torch-bf16", &[2, 35, 3], torch(NoiseDtype::Bf16, whole), &row, share("1x256", 0, &[2, 35, 3], 2)),
        case("torch-last", &[2, 35, 3], torch(NoiseDtype::F16, whole), &last, share("1x256", 1, &[2, 35, 3], 2)),
        case("decoder-64px", &[2, 64 * 64, 3], decoder, &row, vec![x(&[2, 64 * 64, 3])]).heavy(),
        case("philox-256px", &[1, 256, 256, 3], plain, &row, any(1)).heavy(),
        case(
            "torch-256px",
            &[1, 256, 256, 3],
            torch(NoiseDtype::F32, plain),
            &row,
            share("132x2048", 3, &[1, 256, 256, 3], 2),
        )
        .heavy(),
    ]);
    cases
}
