//! The cases of the operations' tests on the CPU, with every instruction set that the machine has.
//!
//! `cargo bench --bench ops -- FILTER` runs the cases whose names contain `FILTER`: `conv2d/decoder`, `attention`,
//! `avx512`. The throughput that criterion prints is in floating-point operations for products and attention
//! (`Gelem/s` reads as GFLOP/s), in bytes for the rest. `--save-baseline NAME` keeps the numbers, `--baseline NAME`
//! compares with them. `THREADS=1` sets the number of threads.
//!
//! At the end a table sets each case beside the roofline measured in the same run: the time that its operations need
//! at the peak rate of multiply-adds, or its bytes at the rate of memory, whichever is longer. Operations are those of
//! the definition, so that a convolution that needs fewer multiplications may exceed the peak; tensors that stay in a
//! cache may exceed the memory's rate.

#[path = "../tests/support/mod.rs"]
mod support;

use criterion::{Criterion, Throughput};
use std::time::{Duration, Instant};
use support::cases;
use unclip::backend::cpu::{Cpu, Isa, roofline};
use unclip::ops::{Op, Operation, elements};

/// What one case needs.
struct Work {
    flops: f64,
    bytes: f64,
}

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    let threads = std::env::var("THREADS").ok().and_then(|t| t.parse().ok()).unwrap_or(0);
    let mut rows = Vec::new();
    for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
        let cpu = Cpu::with_isa(threads, isa).expect("the machine has these instructions");
        // Plain Rust would take minutes for the largest.
        for case in cases::all().into_iter().filter(|case| !(case.heavy && isa == Isa::Portable)) {
            let work = work(&case);
            let mut best = f64::INFINITY;
            let mut executable = None;
            let mut group = criterion.benchmark_group(&case.name);
            group.throughput(match case.op {
                Op::Linear(_) | Op::Conv2d(_) | Op::Attention(_) => Throughput::Elements(work.flops as u64),
                _ => Throughput::Bytes(work.bytes as u64),
            });
            group.bench_function(isa.name(), |bencher| {
                let executable =
                    executable.get_or_insert_with(|| case.problem().prepare(&cpu).expect("the case compiles"));
                bencher.iter_custom(|rounds| {
                    let started = Instant::now();
                    (0..rounds).for_each(|_| executable.run_step(0).expect("the step runs"));
                    let elapsed = started.elapsed();
                    best = f64::min(best, elapsed.as_secs_f64() / rounds as f64);
                    elapsed
                });
            });
            group.finish();
            if best.is_finite() {
                rows.push((case.name.clone(), isa, work, best));
            }
        }
    }
    criterion.final_summary();
    if rows.is_empty() {
        return;
    }
    let threads = Cpu::new(threads).expect("threads start").threads();
    let memory = roofline::stream_bytes(threads);
    println!("memory {:.1} GB/s with {threads} threads\n", memory / 1e9);
    for isa in Isa::ALL {
        let Some(peak) = roofline::peak_flops(isa, threads) else { continue };
        println!("{}: peak {:.0} GFLOP/s with {threads} threads", isa.name(), peak / 1e9);
        for (name, _, work, best) in rows.iter().filter(|row| row.1 == isa) {
            let (compute, traffic) = (work.flops / peak, work.bytes / memory);
            let bound = if compute > traffic { "peak" } else { "memory" };
            println!(
                "{name:40} {:10.3} ms {:8.1} GFLOP/s {:7.1} GB/s  {:4.0} % of {bound}",
                best * 1e3,
                work.flops / best / 1e9,
                work.bytes / best / 1e9,
                100.0 * compute.max(traffic) / best,
            );
        }
    }
}

fn work(case: &cases::Case) -> Work {
    let shapes: Vec<&[usize]> = case.inputs.iter().map(|input| input.shape.as_slice()).collect();
    let output = case.op.shape(&shapes).expect("the case's shapes fit");
    let moved = elements(&output) + shapes.iter().map(|s| elements(s)).sum::<usize>();
    Work { flops: case.op.flops(&shapes, &output) as f64, bytes: 4.0 * moved as f64 }
}
