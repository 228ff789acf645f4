//! The recordings of the original pipelines on the tiny checkpoint; `tests/golden/make.py` made all.

use safetensors::{Dtype, SafeTensors};
use unclip::image::{Image, Mask};
use unclip::pipeline::Trace;

/// The checkpoint.
pub const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/tiny");

/// Shapes and contents by name.
pub struct Recording(Vec<u8>);

impl Recording {
    /// Of prompts.
    pub fn read() -> Recording {
        Recording::open("tiny-run")
    }

    /// Of a picture's variations.
    pub fn variation() -> Recording {
        Recording::open("variation")
    }

    /// Of configurations that published checkpoints do not have; `tests/golden/make_configurations.py` made it.
    pub fn configurations() -> Recording {
        Recording::open("configurations")
    }

    /// Of autoencoders; `tests/golden/make_autoencoders.py` made it.
    pub fn autoencoders() -> Recording {
        Recording::open("autoencoders")
    }

    /// Of Kandinsky's decoders; `tests/golden/make_kandinsky.py` made it.
    pub fn kandinsky() -> Recording {
        Recording::open("kandinsky")
    }

    /// Of a tiny Kandinsky's pictures; `tests/golden/make_kandinsky_pictures.py` made it.
    pub fn kandinsky_pictures() -> Recording {
        Recording::open("kandinsky-2-2/pictures")
    }

    /// Of a tiny Kandinsky 2.1's networks and pictures; `tests/golden/make_kandinsky_21.py` made it.
    pub fn kandinsky_21() -> Recording {
        Recording::open("kandinsky-2-1/run")
    }

    /// Of edits; `tests/golden/make_edits.py` made it.
    pub fn edits() -> Recording {
        Recording::open("edits")
    }

    /// A grey picture as a mask.
    pub fn mask_image(&self, name: &str) -> Mask {
        let tensors = self.tensors();
        let view = tensors.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(view.dtype(), Dtype::U8, "{name}");
        Mask { width: view.shape()[1], height: view.shape()[0], pixels: view.data().to_vec() }
    }

    /// Pictures `[N, H, W, 3]`.
    pub fn images(&self, name: &str) -> Vec<Image> {
        let tensors = self.tensors();
        let view = tensors.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        let &[_, height, width, 3] = view.shape() else { panic!("{name}: {:?}", view.shape()) };
        let image = |pixels: &[u8]| Image { width, height, pixels: pixels.to_vec() };
        view.data().chunks_exact(height * width * 3).map(image).collect()
    }

    /// Of edits with a tiny Kandinsky; `tests/golden/make_kandinsky_edits.py` made it.
    pub fn kandinsky_edits() -> Recording {
        Recording::open("kandinsky-2-2/edits")
    }

    /// Of Stable unCLIP's U-Net; `tests/golden/make_stable_unclip.py` made it.
    pub fn stable_unclip() -> Recording {
        Recording::open("stable_unclip")
    }

    /// Of every operation's gradients; `tests/golden/make_gradients.py` made it.
    pub fn gradients() -> Recording {
        Recording::open("gradients")
    }

    /// Of optimisation steps; `tests/golden/make_training.py` made it.
    pub fn training() -> Recording {
        Recording::open("training")
    }

    /// Of classification; `tests/golden/make_clip.py` made it.
    pub fn clip() -> Recording {
        Recording::open("clip")
    }

    /// Of a tiny Stable unCLIP's pictures; `tests/golden/make_stable_unclip_pictures.py` made it.
    pub fn stable_unclip_pictures() -> Recording {
        Recording::open("stable-unclip/pictures")
    }

    /// A tensor of f16 with its shape.
    pub fn halves(&self, name: &str) -> (Vec<usize>, Vec<f32>) {
        let tensors = self.tensors();
        let view = tensors.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(view.dtype(), Dtype::F16, "{name}");
        let halves: Vec<half::f16> = bytemuck::allocation::pod_collect_to_vec(view.data());
        (view.shape().to_vec(), halves.into_iter().map(half::f16::to_f32).collect())
    }

    /// A text, kept as bytes.
    pub fn text(&self, name: &str) -> Vec<u8> {
        self.tensors().tensor(name).unwrap_or_else(|e| panic!("{name}: {e}")).data().to_vec()
    }

    /// Of picture files.
    pub fn pictures() -> Recording {
        Recording::open("pictures/pictures")
    }

    fn open(name: &str) -> Recording {
        let file = format!("{}/tests/golden/{name}.safetensors", env!("CARGO_MANIFEST_DIR"));
        Recording(std::fs::read(file).unwrap())
    }

    /// Pixels as a picture.
    pub fn image(&self, name: &str) -> Image {
        let tensors = self.tensors();
        let view = tensors.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(view.dtype(), Dtype::U8, "{name}");
        Image { width: view.shape()[1], height: view.shape()[0], pixels: view.data().to_vec() }
    }

    pub fn tensors(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.0).unwrap()
    }

    /// The names of all tensors.
    pub fn names(&self) -> Vec<String> {
        self.tensors().names().into_iter().map(str::to_owned).collect()
    }

    /// Whether there is a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.tensors().tensor(name).is_ok()
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

    /// A tensor of bytes as f32.
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

/// Every tensor of a recorded run is in the trace: noise to the bit, others within `tolerance` of the tensor's largest
/// element, pictures within 2 of 255 everywhere and 0.1 on average.
pub fn assert_recorded(recording: &Recording, trace: &Trace, images: &[Image], tolerance: f32) {
    for (name, view) in recording.tensors().tensors() {
        if ["input", "preprocess/", "png/"].iter().any(|start| name.starts_with(start)) {
            continue; // what a run was given, and other tests
        }
        let (dtype, shape, bytes) = trace.tensor(&name).unwrap_or_else(|| panic!("{name} is not in the trace"));
        assert_eq!((dtype, shape), (view.dtype(), view.shape()), "{name}");
        if view.dtype() != Dtype::F32 {
            // Pixels are compared below: one may round the other way.
            assert!(name == "image/u8" || bytes == view.data(), "{name} differs");
            continue;
        }
        let (_, want) = recording.get(&name);
        let (_, got) = trace.get(&name).unwrap();
        let size = want.iter().fold(0.0f32, |size, x| size.max(x.abs()));
        let exact = ["/noise", "initial_latents", "pixel_values"].iter().any(|end| name.ends_with(end));
        for (i, (g, w)) in got.iter().zip(&want).enumerate() {
            let allowed = if exact { 0.0 } else { tolerance * size };
            assert!((g - w).abs() <= allowed, "{name}[{i}]: {g} instead of {w}, {allowed} allowed");
        }
    }
    let tensors = recording.tensors();
    let want = tensors.tensor("image/u8").unwrap().data();
    let got: Vec<u8> = images.iter().flat_map(|i| &i.pixels).copied().collect();
    assert_eq!(got.len(), want.len());
    let off: Vec<u8> = got.iter().zip(want).map(|(g, w)| g.abs_diff(*w)).collect();
    let mean = off.iter().map(|&d| f64::from(d)).sum::<f64>() / off.len() as f64;
    assert!(off.iter().all(|&d| d <= 2) && mean <= 0.1, "off by {:?}, {mean} on average", off.iter().max());
}
