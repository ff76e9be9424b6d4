//! The hub's own certificate comes and goes.

use crate::world::{LONG, World, eventually};
use moorline_link::Carrier;
use std::time::{Duration, Instant};
use tokio::{io::AsyncWriteExt, time::timeout};

const LIFE: Duration = Duration::from_secs(12);

/// Sessions and users that were there before it was renewed notice nothing; who comes when the old one is over is let in.
#[tokio::test(flavor = "multi_thread")]
async fn f26_a_new_certificate_of_the_hubs_drops_nobody() {
    let world = World::with(|config| config.hub_certificate_life = LIFE).await;
    let begun = Instant::now();
    let carriers = [Carrier::Tls, Carrier::Quic, Carrier::WebSocket];
    let shown = async || {
        let stream = world.connect("localhost", &[b"http/1.1"]).await;
        stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    };
    let first = shown().await;
    let mut sessions = Vec::new();
    for carrier in carriers {
        sessions.push(world.connected(&format!("edge-{carrier}"), carrier).await);
    }
    let mut user = world.connect("localhost", &[b"http/1.1"]).await;
    user.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n").await.unwrap();
    user.flush().await.unwrap();
    eventually("a new one", async || shown().await != first).await;
    user.write_all(b"\r\n").await.unwrap();
    user.flush().await.unwrap();
    assert_eq!(crate::world::read_answer(&mut user).await.code, 200, "what was open goes on");
    tokio::time::sleep_until((begun + LIFE).into()).await; // until the first is worth nothing
    for (carrier, session) in carriers.into_iter().zip(&sessions) {
        assert!(timeout(LONG, session.session.ping()).await.unwrap().is_ok(), "{carrier}: its session was cut");
        world.connected(&format!("late-{carrier}"), carrier).await;
    }
}
