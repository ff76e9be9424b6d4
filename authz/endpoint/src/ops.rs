//! `/livez`, `/readyz` and `/metrics`, plain HTTP, for whoever runs the endpoint.

use crate::{limits, live::Live};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::{Registry, TextEncoder};
use std::convert::Infallible;
use tokio::{net::TcpListener, task::JoinSet};

/// Connections at a time.
const CONNECTIONS: usize = 32;

/// Serves for ever.
///
/// # Cancel safety
/// Dropping the future ends every connection.
pub async fn serve(listener: TcpListener, registry: Registry, live: Live) {
    let mut connections = JoinSet::new();
    loop {
        if CONNECTIONS <= connections.len() {
            connections.join_next().await;
        }
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let Ok((socket, _)) = accepted else {
            tokio::time::sleep(limits::ACCEPT_PAUSE).await;
            continue;
        };
        let (registry, live) = (registry.clone(), live.clone());
        connections.spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let answer = answer(request.uri().path(), &registry, &live);
                async move { Ok::<_, Infallible>(answer) }
            });
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(limits::HEAD).max_buf_size(16 << 10);
            let _ = builder.serve_connection(TokioIo::new(socket), service).await; // the client's trouble
        });
    }
}

fn answer(path: &str, registry: &Registry, live: &Live) -> Response<Full<Bytes>> {
    let (code, text) = match path {
        "/livez" => (StatusCode::OK, "ok\n".to_owned()),
        "/readyz" if live.is_current() => (StatusCode::OK, "ok\n".to_owned()),
        "/readyz" => (StatusCode::SERVICE_UNAVAILABLE, "no bundle, or its time is over\n".to_owned()),
        "/metrics" => {
            let mut text = String::new();
            let written = TextEncoder::new().encode_utf8(&registry.gather(), &mut text);
            (if written.is_ok() { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR }, text)
        }
        _ => (StatusCode::NOT_FOUND, "/livez, /readyz, /metrics\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = code;
    response
}
