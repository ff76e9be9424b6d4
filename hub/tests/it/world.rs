//! Hub, clients and agents.

use moorline_hub::{Config, Hub};
use moorline_link::{Carrier, DialError, HubAddress, Identity, Limits, Session, Trust, dial, tls};
use moorline_proto::{
    control::Hello,
    header::{Principal, StreamHeader, Target},
    id::{InstanceId, TrustDomain},
    inside::Payload,
};
use moorline_proxy::{Body, body, wire};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, pem::PemObject};
use serde_json::{Value, json};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    sync::Notify,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

pub const API: &str = "/apis/moorline.dev/v1alpha1";
/// Far more than anything here takes: what guards against waiting for ever.
pub const LONG: Duration = Duration::from_secs(20);
/// The product's own bound, S51 and S54: a right that is gone has cut what it opened.
pub const REVOKED: Duration = Duration::from_secs(5);

pub struct World {
    pub hub: Hub,
    pub dir: TempDir,
    pub admin: String,
    pub registry: prometheus::Registry,
}

/// An answer of HTTP/1.1, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub code: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v).next()
    }
}

pub fn config(dir: &TempDir) -> Config {
    let mut config = Config::new(dir.path().join("hub"));
    config.listen = "127.0.0.1:0".parse().unwrap();
    config.ops_listen = "127.0.0.1:0".parse().unwrap();
    config.names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "other.example".to_owned()];
    config.public_url = "https://localhost:8443".to_owned();
    config.limits.grace = Duration::from_secs(5);
    config.limits.watch_spread = Duration::from_millis(100);
    config
}

