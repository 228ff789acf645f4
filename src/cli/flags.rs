//! Groups of flags that several commands have, and what their values are.

use super::devices::{Device, DeviceParser};
use super::lora::{Lora, lora};
use super::show::Protocol;
use clap::Args;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use unclip::diffusion::Sampler;
use unclip::image::{Alpha, Format};
use unclip::noise::{Generators, NoiseDtype, NoiseKind};
use unclip::pipeline::Inversion;
use unclip::weights::{Checkpoint, LoadOptions};
use unclip::{Precision, Result};

/// Groups of flags in the help.
pub const WHAT: &str = "What";
pub const HOW: &str = "How";
pub const WHERE: &str = "Where";
pub const OUTPUT: &str = "Output";

#[derive(Debug, Args)]
pub struct ModelArguments {
    /// The checkpoint: a folder in the layout of diffusers' unCLIP pipelines, a model of the hub's cache by its name
    /// (org/name), or built-in
    #[arg(short, long, value_name = "DIR", env = "ENGINE_MODEL", help_heading = WHERE,
          required = cfg!(not(feature = "default-model")))]
    pub model: Option<PathBuf>,
    #[command(flatten)]
    pub opening: OpeningArguments,
    #[command(flatten)]
    pub adapters: AdapterArguments,
}

/// How a checkpoint's files are opened.
#[derive(Clone, Debug, Args)]
pub struct OpeningArguments {
    /// The folder of the prior, for checkpoints that have none in theirs (Kandinsky) [default: the one beside the checkpoint
    /// or in the hub's cache]
    #[arg(long, value_name = "DIR", env = "ENGINE_PRIOR", help_heading = WHERE)]
    pub prior: Option<PathBuf>,
    /// Read weights instead of mapping their files into memory
    #[arg(long, help_heading = WHERE)]
    pub no_mmap: bool,
    /// Which variant of the weight files to use, such as fp16 for *.fp16.safetensors; plain files where there is none
    #[arg(long, value_name = "NAME", help_heading = WHERE)]
    pub variant: Option<String>,
}

impl OpeningArguments {
    /// Opens a checkpoint, and with it the prior that it has in another folder.
    pub fn open(&self, model: Option<&Path>) -> Result<Checkpoint> {
        let options = LoadOptions { mmap: !self.no_mmap, variant: self.variant.clone() };
        super::open_with_prior(model, self.prior.as_deref(), options)
    }
}

/// What changes a checkpoint's weights.
#[derive(Debug, Args)]
pub struct AdapterArguments {
    /// An adapter for the checkpoint (LoRA, LoCon, LoHa, LoKr or DoRA as peft, diffusers, kohya and LyCORIS write them), and how
    /// strongly it acts; may be given several times [default scale: 1]
    #[arg(long, value_name = "FILE[:SCALE]", value_parser = lora, help_heading = WHERE)]
    pub lora: Vec<Lora>,
}

