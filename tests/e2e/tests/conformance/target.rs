//! The two servers, asked the same way.

use crate::boats;
use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use moorline_apiserver::{ApiServer, Batch, Everything, Expect, Limits, Store};
use moorline_e2e::process::{eventually, text};
use serde_json::Value;
use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// One request.
#[derive(Clone, Debug)]
pub struct Ask {
    pub method: &'static str,
    pub path: String,
    pub headers: Vec<(&'static str, String)>,
    pub body: String,
}

/// One answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub code: u16,
    pub warnings: Vec<String>,
    pub content_type: String,
    /// The document; of a watch, the list of its events.
    pub body: Value,
}

impl Answer {
    fn new(code: u16, headers: &[(String, String)], text: &[u8]) -> Self {
        let all = |name: &'static str| {
            headers.iter().filter(move |(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.clone())
        };
        let body: Value = serde_json::from_slice(text).unwrap_or_else(|_| {
            let lines = serde_json::Deserializer::from_slice(text).into_iter::<Value>();
            let events: Vec<Value> = lines.map_while(Result::ok).collect();
            if events.is_empty() { String::from_utf8_lossy(text).into() } else { events.into() }
        });
        // A watch with one event.
        let body = if body["type"].is_string() && body["object"].is_object() { Value::from(vec![body]) } else { body };
        Self {
            code,
            warnings: all("warning").collect(),
            content_type: all("content-type").next().unwrap_or_default(),
            body,
        }
    }
}

pub trait Target {
    fn ask(&self, ask: &Ask) -> Result<Answer>;
    /// All revisions before the newest are forgotten.
    fn forget(&self) -> Result<()>;
}

/// A store here remembers so many changes.
const HISTORY: usize = 40;

/// How far etcd's port lies before its API server's (tests/kube/up.sh).
const TO_ETCD: u16 = 16443 - 12379;

/// kube-apiserver.
pub struct Real {
    pub dir: PathBuf,
    port: u16,
}

impl Real {
    /// With the kinds of the table as custom resources.
    pub fn new(dir: &Path, port: u16) -> Result<Self> {
        let real = Self { dir: dir.to_owned(), port };
        for definition in boats::definitions() {
            let answer = real.ask(&Ask {
                method: "POST",
                path: "/apis/apiextensions.k8s.io/v1/customresourcedefinitions".into(),
                headers: vec![("content-type", "application/json".into())],
                body: definition.to_string(),
            })?;
            ensure!(matches!(answer.code, 201 | 409), "{}", answer.body);
        }
        for all in boats::PATHS {
            let path = format!("/apis/{all}");
            let ask = Ask { method: "GET", path, headers: Vec::new(), body: String::new() };
            eventually(all, Duration::from_secs(30), || {
                let answer = real.ask(&ask)?;
                ensure!(answer.code == 200, "{}", answer.body);
                Ok(())
            })?;
        }
        Ok(real)
    }
}

