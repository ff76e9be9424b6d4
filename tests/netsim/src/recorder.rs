//! A proxy that ends TLS and reads along, as companies have them.

use anyhow::Result;
use rcgen::{CertificateParams, KeyPair};
use rustls::ClientConfig;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use std::{
    net::Ipv4Addr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::task::AbortOnDropHandle;

/// What was read, of all connections.
pub type Record = Arc<Mutex<Vec<u8>>>;

/// The proxy. Dropping it ends it.
pub struct Recorder {
    /// Where it listens on loopback.
    pub port: u16,
    /// What agents sent.
    pub up: Record,
    /// What the hub sent.
    pub down: Record,
    _task: AbortOnDropHandle<()>,
}

impl Recorder {
    /// Starts it in front of the hub on `hub`, which it knows by `client`.
    ///
    /// # Errors
    /// It cannot listen.
    pub async fn start(hub: u16, client: Arc<ClientConfig>) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        let (up, down) = (Record::default(), Record::default());
        let key = KeyPair::generate()?;
        let cert = CertificateParams::new(vec!["inspector.example".to_owned()])?.self_signed(&key)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut server = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(
                vec![cert.der().clone()],
                PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der())),
            )?;
        server.alpn_protocols = vec![b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(server));
        let connector = TlsConnector::from(client);
        let records = (Arc::clone(&up), Arc::clone(&down));
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                connections.spawn(relay(socket, acceptor.clone(), connector.clone(), hub, records.clone()));
            }
        });
        Ok(Self { port, up, down, _task: AbortOnDropHandle::new(task) })
    }
}

async fn relay(
    socket: TcpStream,
    acceptor: TlsAcceptor,
    connector: TlsConnector,
    hub: u16,
    (up, down): (Record, Record),
) -> Result<()> {
    let near = acceptor.accept(socket).await?;
    let far = TcpStream::connect((Ipv4Addr::LOCALHOST, hub)).await?;
    let far = connector.connect(ServerName::try_from("localhost")?, far).await?;
    let (mut near, mut far) = (Tap(near, up), Tap(far, down));
    tokio::io::copy_bidirectional(&mut near, &mut far).await?;
    Ok(())
}

/// Remembers what is read.
struct Tap<IO>(IO, Record);
impl<IO: AsyncRead + Unpin> AsyncRead for Tap<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.0).poll_read(cx, buf))?;
        let new = buf.filled().get(before..).unwrap_or_default();
        self.1.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(new);
        Poll::Ready(Ok(()))
    }
}
impl<IO: AsyncWrite + Unpin> AsyncWrite for Tap<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
