//! `mma.sync`, `ldmatrix` and `stmatrix`.
//!
//! With `g = lane / 4` and `t = lane % 4`, a thread holds these elements of `a` [16, K], `b` [K, 8] and the
//! accumulators `c` [16, 8]:
//!
//! | registers | 16-bit elements, K = 16 | tf32 elements, K = 8 | accumulators |
//! | --- | --- | --- | --- |
//! | `a0 a1 a2 a3` | rows `g, g+8, g, g+8`, columns `2t, 2t+1` of the left half, then of the right half | rows `g, g+8, g, g+8`, columns `t, t, t+4, t+4` | |
//! | `b0 b1` | column `g`, rows `2t, 2t+1` of the upper half, then of the lower half | column `g`, rows `t, t+4` | |
//! | `c0 c1 c2 c3` | | | row `g` columns `2t, 2t+1`, row `g+8` columns `2t, 2t+1` |
//!
//! At half this K, the second half of the registers of `a` and `b` is absent.

use super::access::Reach;
use super::fault::Outcome;
use super::program::{Address, MatrixType, Reg};
use super::warp::{LANES, Warp};
use half::f16;
use half::slice::HalfFloatSliceExt;

/// Puts the elements of all lanes' register `a[r]` where they belong.
pub(super) fn place_a(left: &mut Left, element: MatrixType, r: usize, lanes: &[[f64; 2]; LANES]) {
    let (half, first) = (r / 2 % 2, 8 * (r % 2));
    for (row, lanes) in left[first..first + 8].iter_mut().zip(lanes.chunks_exact(4)) {
        match element {
            MatrixType::Tf32 => row[4 * half..][..4].iter_mut().zip(lanes).for_each(|(to, x)| *to = x[0]),
            _ => row[8 * half..][..8].copy_from_slice(lanes.as_flattened()),
        }
    }
}

/// Puts the elements of all lanes' register `b[r]` where they belong.
fn place_b(right: &mut Right, element: MatrixType, r: usize, lanes: &[[f64; 2]; LANES]) {
    for (g, lanes) in lanes.chunks_exact(4).enumerate() {
        match element {
            MatrixType::Tf32 => right[4 * r..][..4].iter_mut().zip(lanes).for_each(|(to, x)| to[g] = x[0]),
            _ => right[8 * r..][..8].iter_mut().zip(lanes.as_flattened()).for_each(|(to, x)| to[g] = *x),
        }
    }
}

/// The elements in each register. A tf32 element is an f32 whose low 13 bits are ignored.
pub(super) fn unpack<const N: usize>(element: MatrixType, words: &[u32; N]) -> [[f64; 2]; N] {
    let mut out = [[0.0; 2]; N];
    match element {
        MatrixType::F16 => {
            // At once: the crate asks for the processor's instruction at each call.
            let mut elements = [[0f32; 2]; N];
            let halves: &[f16] = bytemuck::cast_slice(words);
            halves.convert_to_f32_slice(elements.as_flattened_mut());
            for (out, pair) in out.iter_mut().zip(elements) {
                *out = [f64::from(pair[0]), f64::from(pair[1])];
            }
        }
        MatrixType::Bf16 => {
            for (out, word) in out.iter_mut().zip(words) {
                *out = [word << 16, word & 0xffff_0000].map(|bits| f64::from(f32::from_bits(bits)));
            }
        }
        MatrixType::Tf32 => {
            for (out, word) in out.iter_mut().zip(words) {
                *out = [f64::from(f32::from_bits(word & !0x1fff)); 2];
            }
        }
    }
    out
}

/// `a` [16, K] in f64; columns beyond K are not read.
pub(super) type Left = [[f64; 16]; 16];
/// `b` [K, 8] in f64; rows beyond K are not read.
pub(super) type Right = [[f64; 8]; 16];

/// `a b` [16, 8]. Each element is one sum over K, in order; the eight of a row are computed side by side.
#[allow(unsafe_code)] // not every x86-64 processor has the wide registers
pub(super) fn multiply(left: &Left, right: &Right, depth: usize) -> [[f64; 8]; 16] {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2")]
        fn in_wide_registers(left: &Left, right: &Right, depth: usize) -> [[f64; 8]; 16] {
            multiply_rows(left, right, depth)
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2.
            return unsafe { in_wide_registers(left, right, depth) };
        }
    }
    multiply_rows(left, right, depth)
}

// Plain loops: closures would not be compiled for the wide registers.
#[inline(always)]
fn multiply_rows(left: &Left, right: &Right, depth: usize) -> [[f64; 8]; 16] {
    let mut out = [[0.0; 8]; 16];
    for (row, sums) in left.iter().zip(&mut out) {
        for j in 0..8 {
            sums[j] = row[0] * right[0][j];
        }
        for k in 1..depth {
            for j in 0..8 {
                sums[j] += row[k] * right[k][j];
            }
        }
    }
    out
}

