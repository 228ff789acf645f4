//! The CUDA back end on the emulator, all its checks on: every operation against loops in f64.
#![cfg(feature = "cuda-emulator")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use support::close::Precision;
use support::every::{self, Subject};
use unclip::backend::cuda::Cuda;

/// All cases of a stem; what the kernels did is printed for each.
fn check(stem: &str) {
    let backend = Cuda::emulator();
    let all = Subject { backend: &backend, precision: Precision::F32, most_flops: u64::MAX };
    let failures = every::mismatches(stem, &[all]);
    for (entry, launches, c) in backend.counters() {
        println!(
            "{entry:<14} {launches:>4} launches {:>12} instructions {:>10} KiB read {:>8} KiB written {:>5.2} sectors a \
             request {:>8} bank conflicts in {} requests",
            c.instructions,
            c.global_read_bytes / 1024,
            c.global_written_bytes / 1024,
            c.sectors_per_request(),
            c.bank_conflicts,
            c.shared_requests
        );
    }
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

#[test]
fn linear_matches_the_reference() {
    check("linear");
}

#[test]
fn conv2d_matches_the_reference() {
    check("conv2d");
}

#[test]
fn attention_matches_the_reference() {
    check("attention");
}

#[test]
fn norms_match_the_reference() {
    ["group_norm", "layer_norm"].into_iter().for_each(check);
}

#[test]
fn pointwise_matches_the_reference() {
    check("pointwise");
}

#[test]
fn moving_operations_match_the_reference() {
    ["concat", "slice", "embed"].into_iter().for_each(check);
}

#[test]
fn resize_matches_the_reference() {
    check("resize");
}

#[test]
fn sampler_step_matches_the_reference() {
    check("sampler_step");
}
