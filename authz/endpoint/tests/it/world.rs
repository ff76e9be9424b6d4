//! The endpoint and everybody around it.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use futures_util::future::BoxFuture;
use http_body_util::BodyExt;
use moorline_authz::{
    access_token::{Audience, Claims, KeySet, SigningKey, sign},
    bundle::{self, Bundle, BundleGrant, BundleKey, BundleUser, Revoked},
    edge::EdgePolicy,
    identity::Identity,
    impersonation::Review,
    token::TokenText,
};
use moorline_endpoint::{
    live::Live, metrics::Metrics, now, proxy::Proxy, queue::Queue, recordings, server, shelf::Shelf, tls,
    trust::Anchors, webhook::Webhook,
};
use moorline_proxy::{
    Body,
    audit::{FileSink, OnFailure, chain::Chain},
    body,
    edge::{Reviewer, Upstream, UpstreamError},
    kube::ProxyMetrics,
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, SigningKey as _};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use zeroize::Zeroizing;

pub const ISSUER: &str = "spiffe://moorline.local";
pub const SOON: Duration = Duration::from_secs(20);
/// The product's own bound, S51 and S54: a right that is gone from the rights at hand has cut what it opened.
pub const REVOKED: Duration = Duration::from_secs(5);

/// A hub's authority.
pub struct Hub {
    key: KeyPair,
    pub pem: String,
}

impl Hub {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { key, pem }
    }

    /// Any text as a bundle, signed.
    pub fn seal_text(&self, text: &str) -> Vec<u8> {
        let signature = self.key.sign(format!("moorline-bundle/1\n{text}").as_bytes()).unwrap();
        format!("moorline-bundle/1 {}\n{text}", URL_SAFE_NO_PAD.encode(signature)).into_bytes()
    }

    pub fn seal(&self, bundle: &Bundle) -> Vec<u8> {
        bundle::seal(bundle, |message| self.key.sign(message)).unwrap()
    }
}

pub fn signing_key(n: u8) -> SigningKey {
    SigningKey::from_seed(Zeroizing::new([n; 32])).unwrap()
}

pub fn words(all: &[&str]) -> Vec<String> {
    all.iter().map(|word| (*word).to_owned()).collect()
}

/// Anna, of the group dev, may use edge1 as one of ops; ci has a key that may only read.
pub fn bundle(serial: u64) -> Bundle {
    let user = |name: &str, groups: &[&str]| BundleUser {
        name: name.to_owned(),
        uid: format!("u-{name}"),
        groups: words(groups),
    };
    Bundle {
        cluster: "edge1".to_owned(),
        serial,
        issued: now(),
        expires: now() + 3600,
        issuer: ISSUER.to_owned(),
        keys: KeySet::new([signing_key(1).public().clone()]),
        users: vec![user("anna", &["dev"]), user("ci", &[]), user("eve", &["system:masters"])],
        grants: vec![BundleGrant {
            users: words(&["ci", "eve"]),
            groups: words(&["dev"]),
            as_groups: words(&["ops"]),
            ..BundleGrant::default()
        }],
        ..Bundle::default()
    }
}

pub fn claims(user: &str) -> Claims {
    Claims {
        iss: ISSUER.to_owned(),
        sub: user.to_owned(),
        uid: format!("u-{user}"),
        aud: vec![Audience::Cluster("edge1".to_owned()).text()],
        iat: now(),
        nbf: now(),
        exp: now() + 3600,
        jti: "j".to_owned(),
        sid: format!("login-{user}"),
        sid_exp: now() + 9000,
        verbs: None,
    }
}

pub fn token(user: &str) -> String {
    sign(&claims(user), &signing_key(1))
}

/// A token that is changed before it is signed.
pub fn bent(change: impl FnOnce(&mut Claims)) -> String {
    let mut claims = claims("anna");
    change(&mut claims);
    sign(&claims, &signing_key(1))
}

