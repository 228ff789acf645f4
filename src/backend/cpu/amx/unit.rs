//! The matrix unit: blocks of up to 32 rows by 32 columns, summed in tile registers.
//!
//! A tile register holds 16 rows of 64 bytes. `tdpbf16ps` multiplies a tile of 16 rows by 32 elements of bf16 with a tile of
//! weights, 16 pairs of channels by 16 columns, and adds to 16 by 16 sums in f32. A block keeps four tiles of sums, so that
//! each loaded tile is used twice: 2 KiB of rows and 2 KiB of weights for four products.
//!
//! **Lifetime of the configuration.** The shapes of the tiles are a state of the thread. [`Unit::begin`] loads it, dropping
//! the [`Unit`] releases it, and each task of a product has one. So a thread that waits for work has no tiles, and the system
//! neither saves 8 KiB at every switch nor keeps the core from sleeping. No task gives way to another while it has a unit.
//!
//! **Registers.** Compiled code uses no tile registers. Each `asm!` block zeroes, uses and stores its tiles, and names them as
//! overwritten; nothing but the configuration lives from one block to the next.
//!
//! Without AMX the same sums are computed by [`Block::model`], in the order of the instruction's description, so that tests
//! run everywhere and get the same bits.
#![allow(unsafe_code)]

use super::super::simd::per_isa;
use super::super::tile::Isa;
use std::marker::PhantomData;

/// Rows of a tile, and columns of sums.
pub const SIDE: usize = 16;
/// Most rows of a block, and its columns.
pub const BLOCK: usize = 2 * SIDE;
/// Elements of a row of a tile: the channels of a step.
pub const DEPTH: usize = 32;
/// Bytes of a row of a tile.
pub const ROW: usize = 2 * DEPTH;
/// Bytes of a step's weights: two tiles.
pub const STEP: usize = 2 * SIDE * ROW;

/// A configured matrix unit of the current thread, or its model.
pub struct Unit {
    isa: Isa,
    /// The configuration belongs to the thread.
    thread: PhantomData<*const ()>,
}

impl Unit {
    /// Configures this thread's tiles if the back end uses AMX; otherwise products are computed by the model.
    pub fn begin(isa: Isa) -> Unit {
        #[cfg(target_arch = "x86_64")]
        if isa == Isa::Amx {
            #[repr(align(64))]
            struct Configuration([u8; 64]);
            let mut configuration = Configuration([0; 64]);
            configuration.0[0] = 1; // the palette
            for tile in 0..8 {
                configuration.0[16 + 2 * tile] = ROW as u8;
                configuration.0[48 + tile] = SIDE as u8;
            }
            // SAFETY: a back end has `Isa::Amx` only if the processor has tiles and the system permits them. The
            // configuration is valid and 64 bytes long; the tiles that it clears are used by no code outside of `Block`.
            unsafe {
                std::arch::asm!("ldtilecfg [{}]", in(reg) &configuration, options(readonly, nostack, preserves_flags));
            }
        }
        Unit { isa, thread: PhantomData }
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        #[cfg(target_arch = "x86_64")]
        if self.isa == Isa::Amx {
            // SAFETY: as for `ldtilecfg`; no block is being computed, because it borrows the unit.
            unsafe { std::arch::asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
        }
    }
}

/// A block's operands: `sums[16 t + r][j] = sum over steps s, k < 32 of rows[t][r * pitch + steps[s]][k] * weights[s][k][j]`,
/// in bf16 with sums in f32.
pub struct Block<'a> {
    /// The first rows of one or two tiles.
    pub tiles: &'a [*const u8],
    /// Bytes from one row to the next.
    pub pitch: usize,
    /// Bytes from a row's start to each step's channels; at least one step.
    pub steps: &'a [usize],
    /// Two tiles for each step, one after the other: `[2][16 pairs][16 columns][2]`.
    pub weights: *const u8,
    /// The result, 32 columns of each row.
    pub sums: *mut f32,
    /// Elements from one row of sums to the next.
    pub stride: usize,
}

