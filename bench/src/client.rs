//! One HTTP connection to a target, HTTP/1.1 or HTTP/2, as plain as can be: the client must not be what is measured.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use serde::Deserialize;
use std::{
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};
use tokio::net::{TcpSocket, TcpStream};

/// A body to send.
pub type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Where requests go.
#[derive(Debug, Clone, Deserialize)]
pub struct Target {
    /// In the table.
    pub name: String,
    /// `host:port` to dial.
    pub address: String,
    /// Name in the certificate, and the `Host`.
    pub host: String,
    /// Goes before every path.
    #[serde(default)]
    pub prefix: String,
    /// Authority of its certificate, PEM.
    pub ca: PathBuf,
    /// Client certificate and key, PEM.
    #[serde(default)]
    pub client: Option<(PathBuf, PathBuf)>,
    /// Headers on every request.
    #[serde(default)]
    pub headers: Vec<(String, String)>,
}

/// The HTTP version to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.1
    One,
    /// HTTP/2
    Two,
}

enum Sender {
    One(hyper::client::conn::http1::SendRequest<Body>),
    Two(hyper::client::conn::http2::SendRequest<Body>),
}

/// An open connection.
pub struct Connection {
    sender: Sender,
    target: Arc<Target>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An empty body.
pub fn empty() -> Body {
    http_body_util::Empty::new().boxed_unsync()
}

impl Connection {
    /// Dials a target.
    pub async fn open(target: &Arc<Target>, version: Version) -> Result<Self> {
        Self::open_from(target, version, None).await
    }

    /// Dials a target from this address of the machine.
    pub async fn open_from(target: &Arc<Target>, version: Version, from: Option<IpAddr>) -> Result<Self> {
        let mut roots = rustls::RootCertStore::empty();
        for cert in CertificateDer::pem_file_iter(&target.ca)? {
            roots.add(cert?)?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let mut config = match &target.client {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => builder.with_client_auth_cert(
                CertificateDer::pem_file_iter(cert)?.collect::<Result<_, _>>()?,
                PrivateKeyDer::from_pem_file(key)?,
            )?,
        };
        config.alpn_protocols = vec![if version == Version::Two { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
        let tcp = match from {
            None => TcpStream::connect(&target.address).await,
            Some(from) => {
                let socket = TcpSocket::new_v4()?;
                socket.bind(SocketAddr::new(from, 0))?;
                socket.connect(target.address.parse()?).await
            }
        };
        let tcp = tcp.with_context(|| target.address.clone())?;
        tcp.set_nodelay(true)?;
        let name = ServerName::try_from(target.host.clone())?;
        let tls = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
        let io = TokioIo::new(tls);
        let (sender, task) = match version {
            Version::One => {
                let (sender, connection) = hyper::client::conn::http1::handshake(io).await?;
                (Sender::One(sender), tokio::spawn(async move { drop(connection.await) }))
            }
            Version::Two => {
                let (sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
                    .initial_stream_window_size(4 << 20)
                    .initial_connection_window_size(64 << 20)
                    .max_frame_size(64 << 10)
                    .handshake(io)
                    .await?;
                (Sender::Two(sender), tokio::spawn(async move { drop(connection.await) }))
            }
        };
        Ok(Self { sender, target: Arc::clone(target), task })
    }

    /// Sends one request and gives the response once its head is there.
    pub async fn send(
        &mut self,
        method: &str,
        path: &str,
        kind: Option<&str>,
        body: Body,
    ) -> Result<Response<Incoming>> {
        let Target { host, prefix, headers, address, .. } = &*self.target;
        let authority = format!("{host}:{}", address.rsplit(':').next().unwrap_or("443"));
        let mut request = Request::builder().method(method);
        request = match self.sender {
            Sender::One(_) => request.uri(format!("{prefix}{path}")).header("host", authority),
            Sender::Two(_) => request.uri(format!("https://{authority}{prefix}{path}")),
        };
        for (name, value) in headers {
            request = request.header(name, value);
        }
        if let Some(kind) = kind {
            request = request.header("content-type", kind);
        }
        let request = request.body(body)?;
        Ok(match &mut self.sender {
            Sender::One(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
            Sender::Two(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
        })
    }

    /// A whole GET: the number of body bytes. Anything but 200 is an error.
    pub async fn get(&mut self, path: &str) -> Result<u64> {
        let response = self.send("GET", path, None, empty()).await?;
        let status = response.status();
        let mut body = response.into_body();
        let mut bytes = 0;
        while let Some(frame) = body.frame().await {
            bytes += frame?.data_ref().map_or(0, |d| d.len() as u64);
        }
        ensure!(status == 200, "{path}: {status}");
        Ok(bytes)
    }
}
