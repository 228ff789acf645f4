//! Every operation of the CUDA back end on the emulator, with all its checks, against loops in f64.
#![cfg(feature = "cuda-emulator")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use support::arithmetic::Arithmetic;
use support::every::{self, Subject};
use unclip::Dtype;
use unclip::Precision;
use unclip::backend::cuda::Cuda;
use unclip::plan::Cost;

/// How the back end computes in a precision.
fn arithmetic(precision: Precision) -> Arithmetic {
    match precision {
        Precision::F32 => Arithmetic::Plain(Dtype::F32),
        Precision::Tf32 => Arithmetic::Tf32,
        Precision::F16 | Precision::Bf16 => Arithmetic::TensorCores(precision.storage()),
    }
}

/// All cases of a stem in all precisions.
fn check(stem: &str) {
    let [single, ..] = Precision::ALL.map(|precision| check_in(stem, precision));
    // Every element is read once and written once; a slice leaves elements out.
    if ["concat", "slice"].contains(&stem) {
        assert!(single <= 1.1, "{stem} moves {single:.2} times the least bytes");
    }
}

/// Runs all cases of a stem on the emulator and prints the kernels' counters. Returns the bytes that the kernels moved,
/// relative to the least possible.
fn check_in(stem: &str, precision: Precision) -> f64 {
    let backend = Cuda::emulator().with_precision(precision);
    let subject = Subject { backend: &backend, arithmetic: arithmetic(precision), most_flops: u64::MAX };
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
    for precision in [Precision::F16, Precision::Bf16] {
        let backend = Cuda::hopper_emulator().with_precision(precision);
        let subject = Subject { backend: &backend, arithmetic: arithmetic(precision), most_flops: u64::MAX };
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

#[test]
fn a_nan_reaches_exactly_the_elements_that_depend_on_it() {
    for precision in Precision::ALL {
        every::nan_reaches_what_depends_on_it(&Cuda::emulator().with_precision(precision));
    }
    for precision in [Precision::F16, Precision::Bf16] {
        every::nan_reaches_what_depends_on_it(&Cuda::hopper_emulator().with_precision(precision));
    }
}

/// The same cases on a GPU, if there is one: `cargo test --all-features --test cuda on_a_gpu`.
#[cfg(feature = "cuda")]
mod on_a_gpu {
    use super::support::available::available;
    use super::support::every::{self, Subject};
    use super::{Cuda, Precision, arithmetic};

    fn check(stem: &str) {
        for precision in Precision::ALL {
            let opened = Cuda::new(0).map(|gpu| gpu.with_precision(precision));
            let Some(gpu) = available("cuda", opened) else { return };
            let subject = Subject { backend: &gpu, arithmetic: arithmetic(precision), most_flops: u64::MAX };
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
