//! The QUIC carrier's settings and the hub's endpoint. Every limit is set by name: a library's default is not ours.

use crate::{
    AcceptError, Carrier, Greeting, Limits,
    carrier::{Conn, Quic},
    congestion::ModelConfig,
    greeting::{self, Peer},
    tls::ALPN,
};
use aws_lc_rs::{hkdf, hmac};
use moorline_proto::code::CloseCode;
use quinn::{EndpointConfig, TokioRuntime, TransportConfig, VarInt};
use quinn_proto::RandomConnectionIdGenerator;
use rustls_pki_types::CertificateDer;
use std::{
    io,
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::time::timeout;

/// Bytes that a socket may hold for us, if the system permits: a burst of one window.
const SOCKET_BUFFER: usize = 4 << 20;
/// Longest wait for closed connections to tell their peers.
const CLOSING: Duration = Duration::from_secs(2);

/// Bytes of a connection ID: too many to be used twice, even by two lives of a hub.
const CONNECTION_ID: usize = 8;
/// Shortest time between two stateless resets. Garbage costs this side little, and a fleet whose hub was killed is told
/// within seconds, but not all of it in one.
const RESET_EVERY: Duration = Duration::from_millis(5);

/// What an endpoint's next life has to know so that peers of this one are told at once that their connections are gone
/// (stateless reset, RFC 9000 §10.3), and not only by silence.
#[derive(Clone)]
pub struct QuicKeys {
    reset: Arc<hmac::Key>,
    addresses: Arc<hkdf::Prk>,
}

impl QuicKeys {
    /// Bytes of the secret.
    pub const SECRET: usize = 32;

    /// Keys from a secret that is kept from one life to the next. Whoever has it can end every connection; it protects
    /// nothing else.
    #[must_use]
    pub fn new(secret: &[u8; Self::SECRET]) -> Self {
        let key = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), b"moorline stateless reset");
        Self {
            reset: Arc::new(hmac::Key::new(hmac::HMAC_SHA256, key.as_ref())),
            addresses: Arc::new(hkdf::Salt::new(hkdf::HKDF_SHA256, b"moorline address token").extract(secret)),
        }
    }

    /// Connection IDs have to be of one kind in every life: quinn's default marks them by a key of its own, made anew
    /// at each start, and drops packets with the marks of another.
    fn endpoint(&self) -> EndpointConfig {
        let mut config = EndpointConfig::new(self.reset.clone());
        config
            .cid_generator(|| Box::new(RandomConnectionIdGenerator::new(CONNECTION_ID)))
            .min_reset_interval(RESET_EVERY);
        config
    }
}

impl std::fmt::Debug for QuicKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("QuicKeys(***)")
    }
}

/// `permitted`: streams that the peer may open.
pub(crate) fn transport(limits: &Limits, permitted: u32) -> Result<TransportConfig, io::Error> {
    let idle = limits.noticed().try_into().map_err(|_| io::Error::other("`silence` is too long for QUIC"))?;
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(permitted))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(limits.stream_window))
        .receive_window(VarInt::from_u32(limits.session_window))
        .send_window(limits.send_window.into())
        .send_fairness(true)
        .max_idle_timeout(Some(idle))
        // The sessions' own questions keep the path open; this is for the time before, and for questions that are lost.
        .keep_alive_interval(Some(limits.keep_alive * 2))
        .crypto_buffer_size(limits.quic_crypto_bytes)
        .datagram_receive_buffer_size(None)
        .datagram_send_buffer_size(0)
        .congestion_controller_factory(Arc::new(ModelConfig))
        .enable_segmentation_offload(true)
        .allow_spin(false);
    Ok(config)
}

fn server(tls: Arc<rustls::ServerConfig>, keys: &QuicKeys, limits: &Limits) -> io::Result<quinn::ServerConfig> {
    let crypto = quinn::crypto::rustls::QuicServerConfig::try_from(tls).map_err(io::Error::other)?;
    let mut config = quinn::ServerConfig::new(Arc::new(crypto), keys.addresses.clone());
    config
        .transport_config(Arc::new(transport(limits, limits.streams_to_hub)?))
        .retry_token_lifetime(limits.quic_retry_life)
        .max_incoming(limits.quic_incoming)
        .incoming_buffer_size(limits.quic_incoming_bytes)
        .incoming_buffer_size_total(limits.quic_incoming_bytes_total)
        .migration(true);
    Ok(config)
}

/// An endpoint on a bound socket, with buffers as large as the system permits.
pub(crate) fn endpoint(
    socket: UdpSocket,
    config: EndpointConfig,
    server: Option<quinn::ServerConfig>,
) -> io::Result<quinn::Endpoint> {
    let sock = socket2::SockRef::from(&socket);
    let _ = sock.set_recv_buffer_size(SOCKET_BUFFER); // the system's own bound is as good as ours
    let _ = sock.set_send_buffer_size(SOCKET_BUFFER);
    quinn::Endpoint::new(config, server, socket, Arc::new(TokioRuntime))
}

