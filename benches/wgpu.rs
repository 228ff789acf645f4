//! The cases of all operations on an adapter, timed on its own clock.
//!
//! `cargo bench --features wgpu --bench wgpu` takes the best adapter; the variable `UNCLIP_ADAPTER` chooses another by
//! number. Each case is reported with its rate: floating-point operations where it has any, bytes where it only moves
//! them. `heavy` cases, the models' full sizes, are left out on software adapters, which would need minutes for each.

#[path = "../tests/support/mod.rs"]
mod support;

use criterion::{Criterion, Throughput};
use std::time::Duration;
use support::cases;
use unclip::backend::wgpu::{Choice, Kind, Options, Wgpu};
use unclip::ops::Operation;

fn main() {
    let adapter = match std::env::var("UNCLIP_ADAPTER").ok().and_then(|n| n.parse().ok()) {
        Some(number) => Choice::Number(number),
        None => Choice::Best,
    };
    let backend = match Wgpu::new(Options { adapter, profile: true, ..Options::default() }) {
        Ok(backend) => backend,
        Err(reason) => return println!("skipped: {reason}"),
    };
    println!("{}", backend.adapter());
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    for case in cases::all() {
        if case.heavy && backend.adapter().kind == Kind::Software {
            continue;
        }
        let problem = case.problem();
        let plan = problem.plan();
        let cost = plan.cost(&plan.steps);
        let shapes = problem.shapes();
        let output = problem.op.shape(&shapes).expect("the case's shapes fit");
        let (stem, what) = case.name.split_once('/').expect("names are stem/what");
        let mut group = criterion.benchmark_group(stem);
        group.throughput(match problem.op.flops(&shapes, &output) {
            0 => Throughput::Bytes(cost.bytes),
            flops => Throughput::Elements(flops),
        });
        let mut executable = problem.prepare(&backend).expect("the case compiles");
        let mut spent = 0.0;
        group.bench_function(what, |b| {
            b.iter_custom(|times| {
                (0..times).for_each(|_| executable.run_step(0).expect("the device works"));
                let total: f64 = executable.profile().expect("it was asked for").iter().sum();
                // Some drivers' clocks stand still within a short kernel.
                let own = (total - spent).max(1e-9);
                spent = total;
                Duration::from_secs_f64(own)
            });
        });
        group.finish();
    }
    criterion.final_summary();
}
