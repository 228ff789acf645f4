//! `torch.randn` on the CPU, bit for bit.
//!
//! The generator is the 32-bit Mersenne Twister. The conversion to normals depends on the size of the draw:
//! * From 16 values on they are made in groups of 16: the first eight uniforms are radii, the last eight angles. If 16
//!   does not divide the size, the last 16 values are drawn again from fresh uniforms.
//! * Fewer than 16 values are made one by one in f64. The second of a pair is kept for the next small draw.
//!
//! # Source
//! Matsumoto & Nishimura 1998; torch 2.15 on x86-64 with AVX2 (`normal_fill` and `normal_distribution`).

use super::box_muller::{box_muller, with_fma};

const WORDS: usize = 624;
const GROUP: usize = 16;

/// torch's CPU generator: the state after `manual_seed` and any number of draws.
#[derive(Clone, Debug)]
pub struct TorchGenerator {
    state: [u32; WORDS],
    /// Index of the next word of `state` to hand out.
    next: usize,
    /// Second value of a pair of the serial path. Large draws do not touch it.
    waiting: Option<f64>,
}

impl TorchGenerator {
    /// The generator after `manual_seed(seed)`. torch seeds with the low 32 bits only.
    pub fn new(seed: u64) -> Self {
        let mut state = [seed as u32; WORDS];
        for i in 1..WORDS {
            let previous = state[i - 1];
            state[i] = 1_812_433_253u32.wrapping_mul(previous ^ (previous >> 30)).wrapping_add(i as u32);
        }
        TorchGenerator { state, next: WORDS, waiting: None }
    }

    /// The values of `torch.randn(out.len(), generator=self)` in f32.
    pub fn fill_normal(&mut self, out: &mut [f32]) {
        if out.len() < GROUP {
            for value in out {
                *value = self.one_normal() as f32;
            }
        } else {
            fill_groups(self, out);
        }
    }

    /// The serial path: one value, in f64.
    fn one_normal(&mut self) -> f64 {
        if let Some(value) = self.waiting.take() {
            return value;
        }
        let (u1, u2) = (self.uniform_f64(), self.uniform_f64());
        let radius = (-2.0 * (-u2).ln_1p()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * u1).sin_cos();
        self.waiting = Some(radius * sin);
        radius * cos
    }

    /// 53 bits in [0, 1); the first of two words is the high half.
    fn uniform_f64(&mut self) -> f64 {
        let word = u64::from(self.word()) << 32 | u64::from(self.word());
        (word & ((1 << 53) - 1)) as f64 / (1u64 << 53) as f64
    }

    /// 24 bits in [0, 1).
    #[inline(always)]
    fn uniform(&mut self) -> f32 {
        (self.word() & 0x00ff_ffff) as f32 / (1 << 24) as f32
    }

    #[inline(always)]
    fn word(&mut self) -> u32 {
        if self.next == WORDS {
            self.twist();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// The next 624 words of the recurrence.
    fn twist(&mut self) {
        const LAG: usize = 397;
        let mix = |this: u32, following: u32| {
            let y = (this & 0x8000_0000) | (following & 0x7fff_ffff);
            (y >> 1) ^ if y & 1 == 1 { 0x9908_b0df } else { 0 }
        };
        let state = &mut self.state;
        // Three ranges rather than indices modulo 624, so that the first two become vector loops.
        for i in 0..WORDS - LAG {
            state[i] = state[i + LAG] ^ mix(state[i], state[i + 1]);
        }
        for i in WORDS - LAG..WORDS - 1 {
            state[i] = state[i + LAG - WORDS] ^ mix(state[i], state[i + 1]);
        }
        state[WORDS - 1] = state[LAG - 1] ^ mix(state[WORDS - 1], state[0]);
        self.next = 0;
    }
}

with_fma! {
    /// The grouped path, for 16 values or more.
    fn fill_groups(generator: &mut TorchGenerator, out: &mut [f32]) {
        let (groups, tail) = out.as_chunks_mut::<GROUP>();
        for group in groups {
            fill_group(generator, group);
        }
        if !tail.is_empty() {
            // torch draws uniforms for the tail before it replaces the last 16 values.
            for _ in tail {
                generator.word();
            }
            fill_group(generator, out.last_chunk_mut().expect("the grouped path has at least 16 values"));
        }
    }
}

#[inline(always)]
fn fill_group(generator: &mut TorchGenerator, group: &mut [f32; GROUP]) {
    for value in group.iter_mut() {
        *value = generator.uniform();
    }
    let (radii, angles) = group.split_at_mut(GROUP / 2);
    for (a, b) in radii.iter_mut().zip(angles) {
        (*a, *b) = box_muller(1.0 - *a, *b);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_compiled_for_the_plain_target_gives_the_same_bits() {
        let (mut dispatched, mut plain) = (TorchGenerator::new(77), TorchGenerator::new(77));
        let (mut a, mut b) = ([[0f32; GROUP]; 500], [[0f32; GROUP]; 500]);
        dispatched.fill_normal(a.as_flattened_mut());
        for group in &mut b {
            fill_group(&mut plain, group);
        }
        assert_eq!(a.map(|group| group.map(f32::to_bits)), b.map(|group| group.map(f32::to_bits)));
    }

    #[test]
    fn seeds_that_agree_in_the_low_half_give_the_same_stream() {
        let (mut a, mut b) = ([0f32; 20], [0f32; 20]);
        TorchGenerator::new(5).fill_normal(&mut a);
        TorchGenerator::new((9 << 32) + 5).fill_normal(&mut b);
        assert_eq!(a, b);
    }
}
