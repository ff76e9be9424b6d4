//! The one port: TLS, then a tunnel or HTTP by what the client hello asks for.

use crate::{
    crowd::Crowd,
    front::Front,
    given::{Chooser, Given},
    known::Known,
    pki::Authority,
    reader::{Prompt, PromptIo},
    seat::{Seat, Seated},
    sessions::Sessions,
    shares::Importing,
    websocket::Door,
};
use arc_swap::ArcSwap;
use http::{Request, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use moorline_link::{Identity, QuicListener, ReadAhead, accept_tls, tls};
use moorline_proxy::guard::Guarded;
use rustls::{ServerConfig, server::Acceptor, sign::CertifiedKey};
use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;

/// Longest wait for an agent that was refused to hang up.
const LINGER: Duration = Duration::from_secs(1);
/// Bytes that such an agent may have sent meanwhile.
const LAST_BYTES: u64 = 64 << 10;
/// Window of one HTTP/2 stream, in bytes: throughput is this by RTT.
const H2_STREAM_WINDOW: u32 = 1 << 20;
/// Window of one HTTP/2 connection.
const H2_CONNECTION_WINDOW: u32 = 8 << 20;
/// Bytes that wait to be written, per HTTP/2 stream.
const H2_SEND_BUFFER: usize = 256 << 10;
/// Bytes of all headers of one request.
const HEADER_LIST: u32 = 32 << 10;
/// Resets of a peer that waits for nobody before the connection ends (CVE-2023-44487).
const H2_RESETS: usize = 20;
/// Bytes that the kernel may hold unsent of one connection.
#[cfg(target_os = "linux")]
const NOT_SENT: u32 = 128 << 10;

/// A client's or an agent's connection.
type Socket = ReadAhead<TcpStream>;

/// The two TLS configurations of the port, changed together when the hub's certificate is.
pub(crate) struct TlsPair {
    pub tunnel: Arc<ServerConfig>,
    /// For agents that import: the tunnel's rules, HTTP inside.
    pub imports: Arc<ServerConfig>,
    pub http: Arc<ServerConfig>,
    pub expires: SystemTime,
}

impl TlsPair {
    /// From a fresh certificate of the authority.
    /// `given`: another authority's, for names that it is good for.
    pub fn new(
        identity: &Identity,
        authority: &Authority,
        expires: SystemTime,
        given: Option<Arc<Given>>,
    ) -> Result<Self, String> {
        let tunnel = tls::server_config(identity, &authority.trust()).map_err(|e| e.to_string())?;
        let mut imports = (*tunnel).clone();
        imports.alpn_protocols = vec![tls::IMPORTS_ALPN.to_vec()];
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let own = CertifiedKey::from_der(identity.chain.clone(), identity.key.clone_key(), &provider);
        let chooser = Chooser { own: Arc::new(own.map_err(|e| e.to_string())?), given };
        let mut http = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(|e| e.to_string())?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(chooser));
        http.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self { tunnel, imports: Arc::new(imports), http: Arc::new(http), expires })
    }
}

/// The TCP side.
pub(crate) struct Port {
    pub front: Arc<Front>,
    pub sessions: Arc<Sessions>,
    pub websocket: Arc<Door>,
    pub tls: Arc<ArcSwap<TlsPair>>,
    pub link_limits: moorline_link::Limits,
    pub handshakes: Arc<Crowd>,
    pub connections: Arc<Crowd>,
    /// Connections of agents for what their clusters import.
    pub importing: Arc<Crowd>,
    /// No new connections from then on.
    pub stop: CancellationToken,
    /// Open connections finish what they have and end.
    pub finish: CancellationToken,
    /// Everything ends.
    pub kill: CancellationToken,
}

