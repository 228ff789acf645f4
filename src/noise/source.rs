//! The noise of one picture.

use super::torch_cuda::CudaDraws;
use super::{NoiseDtype, NoiseKind, Philox, TorchCudaGenerator, TorchGenerator, TorchRelease};

/// The noise of one picture, draw after draw.
///
/// The generator is the picture's own, or that of a run of several pictures, of whose draws this picture takes its share.
/// In either case the source goes its way alone: how many pictures are computed together does not show.
#[derive(Clone, Debug)]
pub struct NoiseSource {
    kind: NoiseKind,
    dtype: NoiseDtype,
    generator: Generator,
    /// Place among the pictures that a draw is for.
    place: u64,
    /// How many those are.
    of: u64,
}

#[derive(Clone, Debug)]
enum Generator {
    Torch(Box<TorchGenerator>),
    TorchCuda(TorchCudaGenerator),
    Philox {
        generator: Philox,
        draw: u64,
    },
    /// Every draw lies between those of two sources.
    Between(Box<[NoiseSource; 2]>, f32),
}

impl NoiseSource {
    /// The stream of `seed` for one picture, in f32. torch's CPU generator uses the low 32 bits only.
    pub fn new(kind: NoiseKind, seed: u64) -> Self {
        let torch = |release| Generator::Torch(Box::new(TorchGenerator::of(release, seed)));
        let generator = match kind {
            NoiseKind::Torch => torch(TorchRelease::From213),
            NoiseKind::Torch211 => torch(TorchRelease::UpTo211),
            NoiseKind::TorchCuda(card) => Generator::TorchCuda(TorchCudaGenerator::new(card, seed)),
            NoiseKind::Philox => Generator::Philox { generator: Philox::new(seed), draw: 0 },
        };
        NoiseSource { kind, dtype: NoiseDtype::F32, generator, place: 0, of: 1 }
    }

    /// The same with draws in another type.
    pub fn in_type(self, dtype: NoiseDtype) -> Self {
        NoiseSource { dtype, ..self }
    }

    /// The share of picture `place`, from 0, where the generator serves `of` pictures: every draw is `[of, ...]`.
    ///
    /// # Panics
    /// There is no such picture.
    pub fn share(self, place: u64, of: u64) -> Self {
        assert!(place < of, "picture {place} of {of}");
        NoiseSource { place, of, ..self }
    }

    /// The shares of two pictures in the place of each: every draw is for twice as many, the second ones behind all first.
    pub fn halves(self) -> [Self; 2] {
        let (place, of) = (self.place, self.of);
        [self.clone().share(place, 2 * of), self.share(of + place, 2 * of)]
    }

    /// The first of two [halves](NoiseSource::halves) with its draws for one picture in each place again.
    pub fn whole(self) -> Self {
        let (place, of) = (self.place, self.of / 2);
        self.share(place, of)
    }

    /// Draws between those of two sources, see [`slerp`]: at 0 the first one's, at 1 the second one's.
    pub fn between(sources: [NoiseSource; 2], share: f32) -> Self {
        let first = &sources[0];
        NoiseSource {
            kind: first.kind,
            dtype: first.dtype,
            place: 0,
            of: 1,
            generator: Generator::Between(Box::new(sources), share),
        }
    }

    /// Which generator it is.
    pub fn kind(&self) -> NoiseKind {
        self.kind
    }

    /// The type in which draws are made.
    pub fn dtype(&self) -> NoiseDtype {
        self.dtype
    }

    /// Whether kernels can make the draws: those of a counter-based generator. Philox's kernels know f32 and a generator for
    /// each picture alone.
    pub fn is_for_kernels(&self) -> bool {
        match self.kind {
            _ if matches!(self.generator, Generator::Between(..)) => false,
            NoiseKind::Torch | NoiseKind::Torch211 => false,
            NoiseKind::TorchCuda(_) => true,
            NoiseKind::Philox => self.dtype == NoiseDtype::F32 && self.of == 1,
        }
    }

    /// Makes the next draw: standard normal values, in the row-major order of `[C, H, W]` that diffusers has.
    pub fn fill_normal(&mut self, out: &mut [f32]) {
        let share = out.len() as u64;
        let (total, first) = (self.of * share, self.place * share);
        match &mut self.generator {
            Generator::Torch(generator) => generator.fill_part(self.dtype, total as usize, first as usize, out),
            Generator::TorchCuda(generator) => {
                generator.leave(1, total, first).fill(0, out);
                self.dtype.round_all(out);
            }
            Generator::Philox { generator, draw } => {
                generator.fill_normal(*draw, first, out);
                self.dtype.round_all(out);
                *draw += 1;
            }
            Generator::Between(sources, share) => {
                let [first, second] = &mut **sources;
                let mut other = vec![0.0; out.len()];
                first.fill_normal(out);
                second.fill_normal(&mut other);
                out.copy_from_slice(&slerp(out, &other, *share));
            }
        }
    }

