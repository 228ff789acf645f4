//! `engine serve`: OpenAI's images API over HTTP, for programs that were written for DALL-E 2, and more beside it.
//!
//! | file | what it does |
//! | --- | --- |
//! | `listen.rs` | connections: how many, how fast, how they end |
//! | `routes.rs`, `api` | which request is answered by what, and what holds of all: ids, keys, counts |
//! | `body.rs`, `fields.rs`, `order.rs` | from a body to fields, and from these to a request of the library |
//! | `queue.rs`, `worker.rs` | the bounded queue, and the thread of each device, which joins what has equal shapes |
//! | `answer.rs`, `files.rs` | pictures as JSON, as a stream of events, and as files for an hour |
//! | `models.rs` | the checkpoints |
//! | `errors.rs`, `metrics.rs`, `log.rs`, `keys.rs` | failures, counts, the log, who may ask |
//!
//! The library is not asynchronous, and does not become so: devices have threads of their own, which tell what happens through
//! channels. No path in a request reaches the file system, and no request is ever made from here.

mod answer;
mod api;
pub mod args;
mod body;
mod errors;
mod fields;
mod files;
mod keys;
mod listen;
mod log;
mod metrics;
mod models;
mod order;
mod queue;
mod routes;
mod worker;

use args::ServeArguments;
use body::Share;
use errors::ApiError;
use files::Files;
use keys::{Keys, Random};
use log::Log;
use metrics::Metrics;
use models::Models;
use queue::{Queue, Waiting, Work};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use unclip::{Error, Result};
use worker::Worker;

/// Everything that requests share.
pub struct Server {
    models: Models,
    queue: Arc<Queue>,
    files: Files,
    metrics: Metrics,
    keys: Option<Keys>,
    random: Random,
    log: Log,
    limits: Limits,
    /// Memory for bodies and given pictures.
    memory: Arc<Semaphore>,
    /// Pictures that are decoded at once.
    decoding: Semaphore,
    public_url: Option<String>,
    address: SocketAddr,
    /// What computes, as far as it is ready.
    devices: Mutex<Vec<String>>,
    /// Devices that are not ready yet.
    loading: AtomicUsize,
    /// How often the user asked it to end.
    stop: watch::Sender<usize>,
    /// Whether work that is not done is given up.
    aborts: AtomicBool,
    /// Whether no more connections are accepted. Until then those who come while accepted work is finished are told so.
    is_over: watch::Sender<bool>,
}

struct Limits {
    /// Bytes of a body.
    body: usize,
    /// Pixels of a given picture.
    pixels: u64,
    /// Pictures that are computed together.
    batch: usize,
}

impl Server {
    /// Says why no work is taken, if none is.
    fn check_ready(&self) -> Result<(), ApiError> {
        if self.has_stopped() {
            self.metrics.turned_away("stopping");
            return Err(ApiError::unavailable("the server is shutting down", 1));
        }
        if self.loading.load(Ordering::Acquire) > 0 {
            self.metrics.turned_away("loading");
            return Err(ApiError::unavailable("the models are being loaded", 1));
        }
        Ok(())
    }

    /// Lets work wait for a device.
    fn enter(&self, model: usize, work: Work) -> Result<Waiting, ApiError> {
        self.queue.enter(model, work).inspect_err(|_| self.metrics.turned_away("queue"))
    }

    fn devices(&self) -> MutexGuard<'_, Vec<String>> {
        self.devices.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_stopped(&self) -> bool {
        *self.stop.borrow() > 0
    }

    fn is_aborting(&self) -> bool {
        self.aborts.load(Ordering::Relaxed)
    }

    /// What ends a device that still loads, once the server stops.
    fn stopping(&self) -> Option<Error> {
        self.has_stopped().then_some(Error::Cancelled)
    }
}

