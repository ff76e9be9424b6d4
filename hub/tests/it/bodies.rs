//! Bodies of any shape, and readers of any speed.

use crate::world::{API, World, eventually, read_answer};
use moorline_link::Carrier;
use proptest::{
    prelude::*,
    test_runner::{Config, TestCaseError, TestRunner},
};
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::client::TlsStream;

const SOON: Duration = Duration::from_secs(20);

/// A request's body and how it is written.
#[derive(Debug, Clone)]
struct Sent {
    pieces: Vec<String>,
    chunked: bool,
}

impl Sent {
    fn body(&self) -> String {
        self.pieces.concat()
    }

    fn text(&self, token: &str, at: usize, last: bool) -> String {
        let body = self.body();
        let mut text =
            format!("POST /k8s/clusters/edge1/n{at} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n");
        if last {
            text.push_str("Connection: close\r\n");
        }
        if !self.chunked {
            return text + &format!("Content-Length: {}\r\n\r\n{body}", body.len());
        }
        text.push_str("Transfer-Encoding: chunked\r\n\r\n");
        for piece in self.pieces.iter().filter(|piece| !piece.is_empty()) {
            text.push_str(&format!("{:x}\r\n{piece}\r\n", piece.len()));
        }
        text + "0\r\n\r\n"
    }
}

/// Bodies that look like what could stand between them.
fn piece() -> impl Strategy<Value = String> {
    let looks = prop::sample::select(vec![
        "0\r\n\r\n",
        "\r\n",
        "5\r\nhello\r\n",
        "GET /k8s/clusters/edge1/smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "\0",
        "ffffffff\r\n",
    ]);
    prop_oneof![looks.prop_map(str::to_owned), "[ -~]{0,40}", (0usize..70_000).prop_map(|n| "x".repeat(n))]
}

fn sent() -> impl Strategy<Value = Sent> {
    (prop::collection::vec(piece(), 0..6), any::<bool>()).prop_map(|(pieces, chunked)| Sent { pieces, chunked })
}

/// Z05, whole way: however bodies are framed and cut, each request that the recorder sees is one that was sent.
#[test]
fn z05_bodies_arrive_as_they_were_sent_however_they_are_cut() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (world, agent) = runtime.block_on(async {
        let world = World::new().await;
        let agent = world.connected("edge1", Carrier::Tls).await;
        (world, agent)
    });
    let mut runner = TestRunner::new(Config { cases: 32, failure_persistence: None, ..Config::default() });
    let requests = (prop::collection::vec(sent(), 1..4), prop::collection::vec(1usize..5000, 1..20));
    let result = runner.run(&requests, |(requests, cuts)| {
        let before = agent.lines().len();
        let last = requests.len() - 1;
        let text: String =
            requests.iter().enumerate().map(|(at, sent)| sent.text(&world.admin, at, at == last)).collect();
        let answers = runtime.block_on(async {
            let (mut read, mut write) = tokio::io::split(world.connect("localhost", &[b"http/1.1"]).await);
            let writing = async {
                let mut rest = text.as_bytes();
                for cut in cuts.iter().chain(std::iter::repeat(&16_384)) {
                    let (now, later) = rest.split_at((*cut).min(rest.len()));
                    write.write_all(now).await.unwrap();
                    write.flush().await.unwrap();
                    rest = later;
                    if rest.is_empty() {
                        break;
                    }
                }
            };
            let mut all = Vec::new();
            let (_, read) = timeout(SOON, async { tokio::join!(writing, read.read_to_end(&mut all)) }).await.unwrap();
            let _ = read; // the hub may end without a TLS goodbye
            String::from_utf8_lossy(&all).into_owned()
        });
        prop_assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), requests.len(), "{}", answers);
        let seen = agent.seen.lock().unwrap();
        let seen: Vec<(String, String)> = seen[before..].iter().map(|s| (s.line.clone(), s.body.clone())).collect();
        let want: Vec<(String, String)> =
            requests.iter().enumerate().map(|(at, sent)| (format!("POST /n{at}"), sent.body())).collect();
        prop_assert!(seen == want, "what arrived is not what was sent");
        Ok(())
    });
    result.unwrap();
    runtime.block_on(world.hub.shutdown());
}

