//! `torch.randn` on a CUDA card, within the last bits of its sine and cosine.
//!
//! The generator is Philox 4x32-10 with the seed as key. A draw of `n` elements occupies
//! `T = 256 min(ceil(n / 256), multiprocessors x (threads of each / 256))` threads, and element `i` is made so:
//! ```text
//! thread     i mod T
//! component  (i div T) mod 4
//! counter    first + i div 4T, 64 bits, then the thread, 64 bits           -> words w0 w1 w2 w3
//! uniforms   u = w 2^-32 + 2^-33, w rounded to f32: u1, u2 of w0, w1 for components 0 and 1, of w2, w3 for 2 and 3
//! element    sqrt(-2 ln u1) (sin, cos)(2 pi u2) for an even and an odd component
//! ```
//! A draw advances `first`, which is 0 after `manual_seed`, by the counters that it used: one for each started 4T elements.
//! torch counts in words, four times as far. f16 and bf16 are f32 values rounded.
//!
//! # Source
//! Draws of torch 2.11 recorded on an H200 (`tests/golden/randn.py`); Salmon et al. 2011, section 3.3.

use super::box_muller::{box_muller, with_fma};
use super::{Card, NoiseDtype, philox4x32_10};

/// torch's CUDA generator: the state after `manual_seed` and any number of draws.
#[derive(Clone, Copy, Debug)]
pub struct TorchCudaGenerator {
    card: Card,
    seed: u64,
    counter: u64,
}

impl TorchCudaGenerator {
    /// The generator after `manual_seed(seed)`.
    pub fn new(card: Card, seed: u64) -> Self {
        TorchCudaGenerator { card, seed, counter: 0 }
    }

    /// What torch calls the offset: where the generator stands, in words of a thread.
    pub fn offset(&self) -> u64 {
        self.counter.wrapping_mul(4)
    }

    /// The values of `torch.randn(out.len(), generator=self, dtype=dtype)`, widened to f32.
    pub fn fill_normal(&mut self, dtype: NoiseDtype, out: &mut [f32]) {
        self.leave(1, out.len() as u64, 0).fill(0, out);
        dtype.round_all(out);
    }

    /// Passes over so many draws of `total` elements each, and returns them, in f32 and from element `first` on.
    pub(super) fn leave(&mut self, draws: u64, total: u64, first: u64) -> CudaDraws {
        let threads = self.card.threads(total);
        let counters = total.div_ceil(4 * u64::from(threads)) as u32;
        let of = CudaDraws { seed: self.seed, counter: self.counter, counters, threads, first };
        self.counter = self.counter.wrapping_add(draws.wrapping_mul(u64::from(counters)));
        of
    }
}

/// Draws of one size, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CudaDraws {
    pub seed: u64,
    /// Counter of the first draw.
    pub counter: u64,
    /// Counters that each draw uses.
    pub counters: u32,
    /// `T`
    pub threads: u32,
    /// The element that counts as number 0.
    pub first: u64,
}

impl CudaDraws {
    /// Writes elements `from .. from + out.len()` of the first draw.
    pub fn fill(&self, from: u64, mut out: &mut [f32]) {
        let threads = u64::from(self.threads);
        let mut at = self.first + from;
        while !out.is_empty() {
            // The elements of one counter and component belong to consecutive threads.
            let (turn, thread) = (at / threads, at % threads);
            let (run, rest) = out.split_at_mut((threads - thread).min(out.len() as u64) as usize);
            let key = [self.seed as u32, (self.seed >> 32) as u32];
            fill_run(key, self.counter.wrapping_add(turn / 4), (turn % 4) as usize, thread as u32, run);
            at += run.len() as u64;
            out = rest;
        }
    }
}

with_fma! {
    fn fill_run(key: [u32; 2], counter: u64, component: usize, thread: u32, out: &mut [f32]) {
        for (i, value) in out.iter_mut().enumerate() {
            let words = philox4x32_10([counter as u32, (counter >> 32) as u32, thread + i as u32, 0], key);
            let pair = if component < 2 { [words[0], words[1]] } else { [words[2], words[3]] };
            let (cos, sin) = box_muller(uniform(pair[0]), uniform(pair[1]));
            *value = if component.is_multiple_of(2) { sin } else { cos };
        }
    }
}

/// In [2^-33, 1]. The word is rounded once, from two halves: AVX2 has no conversion from u32 to f32.
#[inline(always)]
fn uniform(word: u32) -> f32 {
    const UNIT: f32 = 1.0 / (1u64 << 32) as f32;
    let rounded = (word >> 16) as i32 as f32 * 65536.0 + (word & 0xffff) as i32 as f32;
    rounded * UNIT + 0.5 * UNIT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_converted_as_by_one_instruction() {
        for word in [0, 1, 0x00ff_ffff, 0x0100_0001, 0x7fff_ffbf, 0x8000_0080, 0x8000_0081, u32::MAX - 127, u32::MAX] {
            assert_eq!(uniform(word), word as f32 / 4_294_967_296.0 + 1.0 / 8_589_934_592.0, "{word:x}");
        }
        // The largest uniform is 1, the smallest is not 0: both give finite values.
        let ends = [uniform(0), uniform(u32::MAX)];
        assert_eq!(ends, [1.0 / 8_589_934_592.0, 1.0]);
        let values = ends.map(|u1| ends.map(|u2| box_muller(u1, u2)));
        assert!(values.as_flattened().iter().all(|(cos, sin)| cos.is_finite() && sin.is_finite()), "{values:?}");
    }

    #[test]
    fn a_value_does_not_depend_on_where_the_others_begin_and_end() {
        let card: Card = "1x512".parse().unwrap();
        let mut whole = vec![0.0; 5000];
        let draws = TorchCudaGenerator::new(card, 9).leave(1, 5000, 0);
        draws.fill(0, &mut whole);
        for first in [0, 1, 511, 512, 2047, 2048, 4095, 4999] {
            for length in [0, 1, 2, 513, 2048].map(|n: usize| n.min(5000 - first)) {
                let mut part = vec![0.0; length];
                draws.fill(first as u64, &mut part);
                assert_eq!(part, whole[first..][..length], "{length} from {first}");
            }
        }
    }

    #[test]
    fn the_offset_grows_by_four_for_each_started_four_times_the_threads() {
        let mut generator = TorchCudaGenerator::new("1x512".parse().unwrap(), 1 << 40);
        for (size, offset) in [(1, 4), (2048, 8), (2049, 16), (4096, 24), (4097, 36), (255, 40)] {
            generator.fill_normal(NoiseDtype::F32, &mut vec![0.0; size]);
            assert_eq!(generator.offset(), offset, "after {size}");
        }
    }

    #[test]
    fn counters_carry_into_the_upper_word() {
        let mut near =
            TorchCudaGenerator { counter: u64::from(u32::MAX), ..TorchCudaGenerator::new(Card::default(), 5) };
        let (mut before, mut after) = ([0.0; 3], [0.0; 3]);
        near.fill_normal(NoiseDtype::F32, &mut before);
        assert_eq!(near.counter, 1 << 32);
        near.leave(0, 3, 0).fill(0, &mut after);
        assert_ne!(before, after);
    }
}
