//! Arithmetic on registers, 32 lanes at a time.

use super::fault::Outcome;
use super::program::{Binary, Compare, CompareType, Logic, Order, Reg, Rounding, Ternary, Unary};
use super::warp::{LANES, Warp};
use half::{bf16, f16};

fn map(w: &mut Warp, lanes: u32, d: Reg, a: Reg, f: impl Fn(u32) -> u32) -> Outcome {
    let a = *w.r32(a, lanes)?;
    w.set_r32(d, lanes, &a.map(f));
    Ok(())
}

fn map2(w: &mut Warp, lanes: u32, [d, a, b]: [Reg; 3], f: impl Fn(u32, u32) -> u32) -> Outcome {
    let (a, b) = (w.r32(a, lanes)?, w.r32(b, lanes)?);
    let mut out = [0; LANES];
    for i in 0..LANES {
        out[i] = f(a[i], b[i]);
    }
    w.set_r32(d, lanes, &out);
    Ok(())
}

fn map3(w: &mut Warp, lanes: u32, [d, a, b, c]: [Reg; 4], f: impl Fn(u32, u32, u32) -> u32) -> Outcome {
    let (a, b, c) = (w.r32(a, lanes)?, w.r32(b, lanes)?, w.r32(c, lanes)?);
    let mut out = [0; LANES];
    for i in 0..LANES {
        out[i] = f(a[i], b[i], c[i]);
    }
    w.set_r32(d, lanes, &out);
    Ok(())
}

fn single(f: impl Fn(f32) -> f32) -> impl Fn(u32) -> u32 {
    move |a| f(f32::from_bits(a)).to_bits()
}

fn singles(f: impl Fn(f32, f32) -> f32) -> impl Fn(u32, u32) -> u32 {
    move |a, b| f(f32::from_bits(a), f32::from_bits(b)).to_bits()
}

/// Elementary functions are computed in f64 and rounded once, so at least as accurately as on hardware.
fn double(f: impl Fn(f64) -> f64) -> impl Fn(u32) -> u32 {
    move |a| (f(f64::from(f32::from_bits(a))) as f32).to_bits()
}

fn rounded(rounding: Rounding, x: f32) -> f32 {
    match rounding {
        Rounding::Nearest => x.round_ties_even(),
        Rounding::Zero => x.trunc(),
        Rounding::Down => x.floor(),
        Rounding::Up => x.ceil(),
    }
}

pub(super) fn unary(w: &mut Warp, lanes: u32, how: Unary, d: Reg, a: Reg) -> Outcome {
    match how {
        Unary::Move => map(w, lanes, d, a, |x| x),
        Unary::Not => map(w, lanes, d, a, |x| !x),
        Unary::Negate => map(w, lanes, d, a, u32::wrapping_neg),
        Unary::NegateF32 => map(w, lanes, d, a, |x| x ^ 0x8000_0000),
        Unary::AbsSigned => map(w, lanes, d, a, |x| (x as i32).wrapping_abs() as u32),
        Unary::AbsF32 => map(w, lanes, d, a, |x| x & 0x7fff_ffff),
        Unary::PopulationCount => map(w, lanes, d, a, u32::count_ones),
        Unary::LeadingZeros => map(w, lanes, d, a, u32::leading_zeros),
        Unary::ReverseBits => map(w, lanes, d, a, u32::reverse_bits),
        Unary::Exp2 => map(w, lanes, d, a, double(f64::exp2)),
        Unary::Log2 => map(w, lanes, d, a, double(f64::log2)),
        Unary::Reciprocal => map(w, lanes, d, a, single(|x| 1.0 / x)),
        Unary::ReciprocalSqrt => map(w, lanes, d, a, double(|x| 1.0 / x.sqrt())),
        Unary::Sqrt => map(w, lanes, d, a, single(f32::sqrt)),
        Unary::Sine => map(w, lanes, d, a, double(f64::sin)),
        Unary::Cosine => map(w, lanes, d, a, double(f64::cos)),
        Unary::Tanh => map(w, lanes, d, a, double(f64::tanh)),
        Unary::F32FromU32 => map(w, lanes, d, a, |x| (x as f32).to_bits()),
        Unary::F32FromS32 => map(w, lanes, d, a, |x| (x as i32 as f32).to_bits()),
        Unary::U32FromF32(r) => map(w, lanes, d, a, |x| rounded(r, f32::from_bits(x)) as u32),
        Unary::S32FromF32(r) => map(w, lanes, d, a, |x| rounded(r, f32::from_bits(x)) as i32 as u32),
        Unary::RoundF32(r) => map(w, lanes, d, a, single(|x| rounded(r, x))),
        Unary::Saturate => map(w, lanes, d, a, single(|x| if x.is_nan() { 0.0 } else { x.clamp(0.0, 1.0) })),
        Unary::F32FromF16 => map(w, lanes, d, a, |x| f16::from_bits(x as u16).to_f32().to_bits()),
        Unary::F16FromF32 => map(w, lanes, d, a, |x| u32::from(f16::from_f32(f32::from_bits(x)).to_bits())),
        Unary::F32FromBf16 => map(w, lanes, d, a, |x| x << 16),
        Unary::Bf16FromF32 => map(w, lanes, d, a, |x| u32::from(bf16::from_f32(f32::from_bits(x)).to_bits())),
        // Adds half of the last kept bit to the magnitude, so ties go away from zero.
        Unary::Tf32FromF32 => {
            map(w, lanes, d, a, |x| if f32::from_bits(x).is_finite() { (x + 0x1000) & !0x1fff } else { x })
        }
        Unary::Low8 => map(w, lanes, d, a, |x| x & 0xff),
        Unary::Low16 => map(w, lanes, d, a, |x| x & 0xffff),
        Unary::Sign8 => map(w, lanes, d, a, |x| x as i8 as u32),
        Unary::Sign16 => map(w, lanes, d, a, |x| x as i16 as u32),
    }
}

