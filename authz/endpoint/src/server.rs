//! The endpoint's port: TLS, then HTTP/1.1, read strictly, or HTTP/2. Bounds as at the hub's front door.

use crate::{limits, metrics::Metrics};
use futures_util::FutureExt;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use moorline_proxy::{Body, guard::Guarded, status::status_response};
use rustls::ServerConfig;
use std::{convert::Infallible, net::SocketAddr, panic::AssertUnwindSafe, sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Answers requests.
pub trait Handler: Send + Sync + 'static {
    /// One request.
    fn handle(
        self: Arc<Self>,
        request: Request<Incoming>,
        remote: SocketAddr,
    ) -> impl Future<Output = Response<Body>> + Send;
}

/// Accepts until `stop`; then open work ends within [`limits::GRACE`].
pub async fn serve<H: Handler>(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    handler: Arc<H>,
    metrics: Metrics,
    tasks: TaskTracker,
    stop: CancellationToken,
) {
    let acceptor = TlsAcceptor::from(tls);
    let (connections, handshakes) =
        (Arc::new(Semaphore::new(limits::CONNECTIONS)), Arc::new(Semaphore::new(limits::HANDSHAKES)));
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (socket, remote) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::error!("connections cannot be accepted: {error}");
                tokio::time::sleep(limits::ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Closed at once: better than a wait without an end.
        let Ok(slot) = Arc::clone(&connections).try_acquire_owned() else { continue };
        let (acceptor, handshakes) = (acceptor.clone(), Arc::clone(&handshakes));
        let (handler, metrics, stop) = (Arc::clone(&handler), metrics.clone(), stop.clone());
        tasks.spawn(async move {
            let _slot = slot;
            metrics.connections.inc();
            connection(socket, remote, acceptor, &handshakes, handler, stop).await;
            metrics.connections.dec();
        });
    }
    tasks.close();
    if timeout(limits::GRACE, tasks.wait()).await.is_err() {
        tracing::warn!(open = tasks.len(), "connections were cut at the end of the grace");
    }
}

async fn connection<H: Handler>(
    socket: TcpStream,
    remote: SocketAddr,
    acceptor: TlsAcceptor,
    handshakes: &Semaphore,
    handler: Arc<H>,
    stop: CancellationToken,
) {
    let _ = socket.set_nodelay(true);
    let shaken = async {
        let _one = handshakes.acquire().await.ok()?;
        acceptor.accept(socket).await.ok()
    };
    let Ok(Some(stream)) = timeout(limits::HANDSHAKE, shaken).await else { return };
    let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let handler = Arc::clone(&handler);
        async move { Ok::<_, Infallible>(contained(handler.handle(request, remote)).await) }
    });
    if h2 { Box::pin(http2(stream, service, stop)).await } else { Box::pin(http1(stream, service, stop)).await }
}

/// A panic ends its request alone.
async fn contained(answer: impl Future<Output = Response<Body>>) -> Response<Body> {
    AssertUnwindSafe(answer).catch_unwind().await.unwrap_or_else(|_| {
        tracing::error!("the handling of a request panicked");
        status_response(StatusCode::INTERNAL_SERVER_ERROR, "the endpoint failed to handle this request")
    })
}

async fn http1<S>(stream: TlsStream<TcpStream>, service: S, stop: CancellationToken)
where
    S: hyper::service::Service<Request<Incoming>, Response = Response<Body>, Error = Infallible> + Send,
    S::Future: Send,
{
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(limits::HEAD).max_headers(100).half_close(false);
    let connection = builder.serve_connection(TokioIo::new(Guarded::new(stream)), service).with_upgrades();
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!("HTTP/1 connection ended: {error}");
    }
}

async fn http2<S>(stream: TlsStream<TcpStream>, service: S, stop: CancellationToken)
where
    S: hyper::service::Service<Request<Incoming>, Response = Response<Body>, Error = Infallible> + Send,
    S::Future: Send + 'static,
{
    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(limits::H2_STREAM_WINDOW)
        .initial_connection_window_size(limits::H2_CONNECTION_WINDOW)
        .max_concurrent_streams(limits::H2_STREAMS)
        .max_pending_accept_reset_streams(limits::H2_RESETS)
        .max_local_error_reset_streams(limits::H2_RESETS)
        .max_header_list_size(limits::HEADER_LIST)
        .max_send_buf_size(limits::H2_SEND_BUFFER)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20));
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!("HTTP/2 connection ended: {error}");
    }
}

impl Handler for crate::webhook::Webhook {
    async fn handle(self: Arc<Self>, request: Request<Incoming>, _: SocketAddr) -> Response<Body> {
        self.serve(request).await
    }
}

impl<U: moorline_proxy::edge::Upstream, R: moorline_proxy::edge::Reviewer> Handler for crate::proxy::Proxy<U, R> {
    async fn handle(self: Arc<Self>, request: Request<Incoming>, remote: SocketAddr) -> Response<Body> {
        self.serve(request, remote).await
    }
}
