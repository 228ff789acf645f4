//! The bar that every back end's results have to meet is met by right results alone: for every case and every arithmetic,
//! outputs that are wrong in the ways in which kernels go wrong are refused.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use support::arithmetic::Arithmetic;
use support::close::{Rounding, close, worst};
use support::mutations::Mutation;
use support::{every, reference};
use unclip::Dtype;

/// An output as a back end stores it.
fn stored(x: &[f64], dtype: Dtype) -> Vec<f32> {
    let x = x.iter().map(|&x| x as f32);
    match dtype {
        Dtype::F16 => x.map(|x| half::f16::from_f32(x).to_f32()).collect(),
        Dtype::Bf16 => x.map(|x| half::bf16::from_f32(x).to_f32()).collect(),
        _ => x.collect(),
    }
}

/// The bars that a case's results are held to, each once.
fn bars(problem: &support::Problem) -> Vec<Rounding> {
    let mut bars = Vec::new();
    for rounding in Arithmetic::ALL.map(|arithmetic| arithmetic.rounding(problem)) {
        if !bars.contains(&rounding) {
            bars.push(rounding);
        }
    }
    bars
}

fn check(stem: &str) {
    let mut failures = Vec::new();
    let mut nearest = (f64::INFINITY, String::new());
    for case in every::cases_of(stem) {
        let problem = case.problem();
        let want = reference::run(&problem);
        let bars = bars(&problem);
        for rounding in &bars {
            if let Err(reason) = close(&stored(&want, rounding.stored), &want, rounding) {
                failures.push(format!("{}: {rounding:?} refuses what is right: {reason}", case.name));
            }
        }
        for mutation in Mutation::ALL {
            let wrong = mutation.apply(&problem, &want);
            for rounding in &bars {
                let got = stored(&wrong, rounding.stored);
                let same = got == stored(&want, rounding.stored);
                match mutation.without_effect(&case.name, &problem) {
                    Some(_) if same => {}
                    Some(why) => failures.push(format!("{}: {mutation:?} has an effect despite {why}", case.name)),
                    None if same => failures.push(format!("{}: {mutation:?} has no effect", case.name)),
                    None => {
                        let (error, ..) = worst(&got, &want, rounding);
                        if error < nearest.0 {
                            nearest = (error, format!("{}: {mutation:?} in {}", case.name, rounding.stored));
                        }
                        if error <= 1.0 {
                            failures.push(format!("{}: {mutation:?} uses {error:.2} of {rounding:?}", case.name));
                        }
                    }
                }
            }
        }
    }
    println!("{stem}: the least wrong output is {:.1} times what is allowed, in {}", nearest.0, nearest.1);
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

#[test]
fn wrong_outputs_of_linear_are_refused() {
    check("linear");
}

#[test]
fn wrong_outputs_of_conv2d_are_refused() {
    check("conv2d");
}

#[test]
fn wrong_outputs_of_attention_are_refused() {
    check("attention");
}

#[test]
fn wrong_outputs_of_norms_are_refused() {
    ["group_norm", "layer_norm"].into_iter().for_each(check);
}

#[test]
fn wrong_outputs_of_the_other_operations_are_refused() {
    ["concat", "convert", "embed", "geglu", "modulate", "multistep", "pointwise", "resize", "sampler_step", "slice"]
        .into_iter()
        .for_each(check);
}
