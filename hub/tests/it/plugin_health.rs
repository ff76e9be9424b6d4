//! The plugin `health` with clusters that have all that it asks for, little of it, or answers that nobody can read.

use crate::{
    stub::Stub,
    world::{API, World, eventually},
};
use moorline_plugin::{Configured, Plugin};
use moorline_plugin_clusters::ClustersPlugin;
use moorline_plugin_health::{Config, Health};
use serde_json::{Value, json};
use std::sync::Arc;

const METRICS: &str = "/apis/metrics.k8s.io/v1beta1/nodes";
const READYZ: &str = "/readyz?verbose";

fn node(stub: &Stub, name: &str, ready: &str) {
    let has = |cpu: &str| json!({ "cpu": cpu, "memory": "4Gi", "pods": "110" });
    let status = json!({ "conditions": [{ "type": "Ready", "status": ready }], "capacity": has("4"), "allocatable": has("3500m") });
    stub.put(
        &format!("/api/v1/nodes/{name}"),
        json!({ "apiVersion": "v1", "kind": "Node", "metadata": {}, "status": status }),
    );
}

fn pod(stub: &Stub, name: &str, phase: &str) {
    let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": {}, "status": { "phase": phase } });
    stub.put(&format!("/api/v1/namespaces/team/pods/{name}"), pod);
}

