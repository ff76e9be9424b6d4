//! Owners and their dependents.

use super::*;
use moorline_apiserver::{Batch, Expect};

const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";

async fn boat_with_line(world: &World, finalizers: Value) {
    let boat = world.boat("ada", json!({})).await;
    let owner = json!([{
        "apiVersion": "moorline.dev/v1alpha1", "kind": "Boat", "name": "ada", "uid": boat["metadata"]["uid"],
        "blockOwnerDeletion": true,
    }]);
    let line = json!({ "metadata": { "name": "bow", "ownerReferences": owner, "finalizers": finalizers }, "spec": {} });
    assert_eq!(world.call("POST", "/lines", JSON, &line.to_string()).await.0, 201);
}

#[tokio::test]
async fn foreground_waits_for_dependents_that_block() {
    let world = World::new();
    boat_with_line(&world, json!(["moorline.dev/held"])).await;
    let (code, marked) = world.call("DELETE", "/boats/ada?propagationPolicy=Foreground", "", "").await;
    assert_eq!((code.as_u16(), &marked["metadata"]["finalizers"]), (200, &json!(["foregroundDeletion"])));
    assert_eq!(world.get("/boats/ada").await.0, 200, "the line is still there");
    world.call("PATCH", "/lines/bow", MERGE, r#"{"metadata":{"finalizers":null}}"#).await;
    assert_eq!((world.get("/lines/bow").await.0.as_u16(), world.get("/boats/ada").await.0.as_u16()), (404, 404));
}

#[tokio::test]
async fn orphans_stay_without_their_owner() {
    let world = World::new();
    boat_with_line(&world, Value::Null).await;
    assert_eq!(world.call("DELETE", "/boats/ada", JSON, r#"{"propagationPolicy":"Orphan"}"#).await.0, 200);
    let (code, line) = world.get("/lines/bow").await;
    assert_eq!((code.as_u16(), line["metadata"]["ownerReferences"].as_array().map(Vec::len)), (200, Some(0)));
}

/// As a crash after the owner was marked leaves it.
#[tokio::test]
async fn a_foreground_deletion_that_was_cut_short_ends_at_the_next_start() {
    let world = World::new();
    boat_with_line(&world, json!(["moorline.dev/held"])).await;
    world.call("DELETE", "/boats/ada?propagationPolicy=Foreground", "", "").await;
    let key = "moorline.dev/lines/bow";
    let revision = world.server.store().get(key).unwrap().revision;
    let gone = Batch { object: Some((key.into(), Expect::Revision(revision), None)), private: vec![] };
    world.server.store().commit(gone).await.unwrap();
    world.server.collect_orphans().await.unwrap();
    assert_eq!(world.get("/boats/ada").await.0, 404);
}

#[tokio::test]
async fn nothing_new_holds_what_is_going() {
    let world = World::new();
    world.boat("ada", json!({})).await;
    world.call("PATCH", "/boats/ada", MERGE, r#"{"metadata":{"finalizers":["moorline.dev/held"]}}"#).await;
    world.call("DELETE", "/boats/ada", "", "").await;
    let more = r#"{"metadata":{"finalizers":["moorline.dev/held","moorline.dev/more"]}}"#;
    let (code, status) = world.call("PATCH", "/boats/ada", MERGE, more).await;
    assert_eq!((code.as_u16(), &status["details"]["causes"][0]["reason"]), (422, &json!("FieldValueForbidden")));
}