impl World {
    pub async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut Config)) -> Self {
        Self::in_folder(tempfile::tempdir().unwrap(), change).await
    }

    /// In a folder that may hold something already.
    pub async fn in_folder(dir: TempDir, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = config(&dir);
        change(&mut config);
        let registry = prometheus::Registry::new();
        let hub = Hub::start(config, &registry).await.unwrap();
        let kubeconfig = std::fs::read_to_string(dir.path().join("hub/admin.kubeconfig")).unwrap();
        let kubeconfig: Value = serde_json::from_str(&kubeconfig).unwrap();
        let admin = kubeconfig["users"][0]["user"]["token"].as_str().unwrap().to_owned();
        Self { hub, dir, admin, registry }
    }

    pub fn ca(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(self.dir.path().join("hub/ca.crt")).unwrap()
    }

    pub fn tls(&self, alpn: &[&[u8]]) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.ca()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|a| a.to_vec()).collect();
        Arc::new(config)
    }

    pub async fn connect(&self, name: &str, alpn: &[&[u8]]) -> TlsStream<TcpStream> {
        let socket = TcpStream::connect(self.hub.addr()).await.unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        TlsConnector::from(self.tls(alpn)).connect(name, socket).await.unwrap()
    }

    /// TCP from that address of this machine.
    pub async fn socket_from(&self, address: &str) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(format!("{address}:0").parse().unwrap()).unwrap();
        socket.connect(self.hub.addr()).await.unwrap()
    }

    /// HTTP/1.1 from that address of this machine.
    pub async fn connect_from(&self, address: &str) -> TlsStream<TcpStream> {
        let (socket, name) = (self.socket_from(address).await, ServerName::try_from("localhost").unwrap());
        TlsConnector::from(self.tls(&[b"http/1.1"])).connect(name, socket).await.unwrap()
    }

    /// Sends these bytes and reads until the hub closes or the answer is whole.
    pub async fn raw(&self, bytes: &[u8]) -> Answer {
        let mut stream = self.connect("localhost", &[b"http/1.1"]).await;
        stream.write_all(bytes).await.unwrap();
        stream.flush().await.unwrap();
        read_answer(&mut stream).await
    }

    /// One request with these header lines.
    pub async fn send(&self, method: &str, path: &str, headers: &[&str], body: &str) -> Answer {
        let mut text = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n");
        for header in headers {
            text.push_str(header);
            text.push_str("\r\n");
        }
        if !body.is_empty() {
            text.push_str(&format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len()));
        }
        text.push_str("\r\n");
        text.push_str(body);
        self.raw(text.as_bytes()).await
    }

    pub async fn call(&self, token: &str, method: &str, path: &str, body: &Value) -> Answer {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        self.send(method, path, &[&format!("Authorization: Bearer {token}")], &body).await
    }

    pub async fn get(&self, token: &str, path: &str) -> Answer {
        self.call(token, "GET", path, &Value::Null).await
    }

    /// An administrator's merge patch.
    pub async fn patch(&self, path: &str, patch: &Value) {
        let (patch, admin) = (patch.to_string(), &self.admin);
        let ask = format!(
            "PATCH {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {admin}\r\nContent-Type: application/merge-patch+json\r\nContent-Length: {}\r\n\r\n{patch}",
            patch.len()
        );
        let answer = self.raw(ask.as_bytes()).await;
        assert_eq!(answer.code, 200, "{answer:?}");
    }

    /// Ends the hub and reads what it recorded.
    pub async fn audit_at_end(self) -> String {
        self.hub.shutdown().await;
        std::fs::read_to_string(self.dir.path().join("hub/audit.log")).unwrap()
    }

    pub async fn create(&self, plural: &str, kind: &str, name: &str, spec: Value) -> Value {
        let metadata = if name.is_empty() { json!({}) } else { json!({ "name": name }) };
        let object = json!({ "apiVersion": "moorline.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec });
        let answer = self.call(&self.admin, "POST", &format!("{API}/{plural}"), &object).await;
        assert_eq!(answer.code, 201, "{answer:?}");
        answer.json()
    }

    pub async fn cluster(&self, name: &str) {
        self.create("clusters", "Cluster", name, json!({})).await;
    }

    pub async fn join_token(&self, cluster: &str, uses: u32, expires: &str) -> String {
        let spec = json!({ "cluster": cluster, "expires": expires, "maxUses": uses });
        let made = self.create("jointokens", "JoinToken", "", spec).await;
        made["status"]["token"].as_str().unwrap_or_else(|| panic!("{made}")).to_owned()
    }

    /// A user with a token, and a grant for `clusters`.
    pub async fn user(&self, name: &str, clusters: &[&str]) -> String {
        self.create("users", "User", name, json!({ "groups": ["dev"] })).await;
        if !clusters.is_empty() {
            let spec = json!({ "users": [name], "clusters": clusters });
            self.create("clustergrants", "ClusterGrant", &format!("grant-{name}"), spec).await;
        }
        let spec = json!({ "user": name, "expires": "2999-01-01T00:00:00Z" });
        let made = self.create("tokens", "Token", "", spec).await;
        let token = made["status"]["token"].as_str().unwrap().to_owned();
        // The grant takes effect when the watch has told of it.
        for cluster in clusters {
            eventually("grant", async || self.get(&token, &format!("/k8s/clusters/{cluster}/api")).await.code != 403)
                .await;
        }
        token
    }

    pub async fn join(&self, token: &str, name: &str, cluster: Option<&str>) -> Result<Member, Answer> {
        self.join_with(token, name, cluster, &KeyPair::generate().unwrap()).await
    }

    /// The same agent with a certificate of the hub's own authority from years ago, good until then.
    pub fn until(&self, member: &Member, until: std::time::SystemTime) -> Member {
        let file = |name: &str| std::fs::read_to_string(self.dir.path().join("hub").join(name)).unwrap();
        let issuer = Issuer::from_ca_cert_pem(&file("ca.crt"), KeyPair::from_pem(&file("ca.key")).unwrap()).unwrap();
        let id = tls::peer_id(&member.identity.chain[0]).unwrap().to_string();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        (params.not_before, params.not_after) = (rcgen::date_time_ymd(2020, 1, 1), until.into());
        let cert = params.signed_by(&member.key_pair(), &issuer).unwrap();
        let chain = vec![cert.der().clone(), self.ca()];
        Member { identity: Identity { chain, key: member.identity.key.clone_key() }, trust: member.trust.clone() }
    }

    /// A node agent joins.
    pub async fn join_node(&self, token: &str, name: &str) -> Member {
        let question = json!({ "token": token, "name": name, "role": "node" });
        self.ask_to_join(question, &KeyPair::generate().unwrap()).await.unwrap()
    }

    /// A node agent joins by its pod's service account.
    pub async fn join_account(&self, account: &str, name: &str, cluster: &str, role: &str) -> Result<Member, Answer> {
        let question = json!({ "account": account, "name": name, "cluster": cluster, "role": role });
        self.ask_to_join(question, &KeyPair::generate().unwrap()).await
    }

    pub async fn join_with(
        &self,
        token: &str,
        name: &str,
        cluster: Option<&str>,
        key: &KeyPair,
    ) -> Result<Member, Answer> {
        let mut question = json!({ "token": token, "name": name });
        if let Some(cluster) = cluster {
            question["cluster"] = cluster.into();
        }
        self.ask_to_join(question, key).await
    }

    async fn ask_to_join(&self, mut question: Value, key: &KeyPair) -> Result<Member, Answer> {
        let csr = CertificateParams::default().serialize_request(key).unwrap().pem().unwrap();
        question["csr"] = csr.into();
        let answer = self.send("POST", "/agent/join", &[], &question.to_string()).await;
        if answer.code != 200 {
            return Err(answer);
        }
        let answer = answer.json();
        let certs = |list: &Value| -> Vec<CertificateDer<'static>> {
            let list = list.as_array().unwrap().iter();
            list.map(|pem| CertificateDer::from_pem_slice(pem.as_str().unwrap().as_bytes()).unwrap()).collect()
        };
        let domain: TrustDomain = answer["trustDomain"].as_str().unwrap().parse().unwrap();
        Ok(Member {
            identity: Identity {
                chain: certs(&answer["chain"]),
                key: PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der())),
            },
            trust: Trust { roots: certs(&answer["bundle"]), domain },
        })
    }

    /// A new cluster with one connected agent.
    pub async fn connected(&self, cluster: &str, carrier: Carrier) -> Agent {
        self.cluster(cluster).await;
        let token = self.join_token(cluster, 1, "2999-01-01T00:00:00Z").await;
        let member = self.join(&token, "a1", None).await.unwrap();
        let open = || self.metric(&format!("moorline_hub_sessions_open{{carrier=\"{carrier}\",role=\"agent\"}}"));
        let before = open();
        let agent = self.dial(&member, carrier, 1).await.unwrap();
        // The agent hears its welcome a moment before the hub has it in its table.
        eventually("in the table", async || open() > before).await;
        agent
    }

    pub async fn dial(&self, member: &Member, carrier: Carrier, instance: u64) -> Result<Agent, DialError> {
        self.dial_with(member, carrier, instance, self.hub.addr().port(), &[]).await
    }

    /// Through what listens on `port`, with more facts.
    pub async fn dial_with(
        &self,
        member: &Member,
        carrier: Carrier,
        instance: u64,
        port: u16,
        facts: &[(&str, &str)],
    ) -> Result<Agent, DialError> {
        Ok(Agent::serve(self.greet(member, carrier, instance, port, facts).await?))
    }

    /// A session that somebody else serves.
    pub async fn session(&self, member: &Member) -> Session {
        self.greet(member, Carrier::Tls, 1, self.hub.addr().port(), &[]).await.unwrap()
    }

    /// The same, of an agent that says this of itself.
    pub async fn session_with(&self, member: &Member, facts: &[(&str, &str)]) -> Session {
        self.greet(member, Carrier::Tls, 1, self.hub.addr().port(), facts).await.unwrap()
    }

    /// A session whose agent takes streams and never answers.
    pub async fn dial_silent(&self, member: &Member, facts: &[(&str, &str)]) -> Session {
        let session = self.greet(member, Carrier::Tls, 1, self.hub.addr().port(), facts).await.unwrap();
        let kept = session.clone();
        tokio::spawn(async move {
            let mut taken = Vec::new();
            while let Some(stream) = kept.accept().await {
                taken.push(stream);
            }
        });
        session
    }

    pub async fn greet(
        &self,
        member: &Member,
        carrier: Carrier,
        instance: u64,
        port: u16,
        facts: &[(&str, &str)],
    ) -> Result<Session, DialError> {
        let tls = tls::client_config(&member.identity, &member.trust).unwrap();
        let known = [("kubernetesVersion", "v1.99.0")];
        let facts = known.iter().chain(facts).map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let hello = Hello {
            min_version: 1,
            max_version: 1,
            instance: InstanceId(instance),
            software: "test/1".to_owned(),
            capabilities: Vec::new(),
            facts,
            now_ms: 0,
        };
        let address = HubAddress { host: "127.0.0.1".to_owned(), port };
        Ok(dial(&address, carrier, tls, hello, &Limits::default()).await?.0)
    }

    /// Waits for so many sessions over TLS of this role: who dials hears its welcome before the hub counts it.
    pub async fn has_sessions(&self, role: &str, open: f64) {
        let line = format!("moorline_hub_sessions_open{{carrier=\"tls\",role=\"{role}\"}}");
        eventually("sessions", async || self.metric(&line) == open).await;
    }

    pub fn metric(&self, line: &str) -> f64 {
        let mut text = String::new();
        prometheus::TextEncoder::new().encode_utf8(&self.registry.gather(), &mut text).unwrap();
        let found = text.lines().find(|l| l.starts_with(line));
        found.and_then(|l| l.rsplit(' ').next()).and_then(|n| n.parse().ok()).unwrap_or(0.0)
    }
}

