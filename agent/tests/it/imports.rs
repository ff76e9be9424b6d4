//! Services of other clusters: an API server that keeps objects, a hub that answers, real connections between.

use crate::{
    pki::{Authority, localhost, server_config, uri_name},
    recorder::upstream,
};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use moorline_agent::{
    identity::Holder,
    imports::{Imports, Metrics},
    policy::PolicyFile,
    state::StateDir,
};
use moorline_link::tls;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::{Notify, watch},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

const LONG: Duration = Duration::from_secs(30);
const SERVICE: &str = "/api/v1/namespaces/shop/services/web";
const SLICE: &str = "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices/web-a1";

/// Objects by path, as an API server keeps them. Namespaces `shop` and `locked` exist; in `locked` nobody may write.
type Objects = Arc<Mutex<BTreeMap<String, Value>>>;

async fn api(request: Request<Incoming>, objects: Objects) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(|all| all.to_bytes()).unwrap_or_default();
    let sent = serde_json::from_slice::<Value>(&body).unwrap_or_default();
    let path = head.uri.path().to_owned();
    let mut all = objects.lock().unwrap();
    let answer = |code: u16, value: &Value| {
        Ok(Response::builder().status(code).body(Full::new(Bytes::from(value.to_string()))).unwrap())
    };
    if path.contains("/namespaces/locked/") && head.method != Method::GET {
        return answer(403, &json!({}));
    }
    let is_list = path.ends_with("/services") || path.ends_with("/endpointslices");
    match (head.method, is_list) {
        (Method::GET, true) => {
            let prefix = format!("{path}/");
            let items: Vec<Value> =
                all.iter().filter(|(at, _)| at.starts_with(&prefix)).map(|(_, o)| o.clone()).collect();
            let labelled =
                items.into_iter().filter(|o| !o["metadata"]["labels"]["moorline.dev/service-import"].is_null());
            answer(200, &json!({ "items": labelled.collect::<Vec<_>>() }))
        }
        (Method::GET, false) => all.get(&path).map_or_else(|| answer(404, &json!({})), |object| answer(200, object)),
        (Method::POST, _) if path.contains("/namespaces/none/") => answer(404, &json!({})),
        (Method::POST, _) => {
            let mut object = sent;
            let name = object["metadata"]["name"].as_str().unwrap().to_owned();
            object["metadata"]["uid"] = json!(format!("uid-{name}"));
            if object["kind"] == "Service" {
                object["spec"]["clusterIP"] = json!("10.96.0.7");
            }
            all.insert(format!("{path}/{name}"), object.clone());
            answer(201, &object)
        }
        (Method::PUT, _) => {
            all.insert(path, sent.clone());
            answer(200, &sent)
        }
        (Method::DELETE, _) => answer(if all.remove(&path).is_some() { 200 } else { 404 }, &json!({})),
        _ => answer(405, &json!({})),
    }
}

/// What the hub wants, and what it heard.
#[derive(Clone)]
struct HubSide {
    wanted: watch::Sender<Value>,
    told: watch::Sender<Value>,
    /// What the connections of imports are joined to.
    refuses: Arc<Mutex<bool>>,
    /// The connections that were asked for.
    opened: watch::Sender<Vec<String>>,
    /// Ends one that carries datagrams.
    cut: Arc<Notify>,
}

