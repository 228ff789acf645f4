//! One sampling step of each network, at the sizes of the tests' tiny checkpoint, the default model and Karlo; of Stable
//! unCLIP's U-Net and Kandinsky 2.2's decoder at their own; and MoVQ, which has no steps, as a whole.
//!
//! No checkpoint is needed: the configurations are part of the program, and [`Drawn`] makes random weights, with which
//! speed and memory are those of trained ones.

use super::{Random, missing};
use crate::backend::{Backend, Executable};
use crate::dtype::{Dtype, StoredDtype};
use crate::error::{Error, Result};
use crate::model::{Sizes, autoencoder, decoder, kandinsky, prior, stable_unclip, super_res, unet};
use crate::ops::{COEFFICIENTS, Multistep, Noise, Prediction, Rule, SamplerStep, Variance, elements};
use crate::plan::{Origin, Plan, TensorData, WeightSource};
use crate::weights::config::{self, Configured, Schema};
use half::{bf16, f16};
use rayon::prelude::*;
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// Steps of the sampling loop that a plan's tables have room for.
const STEPS: usize = 25;

/// Which network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// Text embedding to image embedding.
    Prior,
    /// Image embedding to small picture.
    Decoder,
    /// Small picture to large one.
    SuperRes,
    /// Image embedding and text to latents, at [`Size::StableUnclip`] alone.
    Unet,
    /// Latents to picture, at [`Size::Pixels768`] alone.
    Movq,
}

impl Network {
    /// Those of Karlo's kind, in the order in which a picture passes through them.
    pub const ALL: [Network; 3] = [Network::Prior, Network::Decoder, Network::SuperRes];

    /// The stem of the network's file.
    pub fn name(self) -> &'static str {
        match self {
            Network::Prior => "prior",
            Network::Decoder => "decoder",
            Network::SuperRes => "super_res",
            Network::Unet => "unet",
            Network::Movq => "movq",
        }
    }
}

/// The sizes of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// The tests' checkpoint: 16 and 64 pixels.
    Tiny,
    /// The built-in model: 32 and 128 pixels.
    Default,
    /// `karlo-v1-alpha`: 64 and 256 pixels.
    Karlo,
    /// `stable-diffusion-2-1-unclip`: latents of 96x96, 768 pixels.
    StableUnclip,
    /// `kandinsky-2-2-decoder`: latents of 64x64, 512 pixels.
    Kandinsky22,
    /// The same checkpoint's autoencoder: latents of 96x96, 768 pixels.
    Pixels768,
}

impl Size {
    /// Those of Karlo's kind, in growing order.
    pub const ALL: [Size; 3] = [Size::Tiny, Size::Default, Size::Karlo];

    /// How it is named in a case.
    pub fn name(self) -> &'static str {
        match self {
            Size::Tiny => "tiny",
            Size::Default => "default",
            Size::Karlo => "karlo",
            Size::StableUnclip => "stable-unclip",
            Size::Kandinsky22 => "kandinsky-2-2",
            Size::Pixels768 => "768",
        }
    }
}

/// A network at one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelCase {
    /// Which network.
    pub network: Network,
    /// Which size.
    pub size: Size,
}

/// All networks in all sizes.
pub fn all() -> Vec<ModelCase> {
    let of_karlos_kind = Size::ALL.into_iter().flat_map(|size| Network::ALL.map(|network| ModelCase { network, size }));
    let of_latents = [
        ModelCase { network: Network::Unet, size: Size::StableUnclip },
        ModelCase { network: Network::Decoder, size: Size::Kandinsky22 },
        ModelCase { network: Network::Movq, size: Size::Pixels768 },
    ];
    of_karlos_kind.chain(of_latents).collect()
}

impl ModelCase {
    /// Whether it needs a fast device.
    pub fn heavy(&self) -> bool {
        !matches!(self.size, Size::Tiny | Size::Default)
    }

