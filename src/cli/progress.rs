//! What a run reports on its way: bars on a terminal, lines elsewhere, or JSON events.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use std::io::IsTerminal;
use std::time::{Duration, Instant};
use unclip::Result;
use unclip::pipeline::{Event, Stage};

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
    bar: Option<ProgressBar>,
    /// Steps of the present stage.
    steps: usize,
}

impl Progress {
    pub fn new(json: bool, quiet: bool, verbose: bool) -> Progress {
        let style = match (json, quiet) {
            (true, _) => Style::Json,
            (_, true) => Style::Quiet,
            _ if std::io::stderr().is_terminal() => Style::Bars,
            _ => Style::Lines,
        };
        Progress { style, verbose, began: Instant::now(), bar: None, steps: 0 }
    }

    /// Takes one event of the pipeline.
    pub fn event(&mut self, event: &Event<'_>) -> Result<()> {
        match self.style {
            Style::Json => as_json(event).map_or(Ok(()), |event| self.json(&event)),
            Style::Quiet => Ok(()),
            Style::Bars | Style::Lines => {
                self.human(event);
                Ok(())
            }
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

    /// An event beyond those of the pipeline, for programs only.
    pub fn json(&self, event: &Value) -> Result<()> {
        if self.style != Style::Json {
            return Ok(());
        }
        let mut event = event.clone();
        if let Some(fields) = event.as_object_mut() {
            fields.insert("elapsed_s".into(), json!(round(self.began.elapsed())));
        }
        super::print(&format!("{event}\n"))
    }

    pub fn is_json(&self) -> bool {
        self.style == Style::Json
    }

    pub fn is_quiet(&self) -> bool {
        self.style == Style::Quiet
    }

    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    fn line(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{line}")),
            None => eprintln!("{line}"),
        }
    }

    fn human(&mut self, event: &Event<'_>) {
        match *event {
            Event::Warning(text) => self.line(&format!("engine: warning: {text}")),
            Event::Begin { stage, steps } => {
                self.steps = steps;
                if self.style == Style::Bars && steps > 0 {
                    self.bar = Some(bar(stage, steps));
                }
            }
            Event::Loaded { stage, elapsed } => {
                if let Some(bar) = &self.bar {
                    bar.reset_elapsed(); // the time left is that of the steps alone
                }
                self.detail(&format!("{}: loaded in {:.2} s", stage.title(), elapsed.as_secs_f64()));
            }
            Event::Step { done, steps, .. } => {
                if let Some(bar) = &self.bar {
                    bar.set_length(steps as u64);
                    bar.set_position(done as u64);
                }
            }
            Event::End { stage, elapsed, sampling } => self.end(stage, elapsed, sampling),
            _ => {}
        }
    }

    fn end(&mut self, stage: Stage, elapsed: Duration, sampling: Duration) {
        if let Some(bar) = self.bar.take() {
            bar.finish();
        }
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

fn bar(stage: Stage, steps: usize) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(steps as u64), ProgressDrawTarget::stderr());
    let template = "{prefix:>22} {bar:32} {pos}/{len} {elapsed} ({eta} left)";
    bar.set_style(ProgressStyle::with_template(template).expect("a fixed template").progress_chars("=> "));
    bar.set_prefix(stage.title());
    bar.tick();
    bar
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
