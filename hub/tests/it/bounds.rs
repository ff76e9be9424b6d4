//! S77: how much of the hub connections take that do nothing, or that do it slowly.

use crate::{
    rights::{EXEC, PORT_FORWARD, echoes},
    world::{LONG, World, eventually, read_answer},
};
use moorline_hub::Config;
use moorline_link::Carrier;
use std::{io, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout},
};
use tokio_rustls::client::TlsStream;

/// How long somebody is seen to wait: nothing is found out by it where they do not.
const A_WHILE: Duration = Duration::from_secs(1);

async fn asks(stream: &mut TlsStream<TcpStream>) -> u16 {
    stream.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    stream.flush().await.unwrap();
    read_answer(stream).await.code
}

/// From that address of this machine; `None`: the hub hung up.
async fn from(world: &World, address: &str) -> Option<TcpStream> {
    let mut stream = world.socket_from(address).await;
    // Who is let in hears nothing before they speak.
    match timeout(A_WHILE, stream.read(&mut [0; 1])).await {
        Err(_) => Some(stream),
        Ok(said) => {
            assert!(matches!(said, Ok(0) | Err(_)), "a hub that says something to who says nothing");
            None
        }
    }
}

fn refused(world: &World) -> f64 {
    world.metric("moorline_hub_connections_refused_total")
}

