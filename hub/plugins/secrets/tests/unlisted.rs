//! A cluster that does not say which namespaces it has.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests fail by panicking")]

use bytes::Bytes;
use futures_util::{FutureExt, future};
use http::{Method, Request, StatusCode};
use moorline_plugin::{
    Backend, ClusterFacts, Clusters, Configured, Host,
    testing::{Answered, answer, edge1, failure, is_watch, listed, watch_of},
};
use moorline_plugin_secrets::{CONDITION, Config, STATE, Secrets};
use serde_json::{Value, json};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::sync::{mpsc, oneshot, watch};

/// Guards against a hang, no more.
const LONG: Duration = Duration::from_secs(40);

/// What a watch tells of, once it is sent.
struct Later(Mutex<Option<oneshot::Receiver<Value>>>);

impl Later {
    fn new() -> (oneshot::Sender<Value>, Self) {
        let (send, event) = oneshot::channel();
        (send, Self(Mutex::new(Some(event))))
    }
}

/// A list of these, or a watch of which nothing comes but that, once.
fn listed_until(request: &Request<Bytes>, items: &Value, later: &Later) -> Answered {
    match later.0.lock().unwrap().take_if(|_| is_watch(request)) {
        Some(event) => watch_of(async move {
            match event.await {
                Ok(event) => Bytes::from(format!("{event}\n")),
                Err(_) => future::pending().await,
            }
        }),
        None => listed(request, items),
    }
}

/// The declared secret, which a label picks namespaces for, and these names.
fn secret(generation: u32, names: &[&str]) -> Value {
    json!({
        "apiVersion": "moorline.dev/v1alpha1", "kind": "SharedSecret",
        "metadata": { "name": "shared", "uid": "u", "generation": generation, "resourceVersion": generation.to_string() },
        "spec": {
            "data": { "a": "b25l" }, "clusters": { "names": ["edge1"] },
            "namespaces": { "names": names, "matchLabels": { "a": "b" } },
        },
    })
}

/// A hub with one declared secret, and a cluster that has it in three namespaces: a label has picked `team`, only its name
/// `staging`, and in `old` it is of a declaration before.
struct World {
    /// Names that the secret is declared for.
    names: &'static [&'static str],
    declared: Later,
    /// Whether the cluster says which namespaces it has.
    lists: AtomicBool,
    /// The labels of `team`.
    labels: Value,
    namespaces: Later,
    /// What it says else; `None`: nothing, for ever.
    refuses: Option<StatusCode>,
    /// What the cluster is told to change.
    changed: mpsc::UnboundedSender<String>,
    /// Messages of the cluster's condition.
    told: mpsc::UnboundedSender<String>,
}

impl Backend for World {
    fn hub(&self, _: &'static str, request: Request<Bytes>) -> Answered {
        let path = request.uri().path().to_owned();
        let cluster =
            json!({ "apiVersion": "moorline.dev/v1alpha1", "kind": "Cluster", "metadata": { "name": "edge1" } });
        if path.ends_with("/sharedsecrets") {
            return listed_until(&request, &json!([secret(1, self.names)]), &self.declared);
        }
        if path.ends_with("/sharedsecrets/shared/status") {
            return answer(StatusCode::OK, &secret(1, self.names));
        }
        if request.method() == Method::PUT {
            let written: Value = serde_json::from_slice(request.body()).unwrap();
            let all = written["status"]["conditions"].as_array().unwrap();
            let own = all.iter().find(|condition| condition["type"] == CONDITION).unwrap();
            let _ = self.told.send(own["message"].as_str().unwrap().to_owned());
            return answer(StatusCode::OK, &written);
        }
        answer(StatusCode::OK, &cluster)
    }

    fn cluster(&self, _: &'static str, _: &str, request: Request<Bytes>) -> Answered {
        match request.uri().path() {
            "/api/v1/namespaces" if self.lists.load(Ordering::SeqCst) => {
                let team = json!({ "metadata": { "name": "team", "labels": self.labels } });
                listed_until(&request, &json!([team]), &self.namespaces)
            }
            "/api/v1/namespaces" => match self.refuses {
                Some(code) => failure(code, "not now"),
                None => future::pending().boxed(),
            },
            "/api/v1/secrets" => {
                let there = [("team", "u/1"), ("staging", "named/u/1"), ("old", "before/1")].map(|(namespace, of)| {
                    json!({ "metadata": {
                        "name": "shared", "namespace": namespace, "resourceVersion": "1", "annotations": { STATE: of },
                    } })
                });
                listed(&request, &json!(there))
            }
            path => {
                let _ = self.changed.send(format!("{} {path}", request.method()));
                match request.method() {
                    &Method::PATCH => answer(StatusCode::OK, &serde_json::from_slice(request.body()).unwrap()),
                    _ => answer(StatusCode::OK, &json!({ "kind": "Status", "apiVersion": "v1", "status": "Success" })),
                }
            }
        }
    }
}

