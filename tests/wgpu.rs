//! Every operation of the WGSL back end against loops in f64, on the best available adapter, lavapipe included.
#![cfg(feature = "wgpu")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use support::adapters;
use support::arithmetic::Arithmetic;
use support::available::{available, whether};
use support::every::{self, Subject};
use unclip::Dtype;
use unclip::backend::wgpu::Options;
use unclip::ops::Tiles;

/// FLOPs above which cases are skipped on software adapters for kernels with barriers.
const BARRIERS_MOST_FLOPS: u64 = 60_000_000;

/// All variants of the kernels that the adapter can run: storage type, operand sharing, reduction.
fn check(stem: &str) {
    let mut backends = Vec::new();
    for storage in [Dtype::F32, Dtype::F16] {
        let matrices = (storage == Dtype::F16).then_some((Tiles::Matrices, true));
        let ways = [(Tiles::Lanes, true), (Tiles::Registers, true), (Tiles::Shared, false)];
        for (tiles, subgroups) in ways.into_iter().chain(matrices) {
            if subgroups {
                // Without them the same kernels run as by Options that forbid them.
                let has = adapters::adapter().is_some_and(|adapter| adapter.subgroups);
                available("wgpu-subgroups", whether(has, "the adapter has none"));
            }
            // On a CPU a barrier costs more than the work between two barriers.
            let barriers = matches!(tiles, Tiles::Shared | Tiles::Matrices);
            let most_flops = if barriers && adapters::is_software() { BARRIERS_MOST_FLOPS } else { u64::MAX };
            let options = Options { storage, tiles: Some(tiles), subgroups, ..Options::default() };
            backends.extend(adapters::open(options).map(|backend| (backend, storage, most_flops)));
        }
    }
    let subjects: Vec<Subject<'_>> = backends
        .iter()
        .map(|(backend, storage, most_flops)| Subject {
            backend,
            arithmetic: Arithmetic::Plain(*storage),
            most_flops: *most_flops,
        })
        .collect();
    let failures = every::mismatches(stem, &subjects);
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

every::every_operation_matches_the_reference!(check);