impl Target for Real {
    fn ask(&self, ask: &Ask) -> Result<Answer> {
        let pki = self.dir.join("pki");
        let mut command = Command::new("curl");
        command.args([
            "-sS",
            "-i",
            "--http1.1",
            "--globoff",
            "--path-as-is",
            "-X",
            ask.method,
            "-H",
            "Expect:",
            "-H",
            "User-Agent:",
        ]);
        command.arg("--cacert").arg(pki.join("ca.crt"));
        command.arg("--cert").arg(pki.join("admin.crt")).arg("--key").arg(pki.join("admin.key"));
        for (name, value) in &ask.headers {
            command.arg("-H").arg(format!("{name}: {value}"));
        }
        if ask.method != "GET" {
            command.args(["--data-binary", "@-"]);
            if !ask.headers.iter().any(|(n, _)| *n == "content-type") {
                command.args(["-H", "Content-Type:"]);
            }
        }
        command.arg(format!("https://127.0.0.1:{}{}", self.port, ask.path));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        child.stdin.take().context("stdin")?.write_all(ask.body.as_bytes())?;
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("curl: {}", String::from_utf8_lossy(&output.stderr));
        }
        let end = output.stdout.windows(4).position(|w| w == b"\r\n\r\n").context("no head")?;
        let head = String::from_utf8_lossy(&output.stdout[..end]).into_owned();
        let mut lines = head.split("\r\n");
        let code = lines.next().and_then(|l| l.split(' ').nth(1)).context("no status")?.parse()?;
        let headers: Vec<_> =
            lines.filter_map(|l| l.split_once(": ")).map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
        Ok(Answer::new(code, &headers, &output.stdout[end + 4..]))
    }

    fn forget(&self) -> Result<()> {
        let etcd = |path: &str, question: &str| -> Result<Value> {
            let url = format!("http://127.0.0.1:{}/v3/{path}", self.port - TO_ETCD);
            let said = text(Command::new("curl").args(["-sSf", "--max-time", "20", "-d", question, &url]))?;
            Ok(serde_json::from_str(&said)?)
        };
        let status = etcd("maintenance/status", "{}")?;
        let newest = status["header"]["revision"].as_str().context("a revision")?;
        etcd("kv/compaction", &format!(r#"{{"revision":"{newest}"}}"#)).map(drop)
    }
}

/// Ours, without a socket.
pub struct Ours {
    server: ApiServer,
    runtime: tokio::runtime::Runtime,
    /// Where it listens, without TLS, for clients that are programs.
    pub address: std::net::SocketAddr,
    _dir: tempfile::TempDir,
}

async fn listen(listener: tokio::net::TcpListener, server: ApiServer) {
    while let Ok((stream, _)) = listener.accept().await {
        let server = server.clone();
        let service = hyper::service::service_fn(move |request| {
            let server = server.clone();
            async move { Ok::<_, std::convert::Infallible>(server.handle(request, Arc::new(Everything)).await) }
        });
        tokio::spawn(async move {
            let builder = hyper_util::server::conn::auto::Builder::new(hyper_util::rt::TokioExecutor::new());
            // A client that goes away is none of the test's business.
            let _ = builder.serve_connection(hyper_util::rt::TokioIo::new(stream), service).await;
        });
    }
}

impl Ours {
    pub fn new() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let limits = Limits { history: HISTORY, ..Limits::default() };
        let store = Store::open(&dir.path().join("store.redb"), &limits)?;
        let registry = prometheus::Registry::new();
        let server = ApiServer::new(store, boats::kinds(), limits, &registry, CancellationToken::new())?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))?;
        let address = listener.local_addr()?;
        runtime.spawn(listen(listener, server.clone()));
        let ours = Self { server, runtime, address, _dir: dir };
        // The first revisions are soon forgotten, as etcd's are that lie before a compaction.
        ours.forget()?;
        Ok(ours)
    }
}

impl Target for Ours {
    fn ask(&self, ask: &Ask) -> Result<Answer> {
        let mut request = Request::builder().method(ask.method).uri(&ask.path);
        for (name, value) in &ask.headers {
            request = request.header(*name, value);
        }
        let request = request.body(Full::new(Bytes::from(ask.body.clone())))?;
        self.runtime.block_on(async {
            let response = self.server.handle(request, Arc::new(Everything)).await;
            let (parts, body) = response.into_parts();
            let text = |v: &http::HeaderValue| String::from_utf8_lossy(v.as_bytes()).into_owned();
            let headers: Vec<_> = parts.headers.iter().map(|(n, v)| (n.to_string(), text(v))).collect();
            let body = body.collect().await.map_err(|e| anyhow::anyhow!("{e}"))?.to_bytes();
            Ok(Answer::new(parts.status.as_u16(), &headers, &body))
        })
    }

    fn forget(&self) -> Result<()> {
        let (store, key) = (self.server.store(), "test/things/one");
        for _ in 0..HISTORY + 10 {
            let expect = store.get(key).map_or(Expect::Absent, |entry| Expect::Revision(entry.revision));
            let object = Some((key.to_owned(), expect, Some(serde_json::json!({ "metadata": {} }))));
            self.runtime.block_on(store.commit(Batch { object, private: Vec::new() }))?;
        }
        Ok(())
    }
}
