//! Which request is answered by what, and what holds of all of them: an id, a key, a line in the log, a count.

use super::api;
use super::body::{self, Form, Share};
use super::errors::ApiError;
use super::fields::Fields;
use super::order::Order;
use super::queue::Other;
use super::{Server, answer};
use axum::Router;
use axum::extract::{MatchedPath, Path, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use std::sync::Arc;
use std::time::Instant;
use tower_http::catch_panic::CatchPanicLayer;

/// What belongs to a request from its head on.
#[derive(Clone)]
pub struct Context {
    pub id: String,
    pub headers: HeaderMap,
}

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest id that a client may give its request.
const LONGEST_ID: usize = 64;

type Shared = State<Arc<Server>>;
type Answer = Result<Response, ApiError>;

/// All routes.
pub fn router(server: Arc<Server>) -> Router {
    Router::new()
        .route("/", get(async || api::operations::page()))
        .route("/v1/images/generations", post(generations))
        .route("/v1/images/edits", post(edits))
        .route("/v1/images/variations", post(variations))
        .route("/v1/engine/blends", post(blends))
        .route("/v1/engine/enlarge", post(enlarge))
        .route("/v1/engine/classify", post(classify))
        .route("/v1/engine/embeddings", post(embeddings))
        .route("/v1/models", get(async |State(server): Shared| api::models::list(&server)))
        // Names of models may have a slash in them.
        .route(
            "/v1/models/{*name}",
            get(async |State(server): Shared, Path(name): Path<String>| -> Answer { api::models::one(&server, &name) }),
        )
        .route(
            "/files/{name}",
            get(async |State(server): Shared, Path(name): Path<String>| -> Answer {
                api::operations::file(&server, &name).await
            }),
        )
        .route("/healthz", get(async || api::operations::alive()))
        .route("/readyz", get(async |State(server): Shared| -> Answer { api::operations::ready(&server) }))
        .route("/metrics", get(async |State(server): Shared| api::operations::metrics(&server)))
        .route("/openapi.json", get(async || api::operations::openapi()))
        .fallback(async || ApiError::status(StatusCode::NOT_FOUND, "not_found", "there is nothing at this address"))
        .method_not_allowed_fallback(async |method: Method| {
            let message = format!("{method}: this address takes another method");
            ApiError::status(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
        })
        .layer(CatchPanicLayer::custom(|_| ApiError::internal("the server made a mistake").into_response()))
        .layer(middleware::from_fn_with_state(server.clone(), around))
        .with_state(server)
}

async fn generations(State(server): Shared, request: Request) -> Answer {
    pictures(&server, request, api::generations::order).await
}

async fn edits(State(server): Shared, request: Request) -> Answer {
    pictures(&server, request, api::edits::order).await
}

async fn variations(State(server): Shared, request: Request) -> Answer {
    pictures(&server, request, api::variations::order).await
}

async fn blends(State(server): Shared, request: Request) -> Answer {
    pictures(&server, request, api::blends::order).await
}

async fn enlarge(State(server): Shared, request: Request) -> Answer {
    pictures(&server, request, api::enlarge::order).await
}

async fn classify(State(server): Shared, request: Request) -> Answer {
    value(&server, request, api::classify::work).await
}

async fn embeddings(State(server): Shared, request: Request) -> Answer {
    value(&server, request, api::embeddings::work).await
}

/// A request that is answered in JSON, from its body to its answer.
async fn value(
    server: &Arc<Server>,
    request: Request,
    work: impl AsyncFnOnce(&Server, Fields, &mut Share) -> Result<(usize, Box<Other>), ApiError>,
) -> Answer {
    let context = context(&request);
    // Its share of the memory is held until it is answered.
    let Form { fields, mut share } = body::read(server, request).await?;
    let (model, other) = work(server, fields, &mut share).await?;
    answer::value(server, &context, model, other).await
}

/// A request for pictures, from its body to its answer.
async fn pictures(
    server: &Arc<Server>,
    request: Request,
    order: impl AsyncFnOnce(&Server, Fields, &mut Share) -> Result<Order, ApiError>,
) -> Answer {
    let context = context(&request);
    let Form { fields, mut share } = body::read(server, request).await?;
    let order = order(server, fields, &mut share).await?;
    answer::answer(server, &context, order, share).await
}

fn context(request: &Request) -> Context {
    let context = request.extensions().get::<Context>();
    context.cloned().unwrap_or_else(|| Context { id: String::new(), headers: HeaderMap::new() })
}

/// What holds of all requests.
async fn around(State(server): Shared, mut request: Request, next: Next) -> Response {
    let began = Instant::now();
    let given = request.headers().get(&REQUEST_ID).and_then(|id| id.to_str().ok());
    let is_id = |id: &&str| {
        (1..=LONGEST_ID).contains(&id.len()) && id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
    };
    let id = given.filter(is_id).map_or_else(|| format!("req_{}", server.random.name()), str::to_owned);
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
    let is_api = request.uri().path().starts_with("/v1/");
    let headers = request.headers().clone();
    request.extensions_mut().insert(Context { id: id.clone(), headers: headers.clone() });

    let in_flight = InFlight::new(&server);
    let is_work = request.method() == Method::POST;
    let admitted =
        admitted(&server, is_api, &headers).and_then(|()| if is_work { server.check_ready() } else { Ok(()) });
    let mut response = match admitted {
        Ok(()) => next.run(request).await,
        Err(error) => {
            body::drop_rest(request.into_body()).await;
            error.into_response()
        }
    };
    drop(in_flight);
    let elapsed = began.elapsed();
    server.metrics.answered(&route, response.status().as_u16(), elapsed);
    let error = response.extensions().get::<ApiError>();
    server.log.answered(&id, &method, &route, response.status().as_u16(), elapsed, error);
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&id) {
        headers.insert(REQUEST_ID, id);
    }
    if server.has_stopped() {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// Whether a request may be answered at all.
fn admitted(server: &Server, is_api: bool, headers: &HeaderMap) -> Result<(), ApiError> {
    if !is_api {
        return Ok(());
    }
    if server.keys.as_ref().is_some_and(|keys| !keys.admit(headers)) {
        server.metrics.turned_away("key");
        let message = "this server needs an API key that it knows: Authorization: Bearer KEY";
        return Err(ApiError::status(StatusCode::UNAUTHORIZED, "invalid_api_key", message));
    }
    // Pages of other origins are not to use a server that listens to this machine alone.
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let origin = text(header::ORIGIN).map(|origin| origin.split_once("://").map_or(origin, |(_, host)| host));
    let own = server.public_url.as_deref().and_then(|url| url.split_once("://")).map(|(_, host)| host);
    if origin.is_some_and(|origin| Some(origin) != text(header::HOST) && Some(origin) != own) {
        server.metrics.turned_away("origin");
        return Err(ApiError::status(StatusCode::FORBIDDEN, "origin", "pages of other origins are not answered"));
    }
    Ok(())
}

/// A request that is being answered, also if its client leaves meanwhile.
struct InFlight<'a>(&'a Server);

impl InFlight<'_> {
    fn new(server: &Server) -> InFlight<'_> {
        server.metrics.in_flight.inc();
        InFlight(server)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.metrics.in_flight.dec();
    }
}