/// Every token that is none here, and why.
pub fn no_tokens() -> Vec<(&'static str, String)> {
    let good = token("anna");
    let unsigned = format!("{}.", good.rsplit_once('.').unwrap().0);
    let head = |text: &str| format!("{}.{}", URL_SAFE_NO_PAD.encode(text), good.split_once('.').unwrap().1);
    vec![
        ("empty", String::new()),
        ("no token", "x".to_owned()),
        ("a key that is not known", TokenText::generate_api().reveal().to_string()),
        ("a refresh token", format!("mlr_abcdefghijkl.{}", "A".repeat(43))),
        ("unsigned", unsigned),
        ("alg none", head(r#"{"alg":"none","typ":"at+jwt","kid":"x"}"#)),
        ("alg HS256", head(r#"{"alg":"HS256","typ":"at+jwt","kid":"x"}"#)),
        ("an unknown key", sign(&claims("anna"), &signing_key(2))),
        ("another cluster's", bent(|c| c.aud = vec![Audience::Cluster("edge2".to_owned()).text()])),
        ("the hub's", bent(|c| c.aud = vec![Audience::Hub.text()])),
        ("another issuer's", bent(|c| c.iss = "spiffe://other".to_owned())),
        ("before its time", bent(|c| c.nbf = now() + 600)),
        ("after its time", bent(|c| c.exp = now() - 61)),
        ("a login that is over", bent(|c| c.sid_exp = now())),
        ("a revoked login", bent(|c| c.sid = "revoked".to_owned())),
        ("a namesake", bent(|c| c.uid = "u-other".to_owned())),
        ("a user who is deactivated", token("gone")),
        ("a megabyte", "ey".to_owned() + &"a".repeat(7000)),
    ]
}

/// What reached the API server's place.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    pub line: String,
    pub headers: Vec<(String, String)>,
}

#[derive(Default)]
pub struct Recorder(pub Mutex<Vec<Seen>>);

impl Recorder {
    pub fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().iter().map(|seen| seen.line.clone()).collect()
    }
    pub fn last(&self) -> Seen {
        self.0.lock().unwrap().last().cloned().expect("something was seen")
    }
}

impl Upstream for Recorder {
    fn send(&self, request: http::Request<Body>) -> BoxFuture<'_, Result<http::Response<Body>, UpstreamError>> {
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let headers =
                parts.headers.iter().map(|(n, v)| (n.to_string(), String::from_utf8_lossy(v.as_bytes()).into_owned()));
            let seen = Seen { line: format!("{} {}", parts.method, parts.uri), headers: headers.collect() };
            self.0.lock().unwrap().push(seen);
            let path = parts.uri.path();
            if path.contains("forbidden") {
                return Ok(http::Response::builder().status(403).body(body::full("no")).unwrap());
            }
            if (path.contains("exec") || path.contains("portforward"))
                && parts.extensions.get::<moorline_proxy::wire::WantsUpgrade>().is_some()
            {
                let (near, far) = tokio::io::duplex(1024);
                tokio::spawn(async move {
                    let (mut read, mut write) = tokio::io::split(far);
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                    let _ = write.shutdown().await;
                });
                let mut answer = http::Response::builder()
                    .status(101)
                    .header("connection", "upgrade")
                    .header("upgrade", "websocket");
                if let Some(agreed) = parts.headers.get("sec-websocket-protocol") {
                    answer = answer.header("sec-websocket-protocol", agreed);
                }
                answer.extensions_mut().unwrap().insert(moorline_proxy::upgrade::UpgradedIo::new(near));
                return Ok(answer.body(body::empty()).unwrap());
            }
            if path.contains("endless") {
                let endless = futures_util::stream::unfold(0, |n| async move {
                    if n > 0 {
                        std::future::pending::<()>().await;
                    }
                    Some((Ok::<_, std::io::Error>(http_body::Frame::data(bytes::Bytes::from("part\n"))), n + 1))
                });
                return Ok(http::Response::new(body::from(http_body_util::StreamBody::new(Box::pin(endless)))));
            }
            let body = body.collect().await.map_err(UpstreamError::Body)?.to_bytes();
            Ok(http::Response::new(body::full(format!("up {} {}", parts.uri, body.len()))))
        })
    }
}

/// Anna may act as bob, and nobody as anybody else.
pub struct Rules;

impl Reviewer for Rules {
    fn allowed<'a>(&'a self, who: &'a Identity, review: &'a Review) -> BoxFuture<'a, Result<bool, UpstreamError>> {
        let allowed = who.user == "anna" && review.resource == "users" && review.name == "bob";
        Box::pin(std::future::ready(Ok(allowed)))
    }
}

