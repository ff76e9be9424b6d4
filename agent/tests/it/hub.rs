//! A hub of a few lines: joins whoever has a token, holds sessions over TLS.

use crate::pki::{AGENT, Authority, NODE, own_address, server_config, uri_name};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use moorline_authz::token::TokenText;
use moorline_link::{HubAddress, Limits, Session, accept_tls, tls};
use moorline_proto::{
    control::{Control, VERSION, Welcome},
    id::SessionId,
};
use rcgen::SanType;
use serde_json::json;
use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{
    net::TcpListener,
    sync::{Mutex, mpsc},
    task::JoinSet,
};
use tokio_rustls::LazyConfigAcceptor;
use tokio_util::task::AbortOnDropHandle;

const HUB: &str = "spiffe://example/hub/h1";

pub struct Shared {
    pub authority: Authority,
    /// HTTP requests of any kind.
    pub requests: AtomicUsize,
    /// Requests to join, the newest last.
    pub joins: std::sync::Mutex<Vec<serde_json::Value>>,
    /// What a join is answered with.
    pub join_status: std::sync::Mutex<StatusCode>,
    sessions: mpsc::UnboundedSender<Session>,
    ids: AtomicU64,
}

pub struct Hub {
    pub addr: SocketAddr,
    pub shared: Arc<Shared>,
    sessions: Mutex<mpsc::UnboundedReceiver<Session>>,
    task: AbortOnDropHandle<()>,
}

impl Hub {
    pub async fn start() -> Self {
        Self::start_at(Authority::new(), None).await
    }

    async fn start_at(authority: Authority, at: Option<SocketAddr>) -> Self {
        let listener = TcpListener::bind(at.unwrap_or_else(own_address)).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (sessions, arrived) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            authority,
            requests: AtomicUsize::new(0),
            joins: std::sync::Mutex::default(),
            join_status: std::sync::Mutex::new(StatusCode::OK),
            sessions,
            ids: AtomicU64::new(1),
        });
        let task = AbortOnDropHandle::new(tokio::spawn(accept(listener, shared.clone())));
        Self { addr, shared, sessions: Mutex::new(arrived), task }
    }

    /// Ends as a process that is killed, and starts again with the same authority.
    pub async fn restart(self) -> Self {
        let addr = self.addr;
        self.restart_at(addr).await
    }

    /// The same, at another address.
    pub async fn restart_at(self, addr: SocketAddr) -> Self {
        let Self { shared, sessions, task, .. } = self;
        task.abort();
        let _ = task.await;
        drop(sessions);
        let shared = Arc::try_unwrap(shared).ok().expect("nobody else holds the hub");
        Self::start_at(shared.authority, Some(addr)).await
    }

    pub fn address(&self) -> HubAddress {
        self.addr.to_string().parse().unwrap()
    }

    pub fn token(&self) -> String {
        TokenText::generate_join(self.shared.authority.pin()).reveal().to_string()
    }

    /// The next session that an agent opens.
    pub async fn session(&self) -> Session {
        let mut sessions = self.sessions.lock().await;
        tokio::time::timeout(Duration::from_secs(30), sessions.recv()).await.expect("an agent in time").unwrap()
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let at = SanType::IpAddress(listener.local_addr().unwrap().ip());
    let identity = shared.authority.issue(vec![at, uri_name(HUB)]);
    let tunnel = tls::server_config(&identity, &shared.authority.trust()).unwrap();
    let front = server_config(identity, &[b"http/1.1"]);
    let mut connections = JoinSet::new();
    while let Ok((conn, remote)) = listener.accept().await {
        let (shared, tunnel, front) = (shared.clone(), tunnel.clone(), front.clone());
        connections.spawn(async move {
            let Ok(start) =
                LazyConfigAcceptor::new(rustls::server::Acceptor::default(), moorline_link::ReadAhead::new(conn)).await
            else {
                return;
            };
            let for_tunnel = start.client_hello().alpn().is_some_and(|mut all| all.any(|name| name == tls::ALPN));
            let Ok(conn) = start.into_stream(if for_tunnel { tunnel } else { front }).await else { return };
            if for_tunnel {
                let Ok(greeting) = accept_tls(conn, remote, &Limits::default()).await else { return };
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
                let welcome = Welcome {
                    version: VERSION,
                    software: "hub/test".into(),
                    capabilities: vec![],
                    now_ms: now.try_into().unwrap(),
                };
                let id = SessionId(shared.ids.fetch_add(1, Ordering::SeqCst));
                let Ok(session) = greeting.welcome(id, welcome).await else { return };
                let _ = shared.sessions.send(session);
            } else {
                let service = service_fn(move |request| join(request, shared.clone()));
                let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(conn), service).await;
            }
        });
    }
}

async fn join(request: Request<Incoming>, shared: Arc<Shared>) -> Result<Response<Full<Bytes>>, Infallible> {
    shared.requests.fetch_add(1, Ordering::SeqCst);
    assert_eq!(request.uri().path(), "/agent/join");
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let asked: serde_json::Value = serde_json::from_slice(&body).unwrap();
    shared.joins.lock().unwrap().push(asked.clone());
    let status = *shared.join_status.lock().unwrap();
    let authority = &shared.authority;
    let answer = if status.is_success() {
        json!({
            "cluster": "edge1",
            "name": "a1",
            "trustDomain": "example",
            "chain": [authority.sign(asked["csr"].as_str().unwrap(), if asked["role"] == "node" { NODE } else { AGENT })],
            "bundle": [authority.pem()],
        })
    } else {
        json!({"kind": "Status", "message": "said the hub"})
    };
    Ok(Response::builder().status(status).body(Full::new(Bytes::from(answer.to_string()))).unwrap())
}

/// Answers a renewal as a hub does.
pub async fn renew(session: &Session, authority: &Authority) {
    loop {
        if let Some(Control::Renew { csr }) = session.recv().await {
            use base64::Engine;
            use rustls_pki_types::pem::PemObject;
            let body = base64::engine::general_purpose::STANDARD.encode(&csr);
            let pem = format!("-----BEGIN CERTIFICATE REQUEST-----\n{body}\n-----END CERTIFICATE REQUEST-----\n");
            let leaf =
                rustls_pki_types::CertificateDer::from_pem_slice(authority.sign(&pem, AGENT).as_bytes()).unwrap();
            let message = Control::Renewed { chain: vec![leaf.to_vec()], bundle: vec![authority.der().to_vec()] };
            session.send(message).await.unwrap();
            return;
        }
    }
}
