//! The parts of the command line, one file per subcommand.

mod adapter;
pub mod args;
pub mod bar;
pub mod bench;
pub mod blend;
mod cache;
pub mod classify;
pub mod denoise;
pub mod devices;
pub mod edit;
pub mod embed;
pub mod enlarge;
pub mod files;
pub mod flags;
pub mod given;
pub mod hub;
pub mod inspect;
pub mod invert;
pub mod known;
pub mod lora;
pub mod make;
pub mod merge;
mod opened;
pub mod picture;
pub mod plan;
mod preview;
mod prior;
pub mod profile;
pub mod progress;
pub mod run;
pub mod search;
pub mod show;
pub mod subject;

use flags::ModelArguments;
use std::fmt;
use std::io::{ErrorKind, Write};
use std::path::Path;
use unclip::weights::{Checkpoint, LoadOptions};
use unclip::{Error, Result};

/// Why a command ends with another exit code than 0.
#[derive(Debug)]
pub enum Failure {
    /// It could not do what was asked.
    Engine(Error),
    /// A benchmark became slower: which, and by how much.
    Slower(String),
}

impl Failure {
    /// See [`exit_code`].
    pub fn exit_code(&self) -> u8 {
        match self {
            Failure::Engine(error) => exit_code(error),
            Failure::Slower(_) => 1,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Engine(error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Engine(error) => error.fmt(f),
            Failure::Slower(what) => write!(f, "slower: {what}"),
        }
    }
}

/// The exit code for an error: 1 run time, 2 usage, 3 checkpoint, 4 device, 5 input and output, 130 interrupted.
pub fn exit_code(error: &Error) -> u8 {
    match error {
        Error::Request { .. } => 2,
        Error::Config { .. }
        | Error::WeightFile { .. }
        | Error::Weights { .. }
        | Error::Shape { .. }
        | Error::Changed { .. }
        | Error::Unsupported { .. } => 3,
        Error::Device { .. } | Error::OutOfMemory { .. } => 4,
        Error::Io { .. } => 5,
        Error::Cancelled => 130,
        _ => 1,
    }
}

/// Writes a text to standard output. A reader that has seen enough (`engine plan | head`) is no error.
pub fn print(text: &str) -> Result<()> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(Error::io("standard output", "write", e)),
        _ => Ok(()),
    }
}

/// Opens the checkpoint that the arguments name.
pub fn checkpoint(arguments: &ModelArguments) -> Result<Checkpoint> {
    arguments.opening.open(arguments.model.as_deref())
}

/// Opens a checkpoint, and with it the prior that it has in another folder; see [`open`] and [`prior::add`].
pub fn open_with_prior(model: Option<&Path>, prior: Option<&Path>, options: LoadOptions) -> Result<Checkpoint> {
    prior::add(open(model, options.clone())?, prior, options)
}

/// Opens a folder, a model of the hub's cache by its name, or the built-in model where none is named.
pub fn open(model: Option<&Path>, options: LoadOptions) -> Result<Checkpoint> {
    let Some(model) = model.filter(|model| *model != Path::new("built-in")) else { return built_in(&options) };
    if model.exists() || !hub::is_name(model) {
        return Checkpoint::open(model, options).map_err(|error| match error {
            Error::Config { path, reason } if path == model && !model.exists() && cfg!(feature = "default-model") => {
                Error::Config { path, reason: reason + "; without --model and ENGINE_MODEL the built-in model is used" }
            }
            error => error,
        });
    }
    let cache = hub::cache(|name| std::env::var_os(name));
    match cache.as_deref().map_or(Ok(None), |cache| hub::find(cache, model))? {
        Some(folder) => Checkpoint::open(folder, options),
        None => {
            let name = model.display();
            let place =
                cache.map_or_else(|| "hub's cache".to_owned(), |folder| format!("hub's cache {}", folder.display()));
            let fetch = format!("hf download {name} --exclude '*.bin'");
            Err(Error::config(model, format!("no such folder, and not in the {place}; `{fetch}` would fetch it")))
        }
    }
}

#[cfg(feature = "default-model")]
fn built_in(options: &LoadOptions) -> Result<Checkpoint> {
    match &options.variant {
        Some(variant) => Err(Error::value("--variant", variant, "the built-in model has no variants")),
        None => unclip::weights::default_model(),
    }
}

#[cfg(not(feature = "default-model"))]
fn built_in(_: &LoadOptions) -> Result<Checkpoint> {
    Err(Error::request("--model", "missing; this engine was built without a default model"))
}
