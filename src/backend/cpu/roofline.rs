//! The machine's roofline: peak rate of multiply-adds in registers, and streaming bandwidth of memory. Benchmarks
//! measure both in the same run and report shares of them.
#![allow(unsafe_code)]

use super::lanes::{LANES, Lanes, on_lanes};
use super::tile::Isa;
use std::time::{Duration, Instant};

/// Independent accumulators: enough to hide the latency of a multiply-add, few enough for AVX2's sixteen registers.
const SUMS: usize = 6;
/// Independent accumulators for AVX-512's 32 registers.
const WIDE_SUMS: usize = 12;
/// Multiply-adds of each accumulator per call.
const ROUNDS: usize = 1 << 14;
/// Elements of each of the three streamed arrays: larger than any cache.
const STREAMED: usize = 1 << 26;

on_lanes! {
    /// `ROUNDS` multiply-adds of each of `SUMS` or, with AVX-512, `WIDE_SUMS` vectors.
    ///
    /// # Safety
    /// Sixteen elements must be readable and writable at `values`. The machine must have the instructions.
    pub unsafe fn multiply_add(values: *mut f32, wide: bool) = multiply_add_lanes
}

#[inline(always)]
unsafe fn multiply_add_lanes<L: Lanes>(values: *mut f32, wide: bool) {
    // SAFETY: the caller's promise.
    unsafe { if wide { repeat::<L, WIDE_SUMS>(values) } else { repeat::<L, SUMS>(values) } }
}

#[inline(always)]
unsafe fn repeat<L: Lanes, const N: usize>(values: *mut f32) {
    // SAFETY: the caller's promise.
    let mut sums = [unsafe { L::load(values) }; N];
    let start = sums[0];
    for _ in 0..ROUNDS {
        for sum in &mut sums {
            *sum = sum.mul_add(0.999, start);
        }
    }
    let total = sums.into_iter().fold(L::splat(0.0), L::add);
    // SAFETY: the caller's promise.
    unsafe { total.mul(1e-30).store(values) };
}

/// FLOP/s of all threads, a multiply-add counted as two: the best of several short runs. The machine must have the
/// instructions.
pub fn peak_flops(isa: Isa, threads: usize) -> f64 {
    let wide = isa.has_avx512();
    let per_call = 2 * LANES * ROUNDS * if wide { WIDE_SUMS } else { SUMS };
    let one = || {
        let mut values = [0.5f32; LANES];
        let (started, mut calls) = (Instant::now(), 0);
        while started.elapsed() < Duration::from_millis(40) {
            // SAFETY: sixteen elements; the instructions are available.
            unsafe { multiply_add(isa, values.as_mut_ptr(), wide) };
            std::hint::black_box(&mut values);
            calls += 1;
        }
        (calls * per_call) as f64 / started.elapsed().as_secs_f64()
    };
    (0..5).map(|_| on_threads(threads, &one)).fold(0.0, f64::max)
}

/// Bytes per second of `a = b + x c` over arrays larger than any cache, counting three elements each time.
pub fn stream_bytes(threads: usize) -> f64 {
    let length = STREAMED / threads.max(1);
    let one = || {
        let (mut a, b, c) = (vec![0.0f32; length], vec![1.0f32; length], vec![2.0f32; length]);
        let mut best = f64::INFINITY;
        for _ in 0..4 {
            let started = Instant::now();
            a.iter_mut().zip(&b).zip(&c).for_each(|((a, b), c)| *a = b + 0.5 * c);
            std::hint::black_box(&mut a);
            best = best.min(started.elapsed().as_secs_f64());
        }
        (3 * 4 * length) as f64 / best
    };
    on_threads(threads, &one)
}

/// The sum of the rates of all threads running at the same time.
pub fn on_threads(threads: usize, one: &(dyn Fn() -> f64 + Sync)) -> f64 {
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(one)).collect();
        running.into_iter().map(|thread| thread.join().unwrap_or(0.0)).sum()
    })
}
