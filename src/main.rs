//! The command line `engine`: pictures from prompts or pictures, and a look at plans, checkpoints and devices.
//!
//! Results go to standard output, everything about the way there to standard error. Every failure is one line that
//! names what to put right, and an exit code by who can: see [`cli::exit_code`].

#![warn(clippy::unwrap_used)]

mod cli;

use clap::Parser;
use cli::args::{Arguments, Command};
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
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

fn dispatch(command: Command) -> Result<(), cli::Failure> {
    Ok(match command {
        Command::Run(arguments) => cli::run::run(&arguments)?,
        Command::Plan(arguments) => cli::plan::plan(&arguments)?,
        Command::Inspect(arguments) => cli::inspect::inspect(&arguments)?,
        Command::Bench(arguments) => cli::bench::bench(&arguments)?,
        Command::Devices => cli::devices::list()?,
        Command::Completions { shell } => cli::print(&cli::args::completions(shell))?,
    })
}
