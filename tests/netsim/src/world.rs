//! The hub, its cluster, its agent.

use crate::LONG;
use anyhow::{Context, Result, bail};
use http::{Request, Response};
use moorline_hub::{Config, Hub};
use moorline_link::{Carrier, DialError, HttpProxy, HubAddress, Identity, Limits, Session, Trust, dial_through, tls};
use moorline_proto::{control::Hello, control::VERSION, id::InstanceId};
use moorline_proxy::{Body, body, wire};
use rcgen::{CertificateParams, KeyPair};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, pem::PemObject};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::task::AbortOnDropHandle;

/// The one cluster.
pub const CLUSTER: &str = "edge1";
/// How long open work may take when the hub goes away: short, so that a scene sees what is cut by it and what is not.
pub const GRACE: Duration = Duration::from_secs(2);
const API: &str = "/apis/moorline.dev/v1alpha1";

/// A hub with one cluster, and the credentials of an agent of it.
pub struct World {
    hub: Hub,
    dir: TempDir,
    admin: String,
    identity: Identity,
    trust: Trust,
}

impl World {
    /// Starts the hub and joins the agent.
    ///
    /// # Errors
    /// Anything that does not work.
    pub async fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let mut config = Config::new(dir.path().join("hub"));
        config.listen = "127.0.0.1:0".parse()?;
        config.ops_listen = config.listen;
        config.names = vec!["localhost".to_owned()];
        config.limits.grace = GRACE;
        let hub = Hub::start(config, &prometheus::Registry::new()).await?;
        let kubeconfig: Value = serde_json::from_slice(&std::fs::read(dir.path().join("hub/admin.kubeconfig"))?)?;
        let admin = kubeconfig["users"][0]["user"]["token"].as_str().context("no admin token")?.to_owned();
        let roots = vec![CertificateDer::from_pem_file(dir.path().join("hub/ca.crt"))?];
        let key = KeyPair::generate()?;
        let identity =
            Identity { chain: Vec::new(), key: PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der())) };
        let mut world = Self { hub, dir, admin, identity, trust: Trust { roots, domain: "moorline.local".parse()? } };
        world.make("clusters", "Cluster", json!({ "name": CLUSTER }), json!({})).await?;
        let token = world.join_token().await?;
        let csr = CertificateParams::default().serialize_request(&key)?.pem()?;
        let question = json!({ "token": token, "csr": csr, "name": "a1" });
        let (code, answer) = world.ask("POST", "/agent/join", &question.to_string()).await?;
        anyhow::ensure!(code == 200, "join: {code}");
        let answer: Value = serde_json::from_slice(&answer)?;
        for pem in answer["chain"].as_array().context("no chain")? {
            world.identity.chain.push(CertificateDer::from_pem_slice(pem.as_str().unwrap_or_default().as_bytes())?);
        }
        world.trust.domain = answer["trustDomain"].as_str().unwrap_or_default().parse()?;
        Ok(world)
    }

    /// The hub's port.
    pub fn port(&self) -> u16 {
        self.hub.addr().port()
    }

    /// A folder that ends with the world.
    pub fn dir(&self) -> &std::path::Path {
        self.dir.path()
    }

    async fn make(&self, plural: &str, kind: &str, metadata: Value, spec: Value) -> Result<Value> {
        let object = json!({ "apiVersion": "moorline.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec });
        let (code, body) = self.ask("POST", &format!("{API}/{plural}"), &object.to_string()).await?;
        anyhow::ensure!(code == 201, "{plural}: {code} {}", String::from_utf8_lossy(&body));
        Ok(serde_json::from_slice(&body)?)
    }

    /// A token with which one more agent may join.
    ///
    /// # Errors
    /// The hub makes none.
    pub async fn join_token(&self) -> Result<String> {
        let spec = json!({ "cluster": CLUSTER, "expires": "2999-01-01T00:00:00Z", "maxUses": 1 });
        let made = self.make("jointokens", "JoinToken", json!({}), spec).await?;
        Ok(made["status"]["token"].as_str().context("no token")?.to_owned())
    }

    /// A request to the cluster whose answer does not end: what comes of it, line by line.
    ///
    /// # Errors
    /// The hub cannot be reached.
    pub async fn watch(&self, path: &str) -> Result<Watch> {
        let socket = TcpStream::connect(self.hub.addr()).await?;
        let mut stream = TlsConnector::from(self.client()?).connect(ServerName::try_from("localhost")?, socket).await?;
        let request = format!(
            "GET /k8s/clusters/{CLUSTER}{path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n\r\n",
            self.admin
        );
        stream.write_all(request.as_bytes()).await?;
        stream.flush().await?;
        Ok(Watch { lines: BufReader::new(stream).lines() })
    }

    /// TLS of a client that knows the hub's authority.
    ///
    /// # Errors
    /// The authority cannot be used.
    pub fn client(&self) -> Result<Arc<ClientConfig>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.trust.roots.first().context("no authority")?.clone())?;
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
        let config = self.client()?;
        let asked = async {
            let socket = TcpStream::connect(self.hub.addr()).await?;
            let mut stream = TlsConnector::from(config).connect(ServerName::try_from("localhost")?, socket).await?;
            let request = format!(
                "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer {}\r\n\
                 Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                self.admin,
                body.len()
            );
            stream.write_all(request.as_bytes()).await?;
            stream.flush().await?;
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

    /// Dials as the agent to `at`, which may be a proxy in front of the hub.
    ///
    /// # Errors
    /// See [`DialError`].
    pub async fn dial(
        &self,
        at: &HubAddress,
        carrier: Carrier,
        proxy: Option<&HttpProxy>,
        limits: &Limits,
    ) -> Result<Agent, DialError> {
        let tls = tls::client_config(&self.identity, &self.trust);
        let tls = tls.map_err(|error| DialError::Tls { address: at.to_string(), cause: error.to_string() })?;
        let hello = Hello {
            min_version: VERSION,
            max_version: VERSION,
            instance: InstanceId(1),
            software: "netsim/1".into(),
            capabilities: Vec::new(),
            facts: Vec::new(),
            now_ms: 0,
        };
        let (session, _) = dial_through(at, carrier, proxy, tls, hello, limits).await?;
        Ok(Agent::serve(session))
    }

    /// Asks the cluster for `size` bytes; fails unless each of them comes.
    ///
    /// # Errors
    /// Anything else came.
    pub async fn fetch(&self, size: usize) -> Result<()> {
        let (code, body) = self.ask("GET", &format!("/k8s/clusters/{CLUSTER}/bytes/{size}"), "").await?;
        if code != 200 || body != pattern(size) {
            bail!("{code} with {} bytes instead of {size}", body.len());
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
pub struct Watch {
    lines: Lines<BufReader<TlsStream<TcpStream>>>,
}

impl Watch {
    /// The next line that begins so; the rest of it. `None`: the answer ended, or broke off.
    ///
    /// # Errors
    /// Neither a line nor an end in time: it hangs.
    pub async fn next(&mut self, begin: &str) -> Result<Option<String>> {
        loop {
            let line = timeout(LONG, self.lines.next_line()).await.context("the answer hangs")?;
            match line.ok().flatten() {
                None => return Ok(None),
                Some(line) => {
                    if let Some(rest) = line.strip_prefix(begin) {
                        return Ok(Some(rest.to_owned()));
                    }
                }
            }
        }
    }
}

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

fn pattern(size: usize) -> Vec<u8> {
    (0..size).map(|n| (n % 251) as u8).collect()
}

/// An agent whose API server is a pattern.
pub struct Agent {
    /// Its session.
    pub session: Session,
    _task: AbortOnDropHandle<()>,
}

impl Agent {
    fn serve(session: Session) -> Self {
        let accepting = session.clone();
        let task = tokio::spawn(async move {
            let mut streams = JoinSet::new();
            while let Some(stream) = accepting.accept().await {
                streams.spawn(wire::serve(stream.accept(), answer));
                while streams.try_join_next().is_some() {}
            }
        });
        Self { session, _task: AbortOnDropHandle::new(task) }
    }
}

async fn answer(request: Request<Body>) -> Response<Body> {
    match request.uri().path().rsplit('/').next().and_then(|size| size.parse().ok()) {
        Some(size) => Response::new(body::full(pattern(size))),
        None => Response::new(request.into_body()),
    }
}
