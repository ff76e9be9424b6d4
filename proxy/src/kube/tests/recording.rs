//! Sessions in terminals that have to be recorded.

use super::*;
use crate::{
    audit::OnFailure,
    tape::{Over, Settings, Store},
};
use moorline_authz::access::Recording;
use std::time::Duration;

struct Scene {
    world: Arc<World>,
    store: Arc<Store>,
    _dir: tempfile::TempDir,
}

fn scene(record: Recording, policy: OnFailure) -> Scene {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings {
        dir: dir.path().join("recordings"),
        max_file: 1 << 20,
        max_total: 1 << 24,
        keep: Duration::from_secs(3600),
        policy,
        over: Over::Kept,
    };
    let store = Store::open(settings, |_| {}).unwrap();
    let mut world = world("");
    world.record = Some(record);
    world.proxy = world.proxy.recording(Arc::clone(&store));
    Scene { world: Arc::new(world), store, _dir: dir }
}

/// The client's half of an `exec` over SPDY, up to its first key.
fn kubectl() -> Vec<u8> {
    let hex: Vec<u8> = include_bytes!("../../tape/spdy.hex").iter().copied().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    hex.chunks(2).map(byte).collect()
}

const EXEC: &str = "/api/v1/namespaces/x/pods/p/exec?command=sh&tty=true";

impl Scene {
    /// A client's connection to a real hyper in front, and the cluster's end of what it becomes.
    async fn exec(&self, upgrade: &str, answer: &'static [(&'static str, &'static str)]) -> (String, Ends) {
        let (cluster, upstream) = duplex(1 << 16);
        let upstream = Mutex::new(Some(upstream));
        self.world.up.answers(move |_| {
            let mut response = Response::builder().status(101);
            for (name, value) in answer {
                response = response.header(*name, *value);
            }
            let mut response = response.body(body::empty()).unwrap();
            response.extensions_mut().insert(UpgradedIo::new(upstream.lock().unwrap().take().unwrap()));
            Ok(response)
        });
        let (mut client, front) = duplex(1 << 16);
        let world = Arc::clone(&self.world);
        let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
            let world = world.clone();
            async move { Ok::<_, std::convert::Infallible>(world.call(request.map(body::from)).await) }
        });
        let front = TokioIo::new(crate::guard::Guarded::new(front));
        tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(front, service).with_upgrades());
        let request =
            format!("GET /k8s/clusters/a{EXEC} HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\n{upgrade}\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(client.read_u8().await.unwrap());
        }
        (String::from_utf8(head).unwrap(), Ends { client, cluster })
    }

    async fn over(&self) -> Vec<Event> {
        self.world.proxy.tasks.close();
        tokio::time::timeout(Duration::from_secs(30), self.world.proxy.tasks.wait()).await.unwrap();
        self.world.log.events.lock().unwrap().clone()
    }

    fn only(&self) -> String {
        let all = self.store.list(9, |_| true).unwrap();
        let [one] = &all[..] else { panic!("{all:?}") };
        String::from_utf8(self.store.read(&one.name).unwrap().unwrap()).unwrap()
    }
}

struct Ends {
    client: tokio::io::DuplexStream,
    cluster: tokio::io::DuplexStream,
}

const WEBSOCKET: &str = "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: x\r\n\
    Sec-WebSocket-Extensions: permessage-deflate\r\nSec-WebSocket-Protocol: v5.channel.k8s.io";
const SPOKEN: &[(&str, &str)] = &[("upgrade", "websocket"), ("sec-websocket-protocol", "v5.channel.k8s.io")];

