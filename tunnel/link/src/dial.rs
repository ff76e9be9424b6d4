//! The agent's side: dial and greet.

use crate::{
    Carrier, HubAddress, Limits, ReadAhead, Session,
    carrier::{Conn, Quic},
    control::{ReadError, read_message, write_message},
    greeting::tune,
    mux::{self, MuxRole},
    quic,
    session::{Parts, Side},
    tls,
};
use moorline_proto::{
    code::CloseCode,
    control::{Control, Goodbye, Hello, Welcome},
    header::Class,
    id::SessionId,
};
use rustls_pki_types::{CertificateDer, ServerName};
use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{timeout, timeout_at},
};
use tokio_rustls::TlsConnector;

/// Addresses of one name that are tried, the first ones.
const ADDRESSES: usize = 8;

/// Why a dial came to no session.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The name has no address.
    #[error("cannot resolve {host}: {cause}")]
    Dns {
        /// The name.
        host: String,
        /// The cause in words.
        cause: String,
    },
    /// No address took the connection.
    #[error("cannot connect to {address}: {cause}")]
    Connect {
        /// What was dialled.
        address: String,
        /// The cause in words.
        cause: String,
    },
    /// The handshake failed.
    #[error("TLS to {address} failed: {cause}")]
    Tls {
        /// What was dialled.
        address: String,
        /// The cause in words.
        cause: String,
    },
    /// It took too long.
    #[error("no answer from {address} in time ({phase})")]
    Timeout {
        /// What was dialled.
        address: String,
        /// What was waited for.
        phase: &'static str,
    },
    /// The hub said no.
    #[error("the hub refused the session ({}): {}", .0.code, .0.message)]
    Refused(Goodbye),
    /// The peer does not speak this protocol as it should.
    #[error("{address} broke the protocol: {cause}")]
    Protocol {
        /// What was dialled.
        address: String,
        /// The cause in words.
        cause: String,
    },
    /// The connection ended during the greeting.
    #[error("connection to {address} lost: {cause}")]
    Lost {
        /// What was dialled.
        address: String,
        /// The cause in words.
        cause: String,
    },
}

impl DialError {
    /// The pause that the hub asked for.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused(goodbye) if goodbye.retry_after_ms > 0 => {
                Some(Duration::from_millis(goodbye.retry_after_ms.into()))
            }
            _ => None,
        }
    }
}

/// A connection whose handshake is done.
#[derive(Debug)]
pub(crate) struct Dialled {
    pub conn: Conn,
    remote: SocketAddr,
    certs: Vec<CertificateDer<'static>>,
    alert: Arc<OnceLock<String>>,
}

/// Dials a hub and greets it.
///
/// # Errors
/// See [`DialError`].
///
/// # Cancel safety
/// Dropping the future closes the connection.
pub async fn dial(
    address: &HubAddress,
    carrier: Carrier,
    tls: Arc<rustls::ClientConfig>,
    hello: Hello,
    limits: &Limits,
) -> Result<(Session, Welcome), DialError> {
    let dialled = connect(address, carrier, tls, limits).await?;
    greet(address, carrier, dialled, hello, limits).await
}

/// Dials the addresses of a hub one after the other until one has shaken hands.
pub(crate) async fn connect(
    address: &HubAddress,
    carrier: Carrier,
    tls: Arc<rustls::ClientConfig>,
    limits: &Limits,
) -> Result<Dialled, DialError> {
    let host = &address.host;
    let name = ServerName::try_from(host.clone())
        .map_err(|_| DialError::Dns { host: host.clone(), cause: "not a DNS name or IP address".into() })?;
    let deadline = tokio::time::Instant::now() + limits.handshake;
    let addresses: Vec<_> = match timeout_at(deadline, tokio::net::lookup_host((host.as_str(), address.port))).await {
        Err(_) => return Err(DialError::Dns { host: host.clone(), cause: "no answer in time".into() }),
        Ok(Err(error)) => return Err(DialError::Dns { host: host.clone(), cause: error.to_string() }),
        Ok(Ok(found)) => found.take(ADDRESSES).collect(),
    };
    let mut last = DialError::Dns { host: host.clone(), cause: "it has no address".into() };
    for remote in addresses {
        let attempt = async {
            match carrier {
                Carrier::Quic => dial_quic(address, remote, Arc::clone(&tls), limits).await,
                Carrier::Tls => dial_tls(address, remote, name.clone(), Arc::clone(&tls), limits).await,
            }
        };
        match timeout_at(deadline, attempt).await {
            Ok(Ok(dialled)) => return Ok(dialled),
            // Another address of the same name would say the same.
            Ok(Err(error @ (DialError::Tls { .. } | DialError::Protocol { .. }))) => return Err(error),
            Ok(Err(error)) => last = error,
            Err(_) => return Err(DialError::Timeout { address: address.to_string(), phase: "handshake" }),
        }
    }
    Err(last)
}

