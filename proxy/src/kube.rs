//! The hub's half of a call to a cluster.

use crate::{
    Body, BodyError,
    audit::AuditSink,
    headers::{clean_request, clean_response, clean_service_request},
    pace::{Pace, Paced},
    path::ClusterPath,
    status::{Details, reason_of, status_response, status_with},
    upgrade::{Counted, Io, UpgradedIo, copy_both},
    wire::{self, MayRepeat, WantsUpgrade, WireError},
};
use bytes::Bytes;
use call::{Call, Trace};
use failure::Failure;
use futures_util::future::BoxFuture;
use http::{
    HeaderValue, Method, Request, Response, StatusCode, Version,
    header::{CONNECTION, USER_AGENT},
    uri::PathAndQuery,
};
use hyper_util::rt::TokioIo;
use moorline_authz::{
    access::Permit,
    identity::{ActAs, Identity},
    verb::request_info,
};
use moorline_proto::{
    code::ResetCode,
    header::{Class, Principal, Refusal, StreamHeader, Target},
    inside::{Inside, Payload},
};
use std::{future::poll_fn, net::SocketAddr, pin::pin, sync::Arc, time::Duration};
use tokio_util::task::TaskTracker;
use tracing::Instrument;

mod call;
mod connect;
mod failure;
mod metrics;
mod recording;
mod service;

pub use connect::PROTOCOL;
pub use metrics::ProxyMetrics;
pub use service::{OWN_COOKIE, Service};

/// Why no stream to a cluster could be opened.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// No agent of the cluster is connected.
    #[error("cluster {cluster:?} is not connected")]
    NotConnected {
        /// The cluster.
        cluster: String,
        /// RFC 3339; `None`: it never was.
        since: Option<String>,
    },
    /// No node agent of the cluster is connected, or not this one.
    #[error("{}", no_node(.cluster, .node.as_deref(), *.parked))]
    NoNode {
        /// The cluster.
        cluster: String,
        /// The one that was asked for; `None`: any.
        node: Option<String>,
        /// It exists, holds no session, and was called: it comes within a minute.
        parked: bool,
    },
    /// The agent, or its session, takes no stream now.
    #[error("cluster {cluster:?} cannot take another request now")]
    Busy {
        /// The cluster.
        cluster: String,
    },
    /// The agent refused.
    #[error("the agent refused ({}): {}", .0.code, .0.message)]
    Refused(Refusal),
    /// The session ended while the stream was opened.
    #[error("the session to the cluster ended")]
    Lost,
    /// No answer in time.
    #[error("the cluster's agent did not answer in time")]
    Timeout,
}

impl DialError {
    /// A second try does no harm: nothing reached a target, and another session may take it.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Busy { .. } | Self::Lost => true,
            Self::Refused(refusal) => refusal.retry_elsewhere,
            Self::NotConnected { .. } | Self::NoNode { .. } | Self::Timeout => false,
        }
    }

    /// The HTTP status that tells a client of it.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::NoNode { node: Some(_), parked: false, .. } => StatusCode::NOT_FOUND,
            Self::NotConnected { .. } | Self::NoNode { .. } | Self::Busy { .. } | Self::Lost => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Timeout => StatusCode::GATEWAY_TIMEOUT,
            Self::Refused(refusal) => crate::status::of_refusal(refusal.code).0,
        }
    }
}

fn no_node(cluster: &str, node: Option<&str>, parked: bool) -> String {
    match (node, parked) {
        (Some(node), true) => format!("node agent {node:?} of cluster {cluster:?} was parked and is being called"),
        (Some(node), false) => format!(
            "cluster {cluster:?} has no node agent {node:?}; which there are: kubectl get agents.moorline.dev at the hub"
        ),
        (None, _) => format!("no node agent of cluster {cluster:?} is connected, and shells run on nodes"),
    }
}

/// Opens streams to clusters. The hub implements it over its sessions.
pub trait Dial: Send + Sync + 'static {
    /// What it opens.
    type Stream: Io;
    /// Opens a stream. `attempt` counts from 0; a second attempt should take another session if there is one.
    fn dial<'a>(
        &'a self,
        permit: &'a Permit,
        header: &'a StreamHeader,
        attempt: u32,
    ) -> BoxFuture<'a, Result<Self::Stream, DialError>>;
}