impl Block<'_> {
    /// Computes the block.
    ///
    /// # Safety
    /// For each tile, step and row `r < 16`, [`ROW`] bytes must be readable at `tile + r * pitch + step`, and [`STEP`] bytes
    /// of weights for each step. 32 sums must be writable for each of 16 rows of each tile, `stride` apart, and no other
    /// thread may access them meanwhile.
    pub unsafe fn run(&self, unit: &Unit) {
        assert!(!self.steps.is_empty() && (1..=2).contains(&self.tiles.len()));
        // SAFETY: the caller's promises; a unit of hardware has configured this thread's tiles.
        unsafe {
            match (unit.isa, self.tiles.len()) {
                #[cfg(target_arch = "x86_64")]
                (Isa::Amx, 1) => self.one(),
                #[cfg(target_arch = "x86_64")]
                (Isa::Amx, _) => self.two(),
                _ => self.model(unit.isa),
            }
        }
    }

    /// Two tiles of rows: four of sums in tmm0 to tmm3, the operands in tmm4 to tmm7.
    #[cfg(target_arch = "x86_64")]
    unsafe fn two(&self) {
        // SAFETY: the loop runs once for each step, so that all addresses are those that `run` was promised. Tiles have 16
        // rows of 64 bytes (`Unit::begin`). The block writes the sums and the named registers only.
        unsafe {
            std::arch::asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "2:",
                "mov {row}, qword ptr [{step}]",
                "add {row}, {upper}",
                "tileloadd tmm6, [{weights} + {line}]",
                "tileloadd tmm4, [{row} + {pitch}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{weights} + {line} + 1024]",
                "add {row}, {lower}",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{row} + {pitch}]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {weights}, 2048",
                "add {step}, 8",
                "cmp {step}, {end}",
                "jne 2b",
                "tilestored [{sums} + {stride}], tmm0",
                "tilestored [{sums} + {stride} + 64], tmm1",
                "mov {row}, {stride}",
                "shl {row}, 4",
                "add {row}, {sums}",
                "tilestored [{row} + {stride}], tmm2",
                "tilestored [{row} + {stride} + 64], tmm3",
                row = out(reg) _,
                step = inout(reg) self.steps.as_ptr() => _,
                end = in(reg) self.steps.as_ptr_range().end,
                upper = in(reg) self.tiles[0],
                lower = in(reg) self.tiles[1].addr().wrapping_sub(self.tiles[0].addr()),
                pitch = in(reg) self.pitch,
                weights = inout(reg) self.weights => _,
                line = in(reg) ROW,
                sums = in(reg) self.sums,
                stride = in(reg) size_of::<f32>() * self.stride,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }

    /// One tile of rows: two of sums in tmm0 and tmm1, the operands in tmm4, tmm6 and tmm7.
    #[cfg(target_arch = "x86_64")]
    unsafe fn one(&self) {
        // SAFETY: as for `two`.
        unsafe {
            std::arch::asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "2:",
                "mov {row}, qword ptr [{step}]",
                "add {row}, {upper}",
                "tileloadd tmm6, [{weights} + {line}]",
                "tileloadd tmm4, [{row} + {pitch}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{weights} + {line} + 1024]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "add {weights}, 2048",
                "add {step}, 8",
                "cmp {step}, {end}",
                "jne 2b",
                "tilestored [{sums} + {stride}], tmm0",
                "tilestored [{sums} + {stride} + 64], tmm1",
                row = out(reg) _,
                step = inout(reg) self.steps.as_ptr() => _,
                end = in(reg) self.steps.as_ptr_range().end,
                upper = in(reg) self.tiles[0],
                pitch = in(reg) self.pitch,
                weights = inout(reg) self.weights => _,
                line = in(reg) ROW,
                sums = in(reg) self.sums,
                stride = in(reg) size_of::<f32>() * self.stride,
                out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }

    /// The block in plain Rust, bit for bit: within a step the even and the odd channels are summed one after the other,
    /// then their sums are added to each other and to those of the steps before.
    unsafe fn model(&self, isa: Isa) {
        for (t, &tile) in self.tiles.iter().enumerate() {
            for r in 0..SIDE {
                let mut sums = [0.0f32; BLOCK];
                for (s, &step) in self.steps.iter().enumerate() {
                    // SAFETY: what `run` was promised; every address is aligned for bytes.
                    let (row, weights) = unsafe {
                        let row = &*tile.add(r * self.pitch + step).cast::<[[u8; 2]; DEPTH]>();
                        (row, &*self.weights.add(s * STEP).cast::<[[[[[u8; 2]; 2]; SIDE]; SIDE]; 2]>())
                    };
                    add_step(isa, &mut sums, row, weights);
                }
                // SAFETY: as above; sums are aligned like f32.
                unsafe { self.sums.add((t * SIDE + r) * self.stride).cast::<[f32; BLOCK]>().write(sums) };
            }
        }
    }
}

