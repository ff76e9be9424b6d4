//! Services by path, and connections into clusters: who gets there, and what is kept from whom.

use crate::world::{API, REVOKED, World, eventually, read_answer};
use moorline_link::{Carrier, IncomingStream};
use moorline_proto::{
    code::RefuseCode,
    header::Refusal,
    inside::{Destination, Inside},
};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

/// In an agent's place: the service `down` has no endpoints, and nothing has where all is `empty`; the others echo.
pub fn place(stream: IncomingStream, inside: Inside, empty: bool) {
    tokio::spawn(async move {
        if empty || matches!(&inside.to, Destination::Service { name, .. } if name == "down") {
            let message = "service shop/down has no endpoints".to_owned();
            return stream.refuse(Refusal { code: RefuseCode::NoEndpoints, message, retry_elsewhere: false }).await;
        }
        let (mut read, mut write) = tokio::io::split(stream.accept());
        let _ = tokio::io::copy(&mut read, &mut write).await;
        let _ = write.shutdown().await;
    });
}

const WEB: &str = "/k8s/clusters/edge1/services/shop/web:80";

async fn grant(world: &World, name: &str, spec: Value) {
    world.create("servicegrants", "ServiceGrant", name, spec).await;
}

async fn anna(world: &World) -> String {
    let token = world.user("anna", &[]).await;
    let spec = json!({ "users": ["anna"], "clusters": ["edge1"], "namespaces": ["shop"], "services": ["web", "down"],
        "hosts": ["10.0.0.5:5432"] });
    grant(world, "anna", spec).await;
    eventually("grant", async || world.get(&token, &format!("{WEB}/")).await.code != 403).await;
    token
}

