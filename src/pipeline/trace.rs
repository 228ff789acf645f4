//! Intermediate tensors of a run, for comparison with the original.
//!
//! Names, shapes and layouts are those of the recordings that the project keeps of diffusers' pipeline (see
//! `tests/golden/make.py`): `decoder/step_03/latents` and the like, pictures with channels first.

use crate::error::{Error, Result};
use crate::output;
use safetensors::{Dtype, tensor::TensorView};
use std::collections::BTreeMap;
use std::path::Path;

/// Collects tensors by name, or nothing at all.
#[derive(Debug, Default)]
pub struct Trace {
    on: bool,
    tensors: BTreeMap<String, Recorded>,
}

#[derive(Debug)]
struct Recorded {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Trace {
    /// Keeps nothing.
    pub fn off() -> Trace {
        Trace::default()
    }

    /// Keeps everything.
    pub fn on() -> Trace {
        Trace { on: true, tensors: BTreeMap::new() }
    }

    /// Whether tensors are kept.
    pub fn is_on(&self) -> bool {
        self.on
    }

    /// Shape and elements of an f32 tensor.
    pub fn get(&self, name: &str) -> Option<(&[usize], Vec<f32>)> {
        let recorded = self.tensors.get(name).filter(|r| r.dtype == Dtype::F32)?;
        Some((&recorded.shape, bytemuck::allocation::pod_collect_to_vec(&recorded.bytes)))
    }

    /// A tensor's type, shape and bytes.
    pub fn tensor(&self, name: &str) -> Option<(Dtype, &[usize], &[u8])> {
        self.tensors.get(name).map(|r| (r.dtype, &r.shape[..], &r.bytes[..]))
    }

    /// Names of all tensors kept.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub(super) fn put(&mut self, name: impl FnOnce() -> String, shape: &[usize], data: &[f32]) {
        self.insert(name, Dtype::F32, shape, |bytes| bytes.extend_from_slice(bytemuck::cast_slice(data)));
    }

    /// Pictures `[N, H, W, C]`, kept as `[N, C, H, W]`; other shapes as they are.
    pub(super) fn put_pictures(&mut self, name: impl FnOnce() -> String, shape: &[usize], data: &[f32]) {
        match *shape {
            _ if !self.on => {}
            [n, h, w, c] => self.put(name, &[n, c, h, w], &channels_first(data, h * w, c)),
            _ => self.put(name, shape, data),
        }
    }

    pub(super) fn put_ids(&mut self, name: impl FnOnce() -> String, shape: &[usize], ids: &[u32]) {
        self.insert(name, Dtype::I64, shape, |bytes| {
            ids.iter().for_each(|&id| bytes.extend_from_slice(&i64::from(id).to_le_bytes()));
        });
    }

    pub(super) fn put_bytes(&mut self, name: impl FnOnce() -> String, shape: &[usize], data: &[u8]) {
        self.insert(name, Dtype::U8, shape, |bytes| bytes.extend_from_slice(data));
    }

    fn insert(
        &mut self,
        name: impl FnOnce() -> String,
        dtype: Dtype,
        shape: &[usize],
        fill: impl FnOnce(&mut Vec<u8>),
    ) {
        if self.on {
            let mut bytes = Vec::new();
            fill(&mut bytes);
            self.tensors.insert(name(), Recorded { dtype, shape: shape.to_vec(), bytes });
        }
    }

    /// Writes all tensors to a safetensors file, which is complete or not there.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let failed = |e: safetensors::SafeTensorError| Error::io(path, "write", std::io::Error::other(e.to_string()));
        let views = self.tensors.iter().map(|(name, r)| {
            let view = TensorView::new(r.dtype, r.shape.clone(), &r.bytes).expect("shape and bytes were put together");
            (name.as_str(), view)
        });
        output::write(path, &safetensors::serialize(views, None).map_err(failed)?)
    }
}

/// `[N, P, C]` to `[N, C, P]`.
pub(super) fn channels_first(data: &[f32], positions: usize, channels: usize) -> Vec<f32> {
    permute(data, positions, channels)
}

/// `[N, C, P]` to `[N, P, C]`.
pub(super) fn channels_last(data: &[f32], positions: usize, channels: usize) -> Vec<f32> {
    permute(data, channels, positions)
}

/// `[N, A, B]` to `[N, B, A]`.
fn permute(data: &[f32], a: usize, b: usize) -> Vec<f32> {
    let mut out = vec![0.0; data.len()];
    for (from, to) in data.chunks_exact(a * b).zip(out.chunks_exact_mut(a * b)) {
        for i in 0..a {
            for j in 0..b {
                to[j * a + i] = from[i * b + j];
            }
        }
    }
    out
}