/// The hub's QUIC endpoint.
#[derive(Debug)]
pub struct QuicListener {
    endpoint: quinn::Endpoint,
    keys: QuicKeys,
    limits: Limits,
    handshakes: Arc<AtomicUsize>,
}

impl QuicListener {
    /// Takes over a bound UDP socket. `keys`: the same in each life of a hub.
    ///
    /// # Errors
    /// The socket cannot be used, or `tls` is no configuration for QUIC.
    pub fn bind(
        socket: UdpSocket,
        tls: Arc<rustls::ServerConfig>,
        keys: QuicKeys,
        limits: &Limits,
    ) -> io::Result<Self> {
        let endpoint = endpoint(socket, keys.endpoint(), Some(server(tls, &keys, limits)?))?;
        Ok(Self { endpoint, keys, limits: limits.clone(), handshakes: Arc::default() })
    }

    /// The next connection attempt; `None` once closed. Attempts over the limits are refused here, or have to prove
    /// their address first.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn accept(&self) -> Option<QuicIncoming> {
        loop {
            let incoming = self.endpoint.accept().await?;
            let busy = self.handshakes.load(Ordering::Relaxed);
            if self.endpoint.open_connections() >= self.limits.quic_connections || busy >= self.limits.quic_incoming {
                incoming.refuse();
            } else if busy >= self.limits.quic_retry_from
                && incoming.may_retry()
                && !incoming.remote_address_validated()
            {
                let _ = incoming.retry(); // fails only where `may_retry` says no
            } else {
                self.handshakes.fetch_add(1, Ordering::Relaxed);
                let handshake = Handshake(Arc::clone(&self.handshakes));
                return Some(QuicIncoming { incoming, limits: self.limits.clone(), handshake });
            }
        }
    }

    /// Uses another configuration for connections from here on.
    ///
    /// # Errors
    /// `tls` is no configuration for QUIC.
    pub fn set_server_config(&self, tls: Arc<rustls::ServerConfig>) -> io::Result<()> {
        self.endpoint.set_server_config(Some(server(tls, &self.keys, &self.limits)?));
        Ok(())
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The socket's own.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// Closes every connection with `Shutdown` and waits, for a bounded time, until the peers were told.
    pub async fn close(&self) {
        self.endpoint.close(VarInt::from_u32(CloseCode::Shutdown.number()), b"the hub goes away");
        let _ = timeout(CLOSING, self.endpoint.wait_idle()).await;
    }
}

/// One handshake under way, counted.
#[derive(Debug)]
struct Handshake(Arc<AtomicUsize>);
impl Drop for Handshake {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection attempt. Dropping it refuses it.
#[derive(Debug)]
pub struct QuicIncoming {
    incoming: quinn::Incoming,
    limits: Limits,
    handshake: Handshake,
}

impl QuicIncoming {
    /// Finishes the handshake and runs the hello.
    ///
    /// # Errors
    /// See [`AcceptError`].
    pub async fn greet(self) -> Result<Greeting, AcceptError> {
        let Self { incoming, limits, handshake } = self;
        let remote = incoming.remote_address();
        let failed = |error: quinn::ConnectionError| AcceptError::Handshake(error.to_string());
        let connecting = incoming.accept().map_err(failed)?;
        let conn = timeout(limits.handshake, connecting).await.map_err(|_| AcceptError::Timeout)?.map_err(failed)?;
        drop(handshake);
        let certs = peer_certs(&conn);
        let alpn_fits = speaks_our_protocol(&conn);
        let conn = Conn::Quic(Quic::new(conn, limits.streams_to_hub, limits.streams_to_hub, &limits));
        if !alpn_fits {
            return Err(AcceptError::Protocol("no common application protocol".into()));
        }
        greeting::listen(conn, Peer { carrier: Carrier::Quic, remote, certs }, &limits).await
    }

    /// Where it says it comes from.
    pub fn remote(&self) -> SocketAddr {
        self.incoming.remote_address()
    }
}

/// The peer's chain, leaf first.
pub(crate) fn peer_certs(conn: &quinn::Connection) -> Vec<CertificateDer<'static>> {
    conn.peer_identity()
        .and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok())
        .map(|certs| *certs)
        .unwrap_or_default()
}

pub(crate) fn speaks_our_protocol(conn: &quinn::Connection) -> bool {
    conn.handshake_data()
        .and_then(|any| any.downcast::<quinn::crypto::rustls::HandshakeData>().ok())
        .is_some_and(|data| data.protocol.as_deref() == Some(ALPN))
}
