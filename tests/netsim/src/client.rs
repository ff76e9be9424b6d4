//! A user of a hub: requests to its API and to its clusters.

use crate::LONG;
use anyhow::{Context, Result};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use serde_json::{Value, json};
use std::{net::SocketAddr, path::Path, sync::Arc};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// The one cluster.
pub const CLUSTER: &str = "edge1";
const API: &str = "/apis/moorline.dev/v1alpha1";

/// The hub's first administrator.
#[derive(Debug, Clone)]
pub struct Admin {
    /// Where the hub listens, past every bad network.
    pub hub: SocketAddr,
    /// The hub's authority.
    pub root: CertificateDer<'static>,
    token: String,
    narrow: bool,
}

impl Admin {
    /// Reads what a hub left in its data folder.
    ///
    /// # Errors
    /// It has left nothing there yet.
    pub fn of(data: &Path, hub: SocketAddr) -> Result<Self> {
        let kubeconfig: Value = serde_json::from_slice(&std::fs::read(data.join("admin.kubeconfig"))?)?;
        let token = kubeconfig["users"][0]["user"]["token"].as_str().context("no admin token")?.to_owned();
        Ok(Self { hub, root: CertificateDer::from_pem_file(data.join("ca.crt"))?, token, narrow: false })
    }

    /// The same, but whose system takes little of what is sent to it before it is read.
    #[must_use]
    pub fn with_little_room(&self) -> Self {
        Self { narrow: true, ..self.clone() }
    }

    /// Makes an object of the hub's API.
    ///
    /// # Errors
    /// The hub does not.
    pub async fn make(&self, plural: &str, kind: &str, metadata: Value, spec: Value) -> Result<Value> {
        let object = json!({ "apiVersion": "moorline.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec });
        let (code, body) = self.ask("POST", &format!("{API}/{plural}"), &object.to_string()).await?;
        anyhow::ensure!(code == 201, "{plural}: {code} {}", String::from_utf8_lossy(&body));
        Ok(serde_json::from_slice(&body)?)
    }

    /// An object of the hub's API.
    ///
    /// # Errors
    /// There is none.
    pub async fn look(&self, path: &str) -> Result<Value> {
        let (code, body) = self.ask("GET", &format!("{API}/{path}"), "").await?;
        anyhow::ensure!(code == 200, "{path}: {code} {}", String::from_utf8_lossy(&body));
        Ok(serde_json::from_slice(&body)?)
    }

    /// A token with which one more agent may join.
    ///
    /// # Errors
    /// The hub makes none.
    pub async fn join_token(&self) -> Result<String> {
        self.join_token_of(CLUSTER, 1).await
    }

    /// A token with which so many agents may join a cluster.
    ///
    /// # Errors
    /// The hub makes none.
    pub async fn join_token_of(&self, cluster: &str, uses: usize) -> Result<String> {
        let spec = json!({ "cluster": cluster, "expires": "2999-01-01T00:00:00Z", "maxUses": uses });
        let made = self.make("jointokens", "JoinToken", json!({}), spec).await?;
        Ok(made["status"]["token"].as_str().context("no token")?.to_owned())
    }

    /// A request to the cluster whose answer does not end: what comes of it, line by line.
    ///
    /// # Errors
    /// The hub cannot be reached.
    pub async fn watch(&self, path: &str) -> Result<Watch> {
        let socket = TcpStream::connect(self.hub).await?;
        let mut stream = TlsConnector::from(self.client()?).connect(ServerName::try_from("localhost")?, socket).await?;
        let request = format!(
            "GET /k8s/clusters/{CLUSTER}{path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n\r\n",
            self.token
        );
        stream.write_all(request.as_bytes()).await?;
        stream.flush().await?;
        Ok(Watch::new(BufReader::new(stream)))
    }

    /// TLS of a client that knows the hub's authority.
    ///
    /// # Errors
    /// The authority cannot be used.
    pub fn client(&self) -> Result<Arc<ClientConfig>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone())?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let mut config = config.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// An administrator's request to the hub, straight to its port.
    ///
    /// # Errors
    /// The connection broke, or no answer came in time.
    pub async fn ask(&self, method: &str, path: &str, body: &str) -> Result<(u16, Vec<u8>)> {
        let asked = async {
            let mut stream = self.send(method, path, body).await?;
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await?;
            let end = all.windows(4).position(|four| four == b"\r\n\r\n").context("an answer without an end")?;
            let body = all.split_off(end + 4);
            let head = String::from_utf8(all)?.to_ascii_lowercase();
            let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("no status")?;
            let chunked = head.contains("\r\ntransfer-encoding: chunked");
            Ok::<_, anyhow::Error>((code, if chunked { whole(&body)? } else { body }))
        };
        timeout(LONG, asked).await.context("no answer in time")?
    }

    async fn send(&self, method: &str, path: &str, body: &str) -> Result<BufReader<TlsStream<TcpStream>>> {
        let socket = TcpSocket::new_v4()?;
        if self.narrow {
            socket.set_recv_buffer_size(16 << 10)?;
        }
        let socket = socket.connect(self.hub).await?;
        let mut stream = TlsConnector::from(self.client()?).connect(ServerName::try_from("localhost")?, socket).await?;
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer {}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.token,
            body.len()
        );
        stream.write_all(request.as_bytes()).await?;
        stream.flush().await?;
        Ok(BufReader::new(stream))
    }

