//! What clusters' own endpoints recorded of sessions in terminals, and the hub takes over.

use crate::world::{World, eventually};
use http::Method;
use moorline_proxy::{
    audit::OnFailure,
    body,
    tape::{About, Outbox, Over, Seal, Settings, Store},
    wire,
};
use serde_json::{Value, json};
use std::{
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tempfile::TempDir;

/// Made at the hub itself.
const HUBS: &str = "20261121101500-00c0ffee";

/// The folder of an endpoint, and its agent's answers about it.
struct Edge {
    dir: TempDir,
    store: Arc<Store>,
    outbox: Outbox,
    /// Audit records that nobody has taken.
    records: Mutex<Vec<Value>>,
    /// Names that it says and has not.
    forged: Mutex<Vec<String>>,
    /// Breaks off behind the first piece.
    breaks: AtomicBool,
    asked: Mutex<Vec<String>>,
}

impl Edge {
    fn new() -> Arc<Self> {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings {
            dir: dir.path().to_owned(),
            max_file: 1 << 20,
            max_total: 1 << 24,
            keep: Duration::MAX,
            policy: OnFailure::Refuse,
            over: Over::Fetched,
        };
        let store = Store::open(settings, |_| {}).unwrap();
        let outbox = Outbox::new(dir.path().to_owned());
        let (records, forged, breaks, asked) = Default::default();
        Arc::new(Self { dir, store, outbox, records, forged, breaks, asked })
    }

    /// A session of anna's in `cluster`.
    async fn session(&self, id: &str, cluster: &str, shown: &str) -> (String, Seal) {
        let about = About {
            audit_id: id.to_owned(),
            user: "anna".to_owned(),
            cluster: cluster.to_owned(),
            started: "2026-11-21T10:15:00.000000Z".to_owned(),
            ..About::default()
        };
        let tape = self.store.begin(&about).await.unwrap();
        tape.shown(shown.as_bytes());
        (tape.name().to_owned(), tape.finish("complete").await.unwrap())
    }

    /// Its end, for the audit log.
    fn ended(&self, name: &str, sha256: &str) {
        self.records.lock().unwrap().push(json!({
            "auditID": format!("of-{name}"), "stage": "ResponseComplete", "verb": "create",
            "requestURI": "/api/v1/namespaces/a/pods/b/exec", "user": { "username": "anna" },
            "requestReceivedTimestamp": "2026-11-21T10:15:00.000000Z", "stageTimestamp": "2026-11-21T10:15:00.000000Z",
            "annotations": { "moorline.dev/recording": name, "moorline.dev/recording-sha256": sha256 },
        }));
    }

    fn answer(&self, method: &Method, path: &str) -> (u16, Vec<u8>) {
        self.asked.lock().unwrap().push(format!("{method} {path}"));
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let value = query.split_once('=').map_or("", |(_, value)| value);
        let waiting = || {
            let forged = self.forged.lock().unwrap().clone();
            forged.into_iter().chain(self.outbox.list(9).unwrap()).collect::<Vec<_>>()
        };
        match (method.as_str(), path, path.strip_prefix("/recordings/")) {
            ("PUT", "/bundle", _) => (200, b"{}".to_vec()),
            ("GET", "/audit/id", _) => (200, b"0123456789abcdef0123456789abcdef".to_vec()),
            ("GET", "/audit", _) => {
                let records = self.records.lock().unwrap();
                let after = value.parse::<usize>().unwrap();
                let lines: String = records.iter().skip(after).map(|record| format!("{record}\n")).collect();
                (200, format!("{}\n{lines}", records.len()).into_bytes())
            }
            ("DELETE", "/audit", _) => (200, Vec::new()),
            ("GET", "/state", _) => (200, json!({ "recordings": waiting().len() }).to_string().into_bytes()),
            ("GET", "/recordings", _) => {
                (200, waiting().iter().map(|name| format!("{name}\n")).collect::<String>().into())
            }
            ("GET", _, Some(name)) => {
                let from = value.parse().unwrap();
                if from != 0 && self.breaks.swap(false, Ordering::SeqCst) {
                    return (500, Vec::new());
                }
                self.outbox.piece(name, from, 1000).unwrap().map_or((404, Vec::new()), |piece| (200, piece))
            }
            ("DELETE", _, Some(name)) => (if self.outbox.forget(name, value).unwrap() { 200 } else { 409 }, Vec::new()),
            _ => (404, Vec::new()),
        }
    }

    /// Serves the hub as the agent of `cluster`, which has none yet.
    async fn serve(self: &Arc<Self>, world: &World, cluster: &str) {
        world.cluster(cluster).await;
        let token = world.join_token(cluster, 1, "2999-01-01T00:00:00Z").await;
        let member = world.join(&token, "a1", None).await.unwrap();
        let session = world.session_with(&member, &[("endpoint", "1")]).await;
        let this = Arc::clone(self);
        tokio::spawn(async move {
            while let Some(stream) = session.accept().await {
                let this = Arc::clone(&this);
                tokio::spawn(async move {
                    let answered = wire::serve(stream.accept(), |request: http::Request<moorline_proxy::Body>| {
                        let (code, bytes) = this.answer(request.method(), &request.uri().to_string());
                        std::future::ready(http::Response::builder().status(code).body(body::full(bytes)).unwrap())
                    });
                    let _ = answered.await;
                });
            }
        });
    }

    /// How often it was asked what waits.
    fn lists(&self) -> usize {
        self.asked.lock().unwrap().iter().filter(|line| *line == "GET /recordings").count()
    }

    fn asked(&self, what: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|line| line.starts_with(what)).count()
    }
}

