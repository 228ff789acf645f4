//! What can be asked for on the command line.

use super::blend::{BLEND_EXAMPLES, BlendArguments};
use super::classify::ClassifyArguments;
use super::denoise::DenoiseArguments;
use super::devices::Device;
use super::edit::{EDIT_EXAMPLES, EditArguments};
use super::embed::EmbedArguments;
use super::enlarge::EnlargeArguments;
use super::flags::{
    ALPHAS, DeviceArguments, DtypeChoice, HOW, HowArguments, ModelArguments, OUTPUT, OutputArguments, WHAT, dtype,
    named,
};
use super::invert::InvertArguments;
use super::merge::MergeArguments;
use super::search::SearchArguments;
use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use std::path::PathBuf;
use unclip::image::Alpha;
use unclip::{Error, Result};

/// Text to image, and image to variations, with the unCLIP (DALL-E 2) architecture.
#[derive(Debug, Parser)]
#[command(name = "engine", version, about, arg_required_else_help = true, after_help = EXIT_CODES)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Command,
}

// Lines that are meant to be one paragraph are one line here: clap wraps them to the terminal's width.

const EXIT_CODES: &str = "\
Exit codes: 0 done, 1 failed while running, 2 usage, 3 checkpoint, 4 device, 5 input or output, 130 interrupted.";

const RUN_EXAMPLES: &str = "\
Examples:
  engine run \"a red apple\"
  engine run -p \"a lion\" -p \"a frog\" -b 4 -s 7 --grid sheet.png
  engine run --prompts list.txt -o pictures/%03d.png
  engine run --from out.png -s random
  engine run --image photo.png -b 4 -o variation-%03d.png
  engine run -m karlo \"a fox in the snow\" --decoder-steps 50 -o fox.png

Picture k of a run is made from seed + k, so each can be made again alone. Ctrl-C stops after the present step and keeps finished pictures; a second one stops at once.";

const BENCH_EXAMPLES: &str = "\
Examples:
  engine bench --device cpu --filter conv2d/decoder --filter attention
  engine bench --device cpu --filter karlo --dtype f32
  engine bench --json > before.json
  engine bench --compare before.json
  engine bench --filter decoder/karlo --dtype f16 --profile

Columns:
  time      median of at least five samples
  spread    half of the samples lie within this much of it
  GFLOP/s   operations of the definition; a multiply-add is two
  GB/s      every input read once, the output written once
  roofline  share of the nearer bound, measured first: multiply-adds, or memory
  faster    with --compare: earlier time over this one

A convolution that needs fewer multiplications than its definition may exceed the peak. `cached` stands where the bytes fit the processor's cache or come faster than memory delivers them: such a case says nothing about memory. With --compare a case counts as slower if its shortest sample is longer than the longest of the earlier run, and its median by more than 5 %.";

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make pictures from prompts, or variations of pictures
    #[command(after_help = RUN_EXAMPLES)]
    Run(Box<RunArguments>),
    /// Change a picture: a part of it, more around it, or all of it a little
    #[command(after_help = EDIT_EXAMPLES)]
    Edit(Box<EditArguments>),
    /// Take noise out of a picture
    #[command(after_help = super::denoise::EXAMPLES)]
    Denoise(Box<DenoiseArguments>),
    /// Find the noise of which the decoder makes a picture, for --noise-from of other commands
    #[command(after_help = super::invert::EXAMPLES)]
    Invert(Box<InvertArguments>),
    /// Make pictures between pictures and texts, or move one along the difference of two texts
    #[command(after_help = BLEND_EXAMPLES)]
    Blend(Box<BlendArguments>),
    /// Say which of some labels fits a picture best
    #[command(after_help = super::classify::EXAMPLES)]
    Classify(Box<ClassifyArguments>),
    /// Make a picture larger by super-resolution alone
    #[command(after_help = super::enlarge::EXAMPLES)]
    Enlarge(Box<EnlargeArguments>),
    /// Write embeddings of texts and pictures
    #[command(after_help = super::embed::EXAMPLES)]
    Embed(Box<EmbedArguments>),
    /// Rank the pictures of a folder by how well they fit a text or a picture
    #[command(after_help = super::search::EXAMPLES)]
    Search(Box<SearchArguments>),
    /// Write a checkpoint with adapters in it
    #[command(after_help = super::merge::EXAMPLES)]
    Merge(MergeArguments),
    /// Answer OpenAI's images API over HTTP, and serve a page to draw with
    #[cfg(feature = "serve")]
    #[command(after_help = crate::serve::args::EXAMPLES)]
    Serve(Box<crate::serve::args::ServeArguments>),
    /// Print what a stage computes: steps, shapes, parameters, FLOPs, bytes moved, memory
    Plan(PlanArguments),
    /// List a checkpoint's components, its defaults, and what would not load and why; or a picture's settings; or what an
    /// adapter changes
    Inspect(InspectArguments),
    /// Time operations, and sampling steps of the networks, with made-up weights
    #[command(after_help = BENCH_EXAMPLES)]
    Bench(BenchArguments),
    /// List the devices that --device can name, and which one auto takes
    Devices(DevicesArguments),
    /// Print a completion script for a shell
    #[command(after_help = "Example:\n  engine completions bash > ~/.local/share/bash-completion/completions/engine")]
    Completions {
        /// Which shell [default: that of $SHELL]
        shell: Option<Shell>,
    },
}

