//! Element-wise loops, compiled for the baseline, for AVX2 and for AVX-512.
//!
//! The compiler vectorises them; the baseline of 64-bit ARM includes NEON. The only unsafe operation is the call of a
//! copy that needs certain instructions, whose presence the [`Isa`] guarantees.
#![allow(unsafe_code)]

use crate::ops::Activation;

/// Defines a function whose body is compiled once per instruction set, which is its first argument.
macro_rules! per_isa {
    ($(#[$doc:meta])* pub fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $out:ty)? $body:block) => {
        $(#[$doc])*
        pub fn $name(isa: $crate::backend::cpu::Isa, $($arg: $type),*) $(-> $out)? {
            #[inline(always)]
            fn portable($($arg: $type),*) $(-> $out)? $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2")]
            fn avx2($($arg: $type),*) $(-> $out)? {
                portable($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f")]
            fn avx512($($arg: $type),*) $(-> $out)? {
                portable($($arg),*)
            }
            match isa {
                // SAFETY: a back end is only created with instructions that the machine has.
                #[cfg(target_arch = "x86_64")]
                $crate::backend::cpu::Isa::Avx2 => unsafe { avx2($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::backend::cpu::Isa::Avx512 | $crate::backend::cpu::Isa::Amx => unsafe { avx512($($arg),*) },
                _ => portable($($arg),*),
            }
        }
    };
}

pub(super) use per_isa;

/// `e^x` to about one unit in the last place, in operations that vectorise. Arguments are clamped to about [-87, 88];
/// NaN stays NaN.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Adding 1.5 * 2^23 leaves the nearest integer in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    let x = if x < -87.3 { -87.3 } else { x };
    let x = if x > 88.3 { 88.3 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * 0.693_359_4 - n * -2.121_944_4e-4;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 5e-1;
    let y = p * (r * r) + r + 1.0;
    let exponent = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    y * f32::from_bits((exponent.wrapping_add(127) as u32) << 23)
}

/// The error function with a relative error of 3e-7: an odd rational function of degree 9 over 12, fitted for |x| <
/// 3.83, beyond which f32 rounds it to one.
#[inline(always)]
fn erf(x: f32) -> f32 {
    let x = if x < -3.832_507 { -3.832_507 } else { x };
    let x = if x > 3.832_507 { 3.832_507 } else { x };
    let z = x * x;
    let p = 2.290_506_6e-4;
    let p = p * z + 3.408_291e-3;
    let p = p * z + 5.095_569_4e-2;
    let p = p * z + 1.852_083_3e-1;
    let p = p * z + std::f32::consts::FRAC_2_SQRT_PI;
    let q = -1.179_160_2e-7;
    let q = q * z + 2.354_796_7e-5;
    let q = q * z + 1.017_962_5e-3;
    let q = q * z + 1.407_047e-2;
    let q = q * z + 1.109_850_55e-1;
    let q = q * z + 4.974_692_4e-1;
    let q = q * z + 1.0;
    x * p / q
}

#[inline(always)]
fn apply(activation: Activation, values: &mut [f32]) {
    match activation {
        Activation::Silu => values.iter_mut().for_each(|x| *x /= 1.0 + exp(-*x)),
        Activation::QuickGelu => values.iter_mut().for_each(|x| *x /= 1.0 + exp(-1.702 * *x)),
        Activation::Gelu => {
            values.iter_mut().for_each(|x| *x *= 0.5 * (1.0 + erf(*x * std::f32::consts::FRAC_1_SQRT_2)))
        }
    }
}

per_isa! {
    /// Applies an activation in place.
    pub fn activate(activation: Activation, values: &mut [f32]) {
        apply(activation, values)
    }
}

/// The derivative of an activation.
#[inline(always)]
fn slope(activation: Activation, x: f32) -> f32 {
    let of_sigmoid = |rate: f32| {
        let s = 1.0 / (1.0 + exp(-rate * x));
        s * (1.0 + rate * x * (1.0 - s))
    };
    match activation {
        Activation::Silu => of_sigmoid(1.0),
        Activation::QuickGelu => of_sigmoid(1.702),
        Activation::Gelu => {
            let density =
                exp(-0.5 * x * x) * (0.5 * std::f32::consts::FRAC_2_SQRT_PI * std::f32::consts::FRAC_1_SQRT_2);
            0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2)) + x * density
        }
    }
}

per_isa! {
    /// Multiplies gradients by the slope of an activation at `x`.
    pub fn slopes(activation: Activation, x: &[f32], g: &mut [f32]) {
        match activation {
            Activation::Silu => g.iter_mut().zip(x).for_each(|(g, x)| *g *= slope(Activation::Silu, *x)),
            Activation::Gelu => g.iter_mut().zip(x).for_each(|(g, x)| *g *= slope(Activation::Gelu, *x)),
            Activation::QuickGelu => g.iter_mut().zip(x).for_each(|(g, x)| *g *= slope(Activation::QuickGelu, *x)),
        }
    }
}

per_isa! {
    /// `out = activation((x - center) * scale + shift)` for rows of channels.
    pub fn affine_rows(
        x: &[f32],
        center: &[f32],
        scale: &[f32],
        shift: &[f32],
        activation: Option<Activation>,
        out: &mut [f32],
    ) {
        let c = scale.len();
        let (center, shift) = (&center[..c], &shift[..c]);
        for (x, y) in x.chunks_exact(c).zip(out.chunks_exact_mut(c)) {
            for i in 0..c {
                y[i] = (x[i] - center[i]) * scale[i] + shift[i];
            }
            if let Some(activation) = activation {
                apply(activation, y);
            }
        }
    }
}

#[inline(always)]
fn bf16_bits(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    if x.is_nan() { 0x7fc0 } else { rounded >> 16 }
}

#[inline(always)]
fn narrow(from: &[f32], to: &mut [u16]) {
    to.iter_mut().zip(from).for_each(|(to, x)| *to = bf16_bits(*x) as u16);
}

per_isa! {
    /// Rounds f32 to bf16, to nearest even; NaN stays NaN.
    pub fn narrow_bf16(from: &[f32], to: &mut [u16]) {
        narrow(from, to);
    }
}

per_isa! {
    /// [`narrow_bf16`] of rows of `channels` to rows of `pitch`, with zeros behind the channels.
    pub fn narrow_rows(from: &[f32], channels: usize, to: &mut [u16], pitch: usize) {
        for (from, to) in from.chunks_exact(channels).zip(to.chunks_exact_mut(pitch)) {
            let (to, rest) = to.split_at_mut(channels);
            narrow(from, to);
            rest.fill(0);
        }
    }
}

per_isa! {
    /// Rounds two rows to bf16 and interleaves them, `low` in the lower halves.
    pub fn narrow_pairs(low: &[f32], high: &[f32], to: &mut [u32]) {
        to.iter_mut().zip(low.iter().zip(high)).for_each(|(to, (low, high))| *to = bf16_bits(*high) << 16 | bf16_bits(*low));
    }
}

per_isa! {
    /// Widens bf16, the upper half of an f32, to f32.
    pub fn widen_bf16(narrow: &[half::bf16], wide: &mut [f32]) {
        for (y, x) in wide.iter_mut().zip(narrow) {
            *y = f32::from_bits(u32::from(x.to_bits()) << 16);
        }
    }
}

per_isa! {
    /// Adds each channel of all rows to `sum` and its square to `square`.
    pub fn accumulate_sums(x: &[f32], sum: &mut [f64], square: &mut [f64]) {
        let c = sum.len();
        for row in x.chunks_exact(c) {
            for i in 0..c {
                let v = f64::from(row[i]);
                sum[i] += v;
                square[i] += v * v;
            }
        }
    }
}

per_isa! {
    /// Replaces scores by `e^(scale * (score - largest))` and returns their sum.
    pub fn exponentials(scores: &mut [f32], scale: f32) -> f32 {
        let mut lanes = [f32::NEG_INFINITY; 16];
        let (chunks, rest) = scores.as_chunks::<16>();
        for chunk in chunks {
            for j in 0..16 {
                lanes[j] = if chunk[j] > lanes[j] { chunk[j] } else { lanes[j] };
            }
        }
        let largest = lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
        let mut sums = [0.0f32; 16];
        let (chunks, rest) = scores.as_chunks_mut::<16>();
        for chunk in chunks {
            for j in 0..16 {
                let p = exp(scale * (chunk[j] - largest));
                chunk[j] = p;
                sums[j] += p;
            }
        }
        for x in rest.iter_mut() {
            *x = exp(scale * (*x - largest));
            sums[0] += *x;
        }
        sums.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let mut x = -87.0f32;
        while x < 88.0 {
            let (got, want) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((got - want).abs() <= 2.5e-7 * want, "e^{x}: {got} instead of {want}");
            x += 0.001_37;
        }
        assert!(exp(f32::NAN).is_nan());
    }

    /// The Maclaurin series converges for all arguments tested; 120 terms reach f64's precision up to 4.
    fn erf_series(x: f64) -> f64 {
        let (mut term, mut sum) = (x, x);
        for n in 1..120 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    }

    #[test]
    fn erf_is_within_four_parts_in_ten_million() {
        let mut x = -4.0f32;
        while x < 4.0 {
            let (got, want) = (f64::from(erf(x)), erf_series(f64::from(x)));
            assert!((got - want).abs() <= 3.6e-7 * want.abs().max(1e-3), "erf({x}): {got} instead of {want}");
            x += 0.000_73;
        }
    }
}
