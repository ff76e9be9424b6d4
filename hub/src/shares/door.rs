//! What agents that import ask the hub, over HTTP/1.1 with their own certificate.
//!
//! `POST /imports`: what there is to import, at once or when it changes; it carries how the last went.
//! `GET /imports/<name>/<port>` with `Upgrade: moorline-stream`: one connection.
//! Both with `?payload=datagrams`: the agent carries these too; the connection carries datagrams of many flows. A connection
//! with `?client=<IP>`: whose it is, for services whose clients keep to one cluster.

use super::{
    Shares, Told, Wanted,
    balance::{of_client, order},
    dial::{Asked, ImportDial},
    limits, merge,
};
use crate::{front::Front, sessions::Sessions};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use moorline_authz::{
    access::{Transport, authorize_import},
    hex::{hex, sha256},
};
use moorline_link::tls;
use moorline_proto::{id::Role, inside::Payload};
use moorline_proxy::{
    Body, body,
    kube::{Caller, KubeProxy},
    status::status_response,
};
use rustls_pki_types::CertificateDer;
use serde::Deserialize;
use serde_json::json;
use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::time::{sleep, timeout};

/// A question.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Question {
    /// `revision` of the last answer.
    #[serde(default)]
    seen: String,
    /// How each import is.
    #[serde(default)]
    told: Vec<Told>,
}

/// One agent's connection.
#[derive(Clone)]
pub(crate) struct Importing {
    shares: Arc<Shares>,
    front: Arc<Front>,
    cluster: String,
    agent: String,
    key: String,
    remote: SocketAddr,
}

/// An agent counts as one that imports while its question is open.
struct Asking<'a>(&'a Importing);
impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let Importing { shares, cluster, agent, .. } = self.0;
        if let Some(importer) = shares.importers().get_mut(cluster).and_then(|agents| agents.get_mut(agent)) {
            importer.asking = importer.asking.saturating_sub(1);
            importer.last = Instant::now();
        }
    }
}

impl Shares {
    pub(super) fn is_agent(&self, agent: &str, key: &str) -> bool {
        self.sessions.still_agent(agent, key).is_ok()
    }
}

impl Importing {
    /// Who is at the other end, by the certificate that the handshake has checked.
    ///
    /// # Errors
    /// Why nobody is served, for the log.
    pub fn of(
        front: &Arc<Front>,
        sessions: &Sessions,
        cert: Option<&CertificateDer<'_>>,
        remote: SocketAddr,
    ) -> Result<Self, String> {
        let cert = cert.ok_or("no certificate")?;
        let peer = tls::peer_id(cert).map_err(|e| e.to_string())?;
        let Role::ClusterAgent(cluster, agent) = peer.role else { return Err("not a cluster agent".to_owned()) };
        let key = hex(&tls::spki_sha256(cert).map_err(|e| e.to_string())?);
        sessions.still_agent(&format!("{cluster}.{agent}"), &key)?;
        let (cluster, agent) = (cluster.to_string(), agent.to_string());
        Ok(Self { shares: Arc::clone(&front.shares), front: Arc::clone(front), cluster, agent, key, remote })
    }

    /// One request.
    pub async fn serve(&self, request: Request<Incoming>) -> Response<Body> {
        let agent = format!("{}.{}", self.cluster, self.agent);
        if let Err(why) = self.shares.sessions.still_agent(&agent, &self.key) {
            let mut gone = status_response(StatusCode::FORBIDDEN, &why);
            gone.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            return gone;
        }
        let path = request.uri().path().to_owned();
        let (mut transport, mut client) = (Transport::Tcp, None);
        for word in request.uri().query().into_iter().flat_map(|query| query.split('&')) {
            match word.split_once('=') {
                Some(("payload", "datagrams")) => transport = Transport::Udp,
                Some(("client", address)) if address.parse::<IpAddr>().is_ok() => client = Some(address.to_owned()),
                _ => {
                    return status_response(
                        StatusCode::BAD_REQUEST,
                        "the query may be payload=datagrams and client=IP",
                    );
                }
            }
        }
        match (request.method(), path.strip_prefix("/imports")) {
            (&Method::POST, Some("")) => self.news(request, transport == Transport::Udp).await,
            (&Method::GET, Some(rest)) => {
                let asked = rest.strip_prefix('/').and_then(|rest| rest.split_once('/'));
                match asked.and_then(|(name, port)| Some((name, port.parse::<u16>().ok()?))) {
                    Some((import, port)) => Box::pin(self.connect(request, import, (port, transport), client)).await,
                    None => status_response(StatusCode::BAD_REQUEST, "the path is /imports/NAME/PORT"),
                }
            }
            _ => status_response(StatusCode::NOT_FOUND, "agents are served nothing else here"),
        }
    }