    /// Makes the next draw where all pictures that the generator serves have one together.
    pub fn fill_shared(&mut self, out: &mut [f32]) {
        let (place, of) = (self.place, self.of);
        (self.place, self.of) = (0, 1);
        self.fill_normal(out);
        (self.place, self.of) = (place, of);
    }

    /// Passes over draws of so many elements each that kernels make themselves, and returns what those need; `None`, and
    /// nothing is passed over, where [kernels cannot](NoiseSource::is_for_kernels).
    pub fn leave(&mut self, draws: u64, elements: usize) -> Option<Seeds> {
        if !self.is_for_kernels() {
            return None;
        }
        let share = elements as u64;
        match &mut self.generator {
            Generator::Torch(_) | Generator::Between(..) => None,
            Generator::TorchCuda(generator) => {
                let draws = generator.leave(draws, self.of * share, self.place * share);
                Some(Seeds(Draws::TorchCuda(draws, self.dtype)))
            }
            Generator::Philox { generator, draw } => {
                let first = *draw;
                *draw += draws;
                Some(Seeds(Draws::Philox { seed: generator.seed(), draw: first }))
            }
        }
    }
}

/// The vector at `share` of the way from one to another along the arc between them; between vectors of nearly one direction,
/// or of opposite ones, along the line. At 0 and at 1 it is the one or the other to the bit.
///
/// # Formula
/// `sin((1 - t) theta) / sin(theta) a + sin(t theta) / sin(theta) b`, where `theta` is the angle between `a` and `b`
///
/// # Source
/// Shoemake 1985, section 3.3.
pub fn slerp(a: &[f32], b: &[f32], share: f32) -> Vec<f32> {
    let dot = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    let lengths = (dot(a, a) * dot(b, b)).sqrt();
    let cosine = if lengths > 0.0 { (dot(a, b) / lengths).clamp(-1.0, 1.0) } else { 1.0 };
    let (theta, t) = (cosine.acos(), f64::from(share));
    let [of_a, of_b] = match share {
        0.0 => return a.to_vec(),
        1.0 => return b.to_vec(),
        _ if theta.sin() < 1e-6 => [1.0 - t, t],
        _ => [((1.0 - t) * theta).sin() / theta.sin(), (t * theta).sin() / theta.sin()],
    };
    a.iter().zip(b).map(|(a, b)| (of_a * f64::from(*a) + of_b * f64::from(*b)) as f32).collect()
}

/// What a kernel needs to make a picture's draws: a row of the sampler step's `seeds`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seeds(Draws);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Draws {
    Philox { seed: u64, draw: u64 },
    TorchCuda(CudaDraws, NoiseDtype),
}

impl Seeds {
    /// Words of a row for [`Philox`].
    pub const PHILOX_WORDS: usize = 4;
    /// Words of a row for [`TorchCudaGenerator`].
    pub const TORCH_CUDA_WORDS: usize = 8;

    /// The row. 64 bits are two words, the low one first.
    ///
    /// * Philox: the seed, the number of the first draw.
    /// * torch's CUDA generator: the seed, the counter of the first draw, the counters that a draw uses, `T`, and element 0
    ///   of the picture as its thread and the number of elements that this thread makes before it.
    pub fn words(&self) -> Vec<u32> {
        let halves = |wide: u64| [wide as u32, (wide >> 32) as u32];
        match self.0 {
            Draws::Philox { seed, draw } => [halves(seed), halves(draw)].concat(),
            Draws::TorchCuda(CudaDraws { seed, counter, counters, threads, first }, _) => {
                let place = [first % u64::from(threads), first / u64::from(threads)].map(|n| n as u32);
                [halves(seed), halves(counter), [counters, threads], place].concat()
            }
        }
    }

    /// What a row of [`Seeds::PHILOX_WORDS`] words says.
    pub fn of_philox(words: &[u32]) -> Seeds {
        Seeds(Draws::Philox { seed: wide(words[0], words[1]), draw: wide(words[2], words[3]) })
    }

    /// What a row of [`Seeds::TORCH_CUDA_WORDS`] words says, for draws in a type.
    pub fn of_torch_cuda(words: &[u32], dtype: NoiseDtype) -> Seeds {
        let (counters, threads) = (words[4], words[5]);
        let first = u64::from(words[6]) + u64::from(threads) * u64::from(words[7]);
        let (seed, counter) = (wide(words[0], words[1]), wide(words[2], words[3]));
        Seeds(Draws::TorchCuda(CudaDraws { seed, counter, counters, threads, first }, dtype))
    }

    /// The same where step `step` counts as number 0.
    pub fn from_step(&self, step: u64) -> Seeds {
        Seeds(match self.0 {
            Draws::Philox { seed, draw } => Draws::Philox { seed, draw: draw.wrapping_add(step) },
            Draws::TorchCuda(draws, dtype) => {
                let counter = draws.counter.wrapping_add(step.wrapping_mul(u64::from(draws.counters)));
                Draws::TorchCuda(CudaDraws { counter, ..draws }, dtype)
            }
        })
    }

