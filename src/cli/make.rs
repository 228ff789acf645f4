//! What all commands that make pictures have in common: where the pictures go, the run, and what is said of it.

use super::devices::{Chosen, Stored};
use super::files::{self, Targets};
use super::flags::{HowArguments, OutputArguments, SavedArguments};
use super::preview::Preview;
use super::progress::{Progress, round};
use serde_json::{Value, json};
use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use unclip::backend::cpu::Cpu;
use unclip::image::{Format, Image, Texts};
use unclip::pipeline::{Event, Keep, Pipeline, Recipe, Request, Subject, Trace};
use unclip::{Error, Precision, Result};

/// Set by the first Ctrl-C; the run ends after the step at hand.
pub static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Pictures to be made.
pub struct Job<'a> {
    /// On any device.
    pub pipeline: Pipeline,
    /// The device that computes.
    pub chosen: Chosen,
    pub request: &'a Request,
    /// The recipe of a picture of the request.
    pub recipe: &'a dyn Fn(&Pipeline, usize) -> Recipe,
    /// What becomes of a picture before it is written.
    pub finish: &'a (dyn Fn(&Image) -> Image + Sync),
    /// What there is to say before the run.
    pub remarks: Vec<String>,
    pub outputs: Outputs,
}

/// Makes the pictures and writes each when it is finished.
///
/// # Errors
/// What the library reports, and files that cannot be written; no file is then half-written.
pub fn make(job: Job<'_>, output: &OutputArguments, mut progress: Progress) -> Result<()> {
    let Job { pipeline, chosen: Chosen { backend, remark: why }, request, outputs, .. } = job;
    let model = pipeline.checkpoint().name();
    // One run: what stays would only take memory, but what is loaded ahead has to stay until its turn.
    let keep = if backend.loads_ahead() { Keep::Weights } else { Keep::Nothing };
    let pipeline = pipeline.keep(keep, None).with_backend(backend);
    let pipeline = outputs.preview.every().into_iter().fold(pipeline, Pipeline::previews);
    let recipes: Vec<Recipe> = (0..request.pictures()).map(|k| (job.recipe)(&pipeline, k)).collect();
    outputs.check(&recipes)?;
    let Outputs { saved, grid, animation, preview } = outputs;
    let mut preview = preview.sized(pipeline.picture_size(request));

    let why = why.map_or(String::new(), |why| format!("; {why}"));
    progress.note(&format!("{model} on {}{why}", recipes[0].device));
    let refused = Cpu::tiles_refused().filter(|_| recipes[0].device.starts_with("cpu "));
    refused.iter().for_each(|line| progress.detail(line));
    progress.json(json!({ "event": "start", "pictures": recipes.len(), "recipe": recipes[0] }));
    saved.remarks().chain(job.remarks).for_each(|line| progress.note(&line));

    let mut trace = if output.trace.is_some() { Trace::on() } else { Trace::off() };
    let (mut failed, mut finished) = (None, Vec::with_capacity(recipes.len()));
    let observer = &mut |event: Event<'_>| {
        if let Event::Picture { index, image } = event {
            let image = (job.finish)(image);
            let recipe = std::slice::from_ref(&recipes[index]);
            failed = saved.write(index, &image, &Recipe::texts(recipe), about(&recipe[0]), &mut progress).err();
            finished.push(image);
        }
        preview.event(&event, &progress);
        progress.event(&event);
        let stop = failed.is_some() || INTERRUPTED.load(Ordering::Relaxed);
        if stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let made = pipeline.run_traced(request, observer, &mut trace);
    failed.map_or(made, Err)?;
    if let Some(path) = &output.grid {
        Recipe::write(&recipes, &Image::grid(&finished)?, path, grid)?;
        progress.note(&format!("all pictures on {}", path.display()));
    }
    if let Some(path) = &animation {
        Image::write_animation(&finished, path)?;
        progress.note(&format!("all pictures in {}", path.display()));
    }
    if let Some(path) = &output.trace {
        trace.write(path)?;
        progress.note(&format!("{} tensors in {}", trace.names().count(), path.display()));
    }
    if let Some(protocol) = output.saved.show {
        super::show::show(&finished, protocol, &progress)?;
    }
    finish(progress, &finished)
}

/// What decides what `--dtype auto` means.
pub fn stored(pipeline: &Pipeline) -> Stored {
    let precision = pipeline.stored_precision();
    let faster = if precision == Precision::F32 { ", --dtype f16 would be faster" } else { "" };
    let why = format!("{precision} is what most of the weights are stored in{faster}");
    Stored { precision, bytes: pipeline.stored_bytes().iter().map(|(_, bytes)| bytes).sum(), why }
}

/// Where pictures go.
pub struct Saved {
    targets: Targets,
    pub format: Format,
    /// About files of earlier runs.
    remark: Option<String>,
    /// How many files of killed runs were removed.
    removed: usize,
}

