//! Who holds which session.

use crate::world::{API, LONG, World, eventually};
use moorline_link::{Carrier, DialError};
use moorline_proto::{
    code::CloseCode,
    control::Control,
    header::{Class, StreamHeader, Target},
};
use rcgen::{CertificateParams, KeyPair};
use serde_json::Value;
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

const FAR: &str = "2999-01-01T00:00:00Z";

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_shows_when_its_agent_comes_and_goes() {
    let world = World::new().await;
    for carrier in [Carrier::Tls, Carrier::Quic, Carrier::WebSocket] {
        let name = format!("edge-{carrier}");
        let agent = world.connected(&name, carrier).await;
        let status = async || world.get(&world.admin, &format!("{API}/clusters/{name}")).await.json()["status"].clone();
        let connected = |status: &Value| status["conditions"][0]["status"].as_str().map(str::to_owned);
        eventually("connected", async || connected(&status().await).as_deref() == Some("True")).await;
        let now = status().await;
        assert_eq!((&now["agents"], &now["carrier"]), (&1.into(), &carrier.to_string().into()));
        assert_eq!(now["kubernetesVersion"], "v1.99.0");
        agent.session.close(CloseCode::Normal, "done");
        eventually("gone", async || connected(&status().await).as_deref() == Some("False")).await;
        assert!(status().await["lastSeen"].is_string());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_holder_of_an_identity_is_refused_while_the_first_lives() {
    let world = World::new().await;
    world.cluster("edge1").await;
    let token = world.join_token("edge1", 1, FAR).await;
    let member = world.join(&token, "a1", None).await.unwrap();
    let first = world.dial(&member, Carrier::Tls, 1).await.unwrap();
    // The first hears its welcome before the hub has done with it: until then the answer is to come again.
    let goodbye = loop {
        match world.dial(&member, Carrier::Tls, 2).await {
            Err(DialError::Refused(goodbye)) if goodbye.code == CloseCode::Busy => tokio::task::yield_now().await,
            Err(DialError::Refused(goodbye)) => break goodbye,
            _ => panic!("the second holder was let in"),
        }
    };
    assert_eq!(goodbye.code, CloseCode::DuplicateIdentity);
    // The same run may overlap itself; the older session is told to drain.
    let newer = world.dial(&member, Carrier::Quic, 1).await.unwrap();
    timeout(LONG, first.session.peer_draining()).await.unwrap();
    assert!(newer.session.ping().await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn s20_an_agent_that_opens_a_stream_towards_the_hub_is_closed() {
    let world = World::new().await;
    let agent = world.connected("edge1", Carrier::Tls).await;
    let header = StreamHeader {
        target: Target::Echo,
        class: Class::Interactive,
        deadline_ms: 0,
        traceparent: None,
        principal: None,
    };
    let _stream = agent.session.open(&header).await;
    let reason = timeout(LONG, agent.session.closed()).await.unwrap();
    assert!(matches!(reason.code, CloseCode::ForbiddenStream | CloseCode::Protocol), "{reason:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed_within_the_session() {
    let world = World::new().await;
    let agent = world.connected("edge1", Carrier::Tls).await;
    let key = KeyPair::generate().unwrap();
    let csr = CertificateParams::default().serialize_request(&key).unwrap().der().to_vec();
    agent.session.send(Control::Renew { csr }).await.unwrap();
    let answer = timeout(LONG, agent.session.recv()).await.unwrap();
    let Some(Control::Renewed { chain, bundle }) = answer else { panic!("{answer:?}") };
    assert_eq!(bundle, vec![world.ca().to_vec()]);
    let leaf = rustls_pki_types::CertificateDer::from(chain[0].clone());
    let id = moorline_link::tls::peer_id(&leaf).unwrap().to_string();
    assert_eq!(id, "spiffe://moorline.local/cluster/edge1/agent/a1");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_nobody_is_connected_and_agents_come_back() {
    let world = World::new().await;
    let agent = world.connected("edge1", Carrier::Tls).await;
    let admin = world.admin.clone();
    let quic_secret = world.dir.path().join("hub/quic.secret");
    let secret = std::fs::read(&quic_secret).unwrap();
    eventually("connected", async || {
        world.get(&admin, &format!("{API}/clusters/edge1")).await.json()["status"]["agents"] == 1
    })
    .await;
    world.hub.shutdown().await;
    let reason = timeout(Duration::from_secs(10), agent.session.closed()).await.unwrap();
    assert_eq!(reason.code, CloseCode::Shutdown);
    let registry = prometheus::Registry::new();
    let hub = moorline_hub::Hub::start(crate::world::config(&world.dir), &registry).await.unwrap();
    let world = World { hub, dir: world.dir, admin, registry };
    assert_eq!(std::fs::read(&quic_secret).unwrap(), secret, "agents of a killed hub could not be told by the next");
    let status = world.get(&world.admin, &format!("{API}/clusters/edge1")).await.json()["status"].clone();
    assert_eq!(status["conditions"][0]["status"], "False");
    // A second hub on the same folder is told why it cannot.
    let registry = prometheus::Registry::new();
    let twice = moorline_hub::Hub::start(crate::world::config(&world.dir), &registry).await.err().unwrap();
    assert!(twice.to_string().contains("another hub runs on the data folder"), "{twice}");
}

#[tokio::test(flavor = "multi_thread")]
async fn s64_a_websocket_is_for_agents_that_ask_properly() {
    let world = World::new().await;
    let good = [
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Protocol: moorline.v1",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ];
    for (n, (header, code)) in [
        ("", 400),
        ("", 400),
        ("Sec-WebSocket-Version: 8", 426),
        ("Sec-WebSocket-Protocol: chat", 400),
        ("Sec-WebSocket-Key: x", 400),
    ]
    .into_iter()
    .enumerate()
    {
        let mut headers = good.to_vec();
        headers[n] = header;
        headers.retain(|header| !header.is_empty());
        assert_eq!(world.send("GET", "/connect", &headers, "").await.code, code, "{n}");
    }
    assert_eq!(world.send("GET", "/connect", &[], "").await.code, 400);
    assert_eq!(world.send("POST", "/connect", &good, "").await.code, 400);
    // Whoever gets in and speaks no TLS is nobody's agent: the hub hangs up and says so in its metrics.
    let mut stranger = world.connect("localhost", &[b"http/1.1"]).await;
    let request = format!("GET /connect HTTP/1.1\r\nHost: localhost\r\n{}\r\n\r\n", good.join("\r\n"));
    stranger.write_all(request.as_bytes()).await.unwrap();
    let mut head = [0; 12];
    stranger.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 101");
    stranger.write_all(&[0x82, 0x84, 0, 0, 0, 0, b'G', b'E', b'T', b' ']).await.unwrap();
    timeout(LONG, stranger.read_to_end(&mut Vec::new())).await.unwrap().ok();
    // Counted once the connection is done with, which its client sees first.
    let failures = || world.metric("moorline_hub_handshake_failures_total{kind=\"handshake\"}");
    eventually("counted", async || 0.0 < failures()).await;
}