#[derive(Debug, Args)]
#[command(next_display_order = 1)] // PROMPT comes first
pub struct RunArguments {
    /// What the picture shows, in quotes
    #[arg(value_name = "PROMPT", help_heading = WHAT, display_order = 0)]
    pub words: Vec<String>,
    /// What a picture shows; may be given several times. Beside --image, for checkpoints that read a text there (Stable
    /// unCLIP), what is said of the variations
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true, help_heading = WHAT)]
    pub prompt: Vec<String>,
    /// File with a prompt on each line; - is standard input
    #[arg(long, value_name = "FILE", help_heading = WHAT)]
    pub prompts: Option<PathBuf>,
    /// Picture of which to make variations, in general instead of a prompt: PNG, JPEG, WebP, GIF, BMP, TIFF or QOI; may be given
    /// several times
    #[arg(short, long, value_name = "FILE", help_heading = WHAT)]
    pub image: Vec<PathBuf>,
    /// What becomes of the transparency of --image [default: white]
    #[arg(long, value_name = "HOW", value_parser = named(ALPHAS), help_heading = WHAT)]
    pub alpha: Option<Alpha>,
    /// Most pixels that --image may have, in millions
    #[arg(long, value_name = "N", default_value_t = 100, help_heading = WHAT)]
    pub max_megapixels: u32,
    /// What the picture should not be
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true, help_heading = WHAT)]
    pub negative: Option<String>,
    /// Take everything from the settings that a picture of this program carries; other flags change single settings
    #[arg(long, value_name = "FILE", help_heading = WHAT)]
    pub from: Option<PathBuf>,
    /// Picture of what is where, such as a map of depths, for checkpoints that see one (Kandinsky's controlnet)
    #[arg(long, value_name = "FILE", help_heading = WHAT)]
    pub hint: Option<PathBuf>,
    #[command(flatten)]
    pub how: HowArguments,
    #[command(flatten)]
    pub model: ModelArguments,
    #[command(flatten)]
    pub device: DeviceArguments,
    #[command(flatten)]
    pub output: OutputArguments,
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
    #[arg(long, value_parser = dtype(), default_value = "auto")]
    pub dtype: DtypeChoice,
    /// List the kernels that this device runs for each step, their tiles and grids, and why: cpu, wgpu, cuda (either with :N) or
    /// cuda-emulator. Without it, or for cpu, the steps alone; for cuda no card is needed
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<Device>,
    /// Architecture for which CUDA kernels are chosen, such as sm_80 or sm_90 [default: the card's, or sm_90]
    #[arg(long, value_name = "ARCH", value_parser = architecture)]
    pub arch: Option<(u32, u32)>,
    /// Totals only
    #[arg(long)]
    pub summary: bool,
    /// Print everything in JSON: values, steps, inputs, outputs, memory slots, cost, kernels
    #[arg(long, conflicts_with = "summary")]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct BenchArguments {
    /// Only cases whose names contain this; may be given several times. Without it, all but the largest
    #[arg(short, long, value_name = "TEXT", help_heading = WHAT)]
    pub filter: Vec<String>,
    /// List the names of the cases instead
    #[arg(long, help_heading = WHAT)]
    pub list: bool,
    #[command(flatten)]
    pub device: DeviceArguments,
    /// How long each case is timed
    #[arg(long, value_name = "SECONDS", default_value_t = 0.5, help_heading = HOW)]
    pub seconds: f64,
    /// Measure every kernel and every step of a network's plan as well
    #[arg(long, help_heading = HOW)]
    pub profile: bool,
    /// An earlier run's --json to compare with; anything slower than its noise explains ends in exit code 1
    #[arg(long, value_name = "FILE", help_heading = OUTPUT)]
    pub compare: Option<PathBuf>,
    /// Report in JSON instead of a table
    #[arg(long, help_heading = OUTPUT)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct InspectArguments {
    /// The checkpoint: a folder, a model of the hub's cache by its name (org/name), or built-in; or a picture, for the
    /// settings that it carries; or an adapter
    #[arg(value_name = "DIR", env = "ENGINE_MODEL", required = cfg!(not(feature = "default-model")))]
    pub model: Option<PathBuf>,
    /// The checkpoint that an adapter is meant for: says what of it would not apply, and why
    #[arg(short = 'm', long = "model", value_name = "DIR")]
    pub base: Option<PathBuf>,
    /// The folder of the prior, for checkpoints that have none in theirs (Kandinsky) [default: the one beside the checkpoint
    /// or in the hub's cache]
    #[arg(long, value_name = "DIR", env = "ENGINE_PRIOR")]
    pub prior: Option<PathBuf>,
    /// Which variant of the weight files to look at
    #[arg(long, value_name = "NAME")]
    pub variant: Option<String>,
    /// Report in JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct DevicesArguments {
    /// Report in JSON
    #[arg(long)]
    pub json: bool,
}