#[tokio::test]
async fn what_a_terminal_shows_is_kept_byte_for_byte_and_sealed_in_the_audit_log() {
    let scene = scene(Recording::Always, OnFailure::Refuse);
    let (head, Ends { mut client, mut cluster }) = scene.exec(WEBSOCKET, SPOKEN).await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let seen = scene.world.up.seen().join("\n");
    assert!(seen.contains("sec-websocket-protocol: v5") && !seen.contains("permessage-deflate"), "{seen}");
    client.write_all(b"\x82\x84\x01\x02\x03\x04\x01\x73\x75\x09").await.unwrap(); // "\0qwr" under its mask
    let mut typed = [0; 10];
    cluster.read_exact(&mut typed).await.unwrap();
    cluster.write_all(b"\x82\x06\x01$ l\r\n\x82\x03\x02ab").await.unwrap();
    let mut shown = [0; 13];
    client.read_exact(&mut shown).await.unwrap();
    assert_eq!(&shown, b"\x82\x06\x01$ l\r\n\x82\x03\x02ab", "the client has what the cluster sent");
    drop((client, cluster));
    let events = scene.over().await;
    let cast = scene.only();
    assert!(cast.contains("\"o\", \"$ l\\r\\n\"]") && cast.contains("\"o\", \"ab\"]"), "{cast}");
    assert!(!cast.contains("\"i\""), "what is typed is not asked for: {cast}");
    let [begun, ended] = &events[..] else { panic!("{events:?}") };
    let of = |event: &Event, name: &str| event.annotations.get(name).cloned().unwrap_or_default();
    let name = scene.store.list(9, |_| true).unwrap()[0].name.clone();
    // When it began nobody knew whether there would be a session.
    assert_eq!([of(begun, "moorline.dev/recording"), of(ended, "moorline.dev/recording")], [String::new(), name]);
    let sha = <sha2::Sha256 as sha2::Digest>::digest(cast.as_bytes());
    let sha: String = sha.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(of(ended, "moorline.dev/recording-sha256"), sha);
}

#[tokio::test]
async fn spdy_is_recorded_too_and_what_is_typed_where_that_is_wanted() {
    let scene = scene(Recording::WithInput, OnFailure::Refuse);
    let upgrade = "Upgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io";
    let (_, Ends { mut client, mut cluster }) = scene.exec(upgrade, &[("upgrade", "SPDY/3.1")]).await;
    let mut sent = kubectl();
    sent.extend(b"\0\0\0\x03\0\0\0\x03ls\r"); // stream 3 is stdin in what kubectl sent
    client.write_all(&sent).await.unwrap();
    let mut got = vec![0; sent.len()];
    cluster.read_exact(&mut got).await.unwrap();
    assert_eq!(got, sent);
    cluster.write_all(b"\0\0\0\x05\0\0\0\x04a b\n").await.unwrap();
    client.read_exact(&mut [0; 12]).await.unwrap();
    drop((client, cluster));
    scene.over().await;
    let cast = scene.only();
    assert!(cast.contains("\"o\", \"a b\\n\"]") && cast.contains("\"i\", \"ls\\r\"]"), "{cast}");
}

#[tokio::test]
async fn what_cannot_be_recorded_does_not_happen() {
    let scene = scene(Recording::Always, OnFailure::Continue);
    for (method, path) in [
        ("POST", "/api/v1/nodes/n/proxy/run/x/p/c?cmd=id"),
        ("GET", "/api/v1/nodes/n/proxy/exec/x/p/c?command=id"),
        ("GET", "/apis/subresources.kubevirt.io/v1/namespaces/x/virtualmachineinstances/v/console"),
    ] {
        let mut request = Request::builder().method(method).uri(format!("/k8s/clusters/a{path}"));
        if method == "GET" {
            request = request.header("connection", "upgrade").header("upgrade", "websocket");
        }
        let response = scene.world.call(empty(request)).await;
        assert_eq!(response.status(), 403, "{path}");
        assert!(text(response).await.contains("recorded here"));
    }
    assert!(scene.world.up.seen().is_empty());
    let (head, _) = scene.exec(WEBSOCKET, &[("upgrade", "websocket"), ("sec-websocket-protocol", "own")]).await;
    assert!(head.starts_with("HTTP/1.1 502 "), "{head}");
    // Jobs of the store are done in turn: once this one has begun, what was to go is gone.
    let probe = scene.store.begin(&Default::default()).await.unwrap();
    let names: Vec<_> = scene.store.list(9, |_| true).unwrap().into_iter().map(|kept| kept.name).collect();
    assert_eq!(names, [probe.name()], "of no session there is no recording");
    let ended: Vec<String> = scene.world.ended().into_iter().map(|(_, ended)| ended).collect();
    assert_eq!(ended, ["unrecordable"; 4]);
    // Nor does a record name one: not of this session, and not of one that the cluster refuses.
    scene.world.up.answers(|_| Ok(Response::builder().status(403).body(body::empty()).unwrap()));
    let request = get(EXEC).header("connection", "upgrade").header("upgrade", "websocket");
    assert_eq!(scene.world.call(empty(request)).await.status(), 403);
    let events = scene.world.log.events.lock().unwrap().clone();
    assert!(events.len() > 5 && !events.iter().any(|event| event.annotations.contains_key("moorline.dev/recording")));
}

