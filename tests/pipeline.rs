//! Whole pictures against the original: a tiny checkpoint with every block type of the full one, and a recording of
//! diffusers' pipeline on it (`tests/golden/make.py`).
#![cfg(feature = "tokenizer")]

use safetensors::SafeTensors;
use std::ops::ControlFlow;
use unclip::backend::cpu::Cpu;
use unclip::pipeline::{Pipeline, Request, Trace};
use unclip::weights::{Checkpoint, LoadOptions};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/tiny");
const RECORDING: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/tiny-run.safetensors");

fn pipeline(threads: usize) -> Pipeline {
    let checkpoint = Checkpoint::open(MODEL, LoadOptions::default()).unwrap();
    Pipeline::open(checkpoint, Box::new(Cpu::new(threads).unwrap())).unwrap()
}

fn recorded_request() -> Request {
    let mut request = Request::new("a red frog on a green leaf");
    request.prompts.push("An oil painting of Łódź at night, 1999!".into());
    request
}

#[test]
fn every_recorded_tensor_of_the_original_run_is_reproduced() {
    let mut trace = Trace::on();
    let images = pipeline(2).run_traced(&recorded_request(), &mut |_| ControlFlow::Continue(()), &mut trace).unwrap();
    let bytes = std::fs::read(RECORDING).unwrap();
    let recording = SafeTensors::deserialize(&bytes).unwrap();
    let mut compared = 0;
    for (name, view) in recording.tensors() {
        if view.dtype() != safetensors::Dtype::F32 {
            continue;
        }
        let Some((shape, got)) = trace.get(&name) else {
            println!("absent: {name}");
            continue;
        };
        let want: Vec<f32> = bytemuck::allocation::pod_collect_to_vec(view.data());
        if shape != view.shape() {
            println!("shape: {name} {shape:?} {:?}", view.shape());
            continue;
        }
        let worst = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        let size = want.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        println!("{name}: {worst:e} of {size}");
        compared += 1;
    }
    println!("{compared} tensors, {} images", images.len());
}
