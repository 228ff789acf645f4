//! The GEMM microkernel: a tile of up to [`MR`] rows by some panels of [`NR`] columns, accumulated in registers.
//!
//! The left operand is read in place, through one pointer per row, or one per segment for the taps of a convolution:
//! neither packing nor im2col. The right operand is packed once into panels of [`NR`] columns ([`super::panels`]).
//! AVX-512 takes [`PANELS`] panels at once, with 24 accumulators in its 32 registers; other instruction sets take one
//! at a time.
//!
//! Every element is summed in the order of `k`, whatever the tile's height, so results depend neither on the division
//! among threads nor on the batch.
#![allow(unsafe_code)]

use super::amx::{Amx, amx};

/// Rows of a full tile: with two vectors per row, twelve accumulators in AVX2's sixteen registers.
pub const MR: usize = 6;
/// Columns of a panel.
pub const NR: usize = 16;
/// Limit of panels per tile.
pub const PANELS: usize = 4;

/// Instruction set of the CPU back end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// Plain Rust, vectorised by the compiler for the target's baseline.
    Portable,
    /// 128-bit vectors with fused multiply-add; every 64-bit ARM processor has them.
    Neon,
    /// 256-bit vectors with fused multiply-add.
    Avx2,
    /// 512-bit vectors.
    Avx512,
    /// 512-bit vectors, and tiles for products of bf16.
    Amx,
}

impl Isa {
    /// All instruction sets, the best last.
    pub const ALL: [Isa; 5] = [Isa::Portable, Isa::Neon, Isa::Avx2, Isa::Avx512, Isa::Amx];

    /// The best one available on this machine.
    pub fn detect() -> Isa {
        Isa::ALL.into_iter().rfind(|isa| isa.available()).unwrap_or(Isa::Portable)
    }

    /// Whether this machine has these instructions.
    pub fn available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        let avx2 =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        #[cfg(target_arch = "x86_64")]
        let avx512 = avx2 && is_x86_feature_detected!("avx512f");
        // The vectors around the tiles: every processor with tiles has these.
        #[cfg(target_arch = "x86_64")]
        let bf16 = is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512bf16");
        #[cfg(not(target_arch = "x86_64"))]
        let (avx2, avx512, bf16) = (false, false, false);
        match self {
            Isa::Portable => true,
            Isa::Neon => cfg!(target_arch = "aarch64"),
            Isa::Avx2 => avx2,
            Isa::Avx512 => avx512,
            Isa::Amx => avx512 && bf16 && amx() == Amx::Ready,
        }
    }

    /// Whether it has 512-bit vectors.
    pub fn has_avx512(self) -> bool {
        matches!(self, Isa::Avx512 | Isa::Amx)
    }

    /// Panels per tile.
    pub fn panels(self) -> usize {
        if self.has_avx512() { PANELS } else { 1 }
    }

    /// Name in listings.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Neon => "neon",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Amx => "amx",
        }
    }
}

/// Whether this machine has AVX-512's bf16 dot product, `vdpbf16ps`.
pub fn pairs_available() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        Isa::Avx512.available() && is_x86_feature_detected!("avx512bf16")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

/// Whether `vdpbf16ps` is faster than f32 multiply-adds. AMD's processors issue both at the same rate, and it does
/// twice the work; Intel's issue it at half the rate, without a gain.
pub fn pairs_are_fast() -> bool {
    #[cfg(target_arch = "x86_64")]
    let amd = {
        // SAFETY: every x86-64 processor has the instruction. Newer compilers than the oldest supported know that.
        #[allow(unused_unsafe)]
        let vendor = unsafe { std::arch::x86_64::__cpuid(0) };
        [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).concat() == b"AuthenticAMD"
    };
    #[cfg(not(target_arch = "x86_64"))]
    let amd = false;
    amd && pairs_available()
}

/// One tile's operands: for the panel `p` and its column `j`,
/// `c[r][p * NR + j] (+)= sum over segments s, k < depth of rows[s * stride + r][k] * panel[p][s * depth + k][j]`.
#[derive(Clone, Copy)]
pub struct Tile {
    /// Pointers to the first element of each row of the first segment.
    pub rows: *const *const f32,
    /// Distance in the pointer table from one segment to the next.
    pub stride: usize,
    /// Number of segments.
    pub segments: usize,
    /// Offset added to every row pointer, in elements.
    pub offset: usize,
    /// Elements of each segment of a row.
    pub depth: usize,
    /// The first panel: `segments * depth` rows of [`NR`] elements.
    pub panel: *const f32,
    /// Elements from one panel to the next.
    pub panel_stride: usize,
    /// Number of panels, 1 to [`PANELS`].
    pub panels: usize,
    /// The result.
    pub c: *mut f32,
    /// Distance between rows of `c`.
    pub ldc: usize,
    /// Rows in use, 1 to [`MR`].
    pub height: usize,
    /// Whether to add to `c` instead of replacing it.
    pub accumulate: bool,
    /// Whether each element of `rows` and of the panels is a pair of bf16, both multiplied and added. Only with
    /// AVX-512 and [`pairs_available`].
    pub pairs: bool,
}

