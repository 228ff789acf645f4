//! [`Lanes`]: vectors of sixteen f32, so that a loop is written once for all instruction sets.
//!
//! [`on_lanes`] compiles a function generic over [`Lanes`] once per instruction set, with the vectors in registers.
//!
//! [`AlignedVec`] starts at a cache line, because loads of 64 bytes that straddle two lines run at half the speed.
#![allow(unsafe_code)]

use std::ops::{Deref, DerefMut};

/// Elements of [`Lanes`].
pub const LANES: usize = 16;

/// A cache line.
#[derive(Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([f32; LANES]);

/// A vector of f32 aligned to 64 bytes.
#[derive(Default)]
pub struct AlignedVec {
    lines: Vec<Line>,
    length: usize,
}

impl AlignedVec {
    /// `length` zeros.
    pub fn zeros(length: usize) -> AlignedVec {
        AlignedVec { lines: vec![Line::default(); length.div_ceil(LANES)], length }
    }

    /// Resizes; contents are unspecified.
    pub fn resize(&mut self, length: usize) {
        if self.lines.len() * LANES < length {
            self.lines = Vec::new();
            self.lines = vec![Line::default(); length.div_ceil(LANES)];
        }
        self.length = length;
    }
}

impl Deref for AlignedVec {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &bytemuck::cast_slice(&self.lines)[..self.length]
    }
}

impl DerefMut for AlignedVec {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.length]
    }
}

/// Sixteen f32. The machine must have the instructions of the implementing type.
pub trait Lanes: Copy {
    /// Loads sixteen f32.
    ///
    /// # Safety
    /// Sixteen elements must be readable at `from`.
    unsafe fn load(from: *const f32) -> Self;
    /// Loads sixteen f16 and widens them.
    ///
    /// # Safety
    /// Sixteen elements must be readable at `from`.
    unsafe fn load_f16(from: *const half::f16) -> Self;
    /// Stores sixteen f32.
    ///
    /// # Safety
    /// Sixteen elements must be writable at `to`.
    unsafe fn store(self, to: *mut f32);
    /// `x` in every lane.
    fn splat(x: f32) -> Self;
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    /// `self * x + other`, fused where the machine can.
    fn mul_add(self, x: f32, other: Self) -> Self;
    /// `self * x`.
    fn mul(self, x: f32) -> Self;
}

impl Lanes for [f32; LANES] {
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's promise.
        unsafe { from.cast::<[f32; LANES]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const half::f16) -> Self {
        // SAFETY: the caller's promise.
        unsafe { from.cast::<[half::f16; LANES]>().read_unaligned() }.map(half::f16::to_f32)
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[f32; LANES]>().write_unaligned(self) }
    }
    #[inline(always)]
    fn splat(x: f32) -> Self {
        [x; LANES]
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        std::array::from_fn(|i| self[i] + other[i])
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        std::array::from_fn(|i| self[i] - other[i])
    }
    #[inline(always)]
    fn mul_add(self, x: f32, other: Self) -> Self {
        std::array::from_fn(|i| self[i] * x + other[i])
    }
    #[inline(always)]
    fn mul(self, x: f32) -> Self {
        self.map(|v| v * x)
    }
}

#[cfg(target_arch = "aarch64")]
mod arm {
    use super::{LANES, Lanes};
    use std::arch::aarch64::*;