    /// Writes elements `from .. from + out.len()` of the draw of step `step`.
    pub fn fill_normal(&self, step: u64, from: u64, out: &mut [f32]) {
        match self.from_step(step).0 {
            Draws::Philox { seed, draw } => Philox::new(seed).fill_normal(draw, from, out),
            Draws::TorchCuda(draws, dtype) => {
                draws.fill(from, out);
                dtype.round_all(out);
            }
        }
    }
}

fn wide(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_between_two_seeds_begins_at_one_ends_at_the_other_and_stays_as_long() {
        let draw = |mut source: NoiseSource| {
            let mut out = vec![0.0; 4096];
            source.fill_normal(&mut out); // and the second draw
            source.fill_normal(&mut out);
            out
        };
        let [a, b] = [1, 2].map(|seed| NoiseSource::new(NoiseKind::Torch, seed));
        let between = |share| draw(NoiseSource::between([a.clone(), b.clone()], share));
        assert_eq!((between(0.0), between(1.0)), (draw(a.clone()), draw(b.clone())));
        let variance = between(0.5).iter().map(|x| x * x).sum::<f32>() / 4096.0;
        // A line between them would have half of it.
        assert!((variance - 1.0).abs() < 0.1, "{variance}");
        assert!(!NoiseSource::between([a.clone(), b.clone()], 0.5).is_for_kernels());
    }

    fn kinds() -> [NoiseKind; 5] {
        ["torch", "torch-2.11", "torch-cuda", "torch-cuda:1x256", "philox"].map(|kind| kind.parse().unwrap())
    }

    #[test]
    fn every_call_is_the_next_draw_and_a_seed_starts_again() {
        for kind in kinds() {
            for dtype in NoiseDtype::ALL {
                let mut draws = [[0f32; 48]; 3];
                let mut source = NoiseSource::new(kind, 9).in_type(dtype);
                source.fill_normal(&mut draws[0]);
                source.fill_normal(&mut draws[1]);
                NoiseSource::new(kind, 9).in_type(dtype).fill_normal(&mut draws[2]);
                assert_eq!(draws[0], draws[2], "{kind:?}");
                assert_ne!(draws[0], draws[1], "{kind:?}");
            }
        }
    }

    #[test]
    fn shares_of_one_generator_are_the_parts_of_its_draws() {
        for kind in kinds() {
            for dtype in NoiseDtype::ALL {
                let mut whole = NoiseSource::new(kind, 5).in_type(dtype);
                let mut shares = [0, 1, 2].map(|place| NoiseSource::new(kind, 5).in_type(dtype).share(place, 3));
                for size in [768, 5, 75, 147, 1] {
                    let mut want = vec![0.0; 3 * size];
                    whole.fill_normal(&mut want);
                    for (share, want) in shares.iter_mut().zip(want.chunks_exact(size)) {
                        let mut got = vec![0.0; size];
                        share.fill_normal(&mut got);
                        assert_eq!(got, want, "{kind} {dtype} {size}");
                    }
                }
            }
        }
    }

    #[test]
    fn draws_that_are_left_out_can_be_made_from_their_seeds() {
        for (kind, dtype) in [
            (NoiseKind::Philox, NoiseDtype::F32),
            (NoiseKind::TorchCuda("1x256".parse().unwrap()), NoiseDtype::F32),
            (NoiseKind::TorchCuda("1x256".parse().unwrap()), NoiseDtype::F16),
            (NoiseKind::TorchCuda(Default::default()), NoiseDtype::Bf16),
        ] {
            let of = if kind == NoiseKind::Philox { 1 } else { 3 };
            let source = || NoiseSource::new(kind, (3 << 40) + 9).in_type(dtype).share(of - 1, of);
            let mut draws = [[0f32; 700]; 4];
            let mut drawn = source();
            draws.iter_mut().for_each(|draw| drawn.fill_normal(draw));
            let (mut left, mut made) = (source(), [0f32; 700]);
            left.fill_normal(&mut made);
            let seeds = left.leave(2, 700).expect("kernels can");
            let read = match kind {
                NoiseKind::Philox => Seeds::of_philox(&seeds.words()),
                _ => Seeds::of_torch_cuda(&seeds.words(), dtype),
            };
            assert_eq!(read, seeds);
            seeds.fill_normal(1, 0, &mut made);
            assert_eq!(made, draws[2], "{kind} {dtype}");
            seeds.fill_normal(1, 600, &mut made[..100]);
            assert_eq!(made[..100], draws[2][600..], "{kind} {dtype}");
            left.fill_normal(&mut made);
            assert_eq!(made, draws[3], "{kind} {dtype}");
        }
        for source in [
            NoiseSource::new(NoiseKind::Torch, 9),
            NoiseSource::new(NoiseKind::Torch211, 9).in_type(NoiseDtype::F16),
            NoiseSource::new(NoiseKind::Philox, 9).in_type(NoiseDtype::F16),
            NoiseSource::new(NoiseKind::Philox, 9).share(0, 2),
        ] {
            assert_eq!(source.clone().leave(2, 48), None, "{source:?}");
        }
    }
}