async fn hub(mut request: Request<Incoming>, side: HubSide) -> Result<Response<Full<Bytes>>, Infallible> {
    if request.method() == Method::POST {
        let body = request.into_body().collect().await.map(|all| all.to_bytes()).unwrap_or_default();
        let asked: Value = serde_json::from_slice(&body).unwrap();
        side.told.send_replace(asked["told"].clone());
        let mut wanted = side.wanted.subscribe();
        let revision = |now: &Value| format!("r{now}");
        let now = wanted.wait_for(|now| revision(now) != asked["seen"]).await.unwrap().clone();
        let agents = json!(["a1"]);
        let answer = json!({ "revision": revision(&now), "imports": now, "agents": agents });
        return Ok(Response::new(Full::new(Bytes::from(answer.to_string()))));
    }
    if *side.refuses.lock().unwrap() {
        side.opened.send_modify(|all| all.push("refused".to_owned()));
        let status = json!({ "message": "none of it is ready" }).to_string();
        return Ok(Response::builder().status(503).body(Full::new(Bytes::from(status))).unwrap());
    }
    let path = request.uri().to_string();
    side.opened.send_modify(|all| all.push(path.clone()));
    let upgrade = hyper::upgrade::on(&mut request);
    let (cut, datagrams) = (side.cut.clone(), request.uri().query() == Some("payload=datagrams"));
    tokio::spawn(async move {
        let mut io = TokioIo::new(upgrade.await.unwrap());
        if datagrams {
            let (mut read, mut write) = tokio::io::split(io);
            tokio::select! {
                _ = tokio::io::copy(&mut read, &mut write) => {}
                () = cut.notified() => {}
            }
            return;
        }
        let _ = io.write_all(format!("{path}\n").as_bytes()).await;
        let _ = io.flush().await;
        let mut rest = Vec::new();
        let _ = io.read_to_end(&mut rest).await;
        let _ = io.write_all(&rest).await;
        let _ = io.shutdown().await;
    });
    let mut response = Response::new(Full::new(Bytes::new()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(header::CONNECTION, "Upgrade".parse().unwrap());
    response.headers_mut().insert(header::UPGRADE, "moorline-stream".parse().unwrap());
    Ok(response)
}

/// Serves each connection with `answer`.
async fn serve<F>(
    config: Arc<rustls::ServerConfig>,
    answer: impl Fn(Request<Incoming>) -> F + Clone + Send + 'static,
) -> (SocketAddr, AbortOnDropHandle<()>)
where
    F: Future<Output = Result<Response<Full<Bytes>>, Infallible>> + Send + 'static,
{
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let (addr, acceptor) = (listener.local_addr().unwrap(), TlsAcceptor::from(config));
    let task = tokio::spawn(async move {
        while let Ok((conn, _)) = listener.accept().await {
            let (acceptor, answer) = (acceptor.clone(), answer.clone());
            tokio::spawn(async move {
                let Ok(tls) = acceptor.accept(conn).await else { return };
                let server = auto::Builder::new(TokioExecutor::new());
                let _ = server.serve_connection_with_upgrades(TokioIo::new(tls), service_fn(answer)).await;
            });
        }
    });
    (addr, AbortOnDropHandle::new(task))
}

struct World {
    objects: Objects,
    hub: HubSide,
    stop: CancellationToken,
    agent: AbortOnDropHandle<()>,
    _servers: Vec<AbortOnDropHandle<()>>,
    _dir: tempfile::TempDir,
}

impl World {
    async fn new(policy: &str) -> Self {
        let (dir, authority) = (tempfile::tempdir().unwrap(), Authority::new());
        let objects = Objects::default();
        let kept = objects.clone();
        let (api_at, one) =
            serve(server_config(authority.issue(localhost()), &[b"h2"]), move |request| api(request, kept.clone()))
                .await;
        let side = HubSide {
            wanted: watch::Sender::new(json!([])),
            told: watch::Sender::default(),
            refuses: Arc::default(),
            opened: watch::Sender::default(),
            cut: Arc::default(),
        };
        let names = [localhost(), vec![uri_name("spiffe://example/hub/h1")]].concat();
        let mut config = (*tls::server_config(&authority.issue(names), &authority.trust()).unwrap()).clone();
        config.alpn_protocols = vec![tls::IMPORTS_ALPN.to_vec()];
        let answers = side.clone();
        let (hub_at, two) = serve(Arc::new(config), move |request| hub(request, answers.clone())).await;
        let path = dir.path().join("policy.yaml");
        let text =
            format!("apiVersion: moorline.dev/v1alpha1\nkind: EdgePolicy\nspec: {{imports: {{allow: {policy}}}}}\n");
        std::fs::write(&path, text).unwrap();
        let policy = Arc::new(PolicyFile::open(Some(&path)).unwrap());
        let (upstream, metrics) = upstream(dir.path(), &authority, api_at).await;
        let state = StateDir::open(&dir.path().join("state")).unwrap();
        let key = state.key().unwrap();
        let member = authority.old_member(&key);
        let holder = Arc::new(Holder::new(key, state, hub_at.to_string(), member, metrics));
        let counted = Metrics::new(&prometheus::Registry::new()).unwrap();
        let whom = (hub_at.to_string().parse().unwrap(), holder);
        let imports = Imports::new(whom, upstream, policy, Ipv4Addr::LOCALHOST.into(), counted);
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let agent = AbortOnDropHandle::new(tokio::spawn(async move { imports.run(stopped).await }));
        Self { objects, hub: side, stop, agent, _servers: vec![one, two], _dir: dir }
    }

    fn want(&self, imports: Value) {
        self.hub.wanted.send_replace(imports);
    }

    fn object(&self, path: &str) -> Option<Value> {
        self.objects.lock().unwrap().get(path).cloned()
    }

    /// What the agent says once it satisfies `wanted`.
    async fn told(&self, wanted: impl FnMut(&Value) -> bool) -> Value {
        let mut told = self.hub.told.subscribe();
        timeout(LONG, told.wait_for(wanted)).await.unwrap().unwrap().clone()
    }

    /// Where the slice leads.
    fn endpoint(&self) -> SocketAddr {
        self.endpoint_of(0)
    }

    fn endpoint_of(&self, port: usize) -> SocketAddr {
        let slice = self.object(SLICE).unwrap();
        let address = slice["endpoints"][0]["addresses"][0].as_str().unwrap().parse().unwrap();
        SocketAddr::new(address, slice["ports"][port]["port"].as_u64().unwrap().try_into().unwrap())
    }
}

fn web(ports: Value) -> Value {
    json!([{ "name": "in-web", "namespace": "shop", "service": "web", "ports": ports }])
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_gets_an_address_whose_connections_reach_the_hub() {
    let world = World::new("['shop/*']").await;
    world.want(web(json!([{ "port": 80, "name": "http" }])));
    let told = world.told(|told| told[0]["address"] == "10.96.0.7").await;
    assert_eq!(told, json!([{ "import": "in-web", "address": "10.96.0.7" }]));
    let (service, slice) = (world.object(SERVICE).unwrap(), world.object(SLICE).unwrap());
    assert_eq!(service["spec"]["ports"], json!([{ "name": "http", "port": 80, "protocol": "TCP" }]));
    assert!(service["spec"].get("selector").is_none());
    assert_eq!(slice["metadata"]["labels"]["kubernetes.io/service-name"], "web");
    assert_eq!(slice["metadata"]["ownerReferences"][0]["uid"], "uid-web");
    assert_eq!((&slice["ports"][0]["name"], &slice["addressType"]), (&json!("http"), &json!("IPv4")));
    let mut socket = TcpStream::connect(world.endpoint()).await.unwrap();
    socket.write_all(b"and back").await.unwrap();
    socket.shutdown().await.unwrap();
    let mut all = String::new();
    timeout(LONG, socket.read_to_string(&mut all)).await.unwrap().unwrap();
    assert_eq!(all, "/imports/in-web/80?client=127.0.0.1\nand back");
    // A connection that the hub refuses is cut, not ended: it may be cut before the caller has looked at it.
    *world.hub.refuses.lock().unwrap() = true;
    let connects_and_reads = async { TcpStream::connect(world.endpoint()).await?.read(&mut [0; 1]).await };
    let cut = timeout(LONG, connects_and_reads).await.unwrap().unwrap_err();
    assert_eq!(cut.kind(), std::io::ErrorKind::ConnectionReset);
    // Another port: service and slice follow, and the old one is closed.
    let before = world.endpoint();
    world.want(web(json!([{ "port": 443, "name": "https" }])));
    timeout(LONG, async {
        while world.object(SERVICE).unwrap()["spec"]["ports"][0]["port"] != 443 {
            tokio::task::yield_now().await;
        }
        while TcpStream::connect(before).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    // Gone at the hub, gone here.
    world.want(json!([]));
    timeout(LONG, async {
        while world.object(SERVICE).is_some() || world.object(SLICE).is_some() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
}

/// Asks until there is an answer, for what is lost is lost.
async fn answered(socket: &UdpSocket, question: &[u8]) {
    let mut space = [0; 64];
    timeout(LONG, async {
        loop {
            socket.send(question).await.unwrap();
            if let Ok(n) = timeout(Duration::from_millis(500), socket.recv(&mut space)).await
                && space[..n.unwrap()] == *question
            {
                return;
            }
        }
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn datagrams_of_many_pods_share_one_way_and_find_the_next_when_it_breaks() {
    let world = World::new("['shop/*']").await;
    let (tcp, udp) =
        (json!({ "port": 53, "name": "dns-tcp" }), json!({ "port": 53, "name": "dns", "protocol": "UDP" }));
    world.want(web(json!([tcp, udp])));
    world.told(|told| told[0]["address"] == "10.96.0.7").await;
    let both =
        json!([{ "name": "dns-tcp", "port": 53, "protocol": "TCP" }, { "name": "dns", "port": 53, "protocol": "UDP" }]);
    assert_eq!(world.object(SERVICE).unwrap()["spec"]["ports"], both);
    let slice = world.object(SLICE).unwrap()["ports"].clone();
    assert_eq!((&slice[1]["name"], &slice[1]["protocol"]), (&json!("dns"), &json!("UDP")));
    let mut pods = Vec::new();
    for n in 0..5_u8 {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        socket.connect(world.endpoint_of(1)).await.unwrap();
        answered(&socket, &[n; 8]).await;
        pods.push(socket);
    }
    let opened = || world.hub.opened.borrow().clone();
    assert_eq!(opened(), ["/imports/in-web/53?payload=datagrams"]);
    // It breaks, and the next one is refused for a while: what is asked meanwhile is lost, and no more than that.
    *world.hub.refuses.lock().unwrap() = true;
    world.hub.cut.notify_one();
    timeout(LONG, async {
        while !opened().contains(&"refused".to_owned()) {
            pods[0].send(b"nobody").await.unwrap();
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    *world.hub.refuses.lock().unwrap() = false;
    for (n, socket) in pods.iter().enumerate() {
        answered(socket, &[n as u8; 9]).await;
    }
    assert_eq!(opened().iter().filter(|at| *at != "refused").count(), 2, "{:?}", opened());
    // Gone at the hub: nobody takes datagrams any more, and connections still are.
    let closed = world.endpoint_of(1);
    world.want(web(json!([tcp])));
    timeout(LONG, async {
        while UdpSocket::bind(closed).await.is_err() {
            tokio::task::yield_now().await;
        }
        while world.object(SERVICE).unwrap()["spec"]["ports"] != json!([both[0]]) {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    TcpStream::connect(world.endpoint()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_made_is_told_with_its_reason_and_nothing_foreign_is_touched() {
    let world = World::new("['shop/*', 'none/*', 'locked/*']").await;
    let foreign =
        json!({ "metadata": { "name": "web", "uid": "u" }, "spec": { "clusterIP": "10.96.0.1", "ports": [] } });
    world.objects.lock().unwrap().insert(SERVICE.to_owned(), foreign.clone());
    // Left behind by a run before.
    let old = json!({ "metadata": { "name": "old", "labels": { "moorline.dev/service-import": "gone" } }, "spec": {} });
    let old_at = "/api/v1/namespaces/shop/services/old";
    world.objects.lock().unwrap().insert(old_at.to_owned(), old);
    let ports = json!([{ "port": 80, "name": "http" }]);
    let of =
        |name: &str, namespace: &str| json!({ "name": name, "namespace": namespace, "service": "web", "ports": ports });
    world.want(json!([
        of("taken", "shop"),
        of("refused", "kube-system"),
        of("nowhere", "none"),
        of("locked", "locked")
    ]));
    let told = world.told(|told| told.as_array().is_some_and(|all| all.len() == 4)).await;
    let reasons: Vec<&str> = told.as_array().unwrap().iter().map(|t| t["reason"].as_str().unwrap()).collect();
    assert_eq!(reasons, ["NameTaken", "PolicyForbids", "NoNamespace", "RBACForbids"], "{told}");
    assert_eq!(world.object(SERVICE), Some(foreign));
    assert_eq!(world.object(old_at), None, "what is not imported any more is taken away");
    assert!(world.object("/api/v1/namespaces/kube-system/services/web").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_ends_takes_its_address_back_and_lets_what_is_open_end() {
    let mut world = World::new("['shop/web']").await;
    world.want(web(json!([{ "port": 80, "name": "http" }])));
    world.told(|told| !told[0]["address"].is_null()).await;
    let mut socket = TcpStream::connect(world.endpoint()).await.unwrap();
    let mut first = [0; 36];
    timeout(LONG, socket.read_exact(&mut first)).await.unwrap().unwrap();
    world.stop.cancel();
    timeout(LONG, async {
        while world.object(SLICE).is_some() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    assert!(world.object(SERVICE).is_some(), "its address stays for the agent's return");
    socket.write_all(b"last").await.unwrap();
    socket.shutdown().await.unwrap();
    let mut rest = String::new();
    timeout(LONG, socket.read_to_string(&mut rest)).await.unwrap().unwrap();
    assert_eq!(rest, "last");
    timeout(LONG, &mut world.agent).await.unwrap().unwrap();
}