impl Port {
    /// Accepts until `stop`. No failure of accept(2) ends it.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) {
        let mut complained: Option<Instant> = None;
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let (socket, remote) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    self.front.metrics.accept_errors.inc();
                    if complained.is_none_or(|at| at.elapsed() >= Duration::from_secs(1)) {
                        complained = Some(Instant::now());
                        tracing::error!("connections cannot be accepted: {error}");
                    }
                    if !of_one_connection(&error) {
                        self.front.alive.accept_failed();
                        tokio::time::sleep(self.front.limits.accept_pause).await;
                    }
                    continue;
                }
            };
            let Ok(place) = self.connections.enter(remote.ip()) else {
                self.front.metrics.connections_refused.inc();
                continue; // closed at once: better than a wait without an end
            };
            let seat = Seat::new(place, &self.front.metrics);
            let port = Arc::clone(&self);
            self.front.tasks.spawn(async move {
                port.kill.run_until_cancelled(port.connection(socket, remote, seat)).await;
            });
        }
    }

    async fn connection(&self, socket: TcpStream, remote: SocketAddr, seat: Seat) {
        let _ = socket.set_nodelay(true);
        moorline_link::tries_again_soon(&socket);
        let reference = socket2::SockRef::from(&socket);
        let keepalive = socket2::TcpKeepalive::new().with_time(Duration::from_secs(30));
        let _ = reference.set_tcp_keepalive(&keepalive);
        #[cfg(target_os = "linux")]
        let _ = reference.set_tcp_user_timeout(Some(self.front.limits.unacknowledged));
        // Who takes little is told from who takes nothing, and a probe waits behind little.
        #[cfg(target_os = "linux")]
        let _ = reference.set_tcp_notsent_lowat(NOT_SENT);
        let failed = |kind: &str| self.front.metrics.handshake_failures.with_label_values(&[kind]).inc();
        let turn = match self.handshakes.wait(remote.ip(), self.front.limits.handshake).await {
            Ok(turn) => turn,
            Err(full) => return failed(full.label()),
        };
        let shaken = tokio::select! {
            shaken = timeout(self.front.limits.handshake, Box::pin(self.handshake(socket))) => shaken,
            () = self.finish.cancelled() => return,
        };
        drop(turn);
        let stream = match shaken {
            Ok(Ok(stream)) => stream,
            Ok(Err((error, socket))) => {
                tracing::debug!(%remote, "TLS handshake failed: {error}");
                failed("tls");
                if let Some(socket) = socket {
                    let _ = timeout(LINGER, hang_up(socket)).await;
                }
                return;
            }
            Err(_) => return failed("slow"),
        };
        match stream.get_ref().1.alpn_protocol() {
            Some(tls::ALPN) => {
                match Box::pin(accept_tls(stream, remote, &self.link_limits)).await {
                    Ok(greeting) => self.sessions.admit(greeting).await,
                    Err(error) => {
                        self.front.metrics.handshake_failed(&error);
                        tracing::info!(%remote, "no greeting: {error}");
                    }
                }
                // The session has bounds of its own.
                seat.leave();
            }
            Some(tls::IMPORTS_ALPN) => return Box::pin(self.imports(stream, remote, seat)).await,
            Some(b"h2") => Box::pin(self.http2(stream, remote)).await,
            _ => Box::pin(self.http1(stream, remote, &seat)).await,
        }
        seat.served(&self.front.metrics);
    }

    /// The client hello decides which certificate rules apply.
    ///
    /// # Errors
    /// What went wrong, and the connection if it is an agent's that was told so.
    async fn handshake(&self, socket: TcpStream) -> Result<TlsStream<Socket>, (io::Error, Option<Socket>)> {
        let accepting = LazyConfigAcceptor::new(Acceptor::default(), ReadAhead::new(socket));
        tokio::pin!(accepting);
        let start = match accepting.as_mut().await {
            Ok(start) => start,
            Err(error) => {
                if let Some(mut socket) = accepting.take_io() {
                    let words = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 35\r\n\r\nthis port speaks TLS: use https://\n";
                    let _ = socket.write_all(words).await;
                }
                return Err((error, None));
            }
        };
        let offers = |name: &[u8]| start.client_hello().alpn().is_some_and(|mut all| all.any(|alpn| alpn == name));
        let (tunnel, imports) = (offers(tls::ALPN), offers(tls::IMPORTS_ALPN));
        let pair = self.tls.load();
        let config = match (tunnel, imports) {
            (true, _) => Arc::clone(&pair.tunnel),
            (false, true) => Arc::clone(&pair.imports),
            (false, false) => Arc::clone(&pair.http),
        };
        drop(pair);
        let mutual = tunnel || imports;
        start.into_stream(config).into_fallible().await.map_err(|(error, socket)| (error, mutual.then_some(socket)))
    }

    async fn http1(&self, stream: TlsStream<Socket>, remote: SocketAddr, seat: &Seat) {
        // See `Limits::unacknowledged`: here a reader may take its time.
        #[cfg(target_os = "linux")]
        let _ = socket2::SockRef::from(stream.get_ref().0.get_ref()).set_tcp_user_timeout(None);
        let sni = stream.get_ref().1.server_name().map(str::to_owned);
        let (front, door) = (Arc::clone(&self.front), Arc::clone(&self.websocket));
        let known = Known::default();
        let (seen, held) = (known.clone(), seat.clone());
        let (limits, prompt) = (&self.front.limits, Prompt::default());
        let stream = PromptIo::new(stream, prompt.clone(), limits.reader, self.front.metrics.slow_readers.clone());
        let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
            let (front, door, sni, seat) = (Arc::clone(&front), Arc::clone(&door), sni.clone(), held.clone());
            request.extensions_mut().insert(seen.clone());
            let prompt = prompt.clone();
            prompt.forget();
            request.extensions_mut().insert(prompt.clone());
            async move {
                let response = match Door::takes(&request) && !front.is_of_a_service(&request) {
                    true => door.open(request, remote, seat).await,
                    false => front.serve(request, remote, sni.as_deref()).await,
                };
                if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                    prompt.forget();
                }
                Ok::<_, Infallible>(response)
            }
        });
        let mut builder = hyper::server::conn::http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(limits.head).max_headers(100).half_close(false);
        let stream = TokioIo::new(Guarded::new(Seated::new(stream, seat)));
        let connection = builder.serve_connection(stream, service).with_upgrades();
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = self.finish.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
            () = known.stranger_for(limits.stranger) => {
                connection.as_mut().graceful_shutdown();
                timeout(limits.head, connection).await.unwrap_or(Ok(()))
            }
        };
        if let Err(error) = ended {
            if error.is_parse() {
                self.front.metrics.refusals.with_label_values(&["framing"]).inc();
            }
            tracing::debug!(%remote, "HTTP/1 connection ended: {error}");
        }
    }

    /// HTTP of an agent, for what its cluster imports.
    async fn imports(&self, stream: TlsStream<Socket>, remote: SocketAddr, seat: Seat) {
        let cert = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let agent = match Importing::of(&self.front, &self.sessions, cert, remote) {
            Ok(agent) => agent,
            Err(why) => {
                self.front.metrics.handshake_failures.with_label_values(&["not_an_agent"]).inc();
                tracing::info!(%remote, "nothing to import for this one: {why}");
                return;
            }
        };
        // Whatever pods open: places of people and of agents that come back are none of theirs.
        let Ok(place) = self.importing.enter(remote.ip()) else {
            self.front.metrics.connections_refused.inc();
            return;
        };
        seat.leave();
        let seat = Seat::new(place, &self.front.metrics);
        let service = hyper::service::service_fn(move |request: Request<Incoming>| {
            let agent = agent.clone();
            async move { Ok::<_, Infallible>(agent.serve(request).await) }
        });
        let mut builder = hyper::server::conn::http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(self.front.limits.head).max_headers(100).half_close(false);
        let stream = TokioIo::new(Guarded::new(Seated::new(stream, &seat)));
        let ended = {
            let connection = builder.serve_connection(stream, service).with_upgrades();
            tokio::pin!(connection);
            tokio::select! {
                ended = connection.as_mut() => ended,
                () = self.finish.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            }
        };
        seat.served(&self.front.metrics);
        if let Err(error) = ended {
            tracing::debug!(%remote, "an importing agent's connection ended: {error}");
        }
    }

    async fn http2(&self, stream: TlsStream<Socket>, remote: SocketAddr) {
        let sni = stream.get_ref().1.server_name().map(str::to_owned);
        let front = Arc::clone(&self.front);
        let known = Known::default();
        let seen = known.clone();
        let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
            let (front, sni) = (Arc::clone(&front), sni.clone());
            request.extensions_mut().insert(seen.clone());
            async move { Ok::<_, Infallible>(front.serve(request, remote, sni.as_deref()).await) }
        });
        let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(H2_STREAM_WINDOW)
            .initial_connection_window_size(H2_CONNECTION_WINDOW)
            .max_concurrent_streams(self.front.limits.h2_streams)
            .max_pending_accept_reset_streams(H2_RESETS)
            .max_local_error_reset_streams(H2_RESETS)
            .max_header_list_size(HEADER_LIST)
            .max_send_buf_size(H2_SEND_BUFFER)
            .keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(20));
        let connection = builder.serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = self.finish.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
            () = known.stranger_for(self.front.limits.stranger) => {
                connection.as_mut().graceful_shutdown();
                timeout(self.front.limits.head, connection).await.unwrap_or(Ok(()))
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%remote, "HTTP/2 connection ended: {error}");
        }
    }
}

/// Closes a connection so that its peer reads what it was told last. An agent is done with its handshake before the
/// hub has seen its certificate and sends on; to close with that unread would be a reset, and would take back the alert.
async fn hang_up(mut socket: Socket) -> io::Result<()> {
    socket.shutdown().await?;
    tokio::io::copy(&mut socket.take(LAST_BYTES), &mut tokio::io::sink()).await?;
    Ok(())
}

/// Whether the failure is of the one connection that was to be accepted, and the next may do.
fn of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | ConnectionRefused | Interrupted)
}

/// The UDP side: accepts until the listener is closed.
pub(crate) async fn serve_quic(listener: Arc<QuicListener>, sessions: Arc<Sessions>, stop: CancellationToken) {
    loop {
        let incoming = tokio::select! {
            () = stop.cancelled() => return,
            incoming = listener.accept() => incoming,
        };
        let Some(incoming) = incoming else { return };
        let task = Arc::clone(&sessions);
        sessions.tasks.spawn(async move {
            let remote = incoming.remote();
            match incoming.greet().await {
                Ok(greeting) => task.admit(greeting).await,
                Err(error) => {
                    task.metrics.handshake_failed(&error);
                    tracing::info!(%remote, "no greeting: {error}");
                }
            }
        });
    }
}
