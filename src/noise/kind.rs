//! The settings that say which noise: the generator, the type of its draws, and whom it serves. Each is a short string on
//! the command line and in a picture's settings.

use super::Card;
use super::parse::{Refused, as_text, number};
use half::{bf16, f16};
use std::fmt;
use std::str::FromStr;

/// A random number generator: whose draws a seed stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum NoiseKind {
    /// `torch`: torch's CPU generator, in releases from 2.13 on.
    #[default]
    Torch,
    /// `torch-2.11`: torch's CPU generator, in releases up to 2.11. Draws in f16 and bf16 differ, those in f32 do not.
    Torch211,
    /// `torch-cuda:28x1536`: torch's CUDA generator on such a card.
    TorchCuda(Card),
    /// `philox`: this crate's own counter-based Philox 4x32-10, with draws in f32 and a generator for each picture.
    Philox,
}

impl fmt::Display for NoiseKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NoiseKind::Torch => f.write_str("torch"),
            NoiseKind::Torch211 => f.write_str("torch-2.11"),
            NoiseKind::TorchCuda(card) => write!(f, "torch-cuda:{card}"),
            NoiseKind::Philox => f.write_str("philox"),
        }
    }
}

impl FromStr for NoiseKind {
    type Err = Refused;

    /// What [`Display`](fmt::Display) writes; `torch-cuda` alone is an H200, and a card may be given by its name.
    fn from_str(text: &str) -> Result<NoiseKind, Refused> {
        match text {
            "torch" => Ok(NoiseKind::Torch),
            "torch-2.11" => Ok(NoiseKind::Torch211),
            "torch-cuda" => Ok(NoiseKind::TorchCuda(Card::default())),
            "philox" => Ok(NoiseKind::Philox),
            _ => match text.strip_prefix("torch-cuda:") {
                Some(card) => card.parse().map(NoiseKind::TorchCuda),
                None => Err(Refused(format!(
                    "noise {text:?}: expected torch, torch-2.11, torch-cuda, torch-cuda:CARD or philox"
                ))),
            },
        }
    }
}

/// The type of a draw: that in which the original pipeline ran. The values are then widened to f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum NoiseDtype {
    /// Single precision.
    #[default]
    F32,
    /// Half precision.
    F16,
    /// bfloat16.
    Bf16,
}

impl NoiseDtype {
    /// All of them.
    pub const ALL: [NoiseDtype; 3] = [NoiseDtype::F32, NoiseDtype::F16, NoiseDtype::Bf16];

    /// Lower-case name, as on the command line and in a picture's settings.
    pub fn name(self) -> &'static str {
        match self {
            NoiseDtype::F32 => "f32",
            NoiseDtype::F16 => "f16",
            NoiseDtype::Bf16 => "bf16",
        }
    }

    /// The nearest value of the type, halfway cases to even.
    #[inline(always)]
    pub fn round(self, x: f32) -> f32 {
        match self {
            NoiseDtype::F32 => x,
            NoiseDtype::F16 => f16::from_f32(x).to_f32(),
            NoiseDtype::Bf16 => bf16::from_f32(x).to_f32(),
        }
    }

    /// Rounds every element.
    pub(super) fn round_all(self, out: &mut [f32]) {
        if self != NoiseDtype::F32 {
            out.iter_mut().for_each(|x| *x = self.round(*x));
        }
    }
}

impl fmt::Display for NoiseDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for NoiseDtype {
    type Err = Refused;

    fn from_str(text: &str) -> Result<NoiseDtype, Refused> {
        let found = NoiseDtype::ALL.into_iter().find(|dtype| dtype.name() == text);
        found.ok_or_else(|| Refused(format!("noise type {text:?}: expected f32, f16 or bf16")))
    }
}

/// Whom a generator serves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Generators {
    /// `each`: picture `k` draws from a generator of its own, seeded with `seed + k`, as with a list of generators.
    #[default]
    Each,
    /// `one`: one generator for the whole run; every draw is of all its pictures, `[B, ...]`.
    One,
    /// `one:3/8`: as `one` in a run of 8 pictures of which this request makes the third and those after it. Pictures that
    /// came from one generator can so be made again, each alone.
    Part {
        /// Number of the request's first picture in that run, from 0.
        first: usize,
        /// Pictures of that run.
        of: usize,
    },
}

impl fmt::Display for Generators {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Generators::Each => f.write_str("each"),
            Generators::One => f.write_str("one"),
            Generators::Part { first, of } => write!(f, "one:{}/{of}", first + 1),
        }
    }
}

impl FromStr for Generators {
    type Err = Refused;

    fn from_str(text: &str) -> Result<Generators, Refused> {
        let part = || {
            let (place, of) = text.strip_prefix("one:")?.split_once('/')?;
            let (place, of): (u32, u32) = (number(place)?, number(of)?);
            (1 <= place && place <= of).then(|| Generators::Part { first: place as usize - 1, of: of as usize })
        };
        match text {
            "each" => Ok(Generators::Each),
            "one" => Ok(Generators::One),
            _ => part().ok_or_else(|| {
                Refused(format!("generator {text:?}: expected each, one, or one:3/8 for the third picture of eight"))
            }),
        }
    }
}

as_text!(NoiseKind, NoiseDtype, Generators);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_as_they_are_written() {
        for text in ["torch", "torch-2.11", "torch-cuda:132x2048", "torch-cuda:20x1024", "philox"] {
            assert_eq!(text.parse::<NoiseKind>().unwrap().to_string(), text);
            assert_eq!(serde_json::to_string(&text.parse::<NoiseKind>().unwrap()).unwrap(), format!("{text:?}"));
        }
        assert_eq!("torch-cuda".parse::<NoiseKind>().unwrap().to_string(), "torch-cuda:132x2048");
        assert_eq!("torch-cuda:RTX-3060".parse::<NoiseKind>().unwrap().to_string(), "torch-cuda:28x1536");
        for dtype in NoiseDtype::ALL {
            assert_eq!(dtype.to_string().parse(), Ok(dtype));
        }
        for text in ["each", "one", "one:1/1", "one:3/8", "one:8/8"] {
            assert_eq!(text.parse::<Generators>().unwrap().to_string(), text);
            assert_eq!(serde_json::from_str::<Generators>(&format!("{text:?}")).unwrap(), text.parse().unwrap());
        }
    }

    #[test]
    fn other_settings_are_refused_with_what_is_expected() {
        for text in ["", "Torch", "torch-2.12", "torch-cuda:", "cuda", "torch-cuda 20x1024"] {
            let error = text.parse::<NoiseKind>().unwrap_err().to_string();
            assert!(error.contains("expected"), "{text}: {error}");
        }
        assert!("f64".parse::<NoiseDtype>().unwrap_err().to_string().contains("f32, f16 or bf16"));
        for text in ["", "two", "one:", "one:0/4", "one:5/4", "one:1", "one:-1/4", "one:1/99999999999999999999"] {
            let error = text.parse::<Generators>().unwrap_err().to_string();
            assert!(error.contains("expected each, one"), "{text}: {error}");
        }
        assert!(serde_json::from_str::<NoiseKind>("\"rain\"").unwrap_err().to_string().contains("expected torch"));
    }
}
