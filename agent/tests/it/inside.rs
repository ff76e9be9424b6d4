//! Services, pods and hosts: one session in memory, real sockets behind it, an API server that knows them.

mod web;

use crate::{
    pki::Authority,
    recorder::{Recorder, upstream},
};
use bytes::BytesMut;
use http::{Request, Response};
use moorline_agent::{
    inside,
    policy::PolicyFile,
    review::ClusterRules,
    serve::{More, Service},
};
use moorline_link::{Session, Stream, StreamError, testing::session_pair};
use moorline_proto::{
    code::RefuseCode,
    datagram,
    header::{Class, Principal, StreamHeader, Target},
    inside::{Inside, Payload},
};
use moorline_proxy::{
    Body,
    wire::{self, WireError},
};
use serde_json::{Value, json};
use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UdpSocket},
    time::timeout,
};
use tokio_util::task::AbortOnDropHandle;

/// Opens what the backends of these tests listen on.
const LOOPBACK: &str = "  services: {allowAddresses: ['127.0.0.0/8']}";

struct World {
    hub: Session,
    recorder: Recorder,
    _agent: AbortOnDropHandle<()>,
    _dir: tempfile::TempDir,
}

impl World {
    async fn new(authority: &Authority, policy: &str) -> Self {
        let recorder = Recorder::start(authority, &[b"h2"], None).await;
        let world = Self::at(authority, recorder, policy).await;
        let node = json!({"items": [{"status": {"addresses": [{"type": "InternalIP", "address": "10.9.0.1"}]}}]});
        world.put("/api/v1/nodes", node);
        world
    }

    async fn at(authority: &Authority, recorder: Recorder, policy: &str) -> Self {
        Self::asking(authority, recorder, policy, None).await
    }

    async fn asking(authority: &Authority, recorder: Recorder, policy: &str, names: Option<inside::Lookup>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("policy.yaml");
        let text = format!("apiVersion: moorline.dev/v1alpha1\nkind: EdgePolicy\nspec:\n  api: {{}}\n{policy}\n");
        std::fs::write(&path, text).unwrap();
        let policy = Arc::new(PolicyFile::open(Some(&path)).unwrap());
        let (upstream, metrics) = upstream(dir.path(), authority, recorder.addr).await;
        let rules = Arc::new(ClusterRules::new(upstream.clone()));
        let places = inside::Metrics::new(&prometheus::Registry::new()).unwrap();
        let hub = "198.51.100.9:8443".parse().unwrap();
        let places = inside::Inside::with_names(upstream.clone(), policy.clone(), Some(hub), places, names);
        let (hub, agent) = session_pair();
        let service = Service::new(upstream, rules, policy, metrics, More { inside: Some(places), ..More::default() });
        let agent = AbortOnDropHandle::new(tokio::spawn(service.session(agent)));
        Self { hub, recorder, _agent: agent, _dir: dir }
    }

    fn put(&self, path: &str, object: Value) {
        self.recorder.log.places.lock().unwrap().insert(path.to_owned(), object);
    }

    /// A service of namespace `shop` with one port, 80, and these endpoints.
    fn service(&self, name: &str, protocol: &str, endpoints: &[(SocketAddr, bool)]) {
        let object = json!({
            "metadata": {"labels": {"app": name}},
            "spec": {"type": "ClusterIP", "ports": [{"name": "main", "port": 80, "protocol": protocol}]},
        });
        self.put(&format!("/api/v1/namespaces/shop/services/{name}"), object);
        let slices: Vec<Value> = endpoints
            .iter()
            .map(|(at, ready)| {
                json!({
                    "addressType": "IPv4",
                    "ports": [{"name": "main", "port": at.port(), "protocol": protocol}],
                    "endpoints": [{"addresses": [at.ip().to_string()], "conditions": {"ready": ready}}],
                })
            })
            .collect();
        // One set of slices for all: these tests look at one service at a time.
        self.put("/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices", json!({ "items": slices }));
    }