async fn dial_quic(
    address: &HubAddress,
    remote: SocketAddr,
    tls: Arc<rustls::ClientConfig>,
    limits: &Limits,
) -> Result<Dialled, DialError> {
    let connect = |cause: String| DialError::Connect { address: address.to_string(), cause };
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).map_err(|error| connect(error.to_string()))?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    let transport = quic::transport(limits, limits.streams_start).map_err(|error| connect(error.to_string()))?;
    config.transport_config(Arc::new(transport));
    let local: SocketAddr = match remote {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let endpoint = UdpSocket::bind(local)
        .and_then(|socket| quic::endpoint(socket, quinn::EndpointConfig::default(), None))
        .map_err(|error| connect(error.to_string()))?;
    let connecting =
        endpoint.connect_with(config, remote, &address.host).map_err(|error| connect(error.to_string()))?;
    let conn = match timeout(limits.connect_each, connecting).await {
        Err(_) => return Err(DialError::Timeout { address: address.to_string(), phase: "QUIC handshake" }),
        Ok(Err(error)) => {
            return Err(match tls_cause(&error) {
                Some(cause) => DialError::Tls { address: address.to_string(), cause },
                None => connect(error.to_string()),
            });
        }
        Ok(Ok(conn)) => conn,
    };
    if !quic::speaks_our_protocol(&conn) {
        return Err(DialError::Protocol { address: address.to_string(), cause: NO_ALPN.into() });
    }
    let certs = quic::peer_certs(&conn);
    let conn = Conn::Quic(Quic::new(conn, limits.streams_start, limits.streams_max, limits));
    Ok(Dialled { conn, remote, certs, alert: Arc::default() })
}

async fn dial_tls(
    address: &HubAddress,
    remote: SocketAddr,
    name: ServerName<'static>,
    tls: Arc<rustls::ClientConfig>,
    limits: &Limits,
) -> Result<Dialled, DialError> {
    let connect = |error: io::Error| DialError::Connect { address: address.to_string(), cause: error.to_string() };
    let socket = match timeout(limits.connect_each, TcpStream::connect(remote)).await {
        Err(_) => return Err(DialError::Timeout { address: address.to_string(), phase: "TCP connect" }),
        Ok(socket) => socket.map_err(connect)?,
    };
    tune(&socket, limits).map_err(connect)?;
    let stream = TlsConnector::from(tls).connect(name, ReadAhead::new(socket)).await.map_err(|error| {
        let address = address.to_string();
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(error) => DialError::Tls { address, cause: words(&error.to_string()) },
            None => DialError::Lost { address, cause: format!("{error} during the TLS handshake") },
        }
    })?;
    let (_, session) = stream.get_ref();
    if session.alpn_protocol() != Some(tls::ALPN) {
        return Err(DialError::Protocol { address: address.to_string(), cause: NO_ALPN.into() });
    }
    let certs =
        session.peer_certificates().unwrap_or_default().iter().cloned().map(CertificateDer::into_owned).collect();
    let alert = Arc::default();
    let tapped = Tapped { inner: stream, alert: Arc::clone(&alert) };
    let conn = Conn::Mux(mux::spawn(tapped, MuxRole::Client, limits));
    Ok(Dialled { conn, remote, certs, alert })
}

const NO_ALPN: &str = "it does not speak moorline/1: no hub, or a proxy that ends TLS is in the way";

/// Sessions of this process, for [`Session::id`] on the agent's side.
static SESSIONS: AtomicU64 = AtomicU64::new(1);

async fn greet(
    address: &HubAddress,
    carrier: Carrier,
    dialled: Dialled,
    hello: Hello,
    limits: &Limits,
) -> Result<(Session, Welcome), DialError> {
    let Dialled { conn, remote, certs, alert } = dialled;
    let at = || address.to_string();
    let (min, max) = (hello.min_version, hello.max_version);
    let greeted = async {
        let mut control =
            conn.open(Class::Interactive).await.map_err(|error| ReadError::Io(io::Error::other(error)))?;
        write_message(&mut control, &Control::Hello(hello)).await?;
        let answer = read_message(&mut control).await?;
        Ok((control, answer))
    };
    let (control, welcome) = match timeout(limits.hello, greeted).await {
        Err(_) => {
            conn.close(CloseCode::SlowHello, "no welcome in time");
            return Err(DialError::Timeout { address: at(), phase: "greeting" });
        }
        Ok(Ok((control, Control::Welcome(welcome)))) => (control, welcome),
        Ok(Ok((_, Control::Goodbye(goodbye)))) => {
            conn.close(CloseCode::Normal, "after the hub's goodbye");
            return Err(DialError::Refused(goodbye));
        }
        Ok(Ok((_, other))) => {
            conn.close(CloseCode::Protocol, "neither welcome nor goodbye");
            return Err(DialError::Protocol { address: at(), cause: format!("{} instead of welcome", other.name()) });
        }
        Ok(Err(error @ ReadError::Wire(_))) => {
            conn.close(error.code(), &format!("welcome: {error}"));
            return Err(DialError::Protocol { address: at(), cause: error.to_string() });
        }
        Ok(Err(error)) => return Err(explain(at(), &conn, &alert, &error).await),
    };
    if !(min..=max).contains(&welcome.version) {
        conn.close(CloseCode::Version, "a version that was not offered");
        let cause = format!("it chose version {}, offered were {min} to {max}", welcome.version);
        return Err(DialError::Protocol { address: at(), cause });
    }
    let peer = certs.first().ok_or_else(|| "it showed no certificate".to_owned());
    let peer = peer.and_then(|cert| tls::peer_id(cert).map_err(|error| error.to_string()));
    let peer = peer.map_err(|cause| DialError::Protocol { address: at(), cause })?;
    let id = SessionId(SESSIONS.fetch_add(1, Ordering::Relaxed));
    let limits = limits.clone();
    let parts = Parts { id, side: Side::Agent, peer, carrier, remote, hello: None, conn, limits };
    Ok((Session::start(parts, Some(control)), welcome))
}

