//! A token's time: when it is up, what was opened with it ends, and not before.

use crate::{
    rights::{EXEC, UPGRADE, WATCH, echoes, ended, open},
    world::{API, LONG, REVOKED, World, eventually},
};
use futures_util::future::join_all;
use jiff::Timestamp;
use moorline_link::Carrier;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::client::TlsStream;

/// As long as it takes to open a few streams on a machine that is busy, and some.
const LIFE: Duration = Duration::from_secs(8);
const FAR: &str = "2999-01-01T00:00:00Z";

/// A key of the administrator's: its name and its text.
async fn key(world: &World, expires: &str) -> (String, String) {
    let made = world.create("tokens", "Token", "", json!({ "user": "admin", "expires": expires })).await;
    let text = |at: &str| made.pointer(at).and_then(Value::as_str).unwrap().to_owned();
    (text("/metadata/name"), text("/status/token"))
}

/// A watch of the hub's own objects.
async fn watch(world: &World, token: &str) -> TlsStream<TcpStream> {
    let mut stream = world.connect("localhost", &[b"http/1.1"]).await;
    let ask = format!("GET {API}/groups?watch=1 HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n");
    stream.write_all(ask.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    let mut head = [0; 12];
    timeout(LONG, stream.read_exact(&mut head)).await.unwrap().unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");
    stream
}

/// When it ended: cut, or as if it were whole, after which the connection may go on.
async fn end(mut stream: TlsStream<TcpStream>, what: &str) -> Timestamp {
    let mut all = Vec::new();
    let reads =
        async { while !all.ends_with(b"\r\n0\r\n\r\n") && matches!(stream.read_buf(&mut all).await, Ok(1..)) {} };
    assert!(timeout(LIFE + REVOKED, reads).await.is_ok(), "{what}: still open");
    Timestamp::now()
}

async fn code(world: &World, token: &str) -> u16 {
    world.get(token, "/k8s/clusters/edge1/api").await.code
}

#[tokio::test(flavor = "multi_thread")]
async fn s51_what_a_token_opened_ends_with_its_time_and_not_before() {
    let world = World::with(|config| config.login_life = LIFE).await;
    let _agent = world.connected("edge1", Carrier::Tls).await;
    let mut lasting = open(&world, &world.admin, EXEC, UPGRADE).await;
    let password = std::fs::read_to_string(world.dir.path().join("hub/admin.password")).unwrap();
    let login = json!({ "username": "admin", "password": password.trim() }).to_string();
    let up = Timestamp::now() + LIFE;
    let login = world.send("POST", "/auth/login", &[], &login).await.json();
    let login = login["token"].as_str().unwrap().to_owned();
    let (_, key) = key(&world, &up.to_string()).await;
    let mut streams = Vec::new();
    for token in [&login, &key] {
        streams.push(("a watch", open(&world, token, WATCH, "").await));
        streams.push(("a shell", open(&world, token, EXEC, UPGRADE).await));
        streams.push(("a watch of the hub's own", watch(&world, token).await));
    }
    // What an object says of a time may be cut to whole seconds.
    let soonest = up - Duration::from_secs(1);
    let ends = streams.into_iter().map(|(what, stream)| async move {
        let at = end(stream, what).await;
        assert!(soonest <= at, "{what}: ended at {at}, and has until {up}");
    });
    join_all(ends).await;
    assert_eq!((code(&world, &login).await, code(&world, &key).await), (401, 401));
    echoes(&mut lasting).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s51_a_token_whose_time_is_changed_holds_what_it_opened_until_then() {
    let world = World::new().await;
    let _agent = world.connected("edge1", Carrier::Tls).await;
    let ((cut, shorter), until) = (key(&world, FAR).await, Timestamp::now() + LIFE);
    let (given, longer) = key(&world, &until.to_string()).await;
    let (watch, shell) = (open(&world, &shorter, WATCH, "").await, open(&world, &shorter, EXEC, UPGRADE).await);
    let mut lasting = open(&world, &longer, EXEC, UPGRADE).await;
    let change = async |name: &str, expires: &str| {
        world.patch(&format!("{API}/tokens/{name}"), &json!({ "spec": { "expires": expires } })).await;
    };
    change(&given, FAR).await;
    change(&cut, &Timestamp::now().to_string()).await;
    tokio::join!(ended(watch, "a watch"), ended(shell, "a shell"));
    assert_eq!(code(&world, &shorter).await, 401);
    eventually("its first end", async || until + Duration::from_secs(1) < Timestamp::now()).await;
    echoes(&mut lasting).await;
}
