//! What the machine could do: the rate of multiply-adds that never leave the registers, and the rate at which memory
//! streams through the threads. Benchmarks measure both beside the operations and report shares of them.
#![allow(unsafe_code)]

use super::lanes::{LANES, Lanes, on_lanes};
use super::tile::Isa;
use std::time::{Duration, Instant};

/// Independent sums: enough to hide the latency of the unit, few enough for sixteen vector registers of AVX2.
const SUMS: usize = 6;
/// The same for the 32 registers of AVX-512.
const WIDE_SUMS: usize = 12;
/// Multiply-adds of each sum in one call.
const ROUNDS: usize = 1 << 14;
/// Numbers of each of the three arrays that are streamed: larger than any cache.
const STREAMED: usize = 1 << 26;

on_lanes! {
    /// `ROUNDS` multiply-adds of each of `SUMS` or, with AVX-512, `WIDE_SUMS` vectors.
    ///
    /// # Safety
    /// `numbers` must have 16 readable and writable ones. The machine must have the instructions.
    pub unsafe fn multiply_add(numbers: *mut f32, wide: bool) = multiply_add_lanes
}

#[inline(always)]
unsafe fn multiply_add_lanes<L: Lanes>(numbers: *mut f32, wide: bool) {
    // SAFETY: the caller's promise.
    unsafe { if wide { repeat::<L, WIDE_SUMS>(numbers) } else { repeat::<L, SUMS>(numbers) } }
}

#[inline(always)]
unsafe fn repeat<L: Lanes, const N: usize>(numbers: *mut f32) {
    // SAFETY: the caller's promise.
    let mut sums = [unsafe { L::load(numbers) }; N];
    let start = sums[0];
    for _ in 0..ROUNDS {
        for sum in &mut sums {
            *sum = sum.mul_add(0.999, start);
        }
    }
    let total = sums.into_iter().fold(L::splat(0.0), L::add);
    // SAFETY: the caller's promise.
    unsafe { total.mul(1e-30).store(numbers) };
}

/// Floating-point operations per second of all threads together, a multiply-add counted as two: the best of several
/// short runs. The machine must have the instructions.
pub fn peak_flops(isa: Isa, threads: usize) -> f64 {
    let wide = isa == Isa::Avx512;
    let per_call = 2 * LANES * ROUNDS * if wide { WIDE_SUMS } else { SUMS };
    let one = || {
        let mut numbers = [0.5f32; LANES];
        let (started, mut calls) = (Instant::now(), 0);
        while started.elapsed() < Duration::from_millis(40) {
            // SAFETY: sixteen numbers; the instructions are available.
            unsafe { multiply_add(isa, numbers.as_mut_ptr(), wide) };
            std::hint::black_box(&mut numbers);
            calls += 1;
        }
        (calls * per_call) as f64 / started.elapsed().as_secs_f64()
    };
    (0..5).map(|_| on_threads(threads, &one)).fold(0.0, f64::max)
}

/// Bytes per second of `a = b + x c` over arrays that no cache holds, three numbers counted each time.
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

/// The sum of what all threads reach at the same time.
fn on_threads(threads: usize, one: &(dyn Fn() -> f64 + Sync)) -> f64 {
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(one)).collect();
        running.into_iter().map(|thread| thread.join().unwrap_or(0.0)).sum()
    })
}