    /// `decoder/karlo`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.network.name(), self.size.name())
    }

    /// The plan of a run for this many pictures, with guidance in prior and decoder.
    ///
    /// # Errors
    /// A weight's shape is not the one that the network expects.
    pub fn plan(&self, pictures: usize, weights: &dyn WeightSource) -> Result<Plan> {
        let run = Sizes { pictures, steps: STEPS, rule: self.rule() };
        let unet = |component| self.config::<unet::Config>(component);
        match self.network {
            Network::Prior => prior::plan(&*self.config("prior")?, weights, &run),
            Network::Decoder if self.size == Size::Kandinsky22 => {
                kandinsky::plan(&unet("unet")?, weights, &run, None, [KANDINSKY_SIDE; 2])
            }
            Network::Decoder => {
                let text = self.config::<prior::Config>("prior")?.num_embeddings;
                decoder::plan(&unet("decoder")?, weights, &run, text + EXTRA_TOKENS)
            }
            Network::SuperRes => {
                let small = unet("decoder")?.sample_size.unwrap_or(0);
                let config = unet("super_res_first")?;
                super_res::plan("super_res_first", &config, weights, &run, [small; 2], [config.sample_size; 2])
            }
            Network::Unet => {
                let config = unet("unet")?;
                stable_unclip::plan(&config, weights, &run, TEXT_TOKENS, [config.sample_size.unwrap_or(0); 2])
            }
            Network::Movq => {
                let plan = autoencoder::decoder(&self.config("movq")?, weights, pictures, [MOVQ_SIDE; 2])?;
                // All of it is the step that is timed.
                Ok(Plan { once: 0, ..plan })
            }
        }
    }

    /// Compiled with random weights of the given storage type, all inputs written and the once part run: ready for
    /// `run_step`.
    ///
    /// # Errors
    /// The back end cannot do it.
    pub fn prepare(&self, pictures: usize, stored: Dtype, backend: &dyn Backend) -> Result<Box<dyn Executable>> {
        let weights = Drawn::new(stored);
        let mut executable = backend.prepare(self.plan(pictures, &weights)?, &weights)?;
        fill(executable.as_mut())?;
        executable.run_once()?;
        Ok(executable)
    }

    fn rule(&self) -> Rule {
        let (prediction, variance, clip, guided) = match self.network {
            Network::Decoder if self.size == Size::Kandinsky22 => (Prediction::Epsilon, Variance::Fixed, 1.0, true),
            Network::Prior => (Prediction::Sample, Variance::Fixed, 5.0, true),
            Network::Decoder => (Prediction::Epsilon, Variance::LearnedRange, 1.0, true),
            Network::SuperRes => (Prediction::Epsilon, Variance::Fixed, 1.0, false),
            Network::Unet | Network::Movq => return Rule::Multistep(Multistep { guided: true }),
        };
        SamplerStep { prediction, variance, clip: Some(clip), guided, noise: Noise::Given }.into()
    }

    /// A component's configuration.
    fn config<C: Schema>(&self, component: &str) -> Result<Configured<C>> {
        let text = match (self.size, component) {
            (Size::Tiny, "prior") => include_str!("../../tests/golden/tiny/prior/config.json"),
            (Size::Tiny, "decoder") => include_str!("../../tests/golden/tiny/decoder/config.json"),
            (Size::Tiny, _) => include_str!("../../tests/golden/tiny/super_res_first/config.json"),
            (Size::Default, "prior") => include_str!("../../models/default/prior/config.json"),
            (Size::Default, "decoder") => include_str!("../../models/default/decoder/config.json"),
            (Size::Default, _) => include_str!("../../models/default/super_res_first/config.json"),
            (Size::Karlo, "prior") => include_str!("karlo/prior.json"),
            (Size::Karlo, "decoder") => include_str!("karlo/decoder.json"),
            (Size::Karlo, _) => include_str!("karlo/super_res_first.json"),
            (Size::StableUnclip, _) => include_str!("stable_unclip/unet.json"),
            (Size::Kandinsky22, _) => include_str!("kandinsky_22/unet.json"),
            (Size::Pixels768, _) => include_str!("kandinsky_22/movq.json"),
        };
        config::read(&Path::new(self.size.name()).join(component).join("config.json"), text.as_bytes())
    }
}

/// Image tokens before the text tokens of the decoder's context, in all three sizes.
const EXTRA_TOKENS: usize = 4;
/// Tokens of a text that Stable unCLIP's U-Net sees.
const TEXT_TOKENS: usize = 77;
/// Sides of latents: of pictures of 512 and 768 pixels.
const KANDINSKY_SIDE: usize = 64;
const MOVQ_SIDE: usize = 96;

/// Writes every input of a plan: distinct bounded values, a mask of ones, and coefficients of a step in the middle of a
/// schedule.
///
/// # Errors
/// The device failed.
pub fn fill(executable: &mut dyn Executable) -> Result<()> {
    const ROW: [f32; COEFFICIENTS] = [0.6, 0.8, 0.25, 0.7, 0.3, -3.912, -4.343, 1.0, 4.0];
    let values = executable.plan().values.clone();
    for value in &values {
        let Origin::Input { name, .. } = &value.origin else { continue };
        let element = |i: usize| match name.as_str() {
            "mask" => 1.0,
            "coefficients" => ROW[i % ROW.len()],
            _ => (i as f32 * 0.618_034).fract() * 2.0 - 1.0,
        };
        // Integers are the step's index, which the executable counts.
        if value.dtype != Dtype::U32 {
            executable.write(name, &(0..elements(&value.shape)).map(element).collect::<Vec<f32>>())?;
        }
    }
    Ok(())
}

/// Random weights for any network, a function of the tensor's name: matmuls keep values near one, scales are about one,
/// biases about zero.
pub struct Drawn {
    stored: Dtype,
    asked: Mutex<HashMap<String, Vec<usize>>>,
}

impl Drawn {
    /// Weights of this type.
    pub fn new(stored: Dtype) -> Drawn {
        Drawn { stored, asked: Mutex::default() }
    }
}

