//! `engine run`: prompts, or files of which to make variations, to picture files.

use super::args::RunArguments;
use super::devices::{self, Chosen};
use super::flags::{DtypeChoice, HowArguments};
use super::given;
use super::known::Known;
use super::lora;
use super::make::{self, Job, Outputs};
use super::progress::Progress;
use super::subject::{self, Subjects};
use std::path::{Path, PathBuf};
use unclip::image::Alpha;
use unclip::pipeline::{Pipeline, Prompt, Recipe, Request, Subject, Task};
use unclip::weights::Checkpoint;
use unclip::{Error, Result};

/// Makes the pictures and writes them.
///
/// # Errors
/// What the library reports, and files that cannot be written; no file is then half-written.
pub fn run(arguments: &RunArguments) -> Result<()> {
    let progress =
        Progress::new(arguments.output.saved.json, arguments.output.saved.quiet, arguments.output.saved.verbose);
    let recipes = arguments.from.as_deref().map_or(Ok(Vec::new()), Recipe::read)?;
    let checkpoint = checkpoint(arguments, &recipes)?;
    let known = Known::read(&checkpoint)?;
    let subjects = Subjects::read(arguments, &recipes, &known.examples())?;
    let hint = arguments.hint.as_deref().map(|path| given::read(path, &subject::options(arguments, None)));
    let (given, alpha) = (subjects.files.clone(), subjects.alpha);
    let inversion = arguments.how.inversion()?;
    let request = Request { hint: hint.transpose()?, inversion, ..request(arguments, &recipes, subjects) };
    request.check()?;
    let read = [("--from", &arguments.from), ("--prompts", &arguments.prompts), ("--hint", &arguments.hint)];
    let read = read.into_iter().chain([("--noise-from", &arguments.how.noise_from)]);
    let read = read.filter_map(|(flag, path)| path.as_deref().map(|path| (flag, path)));
    let inputs: Vec<(&str, &Path)> = given.iter().map(|path| ("--image", path.as_path())).chain(read).collect();
    let outputs = Outputs::prepare(&arguments.output, request.pictures(), &inputs, None)?;

    // Configurations alone are read here: what is wrong with the request is said before a device is opened for it.
    let adapters = arguments.model.adapters.open_or(arguments.from.as_deref().zip(recipes.first()))?;
    let pipeline = lora::pipeline(checkpoint, adapters)?;
    pipeline.route(&request)?;
    make::watch_interrupts()?;
    let chosen = device(arguments, &recipes, &pipeline)?;
    let remarks = strange(&known, &request).into_iter().chain(make::drawn_seed(&arguments.how)).collect();
    let recipe = |pipeline: &Pipeline, k: usize| recipe(pipeline, &request, k, &given, alpha);
    make::make(
        Job { pipeline, chosen, request: &request, recipe: &recipe, finish: &|image| image.clone(), remarks, outputs },
        &arguments.output,
        progress,
    )
}

/// The device that is named, in the precision of the recipe unless a flag says otherwise.
fn device(arguments: &RunArguments, recipes: &[Recipe], pipeline: &Pipeline) -> Result<Chosen> {
    let mut device = arguments.device.clone();
    let from = arguments.from.as_deref().zip(recipes.first()).filter(|_| device.dtype.is_none());
    device.dtype = device.dtype.or(from.map(|(_, recipe)| DtypeChoice::Of(recipe.dtype)));
    let opened = devices::open(&device, &|| make::stored(pipeline));
    opened.map_err(|error| match (error, from) {
        (Error::Request { what, reason, .. }, Some((path, recipe))) if what == "--dtype" => {
            let reason = format!("made in {}: {reason}; --dtype auto takes another type", recipe.dtype);
            Error::value("--from", path.display(), reason)
        }
        (error, _) => error,
    })
}

/// The checkpoint that is named, or the one that the recipe names.
fn checkpoint(arguments: &RunArguments, recipes: &[Recipe]) -> Result<Checkpoint> {
    let (Some(from), Some(recipe), None) = (&arguments.from, recipes.first(), &arguments.model.model) else {
        return super::checkpoint(&arguments.model);
    };
    let model = PathBuf::from(&recipe.model);
    if !recipe.model.starts_with("built-in model") && !super::hub::is_name(&model) {
        let reason = format!("made with the checkpoint {}; name its folder with --model", recipe.model);
        return Err(Error::value("--from", from.display(), reason));
    }
    let name = Some(&model).filter(|model| super::hub::is_name(model)).map(PathBuf::as_path);
    arguments.model.opening.open(name)
}

/// The subjects with the settings of `--from`, where it is given, and of the flags, which come before them.
fn request(arguments: &RunArguments, recipes: &[Recipe], subjects: Subjects) -> Request {
    let subjects_each = subjects.each;
    let request = Request::of(subjects.task);
    let base = match recipes.first() {
        Some(recipe) => recipe.apply(request),
        None => request,
    };
    let text = subjects.text.map(Prompt::Text).or(base.text);
    let base = Request { pictures_per_prompt: subjects_each, text, ..base };
    arguments.how.apply(Request { negative: arguments.negative.clone().map(Prompt::Text).or(base.negative), ..base })
}

impl HowArguments {
    /// The request with the settings that flags name.
    pub fn apply(&self, base: Request) -> Request {
        Request {
            pictures_per_prompt: self.batch.unwrap_or(base.pictures_per_prompt),
            seed: self.seed.map_or(base.seed, |seed| seed.value),
            noise: self.noise.unwrap_or(base.noise),
            noise_dtype: self.noise_dtype.unwrap_or(base.noise_dtype),
            generator: self.generator.unwrap_or(base.generator),
            prior_steps: self.prior_steps.or(base.prior_steps),
            decoder_steps: self.decoder_steps.or(base.decoder_steps),
            super_res_steps: self.super_res_steps.or(base.super_res_steps),
            prior_guidance: self.prior_guidance.or(base.prior_guidance),
            prior_strength: self.prior_strength.or(base.prior_strength),
            decoder_guidance: self.decoder_guidance.or(base.decoder_guidance),
            size: self.size.or(base.size),
            noise_level: self.noise_level.or(base.noise_level),
            sampler: self.sampler.or(base.sampler),
            ..base
        }
    }
}

/// The recipe of picture `k`, with the name of the image that it is a variation of. Where that was is nobody else's
/// business.
fn recipe(pipeline: &Pipeline, request: &Request, k: usize, given: &[PathBuf], alpha: Alpha) -> Recipe {
    let mut recipe = pipeline.recipe(request, k);
    recipe.alpha = alpha;
    if let Some(path) = given.get(k / request.pictures_per_prompt) {
        recipe.subject = Subject::Image(given::name(path));
    }
    recipe
}

/// What to say of prompts that name nothing the model knows.
pub fn strange(known: &Known, request: &Request) -> Option<String> {
    let Task::Prompts(prompts) = &request.task else { return None };
    let texts = prompts.iter().filter_map(|prompt| match prompt {
        Prompt::Text(text) => Some(text.as_str()),
        Prompt::Tokens(_) => None,
    });
    let strange: Vec<&str> = texts.filter(|text| known.is_strange(text)).collect();
    let first = strange.first()?;
    let more = if strange.len() > 1 { format!(" and {} more", strange.len() - 1) } else { String::new() };
    let count = known.0.len();
    Some(format!("{first:?}{more}: none of the {count} things that this model knows; `engine inspect` lists them"))
}
