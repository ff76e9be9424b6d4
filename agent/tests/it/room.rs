//! What the hub puts into the room of the cluster's own endpoint, and what is refused there.

use crate::pki::{AGENT, Authority};
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::BodyExt;
use moorline_agent::{EndpointConfig, endpoint::Room, metrics::Metrics};
use moorline_authz::bundle::{self, Bundle, BundleUser, delta};
use moorline_endpoint::{limits, now, recordings, shelf::Shelf, trust::Anchors};
use moorline_proxy::{
    audit::{AuditSink, Event},
    body,
    tape::About,
};
use rcgen::{KeyPair, SigningKey};
use serde_json::Value;

struct World {
    authority: Authority,
    registry: prometheus::Registry,
    room: Room,
    dir: tempfile::TempDir,
}

fn bundle(serial: u64) -> Bundle {
    let user = |n| BundleUser { name: format!("user{n}"), uid: format!("{:x}", n * 7_919), groups: vec!["dev".into()] };
    let users = (0..300).map(user).collect();
    let (issued, expires) = (now(), now() + 3600);
    Bundle { cluster: "edge1".into(), serial, issued, expires, users, ..Bundle::default() }
}

impl World {
    fn new() -> Self {
        let (authority, dir) = (Authority::new(), tempfile::tempdir().unwrap());
        assert!(AGENT.contains("edge1"));
        let registry = prometheus::Registry::new();
        let config = EndpointConfig { dir: dir.path().to_owned(), seal_key: None, secret: None };
        let member = authority.old_member(&KeyPair::generate().unwrap());
        let room = Room::open(&config, &member, Metrics::new(&registry).unwrap()).unwrap();
        Self { authority, registry, room, dir }
    }

    fn seal(&self, bundle: &Bundle) -> Vec<u8> {
        bundle::seal(bundle, |message| self.authority.key().sign(message)).unwrap()
    }

    async fn ask(&self, method: Method, path: &str, content: impl Into<Bytes>) -> (u16, String) {
        let request = Request::builder().method(method).uri(path).body(body::full(content)).unwrap();
        let answer = self.room.answer(request).await;
        let code = answer.status().as_u16();
        (code, String::from_utf8_lossy(&answer.into_body().collect().await.unwrap().to_bytes()).into_owned())
    }

    fn counted(&self, result: &str) -> f64 {
        let mut text = String::new();
        prometheus::TextEncoder::new().encode_utf8(&self.registry.gather(), &mut text).unwrap();
        let line = format!("moorline_agent_endpoint_bundles_total{{result=\"{result}\"}}");
        let found = text.lines().find(|l| l.starts_with(&line));
        found.and_then(|l| l.rsplit(' ').next()).and_then(|n| n.parse().ok()).unwrap_or(0.0)
    }

    async fn state(&self) -> Value {
        serde_json::from_str(&self.ask(Method::GET, "/state", "").await.1).unwrap()
    }
}

#[tokio::test]
async fn f44_z08_whatever_is_no_newer_bundle_of_this_clusters_hub_is_refused_and_counted() {
    let world = World::new();
    assert_eq!(world.ask(Method::PUT, "/bundle", world.seal(&bundle(5))).await.0, 200);
    let mut foreign = bundle(9);
    foreign.cluster = "edge2".into();
    let mut over = bundle(9);
    over.expires = now();
    let whole = world.seal(&bundle(9));
    let strange = bundle::seal(&bundle(9), |m| KeyPair::generate().unwrap().sign(m)).unwrap();
    for (bytes, code, label) in [
        (world.seal(&bundle(4)), 409, "older"),
        (world.seal(&foreign), 409, "cluster"),
        (world.seal(&over), 409, "expired"),
        (whole[..whole.len() - 10].to_vec(), 409, "signature"),
        (strange, 409, "signature"),
        (b"moorline".to_vec(), 409, "malformed"),
        (vec![b'a'; 100 << 20], 413, "too_large"),
    ] {
        let before = world.counted(label);
        let (found, words) = world.ask(Method::PUT, "/bundle", bytes).await;
        assert_eq!((found, world.counted(label)), (code, before + 1.0), "{label}: {words}");
        assert_eq!(world.state().await["serial"], 5, "{label}: what was there is there");
    }
    assert_eq!(world.ask(Method::POST, "/bundle", "").await.0, 404);
}

#[tokio::test]
async fn a_delta_brings_the_next_bundle_or_asks_for_the_whole() {
    let world = World::new();
    let (base, next) = (world.seal(&bundle(5)), world.seal(&bundle(6)));
    let change = delta::make(&base, &next).unwrap();
    assert_eq!(world.ask(Method::PATCH, "/bundle", change.clone()).await.0, 409, "there is nothing that it changes");
    assert_eq!(world.ask(Method::PUT, "/bundle", base.clone()).await.0, 200);
    let strange = bundle::seal(&bundle(9), |m| KeyPair::generate().unwrap().sign(m)).unwrap();
    assert_eq!(world.ask(Method::PATCH, "/bundle", delta::make(&base, &strange).unwrap()).await.0, 409);
    assert_eq!(world.counted("signature"), 1.0, "it is checked as a whole one");
    assert_eq!(world.ask(Method::PATCH, "/bundle", change.clone()).await.0, 200);
    assert_eq!(world.ask(Method::PATCH, "/bundle", change).await.0, 409, "and once");
    assert_eq!((world.counted("delta"), world.counted("base")), (1.0, 2.0));
    let state = world.state().await;
    assert_eq!((&state["serial"], &state["endpoints"]), (&6.into(), &Value::Array(vec![])), "{state}");
    // An endpoint that says that it is there is passed on.
    let word = serde_json::json!({ "mode": "proxy", "serial": 6, "current": true, "at": now() });
    std::fs::write(world.dir.path().join("in-use.proxy.json"), word.to_string()).unwrap();
    assert_eq!(world.state().await["endpoints"], serde_json::json!([word]));
}