/// How pictures are made, whatever they show.
#[derive(Debug, Args)]
pub struct HowArguments {
    /// Seed of the first picture: a number, or random
    #[arg(short, long, value_name = "SEED", allow_negative_numbers = true, help_heading = HOW, value_parser = seed)]
    pub seed: Option<Seed>,
    /// Pictures for each prompt or image [default: 1]
    #[arg(short, long, value_name = "COUNT", help_heading = HOW)]
    pub batch: Option<usize>,
    /// Steps of the prior [default: the checkpoint's, or 25]
    #[arg(long, value_name = "N", help_heading = HOW)]
    pub prior_steps: Option<usize>,
    /// Steps of the decoder [default: the checkpoint's, or 25; Kandinsky 100,
    /// Stable unCLIP 20]
    #[arg(long, value_name = "N", help_heading = HOW)]
    pub decoder_steps: Option<usize>,
    /// Steps of super-resolution, the last of which is the second network's [default: the checkpoint's, or 7]
    #[arg(long, value_name = "N", help_heading = HOW)]
    pub super_res_steps: Option<usize>,
    /// Guidance scale of the prior [default: the checkpoint's, or 4]
    #[arg(long, value_name = "SCALE", allow_negative_numbers = true, help_heading = HOW)]
    pub prior_guidance: Option<f32>,
    /// Share of the prior's steps that is taken from a picture to vary with a prompt beside it, for checkpoints whose prior
    /// begins from pictures (Kandinsky 2.2): above 0, at most 1; less leaves more of the picture [default: 0.3]
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true, help_heading = HOW)]
    pub prior_strength: Option<f32>,
    /// Guidance scale of the decoder, the only one of variations; at most 1 for both turns guidance off [default: the
    /// checkpoint's, or 8; Kandinsky 4, Stable unCLIP 10]
    #[arg(long, value_name = "SCALE", allow_negative_numbers = true, help_heading = HOW)]
    pub decoder_guidance: Option<f32>,
    /// Width and height in pixels, such as 768x512, for checkpoints that leave the choice (Kandinsky: multiples of
    /// 64, Stable unCLIP: of 8) [default: 512x512 and 768x768 there]
    #[arg(long, value_name = "WxH", value_parser = size, help_heading = HOW)]
    pub size: Option<[usize; 2]>,
    /// What takes the decoder's steps, for checkpoints that leave the choice (Stable unCLIP): pndm, ddim, ddpm, euler or dpm++
    /// [default: what the checkpoint's scheduler says]
    #[arg(long, value_name = "NAME", help_heading = HOW)]
    pub sampler: Option<Sampler>,
    /// Noise that is added to the image embedding, for checkpoints whose decoder is told how much (Stable unCLIP): 0 to 999;
    /// more lets pictures vary more [default: 0]
    #[arg(long, value_name = "LEVEL", help_heading = HOW)]
    pub noise_level: Option<usize>,
    /// What turns the seed into noise: torch, the pictures of diffusers with torch's CPU generator; torch-2.11, the same up
    /// to that release; torch-cuda:CARD, with the generator of a card such as rtx-3060 or 28x1536 (multiprocessors x
    /// threads of each) [torch-cuda alone: 132x2048]; philox, drawn on the device [default: torch]
    #[arg(long, value_name = "KIND", help_heading = HOW)]
    pub noise: Option<NoiseKind>,
    /// Type in which the original pipeline ran, and drew its noise, whatever --dtype is [default: f32]
    #[arg(long, value_name = "TYPE", value_parser = noise_dtype(), help_heading = HOW)]
    pub noise_dtype: Option<NoiseDtype>,
    /// Whether the original had a generator for each picture, seeded one by one, or one for all of the run: each or one;
    /// one:3/8 makes the third picture of a run of eight, and with --batch those after it [default: each]
    #[arg(long, value_name = "WHICH", help_heading = HOW)]
    pub generator: Option<Generators>,
    /// Let the decoder begin from what `engine invert` found of a picture, and go its way without noise: what is made keeps
    /// what the picture shows
    #[arg(long, value_name = "FILE", help_heading = HOW)]
    pub noise_from: Option<PathBuf>,
}

impl HowArguments {
    /// What the decoder is to begin from instead of noise.
    ///
    /// # Errors
    /// The file cannot be read or is something else.
    pub fn inversion(&self) -> Result<Option<Arc<Inversion>>> {
        self.noise_from.as_deref().map(|path| Inversion::read(path).map(Arc::new)).transpose()
    }
}

