//! What those can do who have proved nothing, or only that they are one cluster's agent.

use crate::world::{API, World, eventually, read_answer};
use moorline_link::Carrier;
use moorline_proto::{code::CloseCode, control::Control};
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::{io::AsyncWriteExt, time::timeout};

const FAR: &str = "2999-01-01T00:00:00Z";
const SOON: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn s56_strangers_make_the_hub_hold_little() {
    let world = World::with(|config| config.limits.bodies_of_strangers = 2).await;
    let large = json!({ "username": "a", "password": "x".repeat(17 << 10) }).to_string();
    for path in ["/auth/login", "/agent/join"] {
        assert_eq!(world.send("POST", path, &[], &large).await.code, 413, "{path}");
    }
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut stream = world.connect("localhost", &[b"http/1.1"]).await;
        stream.write_all(b"POST /auth/login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{").await.unwrap();
        stream.flush().await.unwrap();
        held.push(stream);
    }
    eventually("no room", async || world.send("POST", "/auth/login", &[], "{}").await.code == 503).await;
    assert_eq!(world.send("POST", "/agent/join", &[], "{}").await.code, 503);
    for stream in &mut held {
        stream.write_all(b"}").await.unwrap();
        stream.flush().await.unwrap();
        assert_eq!(read_answer(stream).await.code, 400);
    }
    assert_eq!(world.send("POST", "/agent/join", &[], "{}").await.code, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn s56_one_address_does_not_take_all_room_for_bodies_of_strangers() {
    let world = World::with(|config| config.limits.bodies_of_strangers_per_address = 2).await;
    let begin = async |address: &str, body: &str| {
        let mut stream = world.connect_from(address).await;
        let head = "POST /auth/login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n";
        stream.write_all([head, body].concat().as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        stream
    };
    let ask = async |address: &str| read_answer(&mut begin(address, "{}").await).await;
    let mut held = vec![begin("127.0.0.2", "{").await, begin("127.0.0.2", "{").await];
    eventually("no room", async || ask("127.0.0.2").await.code == 429).await;
    let refused = ask("127.0.0.2").await;
    assert!(refused.body.contains("from this address") && refused.header("retry-after").is_some(), "{refused:?}");
    assert!(1.0 < world.metric("moorline_hub_refusals_total{reason=\"busy_address\"}"));
    assert_eq!((ask("127.0.0.1").await.code, ask("127.0.0.3").await.code), (400, 400), "others have room");
    for stream in &mut held {
        stream.write_all(b"}").await.unwrap();
        stream.flush().await.unwrap();
        assert_eq!(read_answer(stream).await.code, 400);
    }
    eventually("room again", async || ask("127.0.0.2").await.code == 400).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s70_strangers_do_not_fill_the_audit_log() {
    let world = World::with(|config| {
        config.limits.join_burst = 3;
        config.limits.join_every = Duration::from_secs(60);
        config.limits.address_burst = 3;
    })
    .await;
    let name = "a\n\u{1b}[2J".to_owned() + &"x".repeat(4000);
    assert_eq!(world.join("mlj_x", &name, None).await.err().unwrap().code, 400);
    let mut joins = vec![400];
    for _ in 0..5 {
        joins.push(world.join("mlj_x", "a1", None).await.err().unwrap().code);
    }
    // All at once: an address earns one more each second.
    let login = async |n: usize| {
        let body = json!({ "username": format!("u{n}"), "password": "not it" }).to_string();
        world.send("POST", "/auth/login", &[], &body).await.code
    };
    let logins = futures_util::future::join_all((0..6).map(login)).await;
    assert!(joins.contains(&429) && logins.contains(&429), "{joins:?} {logins:?}");
    let log = world.audit_at_end().await;
    let seen = |codes: &[u16]| codes.iter().filter(|code| **code != 429).count();
    assert_eq!(log.matches("\"/agent/join\"").count(), seen(&joins));
    assert_eq!(log.matches("\"/auth/login\"").count(), seen(&logins));
    assert!(!log.contains("xxxx") && !log.contains("[2J"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_has_no_more_agents_than_it_may() {
    let world = World::with(|config| config.limits.agents_per_cluster = 2).await;
    world.cluster("edge1").await;
    world.cluster("edge2").await;
    let token = world.join_token("edge1", 9, FAR).await;
    for name in ["a1", "a2"] {
        assert!(world.join(&token, name, None).await.is_ok());
    }
    let full = world.join(&token, "a3", None).await.err().unwrap();
    assert_eq!((full.code, full.body.contains("as many as it may")), (403, true), "{full:?}");
    let tokens = world.get(&world.admin, &format!("{API}/jointokens")).await.json();
    assert_eq!(tokens["items"][0]["status"]["uses"], 2, "a refusal costs no use");
    let other = world.join_token("edge2", 1, FAR).await;
    assert!(world.join(&other, "a3", None).await.is_ok());
    world.call(&world.admin, "DELETE", &format!("{API}/agents/edge1.a1"), &Value::Null).await;
    assert!(world.join(&token, "a3", None).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_agent_says_of_itself_is_shown_as_plain_words_and_not_too_often() {
    let world = World::new().await;
    let agent = world.connected("edge1", Carrier::Tls).await;
    let facts = |version: String| Control::Facts(vec![("kubernetesVersion".to_owned(), version)]);
    // What turns a line round or makes it long does.
    agent.session.send(facts("v1.2\u{202e}\u{feff} \u{e9}".to_owned() + &"9".repeat(900))).await.unwrap();
    let shown = async || world.get(&world.admin, &format!("{API}/clusters/edge1")).await.json();
    let want = "v1.2 ".to_owned() + &"9".repeat(59);
    eventually("shown", async || shown().await["status"]["kubernetesVersion"] == want.as_str()).await;
    for n in 0..60 {
        // One after another, so that it is their number and not a full queue that ends the session.
        if agent.session.send(facts(format!("v{n}"))).await.is_err() || agent.session.ping().await.is_err() {
            break;
        }
    }
    let reason = timeout(SOON, agent.session.closed()).await.expect("closed in time");
    assert_eq!((reason.code, reason.by_peer), (CloseCode::Flood, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn s19_who_has_lost_the_name_renews_nothing() {
    let world = World::new().await;
    let agent = world.connected("edge1", Carrier::Tls).await;
    let renew = async || {
        let key = KeyPair::generate().unwrap();
        let csr = CertificateParams::default().serialize_request(&key).unwrap().der().to_vec();
        agent.session.send(Control::Renew { csr }).await.unwrap();
        timeout(SOON, agent.session.recv()).await.unwrap().unwrap()
    };
    // Twice, each time with another key: the session goes by what it was given last.
    assert!(matches!(renew().await, Control::Renewed { .. }));
    assert!(matches!(renew().await, Control::Renewed { .. }));
    let path = format!("{API}/agents/edge1.a1");
    world.patch(&path, &json!({ "spec": { "publicKeySha256": "ab".repeat(32) } })).await;
    let refused = renew().await;
    assert!(matches!(&refused, Control::RenewRefused { message } if message.contains("another key")), "{refused:?}");
    assert_eq!(world.get(&world.admin, &path).await.json()["spec"]["publicKeySha256"], "ab".repeat(32));
}

/// Real time: the clock is the hub's own, and all that is measured is that it passes.
#[tokio::test(flavor = "multi_thread")]
async fn s77_connections_of_strangers_end_and_those_of_users_stay() {
    use hyper_util::rt::{TokioExecutor, TokioIo};
    let life = Duration::from_secs(5);
    let world = World::with(|config| config.limits.stranger = life).await;
    let connect = async || {
        let stream = TokioIo::new(world.connect("localhost", &[b"h2"]).await);
        let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
        (sender, tokio::spawn(connection))
    };
    let ask = |path: &str, token: &str| {
        http::Request::get(format!("https://localhost{path}"))
            .header("authorization", format!("Bearer {token}"))
            .body(http_body_util::Empty::<bytes::Bytes>::new())
            .unwrap()
    };
    let (mut user, of_user) = connect().await;
    assert_eq!(user.send_request(ask("/auth/whoami", &world.admin)).await.unwrap().status(), 200);
    let (mut stranger, of_stranger) = connect().await;
    assert_eq!(stranger.send_request(ask("/auth/whoami", "mlt_no")).await.unwrap().status(), 401);
    assert_eq!(stranger.send_request(ask("/livez", "")).await.unwrap().status(), 200);
    assert!(timeout(SOON, of_stranger).await.is_ok(), "a stranger's connection goes on");
    assert!(stranger.send_request(ask("/livez", "")).await.is_err());
    assert_eq!(user.send_request(ask("/auth/whoami", &world.admin)).await.unwrap().status(), 200);
    of_user.abort();
}
