//! `engine blend`: pictures between pictures and texts.

use super::devices;
use super::flags::{DeviceArguments, HOW, HowArguments, ModelArguments, OUTPUT, OutputArguments, WHAT, named};
use super::given::{self, ReadArguments};
use super::lora;
use super::make::{self, Job, Outputs};
use super::progress::Progress;
use super::subject::given_prompts;
use clap::Args;
use std::path::{Path, PathBuf};
use unclip::Result;
use unclip::image::Image;
use unclip::pipeline::{Blend, Ingredient, Mix, Pipeline, Prompt, Request, Shift, Subject, Task};

pub const BLEND_EXAMPLES: &str = "\
Examples:
  engine blend -i cat.png -i dog.png
  engine blend -i cat.png -i dog.png --frames 9 -o f-%03d.png --gif f.gif
  engine blend -i photo.png -p \"an oil painting\" --weights 0.7,0.3
  engine blend -i cat.png --from \"a cat\" --to \"a lion\" --amount 0.4

Pictures come first and texts after them, for --weights as well. All pictures have the same noise, that of the seed, so that nothing but the mixture makes a difference.";

#[derive(Debug, Args)]
pub struct BlendArguments {
    /// A picture: PNG, JPEG, WebP, GIF, BMP, TIFF or QOI; may be given several times
    #[arg(short, long, value_name = "FILE", help_heading = WHAT)]
    pub image: Vec<PathBuf>,
    /// A text; may be given several times
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true, help_heading = WHAT)]
    pub prompt: Vec<String>,
    /// How much of each there is, in the order of pictures and texts [default: the same of each]
    #[arg(long, value_name = "W,W,..", value_delimiter = ',', allow_negative_numbers = true, help_heading = WHAT)]
    pub weights: Vec<f32>,
    /// Pictures on the way from the first to the last, or from no --amount to all of it
    #[arg(long, value_name = "N", conflicts_with = "weights", value_parser = clap::value_parser!(u16).range(2..=1000),
          help_heading = WHAT)]
    pub frames: Option<u16>,
    /// A text that the mixture is moved away from, towards --to
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, requires = "to", help_heading = WHAT)]
    pub from: Option<String>,
    /// A text that the mixture is moved to, from --from
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, requires = "from", help_heading = WHAT)]
    pub to: Option<String>,
    /// How far it is moved: from 0, not at all, to 1, where nothing but the difference is left [default: 0.4]
    #[arg(long, value_name = "SHARE", requires = "to", help_heading = WHAT)]
    pub amount: Option<f32>,
    /// How image embeddings are mixed [default: sphere; Kandinsky sum]
    #[arg(long, value_name = "HOW", value_parser = named(MIXES), help_heading = HOW)]
    pub mix: Option<Mix>,
    /// Let the noise of --frames lead from that of the seed to that of the next one, on the sphere as well
    #[arg(long, requires = "frames", help_heading = HOW)]
    pub noise_blend: bool,
    /// What the pictures should not be
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true, help_heading = WHAT)]
    pub negative: Option<String>,
    #[command(flatten)]
    pub read: ReadArguments,
    /// Write the frames as one animation, forth and back, too
    #[arg(long, value_name = "FILE", requires = "frames", help_heading = OUTPUT)]
    pub gif: Option<PathBuf>,
    #[command(flatten)]
    pub how: HowArguments,
    #[command(flatten)]
    pub model: ModelArguments,
    #[command(flatten)]
    pub device: DeviceArguments,
    #[command(flatten)]
    pub output: OutputArguments,
}

/// Values of `--mix`, and what they are.
const MIXES: &[super::flags::Named<Mix>] = &[
    (Mix::Sphere, "sphere", &["slerp"], "On the arc between them; weights are scaled to 1"),
    (Mix::Sum, "sum", &[], "Weighted and added; weights need not add up to 1"),
];

/// How far a text difference moves a mixture, unless it is said.
const AMOUNT: f32 = 0.4;

/// Makes the pictures and writes them.
///
/// # Errors
/// What the library reports, and files that cannot be read or written; no file is then half-written.
pub fn blend(arguments: &BlendArguments) -> Result<()> {
    let progress =
        Progress::new(arguments.output.saved.json, arguments.output.saved.quiet, arguments.output.saved.verbose);
    let prompts = given_prompts(&[], &arguments.prompt, arguments.negative.as_deref())?;
    let options = arguments.read.options();
    let images = arguments.image.iter().map(|path| given::read(path, &options)).collect::<Result<Vec<_>>>()?;
    let names: Vec<String> =
        arguments.image.iter().map(|path| given::name(path)).chain(prompts.iter().cloned()).collect();
    let prompts = prompts.into_iter().map(|prompt| Ingredient::Prompt(Prompt::Text(prompt)));
    let blend = mixtures(arguments, images.into_iter().map(Ingredient::Image).chain(prompts).collect());
    let base = Request {
        inversion: arguments.how.inversion()?,
        negative: arguments.negative.clone().map(Prompt::Text),
        ..Request::of(Task::Blend(Box::new(blend)))
    };
    let request = arguments.how.apply(base);
    request.check()?;
    let inputs: Vec<(&str, &Path)> = arguments.image.iter().map(|path| ("--image", path.as_path())).collect();
    let outputs = Outputs::prepare(&arguments.output, request.pictures(), &inputs, arguments.gif.as_deref())?;

    let pipeline = lora::pipeline(super::checkpoint(&arguments.model)?, arguments.model.adapters.open()?)?;
    pipeline.route(&request)?;
    make::watch_interrupts()?;
    let chosen = devices::open(&arguments.device, &|| make::stored(&pipeline))?;
    let of = names.join(" + ");
    let recipe = |pipeline: &Pipeline, k: usize| {
        let mut recipe = pipeline.recipe(&request, k);
        if let Subject::Blend(blended) = &mut recipe.subject {
            blended.of.clone_from(&of);
        }
        recipe.alpha = options.alpha;
        recipe
    };
    let remarks = make::drawn_seed(&arguments.how).into_iter().collect();
    let finish = |image: &Image| image.clone();
    let job = Job { pipeline, chosen, request: &request, recipe: &recipe, finish: &finish, remarks, outputs };
    make::make(job, &arguments.output, progress)
}

/// The mixtures that the flags ask for.
fn mixtures(arguments: &BlendArguments, things: Vec<Ingredient>) -> Blend {
    let (count, frames) = (things.len(), arguments.frames.map(usize::from));
    let amount = arguments.amount.unwrap_or(AMOUNT);
    let mut blend = match frames {
        Some(frames) => Blend::path(things, frames),
        None if arguments.weights.is_empty() => {
            let equal = 1.0 / count.max(1) as f32;
            Blend::new(things, vec![vec![equal; count]])
        }
        None => Blend::new(things, vec![arguments.weights.clone()]),
    };
    let mixtures = blend.weights.len();
    // With one thing alone, frames are steps of the move.
    let moves = |frame| if count == 1 && frames.is_some() { amount * Blend::share(frame, mixtures) } else { amount };
    blend.shift = arguments.from.clone().zip(arguments.to.clone()).map(|(from, to)| Shift {
        from: Prompt::Text(from),
        to: Prompt::Text(to),
        amounts: (0..mixtures).map(moves).collect(),
    });
    blend.noise = arguments.noise_blend.then(|| (0..mixtures).map(|frame| Blend::share(frame, mixtures)).collect());
    blend.mix = arguments.mix;
    blend
}