/// Who calls, as the front door knows it.
#[derive(Debug, Clone)]
pub struct Caller {
    /// As authenticated.
    pub identity: Arc<Identity>,
    /// The socket's address.
    pub remote: SocketAddr,
}

/// The proxy.
pub struct KubeProxy<D> {
    dial: Arc<D>,
    audit: Arc<dyn AuditSink>,
    metrics: ProxyMetrics,
    tasks: TaskTracker,
    store: Option<Arc<crate::tape::Store>>,
    pace: Pace,
}

impl<D: Dial> KubeProxy<D> {
    /// `tasks` owns the tasks of upgraded connections: the hub waits for it when it ends.
    pub fn new(dial: Arc<D>, audit: Arc<dyn AuditSink>, metrics: ProxyMetrics, tasks: TaskTracker) -> Self {
        Self { dial, audit, metrics, tasks, store: None, pace: Pace::default() }
    }

    /// With another pace for the bodies of requests to API servers.
    #[must_use]
    pub fn pace(self, pace: Pace) -> Self {
        Self { pace, ..self }
    }

    /// One call. `request` is as the client sent it (with hyper's `OnUpgrade` extension); `path` is [`crate::path::split`] of its target.
    ///
    /// # Cancel safety
    /// Dropping the future, or the answer's body, cancels the call at the API server. The audit log tells of it.
    pub async fn handle(
        &self,
        request: Request<Body>,
        path: ClusterPath<'_>,
        caller: &Caller,
        permit: Permit,
    ) -> Response<Body> {
        self.call(request, path.rest, caller, permit, None).await
    }

    /// One call to a service. `rest` is the target as the service shall see it; `permit` must be for it.
    ///
    /// # Cancel safety
    /// As [`KubeProxy::handle`].
    pub async fn service(
        &self,
        request: Request<Body>,
        rest: &str,
        service: &Service,
        caller: &Caller,
        permit: Permit,
    ) -> Response<Body> {
        self.call(request, rest, caller, permit, Some(service)).await
    }

    async fn call(
        &self,
        request: Request<Body>,
        rest: &str,
        caller: &Caller,
        permit: Permit,
        service: Option<&Service>,
    ) -> Response<Body> {
        let to = match (service, permit.inside()) {
            (None, None) => Target::Kube,
            (Some(service), Some((to, labels))) => {
                let payload = if service.https { Payload::Https } else { Payload::Http };
                Target::Inside(Inside { to: to.clone(), payload, labels: labels.to_vec() })
            }
            // A right for one is none for the other.
            _ => return refused(StatusCode::FORBIDDEN, "this right is for something else"),
        };
        let (mut parts, body) = request.into_parts();
        let Ok(target) = PathAndQuery::from_maybe_shared(Bytes::copy_from_slice(rest.as_bytes())) else {
            return status_response(StatusCode::BAD_REQUEST, "the request target is malformed");
        };
        let agent = parts.headers.get(USER_AGENT).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        let on_upgrade = parts.extensions.remove::<hyper::upgrade::OnUpgrade>();
        let info = match service {
            None => request_info(parts.method.as_str(), target.path(), target.query()),
            Some(service) => service.info(),
        };
        let trace = Trace::of(&parts.headers);
        let call = Call::new(self, &permit, caller, &info, &trace, target.as_str(), agent.unwrap_or_default());
        let mut call = match self.admitted(call).await {
            Ok(call) => call,
            Err(response) => return *response,
        };
        let upgrade = match accept_head(&mut parts, service.is_some()) {
            Ok(upgrade) => upgrade,
            Err((code, message)) => {
                call.finish(code, "refused");
                return refused(code, &message);
            }
        };
        let headers = &mut parts.headers;
        let asked = (&parts.method, target.path());
        let tape = match self.tape(&permit, &info, asked, headers, upgrade, &mut call).await {
            Ok(tape) => tape,
            Err(unrecorded) => {
                call.finish(unrecorded.response.status(), unrecorded.label);
                return *unrecorded.response;
            }
        };
        if upgrade || info.endless {
            call.started();
        }
        let span = tracing::debug_span!(
            "kube", cluster = permit.cluster(), user = %permit.principal().user, verb = %info.verb, trace = %trace.id
        );

        match service {
            None => {
                if let Ok(value) = HeaderValue::try_from(call.id()) {
                    parts.headers.insert("audit-id", value);
                }
            }
            Some(service) => service.introduce(&mut parts.headers, caller),
        }
        if let Ok(value) = HeaderValue::try_from(trace.parent.as_str()) {
            parts.headers.insert("traceparent", value);
        }
        let header = StreamHeader {
            target: to,
            class: if info.endless { Class::Watch } else { Class::Interactive },
            deadline_ms: 0,
            traceparent: Some(trace.parent.clone()),
            principal: Some(principal(&permit)),
        };
        let mut head = Request::new(());
        (*head.method_mut(), *head.uri_mut(), *head.headers_mut()) = (parts.method, target.into(), parts.headers);
        if upgrade {
            head.extensions_mut().insert(WantsUpgrade);
        }
        // What goes through to a service may be a stream without an end, and is the service's to bound.
        let body = match service {
            None if !info.is_proxied() => Paced::wrap(body, self.pace, self.metrics.slow_bodies.clone()),
            _ => body,
        };
        let exchange = pin!(self.exchange(head, call.count_in(body), &permit, &header).instrument(span.clone()));
        match exchange.await {
            Ok(response) => self.answer(response, upgrade, on_upgrade, (call, tape), (span, service)),
            Err(e) => {
                let response = e.response(permit.cluster(), &trace.id, upgrade);
                let (cluster, user, trace) = (permit.cluster(), &permit.principal().user, &trace.id);
                tracing::info!(cluster, user, trace, code = response.status().as_u16(), error = %e, "call failed");
                call.finish(response.status(), e.ended());
                response
            }
        }
    }

