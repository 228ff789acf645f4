//! `engine run`: prompts, or files of which to make variations, to picture files.

use super::args::{DtypeChoice, RunArguments};
use super::devices::{self, Chosen};
use super::files::{self, Targets};
use super::known::Known;
use super::progress::{Progress, round};
use super::subject::Subjects;
use serde_json::json;
use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use unclip::backend::cpu::Cpu;
use unclip::image::{Alpha, Format, Image};
use unclip::pipeline::{Event, Keep, Pipeline, Prompt, Recipe, Request, Subject, Task, Trace};
use unclip::weights::{Checkpoint, LoadOptions};
use unclip::{Error, Precision, Result};

/// Set by the first Ctrl-C; the run ends after the step at hand.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Makes the pictures and writes them.
///
/// # Errors
/// What the library reports, and files that cannot be written; no file is then half-written.
pub fn run(arguments: &RunArguments) -> Result<()> {
    let mut progress = Progress::new(arguments.json, arguments.quiet, arguments.verbose);
    let recipes = arguments.from.as_deref().map_or(Ok(Vec::new()), Recipe::read)?;
    let checkpoint = checkpoint(arguments, &recipes)?;
    let known = Known::read(&checkpoint)?;
    let subjects = Subjects::read(arguments, &recipes, &known.examples())?;
    let (given, alpha) = (subjects.files.clone(), subjects.alpha);
    let request = request(arguments, &recipes, subjects);
    request.check()?;
    let formats = Formats::of(arguments)?;
    let (targets, remark) = Targets::new(arguments.output.as_deref(), request.pictures(), formats.pictures)?;
    let removed = check_outputs(arguments, &targets, &given)?;

    // Configurations alone are read here: what is wrong with the request is said before a device is opened for it.
    let model = checkpoint.name();
    let pipeline = Pipeline::open(checkpoint, Box::new(Cpu::new(1)?))?;
    pipeline.route(&request)?;
    watch_interrupts()?;
    let Chosen { backend, remark: why } = device(arguments, &recipes, &pipeline)?;
    // One run: what stays would only take memory, but what is loaded ahead has to stay until its turn.
    let keep = if backend.loads_ahead() { Keep::Weights } else { Keep::Nothing };
    let pipeline = pipeline.keep(keep, None).with_backend(backend);
    let recipes: Vec<Recipe> = (0..request.pictures()).map(|k| recipe(&pipeline, &request, k, &given, alpha)).collect();
    formats.check(&recipes)?;

    let why = why.map_or(String::new(), |why| format!("; {why}"));
    progress.note(&format!("{model} on {}{why}", recipes[0].device));
    progress.json(json!({ "event": "start", "pictures": recipes.len(), "recipe": recipes[0] }));
    let removed = (removed > 0).then(|| format!("removed what killed runs left unfinished: {removed} *.tmp"));
    for line in remark.into_iter().chain(removed).chain(strange(&known, &request)).chain(drawn_seed(arguments)) {
        progress.note(&line);
    }

    let mut trace = if arguments.trace.is_some() { Trace::on() } else { Trace::off() };
    let mut failed = None;
    let observer = &mut |event: Event<'_>| {
        if let Event::Picture { index, image } = event {
            failed = write(image, &recipes[index], &targets, formats.pictures, index, &mut progress).err();
        }
        progress.event(&event);
        let stop = failed.is_some() || INTERRUPTED.load(Ordering::Relaxed);
        if stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let images = pipeline.run_traced(&request, observer, &mut trace);
    let images = failed.map_or(images, Err)?;
    if let Some(path) = &arguments.grid {
        Recipe::write(&recipes, &Image::grid(&images)?, path, formats.grid)?;
        progress.note(&format!("all pictures on {}", path.display()));
    }
    if let Some(path) = &arguments.trace {
        trace.write(path)?;
        progress.note(&format!("{} tensors in {}", trace.names().count(), path.display()));
    }
    if let Some(protocol) = arguments.show {
        super::show::show(&images, protocol, &progress)?;
    }
    finish(progress, &images)
}

