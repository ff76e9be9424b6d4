//! A cluster that does not say which namespaces it has.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests fail by panicking")]

use bytes::Bytes;
use futures_util::{FutureExt, future::BoxFuture};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody};
use moorline_plugin::{Backend, Body, BoxError, ClusterFacts, Clusters, Configured, Host};
use moorline_plugin_secrets::{CONDITION, Config, STATE, Secrets};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::sync::{mpsc, watch};

/// Guards against a hang, no more.
const LONG: Duration = Duration::from_secs(40);

type Answered = BoxFuture<'static, Result<Response<Body>, BoxError>>;

fn answer(code: StatusCode, value: &Value) -> Answered {
    let body = Full::new(Bytes::from(value.to_string())).map_err(BoxError::from).boxed_unsync();
    let mut answer = Response::new(body);
    *answer.status_mut() = code;
    async { Ok(answer) }.boxed()
}

/// A list of these, or a watch of which nothing ever comes.
fn listed(request: &Request<Bytes>, items: &Value) -> Answered {
    if request.uri().query().is_some_and(|query| query.contains("watch=true")) {
        let nothing = futures_util::stream::pending::<Result<http_body::Frame<Bytes>, BoxError>>();
        let answer = Response::new(StreamBody::new(nothing).boxed_unsync());
        return async { Ok(answer) }.boxed();
    }
    answer(
        StatusCode::OK,
        &json!({ "apiVersion": "v1", "kind": "List", "metadata": { "resourceVersion": "7" }, "items": items }),
    )
}

/// A hub with one declared secret, which labels pick namespaces for, and a cluster that has it in one.
struct World {
    /// Whether the cluster says which namespaces it has; none is picked any more then.
    lists: AtomicBool,
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
        let secret = json!({
            "apiVersion": "moorline.dev/v1alpha1", "kind": "SharedSecret",
            "metadata": { "name": "shared", "uid": "u", "generation": 1 },
            "spec": { "data": { "a": "b25l" }, "clusters": { "names": ["edge1"] }, "namespaces": { "matchLabels": { "a": "b" } } },
        });
        if path.ends_with("/sharedsecrets") {
            return listed(&request, &json!([secret]));
        }
        if path.ends_with("/sharedsecrets/shared/status") {
            return answer(StatusCode::OK, &secret);
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
                listed(&request, &json!([{ "metadata": { "name": "team" } }]))
            }
            "/api/v1/namespaces" => answer(
                StatusCode::FORBIDDEN,
                &json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Forbidden", "code": 403,
                    "message": "namespaces is forbidden" }),
            ),
            "/api/v1/secrets" => listed(
                &request,
                &json!([("team", "u/1"), ("staging", "named/u/1"), ("old", "before/1")].map(
                    |(namespace, of)| json!({ "metadata": {
                        "name": "shared", "namespace": namespace, "resourceVersion": "1",
                        "annotations": { STATE: of },
                    } })
                )),
            ),
            path => {
                let _ = self.changed.send(format!("{} {path}", request.method()));
                answer(StatusCode::OK, &json!({ "kind": "Status", "apiVersion": "v1", "status": "Success" }))
            }
        }
    }
}

#[test]
fn what_labels_picked_stays_while_the_cluster_does_not_let_its_namespaces_be_listed() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (changed, mut changes) = mpsc::unbounded_channel();
    let (told, mut tales) = mpsc::unbounded_channel();
    let world = Arc::new(World { lists: AtomicBool::new(false), changed, told });
    let facts = ClusterFacts {
        name: "edge1".to_owned(),
        uid: "1".to_owned(),
        labels: BTreeMap::new(),
        connected: true,
        session: "s".to_owned(),
        leaving: false,
    };
    let (_clusters, seen) = watch::channel(Arc::new(Clusters::from([("edge1".to_owned(), Arc::new(facts))])));
    let plugin = Secrets::new(Config {}).unwrap();
    let mut host = Host::new(vec![Arc::new(plugin)], &prometheus::Registry::new()).unwrap();
    host.start(world.clone(), &seen);
    runtime.block_on(async {
        // It was looked at by the time that something is told.
        let why = tokio::time::timeout(LONG, tales.recv()).await.expect("it is told").unwrap();
        assert!(why.contains("cannot list namespaces") && why.ends_with("; 1 are left as they are"), "{why}");
        for gone in ["old", "staging"] {
            let change = changes.try_recv().unwrap();
            assert_eq!(change, format!("DELETE /api/v1/namespaces/{gone}/secrets/shared"), "no label had picked it");
        }
        assert!(changes.try_recv().is_err(), "whether it is wanted there is not known");
        world.lists.store(true, Ordering::SeqCst);
        let change = tokio::time::timeout(LONG, changes.recv()).await.expect("it goes").unwrap();
        assert_eq!(change, "DELETE /api/v1/namespaces/team/secrets/shared", "no label picks it any more");
        tokio::time::timeout(LONG, host.shutdown()).await.expect("it ends");
    });
}
