//! Health and metrics, on a listener of their own without TLS.

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use moorline_plugin::Readiness;
use prometheus::{Encoder, Registry, TextEncoder};
use std::{convert::Infallible, sync::Arc, time::Duration};
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Connections at a time.
const CONNECTIONS: usize = 64;
/// Longest life of a connection.
const PATIENCE: Duration = Duration::from_secs(30);

/// What readiness is asked of.
pub(crate) trait Health: Send + Sync + 'static {
    /// Name of each check, and what is wrong.
    fn checks(&self) -> Vec<(&'static str, Result<(), String>)>;
    /// The same of what the hub is ready without.
    fn plugins(&self) -> Vec<Readiness> {
        Vec::new()
    }
}

/// Serves until `stop`.
pub(crate) async fn serve(listener: TcpListener, registry: Registry, health: Arc<dyn Health>, stop: CancellationToken) {
    let tasks = TaskTracker::new();
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((socket, _)) = accepted else {
            tokio::time::sleep(Duration::from_millis(200)).await;
            continue;
        };
        let (registry, health, stop) = (registry.clone(), Arc::clone(&health), stop.clone());
        tasks.spawn(async move {
            let service = hyper::service::service_fn(|request: Request<Incoming>| {
                let response = answer(&request, &registry, &*health);
                async move { Ok::<_, Infallible>(response) }
            });
            let mut builder = hyper::server::conn::http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(10)).max_headers(100);
            let connection = builder.serve_connection(TokioIo::new(socket), service);
            tokio::select! {
                _ = tokio::time::timeout(PATIENCE, connection) => {}
                () = stop.cancelled() => {}
            }
            drop(slot);
        });
    }
}

fn answer(request: &Request<Incoming>, registry: &Registry, health: &dyn Health) -> Response<Full<Bytes>> {
    let text = |code: StatusCode, body: String| {
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = code;
        response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("text/plain; charset=utf-8"));
        response
    };
    if request.method() != Method::GET {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned());
    }
    match request.uri().path() {
        "/livez" | "/healthz" => text(StatusCode::OK, "ok\n".to_owned()),
        "/readyz" => {
            let (ready, words) = readiness(health, request.uri().query().is_some_and(|q| q.starts_with("verbose")));
            text(if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, words)
        }
        "/metrics" => {
            let mut out = Vec::new();
            match TextEncoder::new().encode(&registry.gather(), &mut out) {
                Ok(()) => text(StatusCode::OK, String::from_utf8_lossy(&out).into_owned()),
                Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
            }
        }
        _ => text(StatusCode::NOT_FOUND, "not found; try /livez /readyz /metrics\n".to_owned()),
    }
}

/// Whether all is well, and the words of Kubernetes' own `/readyz`.
pub(crate) fn readiness(health: &dyn Health, verbose: bool) -> (bool, String) {
    let checks = health.checks();
    let ready = checks.iter().all(|(_, result)| result.is_ok());
    let plugins = health.plugins();
    if ready && !verbose {
        return (true, "ok\n".to_owned());
    }
    let lines = checks.iter().map(|(name, result)| match result {
        Ok(()) => format!("[+]{name} ok\n"),
        Err(why) => format!("[-]{name} failed: {why}\n"),
    });
    let plugins = plugins.iter().map(|Readiness { plugin, trouble }| match trouble {
        None => format!("[+]plugin-{plugin} ok\n"),
        Some(why) => format!("[!]plugin-{plugin} failed, which the hub is ready without: {why}\n"),
    });
    let end = if ready { "readyz check passed\n" } else { "readyz check failed\n" };
    (ready, lines.chain(plugins).chain([end.to_owned()]).collect())
}