/// The device that is named, in the precision of the recipe unless a flag says otherwise.
fn device(arguments: &RunArguments, recipes: &[Recipe], pipeline: &Pipeline) -> Result<Chosen> {
    let mut device = arguments.device.clone();
    let from = arguments.from.as_deref().zip(recipes.first()).filter(|_| device.dtype.is_none());
    device.dtype = device.dtype.or(from.map(|(_, recipe)| DtypeChoice::Of(recipe.dtype)));
    let opened = devices::open(&device, &|| stored(pipeline));
    opened.map_err(|error| match (error, from) {
        (Error::Request { what, reason, .. }, Some((path, recipe))) if what == "--dtype" => {
            let reason = format!("made in {}: {reason}; --dtype auto takes another type", recipe.dtype);
            Error::value("--from", path.display(), reason)
        }
        (error, _) => error,
    })
}

/// What `--dtype auto` means on CUDA, and why.
fn stored(pipeline: &Pipeline) -> (Precision, String) {
    let precision = pipeline.stored_precision();
    let faster = if precision == Precision::F32 { ", --dtype f16 would be faster" } else { "" };
    (precision, format!("{precision} is what most of the weights are stored in{faster}"))
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
    let options = LoadOptions { mmap: !arguments.model.no_mmap, variant: arguments.model.variant.clone() };
    let name = Some(&model).filter(|model| super::hub::is_name(model)).map(PathBuf::as_path);
    super::open_with_prior(name, arguments.model.prior.as_deref(), options)
}

/// The subjects with the settings of `--from`, where it is given, and of the flags, which come before them.
fn request(arguments: &RunArguments, recipes: &[Recipe], subjects: Subjects) -> Request {
    let request = Request::of(subjects.task);
    let base = match recipes.first() {
        Some(recipe) => recipe.apply(request),
        None => request,
    };
    Request {
        negative: arguments.negative.clone().map(Prompt::Text).or(base.negative),
        pictures_per_prompt: arguments.batch.unwrap_or(subjects.each),
        seed: arguments.seed.map_or(base.seed, |seed| seed.value),
        noise: arguments.noise.unwrap_or(base.noise),
        noise_dtype: arguments.noise_dtype.unwrap_or(base.noise_dtype),
        generator: arguments.generator.unwrap_or(base.generator),
        prior_steps: arguments.prior_steps.or(base.prior_steps),
        decoder_steps: arguments.decoder_steps.or(base.decoder_steps),
        super_res_steps: arguments.super_res_steps.or(base.super_res_steps),
        prior_guidance: arguments.prior_guidance.or(base.prior_guidance),
        decoder_guidance: arguments.decoder_guidance.or(base.decoder_guidance),
        size: arguments.size.or(base.size),
        ..base
    }
}

/// The recipe of picture `k`, with the name of the image that it is a variation of. Where that was is nobody else's
/// business.
fn recipe(pipeline: &Pipeline, request: &Request, k: usize, given: &[PathBuf], alpha: Alpha) -> Recipe {
    let mut recipe = pipeline.recipe(request, k);
    recipe.alpha = alpha;
    if let Some(path) = given.get(k / request.pictures_per_prompt) {
        recipe.subject = Subject::Image(path.file_name().unwrap_or_default().to_string_lossy().into_owned());
    }
    recipe
}

/// How pictures are written, and the sheet.
struct Formats {
    pictures: Format,
    grid: Format,
}

impl Formats {
    fn of(arguments: &RunArguments) -> Result<Formats> {
        let (asked, quality) = (arguments.format, arguments.quality);
        let nameless = Path::new("");
        let pictures = files::format("--output", arguments.output.as_deref().unwrap_or(nameless), asked, quality)?;
        let grid = match &arguments.grid {
            Some(path) => files::format("--grid", path, asked, quality)?,
            None => pictures,
        };
        let is_jpeg = |format| matches!(format, Format::Jpeg { .. });
        match quality {
            Some(quality) if !is_jpeg(pictures) && !is_jpeg(grid) => {
                Err(Error::value("--quality", quality, "no picture is written as a JPEG"))
            }
            _ => Ok(Formats { pictures, grid }),
        }
    }

    /// Long work is not begun for pictures that have no room in their files.
    fn check(&self, recipes: &[Recipe]) -> Result<()> {
        let Some(first) = recipes.first() else { return Ok(()) };
        if self.pictures != Format::Png {
            for recipe in recipes {
                self.pictures.check(recipe.width, recipe.height, &Recipe::texts(std::slice::from_ref(recipe)))?;
            }
        }
        let [width, height] = Image::grid_size(recipes.len(), [first.width, first.height]);
        match self.grid {
            Format::Png => Ok(()),
            format => format.check(width, height, &Recipe::texts(recipes)),
        }
    }
}