pub async fn read_answer(stream: &mut (impl AsyncReadExt + Unpin)) -> Answer {
    let mut all = Vec::new();
    let mut chunk = [0; 4096];
    let read = async {
        loop {
            if let Some(done) = whole(&all) {
                return done;
            }
            match stream.read(&mut chunk).await {
                Ok(0) => return parse(&all),
                Err(error) => {
                    eprintln!("answer ended: {error}");
                    return parse(&all);
                }
                Ok(n) => all.extend_from_slice(&chunk[..n]),
            }
        }
    };
    timeout(LONG, read).await.expect("an answer in time")
}

fn parse(all: &[u8]) -> Answer {
    let text = String::from_utf8_lossy(all).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    Answer { code, head: head.to_owned(), body: body.to_owned() }
}

/// The answer, if all of it is there.
fn whole(all: &[u8]) -> Option<Answer> {
    let answer = parse(all);
    all.windows(4).position(|w| w == b"\r\n\r\n")?;
    if answer.code == 101 {
        return Some(answer);
    }
    if let Some(length) = answer.header("content-length").and_then(|l| l.parse::<usize>().ok()) {
        return (answer.body.len() >= length).then_some(answer);
    }
    let chunked = answer.header("transfer-encoding") == Some("chunked");
    (chunked && answer.body.ends_with("0\r\n\r\n")).then_some(answer)
}