fn lease(stub: &Stub, name: &str) {
    let spec =
        json!({ "holderIdentity": "n1", "leaseDurationSeconds": 15, "renewTime": jiff::Timestamp::now().to_string() });
    let lease = json!({ "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {}, "spec": spec });
    stub.put(&format!("/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/{name}"), lease);
}

async fn world() -> World {
    World::with(|config| {
        let health = Health::new(Config { every: 10 }).unwrap();
        let clusters = ClustersPlugin::new(moorline_plugin_clusters::Config::default()).unwrap();
        config.plugins = vec![Arc::new(health) as Arc<dyn Plugin>, Arc::new(clusters)];
    })
    .await
}

/// The status of an object of the hub, once `holds` says that it is the one.
async fn status(world: &World, path: &str, holds: impl Fn(&Value) -> bool) -> Value {
    let found = std::sync::Mutex::new(Value::Null);
    eventually(path, async || {
        let answer = world.get(&world.admin, &format!("{API}/{path}")).await;
        let status = if answer.code == 200 { answer.json()["status"].clone() } else { Value::Null };
        let there = holds(&status);
        *found.lock().unwrap() = status;
        there
    })
    .await;
    found.into_inner().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_cluster_and_the_fleet_tell_what_they_have_and_use_and_how_they_are() {
    let world = world().await;
    let mut edge1 = Stub::default();
    node(&edge1, "n1", "True");
    node(&edge1, "n2", "False");
    for n in 0..5 {
        pod(&edge1, &format!("p{n}"), if n == 0 { "Pending" } else { "Running" });
    }
    let event = |n: usize| {
        let about = json!({ "kind": "Pod", "namespace": "team", "name": format!("p{n}") });
        json!({ "apiVersion": "v1", "kind": "Event", "metadata": {}, "type": "Warning", "reason": "BackOff", "message": "again",
            "lastTimestamp": "2030-01-01T00:00:00Z", "involvedObject": about })
    };
    (0..3).for_each(|n| edge1.put(&format!("/api/v1/namespaces/team/events/e{n}"), event(n)));
    let used = |cpu: &str| json!({ "metadata": {}, "usage": { "cpu": cpu, "memory": "1Gi" } });
    edge1.fix(METRICS, 200, json!({ "items": [used("250m"), used("1000000000n")] }));
    edge1.fix(READYZ, 500, "[+]ping ok\n[+]etcd ok\n[-]informer-sync failed: reason withheld\n");
    lease(&edge1, "kube-scheduler");
    edge1.connect(&world, "edge1").await;

    let told = status(&world, "clusterhealths/edge1", |status| status["nodes"] == 2).await;
    assert_eq!(
        (&told["nodesReady"], &told["pods"], &told["podsInTrouble"]),
        (&json!(1), &json!(5), &json!(1)),
        "{told}"
    );
    assert_eq!(told["capacity"], json!({ "cpu": "8", "memory": "8589934592", "pods": "220" }));
    assert_eq!(told["allocatable"]["cpu"], "7");
    assert_eq!(
        (&told["usage"], &told["used"]),
        (&json!("Measured"), &json!({ "cpu": "1250m", "memory": "2147483648" }))
    );
    let parts: Vec<_> = told["components"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| (c["name"].as_str().unwrap(), c["state"].as_str().unwrap()))
        .collect();
    assert_eq!(parts, [("kube-apiserver", "Unhealthy"), ("etcd", "Healthy"), ("kube-scheduler", "Healthy")]);
    assert_eq!(told["components"][0]["message"], "not ready: informer-sync");
    assert_eq!((&told["warnings"][0]["reason"], &told["warnings"][0]["objects"]), (&json!("BackOff"), &json!(3)));

    // The cluster's own object says the same of its nodes, and that its agent is not of the hub's version.
    let of = |status: &Value, condition: &str| {
        let all = status["conditions"].as_array().cloned().unwrap_or_default();
        all.iter().find(|c| c["type"] == condition).map(|c| (c["status"].clone(), c["reason"].clone()))
    };
    let not_ready = Some((json!("False"), json!("NodesNotReady")));
    let both = |status: &Value| status["nodes"] == 2 && of(status, "Ready") == not_ready;
    let cluster = status(&world, "clusters/edge1", both).await;
    assert_eq!((&cluster["nodesReady"], &cluster["capacity"]), (&json!(1), &told["capacity"]), "{cluster}");
    let up_to_date = Some((json!("False"), json!("Newer")));
    status(&world, "clusters/edge1", |status| of(status, "AgentUpToDate") == up_to_date).await;

    // One without a metrics API, and one whose answers nobody can read: what else is known of them is told.
    let (mut edge2, mut edge3) = (Stub::default(), Stub::default());
    node(&edge2, "n1", "True");
    edge2.fix(METRICS, 404, "404 page not found");
    edge2.fix(READYZ, 200, "[+]ping ok\n");
    node(&edge3, "n1", "True");
    edge3.fix(METRICS, 200, "x".repeat(13 << 20));
    edge3.fix(READYZ, 200, "[+]ping ok\n".repeat(10_000));
    edge2.connect(&world, "edge2").await;
    edge3.connect(&world, "edge3").await;
    let second = status(&world, "clusterhealths/edge2", |status| status["nodes"] == 1).await;
    assert_eq!((&second["usage"], &second["used"]), (&json!("NotServed"), &json!({})));
    assert_eq!(second["components"].as_array().map(Vec::len), Some(1), "no etcd and no leases to be seen: {second}");
    let third = status(&world, "clusterhealths/edge3", |status| status["nodes"] == 1).await;
    assert_eq!((&third["usage"], &third["components"][0]["state"]), (&json!("NoAnswer"), &json!("Unknown")));

    // All together; of what is used it is said how much of the fleet that is.
    let fleet = status(&world, "fleethealths/fleet", |status| status["clustersKnown"] == 3).await;
    assert_eq!(
        (&fleet["clusters"], &fleet["clustersReady"], &fleet["clustersMeasured"]),
        (&json!(3), &json!(2), &json!(1))
    );
    assert_eq!((&fleet["nodes"], &fleet["nodesReady"], &fleet["pods"]), (&json!(4), &json!(3), &json!(5)));
    assert_eq!((&fleet["allocatable"]["cpu"], &fleet["measured"]["cpu"]), (&json!("14"), &json!("7")));
    assert_eq!((&fleet["used"]["cpu"], &fleet["componentsUnhealthy"]), (&json!("1250m"), &json!(1)));
    assert_eq!((&fleet["warnings"][0]["reason"], &fleet["warnings"][0]["clusters"]), (&json!("BackOff"), &json!(1)));

    // For plots: each cluster to who sees it, the fleet to administrators.
    let anna = world.user("anna", &["edge1"]).await;
    let plot = world.get(&anna, "/plugins/health/clusters/edge1").await.json();
    let columns: Vec<_> = plot["columns"].as_array().unwrap().iter().map(|c| c.as_str().unwrap()).collect();
    let point = |name: &str| plot["points"][0][columns.iter().position(|c| *c == name).unwrap()].clone();
    assert_eq!((point("pods"), point("cpuMilli"), point("cpuUsedMilli")), (json!(5), json!(7000), json!(1250)));
    assert_eq!((point("memoryMi"), point("memoryUsedMi")), (json!(8192), json!(2048)));
    for (who, path, code) in [(&anna, "clusters/edge2", 404), (&anna, "fleet", 404), (&world.admin, "fleet", 200)] {
        assert_eq!(world.get(who, &format!("/plugins/health/{path}")).await.code, code, "{path}");
    }
    assert_eq!(world.get(&anna, &format!("{API}/fleethealths/fleet")).await.code, 403);

    // Who leaves is in the sums no more; and pods were counted, never all read.
    edge1.disconnect();
    let fleet = status(&world, "fleethealths/fleet", |status| status["clustersKnown"] == 2).await;
    assert_eq!((&fleet["clusters"], &fleet["nodes"], &fleet["used"]), (&json!(3), &json!(2), &json!({})), "{fleet}");
    let pods: Vec<_> = edge1.seen().into_iter().filter(|line| line.contains("/pods")).collect();
    assert!(!pods.is_empty() && pods.iter().all(|line| line.contains("limit=")), "{pods:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_says_what_no_cluster_says_is_not_known_and_one_that_does_so_once_is_asked_anew() {
    let world = world().await;
    let (mut edge1, mut edge2) = (Stub::default(), Stub::default());
    for stub in [&edge1, &edge2] {
        node(stub, "n1", "True");
    }
    node(&edge1, &"n".repeat(1025), "True");
    edge1.connect(&world, "edge1").await;
    edge2.connect(&world, "edge2").await;
    let why = |status: &Value| {
        let all = status["conditions"].as_array().cloned().unwrap_or_default();
        all.iter().find(|c| c["type"] == "Ready").map(|c| (c["status"].clone(), c["message"].to_string()))
    };
    let told =
        |status: &Value| why(status).is_some_and(|(holds, why)| holds == "Unknown" && why.contains("1024 letters"));
    status(&world, "clusters/edge1", told).await;

    // A line of a watch that is longer than any object: it is not taken, and the nodes are listed anew.
    status(&world, "clusterhealths/edge2", |status| status["nodes"] == 1).await;
    let large = json!({ "annotations": { "x": "x".repeat(5 << 20) } });
    edge2.put("/api/v1/nodes/n2", json!({ "apiVersion": "v1", "kind": "Node", "metadata": large }));
    status(&world, "clusterhealths/edge2", |status| status["nodes"] == 2).await;
    let lists =
        |stub: &Stub| stub.seen().iter().filter(|line| line.contains("/nodes?") && !line.contains("watch=")).count();
    assert_eq!(lists(&edge2), 2, "{:?}", edge2.seen());
}
