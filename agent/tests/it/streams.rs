//! One session in memory, streams on it, and what the API server saw.

use crate::{
    pki::Authority,
    recorder::{Recorder, upstream},
};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Request, Response, StatusCode, Version};
use http_body_util::BodyExt;
use moorline_agent::{
    limits,
    metrics::Metrics,
    policy::PolicyFile,
    review::ClusterRules,
    serve::{More, Service},
    upstream::ApiServer,
};
use moorline_link::{Session, Stream, StreamError, testing::session_pair};
use moorline_proto::{
    code::{CloseCode, RefuseCode, ResetCode},
    header::{ActAs, Class, Principal, StreamHeader, Target},
    inside::{Destination, Inside, Payload},
};
use moorline_proxy::{
    Body, BodyError, body,
    edge::{Upstream, UpstreamError},
    upgrade::UpgradedIo,
    wire::{self, WantsUpgrade, WireError},
};
use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    time::timeout,
};
use tokio_util::task::AbortOnDropHandle;

/// Far more than anything here takes: what guards against waiting for ever.
const LONG: Duration = Duration::from_secs(20);

const H2: &[&[u8]] = &[b"h2", b"http/1.1"];

/// A hub's end of a session whose other end an agent serves.
struct World {
    hub: Session,
    metrics: Metrics,
    _agent: AbortOnDropHandle<()>,
    _dir: tempfile::TempDir,
}

impl World {
    async fn new(authority: &Authority, addr: std::net::SocketAddr) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (upstream, metrics) = upstream(dir.path(), authority, addr).await;
        let rules = Arc::new(ClusterRules::new(upstream.clone()));
        Self::with(dir, upstream, rules, metrics)
    }

    fn with<U: Upstream>(dir: tempfile::TempDir, upstream: Arc<U>, rules: Arc<ClusterRules>, metrics: Metrics) -> Self {
        let (hub, agent) = session_pair();
        let policy = dir.path().join("policy.yaml");
        let policy = Arc::new(PolicyFile::open(policy.exists().then_some(&*policy)).unwrap());
        // Whose owner may have it act for nobody.
        let more = More { node: true, ..More::default() };
        let service = Service::new(upstream, rules, policy, metrics.clone(), more);
        let agent = AbortOnDropHandle::new(tokio::spawn(service.session(agent)));
        Self { hub, metrics, _agent: agent, _dir: dir }
    }

    async fn open(&self, target: Target, principal: Option<Principal>) -> Stream {
        let header = StreamHeader { target, class: Class::Interactive, deadline_ms: 0, traceparent: None, principal };
        self.hub.open(&header).await.unwrap()
    }

    async fn send(&self, request: Request<Body>) -> Result<Response<Body>, WireError> {
        wire::request(self.open(Target::Kube, Some(alice())).await, request).await
    }

    /// Waits until no stream holds a place any more: the hub may see its end a moment earlier.
    async fn all_free(&self) {
        let free = async {
            while self.metrics.streams.get() != 0 {
                tokio::task::yield_now().await;
            }
        };
        timeout(LONG, free).await.expect("every place is free again");
    }

    async fn get(&self, path: &str) -> (StatusCode, Bytes) {
        let answer = self.send(Request::get(path).body(body::empty()).unwrap()).await.unwrap();
        let (head, content) = answer.into_parts();
        (head.status, content.collect().await.unwrap().to_bytes())
    }
}

fn alice() -> Principal {
    Principal {
        user: "alice".into(),
        uid: "u-1".into(),
        groups: vec!["dev".into(), "ops".into()],
        extra: vec![("acme.com/team".into(), vec!["a".into(), "b".into()])],
        act_as: None,
    }
}

fn values<'a>(headers: &'a http::HeaderMap, name: &str) -> Vec<&'a str> {
    headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect()
}

