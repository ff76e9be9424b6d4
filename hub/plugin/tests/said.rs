//! What a cluster's object says of what a mirror has there, at the moment when the mirror makes it.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests fail by panicking")]

use bytes::Bytes;
use futures_util::{FutureExt, future::BoxFuture};
use http::{Method, Request, StatusCode};
use moorline_plugin::{
    Backend, ClusterFacts, ClusterView, Clusters, Condition, Host, HubView, Plugin, PluginError, Registration,
    mirror::{Board, Kept, Key, Objects, says_nothing},
    testing::{Answered, answer, edge1, failure, listed},
};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::sync::{mpsc, watch};

/// Guards against a hang, no more.
const LONG: Duration = Duration::from_secs(40);
/// What the hub takes for a write: who does not wait for it is too early.
const SLOW: Duration = Duration::from_millis(300);
const CONDITION: &str = "NotesSynced";
const KINDS: &[Kept] = &[Kept::core("ConfigMap", "configmaps")];

/// Keeps as many config maps in each cluster as it is told.
struct Notes {
    count: watch::Sender<Option<Arc<usize>>>,
    board: Board,
}

impl Plugin for Notes {
    fn name(&self) -> &'static str {
        "notes"
    }
    fn register(&self, into: &mut Registration) {
        into.writes(&["clusters"]).per_cluster();
    }
    fn run_cluster(self: Arc<Self>, hub: HubView, cluster: ClusterView) -> BoxFuture<'static, Result<(), PluginError>> {
        async move {
            let desired = |count: &usize, _: &ClusterFacts| {
                let one = |n: usize| {
                    let (name, namespace) = (format!("note-{n}"), "team".to_owned());
                    let object = json!({ "apiVersion": "v1", "kind": "ConfigMap",
                        "metadata": { "name": name, "namespace": namespace } });
                    (Key { kind: "ConfigMap", namespace, name }, object)
                };
                (0..*count).map(one).collect::<Objects>()
            };
            self.board.keep((&hub, &cluster), (KINDS, CONDITION), self.count.subscribe(), desired).await
        }
        .boxed()
    }
}

/// A hub with one cluster, where nothing is yet.
struct World {
    object: Mutex<Value>,
    /// What the object says each time that it is written, and when something is made in the cluster.
    told: mpsc::UnboundedSender<(&'static str, Condition)>,
}

impl World {
    fn says(&self) -> Condition {
        let object = self.object.lock().unwrap();
        let all = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let own = all.iter().find(|condition| condition["type"] == CONDITION);
        own.map_or_else(Condition::default, |own| Condition::deserialize(own).unwrap())
    }
}

struct Ends(Arc<World>);

impl Backend for Ends {
    fn hub(&self, _: &'static str, request: Request<Bytes>) -> Answered {
        let world = Arc::clone(&self.0);
        async move {
            if request.method() == Method::PUT {
                tokio::time::sleep(SLOW).await;
                *world.object.lock().unwrap() = serde_json::from_slice(request.body()).unwrap();
                let _ = world.told.send(("told", world.says()));
            }
            let object = world.object.lock().unwrap().clone();
            answer(StatusCode::OK, &object).await
        }
        .boxed()
    }

    fn cluster(&self, _: &'static str, _: &str, request: Request<Bytes>) -> Answered {
        match (request.method(), request.uri().query()) {
            (&Method::PATCH, _) => {
                let _ = self.0.told.send(("made", self.0.says()));
                answer(StatusCode::OK, &serde_json::from_slice(request.body()).unwrap())
            }
            (&Method::GET, Some(_)) => listed(&request, &json!([])),
            _ => failure(StatusCode::NOT_FOUND, "NotFound"),
        }
    }
}

#[test]
fn nothing_is_made_while_the_clusters_object_says_that_nothing_is_there() {
    let (told, mut tales) = mpsc::unbounded_channel();
    let object = json!({ "apiVersion": "moorline.dev/v1alpha1", "kind": "Cluster", "metadata": { "name": "edge1" } });
    let world = Arc::new(World { object: Mutex::new(object), told });
    let (_clusters, seen) = watch::channel(Arc::new(Clusters::from([("edge1".to_owned(), Arc::new(edge1()))])));
    let count = watch::Sender::new(Some(Arc::new(0)));
    let plugin = Arc::new(Notes { count: count.clone(), board: Board::default() });
    let mut host = Host::new(vec![plugin], &prometheus::Registry::new()).unwrap();
    host.start(Arc::new(Ends(world)), &seen);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut next = async || tokio::time::timeout(LONG, tales.recv()).await.expect("something comes").unwrap();
        let (what, said) = next().await;
        assert!(what == "told" && says_nothing(&said), "{what} {said:?}");
        // At once: what it has just told is the newest that was written.
        count.send_replace(Some(Arc::new(2)));
        let mut made = 0;
        let last = loop {
            let (what, said) = next().await;
            assert!(!says_nothing(&said) && !said.r#type.is_empty(), "{what} while it says {said:?}");
            made += usize::from(what == "made");
            if said.reason == "InSync" {
                break said;
            }
        };
        assert_eq!((made, last.message.as_str()), (2, "2 objects"));
        tokio::time::timeout(LONG, host.shutdown()).await.expect("it ends");
    });
}