/// An answer of HTTP/1.1.
#[derive(Debug)]
pub struct Answer {
    pub code: u16,
    pub text: String,
}

pub struct World {
    pub hub: Hub,
    pub dir: TempDir,
    pub shelf: Shelf,
    pub live: Live,
    pub up: Arc<Recorder>,
    pub queue: Queue,
    pub registry: prometheus::Registry,
    pub webhook: Arc<Webhook>,
    audit: Arc<FileSink>,
    addr: std::net::SocketAddr,
    webhook_addr: std::net::SocketAddr,
    tls: Arc<ClientConfig>,
    stop: CancellationToken,
}

impl World {
    pub async fn new() -> Self {
        Self::with("", Vec::new()).await
    }

    /// With an edge policy, and users for whom the glass may be broken.
    pub async fn with(policy: &str, glass: Vec<String>) -> Self {
        Self::made(policy, glass, None).await
    }

    /// With a place for recordings of so many bytes, one and all.
    pub async fn recording(max_file: u64, max_total: u64) -> Self {
        Self::made("", Vec::new(), Some((max_file, max_total))).await
    }

    async fn made(policy: &str, glass: Vec<String>, recorded: Option<(u64, u64)>) -> Self {
        let (hub, dir) = (Hub::new(), tempfile::tempdir().unwrap());
        let shelf =
            Shelf::open(&dir.path().join("shelf"), "edge1", Anchors::from_pem(&hub.pem).unwrap(), None).unwrap();
        shelf.put(&hub.seal(&bundle(1))).unwrap();
        let registry = prometheus::Registry::new();
        let metrics = Metrics::new(&registry).unwrap();
        let live = Live::open(shelf.clone(), glass, metrics.clone()).unwrap();
        let policy = if policy.is_empty() { EdgePolicy::default() } else { EdgePolicy::from_yaml(policy).unwrap() };
        let policy = Arc::new(policy);
        let now: moorline_endpoint::webhook::PolicyNow = Arc::new(move || Arc::clone(&policy));
        let queue = Queue::open(&dir.path().join("queue")).unwrap();
        let audit = FileSink::to_writer(queue.writer().unwrap(), Chain::default(), 64, OnFailure::Refuse).unwrap();
        let (up, tasks) = (Arc::new(Recorder::default()), TaskTracker::new());
        let proxy = Proxy::new(
            live.clone(),
            Arc::clone(&now),
            Arc::clone(&up),
            Arc::new(Rules),
            Arc::clone(&audit) as _,
            ProxyMetrics::new(&registry).unwrap(),
            tasks.clone(),
        );
        let proxy = match recorded {
            Some((file, total)) => {
                let log = Arc::clone(&audit) as _;
                proxy.recording(recordings::store(dir.path(), file, total, log).unwrap())
            }
            None => proxy,
        };
        let served = tls::own(dir.path(), &words(&["localhost"])).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let webhook = Arc::new(Webhook { live: live.clone(), policy: now });
        let hooks = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let webhook_addr = hooks.local_addr().unwrap();
        let (tls, other, more) = (Arc::clone(&served.config), metrics.clone(), TaskTracker::new());
        tokio::spawn(server::serve(hooks, tls, Arc::clone(&webhook), other, more, stop.clone()));
        tokio::spawn(server::serve(listener, served.config, Arc::new(proxy), metrics, tasks, stop.clone()));
        let following = live.clone();
        let until = stop.clone();
        tokio::spawn(async move { until.run_until_cancelled(following.follow()).await });
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(served.ca_pem.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let mut tls = tls.with_root_certificates(roots).with_no_client_auth();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Self {
            hub,
            dir,
            shelf,
            live,
            up,
            queue,
            registry,
            webhook,
            audit,
            addr,
            webhook_addr,
            tls: Arc::new(tls),
            stop,
        }
    }

    pub async fn connect(&self) -> TlsStream<TcpStream> {
        self.connect_to(self.addr).await
    }

    /// To the webhook's port.
    pub async fn hook(&self) -> TlsStream<TcpStream> {
        self.connect_to(self.webhook_addr).await
    }

    async fn connect_to(&self, addr: std::net::SocketAddr) -> TlsStream<TcpStream> {
        let socket = TcpStream::connect(addr).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::clone(&self.tls)).connect(name, socket).await.unwrap()
    }

