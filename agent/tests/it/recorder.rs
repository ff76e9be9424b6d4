//! In the API server's place: records what it saw, answers by path.

use crate::pki::{Authority, own_address, server_config};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, Version, header};
use http_body_util::{BodyExt, Empty, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use moorline_agent::{UpstreamConfig, metrics::Metrics, upstream::ApiServer};
use rcgen::SanType;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::watch,
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;

type Answer = UnsyncBoxBody<Bytes, Infallible>;

/// A request as it arrived.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: Method,
    pub target: String,
    pub version: Version,
    pub headers: HeaderMap,
    pub body: Bytes,
}

#[derive(Default)]
pub struct Log {
    pub seen: Mutex<Vec<Seen>>,
    pub connections: AtomicUsize,
    /// Objects by path: got, and patched by RFC 7396.
    pub objects: Mutex<BTreeMap<String, Value>>,
    /// Objects by path; null: forbidden. With any, everything else of the API is not found.
    pub places: Mutex<std::collections::HashMap<String, serde_json::Value>>,
    /// Answers to `/watch` that somebody listens to.
    pub watching: watch::Sender<usize>,
}

pub struct Recorder {
    pub addr: SocketAddr,
    pub log: Arc<Log>,
    task: AbortOnDropHandle<()>,
}

impl Recorder {
    /// With HTTP/2, or without.
    pub async fn start(authority: &Authority, alpn: &[&[u8]], at: Option<SocketAddr>) -> Self {
        let listener = TcpListener::bind(at.unwrap_or_else(own_address)).await.unwrap();
        let (addr, log) = (listener.local_addr().unwrap(), Arc::new(Log::default()));
        let acceptor = TlsAcceptor::from(server_config(authority.issue(vec![SanType::IpAddress(addr.ip())]), alpn));
        let task = AbortOnDropHandle::new(tokio::spawn(accept(listener, acceptor, log.clone())));
        Self { addr, log, task }
    }

    /// Frees the address; every connection is cut.
    pub async fn stop(self) -> SocketAddr {
        self.task.abort();
        let _ = self.task.await;
        self.addr
    }

    pub fn last(&self) -> Seen {
        self.log.seen.lock().unwrap().last().cloned().unwrap()
    }
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, log: Arc<Log>) {
    let mut connections = JoinSet::new();
    while let Ok((conn, _)) = listener.accept().await {
        log.connections.fetch_add(1, Ordering::SeqCst);
        let (acceptor, log) = (acceptor.clone(), log.clone());
        connections.spawn(async move {
            let Ok(tls) = acceptor.accept(conn).await else { return };
            let service = service_fn(move |request| answer(request, log.clone()));
            let server = auto::Builder::new(TokioExecutor::new());
            let _ = server.serve_connection_with_upgrades(TokioIo::new(tls), service).await;
        });
    }
}