impl Saved {
    /// Looks at what `count` pictures are to be written to: long work is not begun for files that cannot be written after it,
    /// or that would take each other's place, that of files `beside` them, or that of the `inputs`. Paths come with their
    /// flags; `grid` is the format of a sheet.
    ///
    /// # Errors
    /// [`Error::Request`] for names and formats that do not fit, [`Error::Io`] for what cannot be written.
    pub fn prepare(
        arguments: &SavedArguments,
        count: usize,
        inputs: &[(&str, &Path)],
        beside: &[(&str, &Path)],
        grid: Option<Format>,
    ) -> Result<Saved> {
        let named = arguments.output.as_deref().unwrap_or(Path::new(""));
        let format = files::format("--output", named, arguments.format, arguments.quality)?;
        let mut formats = std::iter::once(format).chain(grid);
        if let Some(quality) = arguments.quality.filter(|_| !formats.any(|f| matches!(f, Format::Jpeg { .. }))) {
            return Err(Error::value("--quality", quality, "no picture is written as a JPEG"));
        }
        let (targets, remark) = Targets::new(arguments.output.as_deref(), count, format)?;
        if targets == Targets::Stdout {
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
        if let Some((flag, path)) = beside.iter().find(|(_, path)| files::is_stdout(path)) {
            return Err(Error::value(*flag, path.display(), "standard output, to which --output alone can write"));
        }
        let pictures = targets.files().iter().map(|path| ("--output", path.as_path()));
        let outputs: Vec<(&str, &Path)> = pictures.chain(beside.iter().copied()).collect();
        let removed = files::prepare(&outputs, inputs)?;
        Ok(Saved { targets, format, remark, removed })
    }

    /// What there is to say of the files before the work.
    pub fn remarks(&self) -> impl Iterator<Item = String> + use<> {
        let removed =
            (self.removed > 0).then(|| format!("removed what killed runs left unfinished: {} *.tmp", self.removed));
        self.remark.clone().into_iter().chain(removed)
    }

    /// Writes picture `k` with what its file carries; `event` says what it was made from.
    ///
    /// # Errors
    /// It cannot be written; the file is then as it was.
    pub fn write(
        &self,
        k: usize,
        image: &Image,
        texts: &Texts,
        mut event: Value,
        progress: &mut Progress,
    ) -> Result<()> {
        match &self.targets {
            Targets::Stdout => write_stdout(image, texts, self.format),
            Targets::Files(files) => {
                image.write(&files[k], self.format, texts)?;
                event["event"] = "picture".into();
                event["path"] = files[k].display().to_string().into();
                progress.json(event);
                progress.wrote(&files[k]);
                Ok(())
            }
        }
    }
}

/// Where the pictures of a run go, and what else is written of them.
pub struct Outputs {
    saved: Saved,
    /// The format of the sheet.
    grid: Format,
    /// All pictures as an animation.
    animation: Option<PathBuf>,
    /// What the steps so far would make.
    preview: Preview,
}

impl Outputs {
    /// As [`Saved::prepare`].
    ///
    /// # Errors
    /// As for that.
    pub fn prepare(
        arguments: &OutputArguments,
        count: usize,
        inputs: &[(&str, &Path)],
        animation: Option<&Path>,
    ) -> Result<Outputs> {
        let SavedArguments { format, quality, .. } = &arguments.saved;
        let grid = arguments.grid.as_ref().map(|path| files::format("--grid", path, *format, *quality)).transpose()?;
        let preview = Preview::of(arguments)?;
        let beside = [
            ("--grid", arguments.grid.as_deref()),
            ("--preview", arguments.preview.as_deref()),
            ("--trace", arguments.trace.as_deref()),
            ("--gif", animation),
        ];
        let beside: Vec<(&str, &Path)> = beside.into_iter().filter_map(|(flag, path)| Some((flag, path?))).collect();
        let saved = Saved::prepare(&arguments.saved, count, inputs, &beside, grid)?;
        let grid = grid.unwrap_or(saved.format);
        Ok(Outputs { saved, grid, animation: animation.map(Path::to_path_buf), preview })
    }

    /// Long work is not begun for pictures that have no room in their files.
    fn check(&self, recipes: &[Recipe]) -> Result<()> {
        let Some(first) = recipes.first() else { return Ok(()) };
        if self.saved.format != Format::Png {
            for recipe in recipes {
                self.saved.format.check(recipe.width, recipe.height, &Recipe::texts(std::slice::from_ref(recipe)))?;
            }
        }
        let [width, height] = Image::grid_size(recipes.len(), [first.width, first.height]);
        match self.grid {
            Format::Png => Ok(()),
            format => format.check(width, height, &Recipe::texts(recipes)),
        }
    }
}

/// The seed, where the user has not chosen it.
pub fn drawn_seed(arguments: &HowArguments) -> Option<String> {
    arguments.seed.filter(|seed| seed.is_drawn).map(|seed| format!("seed {}", seed.value))
}

/// What a picture was made from, for programs.
fn about(recipe: &Recipe) -> Value {
    let key = if matches!(recipe.subject, Subject::Image(_)) { "image" } else { "prompt" };
    let mut event = json!({ "seed": recipe.seed });
    event[key] = recipe.subject.text().into();
    event
}

/// Writes a picture to standard output.
fn write_stdout(image: &Image, texts: &Texts, format: Format) -> Result<()> {
    let failed = |e| Error::io("standard output", "write", e);
    let mut bytes = Vec::new();
    image.encode(&mut bytes, format, texts).map_err(failed)?;
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(&bytes).and_then(|()| stdout.flush()).map_err(failed)
}

/// The end of a run that made pictures.
pub fn finish(mut progress: Progress, images: &[Image]) -> Result<()> {
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
pub fn watch_interrupts() -> Result<()> {
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