struct Quiet;

impl AuditSink for Quiet {
    fn admit(&self) -> futures_util::future::BoxFuture<'_, Result<(), moorline_proxy::audit::AuditFull>> {
        Box::pin(std::future::ready(Ok(())))
    }
    fn push(&self, _: Event) {}
}

#[tokio::test]
async fn what_an_endpoint_has_recorded_is_given_piece_by_piece_until_the_hub_has_it() {
    let world = World::new();
    assert_eq!(world.ask(Method::GET, "/recordings", "").await, (200, String::new()), "there is no endpoint yet");
    assert_eq!(world.state().await.get("recordings"), None);
    let store = recordings::store(world.dir.path(), 4 << 20, 4 << 20, std::sync::Arc::new(Quiet)).unwrap();
    let about = |id: &str| About { audit_id: id.to_owned(), cluster: "edge1".to_owned(), ..About::default() };
    let over = store.begin(&about("ab")).await.unwrap();
    let text = "x".repeat(limits::RECORDING_PIECE as usize);
    over.shown(text.as_bytes());
    let seal = over.finish("complete").await.unwrap();
    let open = store.begin(&about("cd")).await.unwrap();
    assert_eq!(world.ask(Method::GET, "/recordings", "").await, (200, format!("{}\n", over.name())));
    assert_eq!(world.state().await["recordings"], 1, "one is over");

    let of = |name: &str, what: &str| format!("/recordings/{name}?{what}");
    let first = world.ask(Method::GET, &of(over.name(), "from=0"), "").await.1;
    let rest = world.ask(Method::GET, &of(over.name(), &format!("from={}", first.len())), "").await.1;
    assert_eq!((first.len(), first.len() + rest.len()), (text.len(), seal.bytes as usize));
    assert_eq!(
        world.ask(Method::GET, &of(over.name(), &format!("from={}", seal.bytes)), "").await,
        (200, String::new())
    );
    for (method, path, code) in [
        (Method::GET, of(open.name(), "from=0"), 404),
        (Method::GET, of("../endpoint", "from=0"), 404),
        (Method::GET, of("..%2faudit", "from=0"), 404),
        (Method::DELETE, of(over.name(), ""), 404),
        (Method::DELETE, of(over.name(), &format!("sha256={}", "0".repeat(64))), 409),
        (Method::PUT, of(over.name(), "from=0"), 404),
    ] {
        assert_eq!(world.ask(method.clone(), &path, "").await.0, code, "{method} {path}");
    }
    assert_eq!(world.state().await["recordings"], 1, "what the hub has not is kept");
    let had = of(over.name(), &format!("sha256={}", seal.sha256));
    assert_eq!(world.ask(Method::DELETE, &had, "").await.0, 200);
    assert_eq!(world.ask(Method::DELETE, &had, "").await.0, 200, "a hub that did not hear the answer asks again");
    assert_eq!(world.ask(Method::GET, "/recordings", "").await.1, "", "and what goes on is not named");
}

#[tokio::test]
async fn f26_endpoints_follow_the_hub_to_its_next_authority_and_never_lose_their_bundle() {
    let world = World::new();
    let next = Authority::new();
    let by = |authority: &Authority, n| bundle::seal(&bundle(n), |message| authority.key().sign(message)).unwrap();
    let file = world.dir.path().join("hub-ca.pem");
    // An endpoint beside the agent, as it was started before all this, and one that is started now.
    let early = Anchors::follow(&file).unwrap();
    let reads = |anchors: Anchors| {
        Shelf::open(world.dir.path(), "edge1", anchors, None).unwrap().read(None).ok().flatten().map(|b| b.serial)
    };
    let now = || Anchors::follow(&file).unwrap();
    assert_eq!(world.ask(Method::PUT, "/bundle", by(&world.authority, 5)).await.0, 200);
    assert_eq!(world.ask(Method::PUT, "/bundle", by(&next, 6)).await.0, 409, "a stranger still");
    world.room.trust(&[next.der(), world.authority.der()]);
    assert_eq!(now().all(), [next.der(), world.authority.der()]);
    assert_eq!(world.ask(Method::PUT, "/bundle", by(&world.authority, 6)).await.0, 200);

    // The old one is believed no more; what lies there is of it, and is all that there is.
    world.room.trust(&[next.der()]);
    assert_eq!((reads(now()), reads(early.clone())), (Some(6), Some(6)));
    assert_eq!(world.ask(Method::PUT, "/bundle", by(&next, 7)).await.0, 200);
    assert_eq!(now().all(), [next.der()], "nothing is left that the old one is needed for");
    assert_eq!((reads(now()), reads(early)), (Some(7), Some(7)), "one that runs looks again");
    assert_eq!(world.ask(Method::PUT, "/bundle", by(&world.authority, 8)).await.0, 409);
    // Nor after a restart of the agent.
    let config = EndpointConfig { dir: world.dir.path().to_owned(), seal_key: None, secret: None };
    let member = next.old_member(&KeyPair::generate().unwrap());
    let again = Room::open(&config, &member, Metrics::new(&prometheus::Registry::new()).unwrap()).unwrap();
    assert_eq!(now().all(), [next.der()]);
    drop(again);
}