per_isa! {
    /// Adds one step of one row.
    pub fn add_step(sums: &mut [f32; BLOCK], row: &[[u8; 2]; DEPTH], weights: &[[[[[u8; 2]; 2]; SIDE]; SIDE]; 2]) {
        let (row, _) = row.as_chunks::<2>();
        for (sums, weights) in sums.as_chunks_mut::<SIDE>().0.iter_mut().zip(weights) {
            let mut parts = [[0.0f32; SIDE]; 2];
            for (pair, weights) in row.iter().zip(weights) {
                for (half, part) in parts.iter_mut().enumerate() {
                    let x = f64::from(widened(pair[half]));
                    // A product of two bf16 and its sum with an f32 are exact in f64, so that this rounds once.
                    for (sum, weight) in part.iter_mut().zip(weights) {
                        *sum = flushed((f64::from(*sum) + x * f64::from(widened(weight[half]))) as f32);
                    }
                }
            }
            for j in 0..SIDE {
                sums[j] = flushed(sums[j] + flushed(parts[0][j] + parts[1][j]));
            }
        }
    }
}

/// A bf16 as f32; those below the normal numbers count as zero.
#[inline(always)]
fn widened(x: [u8; 2]) -> f32 {
    flushed(f32::from_bits(u32::from(u16::from_le_bytes(x)) << 16))
}

/// Zero for what is below the normal numbers.
#[inline(always)]
fn flushed(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE { 0.0 } else { x }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::lanes::AlignedVec;
    use half::bf16;

    /// Values of many magnitudes and both signs, the same on every machine.
    fn values(length: usize, seed: u32) -> Vec<bf16> {
        let mut state = seed;
        let value = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            bf16::from_f32((state >> 8) as f32 / (1 << 23) as f32 - 1.0)
                * bf16::from_f32(2f32.powi((state & 15) as i32 - 8))
        };
        (0..length).map(value).collect()
    }

    fn run(isa: Isa, tiles: usize, steps: usize) -> Vec<f32> {
        let pitch = steps * ROW;
        let mut memory = AlignedVec::zeros(tiles * SIDE * pitch / 4 + steps * STEP / 4);
        let bytes: &mut [bf16] = bytemuck::cast_slice_mut(&mut memory);
        let length = bytes.len();
        bytes.copy_from_slice(&values(length, 7));
        let bytes: &[u8] = bytemuck::cast_slice(&memory);
        let (rows, weights) = bytes.split_at(tiles * SIDE * pitch);
        let stride = BLOCK + 3;
        let mut sums = vec![f32::NAN; tiles * SIDE * stride];
        let starts: Vec<*const u8> = (0..tiles).map(|t| rows[t * SIDE * pitch..].as_ptr()).collect();
        let steps: Vec<usize> = (0..steps).map(|s| s * ROW).collect();
        let (weights, sums_start) = (weights.as_ptr(), sums.as_mut_ptr());
        let block = Block { tiles: &starts, pitch, steps: &steps, weights, sums: sums_start, stride };
        // SAFETY: the memory has all rows and weights, the sums 16 rows of `stride` for each tile.
        unsafe { block.run(&Unit::begin(isa)) };
        sums
    }

    #[test]
    fn the_model_sums_every_product_into_its_place() {
        for (tiles, steps) in [(1, 1), (2, 3)] {
            let (pitch, rows) = (steps * DEPTH, tiles * SIDE);
            let all = values(rows * pitch + steps * STEP / 2, 7);
            let got = run(Isa::Portable, tiles, steps);
            for r in 0..rows {
                for j in 0..BLOCK {
                    let weight = |k: usize| {
                        let at = k / DEPTH * STEP / 2 + j / SIDE * 512 + k % DEPTH / 2 * 32 + j % SIDE * 2 + k % 2;
                        all[rows * pitch + at].to_f64()
                    };
                    let terms: Vec<f64> = (0..pitch).map(|k| all[r * pitch + k].to_f64() * weight(k)).collect();
                    let (want, size) = (terms.iter().sum::<f64>(), terms.iter().map(|t| t.abs()).sum::<f64>());
                    let error = (f64::from(got[r * (BLOCK + 3) + j]) - want).abs();
                    assert!(
                        error <= 1e-6 * size,
                        "{tiles} tiles, {steps} steps, row {r}, column {j}: {error} of {size}"
                    );
                }
                assert!(got[r * (BLOCK + 3) + BLOCK..][..3].iter().all(|x| x.is_nan()), "columns beyond the block");
            }
        }
    }

    #[test]
    fn the_processor_gives_the_bits_of_the_model() {
        if !Isa::Amx.available() {
            return; // tests/ops.rs says that this machine has no AMX
        }
        for (tiles, steps) in [(1, 1), (2, 1), (1, 7), (2, 40)] {
            let bits = |isa| run(isa, tiles, steps).into_iter().map(f32::to_bits).collect::<Vec<u32>>();
            assert!(bits(Isa::Amx) == bits(Isa::Portable), "{tiles} tiles, {steps} steps");
        }
    }
}
