//! `engine run`: prompts, or files of which to make variations, to picture files.

use super::args::RunArguments;
use super::devices::{self, Chosen};
use super::files::{self, Origin, Recipe};
use super::progress::{Progress, round};
use serde_json::json;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use unclip::image::Image;
use unclip::output::check_writable;
use unclip::pipeline::{Keep, Pipeline, Prompt, Request, Task, Trace};
use unclip::{Error, Result};

/// Set by the first Ctrl-C; the run ends after the step at hand.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Makes the pictures and writes them.
///
/// # Errors
/// What the library reports, and files that cannot be written; no file is then half-written.
pub fn run(arguments: &RunArguments) -> Result<()> {
    let mut progress = Progress::new(arguments.json, arguments.quiet, arguments.verbose);
    let request = request(arguments)?;
    request.check()?;
    let targets = files::names(arguments.output.as_ref(), request.pictures())?;
    // Long work is not begun for files that cannot be written after it.
    for path in targets.iter().chain(&arguments.grid).chain(&arguments.trace) {
        check_writable(path)?;
        if arguments.image.iter().any(|image| same_file(image, path)) {
            let reason = format!("{} is the image that was given; write elsewhere with -o", path.display());
            return Err(Error::request("output", reason));
        }
    }
    watch_interrupts()?;

    let checkpoint = super::checkpoint(&arguments.model)?;
    let model = model_name(checkpoint.path());
    let Chosen { backend, remark } = devices::open(&arguments.device)?;
    let device = backend.name();
    if let Some(remark) = remark {
        progress.note(&remark);
    }
    match &arguments.model.model {
        Some(folder) => progress.detail(&format!("model {}, {device}", folder.display())),
        None => progress.note(&format!("the built-in model, {device}; -m DIR takes another")),
    }
    // One run: what stays would only take memory.
    let pipeline = Pipeline::open(checkpoint, backend)?.keep(Keep::Nothing, None);
    let settings = request.settings(pipeline.defaults());

    let mut trace = if arguments.trace.is_some() { Trace::on() } else { Trace::off() };
    let mut failed = None;
    let images = pipeline.run_traced(
        &request,
        &mut |event| {
            failed = progress.event(&event).err();
            if failed.is_some() || INTERRUPTED.load(Ordering::Relaxed) {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        },
        &mut trace,
    );
    let images = match (images, failed) {
        (_, Some(error)) => return Err(error),
        (images, None) => images?,
    };

    for (k, (image, path)) in images.iter().zip(&targets).enumerate() {
        let recipe = Recipe {
            arguments,
            settings: &settings,
            origin: Origin::of(arguments, k),
            seed: arguments.seed.wrapping_add(k as u64),
            size: [image.width, image.height],
            device: &device,
            model: &model,
        };
        let chunks = recipe.chunks();
        image.write_png(path, &chunks.each_ref().map(|(keyword, text)| (*keyword, text.as_str())))?;
        let mut event = json!({ "event": "picture", "path": path, "seed": recipe.seed });
        event[recipe.origin.key()] = recipe.origin.text().into();
        progress.json(&event)?;
        if !progress.is_json() && !progress.is_quiet() {
            super::print(&format!("{}\n", path.display()))?;
        }
    }
    if let Some(path) = &arguments.grid {
        let origins: Vec<Origin> =
            (0..images.len()).step_by(arguments.batch).map(|k| Origin::of(arguments, k)).collect();
        let texts: Vec<&str> = origins.iter().map(Origin::text).collect();
        Image::grid(&images)?.write_png(path, &[(origins[0].key(), &texts.join("\n"))])?;
        progress.note(&format!("all pictures on {}", path.display()));
    }
    if let Some(path) = &arguments.trace {
        trace.write(path)?;
        progress.note(&format!("{} tensors in {}", trace.names().count(), path.display()));
    }
    #[cfg(feature = "show")]
    if arguments.show {
        super::show::show(&images, &progress)?;
    }
    finish(&progress, &images)
}

fn request(arguments: &RunArguments) -> Result<Request> {
    let task = if arguments.image.is_empty() {
        Task::Prompts(arguments.prompt.iter().map(|text| Prompt::Text(text.clone())).collect())
    } else if !arguments.prompt.is_empty() {
        return Err(Error::request("prompt", "not with an image; its variations have neither prompt nor prior"));
    } else {
        Task::Variations(arguments.image.iter().map(Image::read_png).collect::<Result<_>>()?)
    };
    Ok(Request {
        task,
        negative: arguments.negative.clone().map(Prompt::Text),
        pictures_per_prompt: arguments.batch,
        seed: arguments.seed,
        noise: arguments.noise.into(),
        prior_steps: arguments.prior_steps,
        decoder_steps: arguments.decoder_steps,
        super_res_steps: arguments.super_res_steps,
        prior_guidance: arguments.prior_guidance,
        decoder_guidance: arguments.decoder_guidance,
    })
}

/// Whether two paths lead to one file that is there.
fn same_file(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

fn finish(progress: &Progress, images: &[Image]) -> Result<()> {
    let memory = peak_memory_bytes();
    progress.json(&json!({ "event": "done", "pictures": images.len(), "peak_memory_bytes": memory }))?;
    let (count, size) = (images.len(), images.first().map_or([0, 0], |i| [i.width, i.height]));
    let pictures = if count == 1 { "picture" } else { "pictures" };
    progress.note(&format!("{count} {pictures} of {}x{} in {:.2} s", size[0], size[1], round(progress.elapsed())));
    if let Some(bytes) = memory {
        progress.detail(&format!("peak memory {:.0} MiB", bytes as f64 / f64::from(1 << 20)));
    }
    Ok(())
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

/// A checkpoint's name: that of its folder.
fn model_name(path: &Path) -> String {
    let real = path.canonicalize();
    let real = real.as_deref().unwrap_or(path);
    real.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}

/// The most memory that this process has held, where the system tells.
fn peak_memory_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}
