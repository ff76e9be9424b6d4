//! What the audit log costs: `cargo bench -p moorline-proxy --bench audit`. The same calls with a log on disk and with none,
//! in rounds by turns; prints both rates and what the log takes of the first. Once the proxy's own work and nothing else, and
//! once with the connections that it has in a hub and an agent; who calls is in this process too, and so is what answers in the
//! API server's place: a real one's work would hide the log's.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod caller;
mod wire;

use futures_util::future::BoxFuture;
use http::{Request, Response};
use http_body_util::BodyExt;
use moorline_authz::{edge::EdgePolicy, identity::Identity, impersonation::Review};
use moorline_link::{
    Limits, Session,
    testing::{session_pair, session_pair_over},
};
use moorline_proto::header::StreamHeader;
use moorline_proxy::{
    Body,
    audit::{AuditFull, AuditSink, Event, FileSink, OnFailure, files::Rotation},
    body,
    edge::{Reviewer, Upstream, UpstreamError, serve_kube},
    kube::{Dial, DialError, KubeProxy, ProxyMetrics},
};
use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::task::JoinSet;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use wire::Tls;

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

/// Calls in one round, each second. `one` makes a client, which calls until the round is over.
async fn rate<F: Future<Output = u32> + Send + 'static>(one: impl Fn(Instant) -> F) -> f64 {
    let begun = Instant::now();
    let tasks: JoinSet<u32> = (0..AT_ONCE).map(|_| one(begun + ROUND)).collect();
    let calls: u32 = tasks.join_all().await.into_iter().sum();
    f64::from(calls) / begun.elapsed().as_secs_f64()
}

/// Calls the proxy by itself.
async fn by_hand(proxy: Arc<KubeProxy<Hub>>, until: Instant) -> u32 {
    let mut calls = 0;
    while Instant::now() < until {
        let response = caller::call(&proxy, Request::get(caller::TARGET).body(body::empty()).unwrap()).await;
        assert_eq!(response.status(), 200);
        response.into_body().collect().await.unwrap();
        calls += 1;
    }
    calls
}

/// Calls it as people do.
async fn by_wire(tls: Tls, to: SocketAddr, until: Instant) -> u32 {
    let (mut client, mut calls) = (tls.client(to).await, 0);
    while Instant::now() < until {
        client.call().await;
        calls += 1;
    }
    calls
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

/// An agent.
fn serve<U: Upstream>(agent: Session, api_server: Arc<U>) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(async move {
        let mut tasks = JoinSet::new();
        while let Some(incoming) = agent.accept().await {
            let api_server = Arc::clone(&api_server);
            tasks.spawn(async move {
                let _ = serve_kube(incoming, &Arc::new(EdgePolicy::default()), &*api_server, &Empty).await;
            });
            while tasks.try_join_next().is_some() {}
        }
    }))
}

/// Rates without and with a log, of rounds by turns.
#[derive(Default)]
struct Rates {
    off: Vec<f64>,
    on: Vec<f64>,
}

impl Rates {
    fn add(&mut self, off: f64, on: f64) {
        self.off.push(off);
        self.on.push(on);
    }

    /// What the log costs, in percent of the rate: the median of the pairs.
    fn print(self, what: &str) -> f64 {
        let cost = median(self.off.iter().zip(&self.on).map(|(off, on)| 100.0 * (1.0 - on / off)).collect());
        let (off, on) = (median(self.off), median(self.on));
        println!("{what:<42} {off:>9.0} {on:>9.0} {cost:>7.1} %");
        cost
    }
}

#[tokio::main(flavor = "multi_thread")]
async fn main() {
    let dir = tempfile::tempdir().unwrap();
    let (file, _) = FileSink::open(&dir.path().join("audit.log"), Rotation::default(), OnFailure::Refuse).unwrap();
    println!("{:<42} {:>9} {:>9} {:>9}", "requests a second, 32 at once", "no log", "log", "cost");

    let (hub, agent) = session_pair();
    let agent = serve(agent, Arc::new(Empty));
    let (without, with) = (proxy(hub.clone(), Arc::new(Nowhere)), proxy(hub, file.clone()));
    let mut alone = Rates::default();
    for _ in 0..ROUNDS {
        let off = rate(|until| by_hand(Arc::clone(&without), until)).await;
        alone.add(off, rate(|until| by_hand(Arc::clone(&with), until)).await);
    }
    drop(agent);
    alone.print("the proxy's own work, all of it in memory");

    let tls = Tls::new();
    let (hub, agent) = session_pair_over(tls.pair().await, &Limits::default());
    let _agent = serve(agent, Arc::new(tls.api_server().await));
    let without = tls.front(proxy(hub.clone(), Arc::new(Nowhere))).await;
    let with = tls.front(proxy(hub, file.clone())).await;
    let mut wire = Rates::default();
    for _ in 0..ROUNDS {
        let off = rate(|until| by_wire(tls.clone(), without, until)).await;
        wire.add(off, rate(|until| by_wire(tls.clone(), with, until)).await);
    }
    let cost = wire.print("with its connections, all over TLS");
    file.close().await;
    println!("goal for the latter: {GOAL} % {}", if cost <= GOAL { "met" } else { "MISSED" });
}