    async fn open(&self, to: &str, payload: Payload) -> Stream {
        self.open_with(to, payload, Vec::new()).await
    }

    async fn open_with(&self, to: &str, payload: Payload, labels: Vec<Vec<(String, String)>>) -> Stream {
        let target = Target::Inside(Inside { to: to.parse().unwrap(), payload, labels });
        let principal = Some(Principal { user: "alice".into(), ..Principal::default() });
        let header = StreamHeader { target, class: Class::Interactive, deadline_ms: 0, traceparent: None, principal };
        self.hub.open(&header).await.unwrap()
    }

    /// What becomes of a connection: `None` is accepted.
    async fn verdict(&self, to: &str, payload: Payload) -> Option<(RefuseCode, String)> {
        let mut stream = self.open(to, payload).await;
        match timeout(Duration::from_secs(20), stream.accepted()).await.unwrap() {
            Ok(()) => None,
            Err(StreamError::Refused(refusal)) => Some((refusal.code, refusal.message)),
            Err(e) => panic!("{to}: {e}"),
        }
    }

    async fn send(&self, to: &str, payload: Payload, request: Request<Body>) -> Result<Response<Body>, WireError> {
        wire::request(self.open(to, payload).await, request).await
    }
}

/// Echoes; counts who came.
async fn echo() -> (SocketAddr, Arc<AtomicUsize>, AbortOnDropHandle<()>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let (addr, seen) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let counted = seen.clone();
    let task = AbortOnDropHandle::new(tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(async move {
                let (mut read, mut write) = socket.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            });
        }
    }));
    (addr, seen, task)
}

async fn free_port() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn a_connection_to_a_service_carries_bytes_and_half_closes() {
    let authority = Authority::new();
    let world = World::new(&authority, LOOPBACK).await;
    let (addr, _, _echo) = echo().await;
    world.service("web", "TCP", &[(addr, true)]);
    let pod = json!({"metadata": {}, "spec": {"containers": [{"ports": [{"name": "http", "containerPort": addr.port()}]}]},
        "status": {"phase": "Running", "podIPs": [{"ip": "127.0.0.1"}]}});
    world.put("/api/v1/namespaces/shop/pods/web-0", pod);
    let host = format!("host/127.0.0.1:{}", addr.port());
    for to in ["svc/shop/web:80", "svc/shop/web:main", "pod/shop/web-0:http", &host] {
        let mut stream = world.open(to, Payload::Bytes).await;
        // Sent before the verdict: none of it is lost.
        let data = vec![7; 1 << 20];
        let (mut read, mut write) = tokio::io::split(&mut stream);
        let write = async {
            write.write_all(&data).await.unwrap();
            write.shutdown().await.unwrap();
        };
        let mut back = Vec::new();
        let (got, ()) = tokio::join!(timeout(Duration::from_secs(20), read.read_to_end(&mut back)), write);
        assert_eq!((got.unwrap().unwrap(), back == data), (1 << 20, true), "{to}");
    }
}

#[tokio::test]
async fn each_failure_has_a_code_and_words_of_its_own() {
    let authority = Authority::new();
    let world = World::new(&authority, LOOPBACK).await;
    let wants = async |to: &str, code: RefuseCode, words: &str| {
        let (is, message) = world.verdict(to, Payload::Bytes).await.unwrap();
        assert!(is == code && message.contains(words), "{to}: {is}: {message}");
    };
    wants("svc/shop/none:80", RefuseCode::NotFound, "no service \"none\"").await;
    wants("pod/shop/none:80", RefuseCode::NotFound, "no pod \"none\"").await;
    world.service("web", "TCP", &[]);
    wants("svc/shop/web:81", RefuseCode::NotFound, "it has: main 80/TCP").await;
    wants("svc/shop/web:80", RefuseCode::NoEndpoints, "no endpoints").await;
    let closed = free_port().await;
    world.service("web", "TCP", &[(closed, false)]);
    wants("svc/shop/web:80", RefuseCode::NoEndpoints, "none of its 1 endpoints is ready").await;
    world.service("web", "TCP", &[(closed, true)]);
    wants("svc/shop/web:80", RefuseCode::ConnectionRefused, &closed.to_string()).await;
    assert!(world.verdict("svc/shop/web:80", Payload::Datagrams).await.unwrap().1.contains("no port 80 (UDP)"));
    // What failed is looked up anew: the service mends, and the next connection finds it.
    let (addr, _, _echo) = echo().await;
    world.service("web", "TCP", &[(addr, true)]);
    assert_eq!(world.verdict("svc/shop/web:80", Payload::Bytes).await, None);
}

