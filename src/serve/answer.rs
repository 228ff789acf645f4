//! From an order to its answer: pictures at once, or as a stream of events.

use super::Server;
use super::body::Share;
use super::errors::ApiError;
use super::order::{Finish, Order, Output};
use super::queue::{Answer, Other, Update, Waiting, Work};
use super::routes::Context;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use futures_core::Stream;
use serde_json::{Value, json};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::{Duration, timeout};
use unclip::image::{Image, Texts};
use unclip::pipeline::Recipe;

/// Events that a slow reader may be behind.
const BEHIND: usize = 64;
/// After so long without an event a comment keeps the connection open.
const SILENCE: Duration = Duration::from_secs(15);

/// Lets an order wait for a device, and answers it.
///
/// # Errors
/// The queue is full, or the pictures cannot be made.
pub async fn answer(server: &Arc<Server>, context: &Context, order: Order, share: Share) -> Result<Response, ApiError> {
    let Order { model, work, finish, output, kind, prompt } = order;
    server.log.asked(context, &server.models.all[model].name, work.pictures(), prompt.as_deref());
    let made =
        Made { server: server.clone(), output, finish, base: base_url(server, &context.headers), kind, _share: share };
    let waiting = server.enter(model, work)?;
    if made.output.stream.is_none() {
        return made.at_once(waiting).await;
    }
    let (sender, receiver) = channel(BEHIND);
    tokio::spawn(made.stream(waiting, sender));
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    Ok((headers, Body::from_stream(Events(receiver))).into_response())
}

/// Lets work that ends in JSON wait for a device, and answers it.
///
/// # Errors
/// The queue is full, or the work fails.
pub async fn value(
    server: &Arc<Server>,
    context: &Context,
    model: usize,
    other: Box<Other>,
) -> Result<Response, ApiError> {
    server.log.asked(context, &server.models.all[model].name, 0, None);
    let mut waiting = server.enter(model, Work::Other(other))?;
    loop {
        if let Update::Finished(result) = waiting.next().await {
            return match result? {
                Some(Answer::Value(value)) => Ok(json_answer(&value)),
                _ => Err(ApiError::internal("the work ended without an answer")),
            };
        }
    }
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// By which address the client reaches this server.
fn base_url(server: &Server, headers: &HeaderMap) -> String {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let is_host =
        |host: &&str| !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || "-._:[]".contains(c));
    match (&server.public_url, host.filter(is_host)) {
        (Some(url), _) => url.clone(),
        (None, Some(host)) => format!("http://{host}"),
        (None, None) => format!("http://{}", server.address),
    }
}

/// What the pictures of an order become.
struct Made {
    server: Arc<Server>,
    output: Output,
    finish: Finish,
    base: String,
    kind: &'static str,
    /// Held until all is answered.
    _share: Share,
}

/// A picture's file, and what is said beside it.
struct File {
    bytes: Vec<u8>,
    seed: u64,
    size: [usize; 2],
}

impl Made {
    /// All pictures in one object.
    async fn at_once(self, mut waiting: Waiting) -> Result<Response, ApiError> {
        let mut data = Vec::new();
        let mut size = None;
        loop {
            match waiting.next().await {
                Update::Picture { image, recipe, .. } => {
                    let file = self.file(image, *recipe).await?;
                    size = Some(file.size);
                    let seed = file.seed;
                    let mut picture = self.content(file).await?;
                    picture["seed"] = seed.into();
                    data.push(picture);
                }
                Update::Finished(result) => {
                    if let Some(Answer::Image(image)) = result? {
                        let file = self.encoded(image, None, false).await?;
                        size = Some(file.size);
                        data.push(self.content(file).await?);
                    }
                    break;
                }
                Update::Step { .. } | Update::Preview { .. } => {}
            }
        }
        let mut answer = json!({
            "created": now(), "data": data, "background": "opaque", "output_format": self.output.name,
            "quality": "standard",
        });
        if let Some([width, height]) = size {
            answer["size"] = format!("{width}x{height}").into();
        }
        Ok(json_answer(&answer))
    }

    /// Events as they happen, to the end or until the client has left.
    async fn stream(self, mut waiting: Waiting, sender: Sender<Bytes>) {
        loop {
            let update = tokio::select! {
                update = timeout(SILENCE, waiting.next()) => update,
                // Dropping what waits ends the work.
                () = sender.closed() => return,
            };
            let Ok(update) = update else {
                if sender.send(Bytes::from_static(b": waiting\n\n")).await.is_err() {
                    return;
                }
                continue;
            };
            let is_last = matches!(update, Update::Finished(_));
            let event = self.event(update).await.unwrap_or_else(|error| Some(failure(&error)));
            for bytes in event.into_iter().chain(is_last.then(|| Bytes::from_static(b"data: [DONE]\n\n"))) {
                if sender.send(bytes).await.is_err() {
                    return;
                }
            }
            if is_last {
                return;
            }
        }
    }

