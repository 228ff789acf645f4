//! Bodies of requests: read whole within limits of size, time and memory, and taken apart into fields.

use super::Server;
use super::errors::ApiError;
use super::fields::Fields;
use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Multipart, Request};
use axum::http::{HeaderMap, StatusCode, header};
use http_body_util::BodyExt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// Time in which a body must have come.
const TIME: Duration = Duration::from_secs(60);
/// Most bytes that are read and dropped of a body that nobody wants.
const DROPPED: usize = 256 << 20;
/// Most parts of a form.
const PARTS: usize = 64;
/// Bytes of all bodies and given pictures that are held at once, if none may be larger.
const HELD: usize = 1 << 30;
/// What these bytes are counted in.
const UNIT: usize = 1024;

/// A request's fields, and its share of the memory.
pub struct Form {
    pub fields: Fields,
    pub share: Share,
}

/// A part of the memory for bodies and pictures, given back when it is dropped.
pub struct Share(OwnedSemaphorePermit);

impl Share {
    /// Memory for all, so that any one body has room.
    pub fn all(body: usize) -> Arc<Semaphore> {
        Arc::new(Semaphore::new(HELD.max(body) / UNIT))
    }

    fn of(server: &Server, bytes: usize) -> Result<Share, ApiError> {
        let units = u32::try_from(bytes.div_ceil(UNIT).max(1)).unwrap_or(u32::MAX);
        server.memory.clone().try_acquire_many_owned(units).map(Share).map_err(|_| {
            server.metrics.turned_away("memory");
            ApiError::busy("too many large requests are waiting already", server.queue.seconds())
        })
    }

    /// Takes so many bytes more.
    ///
    /// # Errors
    /// There are none left.
    pub fn grow(&mut self, server: &Server, bytes: usize) -> Result<(), ApiError> {
        self.0.merge(Share::of(server, bytes)?.0);
        Ok(())
    }
}

/// Reads a body: JSON or a form, as its type says.
///
/// # Errors
/// It is too large, too slow, neither of both, or broken.
pub async fn read(server: &Server, request: Request) -> Result<Form, ApiError> {
    let (parts, body) = request.into_parts();
    let kind = parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let is_json = kind == "application/json";
    if !is_json && kind != "multipart/form-data" {
        let message = format!("content type {kind:?}: expected application/json or multipart/form-data");
        return Err(ApiError::status(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message));
    }
    let exact = hyper::body::Body::size_hint(&body).exact();
    let share = match share(server, &parts.headers, exact) {
        Ok(Some(share)) => share,
        Ok(None) => return Err(too_large(server, body).await),
        Err(busy) => {
            drop_rest(body).await;
            return Err(busy);
        }
    };
    let bytes = match timeout(TIME, whole(body, server.limits.body)).await {
        Err(_) => {
            server.metrics.turned_away("slow");
            let message = format!("the body did not come within {} s", TIME.as_secs());
            return Err(ApiError::status(StatusCode::REQUEST_TIMEOUT, "request_timeout", message));
        }
        Ok(Read::Whole(bytes)) => bytes,
        Ok(Read::Broken) => return Err(ApiError::body("invalid_body", "the body ended before its end")),
        Ok(Read::TooLarge(rest)) => return Err(too_large(server, rest).await),
    };
    let fields = match is_json {
        true => Fields::of_json(&bytes)?,
        false => form(Request::from_parts(parts, Body::from(bytes))).await?,
    };
    Ok(Form { fields, share })
}

/// The request's share of the memory; `None` if it is too large for any.
fn share(server: &Server, headers: &HeaderMap, exact: Option<u64>) -> Result<Option<Share>, ApiError> {
    let declared = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let most = server.limits.body;
    match usize::try_from(declared.or(exact).unwrap_or(most as u64)) {
        Ok(size) if size <= most => Share::of(server, size).map(Some),
        _ => Ok(None),
    }
}

/// Why a body was refused, once its client has come to an end of sending it.
async fn too_large(server: &Server, body: Body) -> ApiError {
    server.metrics.turned_away("size");
    drop_rest(body).await;
    let message = format!("the body has more than {} bytes", server.limits.body);
    ApiError::status(StatusCode::PAYLOAD_TOO_LARGE, "request_too_large", message)
}

/// Reads what nobody wants, so that the client comes to read the answer. What is too much or too slow has only itself to blame
/// for a connection that ends.
pub async fn drop_rest(mut body: Body) {
    let read = async {
        let mut dropped = 0;
        while let Some(Ok(frame)) = body.frame().await {
            dropped += frame.data_ref().map_or(0, Bytes::len);
            if dropped > DROPPED {
                return;
            }
        }
    };
    _ = timeout(TIME, read).await;
}

enum Read {
    Whole(Bytes),
    Broken,
    TooLarge(Body),
}

async fn whole(mut body: Body, most: usize) -> Read {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return Read::Broken };
        let Some(data) = frame.data_ref() else { continue };
        if bytes.len() + data.len() > most {
            return Read::TooLarge(body);
        }
        bytes.extend_from_slice(data);
    }
    Read::Whole(bytes.into())
}

/// The parts of a form.
async fn form(request: Request) -> Result<Fields, ApiError> {
    let broken = |reason: String| ApiError::body("invalid_multipart", format!("the form is broken: {reason}"));
    let mut form = Multipart::from_request(request, &()).await.map_err(|e| broken(e.body_text()))?;
    let mut fields = Fields::default();
    let mut parts = 0;
    while let Some(part) = form.next_field().await.map_err(|e| broken(e.body_text()))? {
        parts += 1;
        if parts > PARTS {
            return Err(broken(format!("more than {PARTS} parts")));
        }
        let name = part.name().ok_or_else(|| broken("a part has no name".to_owned()))?.to_owned();
        let file = part.file_name().map(str::to_owned);
        let bytes = part.bytes().await.map_err(|e| broken(e.body_text()))?;
        fields.add(name, file, bytes)?;
    }
    Ok(fields)
}
