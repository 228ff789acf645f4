//! `engine merge`: a checkpoint with adapters in it.

use super::flags::{AdapterArguments, OUTPUT, WHERE};
use super::make::{INTERRUPTED, watch_interrupts};
use super::progress::Progress;
use clap::Args;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use unclip::weights::{Adapters, LoadOptions};
use unclip::{Error, Result};

pub const EXAMPLES: &str = "\
Examples:
  engine merge -m karlo --lora style.safetensors:0.8 -o karlo-style
  engine merge -m karlo --lora a.safetensors --lora b.safetensors:0.5 -o both

All files are copied; of networks that an adapter changes, the weight files that were read, with the types that they are stored in. Other variants of those stay behind. The folder appears when it is complete.";

#[derive(Debug, Args)]
pub struct MergeArguments {
    /// The checkpoint: a folder, a model of the hub's cache by its name (org/name), or built-in. A prior in a folder of its own
    /// (Kandinsky) is a checkpoint by itself here
    #[arg(short, long, value_name = "DIR", env = "ENGINE_MODEL", help_heading = WHERE,
          required = cfg!(not(feature = "default-model")))]
    pub model: Option<PathBuf>,
    /// Which variant of the weight files to change
    #[arg(long, value_name = "NAME", help_heading = WHERE)]
    pub variant: Option<String>,
    #[command(flatten)]
    pub adapters: AdapterArguments,
    /// The new folder
    #[arg(short, long, value_name = "DIR", help_heading = OUTPUT)]
    pub output: PathBuf,
    /// Report errors only
    #[arg(short, long, help_heading = OUTPUT)]
    pub quiet: bool,
}

/// Writes the new checkpoint.
///
/// # Errors
/// What is wrong with checkpoint, adapters or folder; nothing is left behind then.
pub fn merge(arguments: &MergeArguments) -> Result<()> {
    let progress = Progress::new(false, arguments.quiet, false);
    let options = LoadOptions { mmap: true, variant: arguments.variant.clone() };
    let checkpoint = super::open(arguments.model.as_deref(), options)?;
    let adapters = arguments.adapters.open()?;
    if adapters.is_empty() {
        return Err(Error::request("--lora", "missing; name what to merge, such as style.safetensors:0.8"));
    }
    let adapters = Adapters::new(&checkpoint, adapters)?;
    adapters.warnings().for_each(|warning| progress.note(&format!("engine: warning: {warning}")));
    watch_interrupts()?;
    let merged = adapters.merge(&checkpoint, &arguments.output, &mut |_| {
        if INTERRUPTED.load(Ordering::Relaxed) { Err(Error::Cancelled) } else { Ok(()) }
    })?;
    merged.left_out.iter().for_each(|file| progress.note(&format!("left out, not changed by the adapters: {file}")));
    let (files, tensors) = (merged.files, merged.tensors);
    progress.note(&format!("{}: {files} files, {tensors} tensors changed", arguments.output.display()));
    Ok(())
}
