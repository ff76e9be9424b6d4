//! One connection to the API server.

use super::endpoint::{Endpoint, chain};
use crate::limits;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use moorline_link::ReadAhead;
use moorline_proxy::{Body, edge::UpstreamError};
use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::task::AbortOnDropHandle;

/// How many requests the API server permits on a connection at once, as its settings last said.
pub(super) type Room = Arc<AtomicUsize>;

/// What the API server chose.
pub(super) enum Dialled {
    /// HTTP/2: shared by many requests.
    Shared(http2::SendRequest<Body>, AbortOnDropHandle<()>, Room),
    /// HTTP/1.1: for one request.
    Single(http1::SendRequest<Body>, AbortOnDropHandle<()>),
}

/// Dials for the pool: HTTP/2 where the API server has it.
pub(super) async fn pooled(endpoint: &Endpoint) -> Result<Dialled, UpstreamError> {
    let tls = connect(endpoint, endpoint.pooled.clone()).await?;
    if tls.get_ref().1.alpn_protocol() != Some(b"h2") {
        return http1(tls).await;
    }
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(limits::UPSTREAM_STREAM_WINDOW)
        .initial_connection_window_size(limits::UPSTREAM_CONNECTION_WINDOW)
        .initial_max_send_streams(limits::UPSTREAM_IN_FLIGHT)
        .max_send_buf_size(limits::UPSTREAM_SEND_BUFFER)
        .max_header_list_size(limits::UPSTREAM_HEAD as u32)
        .keep_alive_interval(limits::UPSTREAM_PING)
        .keep_alive_timeout(limits::UPSTREAM_PING_TIMEOUT)
        .keep_alive_while_idle(true);
    let (send, mut connection) = builder.handshake(TokioIo::new(tls)).await.map_err(|e| unreachable(&e))?;
    let room = Room::new(AtomicUsize::new(limits::UPSTREAM_IN_FLIGHT));
    let told = room.clone();
    let connection = poll_fn(move |cx| {
        let polled = Pin::new(&mut connection).poll(cx);
        told.store(connection.current_max_send_streams().min(limits::UPSTREAM_IN_FLIGHT), Ordering::Relaxed);
        polled
    });
    Ok(Dialled::Shared(send, own(connection), room))
}

/// Dials for an upgrade: HTTP/1.1, one request.
pub(super) async fn single(endpoint: &Endpoint) -> Result<Dialled, UpstreamError> {
    http1(connect(endpoint, endpoint.plain.clone()).await?).await
}

async fn http1(tls: TlsStream<ReadAhead<TcpStream>>) -> Result<Dialled, UpstreamError> {
    let mut builder = http1::Builder::new();
    builder.max_buf_size(limits::UPSTREAM_SEND_BUFFER);
    let (send, connection) = builder.handshake(TokioIo::new(tls)).await.map_err(|e| unreachable(&e))?;
    Ok(Dialled::Single(send, own(connection.with_upgrades())))
}

/// The task that moves a connection's bytes; it ends with its handle. Its failure is told by the requests on it.
fn own<F>(connection: F) -> AbortOnDropHandle<()>
where
    F: Future<Output = hyper::Result<()>> + Send + 'static,
{
    AbortOnDropHandle::new(tokio::spawn(async move {
        if let Err(e) = connection.await {
            tracing::debug!(cause = %chain(&e), "connection to the API server ended");
        }
    }))
}

async fn connect(
    endpoint: &Endpoint,
    tls: Arc<rustls::ClientConfig>,
) -> Result<TlsStream<ReadAhead<TcpStream>>, UpstreamError> {
    let attempt = async {
        let tcp = TcpStream::connect(endpoint.address()).await?;
        tcp.set_nodelay(true)?;
        TlsConnector::from(tls).connect(endpoint.server_name.clone(), ReadAhead::new(tcp)).await
    };
    match tokio::time::timeout(limits::UPSTREAM_CONNECT, attempt).await {
        Ok(Ok(tls)) => Ok(tls),
        Ok(Err(e)) if e.kind() == io::ErrorKind::TimedOut => Err(UpstreamError::Timeout),
        Ok(Err(e)) => Err(unreachable(&e)),
        Err(_) => Err(UpstreamError::Timeout),
    }
}

fn unreachable(e: &dyn std::error::Error) -> UpstreamError {
    UpstreamError::Unreachable(chain(e))
}
