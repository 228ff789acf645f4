//! What a machine asks: is it alive, is it ready, what has it done, and how is it spoken to.

use crate::serve::answer::json_answer;
use crate::serve::errors::ApiError;
use crate::serve::{Server, metrics};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// The page, with nothing outside of it.
const PAGE: &str = include_str!("../page.html");
/// What the page may do: speak to this server.
const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src blob: data:; \
                      connect-src 'self'; form-action 'none'; frame-ancestors 'none'; base-uri 'none'";
/// The description of all requests.
const OPENAPI: &str = include_str!("../openapi.json");

/// `GET /healthz`: the process answers.
pub fn alive() -> Response {
    json_answer(&json!({ "status": "ok" }))
}

/// `GET /readyz`: models are loaded and requests taken.
pub fn ready(server: &Server) -> Result<Response, ApiError> {
    server.check_ready()?;
    Ok(json_answer(&json!({ "status": "ready" })))
}

/// `GET /metrics`.
pub fn metrics(server: &Server) -> Response {
    let text = server.metrics.text(server.queue.depth());
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response()
}

/// `GET /openapi.json`.
pub fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI).into_response()
}

/// `GET /`: a page to make pictures with.
pub fn page() -> Response {
    let headers = [(header::CONTENT_TYPE, "text/html; charset=utf-8"), (header::CONTENT_SECURITY_POLICY, POLICY)];
    (headers, PAGE).into_response()
}

/// `GET /files/NAME`: a picture that was answered as a URL.
pub async fn file(server: &Server, name: &str) -> Result<Response, ApiError> {
    let gone = || {
        ApiError::status(
            axum::http::StatusCode::NOT_FOUND,
            "not_found",
            "no such picture; they are kept for 60 minutes",
        )
    };
    let (path, kind) = server.files.find(name).ok_or_else(gone)?;
    let bytes = tokio::task::spawn_blocking(move || std::fs::read(path)).await;
    let bytes = bytes.ok().and_then(Result::ok).ok_or_else(gone)?;
    let headers = [(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "private, max-age=3600")];
    Ok((headers, bytes).into_response())
}