pub async fn eventually(what: &str, holds: impl AsyncFnMut() -> bool) {
    within(LONG, what, holds).await;
}

/// Waits for what a bound of the product promises.
pub async fn within(bound: Duration, what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(bound, wait).await.unwrap_or_else(|_| panic!("{what}: not within {bound:?}"));
}

/// What an agent got when it joined.
pub struct Member {
    pub identity: Identity,
    pub trust: Trust,
}

impl Member {
    pub fn key_pair(&self) -> KeyPair {
        KeyPair::try_from(self.identity.key.secret_der()).unwrap()
    }
}

/// What reached the API server's place.
#[derive(Debug, Clone)]
pub struct Seen {
    pub line: String,
    pub headers: Vec<(String, String)>,
    pub body: String,
    pub principal: Principal,
}

/// An agent that answers by itself and remembers.
pub struct Agent {
    pub session: Session,
    pub seen: Arc<Mutex<Vec<Seen>>>,
    pub release: Arc<Notify>,
    pub reached: Arc<Notify>,
    /// Nothing inside its cluster is ready.
    pub empty: Arc<AtomicBool>,
    _task: tokio::task::JoinHandle<()>,
}

impl Agent {
    fn serve(session: Session) -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (release, reached) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let empty = Arc::new(AtomicBool::new(false));
        let (accepting, log, free, at) =
            (session.clone(), Arc::clone(&seen), Arc::clone(&release), Arc::clone(&reached));
        let nothing = Arc::clone(&empty);
        let task = tokio::spawn(async move {
            while let Some(stream) = accepting.accept().await {
                let header = stream.header.clone();
                if let Target::Inside(inside) = &header.target
                    && matches!(inside.payload, Payload::Bytes | Payload::Datagrams)
                {
                    crate::inside::place(stream, inside.clone(), nothing.load(Ordering::SeqCst));
                    continue;
                }
                let mut stream = stream.accept();
                if header.target == Target::Echo {
                    tokio::spawn(async move {
                        let mut chunk = vec![0; 16 << 10];
                        while let Ok(n @ 1..) = stream.read(&mut chunk).await {
                            if stream.write_all(&chunk[..n]).await.is_err() || stream.flush().await.is_err() {
                                return;
                            }
                        }
                    });
                    continue;
                }
                let (log, free, at) = (Arc::clone(&log), Arc::clone(&free), Arc::clone(&at));
                tokio::spawn(async move {
                    let _ = wire::serve(stream, |request| answer(request, header, log, free, at)).await;
                });
            }
        });
        Self { session, seen, release, reached, empty, _task: task }
    }

    pub fn lines(&self) -> Vec<String> {
        self.seen.lock().unwrap().iter().map(|seen| seen.line.clone()).collect()
    }
    pub fn last(&self) -> Seen {
        self.seen.lock().unwrap().last().cloned().expect("something was seen")
    }
}