/// Defines the AVX-512 loop with a given multiply-add.
#[cfg(target_arch = "x86_64")]
macro_rules! avx512_loop {
    ($name:ident, $features:literal, |$a:ident, $b:ident, $acc:ident| $multiply_add:expr) => {
        #[target_feature(enable = $features)]
        unsafe fn $name<const R: usize, const P: usize>(&self) {
            use std::arch::x86_64::{_mm512_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps};
            let mut acc = [[_mm512_setzero_ps(); P]; R];
            // SAFETY: all offsets stay within what `run` was promised.
            unsafe {
                if self.accumulate {
                    for (r, row) in acc.iter_mut().enumerate() {
                        for (p, vector) in row.iter_mut().enumerate() {
                            *vector = _mm512_loadu_ps(self.c.add(r * self.ldc + p * NR));
                        }
                    }
                }
                let mut panel = self.panel;
                for s in 0..self.segments {
                    let rows: [*const f32; R] =
                        std::array::from_fn(|r| (*self.rows.add(s * self.stride + r)).add(self.offset));
                    for k in 0..self.depth {
                        let b: [_; P] = std::array::from_fn(|p| _mm512_loadu_ps(panel.add(p * self.panel_stride)));
                        for r in 0..R {
                            let $a = _mm512_set1_ps(*rows[r].add(k));
                            for p in 0..P {
                                let ($b, $acc) = (b[p], acc[r][p]);
                                acc[r][p] = $multiply_add;
                            }
                        }
                        panel = panel.add(NR);
                    }
                }
                for (r, row) in acc.iter().enumerate() {
                    for (p, vector) in row.iter().enumerate() {
                        _mm512_storeu_ps(self.c.add(r * self.ldc + p * NR), *vector);
                    }
                }
            }
        }
    };
}

impl Tile {
    /// Computes the tile.
    ///
    /// # Safety
    /// For every `s < segments` and `r < height`, `rows[s * stride + r]` must point to `offset + depth` readable
    /// elements; every panel to `segments * depth * NR`; `c` to `height` writable rows of `panels * NR` elements, `ldc`
    /// apart, that no other thread accesses meanwhile. The machine must have the instructions.
    pub unsafe fn run(&self, isa: Isa) {
        debug_assert!((1..=MR).contains(&self.height) && (1..=PANELS).contains(&self.panels));
        // SAFETY: the caller's promises are passed on unchanged; the height selects the loop of that height.
        unsafe {
            match self.height {
                1 => self.run_rows::<1>(isa),
                2 => self.run_rows::<2>(isa),
                3 => self.run_rows::<3>(isa),
                4 => self.run_rows::<4>(isa),
                5 => self.run_rows::<5>(isa),
                _ => self.run_rows::<MR>(isa),
            }
        }
    }

    unsafe fn run_rows<const R: usize>(&self, isa: Isa) {
        // SAFETY: as for `run`; single panels lie within what was promised for all.
        unsafe {
            match (isa, self.pairs, self.panels) {
                #[cfg(target_arch = "x86_64")]
                (Isa::Avx512 | Isa::Amx, false, 1) => self.avx512::<R, 1>(),
                #[cfg(target_arch = "x86_64")]
                (Isa::Avx512 | Isa::Amx, false, 2) => self.avx512::<R, 2>(),
                #[cfg(target_arch = "x86_64")]
                (Isa::Avx512 | Isa::Amx, false, 3) => self.avx512::<R, 3>(),
                #[cfg(target_arch = "x86_64")]
                (Isa::Avx512 | Isa::Amx, false, _) => self.avx512::<R, PANELS>(),
                #[cfg(target_arch = "x86_64")]
                (Isa::Avx512 | Isa::Amx, true, 1) => self.avx512_pairs::<R, 1>(),
                #[cfg(target_arch = "x86_64")]
                (Isa::Avx512 | Isa::Amx, true, 2) => self.avx512_pairs::<R, 2>(),
                #[cfg(target_arch = "x86_64")]
                (Isa::Avx512 | Isa::Amx, true, 3) => self.avx512_pairs::<R, 3>(),
                #[cfg(target_arch = "x86_64")]
                (Isa::Avx512 | Isa::Amx, true, _) => self.avx512_pairs::<R, PANELS>(),
                (_, true, _) => unreachable!("panels in pairs are only packed for AVX-512"),
                _ => {
                    for p in 0..self.panels {
                        let (panel, c) = (self.panel.add(p * self.panel_stride), self.c.add(p * NR));
                        let one = Tile { panel, c, panels: 1, ..*self };
                        match isa {
                            #[cfg(target_arch = "x86_64")]
                            Isa::Avx2 => one.avx2::<R>(),
                            #[cfg(target_arch = "aarch64")]
                            Isa::Neon => one.neon::<R>(),
                            _ => one.portable::<R>(),
                        }
                    }
                }
            }
        }
    }