/// Z06, whole way: what the hub judged is what the recorder is asked for, to the byte; the rest reaches nobody.
#[test]
fn z06_targets_arrive_as_they_were_judged_or_not_at_all() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (world, one, two, token) = runtime.block_on(async {
        let world = World::new().await;
        let one = world.connected("edge1", Carrier::Tls).await;
        let two = world.connected("edge2", Carrier::Tls).await;
        let token = world.user("anna", &["edge1"]).await;
        (world, one, two, token)
    });
    let auth = format!("Authorization: Bearer {token}");
    let part = prop::sample::select(vec![
        "/",
        "//",
        "/.",
        "/..",
        "%2e",
        "%2E%2e",
        "%2f",
        "%252f",
        "%5c",
        "\\",
        ";",
        "%00",
        "a",
        "api",
        "edge2",
        "..%2f",
        "/k8s/clusters/edge2",
        "clusters",
        "?",
        "%3f",
        "#",
        "&x=/../",
        "%",
        "%zz",
        ":80",
    ]);
    let target = prop::collection::vec(part, 0..7).prop_map(|parts| parts.concat());
    let mut runner = TestRunner::new(Config { cases: 96, failure_persistence: None, ..Config::default() });
    let result = runner.run(&target, |rest| {
        let before = one.lines().len();
        let code = runtime.block_on(world.send("GET", &format!("/k8s/clusters/edge1{rest}"), &[&auth], "")).code;
        let arrived = one.lines().split_off(before);
        if code == 200 {
            let want = if rest.is_empty() { "/" } else { rest.as_str() };
            prop_assert_eq!(arrived, [format!("GET {want}")]);
        } else {
            prop_assert!(matches!(code, 400 | 403), "{}: {}", rest, code);
            prop_assert_eq!(arrived, Vec::<String>::new());
        }
        prop_assert_eq!(two.lines(), Vec::<String>::new(), "{} reached another cluster", rest);
        Ok(())
    });
    result.unwrap();
    runtime.block_on(world.hub.shutdown());
}

/// The same for services: what one is sent is, to the byte, the end of what was asked for.
#[test]
fn z06_targets_of_services_arrive_as_they_were_judged_or_not_at_all() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (world, one, two, token) = runtime.block_on(async {
        let world = World::new().await;
        let one = world.connected("edge1", Carrier::Tls).await;
        let two = world.connected("edge2", Carrier::Tls).await;
        let token = world.user("anna", &[]).await;
        let spec = serde_json::json!({ "users": ["anna"], "clusters": ["edge1"], "namespaces": ["shop"], "services": ["web"] });
        world.create("servicegrants", "ServiceGrant", "anna", spec).await;
        let own = "/k8s/clusters/edge1/services/shop/web:80/";
        crate::world::eventually("grant", async || world.get(&token, own).await.code == 200).await;
        (world, one, two, token)
    });
    let auth = format!("Authorization: Bearer {token}");
    let part = prop::sample::select(vec![
        "/",
        "//",
        "/.",
        "/..",
        "%2e",
        "%2E%2e",
        "%2f",
        "%252f",
        "%5c",
        "\\",
        ";",
        "%00",
        "a",
        "db:80",
        "..%2f",
        "/../db:80/",
        "/services/shop/db:80",
        "/k8s/clusters/edge2/services/shop/web:80",
        "?",
        "%3f",
        "#",
        "&x=/../",
        "%",
        "%zz",
        ":80",
    ]);
    let rest = prop::collection::vec(part, 0..6).prop_map(|parts| parts.concat());
    // The name of the service is bent as well.
    let target = prop_oneof![
        rest.clone().prop_map(|rest| format!("/web:80{rest}")),
        rest.clone().prop_map(|rest| format!("/web{rest}:80/")),
        rest.prop_map(|rest| format!("{rest}/web:80/a")),
    ];
    let mut runner = TestRunner::new(Config { cases: 96, failure_persistence: None, ..Config::default() });
    let result = runner.run(&target, |target| {
        let before = one.lines().len();
        let path = format!("/k8s/clusters/edge1/services/shop{target}");
        let code = runtime.block_on(world.send("GET", &path, &[&auth], "")).code;
        let arrived = one.lines().split_off(before);
        if code == 200 {
            let [line] = &arrived[..] else { return Err(TestCaseError::fail(format!("{target}: {arrived:?}"))) };
            let sent = line.strip_prefix("GET ").unwrap_or_default();
            prop_assert!(sent.starts_with('/') && target.ends_with(sent), "{}: {}", target, sent);
            let named = &target[..target.len() - sent.len()];
            prop_assert!(
                named == "/web:80" || named.strip_prefix("/web:").is_some_and(|port| !port.contains('/')),
                "{}",
                named
            );
        } else {
            prop_assert!(matches!(code, 308 | 400 | 403 | 404), "{}: {}", target, code);
            prop_assert_eq!(arrived, Vec::<String>::new());
        }
        prop_assert_eq!(two.lines(), Vec::<String>::new(), "{} reached another cluster", target);
        Ok(())
    });
    result.unwrap();
    runtime.block_on(world.hub.shutdown());
}

/// S77: a reader that stops for longer than a dead peer is waited for is not one. Real time: the clock is the kernel's.
#[tokio::test(flavor = "multi_thread")]
async fn s77_a_slow_reader_is_not_cut_off() {
    let world = World::with(|config| config.limits.unacknowledged = Duration::from_millis(300)).await;
    let _agent = world.connected("edge1", Carrier::Tls).await;
    for (path, more) in [("large", ""), ("exec", "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n")] {
        let mut stream = world.connect("localhost", &[b"http/1.1"]).await;
        let ask = format!(
            "GET /k8s/clusters/edge1/{path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n{more}\r\n",
            world.admin
        );
        stream.write_all(ask.as_bytes()).await.unwrap();
        let (mut read, mut write) = tokio::io::split(stream);
        // An echo of more than all buffers hold; the plain answer is as long by itself.
        let writing = tokio::spawn(async move {
            if path == "exec" {
                write.write_all(&vec![b'x'; LARGE]).await.unwrap();
            }
            write.flush().await.unwrap();
            write
        });
        tokio::time::sleep(Duration::from_millis(2500)).await;
        let mut got = 0;
        let mut chunk = vec![0; 64 << 10];
        while got < LARGE {
            match timeout(SOON, read.read(&mut chunk)).await.unwrap() {
                Ok(0) => break,
                Ok(n) => got += n,
                Err(error) => panic!("{path}: cut after {got} bytes: {error}"),
            }
        }
        assert!(got >= LARGE, "{path}: {got}");
        drop(writing.await.unwrap());
    }
}

