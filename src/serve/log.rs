//! The log: a line on standard error for each request. It names requests by their ids, and prompts only where the user wants it.

use super::errors::ApiError;
use super::routes::Context;
use axum::http::Method;
use std::time::Duration;

/// What is written.
#[derive(Clone, Copy)]
pub struct Log {
    pub prompts: bool,
    pub quiet: bool,
}

impl Log {
    pub fn has_prompts(self) -> bool {
        self.prompts
    }

    /// Something about the server as a whole.
    pub fn note(self, line: &str) {
        if !self.quiet {
            eprintln!("engine: {line}");
        }
    }

    pub fn error(self, line: &str) {
        eprintln!("engine: error: {line}");
    }

    /// A request for pictures takes its place in the queue.
    pub fn asked(self, context: &Context, model: &str, pictures: usize, prompt: Option<&str>) {
        // Quoted, so that a prompt is one line whatever is in it.
        let prompt = prompt.filter(|_| self.prompts).map_or(String::new(), |prompt| format!(" prompt={prompt:?}"));
        self.note(&format!("request={} model={model} pictures={pictures}{prompt}", context.id));
    }

    /// A request was answered.
    pub fn answered(
        self,
        id: &str,
        method: &Method,
        route: &str,
        status: u16,
        elapsed: Duration,
        error: Option<&ApiError>,
    ) {
        // What machines ask every second is not worth a line.
        if ["/healthz", "/readyz", "/metrics"].contains(&route) {
            return;
        }
        let why = match error {
            // Messages may repeat what a request says.
            Some(error) if self.prompts => format!(" error={:?}", error.message()),
            Some(error) => format!(" error={}", error.code()),
            None => String::new(),
        };
        self.note(&format!("request={id} {method} {route} {status} {:.3}s{why}", elapsed.as_secs_f64()));
    }
}
