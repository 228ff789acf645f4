//! Checkpoints on disk: folders, weight files, tensors and configurations.
//!
//! A [`Checkpoint`] is a folder in the diffusers layout, or the same files compiled into the program. A [`Component`] is
//! one part of it with its weight files open; dropping it closes them. Tensors are read when they are used.
//!
//! One layer a file: [`safetensors`] reads a weight file, [`layout`] finds the files of a component (shards, variants),
//! [`config`] checks configuration files, [`diffusers`] puts them together, `component` is one part with its files open;
//! `snapshot` finds a checkpoint inside the hub's cache, `whole` takes a CLIP of transformers for one; [`adapter`] changes weights by files of other programs. [`inspect`] reports on every component, also past broken ones.
//!
//! A file's header is validated completely before any tensor is read; every tensor then lies inside the file. For files
//! that change *during* use see [`safetensors`].

pub mod adapter;
mod component;
pub mod config;
#[cfg(feature = "default-model")]
mod default_model;
pub mod diffusers;
mod inspect;
mod json;
pub mod layout;
pub mod safetensors;
mod snapshot;
mod whole;

use crate::dtype::{Dtype, StoredDtype};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use std::fmt;

pub use adapter::{Adapter, Adapters};
pub(crate) use component::few;
pub use component::{Component, Signature};
#[cfg(feature = "default-model")]
pub use default_model::default_model;
pub use diffusers::{Checkpoint, LoadOptions};
pub use inspect::{ComponentReport, inspect};
pub use safetensors::WeightFile;
pub use snapshot::snapshot_in;

/// Type, shape and offset of a stored tensor (row-major, little-endian).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Element type.
    pub dtype: StoredDtype,
    /// Outermost dimension first; empty for a scalar.
    pub shape: Vec<usize>,
    /// First byte, counted from the start of the file.
    pub offset: usize,
    /// Length in bytes.
    pub size_bytes: usize,
}

impl TensorInfo {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

impl fmt::Display for TensorInfo {
    /// `F16 [320, 3, 3, 3]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.dtype, self.shape)
    }
}

/// Converts stored little-endian floats to `f32`; `None` when `dtype` is not a float of 16, 32 or 64 bits.
///
/// F16 and BF16 convert exactly; F64 rounds to nearest. `bytes` need not be aligned; a last incomplete
/// element is ignored.
pub fn to_f32s(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    Some(match dtype {
        Dtype::F32 => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        Dtype::F64 => bytes.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect(),
        Dtype::F16 => widen(bytes, |b| f16::from_bits(u16::from_le_bytes(b)), |from, to| from.convert_to_f32_slice(to)),
        Dtype::Bf16 => {
            widen(bytes, |b| bf16::from_bits(u16::from_le_bytes(b)), |from, to| from.convert_to_f32_slice(to))
        }
        _ => return None,
    })
}

/// f16 or bf16 to f32 through a small aligned block: the conversion of a slice uses the processor's instructions, and
/// mapped bytes need not be aligned.
fn widen<H: Copy + Default>(bytes: &[u8], load: impl Fn([u8; 2]) -> H, convert: impl Fn(&[H], &mut [f32])) -> Vec<f32> {
    const BLOCK: usize = 1024;
    let stored = bytes.as_chunks::<2>().0;
    let mut values = vec![0.0; stored.len()];
    let mut block = [H::default(); BLOCK];
    for (from, to) in stored.chunks(BLOCK).zip(values.chunks_mut(BLOCK)) {
        for (h, b) in block.iter_mut().zip(from) {
            *h = load(*b);
        }
        convert(&block[..from.len()], to);
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_f16_pattern_converts_as_the_scalar_conversion_does() {
        let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let got = to_f32s(Dtype::F16, &bytes).unwrap();
        for (bits, v) in (0..=u16::MAX).zip(got) {
            let want = f16::from_bits(bits).to_f32();
            assert!(v == want || (v.is_nan() && want.is_nan()), "{bits:#06x}: {v} != {want}");
        }
    }

    #[test]
    fn every_bf16_pattern_is_the_upper_half_of_an_f32() {
        let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let got = to_f32s(Dtype::Bf16, &bytes).unwrap();
        for (bits, v) in (0..=u16::MAX).zip(got) {
            let want = f32::from_bits(u32::from(bits) << 16);
            assert!(v == want || (v.is_nan() && want.is_nan()), "{bits:#06x}: {v} != {want}");
        }
    }

    #[test]
    fn unaligned_bytes_convert_like_aligned_ones() {
        for (dtype, size) in [(Dtype::F16, 2), (Dtype::Bf16, 2), (Dtype::F32, 4), (Dtype::F64, 8)] {
            let bytes: Vec<u8> = (0..size * 3000).map(|i| (i * 7 % 113) as u8).collect();
            let mut shifted = vec![0u8];
            shifted.extend_from_slice(&bytes);
            assert_eq!(to_f32s(dtype, &bytes).unwrap(), to_f32s(dtype, &shifted[1..]).unwrap(), "{dtype}");
        }
    }

    #[test]
    fn integers_are_not_floats() {
        assert!(to_f32s(Dtype::I64, &[0; 8]).is_none());
        assert!(!Dtype::I64.is_float());
    }
}