impl Arguments {
    /// Whether errors are to be reported as an event as well.
    pub fn wants_json(&self) -> bool {
        match &self.command {
            Command::Run(arguments) => arguments.output.saved.json,
            Command::Edit(arguments) => arguments.output.saved.json,
            Command::Blend(arguments) => arguments.output.saved.json,
            Command::Enlarge(arguments) => arguments.saved.json,
            Command::Denoise(arguments) => arguments.saved.json,
            Command::Invert(arguments) => arguments.json,
            _ => false,
        }
    }
}

/// What the library calls a setting, and the flag that sets it.
const FLAGS: [(&str, &str); 30] = [
    ("prompt", "--prompt"),
    ("tokens", "--prompt"),
    ("image", "--image"),
    ("weights", "--weights"),
    ("amount", "--amount"),
    ("noise blend", "--noise-blend"),
    ("hint", "--hint"),
    ("mask", "--mask"),
    ("extend", "--extend"),
    ("strength", "--strength"),
    ("resample", "--resample"),
    ("size", "--size"),
    ("inversion", "--noise-from"),
    ("edit", "--noise-from"),
    ("negative", "--negative"),
    ("pictures per prompt", "--batch"),
    ("prior steps", "--prior-steps"),
    ("decoder steps", "--decoder-steps"),
    ("super-resolution steps", "--super-res-steps"),
    ("prior guidance", "--prior-guidance"),
    ("prior strength", "--prior-strength"),
    ("decoder guidance", "--decoder-guidance"),
    ("sampler", "--sampler"),
    ("noise level", "--noise-level"),
    ("noise type", "--noise-dtype"),
    ("generator", "--generator"),
    ("output", "--output"),
    ("format", "--format"),
    ("adapters", "--lora"),
    ("adapter scale", "--lora"),
];

