//! The cases of an operation on any back end, and which back ends a machine must have.

use super::cases::{self, Case};
use super::close::close;
use super::reference;
use unclip::Dtype;
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
    /// What it computes in.
    pub precision: Dtype,
    /// Larger cases are left out: the back end would need minutes for them.
    pub most_flops: u64,
}

/// Runs all cases of a stem on all back ends; returns what is wrong, one line each.
pub fn mismatches(stem: &str, subjects: &[Subject<'_>]) -> Vec<String> {
    let mut failures = Vec::new();
    for case in cases_of(stem) {
        let problem = case.problem();
        let want = reference::run(&problem);
        let shapes = problem.shapes();
        let flops = problem.op.flops(&shapes, &problem.op.shape(&shapes).expect("the case's shapes fit"));
        for Subject { backend, precision, .. } in subjects.iter().filter(|s| flops <= s.most_flops) {
            let got = problem.run(*backend).expect("the device works");
            if let Err(reason) = close(&got, &want, *precision, reference::reduction(&problem)) {
                failures.push(format!("{} on {}: {reason}", case.name, backend.name()));
            }
        }
    }
    failures
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
        fn pointwise_matches_the_reference() {
            $check("pointwise");
        }

        #[test]
        fn moving_operations_match_the_reference() {
            ["concat", "slice", "embed"].into_iter().for_each($check);
        }

        #[test]
        fn resize_matches_the_reference() {
            $check("resize");
        }

        #[test]
        fn sampler_step_matches_the_reference() {
            $check("sampler_step");
        }
    };
}
#[allow(unused_imports, reason = "not every test has back ends")]
pub(crate) use every_operation_matches_the_reference;

/// A back end, or `None` with a line that says why not. The variable `REQUIRE_BACKENDS`, names with commas between,
/// lists those whose absence is a failure.
pub fn available<B>(name: &str, opened: unclip::Result<B>) -> Option<B> {
    let required = std::env::var("REQUIRE_BACKENDS").unwrap_or_default();
    match opened {
        Ok(backend) => Some(backend),
        Err(reason) if required.split(',').any(|r| r.trim() == name) => panic!("{name} is required: {reason}"),
        Err(reason) => {
            println!("skipped: {reason}");
            None
        }
    }
}