async fn answer(mut request: Request<Incoming>, log: Arc<Log>) -> Result<Response<Answer>, Infallible> {
    let upgrade = request.headers().contains_key(header::UPGRADE).then(|| hyper::upgrade::on(&mut request));
    let (head, body) = request.into_parts();
    let body = if upgrade.is_some() {
        Bytes::new()
    } else {
        body.collect().await.map(|all| all.to_bytes()).unwrap_or_default()
    };
    let path = head.uri.path().to_owned();
    let method = head.method.clone();
    log.seen.lock().unwrap().push(Seen {
        method: head.method,
        target: head.uri.path_and_query().unwrap().to_string(),
        version: head.version,
        headers: head.headers.clone(),
        body: body.clone(),
    });
    let full = |text: &str| Full::new(Bytes::copy_from_slice(text.as_bytes())).boxed_unsync();
    let places = log.places.lock().unwrap().clone();
    if !places.is_empty() && path.starts_with("/api") {
        let (code, text) = match places.get(&path) {
            Some(serde_json::Value::Null) => (403, "{}".to_owned()),
            Some(object) => (200, object.to_string()),
            None => (404, String::new()),
        };
        return Ok(Response::builder().status(code).body(full(&text)).unwrap());
    }
    Ok(match (path.as_str(), upgrade) {
        (path, None) if path.contains("/secrets/") => {
            let mut objects = log.objects.lock().unwrap();
            let Some(object) = objects.get_mut(path) else {
                return Ok(Response::builder().status(404).body(full("{}")).unwrap());
            };
            if method == Method::PATCH {
                let patch: Value = serde_json::from_slice(&body).unwrap();
                for (key, value) in patch["data"].as_object().unwrap() {
                    object["data"][key] = value.clone();
                }
            }
            Response::new(full(&object.to_string()))
        }
        ("/upgrade", Some(upgrade)) => {
            tokio::spawn(async move {
                let mut io = TokioIo::new(upgrade.await.unwrap());
                let mut all = Vec::new();
                let mut buffer = [0; 1024];
                loop {
                    match io.read(&mut buffer).await {
                        Ok(n) if n > 0 => {
                            all.extend_from_slice(&buffer[..n]);
                            io.write_all(&buffer[..n]).await.unwrap();
                            io.flush().await.unwrap();
                        }
                        _ => break,
                    }
                }
                let _ = io.write_all(format!("{} bytes", all.len()).as_bytes()).await;
                let _ = io.shutdown().await;
            });
            let mut response = Response::new(Empty::new().boxed_unsync());
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            response.headers_mut().insert(header::CONNECTION, "Upgrade".parse().unwrap());
            response.headers_mut().insert(header::UPGRADE, "SPDY/3.1".parse().unwrap());
            response
        }
        ("/version", _) => Response::new(full(r#"{"gitVersion":"v1.34.1"}"#)),
        ("/redirect", _) => {
            Response::builder().status(302).header("location", "https://127.0.0.1:1/").body(full("")).unwrap()
        }
        ("/big", _) => Response::new(Full::new(Bytes::from(vec![b'x'; 8 << 20])).boxed_unsync()),
        ("/apis/authorization.k8s.io/v1/subjectaccessreviews", _) => {
            let seen = log.seen.lock().unwrap().last().cloned().unwrap();
            let allowed = String::from_utf8_lossy(&seen.body).contains("\"name\":\"bob\"");
            let text = format!(r#"{{"status":{{"allowed":{allowed}}}}}"#);
            Response::builder().status(201).body(full(&text)).unwrap()
        }
        ("/watch", _) => {
            log.watching.send_modify(|n| *n += 1);
            let watcher = Watcher(log);
            let events = futures_util::stream::unfold((watcher, true), |(watcher, first)| async move {
                if !first {
                    std::future::pending::<()>().await;
                }
                Some((Ok(hyper::body::Frame::data(Bytes::from_static(b"event\n"))), (watcher, false)))
            });
            Response::new(StreamBody::new(events).boxed_unsync())
        }
        _ => Response::new(full("ok")),
    })
}

struct Watcher(Arc<Log>);
impl Drop for Watcher {
    fn drop(&mut self) {
        self.0.watching.send_modify(|n| *n -= 1);
    }
}

/// A kubeconfig for an API server at `addr`, with a token in a file beside it.
pub fn kubeconfig(dir: &Path, authority: &Authority, addr: SocketAddr) -> UpstreamConfig {
    std::fs::write(dir.join("ca.crt"), authority.pem()).unwrap();
    std::fs::write(dir.join("token"), "edge-token\n").unwrap();
    let path = dir.join("kubeconfig");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
         clusters: [{{name: c, cluster: {{server: 'https://{addr}', certificate-authority: ca.crt}}}}]\n\
         contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
         users: [{{name: u, user: {{tokenFile: '{}'}}}}]\n",
        dir.join("token").display()
    );
    std::fs::write(&path, text).unwrap();
    UpstreamConfig::Kubeconfig { path, context: None }
}

pub async fn upstream(dir: &Path, authority: &Authority, addr: SocketAddr) -> (Arc<ApiServer>, Metrics) {
    let metrics = Metrics::new(&prometheus::Registry::new()).unwrap();
    let upstream = ApiServer::new(kubeconfig(dir, authority, addr), metrics.clone()).await.unwrap();
    (Arc::new(upstream), metrics)
}
