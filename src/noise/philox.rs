//! Philox 4x32-10: random numbers as a function of a counter.
//!
//! There is no state: ten rounds of multiplications and exclusive ors map a 128-bit counter and a 64-bit key to four
//! words that pass the usual statistical tests. A kernel computes the value of its own element, for any launch geometry.
//!
//! The mapping of this crate, for element `i` of draw `d` with seed `s`:
//! ```text
//! key      s low, s high
//! counter  i/4 low, i/4 high, d low, d high                      -> words w0 w1 w2 w3
//! uniforms u1 = ((w0 >> 8) + 1) 2^-24,  u2 = (w1 >> 8) 2^-24     and the same of w2, w3
//! elements 4(i/4) + 0, 1 = sqrt(-2 ln u1) (cos, sin)(2 pi u2)    of w0, w1;  + 2, 3 of w2, w3
//! ```
//!
//! # Source
//! Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3; the Random123 library.

use super::box_muller::{box_muller, with_fma};

/// Ten rounds of Philox 4x32: four words from a counter and a key.
#[inline(always)]
pub fn philox4x32_10(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    let [mut k0, mut k1] = key;
    for _ in 0..10 {
        let a = u64::from(c0) * 0xd251_1f53;
        let b = u64::from(c2) * 0xcd9e_8d57;
        (c0, c1, c2, c3) = ((b >> 32) as u32 ^ c1 ^ k0, b as u32, (a >> 32) as u32 ^ c3 ^ k1, a as u32);
        k0 = k0.wrapping_add(0x9e37_79b9);
        k1 = k1.wrapping_add(0xbb67_ae85);
    }
    [c0, c1, c2, c3]
}

/// A seed's normal values, addressed by draw and element.
#[derive(Clone, Copy, Debug)]
pub struct Philox {
    seed: u64,
}

impl Philox {
    /// The generator of a seed, with all 64 bits.
    pub fn new(seed: u64) -> Self {
        Philox { seed }
    }

    /// The seed.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Writes elements `first .. first + out.len()` of one draw.
    pub fn fill_normal(&self, draw: u64, first: u64, out: &mut [f32]) {
        fill([self.seed as u32, (self.seed >> 32) as u32], draw, first, out);
    }
}

with_fma! {
    fn fill(key: [u32; 2], draw: u64, first: u64, out: &mut [f32]) {
        let (into, head) = ((first % 4) as usize, (first.next_multiple_of(4) - first) as usize);
        let (head, rest) = out.split_at_mut(head.min(out.len()));
        if !head.is_empty() {
            head.copy_from_slice(&quad(key, draw, first / 4)[into..][..head.len()]);
        }
        let start = first.div_ceil(4);
        let (quads, tail) = rest.as_chunks_mut::<4>();
        for (index, values) in quads.iter_mut().enumerate() {
            *values = quad(key, draw, start + index as u64);
        }
        let whole = quads.len() as u64;
        tail.copy_from_slice(&quad(key, draw, start + whole)[..tail.len()]);
    }
}

/// Elements `4 index .. 4 index + 4` of a draw.
#[inline(always)]
fn quad(key: [u32; 2], draw: u64, index: u64) -> [f32; 4] {
    const UNIT: f32 = 1.0 / (1 << 24) as f32;
    let [w0, w1, w2, w3] = philox4x32_10([index as u32, (index >> 32) as u32, draw as u32, (draw >> 32) as u32], key);
    // Through i32: AVX2 has no conversion from u32 to f32.
    let uniform = |word: u32| word as i32 as f32 * UNIT;
    let (x0, x1) = box_muller(uniform((w0 >> 8) + 1), uniform(w1 >> 8));
    let (x2, x3) = box_muller(uniform((w2 >> 8) + 1), uniform(w3 >> 8));
    [x0, x1, x2, x3]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_words_match_the_known_answers_of_random123() {
        let cases = [
            ([0; 4], [0; 2], [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]),
            (
                [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
                [0xa4093822, 0x299f31d0],
                [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1],
            ),
        ];
        for (counter, key, words) in cases {
            assert_eq!(philox4x32_10(counter, key), words);
        }
    }

    #[test]
    fn a_value_does_not_depend_on_where_the_others_begin_and_end() {
        let philox = Philox::new(0xdead_beef_0000_0001);
        let mut long = [0f32; 103];
        philox.fill_normal(5, 0, &mut long);
        for first in [0, 1, 2, 3, 4, 7, 50] {
            for length in [0, 1, 2, 3, 4, 5, 50, 53] {
                let mut short = vec![0f32; length];
                philox.fill_normal(5, first as u64, &mut short);
                assert_eq!(short, long[first..][..length], "{length} from {first}");
            }
        }
    }

    #[test]
    fn every_bit_of_seed_and_draw_changes_the_values() {
        let first = |seed, draw| {
            let mut out = [0f32; 4];
            Philox::new(seed).fill_normal(draw, 0, &mut out);
            out
        };
        for bit in 0..64 {
            assert_ne!(first(0, 0), first(1 << bit, 0), "seed bit {bit}");
            assert_ne!(first(0, 0), first(0, 1 << bit), "draw bit {bit}");
        }
    }

    #[test]
    fn values_have_the_mean_variance_skewness_and_kurtosis_of_a_standard_normal() {
        let mut out = vec![0f32; 1 << 20];
        Philox::new(3).fill_normal(0, 0, &mut out);
        let moment = |power| out.iter().map(|&x| f64::from(x).powi(power)).sum::<f64>() / out.len() as f64;
        // Five standard errors of 2^20 samples each.
        for (power, expected, spread) in
            [(1, 0.0, 1.0), (2, 1.0, 2f64.sqrt()), (3, 0.0, 15f64.sqrt()), (4, 3.0, 96f64.sqrt())]
        {
            let found = moment(power);
            assert!((found - expected).abs() < 5.0 * spread / 1024.0, "moment {power}: {found}");
        }
    }
}
