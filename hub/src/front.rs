//! The front door: who asks for what, and who answers it.

#![allow(clippy::result_large_err)] // a refusal is the answer itself, made once and moved out

mod answers;
mod auditing;
mod bodies;
mod deciding;
mod gate;
mod happened;
mod objects;
mod plans;
mod providers;
mod rights;
mod tokens;

use crate::{
    alive::Alive,
    audit,
    config::Limits,
    crowd::Crowd,
    direct::Bundles,
    directory::{Authenticated, Directory},
    hubapi::HubApi,
    issue::{Issued, Issuer},
    join::Joiner,
    login::{LOCAL, Logins},
    metrics::Metrics,
    ops::{Health, readiness},
    plugins,
    reader::Prompt,
    records::Records,
    route::CallDial,
    sessions::Registry,
    shares::Shares,
};
use answers::{closing, join_answer, json, later, login_refused, text};
use futures_util::FutureExt;
use gate::check_host;
use http::{Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use moorline_authz::{access::Grants, impersonation, verb::request_info};
use moorline_plugin::Host;
use moorline_proxy::{
    Body,
    audit::AuditSink,
    body,
    judge::Refusal,
    kube::{Caller, KubeProxy, ProxyMetrics},
    path::{self, ClusterPath},
    status::status_response,
};
use serde::Deserialize;
use std::{net::SocketAddr, panic::AssertUnwindSafe, pin::pin, sync::Arc, time::Duration};
use tokio::sync::{Semaphore, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

mod inside;
mod link;
mod lockouts;
mod names;
mod recordings;
mod searches;
mod shell;

pub(crate) use gate::{Gate, Permits};
pub(crate) use link::BENCHES;
pub(crate) use names::Names;
pub(crate) use searches::Searches;

/// What every request is answered with.
pub(crate) struct Front {
    pub gate: Gate,
    pub directory: Arc<Directory>,
    pub registry: Arc<Registry>,
    pub records: Records,
    pub api: HubApi,
    pub plugins: Arc<Host>,
    pub joiner: Arc<Joiner>,
    pub logins: Arc<Logins>,
    /// The audit log, for searches.
    pub audit_path: std::path::PathBuf,
    /// What was recorded of sessions in terminals.
    pub recordings: Arc<moorline_proxy::tape::Store>,
    /// Searches at a time.
    pub searches: Searches,
    /// `https://host:port`, where browsers find this hub.
    pub public_url: String,
    pub issuer: Arc<Issuer>,
    pub bundles: Arc<Bundles>,
    pub audit: Arc<dyn AuditSink>,
    pub health: Arc<dyn Health>,
    pub metrics: Metrics,
    pub proxy_metrics: ProxyMetrics,
    pub limits: Limits,
    pub authority: Arc<crate::pki::Authority>,
    pub tasks: TaskTracker,
    /// The hub is shutting down.
    pub finish: CancellationToken,
    pub alive: Arc<Alive>,
    /// Of [`Limits::bodies_of_strangers`].
    pub strangers: Arc<Crowd>,
    /// Measurements of tunnels.
    pub benches: Semaphore,
    /// Services by host name.
    pub names: Names,
    /// Files that plans fetch.
    pub plan_files: Arc<crate::plans::Files>,
    /// Services that clusters share.
    pub shares: Arc<Shares>,
}

/// Of a login's body, for its record.
#[derive(Default, Deserialize)]
struct LoginAsked {
    #[serde(default)]
    username: String,
    provider: Option<String>,
}

impl Front {
    /// One request. A panic ends it alone.
    pub async fn serve(&self, request: Request<Incoming>, remote: SocketAddr, sni: Option<&str>) -> Response<Body> {
        let kind = kind_of(request.uri().path());
        // Pinned where it is made: it is large, and each move of it copies all of it.
        let answer = pin!(self.answer(request, remote, sni));
        let response = contained(answer, &self.metrics, kind).await;
        self.metrics.requests.with_label_values(&[kind, response.status().as_str()]).inc();
        response
    }

    async fn answer(&self, request: Request<Incoming>, remote: SocketAddr, sni: Option<&str>) -> Response<Body> {
        if request.method() == Method::CONNECT {
            self.count_refusal("connect");
            return closing(StatusCode::METHOD_NOT_ALLOWED, "CONNECT is not possible here");
        }
        if let Err(response) = check_host(&request, sni) {
            self.count_refusal("host");
            return response;
        }
        let authority = inside::host_of(&request);
        if let Some(label) = self.names.label(&authority) {
            return Box::pin(self.by_name(request, authority, &label, remote)).await;
        }
        let target = request.uri().path_and_query().map_or("", |target| target.as_str()).to_owned();
        match path::split(&target) {
            Err(error) => {
                self.count_refusal("path");
                closing(StatusCode::BAD_REQUEST, &error.to_string())
            }
            Ok(Some(cluster)) => self.cluster(request, cluster, remote).await,
            Ok(None) => Box::pin(self.own(request, remote)).await,
        }
    }

    async fn cluster(
        &self,
        mut request: Request<Incoming>,
        path: ClusterPath<'_>,
        remote: SocketAddr,
    ) -> Response<Body> {
        if shell::asked(&path).is_some() {
            shell::take_token(request.headers_mut());
        }
        let who = match self.gate.enter(&request, remote) {
            Ok(who) => who,
            Err(response) => return response,
        };
        if let Some(asked) = inside::Asked::of(&path) {
            return Box::pin(self.inside(request, path, asked, who, remote)).await;
        }
        if let Some(query) = shell::asked(&path) {
            return Box::pin(self.shell(request, path, query, who, remote)).await;
        }
        let grants = self.directory.watch_grants();
        let known = Arc::clone(&grants.borrow());
        let permit = match self.gate.judge(&request, &path, &who, &known) {
            Ok(permit) => permit,
            Err(refusal) => return Box::pin(self.refuse(refusal, &request, &path, &who, remote)).await,
        };
        if let Some(response) = self.gate.over_quota_to(path.cluster) {
            return response;
        }
        Prompt::note(&request, path.rest);
        let proxy = self.proxy(&who, grants);
        let caller = Caller { identity: who.identity, remote };
        proxy.handle(request.map(body::from), path, &caller, permit).await
    }

    fn proxy(&self, who: &Authenticated, grants: watch::Receiver<Arc<Grants>>) -> KubeProxy<CallDial> {
        let dial = self.dial(who, grants);
        self.proxy_over(dial)
    }

    fn proxy_over<D: moorline_proxy::kube::Dial>(&self, dial: D) -> KubeProxy<D> {
        KubeProxy::new(Arc::new(dial), Arc::clone(&self.audit), self.proxy_metrics.clone(), self.tasks.clone())
            .recording(Arc::clone(&self.recordings))
            .pace(self.limits.body_pace)
    }

    fn dial(&self, who: &Authenticated, grants: watch::Receiver<Arc<Grants>>) -> CallDial {
        CallDial {
            registry: Arc::clone(&self.registry),
            records: self.records.clone(),
            who: who.clone(),
            grants,
            metrics: self.metrics.clone(),
            finish: self.finish.clone(),
            spread: self.limits.watch_spread,
        }
    }

    /// Answers a call that goes to no cluster. What somebody known tried stands in the audit log.
    async fn refuse(
        &self,
        refusal: Refusal,
        request: &Request<Incoming>,
        path: &ClusterPath<'_>,
        who: &Authenticated,
        remote: SocketAddr,
    ) -> Response<Body> {
        self.count_refusal(refusal.reason);
        if self.audit.admit().await.is_err() {
            return self.audit_full();
        }
        let (at, query) = path.rest.split_once('?').map_or((path.rest, None), |(at, query)| (at, Some(query)));
        let info = request_info(request.method().as_str(), at, query);
        let user = &who.identity;
        let mut event =
            audit::event(&info.verb, path.rest, &user.user, remote, refusal.code.as_u16(), "", path.cluster);
        (event.user.uid, event.user.groups) = (user.uid.clone(), user.groups.clone());
        event.annotations.insert("moorline.dev/ended", refusal.reason.to_owned());
        self.audit.push(event);
        status_response(refusal.code, &refusal.message)
    }

    fn count_refusal(&self, reason: &str) {
        self.gate.count_refusal(reason);
    }

    fn audit_full(&self) -> Response<Body> {
        self.count_refusal("audit_full");
        later(StatusCode::SERVICE_UNAVAILABLE, "the audit log takes no more records", Duration::from_secs(1))
    }

    async fn own(&self, request: Request<Incoming>, remote: SocketAddr) -> Response<Body> {
        let path = request.uri().path().to_owned();
        match (request.method(), path.as_str()) {
            (&Method::GET | &Method::HEAD, "/livez" | "/healthz") => text(StatusCode::OK, "ok\n"),
            (&Method::GET | &Method::HEAD, "/readyz") => {
                let (ready, _) = readiness(&*self.health, false);
                let code = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
                text(code, if ready { "ok\n" } else { "not ready\n" })
            }
            (&Method::GET | &Method::HEAD, "/auth/ca") => text(StatusCode::OK, &self.authority.pem()),
            (&Method::POST, "/agent/join") => match self.read_of_stranger(request, remote).await {
                Ok(body) => join_answer(self.joiner.join(&body, remote).await),
                Err(response) => response,
            },
            (&Method::POST, "/auth/login") => match self.read_of_stranger(request, remote).await {
                Ok(body) => self.login(&body, remote).await,
                Err(response) => response,
            },
            (&Method::GET | &Method::HEAD, "/auth/providers") => self.list_providers(),
            (&Method::POST, "/auth/code") => self.redeem(request, remote).await,
            (&Method::POST, "/auth/device") => self.start_device(request, remote).await,
            (&Method::POST, "/auth/device/poll") => self.poll_device(request, remote).await,
            (&Method::GET, path) if path.starts_with("/auth/start/") => {
                let provider = path.trim_start_matches("/auth/start/");
                self.start_browser(&request, provider, remote).await
            }
            (&Method::GET, path) if path.starts_with("/auth/callback/") => {
                let provider = path.trim_start_matches("/auth/callback/");
                self.browser_came_back(&request, provider, remote).await
            }
            (_, names::BROWSER) => Box::pin(self.browser(request, remote)).await,
            (&Method::GET | &Method::HEAD, "/auth/keys") => self.public_keys(),
            (&Method::POST, "/auth/refresh") => self.by_refresh_token(request, remote, false).await,
            (&Method::POST, "/auth/logout") if !request.headers().contains_key(header::AUTHORIZATION) => {
                self.by_refresh_token(request, remote, true).await
            }
            (
                _,
                "/agent/join" | "/auth/login" | "/auth/refresh" | "/auth/code" | "/auth/device" | "/auth/device/poll",
            ) => closing(StatusCode::METHOD_NOT_ALLOWED, "only POST"),
            _ => self.authenticated(request, &path, remote).await,
        }
    }

    async fn authenticated(&self, request: Request<Incoming>, path: &str, remote: SocketAddr) -> Response<Body> {
        let who = match self.gate.enter(&request, remote) {
            Ok(who) => who,
            Err(response) => return response,
        };
        // To do as oneself what somebody else was meant to do could do anything.
        if !matches!(impersonation::parse(pairs(request.headers())), Ok(None)) {
            self.count_refusal("impersonation");
            return status_response(StatusCode::FORBIDDEN, "nobody acts as another user in the hub's own API");
        }
        match (request.method(), path) {
            (&Method::GET, "/auth/whoami") => {
                let me = &who.identity;
                json(StatusCode::OK, &serde_json::json!({ "user": me.user, "uid": me.uid, "groups": me.groups }))
            }
            (&Method::POST, "/auth/logout") => self.log_out(&who, remote).await,
            _ if path.starts_with("/plugins/") => {
                let may_see = plugins::may_see(&who, self.directory.grants());
                let (parts, incoming) = request.into_parts();
                match self.collect(incoming, self.limits.body).await {
                    Ok(bytes) => plugins::route(&self.plugins, Request::from_parts(parts, bytes), &who, may_see).await,
                    Err(response) => response,
                }
            }
            _ if path.starts_with(plans::PREFIX) => Box::pin(self.plan_file(request, path, &who, remote)).await,
            (&Method::GET, "/auth/audit") => self.search_audit(&request, &who).await,
            (_, path) if path.starts_with(lockouts::PREFIX) => self.lockouts(&request, &who, remote).await,
            (&Method::GET, path) if path.starts_with(recordings::PREFIX) => {
                self.recordings(&request, &who, remote).await
            }
            (&Method::POST, path) if path.starts_with("/auth/access-requests/") => {
                self.decide_access(request, path, &who, remote).await
            }
            (&Method::GET, "/auth/principals") => self.principals(&request, &who).await,
            (&Method::POST, "/auth/can-i") => self.can_i(request, &who).await,
            (&Method::POST, "/auth/token") => self.cluster_token(request, &who).await,
            (&Method::GET, _) if path.starts_with("/auth/bundles/") => self.bundle_of(path, &who, remote).await,
            (&Method::POST, "/auth/keys/rotate") => self.rotate_keys(request, &who, remote).await,
            _ if HubApi::serves(path) => self.objects(request, path, &who, remote).await,
            _ => status_response(StatusCode::NOT_FOUND, "the hub serves nothing at this path"),
        }
    }

    async fn login(&self, body: &[u8], remote: SocketAddr) -> Response<Body> {
        self.logged_in(body, remote).await.map_or_else(|refusal| refusal, |issued| json(StatusCode::OK, &issued))
    }

    /// A login, recorded; or the answer to who gets none.
    async fn logged_in(&self, body: &[u8], remote: SocketAddr) -> Result<Issued, Response<Body>> {
        if self.audit.admit().await.is_err() {
            return Err(self.audit_full());
        }
        let result = self.logins.login(body, remote.ip()).await;
        let asked: LoginAsked = serde_json::from_slice(body).unwrap_or_default();
        let provider = asked.provider.as_deref().unwrap_or(LOCAL);
        let user = match &result {
            Ok(issued) => Some(issued.user.clone()),
            // Whom it was tried for, so that attacks on somebody are found.
            Err(_) => self.logins.meant(provider, &asked.username),
        };
        let result = result.map_err(|error| login_refused(&error));
        let code = result.as_ref().map_or_else(Response::status, |_| StatusCode::OK);
        let named = asked.provider.as_deref().filter(|name| self.logins.provider(name).is_ok());
        let (user, named) = (user.unwrap_or_default(), named.unwrap_or_default());
        self.audit_login("/auth/login", &user, named, remote, code);
        result
    }
}

fn pairs(headers: &http::HeaderMap) -> impl Iterator<Item = (&str, &[u8])> {
    headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes()))
}

