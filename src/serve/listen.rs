//! Connections: accepted up to a number, read within limits, and brought to an end.

use super::Server;
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use unclip::{Error, Result};

/// Time in which the head of a request must have come.
const HEAD: Duration = Duration::from_secs(20);
/// Most bytes of a head, and most lines in it.
const HEAD_BYTES: usize = 64 << 10;
const HEAD_LINES: usize = 64;
/// Connections that are open at once; others wait to be accepted.
const CONNECTIONS: usize = 4096;

/// Binds the address.
///
/// # Errors
/// There is no such interface, or the port is taken.
pub async fn bind(host: &str, port: u16) -> Result<(TcpListener, SocketAddr)> {
    let failed =
        |e: std::io::Error| Error::Io { path: format!("{host}:{port}").into(), action: "listen at", source: e };
    let listener = TcpListener::bind((host, port)).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

/// Answers requests until the server is over. Returns when all connections have ended.
pub async fn serve(server: Arc<Server>, listener: TcpListener, router: Router) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    let graceful = GracefulShutdown::new();
    let mut over = server.is_over.subscribe();
    loop {
        let accepted = async {
            let permit = connections.clone().acquire_owned().await;
            (permit, listener.accept().await)
        };
        let ended = async { over.wait_for(|is_over| *is_over).await.map(drop) };
        let (permit, accepted) = tokio::select! {
            accepted = accepted => accepted,
            _ = ended => break,
        };
        let Ok((stream, _)) = accepted else {
            // No descriptor is free, for one: the next client may have more luck.
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        // Answers are small; they are not to wait for more.
        _ = stream.set_nodelay(true);
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(HEAD_BYTES).max_headers(HEAD_LINES);
        let service = TowerToHyperService::new(router.clone());
        let connection = builder.serve_connection::<_, TowerToHyperService<Router>>(TokioIo::new(stream), service);
        let watched = graceful.watch(connection);
        tokio::spawn(async move {
            // A client that breaks its connection off is nothing to report.
            _ = watched.await;
            drop(permit);
        });
    }
    drop(listener);
    graceful.shutdown().await;
}
