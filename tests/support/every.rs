//! The cases of an operation on any back end.

use super::arithmetic::Arithmetic;
use super::cases::{self, Case};
use super::close::close;
use super::reference;
use std::collections::BTreeMap;
use unclip::backend::Backend;
use unclip::ops::Operation;

/// The cases of one stem that are small enough for the reference.
pub fn cases_of(stem: &str) -> Vec<Case> {
    let cases: Vec<Case> =
        cases::all().into_iter().filter(|c| !c.heavy && c.name.split('/').next() == Some(stem)).collect();
    assert!(!cases.is_empty(), "no cases of {stem}");
    cases
}

/// A back end that is to run the cases.
pub struct Subject<'a> {
    pub backend: &'a dyn Backend,
    /// How it computes.
    pub arithmetic: Arithmetic,
    /// Larger cases are left out: the back end would need minutes for them.
    pub most_flops: u64,
}

/// Runs all cases of a stem on all back ends; returns what is wrong, one line each. Prints for each back end the largest
/// part of what is allowed that was used.
pub fn mismatches(stem: &str, subjects: &[Subject<'_>]) -> Vec<String> {
    let mut failures = Vec::new();
    let mut used: BTreeMap<String, (f64, String)> = BTreeMap::new();
    for case in cases_of(stem) {
        let problem = case.problem();
        let shapes = problem.shapes();
        let flops = problem.op.flops(&shapes, &problem.op.shape(&shapes).expect("the case's shapes fit"));
        let mut references: Vec<(Arithmetic, Vec<f64>)> = Vec::new();
        for Subject { backend, arithmetic, .. } in subjects.iter().filter(|s| flops <= s.most_flops) {
            if references.iter().all(|(known, _)| known != arithmetic) {
                references.push((*arithmetic, reference::run(&arithmetic.operands(&problem))));
            }
            let (_, want) = references.iter().find(|(known, _)| known == arithmetic).expect("it was just put there");
            let got = problem.run(*backend).expect("the device works");
            match close(&got, want, &arithmetic.rounding(&problem)) {
                Err(reason) => failures.push(format!("{} on {}: {reason}", case.name, backend.name())),
                Ok(part) => {
                    let most = used.entry(backend.name()).or_default();
                    if part > most.0 {
                        *most = (part, case.name.clone());
                    }
                }
            }
        }
    }
    used.iter().for_each(|(backend, (part, case))| println!("{backend}: at most {part:.2} of the bar, in {case}"));
    failures
}

/// Holds that a NaN as the first element of an input reaches exactly those elements of the output that depend on it.
pub fn nan_reaches_what_depends_on_it(backend: &dyn Backend) {
    for (name, which) in [
        ("pointwise/silu", 0),
        ("pointwise/gelu", 0),
        ("pointwise/quick-gelu", 0),
        ("pointwise/clamp", 0),
        ("geglu/tiny", 0),
        ("group_norm/small-48", 0),
        ("group_norm/several-chunks", 0),
        ("layer_norm/tiny-24", 0),
        ("attention/heads-of-12", 0),
        ("attention/image-encoder", 1),
        ("attention/decoder-8px", 3),
        ("linear/tiny-24-to-96", 0),
        ("conv2d/five-by-seven", 0),
        ("resize/halve", 0),
        ("multistep/guided", 0),
        ("sampler_step/eps-learned-guided-clipped", 0),
    ] {
        let mut problem = cases::named(name).problem();
        problem.tensors[which].floats_mut()[0] = f32::NAN;
        let want: Vec<bool> = reference::run(&problem).iter().map(|y| y.is_nan()).collect();
        let got: Vec<bool> = problem.run(backend).expect("the device works").iter().map(|y| y.is_nan()).collect();
        assert!(want.contains(&true) && want.contains(&false), "{name}");
        let wrong = got.iter().zip(&want).filter(|(got, want)| got != want).count();
        assert!(got.len() == want.len() && wrong == 0, "{name} on {}: {wrong} of {}", backend.name(), want.len());
    }
}

/// Tests of all operations by a function that takes a stem and fails if one of its cases is off.
#[allow(unused_macros, reason = "not every test has back ends")]
macro_rules! every_operation_matches_the_reference {
    ($check:path) => {
        #[test]
        fn linear_matches_the_reference() {
            $check("linear");
        }

        #[test]
        fn conv2d_matches_the_reference() {
            $check("conv2d");
        }

        #[test]
        fn attention_matches_the_reference() {
            $check("attention");
        }

        #[test]
        fn norms_match_the_reference() {
            ["group_norm", "layer_norm"].into_iter().for_each($check);
        }

        #[test]
        fn pointwise_operations_match_the_reference() {
            ["geglu", "modulate", "pointwise"].into_iter().for_each($check);
        }

        #[test]
        fn moving_operations_match_the_reference() {
            ["concat", "convert", "slice", "embed"].into_iter().for_each($check);
        }

        #[test]
        fn resize_matches_the_reference() {
            $check("resize");
        }

        #[test]
        fn sampler_step_matches_the_reference() {
            ["multistep", "sampler_step"].into_iter().for_each($check);
        }
    };
}
#[allow(unused_imports, reason = "not every test has back ends")]
pub(crate) use every_operation_matches_the_reference;
