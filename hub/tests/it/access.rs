//! More rights for a while.

use crate::{
    rights::{EXEC, UPGRADE, ended, open},
    world::{API, World, eventually, read_answer},
};
use moorline_link::Carrier;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

fn asked(user: &str, seconds: u64) -> Value {
    json!({ "apiVersion": "moorline.dev/v1alpha1", "kind": "AccessRequest", "metadata": {},
            "spec": { "user": user, "cluster": "edge1", "groups": ["firefighters"], "durationSeconds": seconds, "reason": "it burns" },
            "status": { "phase": "Approved", "expires": "2999-01-01T00:00:00Z" } })
}

#[tokio::test(flavor = "multi_thread")]
async fn s55_rights_for_a_while_are_granted_by_another_person_and_ended_by_the_clock() {
    let world = World::new().await;
    let agent = world.connected("edge1", Carrier::Tls).await;
    let (anna, ben) = (world.user("anna", &[]).await, world.user("ben", &[]).await);
    let reaches = async |path: &str| world.get(&anna, &format!("/k8s/clusters/edge1{path}")).await.code;
    assert_eq!(reaches("/api").await, 403);
    let at = format!("{API}/accessrequests");
    let made = world.call(&anna, "POST", &at, &asked("anna", 10)).await;
    assert_eq!(made.code, 201, "{made:?}");
    let name = made.json()["metadata"]["name"].as_str().unwrap().to_owned();
    assert_eq!(world.call(&anna, "POST", &at, &asked("ben", 3)).await.code, 403, "for oneself alone");
    assert_eq!(reaches("/api").await, 403, "what is written into a status by who asks counts for nothing");
    for (path, value) in
        [("/spec/durationSeconds", json!(0)), ("/spec/groups", json!(["system:masters"])), ("/spec/reason", json!(""))]
    {
        let mut bad = asked("anna", 10);
        *bad.pointer_mut(path).unwrap() = value;
        assert_eq!(world.call(&anna, "POST", &at, &bad).await.code, 422, "{path}");
    }

    let approve = format!("/auth/access-requests/{name}/approve");
    assert_eq!(world.call(&anna, "POST", &approve, &json!({})).await.code, 403, "not by oneself");
    assert_eq!(world.call(&ben, "POST", &approve, &json!({})).await.code, 403, "not by anybody");
    assert_eq!(world.get(&ben, &format!("{at}/{name}")).await.code, 403);
    let group = json!({ "apiVersion": "moorline.dev/v1alpha1", "kind": "Group", "metadata": { "name": "moorline:approvers" },
                        "spec": { "users": ["ben", "anna"] } });
    assert_eq!(world.call(&world.admin, "POST", &format!("{API}/groups"), &group).await.code, 201);
    eventually("ben decides", async || {
        world.call(&ben, "POST", &approve, &json!({ "message": "go" })).await.code == 200
    })
    .await;
    assert_eq!(world.call(&anna, "POST", &approve, &json!({})).await.code, 403);
    assert_eq!(world.call(&world.admin, "POST", &approve, &json!({})).await.code, 409, "once");

    let denied = world.call(&anna, "POST", &at, &asked("anna", 10)).await.json();
    let deny = format!("/auth/access-requests/{}/deny", denied["metadata"]["name"].as_str().unwrap());
    assert_eq!(world.call(&ben, "POST", &deny, &json!({ "message": "no" })).await.code, 200);
    assert_eq!(world.call(&ben, "POST", &deny, &json!({})).await.code, 409, "once");

    eventually("anna is let in", async || reaches("/api").await == 200).await;
    let told = world.call(&anna, "POST", "/auth/can-i", &json!({ "cluster": "edge1", "verb": "get" })).await.json();
    assert_eq!(told["rules"][0], format!("ClusterGrant by AccessRequest {name}, by user anna"), "{told}");
    assert!(told["groups"].as_array().unwrap().contains(&json!("firefighters")), "{told}");
    let (watch, shell) =
        (open(&world, &anna, "/api/v1/pods?watch=1&x=endless", "").await, open(&world, &anna, EXEC, UPGRADE).await);
    let patch = json!({ "spec": { "durationSeconds": 86400 } });
    let longer = world.call(&anna, "PATCH", &format!("{at}/{name}"), &patch).await.code;
    assert!([403, 415].contains(&longer), "{longer}: nobody makes it longer");

    eventually("it is over", async || reaches("/api").await == 403).await;
    tokio::join!(ended(watch, "a watch beyond its time"), ended(shell, "a shell beyond its time"));
    let over = world.get(&anna, &format!("{at}/{name}")).await;
    eventually("and says so", async || {
        world.get(&anna, &format!("{at}/{name}")).await.json()["status"]["phase"] == "Expired"
    })
    .await;
    assert_eq!(over.json()["status"]["decidedBy"], "ben");
    assert_eq!(world.call(&world.admin, "POST", &approve, &json!({})).await.code, 409, "not again");
    assert!(agent.lines().iter().any(|line| line.contains("/api")));
    let path = world.dir.path().join("hub/audit.log");
    let log = || std::fs::read_to_string(&path).unwrap();
    eventually("the record of its end", async || log().contains("\"verb\":\"expire\"")).await;
    let log = log();
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |verb: Option<&str>, user: &str, code: u16, path: &str| {
        let is = |line: &&Value| {
            verb.is_none_or(|verb| line["verb"] == verb)
                && line["user"]["username"] == user
                && line["responseStatus"]["code"] == code
                && line["requestURI"].as_str().unwrap().ends_with(path)
        };
        lines.iter().filter(is).count()
    };
    let other = denied["metadata"]["name"].as_str().unwrap();
    for (verb, user, code, path, times) in [
        (None, "anna", 201, at.clone(), 2),
        (None, "anna", 403, at.clone(), 1),
        // Who may not decide is on record too.
        (Some("approve"), "anna", 403, approve.clone(), 2),
        (Some("approve"), "ben", 200, approve.clone(), 1),
        (Some("deny"), "ben", 200, format!("/{other}/deny"), 1),
        (Some("expire"), "anna", 200, format!("/accessrequests/{name}"), 1),
    ] {
        assert_eq!(of(verb, user, code, &path), times, "{verb:?} by {user}: {code}");
    }
    assert_eq!(lines.iter().filter(|line| line["verb"] == "expire").count(), 1, "what was denied never began");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_too_often_is_told_when_to_come_again_and_others_are_not() {
    let rate = |burst| Some(moorline_hub::Rate { per_second: 1, burst });
    let limits = moorline_hub::RateLimits { per_user: rate(8), ..moorline_hub::RateLimits::default() };
    let world = World::with(|config| config.rate_limits = limits).await;
    let (anna, ben) = (world.user("anna", &["edge1"]).await, world.user("ben", &["edge1"]).await);
    let path = "/k8s/clusters/edge1/api";
    let mut refused = None;
    for _ in 0..30 {
        let answer = world.get(&anna, path).await;
        if answer.code == 429 {
            refused = Some(answer);
        }
    }
    let refused = refused.expect("more than one a second");
    assert!(
        refused.header("retry-after").is_some_and(|after| after.parse::<u64>().is_ok_and(|n| n > 0)),
        "{refused:?}"
    );
    assert_eq!(
        (refused.json()["kind"].clone(), refused.json()["reason"].clone()),
        (json!("Status"), json!("TooManyRequests"))
    );
    assert_ne!(world.get(&ben, path).await.code, 429);
    assert!(world.metric("moorline_hub_refusals_total{reason=\"quota_user\"}") > 0.0);
}

/// As [`who_asks_too_often_is_told_when_to_come_again_and_others_are_not`], by address: whoever comes from another is not
/// held up, and whoever waits as long as they were told is let in.
#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_asks_too_often_is_told_when_to_come_again_and_another_is_not() {
    let rate = moorline_hub::Rate { per_second: 1, burst: 5 };
    let limits = moorline_hub::RateLimits { per_address: Some(rate), ..moorline_hub::RateLimits::default() };
    let world = World::with(|config| config.rate_limits = limits).await;
    let from = async |address: &str| {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(format!("{address}:0").parse().unwrap()).unwrap();
        let socket = socket.connect(world.hub.addr()).await.unwrap();
        let tls = tokio_rustls::TlsConnector::from(world.tls(&[b"http/1.1"]));
        let mut stream = tls.connect("localhost".try_into().unwrap(), socket).await.unwrap();
        let ask =
            format!("GET /auth/whoami HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n\r\n", world.admin);
        stream.write_all(ask.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        read_answer(&mut stream).await
    };
    let mut refused = None;
    for _ in 0..30 {
        let answer = from("127.0.0.2").await;
        if answer.code == 429 {
            refused = Some(answer);
            break;
        }
    }
    let refused = refused.expect("more than one a second");
    let after: u64 = refused.header("retry-after").expect("when to come again").parse().unwrap();
    assert!((1..=2).contains(&after), "{refused:?}");
    assert_eq!(refused.json()["details"]["retryAfterSeconds"], after, "{refused:?}");
    assert!(world.metric("moorline_hub_refusals_total{reason=\"quota_address\"}") > 0.0);
    assert_eq!(from("127.0.0.3").await.code, 200, "another address, the same user");
    let wait = tokio::time::Instant::now() + std::time::Duration::from_secs(after);
    tokio::time::sleep_until(wait).await; // what the answer said
    assert_eq!(from("127.0.0.2").await.code, 200);
}
