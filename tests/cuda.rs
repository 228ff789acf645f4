//! Every operation of the CUDA back end on the emulator, with all its checks, against loops in f64.
#![cfg(feature = "cuda-emulator")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use support::every::{self, Subject};
use unclip::Dtype;
use unclip::Precision;
use unclip::backend::cuda::Cuda;
use unclip::plan::Cost;

/// What the back end can compute in, and the type whose rounding its results show.
const PRECISIONS: [(Precision, Dtype); 4] = [
    (Precision::F32, Dtype::F32),
    // Ten bits of fraction, as in f16.
    (Precision::Tf32, Dtype::F16),
    (Precision::F16, Dtype::F16),
    (Precision::Bf16, Dtype::Bf16),
];

/// All cases of a stem in all precisions.
fn check(stem: &str) {
    let [single, ..] = PRECISIONS.map(|(precision, rounding)| check_in(stem, precision, rounding));
    // Every element is read once and written once; a slice leaves elements out.
    if ["concat", "slice"].contains(&stem) {
        assert!(single <= 1.1, "{stem} moves {single:.2} times the least bytes");
    }
}

/// Runs all cases of a stem on the emulator and prints the kernels' counters. Returns the bytes that the kernels moved,
/// relative to the least possible.
fn check_in(stem: &str, precision: Precision, rounding: Dtype) -> f64 {
    let backend = Cuda::emulator().with_precision(precision);
    let subject = Subject { backend: &backend, precision: rounding, most_flops: u64::MAX };
    let failures = every::mismatches(stem, &[subject]);
    let mut least = Cost::default();
    for case in every::cases_of(stem) {
        let plan = case.problem().plan();
        let cost = plan.cost(&plan.steps);
        (least.flops, least.bytes) = (least.flops + cost.flops, least.bytes + cost.bytes);
    }
    let mut moved = 0;
    for (entry, launches, c) in backend.counters() {
        let bytes = c.global_read_bytes + c.global_written_bytes;
        moved += bytes;
        println!(
            "{entry:<28} {launches:>3} launches, {:>11} instructions for {:>9} kFLOP, {:>7} KiB moved of at least {:>6}, \
             {:>5.2} sectors per request, {:>7} bank conflicts in {:>8} requests",
            c.instructions,
            least.flops / 1000,
            bytes / 1024,
            least.bytes / 1024,
            c.sectors_per_request(),
            c.bank_conflicts,
            c.shared_requests
        );
    }
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
    moved as f64 / least.bytes as f64
}

/// Runs all cases of a stem on an emulated Hopper GPU; a kernel whose name starts with `entry` must have run.
fn check_by_warpgroups(stem: &str, entry: &str) {
    for (precision, rounding) in [(Precision::F16, Dtype::F16), (Precision::Bf16, Dtype::Bf16)] {
        let backend = Cuda::hopper_emulator().with_precision(precision);
        let subject = Subject { backend: &backend, precision: rounding, most_flops: u64::MAX };
        let failures = every::mismatches(stem, &[subject]);
        assert!(failures.is_empty(), "\n{}", failures.join("\n"));
        let counters = backend.counters();
        let ran: Vec<_> = counters.iter().filter(|(name, ..)| name.starts_with(entry)).collect();
        assert!(!ran.is_empty(), "{stem}: no launch of {entry} in {counters:?}");
        ran.iter().for_each(|(name, launches, c)| println!("{name:<28} {launches:>3} launches, {c:?}"));
    }
}

#[test]
fn matmuls_by_warpgroups_match_the_reference() {
    check_by_warpgroups("linear", "matmul_sm90");
    check_by_warpgroups("conv2d", "matmul_sm90");
}

#[test]
fn attention_by_warpgroups_matches_the_reference() {
    check_by_warpgroups("attention", "attention_sm90");
}

every::every_operation_matches_the_reference!(check);

/// The same cases on a GPU, if there is one: `cargo test --all-features --test cuda on_a_gpu`.
#[cfg(feature = "cuda")]
mod on_a_gpu {
    use super::support::every::{self, Subject};
    use super::{Cuda, PRECISIONS};

    fn check(stem: &str) {
        for (precision, rounding) in PRECISIONS {
            let opened = Cuda::new(0).map(|gpu| gpu.with_precision(precision));
            let Some(gpu) = every::available("cuda", opened) else { return };
            let subject = Subject { backend: &gpu, precision: rounding, most_flops: u64::MAX };
            let failures = every::mismatches(stem, &[subject]);
            assert!(failures.is_empty(), "\n{}", failures.join("\n"));
        }
    }

    every::every_operation_matches_the_reference!(check);
}

/// Runs with and without a GPU: it must open, or give an error that names the device.
#[cfg(feature = "cuda")]
#[test]
fn a_gpu_opens_or_says_why_not() {
    use unclip::backend::Backend;
    match Cuda::new(0) {
        Ok(gpu) => println!("{}", gpu.name()),
        Err(error) => {
            println!("{error}");
            assert!(matches!(error, unclip::Error::Device { .. }), "{error:?}");
            assert!(error.to_string().starts_with("cuda:0: "), "{error}");
        }
    }
}
