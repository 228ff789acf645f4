//! The command line `engine`: pictures from prompts or pictures, and a look at plans, checkpoints and devices.
//!
//! Results go to standard output, everything about the way there to standard error. Every failure is one line that
//! names what to put right, and an exit code by who can: see [`cli::exit_code`].

#![warn(clippy::unwrap_used)]

mod cli;
#[cfg(feature = "serve")]
mod serve;

use clap::Parser;
use cli::args::{Arguments, Command};
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    silence_vulkan_layer();
    let arguments = Arguments::parse();
    let json = arguments.wants_json();
    match dispatch(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if json {
                let event = serde_json::json!({
                    "event": "error", "message": error.to_string(), "exit_code": error.exit_code(),
                });
                // Whoever reads the events may be the one who left.
                _ = writeln!(std::io::stdout(), "{event}");
            }
            eprintln!("engine: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

/// Mesa's layer that reorders devices writes "error: XDG_RUNTIME_DIR is invalid" where there is no desktop. It is not
/// needed, except by those who choose a device with its own variables.
fn silence_vulkan_layer() {
    const OFF: &str = "NODEVICE_SELECT";
    let wanted = [OFF, "MESA_VK_DEVICE_SELECT", "DRI_PRIME"].iter().any(|name| std::env::var_os(name).is_some());
    if !wanted {
        // SAFETY: no other thread runs yet: this is the first thing that `main` does, and no library starts one before.
        #[allow(unsafe_code)]
        unsafe {
            std::env::set_var(OFF, "1");
        }
    }
}

fn dispatch(command: Command) -> Result<(), cli::Failure> {
    match command {
        Command::Run(arguments) => cli::run::run(&arguments).map_err(cli::args::by_flag)?,
        Command::Edit(arguments) => cli::edit::edit(&arguments).map_err(cli::args::by_flag)?,
        Command::Denoise(arguments) => cli::denoise::denoise(&arguments)?,
        Command::Invert(arguments) => cli::invert::invert(&arguments).map_err(cli::args::by_flag)?,
        Command::Blend(arguments) => cli::blend::blend(&arguments).map_err(cli::args::by_flag)?,
        Command::Classify(arguments) => cli::classify::classify(&arguments)?,
        Command::Enlarge(arguments) => cli::enlarge::enlarge(&arguments)?,
        Command::Embed(arguments) => cli::embed::embed(&arguments)?,
        Command::Search(arguments) => cli::search::search(&arguments)?,
        Command::Merge(arguments) => cli::merge::merge(&arguments).map_err(cli::args::by_flag)?,
        Command::Plan(arguments) => cli::plan::plan(&arguments)?,
        Command::Inspect(arguments) => cli::inspect::inspect(&arguments)?,
        Command::Bench(arguments) => cli::bench::bench(&arguments)?,
        Command::Devices(arguments) => cli::devices::list(&arguments)?,
        #[cfg(feature = "serve")]
        Command::Serve(arguments) => serve::serve(&arguments)?,
        Command::Completions { shell } => cli::print(&cli::args::completions(shell)?)?,
    }
    Ok(())
}
