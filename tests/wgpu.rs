//! Every operation of the WGSL back end against loops in f64, on the best available adapter, lavapipe included.
#![cfg(feature = "wgpu")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use support::every::{self, Subject};
use unclip::Dtype;
use unclip::backend::wgpu::{Kind, Options, Wgpu};
use unclip::ops::Tiles;

/// FLOPs above which cases are skipped on software adapters for kernels with barriers.
const BARRIERS_MOST_FLOPS: u64 = 60_000_000;

fn open(options: Options) -> Option<Wgpu> {
    every::available("wgpu", Wgpu::new(options))
}

/// All variants of the kernels that the adapter can run: storage type, operand sharing, reduction.
fn check(stem: &str) {
    let Some(any) = open(Options::default()) else { return };
    let is_software = any.adapter().kind == Kind::Software;
    let mut backends = Vec::new();
    for storage in [Dtype::F32, Dtype::F16] {
        if storage == Dtype::F16 && !any.adapter().f16 {
            println!("skipped: the adapter lacks f16");
            continue;
        }
        let mut ways = vec![(Tiles::Lanes, true), (Tiles::Registers, true), (Tiles::Shared, false)];
        match any.adapter().matrices {
            Some(_) if storage == Dtype::F16 => ways.push((Tiles::Matrices, true)),
            Some(_) => {}
            None => println!("skipped: the adapter lacks cooperative matrices"),
        }
        for (tiles, subgroups) in ways {
            // On a CPU a barrier costs more than the work between two barriers.
            let barriers = matches!(tiles, Tiles::Shared | Tiles::Matrices);
            let most_flops = if is_software && barriers { BARRIERS_MOST_FLOPS } else { u64::MAX };
            let options = Options { storage, tiles: Some(tiles), subgroups, ..Options::default() };
            backends.extend(open(options).map(|backend| (backend, storage, most_flops)));
        }
    }
    let subjects: Vec<Subject<'_>> = backends
        .iter()
        .map(|(backend, precision, most_flops)| Subject { backend, precision: *precision, most_flops: *most_flops })
        .collect();
    let failures = every::mismatches(stem, &subjects);
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

every::every_operation_matches_the_reference!(check);
