//! What can be asked for on the command line.

use super::devices::Device;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use std::path::PathBuf;
use unclip::Precision;
use unclip::noise::NoiseKind;

/// Text to image, and image to variations, with the unCLIP (DALL-E 2) architecture.
#[derive(Debug, Parser)]
#[command(name = "engine", version, about, arg_required_else_help = true, after_help = EXIT_CODES)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str = "\
Exit codes: 0 done, 1 failed while running, 2 usage, 3 checkpoint, 4 device, 5 input or output, 130 interrupted.";

const RUN_EXAMPLES: &str = "\
Examples:
  engine run -p \"a red apple\"
  engine run -p \"a lion\" -p \"a frog\" -b 4 -s 7 --grid sheet.png
  engine run -m karlo -p \"a fox in the snow\" -n \"blurry\" --decoder-steps 50 -o fox.png --json
  engine run -m karlo -p \"a boat\" --trace boat.safetensors
  engine run --image photo.png -b 4 -o variation-%03d.png

Picture k of a run is made from seed + k, so each can be made again alone. Ctrl-C stops after the present step and
writes nothing; a second one stops at once.";

const BENCH_EXAMPLES: &str = "\
Examples:
  engine bench --device cpu --filter conv2d/decoder --filter attention
  engine bench --device cpu --filter karlo --dtype f32
  engine bench --device cpu --json > before.json; ...; engine bench --device cpu --compare before.json

A time is the median of at least five samples; half of them lie within the spread around it. With --compare a case
counts as slower if its shortest sample is longer than the longest one of the earlier run, and its median by more than
5 %. Operations are those of the definition: a convolution that needs fewer multiplications may exceed the peak.";

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make pictures from prompts, or variations of pictures
    #[command(after_help = RUN_EXAMPLES)]
    Run(Box<RunArguments>),
    /// Print what a stage computes: steps, shapes, parameters, FLOPs, bytes moved, memory
    Plan(PlanArguments),
    /// List a checkpoint's components, and what would not load and why
    Inspect(InspectArguments),
    /// Time operations, and sampling steps of the networks, with made-up weights
    #[command(after_help = BENCH_EXAMPLES)]
    Bench(BenchArguments),
    /// List the devices that --device can name
    Devices,
    /// Print a completion script for a shell
    #[command(after_help = "Example:\n  engine completions bash > ~/.local/share/bash-completion/completions/engine")]
    Completions {
        /// Which shell
        shell: Shell,
    },
}

#[derive(Debug, Args)]
pub struct ModelArguments {
    /// Folder of the checkpoint, in the layout of diffusers' unCLIP pipelines; without it, the built-in model
    #[arg(short, long, value_name = "DIR", required = cfg!(not(feature = "default-model")))]
    pub model: Option<PathBuf>,
    /// Read weights instead of mapping their files into memory
    #[arg(long)]
    pub no_mmap: bool,
    /// Which variant of the weight files to use, such as fp16 for *.fp16.safetensors
    #[arg(long, value_name = "NAME")]
    pub variant: Option<String>,
}

#[derive(Debug, Args)]
pub struct RunArguments {
    #[command(flatten)]
    pub model: ModelArguments,
    /// What the picture shows; may be given several times
    #[arg(short, long, value_name = "TEXT", required_unless_present = "image")]
    pub prompt: Vec<String>,
    /// PNG file of which to make variations, instead of a prompt; may be given several times
    #[arg(short, long, value_name = "FILE")]
    pub image: Vec<PathBuf>,
    /// What the picture should not be
    #[arg(short, long, value_name = "TEXT")]
    pub negative: Option<String>,
    /// Seed of the first picture
    #[arg(short, long, default_value_t = 0)]
    pub seed: u64,
    /// Pictures for each prompt or image
    #[arg(short, long, value_name = "COUNT", default_value_t = 1)]
    pub batch: usize,
    /// PNG file; for several pictures a name with a number in it, from 000 [default: out.png or out-%03d.png]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Write all pictures on one sheet, too
    #[arg(long, value_name = "FILE")]
    pub grid: Option<PathBuf>,
    /// Show the pictures in the terminal, in the best way it has (sixel, kitty, iTerm, or half blocks)
    #[cfg(feature = "show")]
    #[arg(long)]
    pub show: bool,
    /// Steps of the prior [default: the checkpoint's, or 25]
    #[arg(long, value_name = "N")]
    pub prior_steps: Option<usize>,
    /// Steps of the decoder [default: the checkpoint's, or 25]
    #[arg(long, value_name = "N")]
    pub decoder_steps: Option<usize>,
    /// Steps of super-resolution, the last of which is the second network's [default: the checkpoint's, or 7]
    #[arg(long, value_name = "N")]
    pub super_res_steps: Option<usize>,
    /// Guidance scale of the prior [default: the checkpoint's, or 4]
    #[arg(long, value_name = "SCALE", allow_negative_numbers = true)]
    pub prior_guidance: Option<f32>,
    /// Guidance scale of the decoder [default: the checkpoint's, or 8]; at most 1 for both turns guidance off;
    /// variations have this one only
    #[arg(long, value_name = "SCALE", allow_negative_numbers = true)]
    pub decoder_guidance: Option<f32>,
    /// What turns the seed into noise: torch gives the pictures of diffusers, philox is drawn on the device
    #[arg(long, value_enum, default_value_t = Noise::Torch)]
    pub noise: Noise,
    #[command(flatten)]
    pub device: DeviceArguments,
    /// StorageRule the intermediate tensors, under the names of the reference recordings
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Report in JSON, one event a line, on standard output
    #[arg(long)]
    pub json: bool,
    /// Report errors only
    #[arg(short, long, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Report how long stages took and how much memory was used
    #[arg(short, long)]
    pub verbose: bool,
}