/// Why the connection went away during the greeting. A hub that refuses our certificate does so only now: in TLS 1.3
/// the dialler is done before the hub has seen it.
async fn explain(address: String, conn: &Conn, alert: &OnceLock<String>, error: &ReadError) -> DialError {
    let reason = timeout(Duration::from_secs(1), conn.closed()).await;
    if let Some(cause) = conn.quic_error().as_ref().and_then(tls_cause).or_else(|| alert.get().map(|text| words(text)))
    {
        return DialError::Tls { address, cause };
    }
    match reason {
        Ok(reason) if reason.by_peer && reason.code != CloseCode::Normal => {
            DialError::Refused(Goodbye { code: reason.code, message: reason.message, retry_after_ms: 0 })
        }
        Ok(reason) => DialError::Lost { address, cause: reason.message },
        Err(_) => DialError::Lost { address, cause: error.to_string() },
    }
}

/// The TLS failure in a QUIC error: codes 0x100 to 0x1ff are 0x100 plus the alert (RFC 9001 §4.8).
fn tls_cause(error: &quinn::ConnectionError) -> Option<String> {
    let alert = |code: u64| match code {
        0x100..=0x1ff => u8::try_from(code - 0x100).ok().map(rustls::AlertDescription::from),
        _ => None,
    };
    match error {
        quinn::ConnectionError::TransportError(error) => alert(error.code.into()).map(|_| words(&error.reason)),
        quinn::ConnectionError::ConnectionClosed(close) => {
            alert(close.error_code.into()).map(|alert| words(&format!("received fatal alert: {alert:?}")))
        }
        _ => None,
    }
}

/// What a TLS error means for whoever has to mend it.
fn words(error: &str) -> String {
    let (theirs, ours) = ("the hub's certificate", "the hub refused this agent's certificate");
    let has = |text: &str| error.contains(text);
    if has("received fatal alert") {
        if has("CertificateExpired") {
            return format!("{ours}: expired or not valid yet; check the clocks of both, or join again");
        } else if has("UnknownCA") {
            return format!("{ours}: it comes from an authority that the hub does not know; join again");
        } else if has("NoApplicationProtocol") {
            return NO_ALPN.into();
        } else if has("Certificate") || has("AccessDenied") || has("DecryptError") {
            return format!("{ours}: it names nobody who may dial in ({error})");
        }
    } else if has("not valid yet") || has("NotValidYet") {
        return format!("{theirs} is not valid yet: is this machine's clock right? ({error})");
    } else if has("expired") || has("Expired") {
        return format!("{theirs} has expired: is this machine's clock right? ({error})");
    } else if has("UnknownIssuer") || has("BadSignature") {
        return format!("{theirs} comes from an authority that this agent does not trust: is this the right hub?");
    } else if has("wrong identity") || has("WrongIdentity") {
        return format!("{theirs} is somebody else's ({error})");
    } else if has("InvalidPurpose") {
        return format!("{theirs} is not made for servers ({error})");
    }
    error.to_owned()
}

/// Passes bytes on and remembers the TLS error that ended them: the mux above knows only that it was an error.
struct Tapped<IO> {
    inner: IO,
    alert: Arc<OnceLock<String>>,
}
impl<IO> Tapped<IO> {
    fn note<T>(&self, outcome: &Poll<io::Result<T>>) {
        if let Poll::Ready(Err(error)) = outcome
            && let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>())
        {
            let _ = self.alert.set(error.to_string()); // the first one counts
        }
    }
}
impl<IO: AsyncRead + Unpin> AsyncRead for Tapped<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.inner).poll_read(cx, buf);
        self.note(&outcome);
        outcome
    }
}
impl<IO: AsyncWrite + Unpin> AsyncWrite for Tapped<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
