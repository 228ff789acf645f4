//! Pairs of uniforms to pairs of normals, with the same bits on every machine.
//!
//! torch's x86-64 build uses the f32 polynomials of Cephes here, contracted to fused multiply-adds. Such a polynomial
//! has the same bits on every machine, since each operation is correctly rounded; a C library's `logf` and `cosf` do
//! not. Without the FMA instruction [`f32::mul_add`] is as exact but two orders of magnitude slower, so loops over it
//! are compiled twice, see [`with_fma`].
//!
//! # Source
//! Box & Muller 1958; Moshier's Cephes library, `logf` and `sinf`/`cosf`.

// The constants as Cephes prints them, so that they can be compared.
#![allow(clippy::excessive_precision)]

/// Compiles a function body once for x86-64 with AVX2 and FMA and once for the plain target, and picks one at run time.
/// Both have the same results.
macro_rules! with_fma {
    ($(#[$doc:meta])* $visibility:vis fn $name:ident($($argument:ident: $type:ty),*) $body:block) => {
        $(#[$doc])*
        $visibility fn $name($($argument: $type),*) {
            #[inline(always)]
            fn body($($argument: $type),*) $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                fn vectorised($($argument: $type),*) {
                    body($($argument),*);
                }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    // SAFETY: the only requirement of `vectorised` is the two features, found present just above.
                    #[allow(unsafe_code)]
                    unsafe {
                        return vectorised($($argument),*);
                    }
                }
            }
            body($($argument),*);
        }
    };
}
pub(super) use with_fma;

/// Two normals from `u1` in (0, 1] and `u2` in [0, 1): `sqrt(-2 ln u1)` times cosine and sine of `2 pi u2`.
#[inline(always)]
pub(super) fn box_muller(u1: f32, u2: f32) -> (f32, f32) {
    let radius = (-2.0 * ln(u1)).sqrt();
    let (sin, cos) = sin_cos(std::f32::consts::TAU * u2);
    // torch adds a mean of 0 at the end, which turns -0 into +0.
    (radius * cos + 0.0, radius * sin + 0.0)
}

/// Natural logarithm of a normal positive float.
#[inline(always)]
fn ln(x: f32) -> f32 {
    // x = m 2^e with m in [0.5, 1), then both moved so that m is in [sqrt(1/2) - 1, sqrt(2) - 1].
    let bits = x.to_bits();
    let mut e = ((bits >> 23) as i32 - 126) as f32;
    let mut m = f32::from_bits((bits & 0x007f_ffff) | 0x3f00_0000);
    let small = m < std::f32::consts::FRAC_1_SQRT_2;
    e -= if small { 1.0 } else { 0.0 };
    m = (m - 1.0) + if small { m } else { 0.0 };
    let z = m * m;
    let mut y = 7.0376836292e-2f32;
    for coefficient in [
        -1.1514610310e-1,
        1.1676998740e-1,
        -1.2420140846e-1,
        1.4249322787e-1,
        -1.6668057665e-1,
        2.0000714765e-1,
        -2.4999993993e-1,
        3.3333331174e-1,
    ] {
        y = y.mul_add(m, coefficient);
    }
    // ln 2 = 0.693359375 - 2.12194440e-4: the first part times e is exact.
    y = (y * m).mul_add(z, e * -2.12194440e-4);
    y = z.mul_add(-0.5, y);
    e.mul_add(0.693359375, m + y)
}

/// Sine and cosine of x in [0, 2 pi].
#[inline(always)]
fn sin_cos(x: f32) -> (f32, f32) {
    // j pi/4 is the even multiple nearest to x; pi/4 is subtracted in three parts to keep r exact.
    let j = ((x * 1.27323954473516) as i32 + 1) & !1;
    let multiple = j as f32;
    let mut r = x;
    for part in [-0.78515625, -2.4187564849853515625e-4, -3.77489497744594108e-8f32] {
        r = multiple.mul_add(part, r);
    }
    let z = r * r;
    let c = 2.443315711809948e-5f32.mul_add(z, -1.388731625493765e-3).mul_add(z, 4.166664568298827e-2);
    let c = (c * z).mul_add(z, -(z * 0.5)) + 1.0;
    let s = (-1.9515295891e-4f32).mul_add(z, 8.3321608736e-3).mul_add(z, -1.6666654611e-1);
    let s = (s * z).mul_add(r, r);
    let (sin, cos) = if j & 2 == 0 { (s, c) } else { (c, s) };
    (if j & 4 != 0 { -sin } else { sin }, if (j - 2) & 4 == 0 { -cos } else { cos })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polynomials_are_close_to_the_functions_on_the_range_used() {
        for k in 1..=4096 {
            let u = k as f32 / 4096.0;
            let (sin, cos) = sin_cos(std::f32::consts::TAU * u);
            let angle = f64::from(std::f32::consts::TAU * u);
            assert!((f64::from(ln(u)) - f64::from(u).ln()).abs() < 5e-7, "ln {u}");
            assert!((f64::from(sin) - angle.sin()).abs() < 2e-7, "sin {u}");
            assert!((f64::from(cos) - angle.cos()).abs() < 2e-7, "cos {u}");
        }
    }

    #[test]
    fn the_smallest_uniform_gives_a_finite_value_and_one_gives_plus_zero() {
        assert!((box_muller(2f32.powi(-24), 0.0).0 - 5.768).abs() < 1e-3);
        let (a, b) = box_muller(1.0, 0.4);
        assert_eq!((a.to_bits(), b.to_bits()), (0, 0));
    }
}
