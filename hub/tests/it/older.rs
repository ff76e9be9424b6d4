//! Objects that an older hub wrote and this one would not.

use crate::world::{API, World, config};
use moorline_apiserver::{Batch, Expect, Limits, Store};
use serde_json::json;

/// A label that no rule of today lets through, a finalizer of a plugin that does not run, and a session that is gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_can_not_be_written_does_not_keep_the_hub_from_its_start() {
    let dir = tempfile::tempdir().unwrap();
    let data = config(&dir).data_dir;
    std::fs::create_dir_all(&data).unwrap();
    let store = Store::open(&data.join("hub.redb"), &Limits::default()).unwrap();
    let old = json!({
        "apiVersion": "moorline.dev/v1alpha1", "kind": "Cluster",
        "metadata": {
            "name": "old", "uid": "5b1d4d0e-0000-4000-8000-000000000001", "creationTimestamp": "2026-01-01T00:00:00Z",
            "generation": 1, "labels": { "no label/at all": "x y" }, "finalizers": ["gone.plugins.moorline.dev/cleanup"],
        },
        "spec": {},
        "status": { "conditions": [{ "type": "Connected", "status": "True", "reason": "AgentConnected", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z" }] },
    });
    let batch =
        Batch { object: Some(("moorline.dev/clusters/old".into(), Expect::Absent, Some(old))), ..Batch::default() };
    store.commit(batch).await.unwrap();
    store.close();
    let world = World::in_folder(dir, |_| {}).await;
    let there = world.get(&world.admin, &format!("{API}/clusters/old")).await.json();
    assert_eq!(
        there["metadata"]["finalizers"][0], "gone.plugins.moorline.dev/cleanup",
        "it could not be written: {there}"
    );
    assert_eq!(world.get(&world.admin, &format!("{API}/clusters")).await.code, 200);
}