    /// Begins a request whose answer is read as it comes: status, and what follows the head.
    ///
    /// # Errors
    /// The hub cannot be reached, or does not answer in time.
    pub async fn begin(&self, path: &str) -> Result<(u16, BufReader<TlsStream<TcpStream>>)> {
        let begun = async {
            let mut answer = self.send("GET", &format!("/k8s/clusters/{CLUSTER}{path}"), "").await?;
            let mut first = String::new();
            answer.read_line(&mut first).await?;
            let code = first.split(' ').nth(1).and_then(|code| code.parse().ok()).context("no status")?;
            let mut line = String::new();
            while answer.read_line(&mut line).await? > 2 {
                line.clear();
            }
            Ok::<_, anyhow::Error>((code, answer))
        };
        timeout(LONG, begun).await.context("no answer in time")?
    }

    /// Reads `/bytes/{size}` to its end: how many bits came in a second, the first byte's wait not counted.
    ///
    /// # Errors
    /// The answer stopped short.
    pub async fn rate(&self, size: usize) -> Result<f64> {
        let (code, mut answer) = self.begin(&format!("/bytes/{size}")).await?;
        anyhow::ensure!(code == 200, "{code}");
        let (mut space, mut left) = (vec![0; 64 << 10], size);
        let begin = std::time::Instant::now();
        while left > 0 {
            let n = timeout(LONG, answer.read(&mut space)).await.context("the download hangs")??;
            anyhow::ensure!(n > 0, "{left} bytes are missing");
            left = left.saturating_sub(n);
        }
        Ok(size as f64 * 8.0 / begin.elapsed().as_secs_f64())
    }

    /// Reads `/bytes/{size}` to its end, however large it is, and compares each byte.
    ///
    /// # Errors
    /// One is missing, or another.
    pub async fn down(&self, size: u64) -> Result<()> {
        let (code, mut answer) = self.begin(&format!("/bytes/{size}")).await?;
        anyhow::ensure!(code == 200, "{code}");
        let (mut space, mut sum) = (vec![0; 64 << 10], Pattern::default());
        loop {
            match timeout(LONG, answer.read(&mut space)).await.context("the download hangs")?? {
                0 => break,
                n => anyhow::ensure!(sum.add(&space[..n]), "after {} bytes came others", sum.0),
            }
        }
        anyhow::ensure!(sum.0 == size, "{} bytes instead of {size}", sum.0);
        Ok(())
    }

    /// Sends `size` bytes, which the cluster compares.
    ///
    /// # Errors
    /// Others came, or not so many.
    pub async fn up(&self, size: u64) -> Result<()> {
        let socket = TcpStream::connect(self.hub).await?;
        let mut stream = TlsConnector::from(self.client()?).connect(ServerName::try_from("localhost")?, socket).await?;
        let head = format!(
            "POST /k8s/clusters/{CLUSTER}/compare HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: \
             Bearer {}\r\nContent-Length: {size}\r\n\r\n",
            self.token
        );
        stream.write_all(head.as_bytes()).await?;
        let (piece, mut left) = (pattern(251 * 128), size);
        while left > 0 {
            let n = left.min(piece.len() as u64) as usize;
            timeout(LONG, stream.write_all(&piece[..n])).await.context("the upload hangs")??;
            left -= n as u64;
        }
        stream.flush().await?;
        let mut answer = String::new();
        timeout(LONG, stream.read_to_string(&mut answer)).await.context("no answer in time")??;
        anyhow::ensure!(answer.contains(&format!("\r\n{size} are right")), "{answer}");
        Ok(())
    }

    /// Asks the cluster for `size` bytes; fails unless each of them comes.
    ///
    /// # Errors
    /// Anything else came.
    pub async fn fetch(&self, size: usize) -> Result<()> {
        let (code, body) = self.ask("GET", &format!("/k8s/clusters/{CLUSTER}/bytes/{size}"), "").await?;
        if code != 200 || body != pattern(size) {
            anyhow::bail!("{code} with {} bytes instead of {size}", body.len());
        }
        Ok(())
    }

    /// Sends `body` to the cluster, which sends it back.
    ///
    /// # Errors
    /// Anything else came back.
    pub async fn echo(&self, body: &str) -> Result<()> {
        let (code, back) = self.ask("POST", &format!("/k8s/clusters/{CLUSTER}/echo"), body).await?;
        anyhow::ensure!(code == 200 && back == body.as_bytes(), "{code} with {} bytes", back.len());
        Ok(())
    }
}

/// An answer that does not end.
pub type Watch = crate::watch::Watch<BufReader<TlsStream<TcpStream>>>;

/// A body that came in chunks (RFC 9112 §7.1).
fn whole(mut chunks: &[u8]) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = chunks.windows(2).position(|two| two == b"\r\n").context("a chunk without a length")?;
        let size = usize::from_str_radix(std::str::from_utf8(&chunks[..end])?, 16)?;
        let chunk = chunks.get(end + 2..end + 2 + size).context("a chunk cut short")?;
        if size == 0 {
            return Ok(body);
        }
        body.extend_from_slice(chunk);
        chunks = chunks.get(end + 4 + size..).context("a body cut short")?;
    }
}

/// How far a stream of bytes has been what [`pattern`] gives.
#[derive(Debug, Default)]
pub(crate) struct Pattern(pub u64);

impl Pattern {
    /// Whether it goes on with these.
    pub fn add(&mut self, bytes: &[u8]) -> bool {
        let from = self.0;
        self.0 += bytes.len() as u64;
        bytes.iter().zip(from..).all(|(byte, at)| u64::from(*byte) == at % 251)
    }
}

/// The bytes that `/bytes/{size}` answers with.
pub fn pattern(size: usize) -> Vec<u8> {
    (0..size).map(|n| (n % 251) as u8).collect()
}