/// Where pictures go, and what is said meanwhile.
#[derive(Debug, Args)]
pub struct SavedArguments {
    /// Picture file (.png, .jpg, .webp), - for standard output; several pictures need a name with a number (%d, %03d), which
    /// counts from 0 [default: out.png or out-%03d.png, or the next number that is free]
    #[arg(short, long, value_name = "FILE", help_heading = OUTPUT)]
    pub output: Option<PathBuf>,
    /// Format of pictures whose names do not say it [default: png]
    #[arg(long, value_name = "NAME", value_parser = named(FORMATS), help_heading = OUTPUT)]
    pub format: Option<Format>,
    /// Quality of a JPEG, 1 to 100 [default: 95]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=100), help_heading = OUTPUT)]
    pub quality: Option<u8>,
    /// Show the pictures in the terminal
    #[arg(long, value_name = "HOW", value_enum, num_args = 0..=1, require_equals = true, default_missing_value = "auto",
          conflicts_with = "json", help_heading = OUTPUT)]
    pub show: Option<Protocol>,
    /// Report in JSON, one event a line, on standard output
    #[arg(long, help_heading = OUTPUT)]
    pub json: bool,
    /// Report errors only
    #[arg(short, long, conflicts_with = "verbose", help_heading = OUTPUT)]
    pub quiet: bool,
    /// Report how long stages took and how much memory was used
    #[arg(short, long, help_heading = OUTPUT)]
    pub verbose: bool,
}

/// The same for pictures that are sampled, and what else is written of them.
#[derive(Debug, Args)]
pub struct OutputArguments {
    #[command(flatten)]
    pub saved: SavedArguments,
    /// Write all pictures on one sheet, too
    #[arg(long, value_name = "FILE", help_heading = OUTPUT)]
    pub grid: Option<PathBuf>,
    /// Write the picture as the steps so far would have it to this file, again and again while sampling; with --show the
    /// terminal has it, too
    #[arg(long, value_name = "FILE", help_heading = OUTPUT)]
    pub preview: Option<PathBuf>,
    /// Steps from one preview to the next [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = OUTPUT)]
    pub every: Option<u32>,
    /// Keep the intermediate tensors in a safetensors file, under the names of the reference recordings
    #[arg(long, value_name = "FILE", help_heading = OUTPUT)]
    pub trace: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
pub struct DeviceArguments {
    /// Where to compute; see `engine devices`
    #[arg(long, value_name = "DEVICE", default_value = "auto", value_parser = DeviceParser, env = "ENGINE_DEVICE",
          help_heading = WHERE)]
    pub device: Device,
    /// What tensors are stored in; sums and the sampler's state are f32 in any case [default: auto]
    #[arg(long, value_parser = dtype(), env = "ENGINE_DTYPE", help_heading = WHERE)]
    pub dtype: Option<DtypeChoice>,
    /// Use tensor cores through wgpu's cooperative matrices (experimental, f16 only)
    #[arg(long, help_heading = WHERE)]
    pub matrices: bool,
    /// Threads of the CPU; 0 means all that the process may use, and no more than four times as many are started
    #[arg(long, value_name = "N", default_value_t = 0, env = "ENGINE_THREADS", help_heading = WHERE)]
    pub threads: usize,
}

impl DeviceArguments {
    /// The precision that is asked for; `None` leaves it to the device.
    pub fn precision(&self) -> Option<Precision> {
        self.dtype.and_then(DtypeChoice::precision)
    }
}

/// Values of `--format`, other names for them, and what they are.
pub const FORMATS: &[Named<Format>] = &[
    (Format::Png, "png", &[], "Without loss"),
    (Format::Jpeg { quality: Format::QUALITY }, "jpeg", &["jpg"], "With loss: see --quality"),
    (Format::WebP, "webp", &[], "Without loss, as PNG"),
];

/// Values of `--alpha`.
pub const ALPHAS: &[Named<Alpha>] = &[
    (Alpha::White, "white", &[], "The picture is laid over white, as transformers does it from version 5"),
    (Alpha::Drop, "drop", &[], "Colours are taken as they are stored, as earlier versions do it"),
];

/// A value, its name, other names, and its help.
pub type Named<T> = (T, &'static str, &'static [&'static str], &'static str);

/// A value by its name.
pub fn named<T: Copy + Send + Sync + 'static>(
    values: &'static [Named<T>],
) -> impl clap::builder::TypedValueParser<Value = T> {
    use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
    let possible =
        values.iter().map(|(_, name, aliases, help)| PossibleValue::new(*name).aliases(*aliases).help(*help));
    PossibleValuesParser::new(possible).map(|name: String| {
        let is = |value: &&Named<T>| value.1 == name || value.2.contains(&name.as_str());
        values.iter().find(is).expect("one of the possible values").0
    })
}