fn connecting(token: &str, to: &str, more: &str) -> String {
    format!(
        "GET /k8s/clusters/edge1/connect/{to} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nConnection: Upgrade\r\nUpgrade: moorline-stream\r\n{more}\r\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn s22_who_holds_a_grant_is_connected_to_what_it_names_and_nothing_else() {
    let world = World::new().await;
    let _agent = world.connected("edge1", Carrier::Tls).await;
    let (anna, ben) = (anna(&world).await, world.user("ben", &["edge1"]).await);
    for to in ["svc/shop/web:80", "svc/shop/web:http", "host/10.0.0.5:5432", "host/web.shop.svc:80"] {
        let mut stream = world.connect("localhost", &[b"http/1.1"]).await;
        stream.write_all(connecting(&anna, to, "").as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        let answer = read_answer(&mut stream).await;
        assert_eq!((answer.code, answer.header("upgrade")), (101, Some("moorline-stream")), "{to}: {answer:?}");
        stream.write_all(b"there and back").await.unwrap();
        stream.flush().await.unwrap();
        let mut back = [0; 14];
        timeout(Duration::from_secs(10), stream.read_exact(&mut back)).await.unwrap().unwrap();
        assert_eq!(&back, b"there and back");
    }
    for (token, to, code) in [
        (&anna, "svc/shop/api:80", 403),
        (&anna, "svc/other/web:80", 403),
        (&anna, "pod/shop/web:80", 403),
        (&anna, "host/10.0.0.5:80", 403),
        (&ben, "svc/shop/web:80", 403),
        (&anna, "svc/shop/down:80", 503),
        (&anna, "svc/Shop/web:80", 400),
        (&anna, "svc/shop/web", 400),
        (&anna, "host/127.1:80", 400),
        (&anna, "svc/shop/web:80?payload=x", 400),
    ] {
        let answer = world.raw(connecting(token, to, "").as_bytes()).await;
        assert_eq!(answer.code, code, "{to}: {answer:?}");
        if code == 503 {
            assert_eq!(answer.json()["reason"], "NoEndpoints", "{answer:?}");
        }
    }
    // What is no connection is told how to ask for one, once the right is there.
    assert_eq!(world.get(&anna, "/k8s/clusters/edge1/connect/svc/shop/web:80").await.code, 426);
    let as_other = world.raw(connecting(&anna, "svc/shop/web:80", "Impersonate-User: root\r\n").as_bytes()).await;
    assert_eq!(as_other.code, 403, "{as_other:?}");
    let audit = world.audit_at_end().await;
    let connected = audit.lines().filter(|l| l.contains("\"verb\":\"connect\"") && l.contains("ResponseComplete"));
    assert!(
        connected
            .clone()
            .any(|l| l.contains("\"requestURI\":\"/connect/host/10.0.0.5:5432\"") && l.contains("\"code\":101"))
    );
    assert!(audit.contains("service_not_granted"), "{audit}");
}

#[tokio::test(flavor = "multi_thread")]
async fn s51_a_withdrawn_grant_cuts_connections() {
    let world = World::new().await;
    let _agent = world.connected("edge1", Carrier::Tls).await;
    let anna = anna(&world).await;
    let mut stream = world.connect("localhost", &[b"http/1.1"]).await;
    stream.write_all(connecting(&anna, "svc/shop/web:80", "").as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    assert_eq!(read_answer(&mut stream).await.code, 101);
    world.patch(&format!("{API}/servicegrants/anna"), &json!({ "spec": { "services": ["down"] } })).await;
    let ended = timeout(REVOKED, stream.read_to_end(&mut Vec::new())).await;
    // Without TLS's goodbye: a cut is no end.
    assert!(ended.expect("an end in time").is_err());
    assert_eq!(world.get(&anna, &format!("{WEB}/")).await.code, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn s08_s28_s47_s73_a_service_by_path_sees_who_calls_and_nothing_of_the_hubs() {
    let world = World::new().await;
    let agent = world.connected("edge1", Carrier::Tls).await;
    let anna = anna(&world).await;
    let bearer = format!("Authorization: Bearer {anna}");
    let headers = [
        &bearer,
        "Cookie: own=1; __Host-moorline-session=secret",
        "X-Forwarded-For: 6.6.6.6",
        "X-Forwarded-User: root",
        "Forwarded: for=6.6.6.6",
        "X-Remote-User: root",
        "Via: x",
        "TE: trailers",
    ];
    let answer = world.send("POST", &format!("{WEB}/a%2fb/../c?x=%2F"), &headers, "{}").await;
    assert!(answer.code == 200 && answer.body.contains("up: /a%2fb/../c?x=%2F\r\n"), "{answer:?}");
    let seen = agent.last();
    let mut kept: Vec<_> =
        seen.headers.iter().filter(|(name, _)| name != "traceparent").map(|(n, v)| format!("{n}: {v}")).collect();
    kept.sort();
    assert_eq!(
        kept,
        [
            "content-length: 2",
            "content-type: application/json",
            "cookie: own=1",
            "te: trailers",
            "x-forwarded-for: 127.0.0.1",
            "x-forwarded-host: localhost",
            &format!("x-forwarded-prefix: {WEB}"),
            "x-forwarded-proto: https",
            "x-forwarded-user: anna",
        ]
    );
    assert_eq!(seen.principal.user, "anna");
    let moved = world.send("GET", &format!("{WEB}/moved"), &[&bearer], "").await;
    assert_eq!((moved.code, moved.header("location")), (302, Some(format!("{WEB}/login?a=%2F").as_str())));
    let cookies: Vec<_> = moved.head.lines().filter(|l| l.to_lowercase().starts_with("set-cookie")).collect();
    assert_eq!(cookies, [format!("set-cookie: a=1; Path={WEB}/")]);
    assert!(moved.header("content-security-policy").unwrap().contains("sandbox"), "{moved:?}");
    let slash = world.send("GET", &format!("{WEB}?x=1"), &[&bearer], "").await;
    assert_eq!((slash.code, slash.header("location")), (308, Some(format!("{WEB}/?x=1").as_str())));
    // An upgrade that is answered by a redirect: nobody follows it.
    let upgrade = [bearer.as_str(), "Connection: Upgrade", "Upgrade: websocket"];
    assert_eq!(world.send("GET", &format!("{WEB}/moved"), &upgrade, "").await.code, 502);
    for (path, code) in [
        ("/k8s/clusters/edge1/services/shop/web:80/../api:80/", 400),
        ("/k8s/clusters/edge1/services/shop/web/", 400),
        ("/k8s/clusters/edge1/services/shop/api:80/", 403),
        ("/k8s/clusters/edge1/services/shop/web:80/%2e%2e/%2e%2e/x", 400),
    ] {
        assert_eq!(world.send("GET", path, &[&bearer], "").await.code, code, "{path}");
    }
    // All of it stands in the audit log, by who called, what, and how it went.
    let audit = world.audit_at_end().await;
    let records = audit.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let records: Vec<Value> = records.filter(|record| record["verb"] == "proxy").collect();
    let called = |uri: &str, code: u16| {
        let of = |record: &&Value| record["requestURI"] == uri && record["responseStatus"]["code"] == code;
        let found = records.iter().find(of);
        found.unwrap_or_else(|| panic!("no record of {uri} with {code}: {audit}")).clone()
    };
    let record = called("/a%2fb/../c?x=%2F", 200);
    let object = json!({"resource": "services", "namespace": "shop", "name": "web", "subresource": "proxy"});
    for (key, value) in object.as_object().unwrap() {
        assert_eq!(&record["objectRef"][key], value, "{record}");
    }
    assert_eq!((&record["user"]["username"], &record["sourceIPs"]), (&json!("anna"), &json!(["127.0.0.1"])));
    assert_eq!(record["annotations"]["moorline.dev/bytes-in"], "2");
    called("/moved", 302);
}

#[tokio::test(flavor = "multi_thread")]
async fn s30_s31_s33_only_a_websocket_is_upgraded_to_and_nothing_is_smuggled_behind_it() {
    let world = World::new().await;
    let agent = world.connected("edge1", Carrier::Tls).await;
    let anna = anna(&world).await;
    let ask = |upgrade: &str| {
        format!(
            "GET {WEB}/forbidden HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {anna}\r\nConnection: Upgrade, HTTP2-Settings\r\n{upgrade}\r\n"
        )
    };
    for (upgrade, code) in [
        ("Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n", 400),
        ("Upgrade: SPDY/3.1\r\n", 400),
        ("Upgrade: moorline-stream\r\n", 400),
    ] {
        assert_eq!(world.raw(ask(upgrade).as_bytes()).await.code, code, "{upgrade}");
    }
    let before = agent.lines().len();
    // Held until the upgrade is decided; it is not, so it is no request.
    let pipelined = ask("Upgrade: websocket\r\n")
        + &format!("GET {WEB}/smuggled HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {anna}\r\n\r\n");
    assert_eq!(world.raw(pipelined.as_bytes()).await.code, 403);
    assert_eq!(
        world.send("GET", &format!("{WEB}/after"), &[&format!("Authorization: Bearer {anna}")], "").await.code,
        200
    );
    assert_eq!(agent.lines()[before..], ["GET /forbidden", "GET /after"]);
    let connect =
        format!("CONNECT web.shop.svc:80 HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {anna}\r\n\r\n");
    assert_eq!(world.raw(connect.as_bytes()).await.code, 405);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clusters_limit_counts_its_services_too() {
    let world = World::with(|config| {
        let rate = moorline_hub::Rate { per_second: 1, burst: 4 };
        config.rate_limits.per_cluster = Some(rate);
    })
    .await;
    let _agent = world.connected("edge1", Carrier::Tls).await;
    let anna = world.user("anna", &[]).await;
    let spec = json!({ "users": ["anna"], "clusters": ["edge1"], "namespaces": ["shop"], "services": ["web"] });
    grant(&world, "anna", spec).await;
    let mut codes = Vec::new();
    // What is refused takes nothing of what the cluster's users have.
    eventually("over the limit", async || {
        let code = world.get(&anna, &format!("{WEB}/")).await.code;
        if code != 403 {
            codes.push(code);
        }
        codes.last() == Some(&429)
    })
    .await;
    assert!(codes.len() >= 5 && codes[..4] == [200; 4], "{codes:?}");
    // In a second there is room for one more, so a slow machine may be let through once or twice.
    eventually("connections count too", async || {
        let answer = world.raw(connecting(&anna, "svc/shop/web:80", "").as_bytes()).await;
        assert!(answer.code == 101 || answer.header("retry-after").is_some(), "{answer:?}");
        answer.code == 429
    })
    .await;
}