    async fn news(&self, request: Request<Incoming>, datagrams: bool) -> Response<Body> {
        let body = timeout(Duration::from_secs(10), Limited::new(request.into_body(), limits::QUESTION).collect());
        let Ok(Ok(body)) = body.await else {
            return status_response(StatusCode::BAD_REQUEST, "the question was cut short, or is too large");
        };
        let question = match serde_json::from_slice::<Question>(&body.to_bytes()) {
            Ok(question) => question,
            Err(e) => return status_response(StatusCode::BAD_REQUEST, &format!("the question cannot be read: {e}")),
        };
        let shares = &self.shares;
        let told: Vec<Told> = question.told.into_iter().take(limits::IMPORTS).collect();
        {
            let mut importers = shares.importers();
            let agents = importers.entry(self.cluster.clone()).or_default();
            let fresh = || super::Importer { asking: 0, last: Instant::now(), told: Vec::new(), datagrams };
            let news = !agents.contains_key(&self.agent);
            let importer = agents.entry(self.agent.clone()).or_insert_with(fresh);
            importer.asking += 1;
            if news || importer.told != told || importer.datagrams != datagrams {
                (importer.told, importer.datagrams) = (told, datagrams);
                shares.wake.notify_one();
            }
        }
        let _asking = Asking(self);
        let mut known = shares.known.subscribe();
        let over = sleep(limits::POLL);
        tokio::pin!(over);
        loop {
            let now = known.borrow_and_update().clone();
            let wanted = Shares::wanted(&now, &self.cluster, shares.carries_datagrams(&self.cluster));
            let revision = revision(&wanted);
            let changed = revision != question.seen;
            let finish = async {
                tokio::select! {
                    () = &mut over => true,
                    () = self.front.finish.cancelled() => true,
                    changed = known.changed() => changed.is_err(),
                }
            };
            if changed || finish.await {
                let agents = shares.importing(&self.cluster);
                let answer = json!({ "revision": revision, "imports": wanted, "agents": agents });
                let mut response = Response::new(body::full(answer.to_string()));
                response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
                return response;
            }
        }
    }

    async fn connect(
        &self,
        request: Request<Incoming>,
        import: &str,
        port: (u16, Transport),
        client: Option<String>,
    ) -> Response<Body> {
        let shares = &self.shares;
        let count = |result| shares.metrics.imports.with_label_values(&[result]).inc();
        let known = shares.known.borrow().clone();
        let who = (self.cluster.as_str(), self.agent.as_str());
        let mut refused = None;
        let mut found = Vec::new();
        let meant = known.imports.get(import).into_iter().flat_map(|import| known.meant(import));
        for (name, export) in meant {
            match authorize_import(&known, who, import, name, port) {
                Ok(permit) => found.push((permit, name.clone(), shares.way(name, export))),
                Err(denial) => refused = Some(denial.to_string()),
            }
        }
        if found.is_empty() {
            count("refused");
            let none = || match authorize_import(&known, who, import, "", port) {
                Err(denial) => denial.to_string(),
                Ok(_) => String::new(), // no export has an empty name
            };
            return status_response(StatusCode::FORBIDDEN, &refused.unwrap_or_else(none));
        }
        let mut ways: Vec<_> = found.iter().map(|(_, _, way)| *way).collect();
        let sticky = known.imports.get(import).is_some_and(|import| merge::is_sticky(&known, import));
        let client = client.filter(|_| sticky);
        if client.is_some() {
            ways.iter_mut().for_each(|way| way.open = 0); // where the client's others are counts, not who has few
        }
        let order = order(&ways, |at| match (&client, found.get(at)) {
            (Some(client), Some((_, export, _))) => of_client(client, export),
            _ => rand::random(),
        });
        let tried = order.into_iter().filter_map(|at| found.get(at)).take(limits::TRIED);
        let ways: Vec<_> = tried.map(|(permit, name, _)| (permit.clone(), name.clone())).collect();
        let permits: Vec<_> = ways.iter().map(|(permit, _)| permit.clone()).collect();
        let (Some(principal), Some(first)) = (permits.first().map(|p| Arc::clone(p.principal())), permits.first())
        else {
            return status_response(StatusCode::FORBIDDEN, "nothing exports it");
        };
        if let Some(response) = self.front.gate.unheard() {
            count("refused");
            return response;
        }
        if let Some(response) = self.front.gate.over_quota_of(&principal.user, first.cluster(), self.remote) {
            count("over_quota");
            return response;
        }
        let asked = Asked {
            cluster: self.cluster.clone(),
            agent: self.agent.clone(),
            key: self.key.clone(),
            import: import.to_owned(),
            port,
        };
        let names: Vec<String> = ways.iter().map(|(_, name)| name.clone()).collect();
        let dial = Arc::new(ImportDial { shares: Arc::clone(shares), asked, ways });
        let front = &self.front;
        let proxy = KubeProxy::new(dial, Arc::clone(&front.audit), front.proxy_metrics.clone(), front.tasks.clone());
        let caller = Caller { identity: principal, remote: self.remote };
        let tell = |at: usize, went: Result<(), (&str, &str)>| {
            let Some(name) = names.get(at) else { return };
            let now = Instant::now();
            let news = match went {
                Ok(()) => shares.memory().well(name, now),
                Err((reason, message)) => {
                    count("failed_over");
                    shares.memory().ill(name, reason, message, now)
                }
            };
            if news {
                shares.wake.notify_one();
            }
        };
        let payload = match port.1 {
            Transport::Tcp => Payload::Bytes,
            Transport::Udp => Payload::Datagrams,
        };
        let response = proxy.connect_first(request.map(body::from), payload, &caller, &permits, tell).await;
        count(if response.status() == StatusCode::SWITCHING_PROTOCOLS { "opened" } else { "failed" });
        response
    }
}

/// Changes with what is wanted.
fn revision(wanted: &[Wanted]) -> String {
    sha256(json!(wanted).to_string().as_bytes())
}
