//! HTTP as attackers write it.

use crate::world::{LONG, World, eventually, read_answer};
use moorline_link::Carrier;
use std::{process::Stdio, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

#[tokio::test(flavor = "multi_thread")]
async fn s34_s35_s36_s38_ambiguous_framing_is_refused_and_the_connection_ends() {
    let world = World::new().await;
    let agent = world.connected("edge1", Carrier::Tls).await;
    let admin = &world.admin;
    let cases = [
        ("s34", "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET "),
        ("s35", "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!"),
        ("s35", "Content-Length: 5, 5\r\n\r\nhello"),
        ("s35", "Content-Length: +5\r\n\r\nhello"),
        ("s35", "Content-Length: 0x5\r\n\r\nhello"),
        ("s35", "Content-Length: 99999999999999999999\r\n\r\nhello"),
        ("s36", "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"),
        ("s36", "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
        ("s36", "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n"),
        ("s38", "X-A: a\rb\r\n\r\n"),
        ("s38", "X-A: a\r\n folded\r\n\r\n"),
    ];
    for (case, rest) in cases {
        let text = format!(
            "POST /k8s/clusters/edge1/api HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {admin}\r\n{rest}"
        );
        let mut stream = world.connect("localhost", &[b"http/1.1"]).await;
        stream.write_all(text.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        let answer = read_answer(&mut stream).await;
        assert!(matches!(answer.code, 400 | 431), "{case}: {rest:?}: {answer:?}");
        let mut more = Vec::new();
        let end = timeout(LONG, stream.read_to_end(&mut more)).await;
        assert!(end.is_ok(), "{case}: {rest:?}: the connection stayed open");
    }
    assert_eq!(agent.lines(), Vec::<String>::new());
    // Counted once the connection is done with, which its client sees first.
    let counted = || world.metric("moorline_hub_refusals_total{reason=\"framing\"}");
    eventually("counted", async || counted() == cases.len() as f64).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s43_ambiguous_paths_are_refused_before_the_clusters_part_and_kept_after() {
    let world = World::new().await;
    let agent = world.connected("edge1", Carrier::Tls).await;
    let bad = [
        "/k8s/clusters/edge1/../edge2/api",
        "/k8s/clusters/%2e%2e/api",
        "/k8s/clusters/..%2fedge1/api",
        "//k8s/clusters/edge1/api",
        "/k8s/./clusters/edge1/api",
        "/k8s/clusters/;/edge1/api",
        "/k8s/clusters/%00/api",
        "/k8s/clusters\\edge1/api",
        "/%6b8s/clusters/edge1/api",
    ];
    for path in bad {
        let before = agent.lines().len();
        let code = world.get(&world.admin, path).await.code;
        // Behind the cluster's name dots are the API server's business: it sees them as they came.
        if path.starts_with("/k8s/clusters/edge1/") {
            assert!(
                code == 400 || agent.lines().last().is_some_and(|l| l.ends_with("/../edge2/api")),
                "{path}: {code}"
            );
        } else {
            assert!(matches!(code, 400 | 404), "{path}: {code}");
            assert_eq!(agent.lines().len(), before, "{path}");
        }
    }
    let kept = "/api/v1/namespaces/a/services/http:b:80/proxy/x%2Fy?q=%2e%2e&r=a+b";
    assert_eq!(world.get(&world.admin, &format!("/k8s/clusters/edge1{kept}")).await.code, 200);
    assert_eq!(agent.lines().last().unwrap(), &format!("GET {kept}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn s29_s30_nothing_behind_a_refused_upgrade_is_a_request() {
    let world = World::new().await;
    let agent = world.connected("edge1", Carrier::Tls).await;
    let exec = format!(
        "GET /k8s/clusters/edge1/forbidden/exec HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {0}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n",
        world.admin
    );
    let smuggled = format!(
        "GET /k8s/clusters/edge1/api/v1/secrets HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {0}\r\n\r\n",
        world.admin
    );
    for pipelined in [true, false] {
        let mut stream = world.connect("localhost", &[b"http/1.1"]).await;
        let first = if pipelined { format!("{exec}{smuggled}") } else { exec.clone() };
        stream.write_all(first.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        let answer = read_answer(&mut stream).await;
        assert_eq!(answer.code, 403, "{answer:?}");
        if !pipelined {
            let _ = stream.write_all(smuggled.as_bytes()).await;
        }
        let mut more = Vec::new();
        let _ = timeout(LONG, stream.read_to_end(&mut more)).await;
        assert!(!String::from_utf8_lossy(&more).contains("200 OK"), "a second answer came");
    }
    assert!(agent.lines().iter().all(|line| !line.contains("secrets")), "{:?}", agent.lines());
}

#[tokio::test(flavor = "multi_thread")]
async fn s31_s33_s42_no_h2c_no_connect_no_absolute_targets() {
    let world = World::new().await;
    let agent = world.connected("edge1", Carrier::Tls).await;
    let auth = format!("Authorization: Bearer {}", world.admin);
    let h2c = ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk", auth.as_str()];
    let answer = world.send("GET", "/k8s/clusters/edge1/api", &h2c, "").await;
    assert!(matches!(answer.code, 200 | 400), "{answer:?}");
    for seen in agent.seen.lock().unwrap().iter() {
        assert!(seen.headers.iter().all(|(name, _)| name != "upgrade" && name != "http2-settings"), "{seen:?}");
    }
    let before = agent.lines().len();
    let connect = format!("CONNECT edge1:443 HTTP/1.1\r\nHost: localhost\r\n{auth}\r\n\r\n");
    assert!(matches!(world.raw(connect.as_bytes()).await.code, 400 | 405));
    for target in ["http://other.example/k8s/clusters/edge1/api", "*", "k8s/clusters/edge1/api"] {
        let code = world.send("GET", target, &[&auth], "").await.code;
        assert_eq!(code, 400, "{target}");
    }
    assert_eq!(agent.lines().len(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn s46_a_connection_made_for_one_host_serves_no_other() {
    let world = World::new().await;
    let ask = async |host: &str| {
        let mut stream = world.connect("localhost", &[b"http/1.1"]).await;
        stream.write_all(format!("GET /livez HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        read_answer(&mut stream).await.code
    };
    assert_eq!(ask("other.example").await, 421);
    for same in ["localhost", "LOCALHOST", "localhost.", "localhost:8443"] {
        assert_eq!(ask(same).await, 200, "{same}");
    }
}

/// More names than one would write down by hand: each is the hub's in every spelling, and none serves another.
#[tokio::test(flavor = "multi_thread")]
async fn s46_a_hub_of_more_than_a_hundred_names_answers_to_each_as_it_is_spelt() {
    const NAMES: usize = 150;
    let world = World::with(|config| config.names.extend((0..NAMES).map(|n| format!("h{n}.example")))).await;
    let ask = async |name: &str, host: &str| {
        let mut stream = world.connect(name, &[b"http/1.1"]).await;
        stream.write_all(format!("GET /livez HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        read_answer(&mut stream).await.code
    };
    for n in (0..NAMES).step_by(10).chain([99, 100, 101, NAMES - 1]) {
        let name = format!("h{n}.example");
        for same in [name.clone(), name.to_uppercase(), format!("H{n}.Example."), format!("{name}:8443")] {
            assert_eq!(ask(&name, &same).await, 200, "{same}");
        }
        assert_eq!(ask(&name, &format!("h{}.example", (n + 1) % NAMES)).await, 421, "{name}");
    }
}

fn gzip(text: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut command = std::process::Command::new("gzip");
    let mut child = command.arg("-c").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut stdin, text) = (child.stdin.take().unwrap(), text.to_vec());
    let writer = std::thread::spawn(move || stdin.write_all(&text));
    let out = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(out.status.success());
    out.stdout
}

/// Heads that trickle in at once.
const TRICKLES: usize = 64;

#[tokio::test(flavor = "multi_thread")]
async fn s56_s57_bodies_and_handshakes_have_bounds() {
    let world = World::with(|config| {
        config.limits.handshake = Duration::from_secs(3);
        config.limits.body_wait = Duration::from_secs(3);
        config.limits.head = Duration::from_secs(3);
    })
    .await;
    // Refused for what it says, before any of it comes.
    let large = world.raw(b"POST /auth/login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 67108864\r\n\r\n").await;
    assert_eq!(large.code, 413, "{large:?}");
    // And where it does not say how large it is, having read no more than a mebibyte: no more is there to be read.
    for path in ["/auth/login", "/auth/refresh", "/agent/join"] {
        let (mut read, mut write) = tokio::io::split(world.connect("localhost", &[b"http/1.1"]).await);
        let head = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n");
        let piece = [&b"10000\r\n"[..], &[b'a'; 0x10000], b"\r\n"].concat();
        let sends = async {
            write.write_all(head.as_bytes()).await.unwrap();
            for _ in 0..(1 << 20) / 0x10000 {
                // The hub may have hung up by now: what it said counts.
                if write.write_all(&piece).await.is_err() || write.flush().await.is_err() {
                    return;
                }
            }
        };
        let (answer, ()) = tokio::join!(read_answer(&mut read), sends);
        assert_eq!(answer.code, 413, "{path}: {answer:?}");
    }
    // What is compressed is not unpacked, though what is in it would log in; nor is a bomb.
    let password = std::fs::read_to_string(world.dir.path().join("hub/admin.password")).unwrap();
    let login = serde_json::json!({ "username": "admin", "password": password.trim() }).to_string();
    let plain = world.send("POST", "/auth/login", &[], &login).await;
    assert_eq!(plain.code, 200, "{plain:?}");
    let renewal = serde_json::json!({ "refreshToken": plain.json()["refreshToken"] }).to_string();
    let bomb = "0".repeat(8 << 20);
    for (path, text) in [("/auth/login", &login), ("/auth/refresh", &renewal), ("/auth/login", &bomb)] {
        let packed = gzip(text.as_bytes());
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Encoding: gzip\r\nContent-Length: {}\r\n\r\n",
            packed.len()
        );
        let answer = world.raw(&[head.as_bytes(), packed.as_slice()].concat()).await;
        assert!(matches!(answer.code, 400 | 413 | 415), "{path}: {answer:?}");
    }
    assert_eq!(world.send("POST", "/auth/refresh", &[], &renewal).await.code, 200, "it was good all the time");
    let slow = world.raw(b"POST /auth/login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{").await;
    assert_eq!(slow.code, 408);
    let deep = format!("{{\"username\":{}", "[".repeat(16_000));
    assert_eq!(world.send("POST", "/auth/login", &[], &deep).await.code, 400);
    let (token, deep) =
        (format!("Authorization: Bearer {}", world.admin), format!("{{\"spec\":{}", "[".repeat(100_000)));
    let users = "/apis/moorline.dev/v1alpha1/users";
    assert_eq!(world.send("POST", users, &[&token], &deep).await.code, 400);
    // Connections that say nothing, or half of it.
    let mut silent = TcpStream::connect(world.hub.addr()).await.unwrap();
    let mut half = TcpStream::connect(world.hub.addr()).await.unwrap();
    half.write_all(&[0x16, 0x03, 0x01, 0x02, 0x00, 0x01]).await.unwrap();
    for socket in [&mut silent, &mut half] {
        let mut rest = Vec::new();
        assert!(timeout(LONG, socket.read_to_end(&mut rest)).await.is_ok(), "still open");
    }
    let mut head = world.connect("localhost", &[b"http/1.1"]).await;
    head.write_all(b"GET /livez HTTP/1.1\r\nHost: loc").await.unwrap();
    head.flush().await.unwrap();
    let mut rest = Vec::new();
    assert!(timeout(LONG, head.read_to_end(&mut rest)).await.is_ok(), "a head took for ever");
    // S77: nor does one last that comes byte by byte, however many there are of them.
    let mut trickles = tokio::task::JoinSet::new();
    for _ in 0..TRICKLES {
        let stream = world.connect("localhost", &[b"http/1.1"]).await;
        trickles.spawn(async move {
            let (mut read, mut write) = tokio::io::split(stream);
            let trickle = async {
                for byte in b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: ".iter().chain(std::iter::repeat(&b'x')) {
                    if write.write_all(&[*byte]).await.is_err() || write.flush().await.is_err() {
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await; // as slow clients send
                }
            };
            let mut rest = Vec::new();
            let ended = timeout(LONG, async {
                tokio::select! {
                    _ = read.read_to_end(&mut rest) => {}
                    () = trickle => {}
                }
            });
            ended.await.is_ok()
        });
    }
    while let Some(ended) = trickles.join_next().await {
        assert!(ended.unwrap(), "a head that trickled in took for ever");
    }
    assert_eq!(world.send("GET", "/livez", &[], "").await.code, 200);
}