#[tokio::test]
async fn s70_a_session_that_turns_unreadable_ends_and_nothing_of_it_arrives() {
    const SPDY: &str = "Upgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io";
    const AGREED: &[(&str, &str)] = &[("upgrade", "SPDY/3.1")];
    // Stream 3 is stdin in what kubectl sent; a ping that says more than it has hides what is written to it.
    let hidden = [kubectl(), b"\x80\x03\0\x06\0\0\0\x10\0\0\0\x01\0\0\0\x03\0\0\0\x04rm\n\n".to_vec()].concat();
    let nobodys = [kubectl(), b"\0\0\0\x09\0\0\0\x03rm\n".to_vec()].concat();
    for (upgrade, answer, bad) in [
        (WEBSOCKET, SPOKEN, b"\xc2\x84\0\0\0\0\0rm\n".to_vec()), // as if compressed
        (WEBSOCKET, SPOKEN, b"\x02\x82\0\0\0\0\x02x\x80\x84\0\0\0\0\0rm\n".to_vec()), // in two parts
        (SPDY, AGREED, hidden),
        (SPDY, AGREED, nobodys),
    ] {
        let scene = scene(Recording::Always, OnFailure::Continue);
        let (_, Ends { mut client, mut cluster }) = scene.exec(upgrade, answer).await;
        client.write_all(&bad).await.unwrap();
        let mut heard = Vec::new();
        let over = tokio::time::timeout(Duration::from_secs(30), cluster.read_to_end(&mut heard)).await;
        assert!(over.is_ok(), "it goes on: {bad:?}");
        assert!(!heard.windows(3).any(|bytes| bytes == b"rm\n"), "{heard:?}");
        let events = scene.over().await;
        assert_eq!(events.last().unwrap().annotations["moorline.dev/ended"], "unrecordable", "{bad:?}");
    }
}

#[tokio::test]
async fn f32_a_store_that_fails_refuses_sessions_or_lets_them_go_on_by_policy() {
    for (policy, expected) in [(OnFailure::Refuse, "HTTP/1.1 503 "), (OnFailure::Continue, "HTTP/1.1 101 ")] {
        let scene = scene(Recording::Always, policy);
        std::fs::remove_dir_all(scene._dir.path()).unwrap();
        let (head, ends) = scene.exec(WEBSOCKET, SPOKEN).await;
        assert!(head.starts_with(expected), "{head}");
        drop(ends);
        let events = scene.over().await;
        let said = &events.last().unwrap().annotations;
        match policy {
            OnFailure::Refuse => assert_eq!(said["moorline.dev/ended"], "recording_failed"),
            OnFailure::Continue => assert_eq!(said["moorline.dev/unrecorded"], "recording_failed"),
        }
    }
}

#[tokio::test]
async fn without_a_place_for_recordings_a_session_that_needs_one_is_refused() {
    let mut world = world("");
    world.record = Some(Recording::Always);
    let upgrade = get(EXEC).header("connection", "upgrade").header("upgrade", "SPDY/3.1");
    assert_eq!(world.call(empty(upgrade)).await.status(), 403);
    assert!(world.up.seen().is_empty());
    assert_eq!(world.call(empty(get("/api"))).await.status(), 200, "everything else passes");
}
