//! Relays: a TCP service at the far end of a tunnel gets a port at the near end. Moorline's tunnel by itself, without a hub's
//! users and without HTTP, and the barest that does the same with the same cryptography.

use anyhow::{Context, Result};
use clap::{Subcommand, ValueEnum};
use moorline_link::{
    Carrier, HubAddress, Identity, Limits, QuicKeys, QuicListener, ReadAhead, Session, Trust, accept_tls, dial,
    splice::splice, tls,
};
use moorline_proto::{
    control::{Hello, VERSION, Welcome},
    header::{Class, StreamHeader, Target},
    id::{InstanceId, SessionId},
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use std::{
    net::{SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, join},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// Longer than any measurement.
const IDLE: Duration = Duration::from_secs(3600);
/// Streams and bytes that a bare QUIC connection may have under way: more than any measurement needs.
const BARE_STREAMS: u32 = 4096;
const BARE_WINDOW: u32 = 32 << 20;

/// What carries connections from the near end to the far one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Moorline's mux on one TLS connection.
    Tls,
    /// Moorline on QUIC.
    Quic,
    /// A TLS connection for each connection, on one thread.
    BareTls,
    /// One QUIC connection as quinn has it, on one thread.
    BareQuic,
}

impl Kind {
    /// Whether it stands for the least that such a relay can do.
    pub fn is_bare(self) -> bool {
        matches!(self, Self::BareTls | Self::BareQuic)
    }
}

/// One end of a relay.
#[derive(Debug, Subcommand)]
pub enum End {
    /// Makes the keys of both ends.
    Keys {
        /// A folder for them.
        dir: PathBuf,
    },
    /// The end to which clients connect.
    Near {
        /// What carries it.
        kind: Kind,
        /// The folder of the keys.
        dir: PathBuf,
        /// Where clients connect.
        #[arg(long)]
        listen: SocketAddr,
        /// Where the ends meet.
        #[arg(long)]
        meet: SocketAddr,
    },
    /// The end at which the service is.
    Far {
        /// What carries it.
        kind: Kind,
        /// The folder of the keys.
        dir: PathBuf,
        /// Where the service is.
        #[arg(long)]
        target: SocketAddr,
        /// Where the ends meet.
        #[arg(long)]
        meet: SocketAddr,
    },
}

impl End {
    /// Whether it runs on one thread.
    pub fn is_bare(&self) -> bool {
        match self {
            Self::Keys { .. } => false,
            Self::Near { kind, .. } | Self::Far { kind, .. } => kind.is_bare(),
        }
    }

    /// Runs it, until it is killed.
    pub async fn run(self) -> Result<()> {
        match self {
            Self::Keys { dir } => keys(&dir),
            Self::Near { kind, dir, listen, meet } => near(kind, &dir, TcpListener::bind(listen).await?, meet).await,
            Self::Far { kind, dir, target, meet } => far(kind, &dir, target, meet).await,
        }
    }
}

fn keys(dir: &Path) -> Result<()> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    std::fs::write(dir.join("ca"), authority.der())?;
    for (name, uri) in [("hub", "spiffe://bench/hub/h1"), ("agent", "spiffe://bench/cluster/c1/agent/a1")] {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(uri.try_into()?)];
        let key = KeyPair::generate()?;
        std::fs::write(dir.join(name), params.signed_by(&key, &authority)?.der())?;
        std::fs::write(dir.join(format!("{name}.key")), key.serialize_der())?;
    }
    Ok(())
}

fn identity(dir: &Path, name: &str) -> Result<(Identity, Trust)> {
    let read = |name: &str| std::fs::read(dir.join(name)).with_context(|| name.to_owned());
    let authority = CertificateDer::from(read("ca")?);
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(read(&format!("{name}.key"))?));
    let chain = vec![CertificateDer::from(read(name)?), authority.clone()];
    Ok((Identity { chain, key }, Trust { roots: vec![authority], domain: "bench".parse()? }))
}

fn server(dir: &Path) -> Result<Arc<rustls::ServerConfig>> {
    let (identity, trust) = identity(dir, "hub")?;
    Ok(tls::server_config(&identity, &trust)?)
}

fn client(dir: &Path) -> Result<Arc<rustls::ClientConfig>> {
    let (identity, trust) = identity(dir, "agent")?;
    Ok(tls::client_config(&identity, &trust)?)
}

/// Joins two connections until both ways have ended.
async fn relay(a: impl AsyncRead + AsyncWrite + Unpin, b: impl AsyncRead + AsyncWrite + Unpin) {
    let _ = splice(a, b, IDLE).await; // who is cut sees it
}

async fn dialled(target: SocketAddr) -> Result<TcpStream> {
    let socket = TcpStream::connect(target).await?;
    socket.set_nodelay(true)?;
    Ok(socket)
}