impl WeightSource for Drawn {
    /// A tensor that a network has asked for.
    fn find(&self, tensor: &str) -> Option<(StoredDtype, Vec<usize>)> {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.get(tensor).map(|shape| (self.stored.into(), shape.clone()))
    }

    /// Makes up any tensor when it is asked for first, and holds later ones to its shape.
    fn require(&self, tensor: &str, shape: &[usize]) -> Result<()> {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let known = asked.entry(tensor.to_owned()).or_insert_with(|| shape.to_vec());
        if known == shape {
            return Ok(());
        }
        Err(Error::Weights {
            path: self.path(tensor).to_path_buf(),
            tensor: tensor.to_owned(),
            expected: format!("shape {shape:?}"),
            found: format!("shape {known:?}"),
        })
    }

    fn load(&self, tensor: &str) -> Result<TensorData<'_>> {
        let (_, shape) = self.find(tensor).ok_or_else(|| missing(tensor))?;
        let length = elements(&shape);
        let (mean, deviation) = match shape.len() {
            0 | 1 if tensor.ends_with(".weight") => (1.0, 0.1),
            0 | 1 => (0.0, 0.1),
            _ => (0.0, 1.0 / (length as f32 / shape[0] as f32).sqrt()),
        };
        let seed = Random::named(tensor).0;
        // The sum of four uniform values is close enough to normal, and fast: Karlo's decoder has a billion weights.
        let scale = deviation * 3f32.sqrt() / f32::from(u16::MAX);
        let element = |i: usize| {
            let bits = Random::at(seed, i as u64).bits();
            let sum = (0..4).map(|i| (bits >> (16 * i)) & 0xffff).sum::<u64>();
            mean + (sum as f32 - 2.0 * f32::from(u16::MAX)) * scale
        };
        Ok(match self.stored {
            Dtype::F16 => TensorData::F16(drawn(length, element, f16::from_f32).into()),
            Dtype::Bf16 => TensorData::Bf16(drawn(length, element, bf16::from_f32).into()),
            _ => TensorData::F32(drawn(length, element, |x| x).into()),
        })
    }

    fn path(&self, _: &str) -> &Path {
        Path::new("memory")
    }
}

/// Elements in their stored type, drawn by all threads.
fn drawn<T: Send>(length: usize, element: impl Fn(usize) -> f32 + Sync, narrow: impl Fn(f32) -> T + Sync) -> Vec<T> {
    (0..length).into_par_iter().with_min_len(1 << 14).map(|i| narrow(element(i))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_the_parameters_that_their_checkpoints_have() {
        let parameters = |network, size| {
            let plan = ModelCase { network, size }.plan(1, &Drawn::new(Dtype::F32)).unwrap();
            plan.parameters()
        };
        // As the published files have them.
        let karlo = Network::ALL.map(|network| parameters(network, Size::Karlo));
        assert_eq!(karlo, [1_022_030_080, 885_439_686, 691_579_523]);
        assert_eq!(parameters(Network::Unet, Size::StableUnclip), 870_173_124);
        assert_eq!(parameters(Network::Decoder, Size::Kandinsky22), 1_253_057_288);
        // The decoder, and the convolution in front of it with 20.
        assert_eq!(parameters(Network::Movq, Size::Pixels768), 40_369_155 + 20);
        // Two bytes each, and a header of a few kilobytes.
        for (network, bytes) in Network::ALL.into_iter().zip([2_184_456, 15_359_500, 1_018_638]) {
            let header = bytes - 2 * parameters(network, Size::Default);
            assert!((1_000..100_000).contains(&header), "{network:?}: {header}");
        }
    }

    #[test]
    fn drawn_weights_have_the_deviation_that_keeps_matmuls_near_one() {
        let drawn = Drawn::new(Dtype::F32);
        drawn.require("a.weight", &[256, 64, 3, 3]).unwrap();
        let x = drawn.load("a.weight").unwrap().to_f32();
        let moment = |power| x.iter().map(|v| f64::from(*v).powi(power)).sum::<f64>() / x.len() as f64;
        assert!(moment(1).abs() < 1e-3, "{}", moment(1));
        assert!((moment(2) * 576.0 - 1.0).abs() < 0.02, "{}", moment(2) * 576.0);
        assert!(drawn.load("b.weight").is_err());
        // Whichever thread draws an element, it is the same.
        let mut random = Random::named("a.weight");
        let sums = (0..x.len()).map(|_| (0..4).fold(random.bits(), |bits, _| bits.rotate_right(16)));
        let sums = sums.map(|bits| (0..4).map(|i| (bits >> (16 * i)) & 0xffff).sum::<u64>());
        let scale = 3f32.sqrt() / (576f32).sqrt() / 65535.0;
        assert!(sums.zip(&x).all(|(sum, v)| ((sum as f32 - 131_070.0) * scale - v).abs() < 1e-6));
    }
}
