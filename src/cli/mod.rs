//! The parts of the command line, one file per subcommand.

pub mod args;
pub mod files;
pub mod inspect;
pub mod plan;
pub mod progress;
pub mod run;

use args::{Device, ModelArguments};
use std::io::{ErrorKind, Write};
use unclip::backend::Backend;
use unclip::backend::cpu::Cpu;
use unclip::weights::{Checkpoint, LoadOptions};
use unclip::{Error, Result};

/// Writes a text to standard output. A reader that has seen enough (`engine plan | head`) is no error.
pub fn print(text: &str) -> Result<()> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(Error::io("standard output", "write", e)),
        _ => Ok(()),
    }
}

/// Opens the checkpoint that the arguments name.
pub fn checkpoint(arguments: &ModelArguments) -> Result<Checkpoint> {
    let options = LoadOptions { mmap: !arguments.no_mmap, variant: arguments.variant.clone() };
    Checkpoint::open(&arguments.model, options)
}

/// The device that the arguments name.
pub fn backend(device: Device, threads: usize) -> Result<Box<dyn Backend>> {
    match device {
        Device::Auto | Device::Cpu => Ok(Box::new(Cpu::new(threads)?)),
    }
}