async fn near(kind: Kind, dir: &Path, clients: TcpListener, meet: SocketAddr) -> Result<()> {
    let ways = match kind {
        Kind::Tls | Kind::Quic => Ways::Session(welcome(kind, dir, meet).await?),
        Kind::BareTls => Ways::Tls(TlsConnector::from(client(dir)?), meet),
        Kind::BareQuic => Ways::Quic(bare_quic(dir, meet).await?),
    };
    let ways = Arc::new(ways);
    loop {
        let (client, _) = clients.accept().await?;
        client.set_nodelay(true)?;
        let ways = Arc::clone(&ways);
        tokio::spawn(async move {
            if let Err(error) = ways.carry(client).await {
                eprintln!("relay: {error:#}");
            }
        });
    }
}

/// How connections go to the far end.
enum Ways {
    Session(Session),
    Tls(TlsConnector, SocketAddr),
    Quic(quinn::Connection),
}

impl Ways {
    async fn carry(&self, client: TcpStream) -> Result<()> {
        match self {
            Self::Session(session) => {
                let header = StreamHeader {
                    target: Target::Echo,
                    class: Class::Interactive,
                    deadline_ms: 0,
                    traceparent: None,
                    principal: None,
                };
                relay(client, session.open(&header).await?).await;
            }
            Self::Tls(connector, meet) => {
                let name = ServerName::IpAddress(meet.ip().into());
                relay(client, connector.connect(name, dialled(*meet).await?).await?).await;
            }
            Self::Quic(connection) => {
                let (send, receive) = connection.open_bi().await?;
                relay(client, join(receive, send)).await;
            }
        }
        Ok(())
    }
}

/// The session of the far end, which dials.
async fn welcome(kind: Kind, dir: &Path, meet: SocketAddr) -> Result<Session> {
    let limits = Limits::default();
    let greeting = match kind {
        Kind::Quic => {
            let listener = QuicListener::bind(UdpSocket::bind(meet)?, server(dir)?, QuicKeys::new(&[1; 32]), &limits)?;
            let incoming = listener.accept().await.context("the listener is closed")?;
            // It carries its connections as long as it is held.
            std::mem::forget(listener);
            incoming.greet().await?
        }
        _ => {
            let (socket, remote) = TcpListener::bind(meet).await?.accept().await?;
            socket.set_nodelay(true)?;
            accept_tls(TlsAcceptor::from(server(dir)?).accept(ReadAhead::new(socket)).await?, remote, &limits).await?
        }
    };
    let welcome = Welcome { version: VERSION, software: "bench".into(), capabilities: vec![], now_ms: 0 };
    Ok(greeting.welcome(SessionId(1), welcome).await?)
}

async fn far(kind: Kind, dir: &Path, target: SocketAddr, meet: SocketAddr) -> Result<()> {
    match kind {
        Kind::Tls | Kind::Quic => {
            let carrier = if kind == Kind::Quic { Carrier::Quic } else { Carrier::Tls };
            let hello = Hello {
                min_version: VERSION,
                max_version: VERSION,
                instance: InstanceId(1),
                software: "bench".into(),
                capabilities: vec![],
                facts: vec![],
                now_ms: 0,
            };
            let at = HubAddress { host: meet.ip().to_string(), port: meet.port() };
            let (session, _) = dial(&at, carrier, client(dir)?, hello, &Limits::default()).await?;
            while let Some(incoming) = session.accept().await {
                tokio::spawn(async move {
                    if let Ok(service) = dialled(target).await {
                        relay(incoming.accept(), service).await;
                    }
                });
            }
            anyhow::bail!("the session ended: {:?}", session.closed().await)
        }
        Kind::BareTls => {
            let (listener, acceptor) = (TcpListener::bind(meet).await?, TlsAcceptor::from(server(dir)?));
            loop {
                let (socket, _) = listener.accept().await?;
                socket.set_nodelay(true)?;
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    if let (Ok(near), Ok(service)) = (acceptor.accept(socket).await, dialled(target).await) {
                        relay(near, service).await;
                    }
                });
            }
        }
        Kind::BareQuic => {
            let crypto = quinn::crypto::rustls::QuicServerConfig::try_from(server(dir)?)?;
            let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
            config.transport_config(bare_transport());
            let endpoint = quinn::Endpoint::server(config, meet)?;
            let connection = endpoint.accept().await.context("closed")?.await?;
            loop {
                let (send, receive) = connection.accept_bi().await?;
                tokio::spawn(async move {
                    if let Ok(service) = dialled(target).await {
                        relay(join(receive, send), service).await;
                    }
                });
            }
        }
    }
}

async fn bare_quic(dir: &Path, meet: SocketAddr) -> Result<quinn::Connection> {
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(client(dir)?)?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(bare_transport());
    let mut endpoint = quinn::Endpoint::client(SocketAddr::new(meet.ip(), 0))?;
    endpoint.set_default_client_config(config);
    Ok(endpoint.connect(meet, "localhost")?.await?)
}

/// quinn's own but for windows, which are as large as Moorline's.
fn bare_transport() -> Arc<quinn::TransportConfig> {
    let mut config = quinn::TransportConfig::default();
    config
        .max_concurrent_bidi_streams(BARE_STREAMS.into())
        .stream_receive_window(BARE_WINDOW.into())
        .receive_window(BARE_WINDOW.into())
        .send_window(BARE_WINDOW.into())
        .max_idle_timeout(None);
    Arc::new(config)
}