#[tokio::test]
async fn the_api_server_sees_who_asks_and_the_edges_own_credential() {
    let authority = Authority::new();
    let recorder = Recorder::start(&authority, H2, None).await;
    let world = World::new(&authority, recorder.addr).await;
    let request = Request::post("/api/v1/namespaces/x/pods?a=%2f&b")
        .header("content-type", "application/json")
        .header("impersonate-user", "system:admin")
        .header("authorization", "Bearer stolen")
        .body(body::full("{}"))
        .unwrap();
    let answer = world.send(request).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    let seen = recorder.last();
    assert_eq!(
        (seen.method.as_str(), seen.target.as_str(), seen.version, &seen.body[..]),
        ("POST", "/api/v1/namespaces/x/pods?a=%2f&b", Version::HTTP_2, &b"{}"[..])
    );
    assert_eq!(values(&seen.headers, "authorization"), ["Bearer edge-token"]);
    let mut said: Vec<_> = seen
        .headers
        .iter()
        .filter(|(name, _)| name.as_str().starts_with("impersonate-"))
        .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
        .collect();
    said.sort_unstable();
    let expected = [
        ("impersonate-extra-acme.com%2fteam", "a"),
        ("impersonate-extra-acme.com%2fteam", "b"),
        ("impersonate-group", "dev"),
        ("impersonate-group", "ops"),
        ("impersonate-uid", "u-1"),
        ("impersonate-user", "alice"),
    ];
    assert_eq!(said, expected);
}

