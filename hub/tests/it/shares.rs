//! Services that clusters share: what an importing agent is told and reaches, and what the status says.

use crate::world::{API, Agent, Answer, Member, World, eventually, read_answer};
use moorline_link::{Carrier, tls};
use serde_json::{Value, json};
use std::{sync::atomic::Ordering, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

const LONG: Duration = Duration::from_secs(30);

/// A connection as an importing agent makes it.
async fn connect(world: &World, member: &Member) -> std::io::Result<TlsStream<TcpStream>> {
    let mut config = (*tls::client_config(&member.identity, &member.trust).unwrap()).clone();
    config.alpn_protocols = vec![tls::IMPORTS_ALPN.to_vec()];
    let socket = TcpStream::connect(world.hub.addr()).await.unwrap();
    TlsConnector::from(std::sync::Arc::new(config)).connect("localhost".try_into().unwrap(), socket).await
}

async fn ask(world: &World, member: &Member, head: &str, body: &str) -> Answer {
    let mut stream = connect(world, member).await.unwrap();
    let length = body.len();
    let request = format!("{head} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    timeout(LONG, read_answer(&mut stream)).await.unwrap()
}

/// What is to be imported, with what an agent says of it.
async fn news(world: &World, member: &Member, seen: &str, told: Value) -> Value {
    ask(world, member, "POST /imports", &json!({ "seen": seen, "told": told }).to_string()).await.json()
}

/// The same of an agent that carries datagrams.
async fn news_of_datagrams(world: &World, member: &Member, told: Value) -> Value {
    let body = json!({ "seen": "", "told": told }).to_string();
    ask(world, member, "POST /imports?payload=datagrams", &body).await.json()
}

/// One connection to `import`; the answer to its request, and the rest of the connection.
async fn open(world: &World, member: &Member, import: &str) -> (Answer, TlsStream<TcpStream>) {
    open_at(world, member, &format!("{import}/80")).await
}

async fn open_at(world: &World, member: &Member, at: &str) -> (Answer, TlsStream<TcpStream>) {
    let mut stream = connect(world, member).await.unwrap();
    let request = format!(
        "GET /imports/{at} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: moorline-stream\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    let answer = timeout(LONG, read_answer(&mut stream)).await.unwrap();
    (answer, stream)
}

async fn echoes(stream: &mut TlsStream<TcpStream>) -> bool {
    let mut back = [0; 5];
    stream.write_all(b"hello").await.is_ok()
        && stream.flush().await.is_ok()
        && matches!(timeout(LONG, stream.read_exact(&mut back)).await, Ok(Ok(_)))
        && &back == b"hello"
}

async fn status(world: &World, plural: &str, name: &str) -> Value {
    world.get(&world.admin, &format!("{API}/{plural}/{name}")).await.json()["status"].clone()
}

async fn reason(world: &World, plural: &str, name: &str) -> String {
    status(world, plural, name).await["conditions"][0]["reason"].as_str().unwrap_or_default().to_owned()
}

/// Status and reason of the condition of that type.
async fn condition(world: &World, plural: &str, name: &str, kind: &str) -> (String, String) {
    let all = status(world, plural, name).await["conditions"].clone();
    let found = all.as_array().into_iter().flatten().find(|c| c["type"] == kind).cloned().unwrap_or_default();
    let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
    (text("status"), text("reason"))
}

async fn turns(world: &World, name: &str, kind: &str, (is, reason): (&str, &str)) {
    let wanted = (is.to_owned(), reason.to_owned());
    let what = format!("{name} {kind}={is} ({reason})");
    eventually(&what, async || condition(world, "serviceexports", name, kind).await == wanted).await;
}

async fn becomes(world: &World, plural: &str, name: &str, wanted: &str) {
    eventually(wanted, async || reason(world, plural, name).await == wanted).await;
}

async fn export(world: &World, cluster: &str, importers: &[&str]) {
    let spec = json!({ "cluster": cluster, "namespace": "shop", "service": "web", "importers": importers,
        "ports": [{ "port": 80, "name": "http" }] });
    world.create("serviceexports", "ServiceExport", &format!("web-{cluster}"), spec).await;
}

/// Two clusters with the service, and one that imports it.
async fn three() -> (World, Agent, Agent, Member) {
    three_with(|_| ()).await
}

async fn three_with(change: impl FnOnce(&mut moorline_hub::Config)) -> (World, Agent, Agent, Member) {
    let world = World::with(change).await;
    let one = world.connected("edge1", Carrier::Tls).await;
    let three = world.connected("edge3", Carrier::Tls).await;
    world.cluster("edge2").await;
    let token = world.join_token("edge2", 1, "2999-01-01T00:00:00Z").await;
    let two = world.join(&token, "a1", None).await.unwrap();
    let spec = json!({ "cluster": "edge2", "namespace": "remote", "service": "shop",
        "from": { "namespace": "shop", "service": "web" } });
    world.create("serviceimports", "ServiceImport", "shop", spec).await;
    (world, one, three, two)
}

#[tokio::test(flavor = "multi_thread")]
async fn s22_a_cluster_reaches_what_is_exported_to_it_and_loses_it_with_the_export() {
    let (world, _one, _three, two) = three().await;
    becomes(&world, "serviceimports", "shop", "NoExport").await;
    export(&world, "edge1", &["edge9"]).await;
    becomes(&world, "serviceimports", "shop", "NotAllowed").await;
    assert_eq!(open(&world, &two, "shop").await.0.code, 403);
    world.patch(&format!("{API}/serviceexports/web-edge1"), &json!({ "spec": { "importers": ["edge2"] } })).await;
    becomes(&world, "serviceimports", "shop", "NoImporter").await;

    let told = news(&world, &two, "", json!([])).await;
    assert_eq!(
        told["imports"],
        json!([{ "name": "shop", "namespace": "remote", "service": "shop", "ports": [{ "port": 80, "name": "http" }] }])
    );
    assert_eq!(told["agents"], json!(["a1"]));
    becomes(&world, "serviceimports", "shop", "Pending").await;
    news(&world, &two, "", json!([{ "import": "shop", "reason": "PolicyForbids", "message": "no" }])).await;
    becomes(&world, "serviceimports", "shop", "PolicyForbids").await;
    news(&world, &two, "", json!([{ "import": "shop", "address": "10.96.0.7" }])).await;
    becomes(&world, "serviceimports", "shop", "Imported").await;
    let now = status(&world, "serviceimports", "shop").await;
    assert_eq!((&now["address"], &now["clusters"]), (&json!("10.96.0.7"), &json!(["edge1"])));
    assert_eq!(status(&world, "serviceexports", "web-edge1").await["importers"], json!(["edge2"]));

    let (answer, mut stream) = open(&world, &two, "shop").await;
    assert_eq!(answer.code, 101, "{answer:?}");
    assert!(echoes(&mut stream).await);
    // Whose question waits hears of the change, and what is open ends with the right to it.
    let seen = told["revision"].as_str().unwrap().to_owned();
    let waits = async { timeout(LONG, news(&world, &two, &seen, json!([]))).await.unwrap() };
    let withdraw = async {
        world.patch(&format!("{API}/serviceexports/web-edge1"), &json!({ "spec": { "importers": ["edge9"] } })).await
    };
    let (told, ()) = tokio::join!(waits, withdraw);
    assert_eq!(told["imports"], json!([]));
    let mut rest = [0; 1];
    let ended = timeout(LONG, stream.read(&mut rest)).await.unwrap();
    assert!(!matches!(ended, Ok(1..)), "{ended:?}");
    assert_eq!(open(&world, &two, "shop").await.0.code, 403);
    let audit = world.audit_at_end().await;
    assert!(audit.contains(r#""username":"moorline:agent:edge2.a1""#), "{audit}");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_go_to_another_cluster_when_one_has_no_endpoints() {
    let (world, one, three, two) = three().await;
    export(&world, "edge1", &["*"]).await;
    export(&world, "edge3", &["*"]).await;
    eventually("both exports", async || open(&world, &two, "shop").await.0.code == 101).await;
    one.empty.store(true, Ordering::SeqCst);
    for _ in 0..8 {
        let (answer, mut stream) = open(&world, &two, "shop").await;
        assert_eq!(answer.code, 101, "{answer:?}");
        assert!(echoes(&mut stream).await);
    }
    three.empty.store(true, Ordering::SeqCst);
    let (answer, _) = open(&world, &two, "shop").await;
    assert_eq!((answer.code, answer.json()["reason"].clone()), (503, json!("NoEndpoints")), "{answer:?}");
    becomes(&world, "serviceexports", "web-edge1", "NoEndpoints").await;
    becomes(&world, "serviceexports", "web-edge3", "NoEndpoints").await;
    one.empty.store(false, Ordering::SeqCst);
    assert_eq!(open(&world, &two, "shop").await.0.code, 101, "what failed is tried when nothing else is left");
    becomes(&world, "serviceexports", "web-edge1", "Exported").await;
    assert!(world.metric(r#"moorline_hub_import_connections_total{result="failed_over"}"#) >= 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn datagrams_of_an_import_take_the_ports_that_are_exported_for_them() {
    let (world, one, three, two) = three().await;
    let ports =
        json!([{ "port": 53, "name": "dns", "protocol": "UDP" }, { "port": 53, "name": "dns-tcp" }, { "port": 80 }]);
    for cluster in ["edge1", "edge3"] {
        let spec =
            json!({ "cluster": cluster, "namespace": "shop", "service": "web", "importers": ["*"], "ports": ports });
        world.create("serviceexports", "ServiceExport", &format!("dns-{cluster}"), spec).await;
    }
    eventually("both exports", async || {
        status(&world, "serviceimports", "shop").await["clusters"] == json!(["edge1", "edge3"])
    })
    .await;
    // An agent that knows nothing of datagrams is not told of them, and its import says why.
    let told = news(&world, &two, "", json!([{ "import": "shop", "address": "10.96.0.7" }])).await;
    assert_eq!(
        told["imports"][0]["ports"],
        json!([{ "port": 53, "name": "dns-tcp" }, { "port": 80, "name": "port-80" }])
    );
    becomes(&world, "serviceimports", "shop", "AgentTooOld").await;
    let told = news_of_datagrams(&world, &two, json!([{ "import": "shop", "address": "10.96.0.7" }])).await;
    assert_eq!(told["imports"][0]["ports"].as_array().unwrap().len(), 3, "{told}");
    assert!(told["imports"][0]["ports"].as_array().unwrap().contains(&ports[0]), "{told}");
    becomes(&world, "serviceimports", "shop", "Imported").await;

    let (answer, mut stream) = open_at(&world, &two, "shop/53?payload=datagrams").await;
    assert_eq!(answer.code, 101, "{answer:?}");
    assert!(echoes(&mut stream).await);
    // Neither kind of port is a way to the other, and nothing else is asked for.
    for (at, code) in [("shop/80?payload=datagrams", 403), ("shop/53?payload=http", 400), ("shop/53?x", 400)] {
        assert_eq!(open_at(&world, &two, at).await.0.code, code, "{at}");
    }
    // Another cluster takes over, and what is open ends with the right to it.
    one.empty.store(true, Ordering::SeqCst);
    for _ in 0..4 {
        let (answer, mut stream) = open_at(&world, &two, "shop/53?payload=datagrams").await;
        assert!(answer.code == 101 && echoes(&mut stream).await, "{answer:?}");
    }
    three.empty.store(true, Ordering::SeqCst);
    let (answer, _) = open_at(&world, &two, "shop/53?payload=datagrams").await;
    assert_eq!((answer.code, answer.json()["reason"].clone()), (503, json!("NoEndpoints")), "{answer:?}");
    for cluster in ["edge1", "edge3"] {
        let name = format!("{API}/serviceexports/dns-{cluster}");
        world.patch(&name, &json!({ "spec": { "ports": [{ "port": 53, "name": "dns-tcp" }] } })).await;
    }
    let ended = async { while !matches!(stream.read(&mut [0; 64]).await, Ok(0) | Err(_)) {} };
    timeout(LONG, ended).await.unwrap();
    let audit = world.audit_at_end().await;
    assert!(audit.contains("/connect/svc/shop/web:53"), "{audit}");
}

#[tokio::test(flavor = "multi_thread")]
async fn exports_that_contradict_each_other_say_so_and_the_oldest_is_right() {
    let (world, one, _three, two) = three().await;
    export(&world, "edge1", &["*"]).await;
    turns(&world, "web-edge1", "Conflict", ("False", "NoConflicts")).await;
    turns(&world, "web-edge1", "Valid", ("Unknown", "Pending")).await;
    let spec = json!({ "cluster": "edge3", "namespace": "shop", "service": "web", "importers": ["*"],
        "ports": [{ "port": 80, "name": "web" }, { "port": 8080, "name": "http" }, { "port": 443, "name": "https" }] });
    world.create("serviceexports", "ServiceExport", "web-edge3", spec).await;
    for name in ["web-edge1", "web-edge3"] {
        turns(&world, name, "Conflict", ("True", "PortConflict")).await;
    }
    let conditions = status(&world, "serviceexports", "web-edge3").await["conditions"].clone();
    let message = conditions.as_array().unwrap().iter().find(|c| c["type"] == "Conflict").unwrap()["message"].clone();
    assert!(message.as_str().unwrap().contains("1/2 clusters disagree with edge1"), "{message}");
    let told = news(&world, &two, "", json!([])).await;
    let ports = json!([{ "port": 80, "name": "http" }, { "port": 443, "name": "https" }]);
    assert_eq!(told["imports"][0]["ports"], ports, "the oldest one's name counts, and the others' ports are there");

    // Connections tell whether there is what is exported. One that fails at edge1 goes to edge3.
    one.empty.store(true, Ordering::SeqCst);
    eventually("edge1 was tried", async || {
        assert_eq!(open(&world, &two, "shop").await.0.code, 101);
        condition(&world, "serviceexports", "web-edge1", "Ready").await.1 == "NoEndpoints"
    })
    .await;
    turns(&world, "web-edge1", "Valid", ("True", "Valid")).await;
    turns(&world, "web-edge3", "Valid", ("True", "Valid")).await;

    let agreed = json!({ "spec": { "ports": [{ "port": 80, "name": "http" }] } });
    world.patch(&format!("{API}/serviceexports/web-edge3"), &agreed).await;
    for name in ["web-edge1", "web-edge3"] {
        turns(&world, name, "Conflict", ("False", "NoConflicts")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_of_one_client_keep_to_one_cluster_where_the_oldest_export_says_so() {
    let (world, _one, _three, two) = three().await;
    for (cluster, affinity) in [("edge1", "ClientIP"), ("edge3", "None")] {
        let spec = json!({ "cluster": cluster, "namespace": "shop", "service": "web", "importers": ["*"],
            "ports": [{ "port": 80, "name": "http" }], "sessionAffinity": affinity });
        world.create("serviceexports", "ServiceExport", &format!("web-{cluster}"), spec).await;
    }
    turns(&world, "web-edge3", "Conflict", ("True", "SessionAffinityConflict")).await;
    let told = news(&world, &two, "", json!([])).await;
    assert_eq!(told["imports"][0]["sessionAffinity"], "ClientIP", "{told}");
    for _ in 0..20 {
        let (answer, _) = open_at(&world, &two, "shop/80?client=10.0.0.7").await;
        assert_eq!(answer.code, 101, "{answer:?}");
    }
    assert_eq!(open_at(&world, &two, "shop/80?client=somebody").await.0.code, 400);
    let audit = world.audit_at_end().await;
    let connects: Vec<&str> = audit.lines().filter(|line| line.contains("/connect/svc/shop/web:80")).collect();
    let of = |cluster: &str| connects.iter().filter(|line| line.contains(&format!("\"{cluster}\""))).count();
    assert!(matches!((of("edge1"), of("edge3")), (1.., 0) | (0, 1..)), "{connects:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn s20_the_door_for_imports_is_for_agents_and_leads_nowhere_else() {
    let (world, _one, _three, two) = three().await;
    export(&world, "edge1", &["*"]).await;
    eventually("the export", async || open(&world, &two, "shop").await.0.code == 101).await;
    for path in ["/k8s/clusters/edge1/api", "/imports/shop", "/imports/shop/x", "/imports/shop/80/x", "/livez", "/api"]
    {
        let answer = ask(&world, &two, &format!("GET {path}"), "").await;
        assert!(matches!(answer.code, 400 | 404), "{path}: {answer:?}");
    }
    // Another cluster's import, a port that is not exported, an import that is not there.
    let spec = json!({ "cluster": "edge3", "namespace": "remote", "service": "shop",
        "from": { "namespace": "shop", "service": "web" } });
    world.create("serviceimports", "ServiceImport", "of-three", spec).await;
    for path in ["/imports/of-three/80", "/imports/shop/81", "/imports/none/80"] {
        let answer = ask(&world, &two, &format!("GET {path}"), "").await;
        assert_eq!(answer.code, 403, "{path}: {answer:?}");
    }
    assert_eq!(ask(&world, &two, "GET /imports/shop/80", "").await.code, 426, "no upgrade was asked for");
    assert_eq!(ask(&world, &two, "POST /imports", "{").await.code, 400);
    // A node agent's certificate, and none at all.
    let token = world.join_token("edge2", 1, "2999-01-01T00:00:00Z").await;
    let node = world.join_node(&token, "n1").await;
    let mut stream = connect(&world, &node).await.unwrap();
    let mut nothing = Vec::new();
    let _ = stream.write_all(b"POST /imports HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}").await;
    let _ = timeout(LONG, stream.read_to_end(&mut nothing)).await.unwrap();
    assert!(nothing.is_empty(), "{}", String::from_utf8_lossy(&nothing));
    let socket = TcpStream::connect(world.hub.addr()).await.unwrap();
    let stranger = TlsConnector::from(world.tls(&[tls::IMPORTS_ALPN])).connect("localhost".try_into().unwrap(), socket);
    if let Ok(mut stream) = stranger.await {
        let _ = stream.write_all(b"POST /imports HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}").await;
        let read = timeout(LONG, stream.read_to_end(&mut nothing)).await.unwrap();
        assert!(read.is_err() && nothing.is_empty(), "{read:?}");
    }
    // An agent that is deleted at the hub loses what it has, and gets nothing more.
    let (answer, mut open_one) = open(&world, &two, "shop").await;
    assert_eq!(answer.code, 101);
    let deleted = world.call(&world.admin, "DELETE", &format!("{API}/agents/edge2.a1"), &Value::Null).await;
    assert_eq!(deleted.code, 200, "{deleted:?}");
    let mut rest = [0; 1];
    let ended = timeout(LONG, open_one.read(&mut rest)).await.unwrap();
    assert!(!matches!(ended, Ok(1..)), "{ended:?}");
    let mut stream = connect(&world, &two).await.unwrap();
    let _ = stream.write_all(b"POST /imports HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}").await;
    let _ = timeout(LONG, stream.read_to_end(&mut nothing)).await.unwrap();
    assert!(nothing.is_empty(), "{}", String::from_utf8_lossy(&nothing));
}

/// As many as pods open, up to a bound of their own: people and agents come in all the same.
#[tokio::test(flavor = "multi_thread")]
async fn s77_what_clusters_import_takes_nobodys_places() {
    const MOST: usize = 6;
    let (world, _one, _three, two) = three_with(|config| config.limits.connections_per_address = MOST).await;
    export(&world, "edge1", &["*"]).await;
    eventually("the export", async || open(&world, &two, "shop").await.0.code == 101).await;
    let metric = |name: &str| world.metric(name);
    eventually("no place is taken", async || metric("moorline_hub_connections_open") == 0.0).await;
    let mut held = Vec::new();
    for _ in 0..MOST {
        let (answer, stream) = open(&world, &two, "shop").await;
        assert_eq!(answer.code, 101);
        held.push(stream);
    }
    let refused = metric("moorline_hub_connections_refused_total");
    let mut more = connect(&world, &two).await.unwrap();
    let _ = more.write_all(b"GET /imports/shop/80 HTTP/1.1\r\nHost: x\r\n\r\n").await; // it may be closed already
    let mut nothing = Vec::new();
    let _ = timeout(LONG, more.read_to_end(&mut nothing)).await.unwrap();
    assert!(nothing.is_empty(), "{}", String::from_utf8_lossy(&nothing));
    assert_eq!(metric("moorline_hub_connections_refused_total") - refused, 1.0);
    assert_eq!(metric("moorline_hub_connections_upgraded"), 6.0);
    assert_eq!(world.get(&world.admin, &format!("{API}/clusters")).await.code, 200, "people come in");
    assert!(echoes(held.last_mut().unwrap()).await);
    held.clear();
    eventually("their places are free", async || open(&world, &two, "shop").await.0.code == 101).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exports_and_imports_that_say_nothing_sound_are_refused() {
    let world = World::new().await;
    let good = json!({ "cluster": "edge1", "namespace": "shop", "service": "web", "ports": [{ "port": 80 }] });
    let with = |key: &str, value: Value| {
        let mut spec = good.clone();
        spec[key] = value;
        spec
    };
    for (spec, field) in [
        (with("cluster", json!("Edge 1")), "spec.cluster"),
        (with("service", json!("a.b")), "spec.service"),
        (with("ports", json!([])), "spec.ports"),
        (with("ports", json!([{ "port": 80 }, { "port": 80 }])), "spec.ports"),
        (with("ports", json!([{ "port": 53, "protocol": "UDP" }, { "port": 54, "name": "udp-53" }])), "spec.ports"),
        (with("ports", json!([{ "port": 80, "protocol": "SCTP" }])), "spec.ports"),
        (with("ports", json!([{ "port": 80, "name": "No Name" }])), "spec.ports"),
        (with("ports", json!([{ "port": 0 }])), "spec.ports"),
        (with("importers", json!(["a b"])), "spec.importers"),
        (with("sessionAffinity", json!("Sometimes")), "spec.sessionAffinity"),
    ] {
        let object = json!({ "apiVersion": "moorline.dev/v1alpha1", "kind": "ServiceExport", "metadata": { "name": "x" }, "spec": spec });
        let answer = world.call(&world.admin, "POST", &format!("{API}/serviceexports"), &object).await;
        assert!(answer.code == 422 && answer.body.contains(field), "{field}: {answer:?}");
    }
    let someone = world.user("anna", &["edge1"]).await;
    assert_eq!(world.get(&someone, &format!("{API}/serviceexports")).await.code, 403);
}
