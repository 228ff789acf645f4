//! One line on a terminal that shows how far a stage is and how long it will take.

use std::io::Write;
use std::time::{Duration, Instant};

/// Characters of the bar itself; with a stage's name and the times the line fits 80 columns.
const WIDTH: usize = 24;

/// A bar on standard error, drawn again with every step until it is dropped.
pub struct Bar {
    title: &'static str,
    done: usize,
    steps: usize,
    began: Instant,
}

impl Bar {
    /// Draws a bar at its beginning.
    pub fn new(title: &'static str, steps: usize) -> Bar {
        let bar = Bar { title, done: 0, steps, began: Instant::now() };
        bar.draw();
        bar
    }

    /// The first step begins now: the time left is that of the steps alone.
    pub fn reset_elapsed(&mut self) {
        self.began = Instant::now();
    }

    /// So many steps are done.
    pub fn set(&mut self, done: usize, steps: usize) {
        (self.done, self.steps) = (done, steps);
        self.draw();
    }

    /// Prints a line above the bar.
    pub fn print_above(&self, line: &str) {
        clear();
        eprintln!("{line}");
        self.draw();
    }

    fn draw(&self) {
        let line = line(self.title, self.done, self.steps, self.began.elapsed());
        eprint!("\r{line}");
        _ = std::io::stderr().flush();
    }
}

/// Leaves the line where it is.
impl Drop for Bar {
    fn drop(&mut self) {
        eprintln!();
    }
}

/// Spaces in place of the line, which every terminal understands.
fn clear() {
    eprint!("\r{:79}\r", "");
}

fn line(title: &str, done: usize, steps: usize, elapsed: Duration) -> String {
    let full = (WIDTH * done.min(steps)).checked_div(steps).unwrap_or(WIDTH);
    let bar = "=".repeat(full.saturating_sub(1)) + if full > 0 { ">" } else { "" };
    let left = match done {
        0 => String::new(),
        done => format!(" ({} left)", seconds(elapsed * steps.saturating_sub(done) as u32 / done as u32)),
    };
    let line = format!("{title:>22} {bar:WIDTH$} {done}/{steps} {}{left}", seconds(elapsed));
    format!("{line:79}")
}

/// `7s`, `3m 20s`, `2h 05m`.
fn seconds(time: Duration) -> String {
    let s = time.as_secs();
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m {:02}s", s / 60, s % 60),
        _ => format!("{}h {:02}m", s / 3600, s / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_is_that_of_the_steps_so_far() {
        let half = line("decoder", 5, 10, Duration::from_secs(100));
        assert_eq!(half.trim(), "decoder ===========>             5/10 1m 40s (1m 40s left)");
        assert!(line("decoder", 0, 10, Duration::ZERO).trim_end().ends_with("0/10 0s"));
        assert!(line("decoder", 10, 10, Duration::from_secs(3700)).contains("10/10 1h 01m (0s left)"));
    }

    #[test]
    fn a_line_fits_80_columns_and_covers_the_one_before() {
        for (done, steps) in [(0, 1), (7, 25), (1000, 1000)] {
            assert_eq!(line("super-resolution, last", done, steps, Duration::from_secs(86399)).len(), 79, "{done}");
        }
    }
}