    async fn event(&self, update: Update) -> Result<Option<Bytes>, ApiError> {
        let (name, mut event, file) = match update {
            Update::Step { stage, done, steps } => {
                let event = json!({ "type": "engine.progress", "stage": stage, "done": done, "steps": steps });
                return Ok(Some(written("engine.progress", &event)));
            }
            Update::Preview { picture, number, image } => {
                let file = self.encoded(image, None, true).await?;
                ("partial_image", json!({ "partial_image_index": number, "index": picture }), file)
            }
            Update::Picture { picture, image, recipe } => {
                let file = self.file(image, *recipe).await?;
                // OpenAI counts tokens for its bills.
                let usage = json!({
                    "total_tokens": 0, "input_tokens": 0, "output_tokens": 0,
                    "input_tokens_details": { "text_tokens": 0, "image_tokens": 0 },
                });
                ("completed", json!({ "usage": usage, "index": picture, "seed": file.seed }), file)
            }
            Update::Finished(result) => return result.map(|_| None),
        };
        let name = format!("{}.{name}", self.kind);
        let common = json!({
            "type": name, "b64_json": BASE64_STANDARD.encode(&file.bytes), "created_at": now(),
            "size": format!("{}x{}", file.size[0], file.size[1]), "quality": "standard", "background": "opaque",
            "output_format": self.output.name,
        });
        if let (Value::Object(event), Value::Object(common)) = (&mut event, common) {
            event.extend(common);
        }
        Ok(Some(written(&name, &event)))
    }

    /// The file of a picture that the networks made.
    async fn file(&self, image: Image, recipe: Recipe) -> Result<File, ApiError> {
        self.encoded(image, Some(recipe), false).await
    }

    async fn encoded(&self, image: Image, recipe: Option<Recipe>, is_guess: bool) -> Result<File, ApiError> {
        let (finish, format) = (self.finish.clone(), self.output.format);
        let encode = move || {
            let image = if is_guess { finish.preview(image) } else { finish.image(image) };
            let seed = recipe.as_ref().map_or(0, |recipe| recipe.seed);
            let mut texts =
                recipe.map_or_else(Texts::default, |recipe| Recipe::texts(&[finish.recipe(recipe, &image)]));
            if format.check(image.width, image.height, &texts).is_err() {
                // A JPEG has no room for long settings; the picture is worth more.
                texts = Texts::default();
            }
            let mut bytes = Vec::new();
            image.encode(&mut bytes, format, &texts)?;
            Ok::<_, std::io::Error>(File { bytes, seed, size: [image.width, image.height] })
        };
        let encoded = tokio::task::spawn_blocking(encode).await;
        let failed = |_| ApiError::internal("the picture could not be written in this format");
        encoded.map_err(|_| ApiError::internal("the picture's encoder failed"))?.map_err(failed)
    }

    /// The picture as its URL or its bytes.
    async fn content(&self, file: File) -> Result<Value, ApiError> {
        if !self.output.by_url {
            return Ok(json!({ "b64_json": BASE64_STANDARD.encode(&file.bytes) }));
        }
        let (server, ending) = (self.server.clone(), self.output.name);
        let keep = move || server.files.keep(&file.bytes, ending, &server.random);
        match tokio::task::spawn_blocking(keep).await {
            Ok(Ok(name)) => Ok(json!({ "url": format!("{}/files/{name}", self.base) })),
            kept => {
                self.server.log.error(&format!("{kept:?}"));
                Err(ApiError::internal("the picture could not be kept; response_format b64_json needs no file"))
            }
        }
    }
}

/// A JSON answer.
pub fn json_answer(value: &Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

/// An event of a stream.
fn written(name: &str, event: &Value) -> Bytes {
    format!("event: {name}\ndata: {event}\n\n").into()
}

fn failure(error: &ApiError) -> Bytes {
    written("error", &error.object())
}

/// The events of a stream as its body.
struct Events(Receiver<Bytes>);

impl Stream for Events {
    type Item = Result<Bytes, std::convert::Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut task::Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context).map(|bytes| bytes.map(Ok))
    }
}