#[tokio::test(flavor = "multi_thread")]
async fn s77_there_are_no_more_connections_than_there_may_be() {
    let world = World::with(|config| config.limits.connections = 3).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut stream = world.connect("localhost", &[b"http/1.1"]).await;
        assert_eq!(asks(&mut stream).await, 200);
        held.push(stream);
    }
    assert!(from(&world, "127.0.0.1").await.is_none() && from(&world, "127.0.0.2").await.is_none());
    assert_eq!(refused(&world), 2.0);
    for stream in &mut held {
        assert_eq!(asks(stream).await, 200, "who was there goes on");
    }
    held.pop();
    eventually("room again", async || from(&world, "127.0.0.1").await.is_some()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s77_one_address_does_not_take_all_connections() {
    let world = World::with(|config| config.limits.connections_per_address = 2).await;
    let (one, two) = (from(&world, "127.0.0.2").await, from(&world, "127.0.0.2").await);
    assert!(one.is_some() && two.is_some());
    assert!(from(&world, "127.0.0.2").await.is_none());
    assert_eq!(refused(&world), 1.0);
    assert_eq!(asks(&mut world.connect("localhost", &[b"http/1.1"]).await).await, 200, "others have room");
    drop(one);
    eventually("room again", async || from(&world, "127.0.0.2").await.is_some()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s77_there_are_no_more_handshakes_at_a_time_than_there_may_be() {
    let world = World::with(|config| {
        config.limits.handshakes = 2;
        config.limits.handshake = LONG;
    })
    .await;
    let mut open = world.connect("localhost", &[b"http/1.1"]).await;
    let (one, two) = (from(&world, "127.0.0.1").await.unwrap(), from(&world, "127.0.0.1").await.unwrap());
    let mut third = Box::pin(world.connect("localhost", &[b"http/1.1"]));
    assert!(timeout(A_WHILE, &mut third).await.is_err(), "a third handshake beside two");
    assert_eq!(asks(&mut open).await, 200, "who has done it goes on");
    drop(one);
    assert_eq!(asks(&mut timeout(LONG, third).await.expect("its turn")).await, 200);
    drop(two);
}

#[tokio::test(flavor = "multi_thread")]
async fn s77_one_address_does_not_take_all_handshakes() {
    let world = World::with(|config| {
        config.limits.handshakes_per_address = 2;
        config.limits.handshake = LONG;
    })
    .await;
    let (one, two) = (from(&world, "127.0.0.2").await.unwrap(), from(&world, "127.0.0.2").await.unwrap());
    let mut third = Box::pin(world.connect_from("127.0.0.2"));
    assert!(timeout(A_WHILE, &mut third).await.is_err(), "a third handshake of one address beside two");
    assert_eq!(asks(&mut world.connect("localhost", &[b"http/1.1"]).await).await, 200, "others pass");
    drop(one);
    assert_eq!(asks(&mut timeout(LONG, third).await.expect("its turn")).await, 200);
    drop(two);
}

/// Who waits behind their own address for longer than a handshake may take is seen off, and counted.
#[tokio::test(flavor = "multi_thread")]
async fn s77_who_waits_for_a_handshake_in_vain_is_counted() {
    let world = World::with(|config| {
        config.limits.handshakes_per_address = 1;
        config.limits.handshake = Duration::from_secs(4);
    })
    .await;
    // Each is seen to wait for a second: the first is gone when the second's turn comes, and the second is not for the third.
    let mut silent = Vec::new();
    for _ in 0..3 {
        silent.push(from(&world, "127.0.0.2").await.unwrap());
    }
    for stream in &mut silent {
        let ended = timeout(LONG, stream.read_to_end(&mut Vec::new())).await;
        assert!(ended.is_ok(), "a connection that says nothing stays");
    }
    assert!(0.0 < world.metric("moorline_hub_handshake_failures_total{kind=\"busy_address\"}"));
    assert_eq!(asks(&mut world.connect_from("127.0.0.2").await).await, 200);
}

/// What a connection has become counts for as long as it lives.
#[tokio::test(flavor = "multi_thread")]
async fn s77_upgraded_connections_keep_their_places_until_they_end() {
    const MOST: usize = 8;
    const KINDS: [(&str, &str); 4] = [
        (EXEC, "websocket"),
        (EXEC, "SPDY/3.1"),
        (PORT_FORWARD, "SPDY/3.1"),
        ("/connect/svc/shop/web:80", "moorline-stream"),
    ];
    let world = World::with(|config| config.limits.connections_per_address = MOST).await;
    let _agent = world.connected("edge1", Carrier::Tls).await;
    let upgraded = || world.metric("moorline_hub_connections_upgraded");
    let mut held = Vec::new();
    for (path, protocol) in KINDS.into_iter().cycle().take(MOST) {
        let mut stream = world.connect_from("127.0.0.2").await;
        let ask = format!(
            "GET /k8s/clusters/edge1{path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\r\n",
            world.admin
        );
        stream.write_all(ask.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        assert_eq!(read_answer(&mut stream).await.code, 101, "{path} {protocol}");
        held.push(stream);
    }
    eventually("counted", async || upgraded() == MOST as f64).await;
    assert!(MOST as f64 <= world.metric("moorline_hub_connections_open"));
    assert!(from(&world, "127.0.0.2").await.is_none(), "one more than an address may have");
    assert!(from(&world, "127.0.0.3").await.is_some(), "others have room");
    for stream in &mut held {
        echoes(stream).await;
    }
    held.pop();
    eventually("room again", async || from(&world, "127.0.0.2").await.is_some()).await;
    drop(held);
    eventually("over", async || upgraded() == 0.0 && world.metric("moorline_hub_connections_open") == 0.0).await;
}

/// A session has bounds of its own, whichever way it came.
#[tokio::test(flavor = "multi_thread")]
async fn sessions_of_agents_take_no_places_of_connections() {
    for carrier in [Carrier::Tls, Carrier::WebSocket] {
        let world = World::new().await;
        let agent = world.connected("edge1", carrier).await;
        let count = |what: &str| world.metric(&format!("moorline_hub_connections_{what}"));
        let free = async || count("open") == 0.0 && count("upgraded") == 0.0;
        eventually(&format!("no place is taken by {carrier}"), free).await;
        assert!(agent.session.ping().await.is_ok(), "{carrier}");
    }
}

/// Who waits for a turn waits no longer than a handshake may take.
#[tokio::test(flavor = "multi_thread")]
async fn s77_handshakes_that_come_to_nothing_make_room_by_themselves() {
    let world = World::with(|config| {
        config.limits.handshakes = 1;
        config.limits.handshake = Duration::from_secs(3);
    })
    .await;
    let mut silent = from(&world, "127.0.0.1").await.unwrap();
    let mut waits = from(&world, "127.0.0.1").await.unwrap();
    for stream in [&mut silent, &mut waits] {
        let ended = timeout(LONG, stream.read_to_end(&mut Vec::new())).await;
        assert!(ended.is_ok(), "a connection that says nothing stays");
    }
    assert_eq!(asks(&mut world.connect("localhost", &[b"http/1.1"]).await).await, 200);
    assert!(0.0 < world.metric("moorline_hub_handshake_failures_total{kind=\"slow\"}"));
}

/// The head of a request: so many bytes and headers, however it comes.
#[tokio::test(flavor = "multi_thread")]
async fn s77_a_head_has_no_more_bytes_and_headers_than_it_may() {
    let world = World::new().await;
    let head = |more: &str| format!("GET /livez HTTP/1.1\r\nHost: localhost\r\n{more}\r\n");
    let (fits, long) = (format!("a: {}\r\n", "a".repeat(30 << 10)), format!("a: {}\r\n", "a".repeat(33 << 10)));
    let (some, many) = ("a: b\r\n".repeat(90), "a: b\r\n".repeat(101));
    for (what, more, code) in
        [("30 KiB", &fits, 200), ("33 KiB", &long, 431), ("90 headers", &some, 200), ("101 headers", &many, 431)]
    {
        let mut stream = world.connect("localhost", &[b"http/1.1"]).await;
        stream.write_all(head(more).as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        let answer = read_answer(&mut stream).await;
        assert_eq!(answer.code, code, "{what}: {answer:?}");
        if code == 431 {
            assert!(timeout(LONG, stream.read_to_end(&mut Vec::new())).await.is_ok(), "{what}: goes on");
        }
    }
    // One that has no end is not read for long.
    let mut stream = world.connect("localhost", &[b"http/1.1"]).await;
    stream.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n").await.unwrap();
    let (mut sent, piece) = (0_usize, "x: y\r\n".repeat(1 << 10));
    let flood = async {
        while stream.write_all(piece.as_bytes()).await.is_ok() && stream.flush().await.is_ok() {
            sent += piece.len();
        }
    };
    assert!(timeout(LONG, flood).await.is_ok(), "headers without an end are taken for ever");
    assert!(sent < 16 << 20, "{sent} bytes of headers were taken"); // what the system's own buffers hold, and no more
}

/// Connections that say half of something, byte by byte, or nothing at all: whatever they speak they end, and in time.
#[tokio::test(flavor = "multi_thread")]
async fn s77_who_says_nothing_or_says_it_slowly_is_seen_off() {
    let head = Duration::from_secs(3);
    let world = World::with(|config: &mut Config| {
        config.limits.head = head;
        config.limits.stranger = head;
    })
    .await;
    let begun = Instant::now();
    // Of HTTP/2: its preface, and a HEADERS frame that another is to follow.
    let half = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"[..], b"\0\0\x01\x01\0\0\0\0\x01\x82"].concat();
    let first: [(&str, &[u8], &[u8]); 5] = [
        ("nothing of HTTP/1", b"http/1.1", b""),
        ("half a head of HTTP/1", b"http/1.1", b"GET /livez HTTP/1.1\r\nHost: loc"),
        ("nothing of HTTP/2", b"h2", b""),
        ("half a preface of HTTP/2", b"h2", b"PRI * HTT"),
        ("half a head of HTTP/2", b"h2", &half),
    ];
    let mut all = Vec::new();
    for (what, alpn, bytes) in first {
        let mut stream = world.connect("localhost", &[alpn]).await;
        stream.write_all(bytes).await.unwrap();
        stream.flush().await.unwrap();
        all.push((what, stream));
    }
    // A byte now and then buys no time.
    let mut slow = world.connect("localhost", &[b"http/1.1"]).await;
    let trickle = async {
        let mut bytes = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n".iter().chain(std::iter::repeat(&b'x'));
        let sent: io::Result<()> = loop {
            let byte = bytes.next().copied().unwrap_or_default();
            if let Err(error) = slow.write_all(&[byte]).await {
                break Err(error);
            }
            if let Err(error) = slow.flush().await {
                break Err(error);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        assert!(sent.is_err());
    };
    assert!(timeout(LONG, trickle).await.is_ok(), "a head that trickles in is waited for");
    for (what, mut stream) in all {
        let ended = timeout(LONG, stream.read_to_end(&mut Vec::new())).await;
        assert!(ended.is_ok(), "{what}: still open after {:?}", begun.elapsed());
    }
    assert_eq!(asks(&mut world.connect("localhost", &[b"http/1.1"]).await).await, 200);
}