/// Serves until a signal ends it.
///
/// # Errors
/// A checkpoint or a device does not open, or the address cannot be listened at.
pub fn serve(arguments: &ServeArguments) -> Result<()> {
    let models = Models::open(arguments)?;
    let keys = arguments.api_key_file.as_deref().map(Keys::read).transpose()?;
    let random = Random::new();
    let files = Files::open(arguments.files.as_deref(), u64::from(arguments.max_files) << 20, &random)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|e| Error::Device { backend: "threads".to_owned(), reason: e.to_string() })?;
    let (listener, address) = runtime.block_on(listen::bind(&arguments.host, arguments.port))?;
    let server = Arc::new(Server {
        models,
        queue: Arc::new(Queue::new(arguments.queue as usize, arguments.device.len())),
        files,
        metrics: Metrics::new(),
        keys,
        random,
        log: Log { prompts: arguments.log_prompts, quiet: arguments.quiet },
        limits: Limits {
            body: (arguments.max_body as usize) << 20,
            pixels: u64::from(arguments.max_megapixels) * 1_000_000,
            batch: arguments.batch as usize,
        },
        memory: Share::all((arguments.max_body as usize) << 20),
        decoding: Semaphore::new(2),
        public_url: arguments.public_url.as_deref().map(|url| url.trim_end_matches('/').to_owned()),
        address,
        devices: Mutex::default(),
        loading: AtomicUsize::new(arguments.device.len()),
        stop: watch::Sender::new(0),
        aborts: AtomicBool::new(false),
        is_over: watch::Sender::new(false),
    });
    watch_signals(&server)?;
    server.log.note(&format!("listening at http://{address}"));

    let connections = runtime.spawn(listen::serve(server.clone(), listener, routes::router(server.clone())));
    let result = std::thread::scope(|scope| {
        let devices = arguments.device.iter().map(|&device| {
            let (server, arguments) = (&server, arguments.on(device));
            scope.spawn(move || work(server, &arguments))
        });
        let devices: Vec<_> = devices.collect();
        runtime.block_on(end(&server, arguments.grace));
        let results = devices.into_iter().map(|device| {
            device
                .join()
                .unwrap_or_else(|_| Err(Error::Device { backend: "device".into(), reason: "its thread ended".into() }))
        });
        let results: Vec<Result<()>> = results.collect();
        results.into_iter().collect()
    });
    // Answers that are on their way; a client that does not read them is not waited for.
    let last = Duration::from_secs(if server.is_aborting() { 1 } else { 5 });
    runtime.block_on(async { _ = tokio::time::timeout(last, connections).await });
    runtime.shutdown_timeout(Duration::from_secs(1));
    match result {
        // A server that was told to end while it loaded has done so.
        Err(Error::Cancelled) if server.has_stopped() => Ok(()),
        result => result,
    }
}

/// The thread of a device. One that does not open ends the server.
fn work(server: &Server, arguments: &crate::cli::flags::DeviceArguments) -> Result<()> {
    let opened = Worker::open(server, arguments);
    if opened.is_err() {
        server.stop.send_modify(|stops| *stops += 1);
        server.queue.close();
    }
    let mut worker = opened?;
    server.devices().push(worker.device.clone());
    if server.loading.fetch_sub(1, Ordering::AcqRel) == 1 {
        server.log.note("ready");
    }
    worker.run();
    Ok(())
}

/// Waits for the signal, then for the work that was accepted, as long as there is time.
async fn end(server: &Server, grace: u32) {
    let mut stop = server.stop.subscribe();
    _ = stop.wait_for(|stops| *stops > 0).await;
    server.queue.close();
    let idle = async {
        while !server.queue.is_idle() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    if tokio::time::timeout(Duration::from_secs(grace.into()), idle).await.is_err() {
        server.log.note(&format!("{grace} s are over: requests that are not done are given up"));
    }
    server.aborts.store(true, Ordering::Relaxed);
    server.is_over.send_replace(true);
}

/// The first signal ends the server in good order, a second one at once.
fn watch_signals(server: &Arc<Server>) -> Result<()> {
    let server = server.clone();
    let handler = move || {
        server.stop.send_modify(|stops| *stops += 1);
        if *server.stop.borrow() > 1 {
            std::process::exit(130);
        }
        server.log.note("stopping: accepted requests are finished first");
    };
    ctrlc::set_handler(handler).map_err(|e| Error::Device { backend: "signals".to_owned(), reason: e.to_string() })
}
