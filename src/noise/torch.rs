//! `torch.randn` on the CPU, bit for bit.
//!
//! The generator is the 32-bit Mersenne Twister. The conversion to normals depends on the size of the draw:
//! * From 16 values on they are made in groups of 16: the first eight uniforms are radii, the last eight angles. If 16
//!   does not divide the size, the last 16 values are drawn again from fresh uniforms.
//! * Fewer than 16 values are made one by one in f64. The second of a pair is kept for the next small draw.
//!
//! f16 and bf16 are f32 values rounded, with one difference: a draw in f32 spends a uniform on each value, those of the
//! tail included, which are then drawn again; a draw in a half type spends none on the tail before that. So where 16 does
//! not divide the size, the last 16 values and all later draws are others than in f32. In releases up to 2.11 the grouped
//! path worked in the half type throughout: uniforms of as many bits as its mantissa, every operation rounded.
//!
//! # Source
//! Matsumoto & Nishimura 1998; torch 2.15 and 2.11 on x86-64 with AVX2 (`normal_fill` and `normal_distribution`).

use super::NoiseDtype;
use super::box_muller::{box_muller, with_fma};

const WORDS: usize = 624;
const GROUP: usize = 16;

/// Releases of torch that draw alike.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TorchRelease {
    /// Up to 2.11.
    UpTo211,
    /// From 2.13 on. 2.12 rounds about one f16 value in a thousand otherwise.
    #[default]
    From213,
}

/// torch's CPU generator: the state after `manual_seed` and any number of draws.
#[derive(Clone, Debug)]
pub struct TorchGenerator {
    release: TorchRelease,
    state: [u32; WORDS],
    /// Index of the next word of `state` to hand out.
    next: usize,
    /// Second value of a pair of the serial path. Large draws do not touch it.
    waiting: Option<f64>,
}

impl TorchGenerator {
    /// The generator of the newest releases after `manual_seed(seed)`. torch seeds with the low 32 bits only.
    pub fn new(seed: u64) -> Self {
        TorchGenerator::of(TorchRelease::default(), seed)
    }

    /// The generator of a release after `manual_seed(seed)`.
    pub fn of(release: TorchRelease, seed: u64) -> Self {
        let mut state = [seed as u32; WORDS];
        for i in 1..WORDS {
            let previous = state[i - 1];
            state[i] = 1_812_433_253u32.wrapping_mul(previous ^ (previous >> 30)).wrapping_add(i as u32);
        }
        TorchGenerator { release, state, next: WORDS, waiting: None }
    }

    /// The values of `torch.randn(out.len(), generator=self, dtype=dtype)`, widened to f32.
    pub fn fill_normal(&mut self, dtype: NoiseDtype, out: &mut [f32]) {
        self.fill_part(dtype, out.len(), 0, out);
    }