/// A record as a cluster's endpoint writes it, with words of its own that nobody believes.
fn direct_record(id: &str) -> Value {
    json!({ "auditID": id, "stage": "ResponseComplete", "requestURI": "/api/v1/pods", "verb": "list",
        "user": { "username": "anna", "uid": "u1", "groups": ["dev"] }, "sourceIPs": ["192.0.2.7"],
        "responseStatus": { "code": 200 }, "requestReceivedTimestamp": "2026-11-21T14:00:00.000000Z",
        "stageTimestamp": "2026-11-21T14:00:00.000000Z", "seq": 7, "hash": "x",
        "annotations": { "moorline.dev/cluster": "somebody-elses", "forged": "1", "moorline.dev/trace-id": "t1" } })
}

async fn answer(
    request: http::Request<Body>,
    header: StreamHeader,
    log: Arc<Mutex<Vec<Seen>>>,
    release: Arc<Notify>,
    reached: Arc<Notify>,
) -> http::Response<Body> {
    use http_body_util::BodyExt;
    let (parts, body) = request.into_parts();
    let path = parts.uri.to_string();
    let upgrade = parts.headers.contains_key("upgrade");
    let body = if upgrade {
        String::new()
    } else {
        match body.collect().await {
            Ok(body) => String::from_utf8_lossy(&body.to_bytes()).into_owned(),
            // As an API server: what was cut short is no request.
            Err(_) => return http::Response::builder().status(400).body(body::empty()).unwrap(),
        }
    };
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    log.lock().unwrap().push(Seen {
        line: format!("{} {path}", parts.method),
        headers: parts.headers.iter().map(|(n, v)| (n.to_string(), text(v))).collect(),
        body,
        principal: header.principal.unwrap_or_default(),
    });
    reached.notify_one();
    if path == "/vouch" {
        let node = log.lock().unwrap().last().and_then(|seen| seen.body.strip_prefix("of ").map(str::to_owned));
        let (code, said) = match node {
            Some(node) => (200, json!({ "node": node }).to_string()),
            None => (401, "the cluster does not know it".to_owned()),
        };
        return http::Response::builder().status(code).body(body::full(said)).unwrap();
    }
    if path == "/audit/id" {
        return http::Response::new(body::full("0123456789abcdef0123456789abcdef"));
    }
    if let Some(after) = path.strip_prefix("/audit?after=") {
        let lines = if after == "0" {
            format!("2\n{}\n{}\n", direct_record("a-1"), direct_record("a-2"))
        } else {
            format!("{after}\n")
        };
        return http::Response::new(body::full(lines));
    }
    if path == "/bundle" {
        let told = r#"{"server":"https://edge1.example:6444","certificateAuthority":"PEM","newer":1}"#;
        return http::Response::new(body::full(told));
    }
    if path.contains("moved") {
        return http::Response::builder()
            .status(302)
            .header("location", "http://web.shop.svc/login?a=%2F")
            .header("set-cookie", "a=1; Path=/; Domain=example")
            .header("set-cookie", "__Host-moorline-session=evil; Path=/; Secure")
            .header("content-type", "text/html")
            .body(body::empty())
            .unwrap();
    }
    if path.contains("forbidden") {
        return http::Response::builder().status(403).body(body::full("no")).unwrap();
    }
    if upgrade && (path.contains("exec") || path.contains("portforward")) {
        let (near, far) = tokio::io::duplex(1024);
        tokio::spawn(async move {
            let (mut read, mut write) = tokio::io::split(far);
            let _ = tokio::io::copy(&mut read, &mut write).await;
            let _ = write.shutdown().await;
        });
        let mut answer =
            http::Response::builder().status(101).header("connection", "upgrade").header("upgrade", "SPDY/3.1");
        if let Some(extensions) = answer.extensions_mut() {
            extensions.insert(moorline_proxy::upgrade::UpgradedIo::new(near));
        }
        return answer.body(body::empty()).unwrap();
    }
    if path.contains("endless") {
        let endless = futures_util::stream::unfold(0, move |n| {
            let release = Arc::clone(&release);
            async move {
                if n > 0 {
                    release.notified().await;
                }
                Some((Ok::<_, std::io::Error>(http_body::Frame::data(bytes::Bytes::from("part\n"))), n + 1))
            }
        });
        return http::Response::new(body::from(http_body_util::StreamBody::new(Box::pin(endless))));
    }
    if path.contains("large") {
        return http::Response::new(body::full(vec![b'x'; crate::bodies::LARGE]));
    }
    if path.contains("waits") {
        release.notified().await;
    }
    http::Response::builder().header("content-type", "text/plain").body(body::full(format!("up: {path}"))).unwrap()
}