#[derive(Debug, Args)]
pub struct DeviceArguments {
    /// Where to compute: auto, cpu, wgpu, cuda (either with :N for the Nth), cuda-emulator; see `engine devices`
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: Device,
    /// What tensors are stored in; sums and the sampler's state are f32 in any case
    #[arg(long, value_parser = precision(), default_value = "f32")]
    pub dtype: Precision,
    /// Let wgpu multiply cooperative matrices, where the adapter has them; experimental, and for --dtype f16 only
    #[arg(long)]
    pub matrices: bool,
    /// Threads of the CPU; 0 means all that the process may use
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub threads: usize,
}

#[derive(Debug, Args)]
pub struct PlanArguments {
    #[command(flatten)]
    pub model: ModelArguments,
    /// Which stage
    #[arg(long, value_name = "NAME")]
    pub stage: String,
    /// Pictures made together
    #[arg(short, long, value_name = "COUNT", default_value_t = 1)]
    pub batch: usize,
    /// Plan without guidance: half as many rows
    #[arg(long)]
    pub unguided: bool,
    /// What tensors are stored in
    #[arg(long, value_parser = precision(), default_value = "f32")]
    pub dtype: Precision,
    /// Totals only
    #[arg(long)]
    pub summary: bool,
}

#[derive(Debug, Args)]
pub struct BenchArguments {
    /// Only cases whose names contain this; may be given several times. Without it, all but the largest
    #[arg(short, long, value_name = "TEXT")]
    pub filter: Vec<String>,
    /// List the names of the cases instead
    #[arg(long)]
    pub list: bool,
    #[command(flatten)]
    pub device: DeviceArguments,
    /// How long each case is timed
    #[arg(long, value_name = "SECONDS", default_value_t = 0.5)]
    pub seconds: f64,
    /// An earlier run's --json to compare with; anything slower than its noise explains ends in exit code 1
    #[arg(long, value_name = "FILE")]
    pub compare: Option<PathBuf>,
    /// Report in JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct InspectArguments {
    /// Folder of the checkpoint; without it, the built-in model
    #[arg(value_name = "DIR", required = cfg!(not(feature = "default-model")))]
    pub model: Option<PathBuf>,
    /// Which variant of the weight files to look at
    #[arg(long, value_name = "NAME")]
    pub variant: Option<String>,
    /// Report in JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Noise {
    /// As torch.Generator("cpu")
    Torch,
    /// Counter-based Philox 4x32-10
    Philox,
}

impl From<Noise> for NoiseKind {
    fn from(noise: Noise) -> NoiseKind {
        match noise {
            Noise::Torch => NoiseKind::Torch,
            Noise::Philox => NoiseKind::Philox,
        }
    }
}

impl Arguments {
    /// Whether errors are to be reported as an event as well.
    pub fn wants_json(&self) -> bool {
        matches!(&self.command, Command::Run(arguments) if arguments.json)
    }
}

/// A precision by its name.
fn precision() -> impl clap::builder::TypedValueParser<Value = Precision> {
    use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
    let help = |precision| match precision {
        Precision::F32 => "Single precision",
        Precision::Tf32 => "Tensors in f32, matrix products in tf32 on tensor cores; CUDA only",
        Precision::F16 => "Half precision; GPUs only",
        Precision::Bf16 => "bfloat16; CUDA, and on the CPU for the weights of matrix products",
    };
    PossibleValuesParser::new(Precision::ALL.map(|p| PossibleValue::new(p.name()).help(help(p))))
        .map(|name| Precision::ALL.into_iter().find(|p| p.name() == name).expect("one of the possible values"))
}

/// The completion script of a shell.
pub fn completions(shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "engine", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