/// `mma.sync`: `d = a b + c` for the whole warp.
pub(super) fn mma(
    w: &mut Warp,
    (element, depth): (MatrixType, u8),
    d: &[Reg; 4],
    (a, b, c): (&[Reg; 4], &[Reg; 2], &[Reg; 4]),
) -> Outcome {
    let depth = usize::from(depth);
    let all = u32::MAX;
    // At full K a thread has four registers of `a` and two of `b`, at half K half as many.
    let full = depth == if element == MatrixType::Tf32 { 8 } else { 16 };
    let (of_a, of_b) = if full { (4, 2) } else { (2, 1) };
    let (mut left, mut right): (Left, Right) = Default::default();
    for (r, &reg) in a.iter().enumerate().take(of_a) {
        place_a(&mut left, element, r, &unpack(element, w.r32(reg, all)?));
    }
    for (r, &reg) in b.iter().enumerate().take(of_b) {
        place_b(&mut right, element, r, &unpack(element, w.r32(reg, all)?));
    }
    let sums = multiply(&left, &right, depth);
    let mut out = [[0u32; LANES]; 4];
    for (r, out) in out.iter_mut().enumerate() {
        *out = accumulated(w.r32(c[r], all)?, &sums, r);
    }
    for (reg, out) in d.iter().zip(&out) {
        w.set_r32(*reg, all, out);
    }
    Ok(())
}

/// Accumulators `c[r]` of all lanes with their sums added, rounded once.
#[inline]
pub(super) fn accumulated(before: &[u32; LANES], sums: &[[f64; 8]; 16], r: usize) -> [u32; LANES] {
    let mut out = [0; LANES];
    let rows = sums[8 * (r / 2)..].iter().zip(before.chunks_exact(4)).zip(out.chunks_exact_mut(4));
    for ((row, before), out) in rows {
        for t in 0..4 {
            out[t] = ((f64::from(f32::from_bits(before[t])) + row[2 * t + r % 2]) as f32).to_bits();
        }
    }
    out
}

/// `ldmatrix`: lanes `8 m ..` hold the addresses of the eight rows of matrix `m`. Each lane receives two neighbouring
/// elements of row `lane / 4`, or of that column if transposed.
pub(super) fn ldmatrix(w: &mut Warp, reach: &mut Reach<'_>, to: &[Reg], transposed: bool, at: Address) -> Outcome {
    for (m, &reg) in to.iter().enumerate() {
        let rows = rows(w, reach, at, m)?;
        let element = |i: usize, j: usize| rows[i][j / 2] >> (16 * (j % 2)) & 0xffff;
        let out = std::array::from_fn(|lane| {
            let (i, j) = (lane / 4, 2 * (lane % 4));
            if transposed { element(j, i) | element(j + 1, i) << 16 } else { element(i, j) | element(i, j + 1) << 16 }
        });
        w.set_r32(reg, u32::MAX, &out);
    }
    Ok(())
}

/// Addresses of the rows of matrix `m`.
fn row_addresses(w: &Warp, at: Address, m: usize) -> Outcome<[u32; 8]> {
    let lanes = 0xff << (8 * m);
    let address = |lane: usize, base: u32| (lane, base.wrapping_add(at.offset as u32)).1;
    Ok(if at.wide {
        let bases = w.r64(at.base, lanes)?;
        std::array::from_fn(|i| address(i, bases[8 * m + i] as u32))
    } else {
        let bases = w.r32(at.base, lanes)?;
        std::array::from_fn(|i| address(i, bases[8 * m + i]))
    })
}

fn rows(w: &Warp, reach: &mut Reach<'_>, at: Address, m: usize) -> Outcome<[[u32; 4]; 8]> {
    let addresses = row_addresses(w, at, m)?;
    let mut rows = [[0; 4]; 8];
    let mut banks = [u32::MAX; 32];
    let mut passes = [0u8; 32];
    for (i, row) in rows.iter_mut().enumerate() {
        let thread = w.first_thread() + (8 * m + i) as u16;
        *row = reach.shared.load(addresses[i], 16, thread, reach.clock)?;
        for word in reach.shared.word(addresses[i])..reach.shared.word(addresses[i]) + 4 {
            let bank = (word % 32) as usize;
            passes[bank] += u8::from(banks[bank] != u32::MAX && banks[bank] != word);
            banks[bank] = word;
        }
    }
    reach.counters.shared_requests += 1;
    reach.counters.bank_conflicts += u64::from(passes.iter().copied().max().unwrap_or(0));
    Ok(rows)
}

/// `stmatrix`: the inverse of `ldmatrix`.
pub(super) fn stmatrix(w: &mut Warp, reach: &mut Reach<'_>, from: &[Reg], transposed: bool, at: Address) -> Outcome {
    for (m, &reg) in from.iter().enumerate() {
        let values = *w.r32(reg, u32::MAX)?;
        let addresses = row_addresses(w, at, m)?;
        for (i, &address) in addresses.iter().enumerate() {
            let element = |j: usize| {
                let (row, column) = if transposed { (j, i) } else { (i, j) };
                values[4 * row + column / 2] >> (16 * (column % 2)) & 0xffff
            };
            let words = std::array::from_fn(|k| element(2 * k) | element(2 * k + 1) << 16);
            reach.shared.store(address, 16, &words, w.first_thread() + (8 * m + i) as u16, reach.clock)?;
        }
        reach.counters.shared_requests += 1;
    }
    Ok(())
}
