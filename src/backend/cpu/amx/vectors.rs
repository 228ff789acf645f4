//! Vector loops around the products, for processors with the matrix unit: they have AVX-512 with conversions to bf16. Left to
//! the compiler these loops would use vectors of half the width and several instructions for each conversion.
#![allow(unsafe_code)]

use super::super::simd;
use super::super::tile::Isa;

/// Rounds rows of `channels` f32 to rows of `pitch` bf16, with zeros behind the channels.
pub fn narrow_rows(isa: Isa, from: &[f32], channels: usize, to: &mut [u16], pitch: usize) {
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Amx {
        for (from, to) in from.chunks_exact(channels).zip(to.chunks_exact_mut(pitch)) {
            let (to, rest) = to.split_at_mut(channels);
            // SAFETY: `Isa::Amx` implies the instructions.
            unsafe { x86::narrow(from, to) };
            rest.fill(0);
        }
        return;
    }
    simd::narrow_rows(isa, from, channels, to, pitch);
}

/// Replaces scores by `e^(scale * (score - largest))` in bf16 and returns their sum before rounding. A score of minus
/// infinity becomes zero. The number of scores is a multiple of 32.
pub fn softmax(isa: Isa, scores: &[f32], scale: f32, weights: &mut [u16]) -> f32 {
    assert!(scores.len() == weights.len() && scores.len().is_multiple_of(32));
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Amx {
        // SAFETY: `Isa::Amx` implies the instructions.
        return unsafe { x86::softmax(scores, scale, weights) };
    }
    let largest = scores.iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
    let mut exponentials = scores.to_vec();
    let one = |x: &mut f32| *x = if *x == f32::NEG_INFINITY { 0.0 } else { simd::exp(scale * (*x - largest)) };
    exponentials.iter_mut().for_each(one);
    simd::narrow_rows(isa, &exponentials, scores.len(), weights, scores.len());
    exponentials.iter().sum()
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    /// Rounds to bf16; `to` is as long as `from`.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    pub fn narrow(from: &[f32], to: &mut [u16]) {
        assert_eq!(from.len(), to.len());
        let (whole, rest) = from.as_chunks::<32>();
        let (to_whole, to_rest) = to.as_chunks_mut::<32>();
        for (from, to) in whole.iter().zip(to_whole) {
            // SAFETY: 32 elements are read and written.
            unsafe {
                let (low, high) = (_mm512_loadu_ps(from.as_ptr()), _mm512_loadu_ps(from[16..].as_ptr()));
                store(_mm512_cvtne2ps_pbh(high, low), to);
            }
        }
        for (from, to) in rest.chunks(16).zip(to_rest.chunks_mut(16)) {
            let mask = (1u32 << from.len()).wrapping_sub(1) as u16;
            // SAFETY: the mask has a bit for each element of both, and no others are touched.
            unsafe {
                let narrow = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, from.as_ptr()));
                _mm256_mask_storeu_epi16(
                    to.as_mut_ptr().cast(),
                    mask,
                    std::mem::transmute::<__m256bh, __m256i>(narrow),
                );
            }
        }
    }

    /// Stores 32 bf16.
    #[target_feature(enable = "avx512f,avx512bf16")]
    fn store(x: __m512bh, to: &mut [u16; 32]) {
        // SAFETY: both vector types are 64 bytes, as long as `to`.
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), std::mem::transmute::<__m512bh, __m512i>(x)) };
    }

    /// As the outer function; the length is a multiple of 32.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub fn softmax(scores: &[f32], scale: f32, weights: &mut [u16]) -> f32 {
        let halves = |x: &[f32; 32]| {
            // SAFETY: both halves have sixteen elements.
            unsafe { [_mm512_loadu_ps(x.as_ptr()), _mm512_loadu_ps(x[16..].as_ptr())] }
        };
        let (scores, _) = scores.as_chunks::<32>();
        let mut largest = [_mm512_set1_ps(f32::NEG_INFINITY); 2];
        for x in scores.iter().map(halves) {
            largest = [_mm512_max_ps(largest[0], x[0]), _mm512_max_ps(largest[1], x[1])];
        }
        let largest = _mm512_reduce_max_ps(_mm512_max_ps(largest[0], largest[1]));
        let factor = _mm512_set1_ps(scale * std::f32::consts::LOG2_E);
        let shift = _mm512_set1_ps(largest * (scale * std::f32::consts::LOG2_E));
        let mut sums = [_mm512_setzero_ps(); 2];
        for (x, to) in scores.iter().map(halves).zip(weights.as_chunks_mut::<32>().0) {
            let powers = x.map(|x| exp2(_mm512_fmsub_ps(x, factor, shift)));
            sums = [_mm512_add_ps(sums[0], powers[0]), _mm512_add_ps(sums[1], powers[1])];
            store(_mm512_cvtne2ps_pbh(powers[1], powers[0]), to);
        }
        _mm512_reduce_add_ps(_mm512_add_ps(sums[0], sums[1]))
    }

    /// `2^x` with a relative error of 3e-6, a thousandth of bf16's rounding; zero below -150. NaN stays NaN.
    #[target_feature(enable = "avx512f")]
    fn exp2(x: __m512) -> __m512 {
        // With NaN as the second operand the maximum is NaN.
        let x = _mm512_max_ps(_mm512_set1_ps(-200.0), x);
        let whole = _mm512_roundscale_ps::<0>(x);
        let rest = _mm512_sub_ps(x, whole);
        // A polynomial for -1/2 to 1/2, fitted to the least relative error.
        let mut power = _mm512_set1_ps(9.582_85e-3);
        for coefficient in [5.590_643e-2, 2.402_41e-1, 6.931_242e-1, 1.0] {
            power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(coefficient));
        }
        _mm512_scalef_ps(power, whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    /// The instruction sets that have loops of their own here, as far as the machine has them.
    fn isas() -> impl Iterator<Item = Isa> {
        [Isa::Portable, Isa::Amx].into_iter().filter(|isa| isa.available())
    }

    #[test]
    fn rows_are_rounded_to_the_nearest_and_end_in_zeros() {
        for (isa, channels) in isas().flat_map(|isa| [1, 15, 16, 31, 32, 33, 50, 130].map(|channels| (isa, channels))) {
            let pitch = channels + 7;
            let from: Vec<f32> = (0..3 * channels).map(|i| (i as f32 - 40.0) * 0.123_45).collect();
            let mut to = vec![1; 3 * pitch];
            narrow_rows(isa, &from, channels, &mut to, pitch);
            for (from, to) in from.chunks_exact(channels).zip(to.chunks_exact(pitch)) {
                let want: Vec<u16> = from.iter().map(|&x| bf16::from_f32(x).to_bits()).collect();
                assert_eq!(to[..channels], want, "{isa:?}, {channels} channels");
                assert_eq!(to[channels..], [0; 7], "{isa:?}, {channels} channels");
            }
        }
    }

    #[test]
    fn the_softmax_is_within_a_rounding_of_the_exact_one() {
        for isa in isas() {
            let mut scores: Vec<f32> = (0..96).map(|i| ((i * 29 + 5) % 83) as f32 * 0.61 - 30.0).collect();
            (scores[7], scores[95]) = (f32::NEG_INFINITY, -4000.0);
            let mut weights = vec![1; 96];
            let sum = softmax(isa, &scores, 0.125, &mut weights);
            let largest = scores.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
            let want: Vec<f64> = scores.iter().map(|x| (0.125 * f64::from(x - largest)).exp()).collect();
            for (i, (got, want)) in weights.iter().zip(&want).enumerate() {
                let got = bf16::from_bits(*got).to_f64();
                assert!((got - want).abs() <= want / 255.0 + 1e-37, "{isa:?}, {i}: {got} instead of {want}");
            }
            assert_eq!(weights[7], 0, "{isa:?}");
            let exact = want.iter().sum::<f64>();
            assert!((f64::from(sum) - exact).abs() < 5e-6 * exact, "{isa:?}: {sum} instead of {exact}");
            scores[3] = f32::NAN;
            assert!(softmax(isa, &scores, 0.125, &mut weights).is_nan());
            assert!(bf16::from_bits(weights[3]).is_nan());
        }
    }
}