/// Shifts by 32 or more give zeros.
fn shift_left(a: u32, by: u32) -> u32 {
    a.checked_shl(by).unwrap_or(0)
}

pub(super) fn binary(w: &mut Warp, lanes: u32, with: Binary, to: [Reg; 3]) -> Outcome {
    match with {
        Binary::Add => map2(w, lanes, to, u32::wrapping_add),
        Binary::Sub => map2(w, lanes, to, u32::wrapping_sub),
        Binary::MulLow => map2(w, lanes, to, u32::wrapping_mul),
        Binary::MulHighUnsigned => map2(w, lanes, to, |a, b| ((u64::from(a) * u64::from(b)) >> 32) as u32),
        Binary::MulHighSigned => map2(w, lanes, to, |a, b| ((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32),
        // PTX leaves division by zero unspecified.
        Binary::DivUnsigned => map2(w, lanes, to, |a, b| a.checked_div(b).unwrap_or(u32::MAX)),
        Binary::RemUnsigned => map2(w, lanes, to, |a, b| a.checked_rem(b).unwrap_or(u32::MAX)),
        Binary::DivSigned => map2(w, lanes, to, |a, b| (a as i32).checked_div(b as i32).unwrap_or(-1) as u32),
        Binary::RemSigned => map2(w, lanes, to, |a, b| (a as i32).checked_rem(b as i32).unwrap_or(-1) as u32),
        Binary::MinUnsigned => map2(w, lanes, to, u32::min),
        Binary::MaxUnsigned => map2(w, lanes, to, u32::max),
        Binary::MinSigned => map2(w, lanes, to, |a, b| (a as i32).min(b as i32) as u32),
        Binary::MaxSigned => map2(w, lanes, to, |a, b| (a as i32).max(b as i32) as u32),
        Binary::And => map2(w, lanes, to, |a, b| a & b),
        Binary::Or => map2(w, lanes, to, |a, b| a | b),
        Binary::Xor => map2(w, lanes, to, |a, b| a ^ b),
        Binary::ShiftLeft => map2(w, lanes, to, shift_left),
        Binary::ShiftRightUnsigned => map2(w, lanes, to, |a, b| a.checked_shr(b).unwrap_or(0)),
        Binary::ShiftRightSigned => map2(w, lanes, to, |a, b| ((a as i32) >> b.min(31)) as u32),
        Binary::AddF32 => map2(w, lanes, to, singles(|a, b| a + b)),
        Binary::SubF32 => map2(w, lanes, to, singles(|a, b| a - b)),
        Binary::MulF32 => map2(w, lanes, to, singles(|a, b| a * b)),
        Binary::DivF32 => map2(w, lanes, to, singles(|a, b| a / b)),
        // If one operand is NaN, the result is the other.
        Binary::MinF32 => map2(w, lanes, to, singles(f32::min)),
        Binary::MaxF32 => map2(w, lanes, to, singles(f32::max)),
    }
}

/// A binary operation on two words, for atomics and reductions.
pub(super) fn combine(with: Binary, a: u32, b: u32) -> u32 {
    match with {
        Binary::Add => a.wrapping_add(b),
        Binary::AddF32 => (f32::from_bits(a) + f32::from_bits(b)).to_bits(),
        Binary::MinUnsigned => a.min(b),
        Binary::MaxUnsigned => a.max(b),
        Binary::MinSigned => (a as i32).min(b as i32) as u32,
        Binary::MaxSigned => (a as i32).max(b as i32) as u32,
        Binary::And => a & b,
        Binary::Or => a | b,
        Binary::Xor => a ^ b,
        _ => unreachable!("the decoder produces no other operation"),
    }
}

pub(super) fn ternary(w: &mut Warp, lanes: u32, with: Ternary, to: [Reg; 4]) -> Outcome {
    match with {
        Ternary::FmaF32 => fused(w, lanes, to),
        Ternary::MulAdd => map3(w, lanes, to, |a, b, c| a.wrapping_mul(b).wrapping_add(c)),
        Ternary::Lop3(table) => map3(w, lanes, to, |a, b, c| {
            let row = |i: u32| {
                let pick = |x: u32, bit: u32| if i & bit != 0 { x } else { !x };
                if table >> i & 1 != 0 { pick(a, 4) & pick(b, 2) & pick(c, 1) } else { 0 }
            };
            (0..8).fold(0, |out, i| out | row(i))
        }),
        Ternary::BitField => map3(w, lanes, to, |a, from, bits| {
            let (from, bits) = (from & 0xff, bits & 0xff);
            let kept = a.checked_shr(from).unwrap_or(0);
            if bits >= 32 { kept } else { kept & ((1 << bits) - 1) }
        }),
        Ternary::Permute => map3(w, lanes, to, |a, b, select| {
            let bytes = ((u64::from(b) << 32) | u64::from(a)).to_le_bytes();
            let byte = |i: u32| {
                let code = select >> (4 * i) & 15;
                let byte = bytes[(code & 7) as usize];
                // The upper bit replicates the byte's sign bit.
                u32::from(if code & 8 == 0 {
                    byte
                } else if byte & 0x80 == 0 {
                    0
                } else {
                    0xff
                }) << (8 * i)
            };
            byte(0) | byte(1) | byte(2) | byte(3)
        }),
        Ternary::F16Pair => map3(w, lanes, to, |a, b, _| {
            let half = |x: u32| u32::from(f16::from_f32(f32::from_bits(x)).to_bits());
            half(a) << 16 | half(b)
        }),
        Ternary::Bf16Pair => map3(w, lanes, to, |a, b, _| {
            let brain = |x: u32| u32::from(bf16::from_f32(f32::from_bits(x)).to_bits());
            brain(a) << 16 | brain(b)
        }),
    }
}

/// `a * b + c` rounded once: by the processor's instruction where it has one, otherwise by a library call for each lane.
#[allow(unsafe_code)] // not every x86-64 processor has the instruction
fn fused(w: &mut Warp, lanes: u32, [d, a, b, c]: [Reg; 4]) -> Outcome {
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn in_hardware(a: &[u32; LANES], b: &[u32; LANES], c: &[u32; LANES]) -> [u32; LANES] {
        fused_lanes(a, b, c)
    }
    let (a, b, c) = (w.r32(a, lanes)?, w.r32(b, lanes)?, w.r32(c, lanes)?);
    #[cfg(target_arch = "x86_64")]
    let out = if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: the processor has both.
        unsafe { in_hardware(a, b, c) }
    } else {
        fused_lanes(a, b, c)
    };
    #[cfg(not(target_arch = "x86_64"))]
    let out = fused_lanes(a, b, c);
    w.set_r32(d, lanes, &out);
    Ok(())
}

#[inline(always)]
fn fused_lanes(a: &[u32; LANES], b: &[u32; LANES], c: &[u32; LANES]) -> [u32; LANES] {
    let mut out = [0; LANES];
    for i in 0..LANES {
        out[i] = f32::from_bits(a[i]).mul_add(f32::from_bits(b[i]), f32::from_bits(c[i])).to_bits();
    }
    out
}

pub(super) fn unary64(w: &mut Warp, lanes: u32, how: Unary, d: Reg, a: Reg) -> Outcome {
    let a = *w.r64(a, lanes)?;
    let out = match how {
        Unary::Not => a.map(|x| !x),
        Unary::Negate => a.map(u64::wrapping_neg),
        _ => a,
    };
    w.set_r64(d, lanes, &out);
    Ok(())
}

pub(super) fn binary64(w: &mut Warp, lanes: u32, with: Binary, [d, a, b]: [Reg; 3]) -> Outcome {
    let shifts = matches!(with, Binary::ShiftLeft | Binary::ShiftRightUnsigned | Binary::ShiftRightSigned);
    let b = if shifts { w.r32(b, lanes)?.map(u64::from) } else { *w.r64(b, lanes)? };
    let a = w.r64(a, lanes)?;
    let by = |b: u64| u32::try_from(b).unwrap_or(u32::MAX);
    let f = |a: u64, b: u64| match with {
        Binary::Add => a.wrapping_add(b),
        Binary::Sub => a.wrapping_sub(b),
        Binary::MulLow => a.wrapping_mul(b),
        Binary::And => a & b,
        Binary::Or => a | b,
        Binary::Xor => a ^ b,
        Binary::ShiftLeft => a.checked_shl(by(b)).unwrap_or(0),
        Binary::ShiftRightUnsigned => a.checked_shr(by(b)).unwrap_or(0),
        Binary::ShiftRightSigned => ((a as i64) >> b.min(63)) as u64,
        Binary::MinUnsigned => a.min(b),
        Binary::MaxUnsigned => a.max(b),
        Binary::MinSigned => (a as i64).min(b as i64) as u64,
        Binary::MaxSigned => (a as i64).max(b as i64) as u64,
        Binary::DivUnsigned => a.checked_div(b).unwrap_or(u64::MAX),
        Binary::RemUnsigned => a.checked_rem(b).unwrap_or(u64::MAX),
        Binary::DivSigned => (a as i64).checked_div(b as i64).unwrap_or(-1) as u64,
        Binary::RemSigned => (a as i64).checked_rem(b as i64).unwrap_or(-1) as u64,
        _ => unreachable!("the decoder produces no other 64-bit operation"),
    };
    let out = std::array::from_fn(|i| f(a[i], b[i]));
    w.set_r64(d, lanes, &out);
    Ok(())
}

pub(super) fn multiply_wide(w: &mut Warp, lanes: u32, signed: bool, [d, a, b]: [Reg; 3], add: Option<Reg>) -> Outcome {
    let (a, b) = (w.r32(a, lanes)?, w.r32(b, lanes)?);
    let c = match add {
        Some(c) => *w.r64(c, lanes)?,
        None => [0; LANES],
    };
    let product = |a: u32, b: u32| {
        if signed { (i64::from(a as i32) * i64::from(b as i32)) as u64 } else { u64::from(a) * u64::from(b) }
    };
    let out = std::array::from_fn(|i| product(a[i], b[i]).wrapping_add(c[i]));
    w.set_r64(d, lanes, &out);
    Ok(())
}

/// Compares in all lanes; the result is a mask.
pub(super) fn compare(
    w: &Warp,
    lanes: u32,
    (compare, compare_type, wide): (Compare, CompareType, bool),
    a: Reg,
    b: Reg,
) -> Outcome<u32> {
    if wide {
        let (a, b) = (*w.r64(a, lanes)?, *w.r64(b, lanes)?);
        return Ok(match compare_type {
            CompareType::Signed => ordered(compare, a.map(|x| x as i64), b.map(|x| x as i64)),
            _ => ordered(compare, a, b),
        });
    }
    let (a, b) = (*w.r32(a, lanes)?, *w.r32(b, lanes)?);
    Ok(match compare_type {
        CompareType::Unsigned => ordered(compare, a, b),
        CompareType::Signed => ordered(compare, a.map(|x| x as i32), b.map(|x| x as i32)),
        CompareType::F32 => {
            let (a, b) = (a.map(f32::from_bits), b.map(f32::from_bits));
            let are_nan = each(&a, &b, |a, b| a.is_nan() || b.is_nan());
            match compare {
                Compare::IsNan => are_nan,
                Compare::IsNumber => !are_nan,
                // PTX's `ne` is false for NaN, unlike Rust's `!=`.
                Compare::NotEqual => ordered(compare, a, b) & !are_nan,
                Compare::Unordered(order) => are_nan | ordered(ordered_form(order), a, b),
                other => ordered(other, a, b),
            }
        }
    })
}

/// The mask of the lanes for which a condition holds.
#[inline(always)]
fn each<T>(a: &[T; LANES], b: &[T; LANES], holds: impl Fn(&T, &T) -> bool) -> u32 {
    (0..LANES).fold(0, |mask, i| mask | u32::from(holds(&a[i], &b[i])) << i)
}

fn ordered_form(order: Order) -> Compare {
    match order {
        Order::Equal => Compare::Equal,
        Order::NotEqual => Compare::NotEqual,
        Order::Less => Compare::Less,
        Order::LessOrEqual => Compare::LessOrEqual,
        Order::Greater => Compare::Greater,
        Order::GreaterOrEqual => Compare::GreaterOrEqual,
    }
}

fn ordered<T: PartialOrd>(compare: Compare, a: [T; LANES], b: [T; LANES]) -> u32 {
    match compare {
        Compare::Equal => each(&a, &b, T::eq),
        Compare::NotEqual => each(&a, &b, T::ne),
        Compare::Less => each(&a, &b, T::lt),
        Compare::LessOrEqual => each(&a, &b, T::le),
        Compare::Greater => each(&a, &b, T::gt),
        Compare::GreaterOrEqual => each(&a, &b, T::ge),
        Compare::Unordered(_) | Compare::IsNumber | Compare::IsNan => unreachable!("f32 only"),
    }
}

pub(super) fn logic(with: Logic, a: u32, b: u32) -> u32 {
    match with {
        Logic::And => a & b,
        Logic::Or => a | b,
        Logic::Xor => a ^ b,
    }
}