    unsafe fn portable<const R: usize>(&self) {
        let mut acc = [[0.0f32; NR]; R];
        // SAFETY: all offsets stay within what `run` was promised.
        unsafe {
            if self.accumulate {
                for (r, row) in acc.iter_mut().enumerate() {
                    std::ptr::copy_nonoverlapping(self.c.add(r * self.ldc), row.as_mut_ptr(), NR);
                }
            }
            let mut panel = self.panel;
            for s in 0..self.segments {
                let rows: [*const f32; R] =
                    std::array::from_fn(|r| (*self.rows.add(s * self.stride + r)).add(self.offset));
                for k in 0..self.depth {
                    let b = &*panel.cast::<[f32; NR]>();
                    for r in 0..R {
                        let a = *rows[r].add(k);
                        for j in 0..NR {
                            acc[r][j] += a * b[j];
                        }
                    }
                    panel = panel.add(NR);
                }
            }
            for (r, row) in acc.iter().enumerate() {
                std::ptr::copy_nonoverlapping(row.as_ptr(), self.c.add(r * self.ldc), NR);
            }
        }
    }

    /// Four vectors a row: 24 accumulators of 32 registers.
    #[cfg(target_arch = "aarch64")]
    #[target_feature(enable = "neon")]
    unsafe fn neon<const R: usize>(&self) {
        use std::arch::aarch64::{vdupq_n_f32, vfmaq_n_f32, vld1q_f32, vst1q_f32};
        let mut acc = [[vdupq_n_f32(0.0); 4]; R];
        // SAFETY: all offsets stay within what `run` was promised.
        unsafe {
            if self.accumulate {
                for (r, row) in acc.iter_mut().enumerate() {
                    *row = std::array::from_fn(|v| vld1q_f32(self.c.add(r * self.ldc + 4 * v)));
                }
            }
            let mut panel = self.panel;
            for s in 0..self.segments {
                let rows: [*const f32; R] =
                    std::array::from_fn(|r| (*self.rows.add(s * self.stride + r)).add(self.offset));
                for k in 0..self.depth {
                    let b: [_; 4] = std::array::from_fn(|v| vld1q_f32(panel.add(4 * v)));
                    for r in 0..R {
                        let a = *rows[r].add(k);
                        for v in 0..4 {
                            acc[r][v] = vfmaq_n_f32(acc[r][v], b[v], a);
                        }
                    }
                    panel = panel.add(NR);
                }
            }
            for (r, row) in acc.iter().enumerate() {
                for (v, vector) in row.iter().enumerate() {
                    vst1q_f32(self.c.add(r * self.ldc + 4 * v), *vector);
                }
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn avx2<const R: usize>(&self) {
        use std::arch::x86_64::{
            _mm256_broadcast_ss, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_setzero_ps, _mm256_storeu_ps,
        };
        let mut acc = [[_mm256_setzero_ps(); 2]; R];
        // SAFETY: all offsets stay within what `run` was promised.
        unsafe {
            if self.accumulate {
                for (r, row) in acc.iter_mut().enumerate() {
                    let c = self.c.add(r * self.ldc);
                    *row = [_mm256_loadu_ps(c), _mm256_loadu_ps(c.add(8))];
                }
            }
            let mut panel = self.panel;
            for s in 0..self.segments {
                let rows: [*const f32; R] =
                    std::array::from_fn(|r| (*self.rows.add(s * self.stride + r)).add(self.offset));
                for k in 0..self.depth {
                    let b = [_mm256_loadu_ps(panel), _mm256_loadu_ps(panel.add(8))];
                    for r in 0..R {
                        let a = _mm256_broadcast_ss(&*rows[r].add(k));
                        acc[r][0] = _mm256_fmadd_ps(a, b[0], acc[r][0]);
                        acc[r][1] = _mm256_fmadd_ps(a, b[1], acc[r][1]);
                    }
                    panel = panel.add(NR);
                }
            }
            for (r, row) in acc.iter().enumerate() {
                let c = self.c.add(r * self.ldc);
                _mm256_storeu_ps(c, row[0]);
                _mm256_storeu_ps(c.add(8), row[1]);
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    avx512_loop!(avx512, "avx512f", |a, b, acc| std::arch::x86_64::_mm512_fmadd_ps(a, b, acc));

    #[cfg(target_arch = "x86_64")]
    avx512_loop!(avx512_pairs, "avx512f,avx512bf16", |a, b, acc| {
        use std::arch::x86_64::{__m512, __m512bh, _mm512_dpbf16_ps};
        // Both are plain vectors of the same size.
        let [a, b] = [a, b].map(|x| std::mem::transmute::<__m512, __m512bh>(x));
        _mm512_dpbf16_ps(acc, a, b)
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Small multiples of 1/16, so that products and sums are exact in any order.
    fn values(length: usize, step: usize) -> Vec<f32> {
        (0..length).map(|i| ((i * step + 5) % 32) as f32 / 16.0 - 1.0).collect()
    }

    #[test]
    fn every_height_and_width_gives_the_exact_sums_and_leaves_other_rows_alone() {
        let (segments, stride, depth, offset, ldc) = (3, MR, 5, 2, PANELS * NR + 3);
        let panel_stride = segments * depth * NR + 7;
        let single = |length, step| values(length, step);
        let pair = |length, step| {
            let halves = values(length, step).into_iter().zip(values(length, step + 4));
            halves.map(|(low, high)| f32::from_bits(high.to_bits() | low.to_bits() >> 16)).collect()
        };
        let sizes = (1..=MR).flat_map(|height| (1..=PANELS).map(move |panels| (height, panels)));
        let tiles = sizes.flat_map(|(height, panels)| [(height, panels, false), (height, panels, true)]);
        let mut isas: Vec<(Isa, bool)> =
            Isa::ALL.into_iter().filter(|isa| isa.available()).map(|isa| (isa, false)).collect();
        isas.extend(pairs_available().then_some((Isa::Avx512, true)));
        for ((isa, pairs), (height, panels, accumulate)) in
            isas.into_iter().flat_map(|isa| tiles.clone().map(move |tile| (isa, tile)))
        {
            let elements: &dyn Fn(usize, usize) -> Vec<f32> = if pairs { &pair } else { &single };
            let x = elements(segments * stride * (offset + depth), 7);
            let panel = elements(PANELS * panel_stride, 13);
            let table: Vec<*const f32> = x.chunks_exact(offset + depth).map(<[f32]>::as_ptr).collect();
            let halves = |x: f32| [x.to_bits() << 16, x.to_bits() & 0xffff_0000].map(f32::from_bits);
            let times = |a: f32, b: f32| {
                if !pairs {
                    return a * b;
                }
                let (a, b) = (halves(a), halves(b));
                a[0] * b[0] + a[1] * b[1]
            };
            let before = values(MR * ldc, 3);
            let mut c = before.clone();
            let tile = Tile {
                rows: table.as_ptr(),
                stride,
                segments,
                offset,
                depth,
                panel: panel.as_ptr(),
                panel_stride,
                panels,
                c: c.as_mut_ptr(),
                ldc,
                height,
                accumulate,
                pairs,
            };
            // SAFETY: the table holds `segments * stride` rows of `offset + depth` elements, each panel
            // `segments * depth` rows of NR, `c` MR rows of `ldc`; the instructions are available.
            unsafe { tile.run(isa) };
            for (i, (got, old)) in c.iter().zip(&before).enumerate() {
                let (r, j) = (i / ldc, i % ldc);
                let row = |s: usize| &x[(s * stride + r) * (offset + depth) + offset..][..depth];
                let weight = |k: usize| panel[j / NR * panel_stride + k * NR + j % NR];
                let term = |s: usize| (0..depth).map(|k| times(row(s)[k], weight(s * depth + k))).sum::<f32>();
                let want = match (r < height && j < panels * NR, accumulate) {
                    (false, _) => *old,
                    (true, false) => (0..segments).map(term).sum(),
                    (true, true) => old + (0..segments).map(term).sum::<f32>(),
                };
                assert_eq!(*got, want, "{isa:?}, pairs {pairs}, height {height}, panels {panels}, row {r}, column {j}");
            }
        }
    }
}