#[tokio::test]
async fn s22_the_owner_closes_what_the_hub_grants_and_the_session_lives() {
    let authority = Authority::new();
    let policy = "  services: {allowAddresses: ['127.0.0.0/8'], deny: ['shop/db'], hosts: false, maxStreams: 1}";
    let world = World::new(&authority, policy).await;
    let (addr, seen, _echo) = echo().await;
    world.service("db", "TCP", &[(addr, true)]);
    for to in ["svc/shop/db:80", "host/127.0.0.1:80", "pod/shop/db:80"] {
        let (code, message) = world.verdict(to, Payload::Bytes).await.unwrap();
        assert!(code == RefuseCode::Policy && message.contains("edge policy refuses"), "{to}: {message}");
    }
    assert_eq!(seen.load(Ordering::SeqCst), 0);
    world.service("web", "TCP", &[(addr, true)]);
    let mut held = world.open("svc/shop/web:80", Payload::Bytes).await;
    held.accepted().await.unwrap();
    assert_eq!(world.verdict("svc/shop/web:80", Payload::Bytes).await.unwrap().0, RefuseCode::Busy);
    drop(held);
    let freed = async {
        while world.verdict("svc/shop/web:80", Payload::Bytes).await.is_some() {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(10), freed).await.expect("a place is given back");
}

#[tokio::test]
async fn a_services_rate_is_bounded_by_the_second_and_another_service_is_not_touched() {
    let authority = Authority::new();
    let policy =
        "  services: {allowAddresses: ['127.0.0.0/8'], limits: [{names: ['shop/web'], maxStreamsPerSecond: 2}]}";
    let world = World::new(&authority, policy).await;
    let (addr, _, _echo) = echo().await;
    world.service("web", "TCP", &[(addr, true)]);
    world.service("other", "TCP", &[(addr, true)]);
    // Within a second at most two begin; on a slow machine the second may be over in between, so it is tried again.
    let mut refused = None;
    let begun = tokio::time::Instant::now();
    while refused.is_none() {
        assert!(begun.elapsed() < Duration::from_secs(30), "nothing is refused");
        refused = world.verdict("svc/shop/web:80", Payload::Bytes).await;
    }
    let (code, message) = refused.unwrap();
    assert!(code == RefuseCode::Busy && message.contains("takes 2 new streams a second"), "{message}");
    for _ in 0..5 {
        assert_eq!(world.verdict("svc/shop/other:80", Payload::Bytes).await, None);
    }
    let freed = async {
        while world.verdict("svc/shop/web:80", Payload::Bytes).await.is_some() {
            tokio::task::yield_now().await
        }
    };
    timeout(Duration::from_secs(20), freed).await.expect("the next second");
}

#[tokio::test]
async fn s23_s25_addresses_that_nobody_means_are_never_dialled() {
    let authority = Authority::new();
    let world = World::new(&authority, "  services: {}").await;
    let (addr, seen, _echo) = echo().await;
    let port = addr.port();
    // A name, a service and a pod lead there as little as the address itself.
    world.service("web", "TCP", &[(addr, true)]);
    let pod = json!({"status": {"phase": "Running", "podIPs": [{"ip": "127.0.0.1"}]}});
    world.put("/api/v1/namespaces/shop/pods/evil", pod);
    let mut places =
        vec!["svc/shop/web:80".to_owned(), format!("pod/shop/evil:{port}"), format!("host/localhost:{port}")];
    for ip in [
        "127.0.0.1",
        "[::1]",
        "0.0.0.0",
        "169.254.169.254",
        "[fe80::1]",
        "[fd00:ec2::254]",
        "10.9.0.1",
        "198.51.100.9",
        "[::ffff:127.0.0.1]",
        "[::ffff:10.9.0.1]",
    ] {
        places.push(format!("host/{ip}:{port}"));
    }
    for to in &places {
        let (code, message) = world.verdict(to, Payload::Bytes).await.unwrap();
        assert!(code == RefuseCode::Policy && message.contains("address"), "{to}: {code}: {message}");
        let (code, _) = world.verdict(to, Payload::Datagrams).await.unwrap();
        assert!(matches!(code, RefuseCode::Policy | RefuseCode::NotFound), "{to}: {code}");
    }
    assert_eq!(seen.load(Ordering::SeqCst), 0, "no connection was made");
}

/// A name with TTL 0 whose owner answers with an address that is allowed, and the next time with one that is not.
#[tokio::test]
async fn s25_a_name_that_rebinds_is_looked_up_once_and_what_was_judged_is_dialled() {
    let authority = Authority::new();
    let recorder = Recorder::start(&authority, &[b"h2"], None).await;
    let (lawful, good, _echo) = echo().await;
    // The same port at an address that the policy does not open: a second look would lead there.
    let other = SocketAddr::from(([127, 9, 9, 9], lawful.port()));
    let listener = TcpListener::bind(other).await.unwrap();
    let bad = Arc::new(AtomicUsize::new(0));
    let counted = bad.clone();
    let _trap = AbortOnDropHandle::new(tokio::spawn(async move {
        while listener.accept().await.is_ok() {
            counted.fetch_add(1, Ordering::SeqCst);
        }
    }));
    let asked = Arc::new(AtomicUsize::new(0));
    let questions = asked.clone();
    let names: inside::Lookup = Arc::new(move |host, port| {
        assert_eq!((host.as_str(), port), ("rebind.example", lawful.port()));
        let at = if questions.fetch_add(1, Ordering::SeqCst) == 0 { lawful } else { other };
        Box::pin(async move { Ok(vec![at]) })
    });
    let policy = "  services: {allowAddresses: ['127.0.0.1']}";
    let world = World::asking(&authority, recorder, policy, Some(names)).await;
    world.put("/api/v1/nodes", json!({"items": []}));
    let to = format!("host/rebind.example:{}", lawful.port());
    let mut stream = world.open(&to, Payload::Bytes).await;
    stream.write_all(b"hello").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut back = Vec::new();
    timeout(Duration::from_secs(20), stream.read_to_end(&mut back)).await.unwrap().unwrap();
    assert_eq!((&back[..], asked.load(Ordering::SeqCst)), (&b"hello"[..], 1), "one lookup for one connection");
    assert_eq!(good.load(Ordering::SeqCst), 1);
    // What is remembered is forgotten after a while: then the new answer is judged, and not dialled.
    tokio::time::pause();
    tokio::time::advance(moorline_agent::limits::INSIDE_KNOWN).await;
    tokio::time::resume();
    let (code, message) = world.verdict(&to, Payload::Bytes).await.unwrap();
    assert!(code == RefuseCode::Policy && message.contains("127.9.9.9"), "{code}: {message}");
    assert_eq!((asked.load(Ordering::SeqCst), bad.load(Ordering::SeqCst)), (2, 0));
}

#[tokio::test]
async fn s23_an_agent_that_cannot_tell_nodes_dials_nothing() {
    let authority = Authority::new();
    let recorder = Recorder::start(&authority, &[b"h2"], None).await;
    let world = World::at(&authority, recorder, LOOPBACK).await;
    let (addr, seen, _echo) = echo().await;
    world.service("web", "TCP", &[(addr, true)]);
    let (_, message) = world.verdict("svc/shop/web:80", Payload::Bytes).await.unwrap();
    assert!(message.contains("nodes"), "{message}");
    assert_eq!(seen.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn without_the_right_to_look_up_services_the_clusters_dns_is_asked() {
    let authority = Authority::new();
    let recorder = Recorder::start(&authority, &[b"h2"], None).await;
    let (addr, seen, _echo) = echo().await;
    let names: inside::Lookup = Arc::new(move |host, port| {
        assert_eq!((host.as_str(), port), ("web.shop.svc", 80));
        Box::pin(async move { Ok(vec![addr]) })
    });
    let world = World::asking(&authority, recorder, LOOPBACK, Some(names)).await;
    world.put("/api/v1/nodes", json!({"items": []}));
    let (service, slices) =
        ("/api/v1/namespaces/shop/services/web", "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices");
    world.put(service, Value::Null);
    world.put(slices, Value::Null);
    assert_eq!(world.verdict("svc/shop/web:80", Payload::Bytes).await, None);
    // A name of a port stands in the object alone, and so do labels.
    let (code, words) = world.verdict("svc/shop/web:main", Payload::Bytes).await.unwrap();
    assert!(code == RefuseCode::Unreachable && words.contains("get on services"), "{code}: {words}");
    let labels = vec![vec![("app".to_owned(), "web".to_owned())]];
    let mut stream = world.open_with("svc/shop/web:80", Payload::Bytes, labels.clone()).await;
    assert!(stream.accepted().await.is_err());
    // With the service alone its address is the one that DNS has: the cluster's own.
    let ports = json!([{"name": "main", "port": 80, "protocol": "TCP"}]);
    world.put(service, json!({"metadata": {"labels": {"app": "web"}}, "spec": {"type": "ClusterIP", "ports": ports}}));
    tokio::time::pause();
    tokio::time::advance(moorline_agent::limits::INSIDE_KNOWN).await;
    tokio::time::resume();
    let mut stream = world.open_with("svc/shop/web:main", Payload::Bytes, labels).await;
    stream.accepted().await.unwrap();
    assert_eq!(seen.load(Ordering::SeqCst), 2);
}

/// A listener whose queue is full: the kernel answers nobody any more.
fn hole() -> (SocketAddr, Vec<std::net::TcpStream>, socket2::Socket) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    socket.listen(0).unwrap();
    let at = socket.local_addr().unwrap().as_socket().unwrap();
    let brief = Duration::from_millis(50);
    let held = (0..16).map_while(|_| std::net::TcpStream::connect_timeout(&at, brief).ok()).collect();
    (at, held, socket)
}

#[tokio::test]
async fn f46_a_service_in_a_black_hole_is_a_timeout_and_its_neighbour_and_its_place_are_free() {
    let authority = Authority::new();
    let policy = "  services: {allowAddresses: ['127.0.0.0/8'], limits: [{names: ['shop/web'], maxStreams: 1}]}";
    let world = World::new(&authority, policy).await;
    let ((addr, _, _echo), (at, _held, _socket)) = (echo().await, hole());
    world.service("web", "TCP", &[(at, true)]);
    let begun = tokio::time::Instant::now();
    let mut slow = world.open("svc/shop/web:80", Payload::Bytes).await;
    // It has its place once another one has none.
    let taken = async {
        while world.verdict("svc/shop/web:80", Payload::Bytes).await.is_none_or(|(code, _)| code != RefuseCode::Busy) {}
    };
    timeout(Duration::from_secs(5), taken).await.expect("the place is taken");
    for _ in 0..20 {
        assert_eq!(world.verdict(&format!("host/127.0.0.1:{}", addr.port()), Payload::Bytes).await, None);
    }
    assert!(begun.elapsed() < moorline_agent::limits::INSIDE_CONNECT, "others do not wait for it");
    let said = timeout(Duration::from_secs(20), slow.accepted()).await.unwrap();
    assert!(matches!(&said, Err(StreamError::Refused(refusal)) if refusal.code == RefuseCode::Deadline), "{said:?}");
    // What failed is looked up anew, and one may come again.
    world.service("web", "TCP", &[(addr, true)]);
    assert_eq!(world.verdict("svc/shop/web:80", Payload::Bytes).await, None);
}

#[tokio::test]
async fn labels_that_a_grant_asks_for_are_looked_at_in_the_cluster() {
    let authority = Authority::new();
    let world = World::new(&authority, LOOPBACK).await;
    let (addr, _, _echo) = echo().await;
    world.service("web", "TCP", &[(addr, true)]);
    let label = |key: &str, value: &str| vec![(key.to_owned(), value.to_owned())];
    for (labels, opens) in [
        (vec![label("app", "web")], true),
        (vec![label("app", "other"), label("app", "web")], true),
        (vec![label("app", "other")], false),
        (vec![label("absent", "")], false),
    ] {
        let mut stream = world.open_with("svc/shop/web:80", Payload::Bytes, labels.clone()).await;
        assert_eq!(stream.accepted().await.is_ok(), opens, "{labels:?}");
    }
}

#[tokio::test]
async fn datagrams_of_many_flows_keep_to_their_own() {
    let authority = Authority::new();
    let world = World::new(&authority, LOOPBACK).await;
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    world.service("dns", "UDP", &[(socket.local_addr().unwrap(), true)]);
    let server = tokio::spawn(async move {
        let (mut space, mut peers) = ([0; 2048], std::collections::HashSet::new());
        for _ in 0..20 {
            let (n, peer) = socket.recv_from(&mut space).await.unwrap();
            peers.insert(peer);
            socket.send_to(&space[..n], peer).await.unwrap();
        }
        peers.len()
    });
    let mut stream = world.open("svc/shop/dns:80", Payload::Datagrams).await;
    stream.accepted().await.unwrap();
    let mut input = BytesMut::new();
    for round in 0..20u16 {
        let (flow, mut out) = (round % 5, Vec::new());
        datagram::put(&mut out, flow, format!("{flow}-{round}").as_bytes());
        stream.write_all(&out).await.unwrap();
        stream.flush().await.unwrap();
        let answer = async {
            loop {
                if let Some(answer) = datagram::take(&mut input) {
                    return answer;
                }
                assert_ne!(stream.read_buf(&mut input).await.unwrap(), 0);
            }
        };
        let (back, payload) = timeout(Duration::from_secs(10), answer).await.unwrap();
        assert_eq!((back, &payload[..]), (flow, format!("{flow}-{round}").as_bytes()));
    }
    assert_eq!(server.await.unwrap(), 5, "a socket for each flow");
}

/// One datagram of a flow, and its answer.
async fn exchanged(stream: &mut Stream, input: &mut BytesMut, flow: u16, payload: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    datagram::put(&mut out, flow, payload);
    stream.write_all(&out).await.ok()?;
    stream.flush().await.ok()?;
    let answer = async {
        loop {
            if let Some((back, payload)) = datagram::take(input) {
                assert_eq!(back, flow);
                return Some(payload.to_vec());
            }
            if !matches!(stream.read_buf(input).await, Ok(1..)) {
                return None;
            }
        }
    };
    timeout(Duration::from_secs(20), answer).await.unwrap()
}

/// Answers each datagram with its own name.
async fn named(name: &'static [u8]) -> (SocketAddr, AbortOnDropHandle<()>) {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let addr = socket.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let mut space = [0; 64];
        while let Ok((_, peer)) = socket.recv_from(&mut space).await {
            let _ = socket.send_to(name, peer).await;
        }
    });
    (addr, AbortOnDropHandle::new(task))
}

