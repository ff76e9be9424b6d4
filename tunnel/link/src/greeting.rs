//! The hub's side of the greeting.

use crate::{
    Carrier, Limits, ReadAhead, Session,
    carrier::{Conn, Raw},
    control::{read_message, write_message},
    mux::{self, MuxRole},
    session::{Parts, Side},
    tcp::tune,
    tls, websocket,
};
use moorline_proto::{
    code::CloseCode,
    control::{Control, Goodbye, Hello, VERSION, Welcome},
    id::{Role, SessionId, SpiffeId},
};
use rustls_pki_types::CertificateDer;
use std::{io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

/// How long a refused agent may take to hang up once it was told.
const LINGER: Duration = Duration::from_secs(2);

/// Why an agent's connection came to no greeting.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// The transport's handshake failed.
    #[error("handshake failed: {0}")]
    Handshake(String),
    /// The certificate names nobody who may dial in.
    #[error("peer's certificate is no agent's: {0}")]
    Identity(String),
    /// Handshake or hello took too long.
    #[error("greeting not finished in time")]
    Timeout,
    /// The peer broke the protocol.
    #[error("peer broke the protocol: {0}")]
    Protocol(String),
    /// No common version.
    #[error("peer speaks versions {min} to {max}, this side speaks {ours}")]
    Version {
        /// The peer's lowest.
        min: u16,
        /// The peer's highest.
        max: u16,
        /// Ours.
        ours: u16,
    },
    /// The connection ended.
    #[error("connection lost: {0}")]
    Lost(String),
}

/// An agent that has said who it is and waits for the hub's answer. Dropping it closes the connection.
#[derive(Debug)]
pub struct Greeting {
    /// Who the certificate says it is: chain, trust domain and role are checked, nothing else.
    pub peer: SpiffeId,
    /// SHA-256 of the public key that the peer proved to hold.
    pub peer_key_sha256: [u8; 32],
    /// The peer's certificate.
    pub peer_cert: CertificateDer<'static>,
    /// What it said. [`Hello::now_ms`] against this side's clock tells a skew.
    pub hello: Hello,
    /// What carries it.
    pub carrier: Carrier,
    /// Where it comes from.
    pub remote: SocketAddr,
    pub(crate) conn: Conn,
    pub(crate) control: Raw,
    limits: Limits,
}

/// What a handshake has proved.
#[derive(Debug)]
pub(crate) struct Peer {
    pub carrier: Carrier,
    pub remote: SocketAddr,
    /// Leaf first.
    pub certs: Vec<CertificateDer<'static>>,
}

impl Greeting {
    /// Opens the session. [`Welcome::version`] has to be [`VERSION`].
    ///
    /// # Errors
    /// The connection was lost meanwhile, or the peer does not take the answer in time.
    pub async fn welcome(mut self, id: SessionId, welcome: Welcome) -> Result<Session, AcceptError> {
        let message = Control::Welcome(welcome);
        match timeout(self.limits.hello, write_message(&mut self.control, &message)).await {
            Err(_) => {
                self.conn.close(CloseCode::SlowHello, "the welcome was not taken in time");
                return Err(AcceptError::Timeout);
            }
            Ok(Err(error)) => return Err(AcceptError::Lost(error.to_string())),
            Ok(Ok(())) => {}
        }
        let Self { peer, hello, carrier, remote, conn, control, limits, .. } = self;
        let parts = Parts { id, side: Side::Hub, peer, carrier, remote, hello: Some(hello), conn, limits };
        Ok(Session::start(parts, Some(control)))
    }

    /// Says why there is no session, and closes the connection.
    pub async fn refuse(mut self, goodbye: Goodbye) {
        say_goodbye(&self.conn, &mut self.control, goodbye).await;
    }
}

/// Tells the peer, waits for a bounded time until it hangs up, and closes with the same code.
async fn say_goodbye(conn: &Conn, control: &mut Raw, goodbye: Goodbye) {
    let (code, text) = (goodbye.code, goodbye.message.clone());
    let told = async {
        write_message(control, &Control::Goodbye(goodbye)).await?;
        control.shutdown().await?;
        conn.closed().await;
        io::Result::Ok(())
    };
    let _ = timeout(LINGER, told).await; // whoever does not listen sees the code of the close
    conn.close(code, &text);
}