/// S77: who sends nothing more of a body is told so, and the connection ends; it costs the cluster nothing.
#[tokio::test(flavor = "multi_thread")]
async fn s77_a_body_that_stalls_is_ended_with_its_connection() {
    let pace = moorline_proxy::pace::Pace { bytes: 100, over: Duration::from_millis(300) };
    let world = World::with(|config| config.limits.body_pace = pace).await;
    let agent = world.connected("edge1", Carrier::Tls).await;
    let before = agent.lines().len();
    let mut stream = world.connect("localhost", &[b"http/1.1"]).await;
    let head = format!(
        "POST /k8s/clusters/edge1/n HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\nContent-Length: 1000\r\n\r\nsome",
        world.admin
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    let mut answer = Vec::new();
    let read = timeout(SOON, stream.read_to_end(&mut answer)).await.expect("the connection ends");
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("came too slowly"), "{read:?}: {answer}");
    assert_eq!(world.metric("moorline_proxy_slow_bodies_total"), 1.0);
    assert_eq!(agent.lines().len(), before, "nothing that is whole arrived");
}

/// S77: nor does a byte now and then buy time, whoever sends it and wherever it goes.
#[tokio::test(flavor = "multi_thread")]
async fn s77_a_body_that_trickles_in_is_ended_wherever_it_goes() {
    let world = World::with(|config| {
        config.limits.body_pace = moorline_proxy::pace::Pace { bytes: 100, over: Duration::from_millis(300) };
        config.limits.body_wait = Duration::from_secs(1);
    })
    .await;
    let agent = world.connected("edge1", Carrier::Tls).await;
    let before = agent.lines().len();
    let users = format!("{API}/users");
    for path in ["/k8s/clusters/edge1/api/v1/namespaces/a/configmaps", &users, "/auth/token", "/auth/refresh"] {
        let (mut read, mut write) = tokio::io::split(world.connect("localhost", &[b"http/1.1"]).await);
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\nContent-Length: 16000\r\n\r\n",
            world.admin
        );
        write.write_all(head.as_bytes()).await.unwrap();
        let trickle = async {
            while write.write_all(b" ").await.is_ok() && write.flush().await.is_ok() {
                tokio::time::sleep(Duration::from_millis(50)).await; // as slow clients send
            }
        };
        let (answer, ended) = tokio::join!(read_answer(&mut read), timeout(SOON, trickle));
        assert_eq!(answer.code, 408, "{path}: {answer:?}");
        assert!(ended.is_ok(), "{path}: the connection goes on");
    }
    assert_eq!(world.metric("moorline_proxy_slow_bodies_total"), 1.0);
    assert_eq!(agent.lines().len(), before, "nothing that is whole arrived");
}

/// S77: who takes nothing of an answer that has an end loses the connection; a log that nobody reads stays. Real time: the
/// buffers are the kernel's.
#[tokio::test(flavor = "multi_thread")]
async fn s77_who_takes_nothing_of_an_answer_is_cut_off_and_streams_are_not() {
    let world = World::with(|config| config.limits.reader = Duration::from_secs(1)).await;
    let _agent = world.connected("edge1", Carrier::Tls).await;
    let begin = async |path: &str| {
        let mut stream = world.connect("localhost", &[b"http/1.1"]).await;
        let ask = format!(
            "GET /k8s/clusters/edge1/{path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n\r\n",
            world.admin
        );
        stream.write_all(ask.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        stream
    };
    let mut log = begin("api/v1/namespaces/large/pods/a/log").await;
    let mut stalled = begin("large").await;
    eventually("cut off", async || world.metric("moorline_hub_slow_readers_total") == 1.0).await;
    // What lay in the buffers, and no end of it.
    let read = async |stream: &mut TlsStream<TcpStream>| {
        let (mut got, mut chunk) = (0, vec![0; 64 << 10]);
        while got < LARGE {
            match timeout(SOON, stream.read(&mut chunk)).await.expect("bytes, or an end") {
                Ok(0) | Err(_) => break,
                Ok(n) => got += n,
            }
        }
        got
    };
    assert!(read(&mut stalled).await < LARGE);
    assert!(LARGE <= read(&mut log).await, "a log that was left alone is cut off");
    assert_eq!(world.metric("moorline_hub_slow_readers_total"), 1.0);
}

/// More than the buffers of two sockets, the hub, the tunnel and the agent together.
pub const LARGE: usize = 64 << 20;
