//! What the audit log costs: `cargo bench -p moorline-proxy --bench audit`. The same calls over one session, with a log
//! on disk and with none; prints the rates of interleaved rounds. No TLS and no API server, whose work would hide it.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use futures_util::future::BoxFuture;
use http::{Request, Response};
use http_body_util::BodyExt;
use moorline_authz::{
    access::{Facts, Grant, Grants, authorize},
    edge::EdgePolicy,
    identity::Identity,
    impersonation::Review,
};
use moorline_link::{Session, testing::session_pair};
use moorline_proto::header::StreamHeader;
use moorline_proxy::{
    Body,
    audit::{AuditFull, AuditSink, Event, FileSink, OnFailure, files::Rotation},
    body,
    edge::{Reviewer, Upstream, UpstreamError, serve_kube},
    kube::{Caller, Dial, DialError, KubeProxy, ProxyMetrics},
    path::split,
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;

/// As in the shipped binaries.
#[cfg(not(windows))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const ROUNDS: usize = 11;
const ROUND: Duration = Duration::from_secs(1);
const AT_ONCE: usize = 32;
/// The project's goal: a twentieth of the rate.
const GOAL: f64 = 5.0;

struct Nowhere;
impl AuditSink for Nowhere {
    fn admit(&self) -> BoxFuture<'_, Result<(), AuditFull>> {
        Box::pin(std::future::ready(Ok(())))
    }
    fn push(&self, _: Event) {}
}

struct Empty;
impl Upstream for Empty {
    fn send(&self, _: Request<Body>) -> BoxFuture<'_, Result<Response<Body>, UpstreamError>> {
        Box::pin(std::future::ready(Ok(Response::new(body::full("{}")))))
    }
}
impl Reviewer for Empty {
    fn allowed<'a>(&'a self, _: &'a Identity, _: &'a Review) -> BoxFuture<'a, Result<bool, UpstreamError>> {
        Box::pin(std::future::ready(Ok(false)))
    }
}

struct Hub(Session);
impl Dial for Hub {
    type Stream = moorline_link::Stream;
    fn dial<'a>(
        &'a self,
        _: &'a moorline_authz::access::Permit,
        header: &'a StreamHeader,
        _: u32,
    ) -> BoxFuture<'a, Result<Self::Stream, DialError>> {
        Box::pin(async move { self.0.open(header).await.map_err(|_| DialError::Lost) })
    }
}

fn proxy(session: Session, sink: Arc<dyn AuditSink>) -> Arc<KubeProxy<Hub>> {
    let metrics = ProxyMetrics::new(&prometheus::Registry::new()).unwrap();
    Arc::new(KubeProxy::new(Arc::new(Hub(session)), sink, metrics, TaskTracker::new()))
}

/// Calls in one round, each second.
async fn rate(proxy: &Arc<KubeProxy<Hub>>) -> f64 {
    let (begun, mut tasks) = (Instant::now(), JoinSet::new());
    for _ in 0..AT_ONCE {
        let proxy = Arc::clone(proxy);
        tasks.spawn(async move {
            let ann = Identity::new("ann", ["dev"]);
            let grants = Grants::new([Grant {
                users: vec!["ann".to_owned()],
                clusters: vec!["a".to_owned()],
                ..Grant::default()
            }]);
            let mut calls = 0u32;
            while begun.elapsed() < ROUND {
                let facts = Facts { identity: &ann, token_clusters: None, grants: &grants };
                let permit = authorize(&facts, "a", None).unwrap();
                let caller = Caller { identity: ann.clone(), remote: ([192, 0, 2, 1], 5).into() };
                let target = "/k8s/clusters/a/api/v1/namespaces/default/pods/web";
                let request = Request::get(target).body(body::empty()).unwrap();
                let response = proxy.handle(request, split(target).unwrap().unwrap(), &caller, permit).await;
                assert_eq!(response.status(), 200);
                response.into_body().collect().await.unwrap();
                calls += 1;
            }
            calls
        });
    }
    let calls: u32 = tasks.join_all().await.into_iter().sum();
    f64::from(calls) / begun.elapsed().as_secs_f64()
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

#[tokio::main(flavor = "multi_thread")]
async fn main() {
    let (hub, agent) = session_pair();
    let serving = tokio::spawn(async move {
        let mut tasks = JoinSet::new();
        while let Some(incoming) = agent.accept().await {
            tasks.spawn(async move {
                let _ = serve_kube(incoming, &Arc::new(EdgePolicy::default()), &Empty, &Empty).await;
            });
            while tasks.try_join_next().is_some() {}
        }
    });
    let dir = tempfile::tempdir().unwrap();
    let (file, _) = FileSink::open(&dir.path().join("audit.log"), Rotation::default(), OnFailure::Refuse).unwrap();
    let (without, with) = (proxy(hub.clone(), Arc::new(Nowhere)), proxy(hub, file.clone()));
    let (mut off, mut on, mut costs) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let (a, b) = (rate(&without).await, rate(&with).await);
        costs.push(100.0 * (1.0 - b / a));
        off.push(a);
        on.push(b);
    }
    serving.abort();
    file.close().await;
    let cost = median(costs);
    let verdict = if cost <= GOAL { "met" } else { "MISSED" };
    println!("without an audit log {:>9.0} requests/s", median(off));
    println!("with one             {:>9.0} requests/s", median(on));
    println!("cost, median of {ROUNDS} pairs {cost:.1} %  goal {GOAL} % {verdict}");
}