/// What `--seed` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seed {
    pub value: u64,
    /// Whether it was drawn, and the user does not know it.
    pub is_drawn: bool,
}

/// `768x512`, or one number for both sides.
fn size(text: &str) -> Result<[usize; 2], String> {
    let sides = text.split_once(['x', 'X']).unwrap_or((text, text));
    match (sides.0.parse(), sides.1.parse()) {
        (Ok(width), Ok(height)) if width > 0 && height > 0 => Ok([width, height]),
        _ => Err("expected width and height in pixels, such as 768x512".to_owned()),
    }
}

/// A seed, drawn now if it is to be random.
pub fn seed(text: &str) -> Result<Seed, String> {
    use std::hash::{BuildHasher, RandomState};
    if text == "random" {
        // Of 32 bits, because torch's generator uses no more, and because people type it again.
        let value = RandomState::new().hash_one(std::process::id()) & u64::from(u32::MAX);
        return Ok(Seed { value, is_drawn: true });
    }
    let value = text.parse().map_err(|_| match text.starts_with('-') {
        true => format!("seeds begin at 0; expected an integer from 0 to {}, or random", u64::MAX),
        false => format!("expected an integer from 0 to {}, or random", u64::MAX),
    })?;
    Ok(Seed { value, is_drawn: false })
}

/// What `--dtype` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DtypeChoice {
    /// On CUDA the type in which most bytes of the weights are stored; on a CPU that is fast in bf16 that for large weights
    /// stored in 16 bits; otherwise f32.
    Auto,
    /// One by its name.
    Of(Precision),
}

impl DtypeChoice {
    /// The precision that is asked for; `None` leaves it to the device.
    pub fn precision(self) -> Option<Precision> {
        match self {
            DtypeChoice::Auto => None,
            DtypeChoice::Of(precision) => Some(precision),
        }
    }
}

/// A precision by its name, or `auto`.
pub fn dtype() -> impl clap::builder::TypedValueParser<Value = DtypeChoice> {
    use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
    let help = |precision| match precision {
        Precision::F32 => "Single precision",
        Precision::Tf32 => "Tensors in f32, matrix products in tf32 on tensor cores; CUDA only",
        Precision::F16 => "Half precision; GPUs only",
        Precision::Bf16 => "bfloat16; CUDA, and on the CPU for the weights of matrix products, with AMX the products",
    };
    let auto = PossibleValue::new("auto").help(
        "On CUDA the type of most of the checkpoint's weights; on fast CPUs bf16 for large ones in 16 bits; else f32",
    );
    let named = Precision::ALL.map(|p| PossibleValue::new(p.name()).help(help(p)));
    PossibleValuesParser::new(std::iter::once(auto).chain(named))
        .map(|name| Precision::ALL.into_iter().find(|p| p.name() == name).map_or(DtypeChoice::Auto, DtypeChoice::Of))
}

/// A type of draws by its name.
fn noise_dtype() -> impl clap::builder::TypedValueParser<Value = NoiseDtype> {
    use clap::builder::{PossibleValuesParser, TypedValueParser};
    PossibleValuesParser::new(NoiseDtype::ALL.map(NoiseDtype::name)).try_map(|name| name.parse::<NoiseDtype>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_numbers_or_drawn() {
        assert_eq!(seed("18446744073709551615"), Ok(Seed { value: u64::MAX, is_drawn: false }));
        assert!(
            seed("-1").unwrap_err().starts_with("seeds begin at 0; expected an integer from 0 to 18446744073709551615")
        );
        assert!(seed("1e3").unwrap_err().contains("or random"));
        let drawn: Vec<Seed> = (0..4).map(|_| seed("random").unwrap()).collect();
        assert!(drawn.iter().all(|seed| seed.is_drawn && seed.value <= u64::from(u32::MAX)));
        assert!(drawn.iter().any(|seed| *seed != drawn[0]));
    }
}