/// What the hub says of one, and its bytes.
async fn replayed(world: &World, name: &str) -> (u16, String, String) {
    let answer = world.get(&world.admin, &format!("/auth/recordings/{name}")).await;
    let seal = answer.header("moorline-seal").unwrap_or_default().to_owned();
    (answer.code, seal, answer.body)
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_recorded_on_the_direct_way_is_here_once_it_is_over_and_then_gone_there() {
    let (world, edge) = (World::new().await, Edge::new());
    let (name, seal) = edge.session("ab", "edge1", &"long ".repeat(900)).await;
    let there = text(&edge.dir.path().join(format!("{name}.cast")));
    edge.ended(&name, &seal.sha256);
    edge.breaks.store(true, Ordering::SeqCst);
    edge.serve(&world, "edge1").await;
    eventually("it is taken", async || edge.outbox.list(9).unwrap().is_empty()).await;
    assert!(!edge.breaks.load(Ordering::SeqCst), "what broke off was fetched anew");
    assert_eq!(replayed(&world, &name).await, (200, "sealed".to_owned(), there));
    let listed = world.get(&world.admin, "/auth/recordings?user=anna&cluster=edge1").await.json();
    assert_eq!((&listed["items"][0]["name"], &listed["items"][0]["open"]), (&json!(name), &json!(false)));
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let file = world.dir.path().join(format!("hub/recordings/{name}.cast"));
        assert_eq!(std::fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
    }
    // A copy that is here is not fetched again, and one of another content stays there, where both can be looked at.
    std::fs::write(edge.dir.path().join(format!("{name}.cast")), "another").unwrap();
    // One that is not what its session's record says is taken all the same, and not believed.
    let (bent, _) = edge.session("cd", "edge1", "something else").await;
    edge.ended(&bent, &seal.sha256);
    eventually("the next one", async || replayed(&world, &bent).await.1 == "altered").await;
    eventually("gone there", async || edge.outbox.list(9).unwrap() == [name.as_str()]).await;
    assert_eq!(replayed(&world, &name).await.1, "sealed");
    let log = world.audit_at_end().await;
    let taken = log.lines().filter(|line| line.contains("\"verb\":\"take\"") && line.contains(&name)).count();
    assert_eq!(taken, 1, "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_says_nothing_of_recordings_that_are_not_its_own() {
    let world = World::with(|config| {
        // A predecessor of this hub was killed while it recorded: sealed, and on record, at its start.
        let dir = config.data_dir.join("recordings");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(format!("{HUBS}.part")), "{}\n").unwrap();
    })
    .await;
    eventually("on record", async || replayed(&world, HUBS).await.1 == "sealed").await;
    let (edge, other) = (Edge::new(), Edge::new());
    let (others, seal) = other.session("ee", "edge2", "secret").await;
    other.ended(&others, &seal.sha256);
    other.serve(&world, "edge2").await;
    eventually("the other one's", async || replayed(&world, &others).await.1 == "sealed").await;

    for name in [HUBS, &others] {
        edge.ended(name, &"0".repeat(64));
    }
    let (name, seal) = edge.session("ff", "edge1", "mine").await;
    edge.ended(&name, &seal.sha256);
    // Under its own name, and of another cluster by what it says.
    let said = text(&edge.dir.path().join(format!("{name}.cast"))).replace("edge1", "edge2");
    let foreign = name.replace("-ff-", "-fe-");
    std::fs::write(edge.dir.path().join(format!("{foreign}.cast")), said).unwrap();
    *edge.forged.lock().unwrap() = vec![HUBS.to_owned(), others.clone(), "../audit".to_owned(), String::new()];
    edge.serve(&world, "edge1").await;
    eventually("its own", async || replayed(&world, &name).await.1 == "sealed").await;
    // Between the second list and the third all of the second was looked at.
    for n in [2, 3] {
        eventually("asked again", async || edge.lists() >= n).await;
    }
    assert_eq!(edge.outbox.list(9).unwrap(), [foreign.as_str()], "what is refused stays there");
    assert_eq!(edge.asked(&format!("GET /recordings/{foreign}?from=0")), 1, "and is not fetched again");
    assert_eq!(replayed(&world, &foreign).await.0, 404);
    for name in [HUBS, &others] {
        assert_eq!(replayed(&world, name).await.1, "sealed", "{name}");
        assert_eq!(
            edge.asked(&format!("GET /recordings/{name}")) + edge.asked(&format!("DELETE /recordings/{name}")),
            0
        );
    }
    let log = world.audit_at_end().await;
    let forged = log.lines().filter(|line| line.contains(&format!("of-{HUBS}")));
    let forged: Vec<_> = forged.collect();
    assert!(forged.len() == 1 && !forged[0].contains("moorline.dev/recording"), "{forged:?}");
}

/// Whoever breaks into a cluster later can say more of what was recorded there before, and unsays nothing.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_cluster_says_later_makes_no_old_recording_doubtful() {
    let (world, edge) = (World::new().await, Edge::new());
    let (name, seal) = edge.session("ab", "edge1", "shown").await;
    edge.ended(&name, &seal.sha256);
    edge.serve(&world, "edge1").await;
    eventually("it is taken", async || edge.outbox.list(9).unwrap().is_empty()).await;
    for _ in 0..150 {
        edge.ended(&name, &"b".repeat(64));
    }
    let told = async || {
        let log = world.get(&world.admin, "/auth/audit?verb=create&user=anna&limit=1000").await.json();
        log["items"].as_array().unwrap().len()
    };
    eventually("all of it is on record", async || told().await > 150).await;
    assert_eq!(replayed(&world, &name).await.1, "sealed");
}