/// The plugin at work in a world.
struct Play {
    world: Arc<World>,
    declare: oneshot::Sender<Value>,
    shake: oneshot::Sender<Value>,
    changes: mpsc::UnboundedReceiver<String>,
    tales: mpsc::UnboundedReceiver<String>,
    host: Host,
    _clusters: watch::Sender<Arc<Clusters>>,
}

fn play(
    (lists, refuses): (bool, Option<StatusCode>),
    (names, labels): (&'static [&'static str], Value),
    leaving: bool,
) -> Play {
    let (changed, changes) = mpsc::unbounded_channel();
    let (told, tales) = mpsc::unbounded_channel();
    let ((declare, declared), (shake, namespaces)) = (Later::new(), Later::new());
    let lists = AtomicBool::new(lists);
    let world = Arc::new(World { names, declared, lists, labels, namespaces, refuses, changed, told });
    let facts = ClusterFacts { leaving, ..edge1() };
    let (clusters, seen) = watch::channel(Arc::new(Clusters::from([("edge1".to_owned(), Arc::new(facts))])));
    let plugin = Secrets::new(Config {}).unwrap();
    let mut host = Host::new(vec![Arc::new(plugin)], &prometheus::Registry::new()).unwrap();
    host.start(world.clone(), &seen);
    Play { world, declare, shake, changes, tales, host, _clusters: clusters }
}

async fn next(of: &mut mpsc::UnboundedReceiver<String>) -> String {
    tokio::time::timeout(LONG, of.recv()).await.expect("something comes").unwrap()
}

/// What is done to the copy in a namespace.
fn done(method: &str, namespace: &str) -> String {
    format!("{method} /api/v1/namespaces/{namespace}/secrets/shared")
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn what_labels_picked_stays_while_the_cluster_does_not_say_which_namespaces_it_has() {
    for code in [StatusCode::FORBIDDEN, StatusCode::INTERNAL_SERVER_ERROR] {
        let mut play = play((false, Some(code)), (&[], json!({})), false);
        runtime().block_on(async {
            // It was looked at by the time that something is told.
            let why = next(&mut play.tales).await;
            assert!(why.contains("cannot list namespaces") && why.ends_with("; 1 are left as they are"), "{why}");
            for gone in ["old", "staging"] {
                assert_eq!(play.changes.try_recv().unwrap(), done("DELETE", gone), "no label had picked it");
            }
            assert!(play.changes.try_recv().is_err(), "whether it is wanted there is not known");
            play.world.lists.store(true, Ordering::SeqCst);
            assert_eq!(next(&mut play.changes).await, done("DELETE", "team"), "no label picks it any more");
            tokio::time::timeout(LONG, play.host.shutdown()).await.expect("it ends");
        });
    }
}

#[test]
fn when_namespaces_are_listed_no_more_that_is_told_and_what_is_withdrawn_by_name_goes() {
    let mut play = play((true, Some(StatusCode::FORBIDDEN)), (&["staging"], json!({ "a": "b" })), false);
    runtime().block_on(async {
        for change in [done("DELETE", "old"), done("PATCH", "staging"), done("PATCH", "team")] {
            assert_eq!(next(&mut play.changes).await, change);
        }
        play.world.lists.store(false, Ordering::SeqCst);
        let expired = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 410, "reason": "Expired",
            "message": "too old" });
        play.shake.send(json!({ "type": "ERROR", "object": expired })).unwrap();
        while !next(&mut play.tales).await.contains("cannot list namespaces") {}
        play.declare.send(json!({ "type": "MODIFIED", "object": secret(2, &[]) })).unwrap();
        assert_eq!(next(&mut play.changes).await, done("DELETE", "staging"));
        assert_eq!(next(&mut play.changes).await, done("PATCH", "team"), "as far as is known, the label picks it");
        tokio::time::timeout(LONG, play.host.shutdown()).await.expect("it ends");
    });
}

#[test]
fn a_cluster_that_leaves_waits_for_no_listing() {
    let mut play = play((false, None), (&[], json!({})), true);
    runtime().block_on(async {
        for gone in ["old", "staging", "team"] {
            assert_eq!(next(&mut play.changes).await, done("DELETE", gone));
        }
        tokio::time::timeout(LONG, play.host.shutdown()).await.expect("it ends");
    });
}
