//! The recording of the original pipeline on the tiny checkpoint; `tests/golden/make.py` made both.

use safetensors::{Dtype, SafeTensors};

/// The checkpoint.
pub const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/tiny");

/// Shapes and contents by name.
pub struct Recording(Vec<u8>);

impl Recording {
    pub fn read() -> Recording {
        Recording(std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/tiny-run.safetensors")).unwrap())
    }

    pub fn tensors(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.0).unwrap()
    }

    /// A tensor of f32 with its shape.
    pub fn get(&self, name: &str) -> (Vec<usize>, Vec<f32>) {
        let tensors = self.tensors();
        let view = tensors.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(view.dtype(), Dtype::F32, "{name}");
        (view.shape().to_vec(), bytemuck::allocation::pod_collect_to_vec(view.data()))
    }

    /// A tensor of integers.
    pub fn ids(&self, name: &str) -> Vec<u32> {
        let tensors = self.tensors();
        let view = tensors.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(view.dtype(), Dtype::I64, "{name}");
        let ids: Vec<i64> = bytemuck::allocation::pod_collect_to_vec(view.data());
        ids.into_iter().map(|id| u32::try_from(id).unwrap()).collect()
    }

    /// A tensor of bytes as numbers.
    pub fn mask(&self, name: &str) -> Vec<f32> {
        let tensors = self.tensors();
        let view = tensors.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(view.dtype(), Dtype::U8, "{name}");
        view.data().iter().map(|&b| f32::from(b)).collect()
    }
}

/// `[N, C, H, W]` to `[N, H, W, C]`; other shapes stay.
pub fn channels_last(shape: &[usize], data: &[f32]) -> Vec<f32> {
    let [_, c, h, w] = *shape else { return data.to_vec() };
    let mut out = Vec::with_capacity(data.len());
    for image in data.chunks_exact(c * h * w) {
        out.extend((0..h * w * c).map(|i| image[i % c * h * w + i / c]));
    }
    out
}