#[tokio::test]
async fn new_flows_go_where_the_service_is_by_then_and_a_service_that_is_gone_ends_the_stream() {
    let authority = Authority::new();
    let world = World::new(&authority, LOOPBACK).await;
    let ((old, _one), (new, _two)) = (named(b"old").await, named(b"new").await);
    world.service("dns", "UDP", &[(old, true)]);
    let mut stream = world.open("svc/shop/dns:80", Payload::Datagrams).await;
    stream.accepted().await.unwrap();
    let mut input = BytesMut::new();
    assert_eq!(exchanged(&mut stream, &mut input, 1, b"?").await.unwrap(), b"old");
    world.service("dns", "UDP", &[(new, true)]);
    // What was looked up is good for a few seconds; a flow keeps to what it has.
    let mut flow = 2;
    let begun = tokio::time::Instant::now();
    while exchanged(&mut stream, &mut input, flow, b"?").await.unwrap() != b"new" {
        assert!(begun.elapsed() < Duration::from_secs(30), "new flows go to what is gone");
        tokio::time::sleep(Duration::from_millis(200)).await;
        flow += 1;
    }
    assert_eq!(exchanged(&mut stream, &mut input, 1, b"?").await.unwrap(), b"old");
    world.service("dns", "UDP", &[(new, false)]);
    let begun = tokio::time::Instant::now();
    while exchanged(&mut stream, &mut input, flow + 1, b"?").await.is_some() {
        assert!(begun.elapsed() < Duration::from_secs(30), "the stream goes on without a service");
        tokio::time::sleep(Duration::from_millis(200)).await;
        flow += 1;
    }
    let (code, _) = world.verdict("svc/shop/dns:80", Payload::Datagrams).await.unwrap();
    assert_eq!(code, RefuseCode::NoEndpoints, "who opens the next one hears why");
}

