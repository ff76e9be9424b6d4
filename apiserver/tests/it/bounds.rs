//! What a hostile or unlucky client must not bring about.

use super::*;
use moorline_apiserver::{Batch, Expect};

const PATCH: &str = "application/json-patch+json";

fn owners() -> String {
    json!({ "metadata": { "name": "deep", "ownerReferences": [
        { "apiVersion": "v1", "kind": "K", "name": "n", "uid": "u" }
    ] }, "spec": { "metres": 1 } })
    .to_string()
}

#[tokio::test]
async fn a_patch_cannot_make_an_object_that_cannot_be_read_back() {
    let world = World::new();
    assert_eq!(world.call("POST", "/boats", "application/json", &owners()).await.0, 201);
    for start in [0, 100, 200] {
        let steps: Vec<Value> = (start + 1..=start + 100)
            .map(|depth| {
                let path = format!("/metadata/ownerReferences/0{}", "/a".repeat(depth));
                json!({ "op": "add", "path": path, "value": {} })
            })
            .collect();
        world.call("PATCH", "/boats/deep", PATCH, &Value::from(steps).to_string()).await;
    }
    let entry = world.server.store().get("moorline.dev/boats/deep").unwrap();
    let text = serde_json::to_vec(&*entry.value).unwrap();
    serde_json::from_slice::<Value>(&text).unwrap();
    // By doubling: far deeper than any stack.
    let mut steps = vec![json!({ "op": "add", "path": "/x", "value": { "a": {} } })];
    for power in 0..16 {
        steps.push(json!({ "op": "copy", "from": "/x", "path": format!("/x{}", "/a".repeat(1 << power)) }));
    }
    let (code, _) = world.call("PATCH", "/boats/deep", PATCH, &Value::from(steps).to_string()[..]).await;
    assert!(matches!(code.as_u16(), 400 | 413), "{code}");
}

#[tokio::test]
async fn no_private_record_of_a_dead_namesake_survives() {
    let world = World::new();
    let store = world.server.store().clone();
    let key = "moorline.dev/boats/ada/hash";
    // Set after the object had gone, as a request that was under way does.
    store.commit(Batch { object: None, private: vec![(key.into(), Some("old".into()))] }).await.unwrap();
    world.boat("ada", json!({})).await;
    assert!(store.private(key).is_none());
}

#[tokio::test]
async fn a_patch_cannot_copy_without_bound() {
    let world = World::new();
    world.boat("ada", json!({})).await;
    let mut steps = vec![json!({ "op": "add", "path": "/spec/crew", "value": ["x".repeat(1000)] })];
    for _ in 0..14 {
        steps.push(json!({ "op": "add", "path": "/x", "value": {} }));
        steps.push(json!({ "op": "copy", "from": "/spec", "path": "/x/a" }));
        steps.push(json!({ "op": "copy", "from": "/spec", "path": "/x/b" }));
        steps.push(json!({ "op": "copy", "from": "/x", "path": "/spec" }));
    }
    let (code, status) = world.call("PATCH", "/boats/ada", PATCH, &Value::from(steps).to_string()).await;
    assert_eq!(code, 413, "{status}");
}

#[tokio::test]
async fn an_object_cannot_grow_without_bound() {
    let world = World::new();
    world.boat("ada", json!({})).await;
    let step = json!([{ "op": "add", "path": "/spec/crew/-", "value": "x".repeat(60_000) }]).to_string();
    let mut last = StatusCode::OK;
    for _ in 0..40 {
        last = world.call("PATCH", "/boats/ada", PATCH, &step).await.0;
    }
    assert_eq!(last, 413);
}

#[tokio::test]
async fn a_watch_from_the_future_is_told_to_list_again() {
    let world = World::new();
    world.boat("ada", json!({})).await;
    let (_, event) = world.get("/boats?watch=true&resourceVersion=99999&timeoutSeconds=1").await;
    assert_eq!((&event["type"], &event["object"]["code"]), (&json!("ERROR"), &json!(410)));
}

#[tokio::test]
async fn private_records_set_beside_a_deletion_go_too() {
    let world = World::new();
    let made = world.boat("ada", json!({})).await;
    let revision: u64 = made["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
    let key = "moorline.dev/boats/ada";
    let store = world.server.store().clone();
    for _ in 0..20 {
        // Something that keeps the writer busy, so that the next two share a commit.
        let busy =
            store.commit(Batch { object: None, private: vec![("busy".into(), Some(Bytes::from(vec![0; 4_000_000])))] });
        let set = store.commit(Batch { object: None, private: vec![(format!("{key}/hash"), Some("h".into()))] });
        let delete =
            store.commit(Batch { object: Some((key.into(), Expect::Revision(revision), None)), private: vec![] });
        let (a, b, c) = tokio::join!(busy, set, delete);
        let _ = (a, b);
        if c.is_ok() {
            break;
        }
    }
    assert!(store.private(&format!("{key}/hash")).is_none(), "a namesake made later would have it");
}

#[tokio::test]
async fn dependents_of_an_owner_that_went_unnoticed_go_at_the_next_start() {
    let world = World::new();
    let boat = world.boat("ada", json!({})).await;
    let owner = json!([{ "apiVersion": "moorline.dev/v1alpha1", "kind": "Boat", "name": "ada", "uid": boat["metadata"]["uid"] }]);
    let line = json!({ "metadata": { "name": "bow", "ownerReferences": owner }, "spec": {} });
    assert_eq!(world.call("POST", "/lines", "application/json", &line.to_string()).await.0, 201);
    let revision: u64 = boat["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
    // As a crash between the deletion and that of the dependents leaves it.
    let gone =
        Batch { object: Some(("moorline.dev/boats/ada".into(), Expect::Revision(revision), None)), private: vec![] };
    world.server.store().commit(gone).await.unwrap();
    world.server.collect_orphans().await.unwrap();
    assert_eq!(world.get("/lines").await.1["items"], json!([]));
}

#[tokio::test]
async fn large_objects_that_change_often_do_not_fill_the_memory() {
    let world = World::with(Limits { history: 10_000, history_bytes: 100_000, ..limits() });
    let store = world.server.store();
    let first = store.revision();
    let text = "x".repeat(10_000);
    let mut expect = Expect::Absent;
    for i in 0..50 {
        let object = json!({ "metadata": {}, "spec": i, "text": text });
        let batch = Batch { object: Some(("t/things/a".into(), expect, Some(object))), private: vec![] };
        expect = Expect::Revision(store.commit(batch).await.unwrap());
    }
    let newest = store.revision();
    // Each change keeps the object before and after it: ten of them are 200 kB.
    assert!(store.watch("t/", first).is_err());
    assert!(store.watch("t/", newest - 10).is_err());
    assert!(store.watch("t/", newest - 3).is_ok(), "what is small enough is kept");
}
