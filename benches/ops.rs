//! The cases of the operations' tests on the CPU, with every instruction set that the machine has.
//!
//! `cargo bench --bench ops -- FILTER` runs the cases whose names contain `FILTER`: `conv2d/decoder`, `attention`. The
//! throughput that criterion prints is in floating-point operations for products and attention (`Gelem/s` reads as
//! GFLOP/s; a convolution's are those of its definition, however it is computed), and in bytes for the rest.
//! `--save-baseline NAME` keeps the numbers, `--baseline NAME` compares with them.

#[path = "../tests/support/mod.rs"]
mod support;

use criterion::{Criterion, Throughput};
use std::time::Duration;
use support::cases;
use unclip::backend::cpu::{Cpu, Isa};
use unclip::ops::{Op, Operation, elements};

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    let threads = std::env::var("THREADS").ok().and_then(|t| t.parse().ok()).unwrap_or(0);
    let isas: Vec<Isa> = Isa::ALL.into_iter().filter(|isa| isa.available()).collect();
    for case in cases::all() {
        let mut group = criterion.benchmark_group(&case.name);
        for &isa in &isas {
            let cpu = Cpu::with_isa(threads, isa).expect("the machine has these instructions");
            let mut executable = None;
            group.throughput(throughput(&case));
            group.bench_function(isa.name(), |bencher| {
                let executable = executable.get_or_insert_with(|| case.problem().prepare(&cpu));
                bencher.iter(|| executable.run_step(0).expect("the step runs"));
            });
        }
        group.finish();
    }
    criterion.final_summary();
}

fn throughput(case: &cases::Case) -> Throughput {
    let shapes: Vec<&[usize]> = case.inputs.iter().map(|input| input.shape.as_slice()).collect();
    let output = case.op.shape(&shapes).expect("the case's shapes fit");
    match &case.op {
        Op::Linear(_) | Op::Conv2d(_) | Op::Attention(_) => Throughput::Elements(case.op.flops(&shapes, &output)),
        _ => Throughput::Bytes(4 * (elements(&output) + shapes.iter().map(|s| elements(s)).sum::<usize>()) as u64),
    }
}
