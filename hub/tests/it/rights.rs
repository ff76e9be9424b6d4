//! Rights that end, and what is told of those who have none.

use crate::world::{API, REVOKED, World, eventually, read_answer, within};
use moorline_hub::OnFailure;
use moorline_link::Carrier;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        unix::pipe::{self, Receiver},
    },
    time::timeout,
};
use tokio_rustls::client::TlsStream;

const SOON: Duration = Duration::from_secs(20);

/// A stream that goes on until somebody ends it: an answer without an end, or an upgraded connection.
pub async fn open(world: &World, token: &str, path: &str, more: &str) -> TlsStream<TcpStream> {
    let mut stream = world.connect("localhost", &[b"http/1.1"]).await;
    let ask = format!(
        "GET /k8s/clusters/edge1{path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n{more}\r\n"
    );
    stream.write_all(ask.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    let mut all = Vec::new();
    let begun = |all: &[u8]| {
        let text = String::from_utf8_lossy(all).into_owned();
        text.contains("part") || (text.starts_with("HTTP/1.1 101 ") && text.ends_with("\r\n\r\n"))
    };
    while !begun(&all) {
        assert_ne!(timeout(SOON, stream.read_buf(&mut all)).await.unwrap().unwrap(), 0, "{path}");
    }
    stream
}

/// Cut, within the bound, and not as if it were whole: without TLS's goodbye, and so without a WebSocket's or a last chunk.
pub async fn ended(mut stream: TlsStream<TcpStream>, what: &str) {
    let mut rest = Vec::new();
    let end = timeout(REVOKED, stream.read_to_end(&mut rest)).await;
    let end = end.unwrap_or_else(|_| panic!("{what}: still open after {REVOKED:?}"));
    assert!(end.is_err() && !rest.ends_with(b"0\r\n\r\n"), "{what}: ended as if it were whole");
}

pub async fn echoes(stream: &mut TlsStream<TcpStream>) {
    stream.write_all(b"hello").await.unwrap();
    stream.flush().await.unwrap();
    let mut echo = [0; 5];
    timeout(SOON, stream.read_exact(&mut echo)).await.unwrap().unwrap();
    assert_eq!(&echo, b"hello");
}

pub const EXEC: &str = "/api/v1/namespaces/a/pods/b/exec?command=sh";
pub const PORT_FORWARD: &str = "/api/v1/namespaces/a/pods/b/portforward?ports=80";
pub const WATCH: &str = "/api/v1/pods?watch=1&x=endless";
pub const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn s51_a_withdrawn_grant_cuts_what_is_open_and_nothing_else() {
    let world = World::new().await;
    let agent = world.connected("edge1", Carrier::Tls).await;
    let (anna, ben) = (world.user("anna", &["edge1"]).await, world.user("ben", &["edge1"]).await);
    let (of_anna, shell) = (open(&world, &anna, WATCH, "").await, open(&world, &anna, EXEC, UPGRADE).await);
    let mut of_ben = open(&world, &ben, EXEC, UPGRADE).await;
    let mut of_admin = open(&world, &world.admin, EXEC, UPGRADE).await;
    let gone = world.call(&world.admin, "DELETE", &format!("{API}/clustergrants/grant-anna"), &Value::Null).await;
    assert_eq!(gone.code, 200, "{gone:?}");
    tokio::join!(ended(of_anna, "a watch"), ended(shell, "a shell"));
    assert_eq!(world.get(&anna, "/k8s/clusters/edge1/api").await.code, 403);
    echoes(&mut of_ben).await;
    // A grant that gives more, or loses another cluster, ends nothing. One that loses this cluster does.
    let grant = format!("{API}/clustergrants/grant-ben");
    world.patch(&grant, &json!({ "spec": { "clusters": ["edge1", "edge2"], "asGroups": ["ops"] } })).await;
    world.patch(&grant, &json!({ "spec": { "clusters": ["edge1"] } })).await;
    eventually("the new group", async || {
        world.get(&ben, "/k8s/clusters/edge1/api").await;
        agent.last().principal.groups.contains(&"ops".to_owned())
    })
    .await;
    echoes(&mut of_ben).await;
    let with_ops = open(&world, &ben, EXEC, UPGRADE).await;
    world.patch(&grant, &json!({ "spec": { "asGroups": [] } })).await;
    ended(with_ops, "opened with a group that the grant does not give any more").await;
    echoes(&mut of_ben).await;
    world.patch(&grant, &json!({ "spec": { "clusters": ["edge2"] } })).await;
    ended(of_ben, "of a grant that was changed").await;
    echoes(&mut of_admin).await;
}

/// However a right goes, every kind of stream that it opened is cut within the bound, and none is opened anew.
#[tokio::test(flavor = "multi_thread")]
async fn s51_s54_whichever_way_a_right_goes_watches_shells_and_port_forwards_are_cut() {
    let world = World::new().await;
    let _agent = world.connected("edge1", Carrier::Tls).await;
    let ways = ["user disabled", "user deleted", "token deleted", "grant deleted", "left the group", "group deleted"];
    for (n, way) in ways.into_iter().enumerate() {
        let (user, group) = (format!("u{n}"), format!("crew-{n}"));
        let groups = if way == "left the group" { vec![group.as_str()] } else { vec![] };
        world.create("users", "User", &user, json!({ "groups": groups })).await;
        world
            .create(
                "groups",
                "Group",
                &group,
                json!({ "users": if way == "group deleted" { vec![&user] } else { vec![] } }),
            )
            .await;
        let grant = if way.contains("group") { json!({ "groups": [group] }) } else { json!({ "users": [user] }) };
        let grant = [grant, json!({ "clusters": ["edge1"] })];
        let grant: Value = grant.iter().flat_map(|part| part.as_object().unwrap().clone()).collect();
        world.create("clustergrants", "ClusterGrant", &user, grant).await;
        let made =
            world.create("tokens", "Token", "", json!({ "user": user, "expires": "2999-01-01T00:00:00Z" })).await;
        let text = |at: &str| made.pointer(at).unwrap().as_str().unwrap().to_owned();
        let (token, id) = (text("/status/token"), text("/metadata/name"));
        eventually("grant", async || world.get(&token, "/k8s/clusters/edge1/api").await.code == 200).await;
        let watch = open(&world, &token, WATCH, "").await;
        let (mut shell, mut forward) =
            (open(&world, &token, EXEC, UPGRADE).await, open(&world, &token, PORT_FORWARD, UPGRADE).await);
        echoes(&mut shell).await;
        echoes(&mut forward).await;
        let delete = async |what: String| {
            let gone = world.call(&world.admin, "DELETE", &format!("{API}/{what}"), &Value::Null).await;
            assert_eq!(gone.code, 200, "{way}: {gone:?}");
        };
        match way {
            "user disabled" => {
                world.patch(&format!("{API}/users/{user}"), &json!({ "spec": { "disabled": true } })).await
            }
            "left the group" => world.patch(&format!("{API}/users/{user}"), &json!({ "spec": { "groups": [] } })).await,
            "user deleted" => delete(format!("users/{user}")).await,
            "token deleted" => delete(format!("tokens/{id}")).await,
            "grant deleted" => delete(format!("clustergrants/{user}")).await,
            _ => delete(format!("groups/{group}")).await,
        }
        let named = |what: &str| format!("{way}: {what}");
        let (watched, shelled, forwarded) = (named("a watch"), named("a shell"), named("a port-forward"));
        tokio::join!(ended(watch, &watched), ended(shell, &shelled), ended(forward, &forwarded));
        let code = world.get(&token, "/k8s/clusters/edge1/api").await.code;
        assert!(matches!(code, 401 | 403), "{way}: {code}");
    }
}

/// A reader that has stopped: a shell is cut at once; of an answer it gets what lay in the buffers, and then an error.
#[tokio::test(flavor = "multi_thread")]
async fn s51_a_stalled_reader_gets_nothing_more() {
    let world = World::new().await;
    let _agent = world.connected("edge1", Carrier::Tls).await;
    let in_flight = || world.metric("moorline_proxy_requests_in_flight");
    for (user, path, more) in [("ben", EXEC, UPGRADE), ("anna", "/large", "")] {
        let token = world.user(user, &["edge1"]).await;
        let ask = format!(
            "GET /k8s/clusters/edge1{path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n{more}\r\n"
        );
        let (mut read, mut write) = tokio::io::split(world.connect("localhost", &[b"http/1.1"]).await);
        write.write_all(ask.as_bytes()).await.unwrap();
        write.flush().await.unwrap();
        // What is cut is an answer that has begun: before its head a client gets a refusal instead.
        let mut begun = [0; 12];
        timeout(SOON, read.read_exact(&mut begun)).await.expect("an answer in time").unwrap();
        assert_eq!(&begun, if more.is_empty() { b"HTTP/1.1 200" } else { b"HTTP/1.1 101" });
        // An echo that nobody reads fills every buffer up to this one.
        let chunk = [b'x'; 64 << 10];
        while !more.is_empty() && timeout(Duration::from_millis(500), write.write_all(&chunk)).await.is_ok() {}
        let cut = world.metric("moorline_hub_streams_revoked_total");
        world.patch(&format!("{API}/clustergrants/grant-{user}"), &json!({ "spec": { "clusters": [] } })).await;
        eventually("withdrawn", async || world.get(&token, "/k8s/clusters/edge1/api").await.code == 403).await;
        if more.is_empty() {
            let mut got = Vec::new();
            let _ = timeout(SOON, read.read_to_end(&mut got)).await.expect("an end in time");
            assert!(got.len() < crate::bodies::LARGE, "{} bytes", got.len());
        }
        within(REVOKED, "over", async || in_flight() == 0.0).await;
        assert!(world.metric("moorline_hub_streams_revoked_total") > cut);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s22_a_cluster_outside_the_grant_is_refused_and_the_connection_goes_on() {
    let world = World::new().await;
    let inside = world.connected("edge1", Carrier::Tls).await;
    let outside = world.connected("edge2", Carrier::Tls).await;
    let token = world.user("anna", &["edge1"]).await;
    let mut stream = world.connect("localhost", &[b"http/1.1"]).await;
    for (cluster, code) in [("edge1", 200), ("edge2", 403), ("edge1", 200)] {
        let ask = format!(
            "GET /k8s/clusters/{cluster}/api/v1/pods HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n"
        );
        stream.write_all(ask.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        assert_eq!(read_answer(&mut stream).await.code, code, "{cluster}");
    }
    assert_eq!(outside.lines(), Vec::<String>::new());
    assert_eq!(inside.lines().iter().filter(|line| line.ends_with("/pods")).count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn s47_s48_the_audit_log_has_the_sockets_address_and_says_create() {
    let world = World::new().await;
    let agent = world.connected("edge1", Carrier::Tls).await;
    let token = world.user("anna", &["edge1"]).await;
    let auth = format!("Authorization: Bearer {token}");
    let claims = [
        auth.as_str(),
        "X-Forwarded-For: 203.0.113.9",
        "X-Forwarded-Host: other.example",
        "X-Forwarded-Proto: http",
        "X-Real-IP: 203.0.113.9",
        "Forwarded: for=203.0.113.9",
    ];
    assert_eq!(world.send("GET", "/k8s/clusters/edge1/api/v1/nodes", &claims, "").await.code, 200);
    let seen = agent.last();
    assert!(seen.headers.iter().all(|(_, value)| !value.contains("203.0.113.9") && value != "other.example"));
    for path in [EXEC, "/api/v1/nodes/n/proxy/run/a/b/c/exec"] {
        drop(open(&world, &token, path, UPGRADE).await);
    }
    let proxied_to_the_side = "PROXY TCP4 203.0.113.9 127.0.0.1 1 2\r\n";
    let mut plain = TcpStream::connect(world.hub.addr()).await.unwrap();
    plain.write_all(proxied_to_the_side.as_bytes()).await.unwrap();
    let mut refusal = Vec::new();
    let _ = timeout(SOON, plain.read_to_end(&mut refusal)).await.expect("PROXY protocol is not spoken here");
    let log = world.audit_at_end().await;
    assert!(!log.contains("203.0.113.9"), "{log}");
    let events: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |part: &str| events.iter().find(|e| e["requestURI"].as_str().unwrap().contains(part)).unwrap();
    assert_eq!(of("/nodes")["sourceIPs"], json!(["127.0.0.1"]));
    for part in ["pods/b/exec", "nodes/n/proxy"] {
        assert_eq!((&of(part)["verb"], &of(part)["user"]["username"]), (&json!("create"), &json!("anna")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_tried_in_vain_is_counted_and_stands_in_the_audit_log() {
    let world = World::new().await;
    let agent = world.connected("edge1", Carrier::Tls).await;
    let token = world.user("anna", &["edge1"]).await;
    world.cluster("edge2").await;
    let before = agent.lines().len();
    let auth = format!("Authorization: Bearer {token}");
    let admin = format!("Authorization: Bearer {}", world.admin);
    let tries: [(&str, &[&str], u16, &str); 6] = [
        ("/k8s/clusters/edge2/api/v1/secrets", &[&auth], 403, "not_granted"),
        ("/k8s/clusters/nowhere/api/v1/secrets", &[&admin], 404, "unknown_cluster"),
        ("/k8s/clusters/edge1/api/v1/masters", &[&auth, "Impersonate-Group: a"], 400, "impersonation"),
        ("/k8s/clusters/edge1/api", &[], 401, "unauthenticated"),
        ("/k8s/clusters//api", &[&auth], 400, "path"),
        ("/k8s/clusters/edge1/api/v1/named", &[&auth, "Connection: Authorization"], 400, ""),
    ];
    for (path, headers, code, reason) in tries {
        let series = format!("moorline_hub_refusals_total{{reason=\"{reason}\"}}");
        let counted = world.metric(&series);
        let answer = world.send("GET", path, headers, "").await;
        assert!(answer.code == code || (code == 400 && answer.code == 403), "{path}: {answer:?}");
        if !reason.is_empty() {
            assert_eq!(world.metric(&series), counted + 1.0, "{path}");
        }
    }
    assert_eq!(agent.lines().len(), before, "nothing of it arrived");
    let log = world.audit_at_end().await;
    for (path, user) in [("secrets", "anna"), ("secrets", "admin"), ("masters", "anna"), ("named", "anna")] {
        let line = log.lines().find(|line| line.contains(path) && line.contains(&format!("\"username\":\"{user}\"")));
        let line = line.unwrap_or_else(|| panic!("{path} by {user} is not in {log}"));
        assert!(
            line.contains("refused")
                || line.contains("not_granted")
                || line.contains("unknown_cluster")
                || line.contains("impersonation"),
            "{line}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s51_a_new_password_ends_what_the_old_one_opened() {
    let world = World::new().await;
    let _agent = world.connected("edge1", Carrier::Tls).await;
    let key = world.user("anna", &["edge1"]).await;
    let set = async |token: &str, user: &str, password: &str| {
        let path = format!("{API}/users/{user}/password");
        assert_eq!(world.call(token, "PUT", &path, &json!({ "password": password })).await.code, 200);
    };
    let login = async |user: &str, password: &str| {
        let body = json!({ "username": user, "password": password }).to_string();
        world.send("POST", "/auth/login", &[], &body).await.json()["token"].as_str().unwrap().to_owned()
    };
    set(&world.admin, "anna", "the-old-one").await;
    let of_anna = login("anna", "the-old-one").await;
    let shell = open(&world, &of_anna, EXEC, UPGRADE).await;
    set(&world.admin, "anna", "the-new-one").await;
    ended(shell, "a shell").await;
    assert_eq!(world.get(&of_anna, "/auth/whoami").await.code, 401);
    assert_eq!(world.get(&key, "/auth/whoami").await.code, 200, "a token that was made as such stays");
    // Who changes the password stays logged in.
    set(&world.admin, "admin", "first-of-admin").await;
    let (mine, other) = (login("admin", "first-of-admin").await, login("admin", "first-of-admin").await);
    set(&mine, "admin", "second-of-admin").await;
    assert_eq!(world.get(&mine, "/auth/whoami").await.code, 200);
    assert_eq!(world.get(&other, "/auth/whoami").await.code, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn s02_as_somebody_else_nothing_is_done_in_the_hubs_own_api() {
    let world = World::new().await;
    world.cluster("edge1").await;
    let auth = format!("Authorization: Bearer {}", world.admin);
    let path = format!("{API}/clusters/edge1");
    for wish in ["Impersonate-User: bob", "Impersonate-Group: a", "Impersonate_User: bob", "Impersonate-Extra-a: b"] {
        for (method, path) in [("DELETE", path.as_str()), ("GET", path.as_str()), ("GET", "/auth/whoami")] {
            assert_eq!(world.send(method, path, &[&auth, wish], "").await.code, 403, "{method} {path} {wish}");
        }
    }
    assert_eq!(world.get(&world.admin, &path).await.code, 200, "it is still there");
}

#[tokio::test(flavor = "multi_thread")]
async fn s71_whatever_clients_send_makes_no_series() {
    let world = World::new().await;
    let _agent = world.connected("edge1", Carrier::Tls).await;
    let token = world.user("anna", &["edge1"]).await;
    let auth = format!("Authorization: Bearer {token}");
    let send = async |n: usize| {
        let agent = format!("User-Agent: client-{n}");
        for path in
            [format!("/k8s/clusters/edge1/apis/g{n}/v1/r{n}"), format!("/p{n}"), format!("/k8s/clusters/c{n}/api")]
        {
            world.send(&format!("VERB{n}"), &path, &[&auth, &agent], "").await;
            world.send("GET", &path, &[&auth, &agent], "").await;
            world.send("GET", &path, &[&format!("Authorization: Bearer mlt_{n}")], "").await;
        }
        let login = json!({ "username": format!("u{n}"), "password": "x" }).to_string();
        world.send("POST", "/auth/login", &[], &login).await;
        world.send("GET", "/livez", &[&format!("Impersonate-User: {n}")], "").await;
    };
    let series = || world.registry.gather().iter().map(|family| family.get_metric().len()).sum::<usize>();
    send(0).await;
    let before = series();
    let clients = std::env::var("MOORLINE_S71").map_or(12, |many| many.parse().unwrap());
    for n in 1..=clients {
        send(n).await;
    }
    // A word of theirs in one label would be a series for each. What the hub does meanwhile has fixed labels.
    assert!(series() < before + 12, "{before} became {}", series());
}

/// A hub whose audit log is a pipe: without its reader every write is refused, as by a full disk.
async fn piped(on_failure: OnFailure) -> (World, Receiver) {
    let mut reader = None;
    let world = World::with(|config| {
        config.audit_on_failure = on_failure;
        std::fs::create_dir_all(&config.data_dir).unwrap();
        let path = config.data_dir.join("audit.log");
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        reader = Some(pipe::OpenOptions::new().open_receiver(&path).unwrap());
    })
    .await;
    (world, reader.unwrap())
}

/// The log up to a record that has `mark` in it.
async fn read_until(reader: &mut Receiver, mark: &str) -> String {
    let mut log = Vec::new();
    while !String::from_utf8_lossy(&log).contains(mark) {
        assert_ne!(timeout(SOON, reader.read_buf(&mut log)).await.expect("a record in time").unwrap(), 0);
    }
    String::from_utf8_lossy(&log).into_owned()
}

/// Where the operator chose that calls go on without a log they do, and what had room to wait is written afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn s70_calls_go_on_by_policy_and_their_records_come_later() {
    const CALLS: usize = 20;
    let (world, reader) = piped(OnFailure::Continue).await;
    let path = world.dir.path().join("hub/audit.log");
    let agent = world.connected("edge1", Carrier::Tls).await;
    let token = world.user("anna", &["edge1"]).await;
    drop(reader);
    let mark = |n: usize| format!("/api/v1/without-a-log-{n}.");
    for n in 0..CALLS {
        assert_eq!(world.get(&token, &format!("/k8s/clusters/edge1{}", mark(n))).await.code, 200, "{n}");
    }
    assert_eq!(agent.lines().iter().filter(|line| line.contains("without-a-log")).count(), CALLS);
    assert_eq!(world.metric("moorline_proxy_audit_refusals_total"), 0.0);
    let mut reader = pipe::OpenOptions::new().open_receiver(&path).unwrap();
    let log = read_until(&mut reader, &mark(CALLS - 1)).await;
    for n in 0..CALLS {
        assert_eq!(log.matches(&mark(n)).count(), 1, "{n}: {log}");
    }
}

/// F49 and S70: an audit log that cannot be written.
#[tokio::test(flavor = "multi_thread")]
async fn f49_s70_without_an_audit_log_nothing_passes_and_nothing_is_lost() {
    let (world, mut reader) = piped(OnFailure::Refuse).await;
    let path = world.dir.path().join("hub/audit.log");
    let agent = world.connected("edge1", Carrier::Tls).await;
    let token = world.user("anna", &["edge1"]).await;
    drop(reader);
    // One call may pass before the log is known to fail; its record waits.
    eventually("refused", async || world.get(&token, "/k8s/clusters/edge1/api/v1/last").await.code == 503).await;
    let reached = agent.lines().len();
    for path in ["/k8s/clusters/edge1/api", "/k8s/clusters/edge2/api"] {
        let answer = world.get(&token, path).await;
        assert_eq!((answer.code, answer.header("retry-after").is_some()), (503, true), "{path}: {answer:?}");
    }
    let made =
        json!({ "apiVersion": "moorline.dev/v1alpha1", "kind": "Cluster", "metadata": { "name": "c" }, "spec": {} });
    assert_eq!(world.call(&world.admin, "POST", &format!("{API}/clusters"), &made).await.code, 503);
    assert_eq!(world.send("POST", "/auth/login", &[], "{}").await.code, 503);
    assert_eq!(world.join("mlj_x", "a", None).await.err().unwrap().code, 503);
    assert_eq!(agent.lines().len(), reached, "nothing passed unrecorded");
    assert!(world.metric("moorline_proxy_audit_refusals_total") > 0.0);
    assert!(world.metric("moorline_hub_refusals_total{reason=\"audit_full\"}") > 0.0);
    // Reads of the hub's own objects and health are not recorded, and go on.
    assert_eq!(world.get(&world.admin, &format!("{API}/clusters")).await.code, 200);
    reader = pipe::OpenOptions::new().open_receiver(&path).unwrap();
    eventually("admitted again", async || world.get(&token, "/k8s/clusters/edge1/api/v1/again").await.code == 200)
        .await;
    let log = read_until(&mut reader, "/api/v1/again").await;
    assert_eq!(log.matches("/api/v1/last").count(), agent.lines().iter().filter(|l| l.ends_with("/last")).count());
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_names_its_checks() {
    let world = World::new().await;
    let mut stream = TcpStream::connect(world.hub.ops_addr()).await.unwrap();
    stream.write_all(b"GET /readyz?verbose HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let answer = read_answer(&mut stream).await;
    assert_eq!(answer.code, 200);
    for check in ["store", "ca", "listener", "changes", "draining"] {
        assert!(answer.body.contains(&format!("[+]{check} ok")), "{answer:?}");
    }
}

/// Nobody becomes the administrator by being called so, or by editing who they are; and the administrator can log in after it.
#[tokio::test(flavor = "multi_thread")]
async fn s55_nobody_takes_the_administrators_name_or_place() {
    let world = World::new().await;
    let anna = world.user("anna", &[]).await;
    let user = |name: &str, spec: Value| json!({ "apiVersion": "moorline.dev/v1alpha1", "kind": "User", "metadata": { "name": name }, "spec": spec });
    let users = format!("{API}/users");
    // Whoever makes users cannot make that one again, and whoever is one cannot make any.
    assert_eq!(world.call(&world.admin, "POST", &users, &user("admin", json!({}))).await.code, 409);
    for name in ["admin", "other"] {
        let body = user(name, json!({}));
        assert_eq!(world.call(&anna, "POST", &users, &body).await.code, 403, "{name}");
    }
    let merge = async |token: &str, path: &str, patch: Value| {
        let patch = patch.to_string();
        let ask = format!(
            "PATCH {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nContent-Type: application/merge-patch+json\r\nContent-Length: {}\r\n\r\n{patch}",
            patch.len()
        );
        world.raw(ask.as_bytes()).await.code
    };
    for (path, patch) in [
        ("admin", json!({ "spec": { "disabled": true } })),
        ("anna", json!({ "spec": { "groups": ["moorline:admins"] } })),
        ("anna", json!({ "metadata": { "name": "admin" } })),
    ] {
        assert_eq!(merge(&anna, &format!("{users}/{path}"), patch).await, 403, "{path}");
    }
    let password = json!({ "password": "a new password for it" });
    assert_eq!(world.call(&anna, "PUT", &format!("{users}/admin/password"), &password).await.code, 403);
    assert_eq!(world.call(&anna, "DELETE", &format!("{users}/admin"), &json!(null)).await.code, 403);
    let token = json!({ "apiVersion": "moorline.dev/v1alpha1", "kind": "Token", "metadata": {}, "spec": { "user": "admin", "expires": "2999-01-01T00:00:00Z" } });
    assert_eq!(world.call(&anna, "POST", &format!("{API}/tokens"), &token).await.code, 403);
    // Who may edit users cannot give one the administrator's name.
    let admin = world.admin.clone();
    assert_eq!(merge(&admin, &format!("{users}/anna"), json!({ "metadata": { "name": "admin" } })).await, 400);
    let password = std::fs::read_to_string(world.dir.path().join("hub/admin.password")).unwrap();
    let login = json!({ "username": "admin", "password": password.trim() }).to_string();
    let answer = world.send("POST", "/auth/login", &[], &login).await;
    assert_eq!(answer.code, 200, "{answer:?}");
}

/// S66: where nothing can be recorded, or what was recorded cannot be read, nothing starts; half a last line is no reason.
#[tokio::test(flavor = "multi_thread")]
async fn s66_a_log_that_cannot_be_gone_on_with_stops_the_start_and_a_half_line_does_not() {
    let start = async |make: &dyn Fn(&std::path::Path)| {
        let dir = tempfile::tempdir().unwrap();
        let config = crate::world::config(&dir);
        std::fs::create_dir_all(&config.data_dir).unwrap();
        make(&config.data_dir.join("audit.log"));
        let started = moorline_hub::Hub::start(config, &prometheus::Registry::new()).await;
        let log = std::fs::read(dir.path().join("hub/audit.log"));
        match started {
            Ok(hub) => {
                hub.shutdown().await;
                Ok(log.unwrap())
            }
            Err(error) => Err(error.to_string()),
        }
    };
    let folder = start(&|log| std::fs::create_dir(log).unwrap()).await;
    assert!(folder.as_ref().is_err_and(|why| why.contains("audit.log")), "{folder:?}");
    let nowhere = start(&|log| std::os::unix::fs::symlink("/nowhere/audit.log", log).unwrap()).await;
    assert!(nowhere.as_ref().is_err_and(|why| why.contains("audit.log")), "{nowhere:?}");
    assert!(start(&|log| std::fs::write(log, "").unwrap()).await.is_ok());
    let half = b"{\"auditID\":\"1\",\"seq\":1,\"pre";
    let kept =
        start(&|log| std::fs::write(log, half).unwrap()).await.expect("what was cut by a crash keeps nobody out");
    assert!(kept.starts_with(&[&half[..], b"\n"].concat()), "{}", String::from_utf8_lossy(&kept));
}