/// Long work is not begun for files that cannot be written after it, or that would take each other's place. Gives how many
/// files of killed runs were removed.
fn check_outputs(arguments: &RunArguments, targets: &Targets, given: &[PathBuf]) -> Result<usize> {
    if *targets == Targets::Stdout {
        let refused = |reason: &str| Err(Error::value("--output", "-", reason));
        if arguments.json {
            return refused("cannot be combined with --json, which writes to standard output too");
        }
        if arguments.show.is_some() {
            return refused("cannot be combined with --show, which writes to standard output too");
        }
        if std::io::stdout().is_terminal() {
            return refused("standard output is a terminal; redirect it to a file or a program");
        }
    }
    let beside = [("--grid", &arguments.grid), ("--trace", &arguments.trace)];
    let beside = beside.into_iter().filter_map(|(flag, path)| path.as_deref().map(|path| (flag, path)));
    if let Some((flag, path)) = beside.clone().find(|(_, path)| files::is_stdout(path)) {
        return Err(Error::value(flag, path.display(), "standard output, to which --output alone can write"));
    }
    let pictures = targets.files().iter().map(|path| ("--output", path.as_path()));
    let outputs: Vec<(&str, &Path)> = pictures.chain(beside).collect();
    let read = [("--from", arguments.from.as_deref()), ("--prompts", arguments.prompts.as_deref())];
    let read = read.into_iter().filter_map(|(flag, path)| path.map(|path| (flag, path)));
    let inputs: Vec<(&str, &Path)> = given.iter().map(|path| ("--image", path.as_path())).chain(read).collect();
    files::prepare(&outputs, &inputs)
}

/// What to say of prompts that name nothing the model knows.
fn strange(known: &Known, request: &Request) -> Option<String> {
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

/// The seed, where the user has not chosen it.
fn drawn_seed(arguments: &RunArguments) -> Option<String> {
    arguments.seed.filter(|seed| seed.is_drawn).map(|seed| format!("seed {}", seed.value))
}

/// Writes picture `k` as soon as it is finished.
fn write(
    image: &Image,
    recipe: &Recipe,
    targets: &Targets,
    format: Format,
    k: usize,
    progress: &mut Progress,
) -> Result<()> {
    match targets {
        Targets::Stdout => write_stdout(image, recipe, format),
        Targets::Files(files) => write_file(image, recipe, &files[k], format, progress),
    }
}

fn write_file(image: &Image, recipe: &Recipe, path: &Path, format: Format, progress: &mut Progress) -> Result<()> {
    Recipe::write(std::slice::from_ref(recipe), image, path, format)?;
    let mut event = json!({ "event": "picture", "path": path.display().to_string(), "seed": recipe.seed });
    let key = if matches!(recipe.subject, Subject::Image(_)) { "image" } else { "prompt" };
    event[key] = recipe.subject.text().into();
    progress.json(event);
    progress.wrote(path);
    Ok(())
}

fn write_stdout(image: &Image, recipe: &Recipe, format: Format) -> Result<()> {
    let failed = |e| Error::io("standard output", "write", e);
    let mut bytes = Vec::new();
    image.encode(&mut bytes, format, &Recipe::texts(std::slice::from_ref(recipe))).map_err(failed)?;
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(&bytes).and_then(|()| stdout.flush()).map_err(failed)
}

fn finish(mut progress: Progress, images: &[Image]) -> Result<()> {
    let memory = peak_memory_bytes();
    progress.json(json!({ "event": "done", "pictures": images.len(), "peak_memory_bytes": memory }));
    let (count, size) = (images.len(), images.first().map_or([0, 0], |i| [i.width, i.height]));
    let pictures = if count == 1 { "picture" } else { "pictures" };
    progress.note(&format!("{count} {pictures} of {}x{} in {:.2} s", size[0], size[1], round(progress.elapsed())));
    if let Some(bytes) = memory {
        progress.detail(&format!("peak memory {:.0} MiB", bytes as f64 / f64::from(1 << 20)));
    }
    progress.finish()
}

/// The first Ctrl-C ends the run in good order, the second at once.
fn watch_interrupts() -> Result<()> {
    let handler = || {
        if INTERRUPTED.swap(true, Ordering::Relaxed) {
            std::process::exit(i32::from(super::exit_code(&Error::Cancelled)));
        }
    };
    ctrlc::set_handler(handler).map_err(|e| Error::Device { backend: "signals".to_owned(), reason: e.to_string() })
}

/// The most memory that this process has held, where the system tells.
fn peak_memory_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}
