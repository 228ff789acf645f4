//! Seeded Gaussian noise, the same bits on every machine.
//!
//! A picture depends on its prompt and seed alone, so noise does not come from a device's own generator. There are two
//! kinds. [`NoiseKind::Torch`] is the stream of `torch.Generator("cpu").manual_seed(seed)` in the pipeline's order of
//! draws: a seed gives the picture that diffusers gives. It is sequential. [`NoiseKind::Philox`] is counter-based: a
//! value is a function of seed, draw and index, which threads and devices can compute in any order.
//!
//! Draws of one picture, in order: the prior's first latents and one draw for each step except the last, then the same
//! for the decoder and for super-resolution. Every picture has its own [`NoiseSource`]. With Philox the sampler step's
//! kernel makes the draws of the steps itself.

mod box_muller;
mod philox;
mod torch;

pub use philox::{Philox, philox4x32_10};
pub use torch::TorchGenerator;

use serde::{Deserialize, Serialize};

/// A random number generator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum NoiseKind {
    /// torch's CPU generator.
    #[default]
    Torch,
    /// The counter-based Philox 4x32-10.
    Philox,
}

impl NoiseKind {
    /// All of them.
    pub const ALL: [NoiseKind; 2] = [NoiseKind::Torch, NoiseKind::Philox];

    /// Lower-case name, as on the command line and in a picture's settings.
    pub fn name(self) -> &'static str {
        match self {
            NoiseKind::Torch => "torch",
            NoiseKind::Philox => "philox",
        }
    }
}

/// The noise of one picture, draw after draw.
#[derive(Clone, Debug)]
pub struct NoiseSource(Generator);

#[derive(Clone, Debug)]
enum Generator {
    Torch(Box<TorchGenerator>),
    Philox { generator: Philox, draw: u64 },
}

impl NoiseSource {
    /// The stream of `seed`. torch uses the low 32 bits only.
    pub fn new(kind: NoiseKind, seed: u64) -> Self {
        NoiseSource(match kind {
            NoiseKind::Torch => Generator::Torch(Box::new(TorchGenerator::new(seed))),
            NoiseKind::Philox => Generator::Philox { generator: Philox::new(seed), draw: 0 },
        })
    }

    /// Which generator it is.
    pub fn kind(&self) -> NoiseKind {
        match &self.0 {
            Generator::Torch(_) => NoiseKind::Torch,
            Generator::Philox { .. } => NoiseKind::Philox,
        }
    }

    /// Makes the next draw: standard normal values, in the row-major order of `[C, H, W]` that diffusers has.
    pub fn fill_normal(&mut self, out: &mut [f32]) {
        match &mut self.0 {
            Generator::Torch(generator) => generator.fill_normal(out),
            Generator::Philox { generator, draw } => {
                generator.fill_normal(*draw, 0, out);
                *draw += 1;
            }
        }
    }

    /// Skips draws that a kernel makes itself, and returns the seed and the index of the first of them. `None` for
    /// torch's generator, which is sequential.
    pub fn leave(&mut self, draws: u64) -> Option<(u64, u64)> {
        match &mut self.0 {
            Generator::Torch(_) => None,
            Generator::Philox { generator, draw } => {
                let first = *draw;
                *draw += draws;
                Some((generator.seed(), first))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_is_the_next_draw_and_a_seed_starts_again() {
        for kind in [NoiseKind::Torch, NoiseKind::Philox] {
            let mut draws = [[0f32; 48]; 3];
            let mut source = NoiseSource::new(kind, 9);
            source.fill_normal(&mut draws[0]);
            source.fill_normal(&mut draws[1]);
            NoiseSource::new(kind, 9).fill_normal(&mut draws[2]);
            assert_eq!(draws[0], draws[2], "{kind:?}");
            assert_ne!(draws[0], draws[1], "{kind:?}");
        }
    }

    #[test]
    fn draws_that_are_left_out_can_be_made_from_seed_and_number() {
        let mut draws = [[0f32; 48]; 4];
        let mut source = NoiseSource::new(NoiseKind::Philox, 9);
        draws.iter_mut().for_each(|draw| source.fill_normal(draw));
        let mut source = NoiseSource::new(NoiseKind::Philox, 9);
        let mut made = [0f32; 48];
        source.fill_normal(&mut made);
        let (seed, first) = source.leave(2).expect("Philox can");
        Philox::new(seed).fill_normal(first + 1, 0, &mut made);
        assert_eq!(made, draws[2]);
        source.fill_normal(&mut made);
        assert_eq!(made, draws[3]);
        assert_eq!(NoiseSource::new(NoiseKind::Torch, 9).leave(2), None);
    }
}
