//! What a run reports on its way: bars on a terminal, lines elsewhere, or JSON events.

use super::bar::Bar;
use serde_json::{Value, json};
use std::io::IsTerminal;
use std::path::Path;
use std::time::{Duration, Instant};
use unclip::pipeline::{Event, Stage};
use unclip::{Error, Result};

/// How much is reported, and to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Nothing.
    Quiet,
    /// A bar per stage with the time left.
    Bars,
    /// A line per stage.
    Lines,
    /// One JSON object a line on standard output.
    Json,
}

/// Reports the events of a run.
pub struct Progress {
    style: Style,
    verbose: bool,
    began: Instant,
    bar: Option<Bar>,
    /// Steps of the present stage.
    steps: usize,
    /// The first thing that standard output did not take. A run goes on: its pictures are worth more than its report.
    failed: Option<Error>,
}

impl Progress {
    pub fn new(json: bool, quiet: bool, verbose: bool) -> Progress {
        let style = match (json, quiet) {
            (true, _) => Style::Json,
            (_, true) => Style::Quiet,
            _ if std::io::stderr().is_terminal() => Style::Bars,
            _ => Style::Lines,
        };
        Progress { style, verbose, began: Instant::now(), bar: None, steps: 0, failed: None }
    }

    /// Takes one event of the pipeline.
    pub fn event(&mut self, event: &Event<'_>) {
        match self.style {
            Style::Json => as_json(event).into_iter().for_each(|event| self.json(event)),
            Style::Quiet => {}
            Style::Bars | Style::Lines => self.human(event),
        }
    }

    /// A line about the run as a whole, for people who asked for more than the usual.
    pub fn detail(&self, line: &str) {
        if self.verbose && self.style != Style::Json {
            self.line(line);
        }
    }

    /// A line of interest to everyone.
    pub fn note(&self, line: &str) {
        if matches!(self.style, Style::Bars | Style::Lines) {
            self.line(line);
        }
    }

    /// A picture of a folder that could not be read.
    pub fn passed_over(&self, error: &Error) {
        self.note(&format!("engine: warning: passed over: {error}"));
    }

    /// An event beyond those of the pipeline, for programs only.
    pub fn json(&mut self, mut event: Value) {
        if self.style == Style::Json {
            event["elapsed_s"] = json!(round(self.began.elapsed()));
            self.print(&format!("{event}\n"));
        }
    }

    /// A file that was written: its name on standard output for scripts.
    pub fn wrote(&mut self, path: &Path) {
        if matches!(self.style, Style::Bars | Style::Lines) {
            self.print(&format!("{}\n", path.display()));
        }
    }

    fn print(&mut self, text: &str) {
        let printed = super::print(text);
        self.failed = self.failed.take().or(printed.err());
    }

    /// The end of the report.
    ///
    /// # Errors
    /// Standard output did not take all of it.
    pub fn finish(self) -> Result<()> {
        self.failed.map_or(Ok(()), Err)
    }

    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    fn line(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.print_above(line),
            None => eprintln!("{line}"),
        }
    }

    fn human(&mut self, event: &Event<'_>) {
        match *event {
            Event::Warning(text) => self.line(&format!("engine: warning: {text}")),
            Event::Begin { stage, steps } => {
                self.steps = steps;
                if self.style == Style::Bars && steps > 0 {
                    self.bar = Some(Bar::new(stage.title(), steps));
                }
            }
            Event::Loaded { stage, elapsed } => {
                if let Some(bar) = &mut self.bar {
                    bar.reset_elapsed();
                }
                self.detail(&format!("{}: loaded in {:.2} s", stage.title(), elapsed.as_secs_f64()));
            }
            Event::Step { done, steps, .. } => {
                if let Some(bar) = &mut self.bar {
                    bar.set(done, steps);
                }
            }
            Event::End { stage, elapsed, sampling } => self.end(stage, elapsed, sampling),
            _ => {}
        }
    }

    fn end(&mut self, stage: Stage, elapsed: Duration, sampling: Duration) {
        self.bar = None;
        let steps = self.steps;
        let total = elapsed.as_secs_f64();
        if steps > 0 && (self.style == Style::Lines || self.verbose) {
            let each = sampling.as_secs_f64() / steps as f64;
            let unit = if steps == 1 { "step" } else { "steps" };
            self.line(&format!("{}: {steps} {unit} in {total:.2} s, {each:.3} s each", stage.title()));
        } else {
            self.detail(&format!("{}: {total:.2} s", stage.title()));
        }
    }
}

fn as_json(event: &Event<'_>) -> Option<Value> {
    Some(match *event {
        Event::Warning(text) => json!({ "event": "warning", "message": text }),
        Event::Begin { stage, steps } => json!({ "event": "begin", "stage": stage.name(), "steps": steps }),
        Event::Loaded { stage, elapsed } => {
            json!({ "event": "loaded", "stage": stage.name(), "stage_s": round(elapsed) })
        }
        Event::Step { stage, done, steps, .. } => {
            json!({ "event": "step", "stage": stage.name(), "done": done, "steps": steps })
        }
        Event::End { stage, elapsed, .. } => {
            json!({ "event": "end", "stage": stage.name(), "stage_s": round(elapsed) })
        }
        _ => return None,
    })
}

/// Seconds to the microsecond.
pub fn round(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e6
}
