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
use half::{bf16, f16};

/// Row and column of each element in a lane's register `a[r]`.
pub(super) fn coordinates_a(element: MatrixType, lane: usize, r: usize) -> [(usize, usize); 2] {
    let (g, t) = (lane / 4, lane % 4);
    let row = g + 8 * (r % 2);
    match element {
        MatrixType::Tf32 => [(row, t + 4 * (r / 2)); 2],
        _ => [(row, 2 * t + 8 * (r / 2)), (row, 2 * t + 1 + 8 * (r / 2))],
    }
}

/// Row and column of each element in a lane's register `b[r]`.
fn coordinates_b(element: MatrixType, lane: usize, r: usize) -> [(usize, usize); 2] {
    let (g, t) = (lane / 4, lane % 4);
    match element {
        MatrixType::Tf32 => [(t + 4 * r, g); 2],
        _ => [(2 * t + 8 * r, g), (2 * t + 1 + 8 * r, g)],
    }
}

/// The elements in a register. A tf32 element is an f32 whose low 13 bits are ignored.
pub(super) fn unpack(element: MatrixType, bits: u32) -> [f64; 2] {
    let halves = [bits as u16, (bits >> 16) as u16];
    match element {
        MatrixType::F16 => halves.map(|h| f16::from_bits(h).to_f64()),
        MatrixType::Bf16 => halves.map(|h| bf16::from_bits(h).to_f64()),
        MatrixType::Tf32 => [f64::from(f32::from_bits(bits & !0x1fff)); 2],
    }
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
    let mut left = [[0.0f64; 16]; 16];
    let mut right = [[0.0f64; 8]; 16];
    for (r, &reg) in a.iter().enumerate().take(of_a) {
        for (lane, bits) in w.r32(reg, all)?.iter().enumerate() {
            for ((i, k), x) in coordinates_a(element, lane, r).into_iter().zip(unpack(element, *bits)) {
                left[i][k] = x;
            }
        }
    }
    for (r, &reg) in b.iter().enumerate().take(of_b) {
        for (lane, bits) in w.r32(reg, all)?.iter().enumerate() {
            for ((k, j), x) in coordinates_b(element, lane, r).into_iter().zip(unpack(element, *bits)) {
                right[k][j] = x;
            }
        }
    }
    let mut out = [[0u32; LANES]; 4];
    for (r, out) in out.iter_mut().enumerate() {
        for (lane, bits) in w.r32(c[r], all)?.iter().enumerate() {
            let (i, j) = (lane / 4 + 8 * (r / 2), 2 * (lane % 4) + r % 2);
            let sum = (0..depth).map(|k| left[i][k] * right[k][j]).sum::<f64>();
            out[lane] = ((f64::from(f32::from_bits(*bits)) + sum) as f32).to_bits();
        }
    }
    for (reg, out) in d.iter().zip(&out) {
        w.set_r32(*reg, all, out);
    }
    Ok(())
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