    /// Values `first .. first + out.len()` of `torch.randn(total, generator=self, dtype=dtype)`, widened to f32. The
    /// generator advances by the whole draw.
    ///
    /// # Panics
    /// The draw has fewer values.
    pub fn fill_part(&mut self, dtype: NoiseDtype, total: usize, first: usize, out: &mut [f32]) {
        assert!(first + out.len() <= total, "{} values from {first} on of a draw of {total}", out.len());
        let spent = total % GROUP;
        if total < GROUP {
            for i in 0..total {
                let value = self.one_normal() as f32;
                if let Some(place) = i.checked_sub(first).and_then(|i| out.get_mut(i)) {
                    *place = value;
                }
            }
        } else if dtype == NoiseDtype::F32 {
            fill_groups(self, total, first, spent, out);
        } else if self.release == TorchRelease::UpTo211 {
            let coarse = |generator: &mut Self, group: &mut [f32; GROUP]| coarse_group(generator, dtype, group);
            fill_with(self, total, first, spent, out, coarse);
        } else {
            fill_groups(self, total, first, 0, out);
        }
        dtype.round_all(out);
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

    /// Passes over so many words.
    fn skip(&mut self, mut words: usize) {
        while words > WORDS - self.next {
            words -= WORDS - self.next;
            self.twist();
        }
        self.next += words;
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
    fn fill_groups(generator: &mut TorchGenerator, total: usize, first: usize, spent: usize, out: &mut [f32]) {
        fill_with(generator, total, first, spent, out, fill_group);
    }
}

/// Values `first .. first + out.len()` of a draw of `total` whose groups `make` makes. `spent` words are passed over before
/// the last 16 values of a draw that 16 does not divide are made.
#[inline(always)]
fn fill_with(
    generator: &mut TorchGenerator,
    total: usize,
    first: usize,
    spent: usize,
    out: &mut [f32],
    make: impl Fn(&mut TorchGenerator, &mut [f32; GROUP]),
) {
    let groups = total / GROUP;
    let wanted = first / GROUP..(first + out.len()).div_ceil(GROUP).min(groups);
    generator.skip(wanted.start * GROUP);
    let mut place = |generator: &mut TorchGenerator, start: usize| {
        let [from, to] = [start, start + GROUP].map(|at| at.saturating_sub(first).min(out.len()));
        if let Some(Ok(group)) = (start >= first).then(|| (&mut out[from..to]).try_into()) {
            return make(generator, group);
        }
        let mut group = [0.0; GROUP];
        make(generator, &mut group);
        out[from..to].copy_from_slice(&group[first.saturating_sub(start)..][..to - from]);
    };
    for group in wanted.clone() {
        place(generator, group * GROUP);
    }
    generator.skip((groups - wanted.end.max(wanted.start)) * GROUP);
    if !total.is_multiple_of(GROUP) {
        generator.skip(spent);
        place(generator, total - GROUP);
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

/// A group of releases up to 2.11 in a half type: the functions in f32, every result rounded to the type.
fn coarse_group(generator: &mut TorchGenerator, dtype: NoiseDtype, group: &mut [f32; GROUP]) {
    let steps: u16 = if dtype == NoiseDtype::F16 { 1 << 11 } else { 1 << 8 };
    for value in group.iter_mut() {
        *value = (generator.word() & u32::from(steps - 1)) as f32 / f32::from(steps);
    }
    let rounded = |x: f64| f64::from(dtype.round(x as f32));
    let (radii, angles) = group.split_at_mut(GROUP / 2);
    for (a, b) in radii.iter_mut().zip(angles) {
        let radius = rounded(rounded(-2.0 * rounded(f64::from(1.0 - *a).ln())).sqrt());
        let (sin, cos) = rounded(std::f64::consts::TAU * f64::from(*b)).sin_cos();
        let of = |wave: f64| rounded(radius * rounded(wave)) as f32 + 0.0;
        (*a, *b) = (of(cos), of(sin));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_compiled_for_the_plain_target_gives_the_same_bits() {
        let (mut dispatched, mut plain) = (TorchGenerator::new(77), TorchGenerator::new(77));
        let (mut a, mut b) = ([[0f32; GROUP]; 500], [[0f32; GROUP]; 500]);
        dispatched.fill_normal(NoiseDtype::F32, a.as_flattened_mut());
        for group in &mut b {
            fill_group(&mut plain, group);
        }
        assert_eq!(a.map(|group| group.map(f32::to_bits)), b.map(|group| group.map(f32::to_bits)));
    }

    #[test]
    fn seeds_that_agree_in_the_low_half_give_the_same_stream() {
        let (mut a, mut b) = ([0f32; 20], [0f32; 20]);
        TorchGenerator::new(5).fill_normal(NoiseDtype::F32, &mut a);
        TorchGenerator::new((9 << 32) + 5).fill_normal(NoiseDtype::F32, &mut b);
        assert_eq!(a, b);
    }

    #[test]
    fn a_part_of_a_draw_is_the_same_part_of_the_whole_and_leaves_the_generator_at_the_same_place() {
        for release in [TorchRelease::UpTo211, TorchRelease::From213] {
            for dtype in NoiseDtype::ALL {
                for total in [1, 7, 15, 16, 17, 31, 32, 47, 160, 1000, 1307] {
                    let mut whole = vec![0.0; total];
                    let mut generator = TorchGenerator::of(release, 3);
                    generator.fill_normal(dtype, &mut whole);
                    let after = generator.word();
                    for first in [0, 1, 5, 16, 30, 32, 500, total - 1, total] {
                        for length in [0, 1, 3, 16, 17, 48, total].map(|n| n.min(total.saturating_sub(first))) {
                            let mut part = vec![f32::NAN; length];
                            let mut generator = TorchGenerator::of(release, 3);
                            generator.fill_part(dtype, total, first.min(total), &mut part);
                            let case = format!("{release:?} {dtype} {length} from {first} of {total}");
                            assert_eq!(part, whole[first.min(total)..][..length], "{case}");
                            assert_eq!(generator.word(), after, "{case}");
                        }
                    }
                }
            }
        }
    }
}
