//! kubectl's path, from the front door to what the agent is given.

use crate::world::{API, LONG, REVOKED, World, eventually, read_answer};
use moorline_link::Carrier;
use moorline_proto::code::CloseCode;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_request_reaches_the_cluster_with_the_callers_name_alone() {
    let world = World::new().await;
    for carrier in [Carrier::Tls, Carrier::Quic, Carrier::WebSocket] {
        let cluster = format!("edge-{carrier}");
        let agent = world.connected(&cluster, carrier).await;
        let token = world.user(&format!("anna-{carrier}"), &[&cluster]).await;
        let path = format!("/k8s/clusters/{cluster}/api/v1/pods?limit=5&a=%2F");
        let forged = [
            format!("Authorization: Bearer {token}"),
            "X-Remote-User: admin".to_owned(),
            "X-Remote-Group: system:masters".to_owned(),
            "X-Forwarded-User: admin".to_owned(),
            "X-Forwarded-For: 1.2.3.4".to_owned(),
            "Cookie: a=b".to_owned(),
            "X-Keep: yes".to_owned(),
        ];
        let forged: Vec<&str> = forged.iter().map(String::as_str).collect();
        let answer = world.send("GET", &path, &forged, "").await;
        assert_eq!((answer.code, answer.body.contains("up: /api/v1/pods?limit=5&a=%2F")), (200, true), "{answer:?}");
        let seen = agent.last();
        assert_eq!(seen.principal.user, format!("anna-{carrier}"));
        assert_eq!(seen.principal.groups, ["dev"]);
        for (name, value) in &seen.headers {
            let bad = ["authorization", "cookie", "x-remote", "x-forwarded", "impersonate"];
            assert!(!bad.iter().any(|b| name.starts_with(b)) && !value.contains("mlt_"), "s05: {name}: {value}");
        }
        assert!(seen.headers.contains(&("x-keep".to_owned(), "yes".to_owned())));
        let made = json!({ "kind": "Pod" });
        assert_eq!(world.call(&token, "POST", &path, &made).await.code, 200);
        assert_eq!(agent.last().body, made.to_string());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s01_s02_s03_s06_nobody_smuggles_an_identity() {
    let world = World::new().await;
    let agent = world.connected("edge1", Carrier::Tls).await;
    let token = world.user("anna", &["edge1"]).await;
    let before = agent.lines().len();
    let ask = async |headers: &[&str]| {
        let mut all = vec![format!("Authorization: Bearer {token}")];
        all.extend(headers.iter().map(|h| (*h).to_owned()));
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        world.send("GET", "/k8s/clusters/edge1/api", &all, "").await.code
    };
    assert_eq!(ask(&["Connection: Impersonate-User, Impersonate-Group, Authorization"]).await, 400, "s01");
    assert_eq!(ask(&["Impersonate-Group: system:masters"]).await, 403, "s03");
    let masters = ["Impersonate-User: bob", "Impersonate-Group: system:masters"];
    assert_eq!(ask(&masters).await, 403, "s03");
    assert_eq!(ask(&["Impersonate_User: admin"]).await, 403, "s06");
    assert_eq!(ask(&["Impersonate-User : admin"]).await, 400, "s06");
    assert_eq!(agent.lines().len(), before, "nothing of it arrived");
    // A lawful wish is handed to the edge as a wish; the caller stays who they are.
    assert_eq!(ask(&["Impersonate-User: bob"]).await, 200);
    let principal = agent.last().principal;
    assert_eq!((principal.user.as_str(), principal.act_as.unwrap().user.as_str()), ("anna", "bob"));
}

#[tokio::test(flavor = "multi_thread")]
async fn s09_s13_only_the_authorization_header_lets_anybody_in() {
    let world = World::new().await;
    let agent = world.connected("edge1", Carrier::Tls).await;
    let token = world.user("anna", &["edge1"]).await;
    let before = agent.lines().len();
    let none = world.send("GET", "/k8s/clusters/edge1/api", &[], "").await;
    assert_eq!((none.code, none.header("www-authenticate")), (401, Some("Bearer")));
    let base = "/k8s/clusters/edge1/api";
    for path in [format!("{base}?token={token}"), format!("{base}?access_token={token}"), format!("{base}/{token}")] {
        let answer = world.send("GET", &path, &[], "").await;
        assert_eq!((answer.code, &answer.body), (401, &none.body));
        assert!(!answer.body.contains(&token));
    }
    for header in ["Authorization: Basic YTpi", "Authorization: Bearer", "Authorization: Bearer mlt_aaaaaaaaaaaa.x"] {
        assert_eq!(world.send("GET", base, &[header], "").await.body, none.body, "{header}");
    }
    let twice = format!("Authorization: Bearer {token}");
    assert_ne!(world.send("GET", base, &[&twice, &twice], "").await.code, 200);
    // A body that never ends does not hold the answer back.
    let mut stream = world.connect("localhost", &[b"http/1.1"]).await;
    let head = format!("POST {base} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\nsome");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    assert_eq!(read_answer(&mut stream).await.code, 401);
    assert_eq!(agent.lines().len(), before, "nothing of it arrived");
}

#[tokio::test(flavor = "multi_thread")]
async fn s13_a_token_in_a_query_is_on_no_record_whether_the_call_is_made_or_refused() {
    let world = World::new().await;
    let _agent = world.connected("edge1", Carrier::Tls).await;
    world.cluster("edge2").await;
    let token = world.user("anna", &["edge1"]).await;
    for (cluster, code) in [("edge1", 200), ("edge2", 403)] {
        let path = format!("/k8s/clusters/{cluster}/api/v1/pods?limit=7&access_token={token}");
        assert_eq!(world.get(&token, &path).await.code, code);
    }
    let log = world.audit_at_end().await;
    assert_eq!(log.matches("\"/api/v1/pods?limit=7&access_token=***\"").count(), 2, "{log}");
    assert!(!log.contains(&token), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_clusters_are_told_to_those_alone_who_may_know() {
    let world = World::new().await;
    world.cluster("edge1").await;
    world.cluster("edge2").await;
    let anna = world.user("anna", &["edge1"]).await;
    assert_eq!(world.get(&world.admin, "/k8s/clusters/nowhere/api").await.code, 404);
    let away = world.get(&world.admin, "/k8s/clusters/edge1/api").await;
    assert_eq!(away.code, 503, "{away:?}");
    assert!(away.header("retry-after").is_some() && away.json()["details"]["retryAfterSeconds"].is_number());
    let (unknown, foreign) =
        (world.get(&anna, "/k8s/clusters/nowhere/api").await, world.get(&anna, "/k8s/clusters/edge2/api").await);
    assert_eq!((unknown.code, foreign.code), (403, 403));
    assert_eq!(unknown.body.replace("nowhere", "edge2"), foreign.body);
    assert_eq!(world.get(&anna, "/k8s/clusters/edge1/api").await.code, 503);
    // The hub's own API shows the same picture.
    let list = world.get(&anna, &format!("{API}/clusters")).await.json();
    let names: Vec<&str> =
        list["items"].as_array().unwrap().iter().filter_map(|c| c["metadata"]["name"].as_str()).collect();
    assert_eq!(names, ["edge1"]);
    assert_eq!(world.get(&anna, &format!("{API}/users/admin")).await.code, 403);
    let eve = json!({ "apiVersion": "moorline.dev/v1alpha1", "kind": "User", "metadata": { "name": "eve" },
        "spec": { "groups": ["moorline:admins"] } });
    assert_eq!(world.call(&anna, "POST", &format!("{API}/users"), &eve).await.code, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_lost_mid_answer_is_an_error_and_no_clean_end() {
    let world = World::new().await;
    for carrier in [Carrier::Tls, Carrier::Quic, Carrier::WebSocket] {
        let cluster = format!("edge-{carrier}");
        let agent = world.connected(&cluster, carrier).await;
        let mut stream = world.connect("localhost", &[b"http/1.1"]).await;
        let ask = format!(
            "GET /k8s/clusters/{cluster}/endless HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n\r\n",
            world.admin
        );
        stream.write_all(ask.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        let mut all = Vec::new();
        while !String::from_utf8_lossy(&all).contains("part") {
            assert_ne!(stream.read_buf(&mut all).await.unwrap(), 0);
        }
        agent.session.close(CloseCode::Internal, "as if killed");
        let rest = timeout(Duration::from_secs(10), stream.read_to_end(&mut all)).await.expect("an end in time");
        let text = String::from_utf8_lossy(&all);
        assert!(rest.is_err() || !text.ends_with("0\r\n\r\n"), "{carrier}: ended as if it were whole");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s51_a_revoked_token_cuts_what_is_open() {
    let world = World::new().await;
    let _agent = world.connected("edge1", Carrier::Tls).await;
    let token = world.user("anna", &["edge1"]).await;
    let mut stream = world.connect("localhost", &[b"http/1.1"]).await;
    let ask =
        format!("GET /k8s/clusters/edge1/endless HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n");
    stream.write_all(ask.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    let mut all = Vec::new();
    while !String::from_utf8_lossy(&all).contains("part") {
        assert_ne!(stream.read_buf(&mut all).await.unwrap(), 0);
    }
    let id = token.strip_prefix("mlt_").unwrap().split('.').next().unwrap().to_owned();
    let gone = world.call(&world.admin, "DELETE", &format!("{API}/tokens/{id}"), &Value::Null).await;
    assert_eq!(gone.code, 200);
    let rest = timeout(REVOKED, stream.read_to_end(&mut all)).await.expect("cut in time");
    assert!(rest.is_err() || !String::from_utf8_lossy(&all).ends_with("0\r\n\r\n"));
    eventually("refused", async || world.get(&token, "/k8s/clusters/edge1/api").await.code == 401).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn people_log_in_with_a_password_and_out_again() {
    let world = World::new().await;
    let password = std::fs::read_to_string(world.dir.path().join("hub/admin.password")).unwrap();
    let login = async |user: &str, password: &str| {
        world.send("POST", "/auth/login", &[], &json!({ "username": user, "password": password }).to_string()).await
    };
    let answer = login("admin", password.trim()).await;
    assert_eq!(answer.code, 200, "{answer:?}");
    let token = answer.json()["token"].as_str().unwrap().to_owned();
    let me = world.get(&token, "/auth/whoami").await.json();
    assert_eq!((&me["user"], &me["groups"]), (&json!("admin"), &json!(["moorline:admins"])));
    assert_eq!(world.call(&token, "POST", "/auth/logout", &Value::Null).await.code, 200);
    assert_eq!(world.get(&token, "/auth/whoami").await.code, 401);
    let (wrong, nobody) = (login("admin", "not it").await, login("nobody", "not it").await);
    assert_eq!((wrong.code, &wrong.body), (401, &nobody.body));
    // A user that an administrator made.
    world.create("users", "User", "anna", json!({})).await;
    assert_eq!(login("anna", "").await.code, 401);
    let set = json!({ "password": "pw-of-anna-1" });
    assert_eq!(world.call(&world.admin, "PUT", &format!("{API}/users/anna/password"), &set).await.code, 200);
    assert_eq!(login("anna", "pw-of-anna-1").await.code, 200);
    let off = json!({ "spec": { "disabled": true } });
    let ask = format!(
        "PATCH {API}/users/anna HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\nContent-Type: application/merge-patch+json\r\nContent-Length: {}\r\n\r\n{off}",
        world.admin,
        off.to_string().len()
    );
    assert_eq!(world.raw(ask.as_bytes()).await.code, 200);
    assert_eq!(login("anna", "pw-of-anna-1").await.code, 401, "disabled");
    let page = world.get(&world.admin, &format!("{API}/users")).await.body
        + &world.get(&world.admin, &format!("{API}/tokens")).await.body;
    assert!(!page.contains("argon2") && !page.contains("mlt_"), "a secret is readable");
}

fn exec(token: &str) -> String {
    format!(
        "POST /k8s/clusters/edge1/api/v1/namespaces/a/pods/b/exec?command=sh HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nContent-Length: 0\r\n\r\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_carries_bytes_both_ways_until_the_user_is_disabled() {
    let world = World::new().await;
    let _agent = world.connected("edge1", Carrier::Tls).await;
    let token = world.user("anna", &["edge1"]).await;
    let mut stream = world.connect("localhost", &[b"http/1.1"]).await;
    stream.write_all(exec(&token).as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    let answer = read_answer(&mut stream).await;
    assert_eq!(answer.code, 101, "{answer:?}");
    let mut echo = [0; 5];
    stream.write_all(b"hello").await.unwrap();
    stream.flush().await.unwrap();
    timeout(LONG, stream.read_exact(&mut echo)).await.unwrap().unwrap();
    assert_eq!(&echo, b"hello");
    let off = json!({ "spec": { "disabled": true } }).to_string();
    let auth = format!("Authorization: Bearer {}", world.admin);
    let ask = format!(
        "PATCH {API}/users/anna HTTP/1.1\r\nHost: localhost\r\n{auth}\r\nContent-Type: application/merge-patch+json\r\nContent-Length: {}\r\n\r\n{off}",
        off.len()
    );
    assert_eq!(world.raw(ask.as_bytes()).await.code, 200);
    let mut rest = Vec::new();
    let end = timeout(REVOKED, stream.read_to_end(&mut rest)).await;
    assert!(end.is_ok(), "s51: still open");
    assert_eq!(world.get(&token, "/k8s/clusters/edge1/api").await.code, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn s33_http2_serves_requests_side_by_side_and_no_connect() {
    use http_body_util::{BodyExt, Empty};
    use hyper_util::rt::{TokioExecutor, TokioIo};
    let world = World::new().await;
    let agent = world.connected("edge1", Carrier::Quic).await;
    let stream = world.connect("localhost", &[b"h2"]).await;
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let ask = |method: &str, uri: &str| {
        let request = http::Request::builder()
            .method(method)
            .uri(uri)
            .header("authorization", format!("Bearer {}", world.admin))
            .body(Empty::<bytes::Bytes>::new())
            .unwrap();
        let mut sender = sender.clone();
        async move { sender.send_request(request).await }
    };
    let slow = tokio::spawn(ask("GET", "https://localhost/k8s/clusters/edge1/waits"));
    agent.reached.notified().await;
    let quick = ask("GET", "https://localhost/k8s/clusters/edge1/api").await.unwrap();
    assert_eq!(quick.status(), 200);
    assert_eq!(quick.into_body().collect().await.unwrap().to_bytes(), "up: /api");
    let connect = ask("CONNECT", "edge1:443").await.unwrap();
    assert_eq!(connect.status(), 405);
    assert_eq!(ask("GET", "https://other.example/livez").await.unwrap().status(), 421, "s46");
    agent.release.notify_one();
    assert_eq!(slow.await.unwrap().unwrap().status(), 200);
    drop(sender);
    connection.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn f03_at_shutdown_short_requests_finish_and_watches_end() {
    let world = World::with(|config| config.limits.grace = LONG).await;
    let agent = world.connected("edge1", Carrier::Tls).await;
    let begin = async |path: &str| {
        let mut stream = world.connect("localhost", &[b"http/1.1"]).await;
        let ask = format!(
            "GET /k8s/clusters/edge1{path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n\r\n",
            world.admin
        );
        stream.write_all(ask.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        agent.reached.notified().await;
        stream
    };
    let mut short = begin("/waits").await;
    let mut watch = begin("/api/v1/pods?watch=true&x=endless").await;
    let address = world.hub.addr();
    let shutdown = tokio::spawn(world.hub.shutdown());
    timeout(LONG, agent.session.peer_draining()).await.unwrap();
    let mut rest = Vec::new();
    timeout(LONG, watch.read_to_end(&mut rest)).await.expect("the watch ended in time").ok();
    drop(watch);
    agent.release.notify_one();
    assert_eq!(read_answer(&mut short).await.code, 200, "what was begun is finished");
    drop(short);
    timeout(2 * LONG, shutdown).await.expect("ended in time").unwrap();
    assert!(tokio::net::TcpStream::connect(address).await.is_err(), "nobody listens any more");
}