    /// The call, if the audit log has room for it.
    async fn admitted(&self, call: Call) -> Result<Call, Box<Response<Body>>> {
        if self.audit.admit().await.is_ok() {
            return Ok(call);
        }
        self.metrics.audit_refusals.inc();
        let details = Details { retry_after: Some(Duration::from_secs(1)), ..Details::default() };
        let message = "the audit log takes no more records, so this call was not made";
        call.forget();
        Err(Box::new(status_with(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", message, &details)))
    }

    /// Dials and sends. Another attempt is made while nothing was sent, and of what only reads, has no body and becomes
    /// nothing else (RFC 9110, 9.2.1) for as long as it has no answer.
    async fn exchange(
        &self,
        head: Request<()>,
        body: Body,
        permit: &Permit,
        header: &StreamHeader,
    ) -> Result<Response<Body>, Failure> {
        let bodiless = http_body::Body::is_end_stream(&body);
        let reads = matches!(*head.method(), Method::GET | Method::HEAD | Method::OPTIONS);
        let harmless = bodiless && reads && head.extensions().get::<WantsUpgrade>().is_none();
        let mut body = Some(body);
        for attempt in 1.. {
            let again = attempt < ATTEMPTS;
            let mut stream = match self.dial.dial(permit, header, attempt - 1).await {
                Ok(stream) => stream,
                Err(e) if again && e.is_retryable() => continue,
                Err(e) => return Err(Failure::Dial(e)),
            };
            // Of what changes something nobody could say whether it was done: it is not sent to who may be gone.
            if again && !harmless && !poll_fn(|cx| stream.poll_alive(cx)).await {
                stream.reset(ResetCode::Cancelled);
                continue;
            }
            let mut whole = head.clone().map(|()| body.take().unwrap_or_else(crate::body::empty));
            if again && harmless {
                whole.extensions_mut().insert(MayRepeat);
            }
            match wire::request(stream, whole).await {
                Ok(response) => return Ok(response),
                Err(WireError::Elsewhere) if again => {}
                Err(WireError::Stream(e)) if again && harmless && !matches!(e, BodyError::Source(_)) => {}
                Err(WireError::Refused(refusal)) if again && bodiless && refusal.retry_elsewhere => {}
                Err(WireError::Refused(refusal)) => return Err(Failure::Dial(DialError::Refused(refusal))),
                Err(e) => return Err(Failure::Wire(e)),
            }
        }
        unreachable!("the last attempt always returns")
    }

    fn answer(
        &self,
        mut response: Response<Body>,
        upgrade: bool,
        on_upgrade: Option<hyper::upgrade::OnUpgrade>,
        (call, tape): (Call, Option<recording::Ready>),
        (span, service): (tracing::Span, Option<&Service>),
    ) -> Response<Body> {
        let status = response.status();
        let upgraded = status == StatusCode::SWITCHING_PROTOCOLS;
        clean_response(response.headers_mut(), upgraded);
        if let Some(service) = service {
            service.settle(response.headers_mut());
        }
        if !upgraded {
            if upgrade && status.is_redirection() {
                let response = refused(StatusCode::BAD_GATEWAY, "the cluster answered an upgrade with a redirect");
                call.finish(response.status(), "redirected");
                return response;
            }
            if upgrade {
                // What the client sent after its request belongs to nothing any more.
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            return response.map(|body| call.count_out(status, body));
        }
        let io = response.extensions_mut().remove::<UpgradedIo>().and_then(|io| io.take());
        let (Some(mut cluster), Some(on_upgrade)) = (io, on_upgrade) else {
            let response = refused(StatusCode::BAD_GATEWAY, "this connection cannot be upgraded");
            call.finish(response.status(), "not_upgraded");
            return response;
        };
        if let Some(tape) = tape {
            return match self.join_taped(response.headers(), cluster, on_upgrade, tape, call, span) {
                Ok(()) => response,
                Err(call) => {
                    let message =
                        "sessions in terminals are recorded here, and the cluster answers in a protocol that is not";
                    let response = refused(StatusCode::BAD_GATEWAY, message);
                    call.finish(response.status(), "unrecordable");
                    response
                }
            };
        }
        let splice = async move {
            let client = match tokio::time::timeout(UPGRADE_WAIT, on_upgrade).await {
                Ok(Ok(client)) => client,
                _ => {
                    cluster.reset(ResetCode::Cancelled);
                    return call.finish(status, "not_upgraded");
                }
            };
            let (read, written) = call.counters();
            let mut client = Counted { io: TokioIo::new(client), read, written };
            let ended = match copy_both(&mut client, &mut cluster).await {
                Ok(()) => "complete",
                Err(_) => {
                    cluster.reset(ResetCode::Broken);
                    "broken"
                }
            };
            call.finish(status, ended);
        };
        self.tasks.spawn(splice.instrument(span));
        response
    }
}

/// Leaves in a head what may go to a cluster. Returns whether it asks for an upgrade, or the refusal.
fn accept_head(parts: &mut http::request::Parts, service: bool) -> Result<bool, (StatusCode, String)> {
    if parts.method == Method::CONNECT {
        return Err((StatusCode::METHOD_NOT_ALLOWED, "CONNECT is not possible here".to_owned()));
    }
    let clean = if service { clean_service_request } else { clean_request };
    let upgrade = clean(&mut parts.headers).map_err(|e| (StatusCode::BAD_REQUEST, e.to_string()))?;
    if service {
        service::strip_own_cookies(&mut parts.headers);
    }
    if upgrade && parts.version != Version::HTTP_11 {
        return Err((StatusCode::BAD_REQUEST, "upgrades need HTTP/1.1".to_owned()));
    }
    Ok(upgrade)
}

/// How often one request is tried: two agents of a cluster may be lost at once, and a node's agent takes it then.
const ATTEMPTS: u32 = 3;

/// Longest wait for hyper to hand over a client's connection after the 101 was written.
const UPGRADE_WAIT: Duration = Duration::from_secs(10);

fn refused(code: StatusCode, message: &str) -> Response<Body> {
    status_with(code, reason_of(code), message, &Details { close: true, ..Details::default() })
}

fn principal(permit: &Permit) -> Principal {
    let parts = |who: &Identity| {
        (who.user.clone(), who.uid.clone(), who.groups.clone(), who.extra.clone().into_iter().collect())
    };
    let act_as = permit.act_as().map(|ActAs(who)| {
        let (user, uid, groups, extra) = parts(who);
        moorline_proto::header::ActAs { user, uid, groups, extra }
    });
    let (user, uid, groups, extra) = parts(permit.principal());
    Principal { user, uid, groups, extra, act_as }
}

#[cfg(test)]
mod tests;