/// The error as someone at the command line knows it: settings of `engine run` by their flags.
pub fn by_flag(error: Error) -> Error {
    flagged(error, &FLAGS)
}

/// The error with a setting's flag in place of its name.
pub fn flagged(error: Error, flags: &[(&str, &str)]) -> Error {
    match error {
        Error::Request { what, found, reason } => {
            let flag = flags.iter().find(|(setting, _)| *setting == what);
            Error::Request { what: flag.map_or(what, |(_, flag)| (*flag).to_owned()), found, reason }
        }
        other => other,
    }
}

/// A compute capability by the name that NVIDIA's tools have for it: `sm_90`, `sm_90a`, `sm_120`.
fn architecture(name: &str) -> Result<(u32, u32), String> {
    let digits = name.strip_prefix("sm_").map(|digits| digits.strip_suffix('a').unwrap_or(digits));
    let number: Option<u32> = digits.and_then(|digits| digits.parse().ok());
    match number {
        Some(number) if number >= 80 => Ok((number / 10, number % 10)),
        _ => Err("expected sm_80 or later, such as sm_90".to_owned()),
    }
}

/// The completion script of a shell, or of the one that the user runs.
///
/// # Errors
/// No shell is named, and $SHELL is none that there is a script for.
pub fn completions(shell: Option<Shell>) -> Result<String> {
    let shell = shell.or_else(Shell::from_env);
    let shell = shell.ok_or_else(|| {
        Error::request("SHELL", "not known; name one: engine completions bash (or zsh, fish, elvish, powershell)")
    })?;
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "engine", &mut script);
    Ok(String::from_utf8_lossy(&script).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_setting_leads_to_a_flag() {
        let command = Arguments::command();
        let all: Vec<_> =
            ["run", "edit", "blend"].map(|name| command.find_subcommand(name).unwrap()).into_iter().collect();
        for (setting, flag) in FLAGS {
            let long = flag.strip_prefix("--");
            let mut flags = all.iter().flat_map(|command| command.get_arguments());
            assert!(flags.any(|argument| argument.get_long() == long), "{setting}: {flag}");
        }
        let error = by_flag(Error::value("prior steps", 1, "must be 2 to 1000"));
        assert_eq!(error.to_string(), "--prior-steps 1: must be 2 to 1000");
        assert_eq!(by_flag(Error::request("--matrices", "no")).to_string(), "--matrices: no");
    }

    #[test]
    fn texts_may_begin_with_a_hyphen() {
        let given = ["engine", "run", "-p", "-rainy street", "-n", "-blurry", "--prompt", "--"];
        let Command::Run(run) = Arguments::try_parse_from(given).unwrap().command else { panic!("a run") };
        assert_eq!(
            (&run.prompt[..], run.negative.as_deref()),
            (&["-rainy street".into(), "--".into()][..], Some("-blurry"))
        );
    }

    #[test]
    fn help_texts_leave_the_wrapping_to_clap() {
        let of_files = [
            super::super::classify::EXAMPLES,
            super::super::denoise::EXAMPLES,
            super::super::embed::EXAMPLES,
            super::super::enlarge::EXAMPLES,
            super::super::invert::EXAMPLES,
            super::super::merge::EXAMPLES,
            super::super::search::EXAMPLES,
        ];
        #[cfg(feature = "serve")]
        let of_files = of_files.into_iter().chain([crate::serve::args::EXAMPLES]);
        let own = [RUN_EXAMPLES, EDIT_EXAMPLES, BLEND_EXAMPLES, BENCH_EXAMPLES, EXIT_CODES];
        for text in own.into_iter().chain(of_files) {
            let lines: Vec<&str> = text.lines().collect();
            for pair in lines.windows(2) {
                // A line that goes on in the next one would be wrapped twice.
                assert!(pair[1].is_empty() || pair[1].starts_with("  ") || pair[0].is_empty(), "{pair:?}");
            }
            assert!(lines.iter().all(|line| !line.starts_with("  ") || line.len() < 80), "{text}");
        }
    }
}