    /// NEON: four vectors.
    impl Lanes for [float32x4_t; 4] {
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: the caller's promise.
            std::array::from_fn(|i| unsafe { vld1q_f32(from.add(4 * i)) })
        }
        #[inline(always)]
        unsafe fn load_f16(from: *const half::f16) -> Self {
            // SAFETY: the caller's promise; the array on the stack has sixteen elements.
            unsafe { Self::load(<[f32; LANES]>::load_f16(from).as_ptr()) }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: the caller's promise.
            self.into_iter().enumerate().for_each(|(i, x)| unsafe { vst1q_f32(to.add(4 * i), x) });
        }
        #[inline(always)]
        fn splat(x: f32) -> Self {
            // SAFETY: every aarch64 processor has NEON, here and below.
            unsafe { [vdupq_n_f32(x); 4] }
        }
        #[inline(always)]
        fn add(self, other: Self) -> Self {
            // SAFETY: as for `splat`.
            std::array::from_fn(|i| unsafe { vaddq_f32(self[i], other[i]) })
        }
        #[inline(always)]
        fn sub(self, other: Self) -> Self {
            // SAFETY: as for `splat`.
            std::array::from_fn(|i| unsafe { vsubq_f32(self[i], other[i]) })
        }
        #[inline(always)]
        fn mul_add(self, x: f32, other: Self) -> Self {
            // SAFETY: as for `splat`.
            std::array::from_fn(|i| unsafe { vfmaq_n_f32(other[i], self[i], x) })
        }
        #[inline(always)]
        fn mul(self, x: f32) -> Self {
            // SAFETY: as for `splat`.
            self.map(|v| unsafe { vmulq_n_f32(v, x) })
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Lanes;
    use std::arch::x86_64::*;

    /// AVX2: two vectors.
    impl Lanes for [__m256; 2] {
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: the caller's promise.
            unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))] }
        }
        #[inline(always)]
        unsafe fn load_f16(from: *const half::f16) -> Self {
            // SAFETY: the caller's promise.
            unsafe {
                let from = from.cast::<__m128i>();
                [_mm256_cvtph_ps(_mm_loadu_si128(from)), _mm256_cvtph_ps(_mm_loadu_si128(from.add(1)))]
            }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: the caller's promise.
            unsafe {
                _mm256_storeu_ps(to, self[0]);
                _mm256_storeu_ps(to.add(8), self[1]);
            }
        }
        #[inline(always)]
        fn splat(x: f32) -> Self {
            // SAFETY: the trait's promise of instructions, here and below.
            unsafe { [_mm256_set1_ps(x); 2] }
        }
        #[inline(always)]
        fn add(self, other: Self) -> Self {
            // SAFETY: as for `splat`.
            unsafe { [_mm256_add_ps(self[0], other[0]), _mm256_add_ps(self[1], other[1])] }
        }
        #[inline(always)]
        fn sub(self, other: Self) -> Self {
            // SAFETY: as for `splat`.
            unsafe { [_mm256_sub_ps(self[0], other[0]), _mm256_sub_ps(self[1], other[1])] }
        }
        #[inline(always)]
        fn mul_add(self, x: f32, other: Self) -> Self {
            // SAFETY: as for `splat`.
            unsafe {
                let x = _mm256_set1_ps(x);
                [_mm256_fmadd_ps(self[0], x, other[0]), _mm256_fmadd_ps(self[1], x, other[1])]
            }
        }
        #[inline(always)]
        fn mul(self, x: f32) -> Self {
            // SAFETY: as for `splat`.
            unsafe {
                let x = _mm256_set1_ps(x);
                [_mm256_mul_ps(self[0], x), _mm256_mul_ps(self[1], x)]
            }
        }
    }

    /// AVX-512: one vector.
    impl Lanes for __m512 {
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: the caller's promise.
            unsafe { _mm512_loadu_ps(from) }
        }
        #[inline(always)]
        unsafe fn load_f16(from: *const half::f16) -> Self {
            // SAFETY: the caller's promise.
            unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: the caller's promise.
            unsafe { _mm512_storeu_ps(to, self) }
        }
        #[inline(always)]
        fn splat(x: f32) -> Self {
            // SAFETY: the trait's promise of instructions, here and below.
            unsafe { _mm512_set1_ps(x) }
        }
        #[inline(always)]
        fn add(self, other: Self) -> Self {
            // SAFETY: as for `splat`.
            unsafe { _mm512_add_ps(self, other) }
        }
        #[inline(always)]
        fn sub(self, other: Self) -> Self {
            // SAFETY: as for `splat`.
            unsafe { _mm512_sub_ps(self, other) }
        }
        #[inline(always)]
        fn mul_add(self, x: f32, other: Self) -> Self {
            // SAFETY: as for `splat`.
            unsafe { _mm512_fmadd_ps(self, _mm512_set1_ps(x), other) }
        }
        #[inline(always)]
        fn mul(self, x: f32) -> Self {
            // SAFETY: as for `splat`.
            unsafe { _mm512_mul_ps(self, _mm512_set1_ps(x)) }
        }
    }
}

/// Defines `pub unsafe fn name(isa, ..)`, which calls the generic function `body::<L>(..)` compiled for that
/// instruction set.
macro_rules! on_lanes {
    ($(#[$doc:meta])* pub unsafe fn $name:ident($($arg:ident: $type:ty),* $(,)?) = $body:ident) => {
        $(#[$doc])*
        pub unsafe fn $name(isa: $crate::backend::cpu::tile::Isa, $($arg: $type),*) {
            use $crate::backend::cpu::tile::Isa;
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn avx2($($arg: $type),*) {
                // SAFETY: as for the outer function.
                unsafe { $body::<[std::arch::x86_64::__m256; 2]>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f")]
            unsafe fn avx512($($arg: $type),*) {
                // SAFETY: as for the outer function.
                unsafe { $body::<std::arch::x86_64::__m512>($($arg),*) }
            }
            // SAFETY: the caller's promises; a back end is only created with instructions that the machine has.
            unsafe {
                match isa {
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx2 => avx2($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx512 | Isa::Amx => avx512($($arg),*),
                    #[cfg(target_arch = "aarch64")]
                    Isa::Neon => $body::<[std::arch::aarch64::float32x4_t; 4]>($($arg),*),
                    _ => $body::<[f32; $crate::backend::cpu::lanes::LANES]>($($arg),*),
                }
            }
        }
    };
}

pub(super) use on_lanes;

on_lanes! {
    /// Widens `count` f16 to f32; `count` is a multiple of sixteen.
    ///
    /// # Safety
    /// `count` elements must be readable at `from` and writable at `to`. The machine must have the instructions.
    pub unsafe fn widen_f16(from: *const half::f16, count: usize, to: *mut f32) = widen_f16_lanes
}

#[inline(always)]
unsafe fn widen_f16_lanes<L: Lanes>(from: *const half::f16, count: usize, to: *mut f32) {
    for i in (0..count).step_by(LANES) {
        // SAFETY: `i + 16` is at most `count`.
        unsafe { L::load_f16(from.add(i)).store(to.add(i)) };
    }
}

on_lanes! {
    /// `to = x + y` for `count` elements, or `to = x` if `y` is null; `to` may equal `x`.
    ///
    /// # Safety
    /// `count` elements must be readable at `x` and `y` and writable at `to`. The machine must have the instructions.
    pub unsafe fn sum(x: *const f32, y: *const f32, count: usize, to: *mut f32) = sum_lanes
}

#[inline(always)]
unsafe fn sum_lanes<L: Lanes>(x: *const f32, y: *const f32, count: usize, to: *mut f32) {
    let whole = count - count % LANES;
    for i in (0..whole).step_by(LANES) {
        // SAFETY: `i + 16` is at most `count`.
        unsafe {
            let x = L::load(x.add(i));
            let value = if y.is_null() { x } else { x.add(L::load(y.add(i))) };
            value.store(to.add(i));
        }
    }
    for i in whole..count {
        // SAFETY: `i` is below `count`.
        unsafe { *to.add(i) = if y.is_null() { *x.add(i) } else { *x.add(i) + *y.add(i) } };
    }
}
