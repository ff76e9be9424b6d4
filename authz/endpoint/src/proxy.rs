//! Proxy mode: the hub's own way from a request to the API server, without the tunnel in between.
//!
//! Both halves of a call are the same code as through the hub: the front's decision and header hygiene
//! ([`moorline_proxy::kube`]), the edge's policy and impersonation ([`moorline_proxy::edge`]). What lies between them is a
//! pipe in memory.

use crate::{limits, live::Live, webhook::PolicyNow};
use futures_util::{FutureExt, future::BoxFuture};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use moorline_authz::{access::Permit, bundle::Known};
use moorline_proto::{
    code::{RefuseCode, ResetCode},
    header::{Refusal, StreamHeader},
};
use moorline_proxy::{
    Body,
    audit::AuditSink,
    body,
    edge::{Reviewer, Upstream, serve_principal},
    judge::{bearer, judge},
    kube::{Caller, Dial, DialError, KubeProxy, ProxyMetrics},
    path::{self, ClusterPath},
    status::status_response,
    tape::Store,
    upgrade::Io,
};
use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf},
    sync::Semaphore,
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

/// A proxy in front of one cluster's API server.
pub struct Proxy<U, R> {
    live: Live,
    policy: PolicyNow,
    upstream: Arc<U>,
    reviewer: Arc<R>,
    audit: Arc<dyn AuditSink>,
    metrics: ProxyMetrics,
    tasks: TaskTracker,
    calls: Arc<Semaphore>,
    recordings: Option<Arc<Store>>,
}

impl<U: Upstream, R: Reviewer> Proxy<U, R> {
    /// `tasks` owns what goes on beside the connections.
    pub fn new(
        live: Live,
        policy: PolicyNow,
        upstream: Arc<U>,
        reviewer: Arc<R>,
        audit: Arc<dyn AuditSink>,
        metrics: ProxyMetrics,
        tasks: TaskTracker,
    ) -> Self {
        let calls = Arc::new(Semaphore::new(limits::CALLS));
        Self { live, policy, upstream, reviewer, audit, metrics, tasks, calls, recordings: None }
    }

    /// With a place for recordings. Without one a session that must be recorded is refused.
    #[must_use]
    pub fn recording(self, store: Arc<Store>) -> Self {
        Self { recordings: Some(store), ..self }
    }

    /// One request.
    pub async fn serve(&self, request: Request<Incoming>, remote: SocketAddr) -> Response<Body> {
        if request.method() == Method::CONNECT {
            return status_response(StatusCode::METHOD_NOT_ALLOWED, "CONNECT is not possible here");
        }
        let who = bearer(request.headers()).and_then(|token| self.live.who(token).ok());
        // One answer to everybody who is not known, whatever is wrong.
        let Some((known, standing)) = who else {
            return status_response(StatusCode::UNAUTHORIZED, "Unauthorized");
        };
        // The same reading of the target as at the hub, whose clusters have their API below a path of their own.
        let rest = request.uri().path_and_query().map_or("", |target| target.as_str());
        let whole = format!("/k8s/clusters/{}{rest}", standing.cluster());
        let path = match path::split(&whole) {
            Ok(Some(path)) if path.rest == rest => ClusterPath { cluster: standing.cluster(), rest },
            Ok(_) => return status_response(StatusCode::BAD_REQUEST, "ambiguous path"),
            Err(error) => return status_response(StatusCode::BAD_REQUEST, &error.to_string()),
        };
        let permit = judge(&request, path.rest, known.verbs.as_deref(), |act_as| standing.permit(&known, act_as));
        let permit = match permit {
            Ok(permit) => permit,
            Err(refusal) => return status_response(refusal.code, &refusal.message),
        };
        let rest = rest.to_owned();
        let caller = Caller { identity: Arc::new(known.identity.clone()), remote };
        let dial = Here {
            live: self.live.clone(),
            known,
            policy: Arc::clone(&self.policy),
            upstream: Arc::clone(&self.upstream),
            reviewer: Arc::clone(&self.reviewer),
            tasks: self.tasks.clone(),
            calls: Arc::clone(&self.calls),
        };
        let proxy = KubeProxy::new(Arc::new(dial), Arc::clone(&self.audit), self.metrics.clone(), self.tasks.clone());
        let proxy = match &self.recordings {
            Some(store) => proxy.recording(Arc::clone(store)),
            None => proxy,
        };
        let path = ClusterPath { cluster: standing.cluster(), rest: &rest };
        proxy.handle(request.map(body::from), path, &caller, permit).await
    }
}

/// "Dials" the other half of a call, which is here.
struct Here<U, R> {
    live: Live,
    known: Known,
    policy: PolicyNow,
    upstream: Arc<U>,
    reviewer: Arc<R>,
    tasks: TaskTracker,
    calls: Arc<Semaphore>,
}

impl<U: Upstream, R: Reviewer> Dial for Here<U, R> {
    type Stream = Near;
    fn dial<'a>(
        &'a self,
        permit: &'a Permit,
        header: &'a StreamHeader,
        _attempt: u32,
    ) -> BoxFuture<'a, Result<Near, DialError>> {
        async move {
            let Ok(place) = Arc::clone(&self.calls).try_acquire_owned() else {
                return Err(DialError::Busy { cluster: permit.cluster().to_owned() });
            };
            let Some(principal) = header.principal.clone().filter(|principal| !principal.user.is_empty()) else {
                let message = "a request without an identity".to_owned();
                return Err(DialError::Refused(Refusal {
                    code: RefuseCode::NoIdentity,
                    message,
                    retry_elsewhere: false,
                }));
            };
            let (near, far) = tokio::io::duplex(limits::PIPE);
            let gone = CancellationToken::new();
            let guard = gone.clone().drop_guard();
            let (policy, upstream, reviewer) =
                ((self.policy)(), Arc::clone(&self.upstream), Arc::clone(&self.reviewer));
            self.tasks.spawn(async move {
                let _place = place;
                let served = serve_principal(far, principal, &policy, &*upstream, &*reviewer);
                // Whoever waits no more must not keep the API server at work.
                if let Some(Err(error)) = gone.run_until_cancelled(served).await {
                    tracing::debug!("a call ended early: {error}");
                }
            });
            let end = Box::pin(self.live.ended(self.known.clone(), permit.clone()));
            Ok(Near { io: Some(near), end, over: false, _gone: guard })
        }
        .boxed()
    }
}

/// The front's end of a call's pipe: it lasts no longer than the right to it.
pub struct Near {
    io: Option<DuplexStream>,
    end: Pin<Box<dyn Future<Output = ()> + Send>>,
    over: bool,
    _gone: DropGuard,
}

impl Near {
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<&mut DuplexStream> {
        if !self.over && self.end.as_mut().poll(cx).is_ready() {
            self.over = true;
            self.io = None;
        }
        match &mut self.io {
            Some(io) => Ok(io),
            None => Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the right to this call has ended")),
        }
    }
}

impl Io for Near {
    fn reset(&mut self, _: ResetCode) {
        self.io = None;
    }
    fn poll_cut(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        self.check(cx).err().map_or(Poll::Pending, Poll::Ready)
    }
}
impl AsyncRead for Near {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let io = self.check(cx)?;
        Pin::new(io).poll_read(cx, buf)
    }
}
impl AsyncWrite for Near {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let io = self.check(cx)?;
        Pin::new(io).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io.as_mut().map_or(Poll::Ready(Ok(())), |io| Pin::new(io).poll_flush(cx))
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io.as_mut().map_or(Poll::Ready(Ok(())), |io| Pin::new(io).poll_shutdown(cx))
    }
}
