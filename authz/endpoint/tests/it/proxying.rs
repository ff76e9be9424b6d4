//! Proxy mode: who gets through, as whom, and what ends what is open.

use crate::world::{REVOKED, SOON, World, api_key, bundle, no_tokens, revoked, token};
use moorline_authz::access::Recording;
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::client::TlsStream;

const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
pub const EXEC: &str = "/api/v1/namespaces/a/pods/b/exec?command=sh";
const PORT_FORWARD: &str = "/api/v1/namespaces/a/pods/b/portforward?ports=80";

/// A call without an end of its own.
pub async fn open(world: &World, token: &str, path: &str, more: &str) -> TlsStream<TcpStream> {
    let mut stream = world.connect().await;
    let ask = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n{more}\r\n");
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

/// Cut because a right is gone.
async fn ended(stream: TlsStream<TcpStream>, what: &str) {
    ended_within(REVOKED, stream, what).await;
}

pub async fn ended_within(bound: Duration, mut stream: TlsStream<TcpStream>, what: &str) {
    let mut rest = Vec::new();
    assert!(timeout(bound, stream.read_to_end(&mut rest)).await.is_ok(), "{what}: still open after {bound:?}");
    assert!(!rest.ends_with(b"0\r\n\r\n"), "{what}: ended as if it were whole");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_known_goes_through_as_themselves_and_is_recorded() {
    let world = World::new().await;
    let answer = world.get(&token("anna"), "/api/v1/pods?limit=5").await;
    assert!(answer.code == 200 && answer.text.contains("up /api/v1/pods?limit=5 0"), "{answer:?}");
    let seen = world.up.last();
    let said: Vec<_> = seen.headers.iter().filter(|(name, _)| name.starts_with("impersonate-")).collect();
    let said: Vec<_> = said.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    let want = [
        ("impersonate-user", "anna"),
        ("impersonate-uid", "u-anna"),
        ("impersonate-group", "dev"),
        ("impersonate-group", "ops"),
    ];
    assert_eq!(said, want);
    assert!(!seen.headers.iter().any(|(name, _)| name == "authorization"), "{seen:?}");
    let log = world.audit().await;
    assert!(log.contains("\"username\":\"anna\"") && log.contains("edge1") && !log.contains(&token("anna")), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn s09_s10_whoever_has_no_token_that_is_good_here_gets_one_answer_and_reaches_nothing() {
    let world = World::new().await;
    let mut more = bundle(2);
    more.revoked.push(revoked("revoked"));
    world.next(&more).await;
    let mut answers = std::collections::BTreeSet::new();
    for (why, token) in no_tokens() {
        let answer = world.get(&token, "/api/v1/pods").await;
        assert_eq!(answer.code, 401, "{why}: {answer:?}");
        answers.insert(answer.text.split_once("\r\n\r\n").unwrap().1.to_owned());
    }
    for headers in [&[][..], &["Authorization: Basic YTpi"], &["Authorization: Bearer a", "Authorization: Bearer b"]] {
        assert_eq!(world.send("GET", "/api", headers).await.code, 401);
    }
    for path in [format!("/api?token={}", token("anna")), format!("/api/{}", token("anna"))] {
        assert_eq!(world.send("GET", &path, &[]).await.code, 401, "s13");
    }
    assert_eq!(answers.len(), 1, "{answers:?}");
    assert_eq!(world.up.lines(), [""; 0]);
    assert!(world.metric("moorline_endpoint_callers_total{answer=\"audience\"}") >= 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn s01_s02_s03_s05_s06_identity_is_never_the_clients_to_say() {
    let world = World::new().await;
    let auth = format!("Authorization: Bearer {}", token("anna"));
    for (header, code) in [
        ("Connection: Impersonate-User, Impersonate-Group, Authorization", 400),
        ("Impersonate-User: system:admin", 403),
        ("Impersonate-User: carol", 403),
        ("Impersonate-Group: system:masters", 403),
        ("Impersonate_User: bob", 403),
        ("Impersonate-User : bob", 400),
    ] {
        assert_eq!(world.send("GET", "/api", &[&auth, header]).await.code, code, "{header}");
    }
    let masters = ["Impersonate-User: bob", "Impersonate-Group: system:masters"];
    assert_eq!(world.send("GET", "/api", &[&auth, masters[0], masters[1]]).await.code, 403);
    assert_eq!(world.up.lines(), [""; 0], "nothing of it arrived");
    // With the cluster's own right to it.
    assert_eq!(world.send("GET", "/api", &[&auth, "Impersonate-User: bob"]).await.code, 200);
    let user = |seen: crate::world::Seen| {
        let named = |(name, _): &&(String, String)| name == "impersonate-user";
        seen.headers.iter().filter(named).map(|(_, value)| value.clone()).collect::<Vec<_>>()
    };
    assert_eq!(user(world.up.last()), ["bob"]);
    for header in ["X-Remote-User: admin", "X-Remote-Group: system:masters", "X-Forwarded-User: a", "X-Moorline-A: b"] {
        assert_eq!(world.send("GET", "/api", &[&auth, header]).await.code, 200, "{header}");
        let name = header.split(':').next().unwrap().to_ascii_lowercase();
        assert!(!world.up.last().headers.iter().any(|(n, _)| *n == name), "{header}");
        assert_eq!(user(world.up.last()), ["anna"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s34_s43_what_is_ambiguous_is_refused_and_what_is_not_arrives_as_it_came() {
    let world = World::new().await;
    let auth = format!("Authorization: Bearer {}\r\n", token("anna"));
    let both = format!(
        "POST /api HTTP/1.1\r\nHost: localhost\r\n{auth}Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nX"
    );
    assert_eq!(world.raw(both.as_bytes()).await.code, 400);
    let folded = format!("GET /api HTTP/1.1\r\nHost: localhost\r\n{auth}X: a\r\n b\r\n\r\n");
    assert_eq!(world.raw(folded.as_bytes()).await.code, 400);
    assert_eq!(world.raw(format!("GET api HTTP/1.1\r\nHost: localhost\r\n{auth}\r\n").as_bytes()).await.code, 400);
    let connect = format!("CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n{auth}\r\n");
    assert!([400, 405].contains(&world.raw(connect.as_bytes()).await.code));
    assert_eq!(world.up.lines(), [""; 0]);
    let path = "/api/v1/namespaces/a/services/b:80/proxy/c%2Fd/..%2fe?x=%00";
    assert_eq!(world.get(&token("anna"), path).await.code, 200);
    assert_eq!(world.up.lines(), [format!("GET {path}")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn s29_s48_an_upgrade_is_a_create_and_one_that_is_refused_leaves_no_pipe() {
    let world = World::new().await;
    let (key, secret) = api_key("ci", Some(&["get", "list"]));
    let mut more = bundle(2);
    more.api_keys.push(key);
    world.next(&more).await;
    assert_eq!(world.get(&secret, "/api/v1/pods").await.code, 200);
    let before = world.up.lines().len();
    let exec = format!("GET {EXEC} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {secret}\r\n{UPGRADE}\r\n");
    let exec = world.raw(exec.as_bytes());
    assert_eq!(exec.await.code, 403, "a right to read is no right to run");
    assert_eq!(world.up.lines().len(), before);
    let mut stream = world.connect().await;
    let ask = format!(
        "GET /api/v1/namespaces/a/pods/b/exec/forbidden HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n{UPGRADE}\r\n",
        token("anna")
    );
    stream.write_all(ask.as_bytes()).await.unwrap();
    let mut all = Vec::new();
    while !String::from_utf8_lossy(&all).contains("\r\nno") {
        assert_ne!(timeout(SOON, stream.read_buf(&mut all)).await.unwrap().unwrap(), 0);
    }
    let seen = world.up.lines().len();
    let _ = stream.write_all(b"GET /api/v1/secrets HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    let mut rest = Vec::new();
    let _ = timeout(SOON, stream.read_to_end(&mut rest)).await;
    assert_eq!(world.up.lines().len(), seen, "{}", String::from_utf8_lossy(&rest));
}

#[tokio::test(flavor = "multi_thread")]
async fn s51_s54_a_newer_bundle_ends_what_is_open_and_nothing_else() {
    let world = World::new().await;
    let (key, secret) = api_key("ci", None);
    let mut with_key = bundle(2);
    with_key.api_keys.push(key);
    world.next(&with_key).await;
    let watch = "/api/v1/pods?watch=1&x=endless";
    let watch = watch.replace("/api/v1/pods", "/api/v1/endless");
    let (hers, shell) =
        (open(&world, &token("anna"), &watch, "").await, open(&world, &token("anna"), EXEC, UPGRADE).await);
    let forward = open(&world, &token("anna"), PORT_FORWARD, UPGRADE).await;
    let mut his = open(&world, &secret, EXEC, UPGRADE).await;
    let mut without = with_key.clone();
    without.serial = 3;
    without.users.retain(|user| user.name != "anna");
    world.next(&without).await;
    tokio::join!(ended(hers, "a watch"), ended(shell, "a shell"), ended(forward, "a port-forward"));
    assert_eq!(world.get(&token("anna"), "/api").await.code, 401);
    his.write_all(b"hello").await.unwrap();
    his.flush().await.unwrap();
    let mut echo = [0; 5];
    timeout(SOON, his.read_exact(&mut echo)).await.unwrap().unwrap();
    // A group that goes takes a grant with it.
    let mut nothing = without.clone();
    nothing.serial = 4;
    nothing.grants.clear();
    world.next(&nothing).await;
    ended(his, "the key's shell").await;
    assert_eq!(world.get(&secret, "/api").await.code, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clusters_owner_has_the_last_word() {
    let policy = "apiVersion: moorline.dev/v1alpha1\nkind: EdgePolicy\nspec:\n  api:\n    readOnly: true\n    denyNamespaces: [vault]\n";
    let world = World::with(policy, Vec::new()).await;
    let auth = format!("Authorization: Bearer {}", token("anna"));
    assert_eq!(world.get(&token("anna"), "/api/v1/namespaces/a/pods").await.code, 200);
    assert_eq!(world.get(&token("anna"), "/api/v1/namespaces/vault/pods").await.code, 403);
    assert_eq!(world.send("DELETE", "/api/v1/namespaces/a/pods/b", &[&auth]).await.code, 403);
    let eve = world.get(&token("eve"), "/api/v1/namespaces/a/pods").await;
    assert!(eve.code == 403 && eve.text.contains("edge policy"), "{eve:?}");
    assert_eq!(world.up.lines().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_must_be_recorded_and_cannot_be_does_not_happen_on_this_way_either() {
    let world = World::new().await;
    let auth = format!("Authorization: Bearer {}", token("anna"));
    let shell = open(&world, &token("anna"), EXEC, UPGRADE).await;
    let mut recorded = bundle(2);
    recorded.record = Recording::Always;
    world.next(&recorded).await;
    let before = world.up.lines();
    let upgrade: Vec<&str> = UPGRADE.trim_end().split("\r\n").chain([auth.as_str()]).collect();
    let plain = [auth.as_str()];
    for (method, path, headers) in [
        ("GET", EXEC, &upgrade[..]),
        ("POST", "/api/v1/namespaces/a/pods/b/attach?stdin=true", &upgrade),
        ("GET", "/api/v1/nodes/n/proxy/exec/a/b/c?command=id", &upgrade),
        ("POST", "/api/v1/nodes/n/proxy/run/a/b/c?cmd=id", &plain),
        ("GET", "/apis/subresources.kubevirt.io/v1/namespaces/a/virtualmachineinstances/v/console", &upgrade),
    ] {
        let answer = world.send(method, path, headers).await;
        assert_eq!(answer.code, 403, "{path}: {answer:?}");
        assert!(answer.text.contains("\"kind\":\"Status\"") && answer.text.contains("recorded here"), "{answer:?}");
        let way_out = if path.contains("/pods/") { "through the hub" } else { "use kubectl exec" };
        assert!(answer.text.contains(way_out), "{answer:?}");
    }
    assert_eq!(world.up.lines(), before, "nothing of it arrived");
    assert_eq!(world.get(&token("anna"), "/api/v1/pods").await.code, 200, "what is no terminal passes");
    assert!(world.review(&token("anna")).is_none(), "behind a webhook nobody could keep her from it");
    // What is open goes on as it began; whom every grant takes out is not asked for anything.
    drop(shell);
    recorded.serial = 3;
    recorded.grants[0].record = Some(Recording::Never);
    world.next(&recorded).await;
    open(&world, &token("anna"), EXEC, UPGRADE).await;
    assert!(world.review(&token("anna")).is_some());
    (recorded.serial, recorded.record) = (4, Recording::Never);
    recorded.grants[0].record = Some(Recording::WithInput);
    world.next(&recorded).await;
    assert_eq!(world.send("GET", EXEC, &upgrade).await.code, 403, "by a grant");
}