#[tokio::test]
async fn what_is_imported_is_exported_neither_for_connections_nor_for_datagrams() {
    let authority = Authority::new();
    let world = World::new(&authority, LOOPBACK).await;
    let (addr, _server) = named(b"here").await;
    let port = addr.port();
    let slice = json!({
        "addressType": "IPv4",
        "ports": [{"name": "main", "port": port, "protocol": "UDP"}, {"name": "tcp", "port": port, "protocol": "TCP"}],
        "endpoints": [{"addresses": ["127.0.0.1"], "conditions": {"ready": true}}],
    });
    world.put("/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices", json!({ "items": [slice] }));
    let path = "/api/v1/namespaces/shop/services/dns";
    let spec = json!({"type": "ClusterIP", "ports": [{"name": "main", "port": 80, "protocol": "UDP"}, {"name": "tcp", "port": 81}]});
    for (labels, imported) in [(json!({}), false), (json!({ (moorline_agent::imports::LABEL): "there" }), true)] {
        world.put(path, json!({ "metadata": { "labels": labels }, "spec": spec }));
        for (to, payload) in [("svc/shop/dns:80", Payload::Datagrams), ("svc/shop/dns:81", Payload::Bytes)] {
            if !imported && payload == Payload::Bytes {
                continue; // nothing listens there
            }
            let target = Target::Inside(Inside { to: to.parse().unwrap(), payload, labels: Vec::new() });
            let principal = Some(Principal { user: "moorline:agent:edge2.a1".into(), ..Principal::default() });
            let header =
                StreamHeader { target, class: Class::Interactive, deadline_ms: 0, traceparent: None, principal };
            // What was known before is good for a few seconds.
            let begun = tokio::time::Instant::now();
            loop {
                let mut stream = world.hub.open(&header).await.unwrap();
                match timeout(Duration::from_secs(20), stream.accepted()).await.unwrap() {
                    Ok(()) if !imported => break,
                    Err(StreamError::Refused(refusal))
                        if imported && refusal.message.contains("imported here itself") =>
                    {
                        break;
                    }
                    other => assert!(begun.elapsed() < Duration::from_secs(30), "{to}: {other:?}"),
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}