/// The answer, or a 500 where its making panics: that ends this request alone.
async fn contained(answer: impl Future<Output = Response<Body>>, metrics: &Metrics, kind: &str) -> Response<Body> {
    AssertUnwindSafe(answer).catch_unwind().await.unwrap_or_else(|_| {
        metrics.panics.inc();
        tracing::error!(kind, "the handling of a request panicked");
        status_response(StatusCode::INTERNAL_SERVER_ERROR, "the hub failed to handle this request")
    })
}

/// Kinds of requests, for metrics.
fn kind_of(path: &str) -> &'static str {
    match path {
        _ if path.starts_with("/k8s/") => "cluster",
        _ if path.starts_with("/api") || path.starts_with("/openapi") || path == "/version" => "api",
        "/auth/login" => "login",
        "/agent/join" => "join",
        "/livez" | "/readyz" | "/healthz" => "health",
        _ if path.starts_with("/auth/") => "auth",
        _ if path.starts_with("/plugins/") => "plugin",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn f47_a_panic_ends_its_request_alone_and_is_counted() {
        let metrics = Metrics::new(&prometheus::Registry::new()).unwrap();
        let panics = async { unreachable!("as a defect would") };
        let answer = contained(panics, &metrics, "cluster").await;
        assert_eq!((answer.status().as_u16(), metrics.panics.get()), (500, 1));
        let sound = async { text(StatusCode::OK, "ok") };
        assert_eq!((contained(sound, &metrics, "cluster").await.status().as_u16(), metrics.panics.get()), (200, 1));
    }
}