/// Runs the hello on an accepted TLS connection.
///
/// # Errors
/// See [`AcceptError`]; the peer has been told the code by then.
pub async fn accept_tls(
    conn: TlsStream<ReadAhead<TcpStream>>,
    remote: SocketAddr,
    limits: &Limits,
) -> Result<Greeting, AcceptError> {
    tune(conn.get_ref().0.get_ref(), limits).map_err(|error| AcceptError::Lost(error.to_string()))?;
    accept_mux(conn, Carrier::Tls, remote, limits).await
}

/// Runs TLS and the hello on a connection that was upgraded to a WebSocket, as [`crate::websocket::upgrade`] agreed to.
///
/// # Errors
/// See [`AcceptError`].
pub async fn accept_websocket<IO>(
    upgraded: IO,
    tls: Arc<rustls::ServerConfig>,
    remote: SocketAddr,
    limits: &Limits,
) -> Result<Greeting, AcceptError>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let bytes = websocket::serve(upgraded).await;
    match timeout(limits.handshake, TlsAcceptor::from(tls).accept(bytes)).await {
        Ok(Ok(conn)) => accept_mux(conn, Carrier::WebSocket, remote, limits).await,
        Ok(Err(error)) => Err(AcceptError::Handshake(error.to_string())),
        Err(_) => Err(AcceptError::Timeout),
    }
}

async fn accept_mux<IO>(
    conn: TlsStream<IO>,
    carrier: Carrier,
    remote: SocketAddr,
    limits: &Limits,
) -> Result<Greeting, AcceptError>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (_, session) = conn.get_ref();
    if session.alpn_protocol() != Some(tls::ALPN) {
        return Err(AcceptError::Protocol("no common application protocol".into()));
    }
    let certs =
        session.peer_certificates().unwrap_or_default().iter().cloned().map(CertificateDer::into_owned).collect();
    let conn = Conn::Mux(mux::spawn(conn, MuxRole::Server, limits));
    listen(conn, Peer { carrier, remote, certs }, limits).await
}

/// Hears the hello on a connection whose handshake is done.
pub(crate) async fn listen(conn: Conn, peer: Peer, limits: &Limits) -> Result<Greeting, AcceptError> {
    let Peer { carrier, remote, certs } = peer;
    let identified = certs.into_iter().next().ok_or_else(|| "it showed none".to_owned()).and_then(|cert| {
        let id = tls::peer_id(&cert).map_err(|error| error.to_string())?;
        let key = tls::spki_sha256(&cert).map_err(|error| error.to_string())?;
        Ok((id, key, cert))
    });
    let (peer, peer_key_sha256, peer_cert) = match identified {
        Ok(found) if !matches!(found.0.role, Role::Hub(_)) => found,
        // The verifier of the handshake has refused it by now; this is for one that was put together wrongly.
        Ok((id, ..)) => {
            conn.close(CloseCode::NotAllowed, "a hub does not dial in");
            return Err(AcceptError::Identity(format!("{id} is no agent")));
        }
        Err(why) => {
            conn.close(CloseCode::NotAllowed, "no agent's certificate");
            return Err(AcceptError::Identity(why));
        }
    };
    let Ok(heard) = timeout(limits.hello, hear_hello(&conn)).await else {
        conn.close(CloseCode::SlowHello, "no hello in time");
        return Err(AcceptError::Timeout);
    };
    let (mut control, hello) = heard?;
    if !(hello.min_version..=hello.max_version).contains(&VERSION) {
        let (min, max, ours) = (hello.min_version, hello.max_version, VERSION);
        let message = format!("this hub speaks version {ours}, the agent {min} to {max}");
        say_goodbye(&conn, &mut control, Goodbye { code: CloseCode::Version, message, retry_after_ms: 0 }).await;
        return Err(AcceptError::Version { min, max, ours });
    }
    let limits = limits.clone();
    Ok(Greeting { peer, peer_key_sha256, peer_cert, hello, carrier, remote, conn, control, limits })
}

async fn hear_hello(conn: &Conn) -> Result<(Raw, Hello), AcceptError> {
    let Some(mut control) = conn.accept().await else {
        return Err(AcceptError::Lost(conn.closed().await.message));
    };
    match read_message(&mut control).await {
        Ok(Control::Hello(hello)) => Ok((control, hello)),
        Ok(other) => {
            conn.close(CloseCode::Protocol, "the first message must be hello");
            Err(AcceptError::Protocol(format!("{} instead of hello", other.name())))
        }
        Err(error) => {
            conn.close(error.code(), &format!("hello: {error}"));
            Err(AcceptError::Protocol(error.to_string()))
        }
    }
}