#[tokio::test]
async fn s02_nobody_and_masters_reach_nothing() {
    let authority = Authority::new();
    let recorder = Recorder::start(&authority, H2, None).await;
    let world = World::new(&authority, recorder.addr).await;
    let request = || Request::get("/api").body(body::empty()).unwrap();
    let refused = wire::request(world.open(Target::Kube, None).await, request()).await;
    assert!(matches!(refused, Err(WireError::Refused(refusal)) if refusal.code == RefuseCode::NoIdentity));
    let masters = Principal { groups: vec!["system:masters".into()], ..alice() };
    let answer = wire::request(world.open(Target::Kube, Some(masters)).await, request()).await.unwrap();
    assert_eq!(answer.status(), StatusCode::FORBIDDEN);
    let to = Destination::host("169.254.169.254", 80).unwrap();
    let tcp = Target::Inside(Inside { to, payload: Payload::Bytes, labels: Vec::new() });
    let refused = world.open(tcp, None).await.accepted().await;
    assert!(matches!(refused, Err(StreamError::Refused(refusal)) if refusal.code == RefuseCode::Policy));
    assert!(recorder.log.seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_node_agent_whose_owner_has_it_act_for_nobody_carries_nothing() {
    let authority = Authority::new();
    let recorder = Recorder::start(&authority, H2, None).await;
    let dir = tempfile::tempdir().unwrap();
    let (upstream, metrics) = upstream(dir.path(), &authority, recorder.addr).await;
    let policy =
        "apiVersion: moorline.dev/v1alpha1\nkind: EdgePolicy\nspec: {standIn: {allow: false}, shells: {allow: true}}\n";
    std::fs::write(dir.path().join("policy.yaml"), policy).unwrap();
    let rules = Arc::new(ClusterRules::new(upstream.clone()));
    let world = World::with(dir, upstream, rules, metrics);
    let to = Destination::host("10.0.0.1", 80).unwrap();
    let inside = Target::Inside(Inside { to, payload: Payload::Bytes, labels: Vec::new() });
    for target in [Target::Kube, Target::Shell, inside] {
        let refused = world.open(target, Some(alice())).await.accepted().await;
        let said = matches!(&refused, Err(StreamError::Refused(refusal))
            if refusal.code == RefuseCode::Policy && refusal.message.contains("spec.standIn"));
        assert!(said, "{:?}", refused.err());
    }
    assert!(recorder.log.seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn acting_as_somebody_else_is_the_clusters_own_decision() {
    let authority = Authority::new();
    let recorder = Recorder::start(&authority, H2, None).await;
    let world = World::new(&authority, recorder.addr).await;
    for (name, code) in [("bob", StatusCode::OK), ("carol", StatusCode::FORBIDDEN)] {
        let act_as = Some(ActAs { user: name.into(), ..ActAs::default() });
        let stream = world.open(Target::Kube, Some(Principal { act_as, ..alice() })).await;
        let answer = wire::request(stream, Request::get("/api").body(body::empty()).unwrap()).await.unwrap();
        assert_eq!(answer.status(), code, "{name}");
    }
    let seen = recorder.log.seen.lock().unwrap().clone();
    let targets: Vec<_> = seen.iter().map(|seen| seen.target.rsplit('/').next().unwrap()).collect();
    assert_eq!(targets, ["subjectaccessreviews", "api", "subjectaccessreviews"]);
    assert_eq!(values(&seen[1].headers, "impersonate-user"), ["bob"]);
    let asked: serde_json::Value = serde_json::from_slice(&seen[0].body).unwrap();
    assert_eq!((asked["spec"]["user"].as_str(), asked["spec"]["groups"][1].as_str()), (Some("alice"), Some("ops")));
    assert!(values(&seen[0].headers, "impersonate-user").is_empty(), "the agent asks as itself");
}

#[tokio::test]
async fn an_upgrade_goes_over_http1_and_both_ways() {
    let authority = Authority::new();
    let recorder = Recorder::start(&authority, H2, None).await;
    let world = World::new(&authority, recorder.addr).await;
    let mut request = Request::post("/upgrade")
        .header("upgrade", "SPDY/3.1")
        .header("connection", "Upgrade")
        .body(body::empty())
        .unwrap();
    request.extensions_mut().insert(WantsUpgrade);
    let answer = world.send(request).await.unwrap();
    assert_eq!(answer.status(), StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(
        (recorder.last().version, values(&recorder.last().headers, "impersonate-user")),
        (Version::HTTP_11, vec!["alice"])
    );
    let mut io = answer.extensions().get::<UpgradedIo>().unwrap().take().unwrap();
    io.write_all(b"hello").await.unwrap();
    io.flush().await.unwrap();
    let mut echoed = [0; 5];
    io.read_exact(&mut echoed).await.unwrap();
    assert_eq!(&echoed, b"hello");
    io.shutdown().await.unwrap(); // half: the other side still speaks
    let mut rest = String::new();
    io.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "5 bytes");
}

#[tokio::test]
async fn a_refused_upgrade_is_the_answer_as_it_came() {
    let authority = Authority::new();
    let recorder = Recorder::start(&authority, H2, None).await;
    let world = World::new(&authority, recorder.addr).await;
    let mut request = Request::get("/other").header("upgrade", "websocket").body(body::empty()).unwrap();
    request.extensions_mut().insert(WantsUpgrade);
    let answer = world.send(request).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "ok");
}

#[tokio::test]
async fn redirects_are_answers_and_http1_will_do() {
    let authority = Authority::new();
    let recorder = Recorder::start(&authority, &[b"http/1.1"], None).await;
    let world = World::new(&authority, recorder.addr).await;
    assert_eq!(world.get("/redirect").await.0, StatusCode::FOUND);
    assert_eq!(world.get("/x").await, (StatusCode::OK, Bytes::from_static(b"ok")));
    assert_eq!(recorder.last().version, Version::HTTP_11);
}

#[tokio::test]
async fn f40_an_api_server_that_is_down_is_a_502_and_its_return_is_noticed() {
    let authority = Authority::new();
    let recorder = Recorder::start(&authority, H2, None).await;
    let world = World::new(&authority, recorder.addr).await;
    assert_eq!(world.get("/x").await.0, StatusCode::OK);
    let addr = recorder.stop().await;
    for _ in 0..3 {
        let asked = Instant::now();
        assert_eq!(world.get("/x").await.0, StatusCode::BAD_GATEWAY);
        assert!(asked.elapsed() < limits::UPSTREAM_CONNECT);
    }
    let stranger = Recorder::start(&Authority::new(), H2, Some(addr)).await;
    assert_eq!(world.get("/x").await.0, StatusCode::BAD_GATEWAY, "a certificate of another authority");
    assert!(stranger.log.seen.lock().unwrap().is_empty());
    let addr = stranger.stop().await;
    let _back = Recorder::start(&authority, H2, Some(addr)).await;
    assert_eq!(world.get("/x").await.0, StatusCode::OK);
}

#[tokio::test]
async fn f46_a_black_hole_is_a_504_and_echoes_go_on() {
    let hole = TcpListener::bind("127.0.0.1:0").await.unwrap(); // takes connections, says nothing
    let world = World::new(&Authority::new(), hole.local_addr().unwrap()).await;
    let asked = Instant::now();
    let slow = world.get("/x");
    let echo = async {
        let mut stream = world.open(Target::Echo, None).await;
        stream.write_all(b"ping").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut back = String::new();
        stream.read_to_string(&mut back).await.unwrap();
        assert_eq!((back.as_str(), asked.elapsed() < limits::UPSTREAM_CONNECT), ("ping", true));
    };
    let ((code, _), ()) = tokio::join!(slow, echo);
    assert_eq!(code, StatusCode::GATEWAY_TIMEOUT);
    assert!(asked.elapsed() < LONG);
    world.all_free().await;
}

/// Fails by a bug on one path.
struct Buggy(Arc<ApiServer>);
impl Upstream for Buggy {
    fn send(&self, request: Request<Body>) -> BoxFuture<'_, Result<Response<Body>, UpstreamError>> {
        assert_ne!(request.uri().path(), "/bug", "a bug");
        self.0.send(request)
    }
}

#[tokio::test]
async fn f47_a_panic_ends_its_stream_alone() {
    let authority = Authority::new();
    let recorder = Recorder::start(&authority, H2, None).await;
    let dir = tempfile::tempdir().unwrap();
    let (upstream, metrics) = upstream(dir.path(), &authority, recorder.addr).await;
    let rules = Arc::new(ClusterRules::new(upstream.clone()));
    let world = World::with(dir, Arc::new(Buggy(upstream)), rules, metrics);
    let bug = world.send(Request::get("/bug").body(body::empty()).unwrap()).await.map(drop);
    assert!(matches!(bug, Err(WireError::Stream(BodyError::Reset(ResetCode::Internal)))), "{bug:?}");
    assert_eq!(world.get("/x").await.0, StatusCode::OK);
    world.all_free().await;
    assert_eq!(world.metrics.panics.get(), 1);
}

#[tokio::test]
async fn stalled_readers_hold_up_nobody_else() {
    let authority = Authority::new();
    let recorder = Recorder::start(&authority, H2, None).await;
    let world = World::new(&authority, recorder.addr).await;
    let mut stalled = Vec::new();
    for _ in 0..60 {
        stalled.push(world.send(Request::get("/big").body(body::empty()).unwrap()).await.unwrap());
    }
    for _ in 0..20 {
        let (code, _) = timeout(LONG, world.get("/x")).await.expect("not held up");
        assert_eq!(code, StatusCode::OK);
    }
    assert_eq!(recorder.log.connections.load(Ordering::SeqCst), 1, "all on one connection");
    let whole = stalled.remove(30).into_body().collect().await.unwrap().to_bytes();
    assert_eq!(whole.len(), 8 << 20);
}

#[tokio::test]
async fn a_full_connection_gets_a_sibling() {
    let authority = Authority::new();
    let recorder = Recorder::start(&authority, H2, None).await;
    let world = World::new(&authority, recorder.addr).await;
    let mut watches = Vec::new();
    for _ in 0..250 {
        watches.push(world.send(Request::get("/watch").body(body::empty()).unwrap()).await.unwrap());
    }
    assert_eq!(*recorder.log.watching.borrow(), 250);
    assert_eq!(recorder.log.connections.load(Ordering::SeqCst), 3);
    // What the caller gives up, and what a lost session had under way, ends at the API server.
    let mut watching = recorder.log.watching.subscribe();
    watches.truncate(100);
    timeout(LONG, watching.wait_for(|n| *n == 100)).await.unwrap().unwrap();
    world.hub.close(CloseCode::Normal, "gone");
    timeout(LONG, watching.wait_for(|n| *n == 0)).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_connection_that_died_while_idle_costs_no_error() {
    let authority = Authority::new();
    let recorder = Recorder::start(&authority, H2, None).await;
    let world = World::new(&authority, recorder.addr).await;
    for _ in 0..5 {
        assert_eq!(world.get("/x").await.0, StatusCode::OK);
    }
    let addr = recorder.stop().await;
    let back = Recorder::start(&authority, H2, Some(addr)).await;
    let answer = world.send(Request::post("/x").body(body::full("once")).unwrap()).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(back.log.seen.lock().unwrap().len(), 1);
}