    /// Sends these bytes, and reads until the endpoint closes or an answer is whole.
    pub async fn raw(&self, bytes: &[u8]) -> Answer {
        Self::exchange(self.connect().await, bytes).await
    }

    /// The same at the webhook.
    pub async fn raw_hook(&self, bytes: &[u8]) -> Answer {
        Self::exchange(self.hook().await, bytes).await
    }

    /// A review with more headers, as an API server sends it.
    pub async fn post_review(&self, token: &str, headers: &[&str]) -> Answer {
        let asked = serde_json::json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": { "token": token } });
        let (body, lines) = (asked.to_string(), headers.iter().map(|line| format!("{line}\r\n")).collect::<String>());
        let head = format!("POST / HTTP/1.1\r\nHost: localhost\r\n{lines}Content-Length: {}\r\n\r\n", body.len());
        self.raw_hook((head + &body).as_bytes()).await
    }

    async fn exchange(mut stream: TlsStream<TcpStream>, bytes: &[u8]) -> Answer {
        stream.write_all(bytes).await.unwrap();
        stream.flush().await.unwrap();
        let mut all = Vec::new();
        let read = async { while !whole(&all) && stream.read_buf(&mut all).await.unwrap_or(0) > 0 {} };
        timeout(SOON, read).await.expect("an answer in time");
        let text = String::from_utf8_lossy(&all).into_owned();
        Answer { code: text.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0), text }
    }

    pub async fn send(&self, method: &str, path: &str, headers: &[&str]) -> Answer {
        let lines: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
        self.raw(format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n").as_bytes()).await
    }

    pub async fn get(&self, token: &str, path: &str) -> Answer {
        self.send("GET", path, &[&format!("Authorization: Bearer {token}")]).await
    }

    /// Puts a bundle onto the shelf, and waits until it is in use.
    pub async fn next(&self, bundle: &Bundle) {
        self.shelf.put(&self.hub.seal(bundle)).unwrap();
        eventually(|| self.live.standing().is_some_and(|standing| standing.serial() == bundle.serial)).await;
    }

    pub fn metric(&self, line: &str) -> f64 {
        let mut text = String::new();
        prometheus::TextEncoder::new().encode_utf8(&self.registry.gather(), &mut text).unwrap();
        let found = text.lines().find(|l| l.starts_with(line));
        found.and_then(|l| l.rsplit(' ').next()).and_then(|n| n.parse().ok()).unwrap_or(0.0)
    }

    /// What was recorded.
    pub async fn audit(&self) -> String {
        self.audit.close().await;
        String::from_utf8(self.queue.after(0).unwrap().lines).unwrap()
    }

    /// The user of a TokenReview's answer.
    pub fn review(&self, token: &str) -> Option<serde_json::Value> {
        let asked = serde_json::json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": { "token": token } });
        let answer = self.webhook.answer(asked.to_string().as_bytes()).unwrap();
        let answer: serde_json::Value = serde_json::from_slice(&answer).unwrap();
        (answer["status"]["authenticated"] == true).then(|| answer["status"]["user"].clone())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn whole(all: &[u8]) -> bool {
    let text = String::from_utf8_lossy(all);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|l| l.to_ascii_lowercase().strip_prefix("content-length: ").map(str::to_owned));
    match length.and_then(|length| length.parse::<usize>().ok()) {
        Some(length) => length <= body.len(),
        None => head.contains(" 101 ") || body.ends_with("0\r\n\r\n"),
    }
}

pub async fn eventually(mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(30), wait).await.expect("in time");
}

pub fn api_key(user: &str, verbs: Option<&[&str]>) -> (BundleKey, String) {
    let token = TokenText::generate_api();
    let hash = URL_SAFE_NO_PAD.encode(token.hash().as_bytes());
    let verbs = verbs.map(words);
    let key = BundleKey { id: token.id.clone(), hash, user: user.to_owned(), expires: now() + 3600, verbs };
    (key, token.reveal().to_string())
}

pub fn revoked(id: &str) -> Revoked {
    Revoked { id: id.to_owned(), until: now() + 3600 }
}
