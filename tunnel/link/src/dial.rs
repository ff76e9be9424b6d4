//! The agent's side: dial and greet.

mod connect;
mod tapped;
mod words;

pub(crate) use connect::shake_hands;

use crate::{
    Carrier, HttpProxy, HubAddress, Limits, Session,
    carrier::Conn,
    control::{ReadError, read_message, write_message},
    session::{Parts, Side},
    tls,
};
use moorline_proto::{
    code::CloseCode,
    control::{Control, Goodbye, Hello, Welcome},
    header::Class,
    id::SessionId,
};
use rustls_pki_types::CertificateDer;
use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::time::timeout;
use words::{tls_cause, words};

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
    /// The proxy on the way cannot be used, or does not let the connection through.
    #[error("no way to {address} through the proxy {proxy}: {cause}")]
    Proxy {
        /// What was dialled.
        address: String,
        /// The proxy, without its password.
        proxy: String,
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
    pub remote: SocketAddr,
    pub certs: Vec<CertificateDer<'static>>,
    /// The TLS error that ended it.
    pub alert: Arc<OnceLock<String>>,
}

/// Dials a hub without a proxy and greets it.
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
    dial_through(address, carrier, None, tls, hello, limits).await
}

/// [`dial`] by way of a proxy: TLS and WebSocket alone, for QUIC there is no such thing.
///
/// # Errors
/// See [`DialError`].
///
/// # Cancel safety
/// Dropping the future closes the connection.
pub async fn dial_through(
    address: &HubAddress,
    carrier: Carrier,
    proxy: Option<&HttpProxy>,
    tls: Arc<rustls::ClientConfig>,
    hello: Hello,
    limits: &Limits,
) -> Result<(Session, Welcome), DialError> {
    connect(address, carrier, proxy, tls, limits).await?.greet(hello, limits).await
}

/// A connection whose handshake is done and on which nobody has greeted: that a carrier works can be found out without
/// the hub taking it for a session. Dropping it closes it.
#[derive(Debug)]
pub struct Connection {
    address: HubAddress,
    carrier: Carrier,
    dialled: Dialled,
}

/// Dials a hub and shakes hands with it.
///
/// # Errors
/// See [`DialError`].
///
/// # Cancel safety
/// Dropping the future closes the connection.
pub async fn connect(
    address: &HubAddress,
    carrier: Carrier,
    proxy: Option<&HttpProxy>,
    tls: Arc<rustls::ClientConfig>,
    limits: &Limits,
) -> Result<Connection, DialError> {
    let dialled = shake_hands(address, carrier, proxy, tls, limits).await?;
    Ok(Connection { address: address.clone(), carrier, dialled })
}

impl Connection {
    /// What carries it.
    pub fn carrier(&self) -> Carrier {
        self.carrier
    }

    /// Says hello and hears the hub's answer.
    ///
    /// # Errors
    /// See [`DialError`].
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection.
    pub async fn greet(self, hello: Hello, limits: &Limits) -> Result<(Session, Welcome), DialError> {
        greet(&self.address, self.carrier, self.dialled, hello, limits).await
    }
}

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
