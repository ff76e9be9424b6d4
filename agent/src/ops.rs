//! `/livez`, `/readyz` and `/metrics`, plain HTTP.

use crate::{limits, metrics::Metrics};
use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::{Encoder, Registry, TextEncoder};
use std::{convert::Infallible, time::Duration};
use tokio::{net::TcpListener, task::JoinSet};

/// Serves for ever.
///
/// # Cancel safety
/// Dropping the future ends every connection.
pub async fn serve(listener: TcpListener, registry: Registry, metrics: Metrics) {
    let mut connections = JoinSet::new();
    loop {
        if limits::OPS_CONNECTIONS <= connections.len() {
            connections.join_next().await;
        }
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let Ok((conn, _)) = accepted else {
            // Out of descriptors, most likely: a pause, so that the loop does not spin.
            tokio::time::sleep(Duration::from_millis(200)).await;
            continue;
        };
        let (registry, metrics) = (registry.clone(), metrics.clone());
        connections.spawn(async move {
            let service = service_fn(|request| {
                let answer = answer(&request, &registry, &metrics);
                async move { Ok::<_, Infallible>(answer) }
            });
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(limits::OPS_HEADER).max_buf_size(16 << 10);
            let _ = builder.serve_connection(TokioIo::new(conn), service).await; // the client's trouble
        });
    }
}

fn answer(request: &Request<Incoming>, registry: &Registry, metrics: &Metrics) -> Response<Full<Bytes>> {
    let (status, kind, text) = match request.uri().path() {
        "/livez" => (StatusCode::OK, "text/plain", Bytes::from_static(b"ok\n")),
        // Parked is as it should be: the hub was reached and has enough of this agent's kind.
        "/readyz" if metrics.session_up.get() > 0 || metrics.parked.get() > 0 => {
            (StatusCode::OK, "text/plain", Bytes::from_static(b"ok\n"))
        }
        "/readyz" => (StatusCode::SERVICE_UNAVAILABLE, "text/plain", Bytes::from_static(b"no session to the hub\n")),
        "/metrics" => {
            let mut text = Vec::new();
            match TextEncoder::new().encode(&registry.gather(), &mut text) {
                Ok(()) => (StatusCode::OK, prometheus::TEXT_FORMAT, Bytes::from(text)),
                Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, "text/plain", Bytes::new()),
            }
        }
        _ => (StatusCode::NOT_FOUND, "text/plain", Bytes::from_static(b"not found\n")),
    };
    let mut response = Response::new(Full::new(text));
    *response.status_mut() = status;
    if let Ok(kind) = kind.parse() {
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
    }
    response
}
