//! What the tests share: reference loops, one tolerance, checkpoints and recordings.
//!
//! The cases are the library's own: a [`cases::Case`] describes one step; [`cases::Case::problem`] draws its tensors;
//! [`Problem::prepare`] compiles it for any back end. [`reference::run`] computes the same step in f64 and
//! [`close::close`] compares.
#![allow(dead_code, reason = "every test uses a part of this")]

#[cfg(feature = "wgpu")]
pub mod adapters;
pub mod arithmetic;
pub mod available;
pub mod close;
pub mod every;
pub mod files;
pub mod golden;
pub mod header;
pub mod mutations;
#[cfg(feature = "tokenizer")]
pub mod pictures;
#[cfg(feature = "cuda-emulator")]
pub mod ptx;
pub mod recipes;
pub mod reference;

use unclip::Dtype;
use unclip::backend::Executable;
pub use unclip::cases::{self, Data, Problem, Random, Tensors};
use unclip::ops::elements;
use unclip::plan::{Origin, Plan};

/// The inputs of a plan, drawn for the given picture.
pub fn inputs(plan: &Plan, picture: u64) -> Vec<(String, Vec<f32>)> {
    let mut random = Random(picture);
    let mut inputs = Vec::new();
    for value in &plan.values {
        if let (Origin::Input { name, .. }, Dtype::F32) = (&value.origin, value.dtype) {
            inputs.push((name.clone(), (0..elements(&value.shape)).map(|_| random.normal() as f32).collect()));
        }
    }
    inputs
}

/// Two pictures of three steps each: all outputs after every step.
pub fn replay(executable: &mut dyn Executable) -> Vec<Vec<f32>> {
    let plan = executable.plan().clone();
    let mut seen = Vec::new();
    for picture in 0..2 {
        for (name, data) in inputs(&plan, picture) {
            executable.write(&name, &data).expect("the plan runs");
        }
        executable.run_once().expect("the plan runs");
        for step in 0..3 {
            executable.run_step(step).expect("the plan runs");
            seen.extend(plan.outputs.iter().map(|(name, _)| executable.read(name).expect("the plan runs")));
        }
    }
    seen
}
