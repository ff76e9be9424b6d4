//! Server-side apply. The table against kube-apiserver has each rule; these run without one.

use super::*;
use moorline_apiserver::{Batch, Expect};

const APPLY: &str = "application/apply-patch+yaml";
const MERGE: &str = "application/merge-patch+json";

async fn apply(world: &World, manager: &str, more: &str) -> (StatusCode, Value) {
    let yaml = format!("apiVersion: moorline.dev/v1alpha1\nkind: Boat\nmetadata: {{name: ada}}\n{more}");
    world.call("PATCH", &format!("/boats/ada?fieldManager={manager}"), APPLY, &yaml).await
}

#[tokio::test]
async fn a_field_belongs_to_who_applied_it() {
    let world = World::new();
    assert_eq!(apply(&world, "one", "spec: {metres: 10}").await.0, 201);
    assert_eq!(apply(&world, "two", "spec: {metres: 10}").await.0, 200, "the same value is shared");
    let (code, status) = apply(&world, "three", "spec: {metres: 12}").await;
    assert_eq!((code.as_u16(), &status["reason"]), (409, &json!("Conflict")));
    let causes = status["details"]["causes"].as_array().unwrap();
    assert_eq!(causes.len(), 2);
    assert_eq!(
        causes[0],
        json!({ "reason": "FieldManagerConflict", "message": "conflict with \"one\"", "field": ".spec.metres" })
    );
    let (code, forced) = apply(&world, "three&force=true", "spec: {metres: 12}").await;
    assert_eq!((code.as_u16(), &forced["spec"]["metres"]), (200, &json!(12)));
    let owners: Vec<_> =
        forced["metadata"]["managedFields"].as_array().unwrap().iter().map(|m| &m["manager"]).collect();
    assert_eq!(owners, ["three"]);
}

#[tokio::test]
async fn what_is_no_longer_applied_goes_unless_another_has_it() {
    let world = World::new();
    apply(&world, "one", "spec: {metres: 10, crew: [bo]}").await;
    world.call("PATCH", "/boats/ada?fieldManager=other", MERGE, r#"{"metadata":{"labels":{"x":"y"}}}"#).await;
    let (_, left) = apply(&world, "one", "spec: {metres: 10}").await;
    assert_eq!((&left["spec"]["crew"], &left["metadata"]["labels"]), (&json!([]), &json!({ "x": "y" })));
}

#[tokio::test]
async fn an_apply_that_changes_nothing_makes_no_revision() {
    let world = World::new();
    let (_, first) = apply(&world, "one", "spec: {metres: 10}").await;
    let (_, second) = apply(&world, "one", "spec: {metres: 10}").await;
    assert_eq!(first, second);
}

#[tokio::test]
async fn managers_of_updates_are_bounded() {
    let world = World::new();
    world.boat("ada", json!({})).await;
    for i in 0..20 {
        let patch = json!({ "metadata": { "labels": { (format!("l{i}")): "x" } } }).to_string();
        world.call("PATCH", &format!("/boats/ada?fieldManager=m{i}"), MERGE, &patch).await;
    }
    let (_, boat) = world.get("/boats/ada").await;
    let managers = boat["metadata"]["managedFields"].as_array().unwrap();
    assert_eq!(managers.len(), 10);
    assert!(managers.iter().any(|m| m["manager"] == "ancient-changes"));
}

#[tokio::test]
async fn s56_yaml_that_grows_when_it_is_read_is_refused() {
    let world = World::new();
    let mut bomb = String::from("a: &a [x, x, x, x, x, x, x, x, x, x]\n");
    for (from, to) in ["ab", "bc", "cd", "de", "ef", "fg", "gh"].iter().map(|p| p.split_at(1)) {
        bomb.push_str(&format!("{to}: &{to} [{}]\n", vec![format!("*{from}"); 10].join(", ")));
    }
    let (code, _) = apply(&world, "one", &bomb).await;
    assert!(matches!(code.as_u16(), 400 | 413), "{code}");
}

/// An object of a version of this program that kept no managers.
#[tokio::test]
async fn fields_that_nobody_is_known_to_own_are_not_taken_silently() {
    let world = World::new();
    let old = json!({
        "apiVersion": "moorline.dev/v1alpha1", "kind": "Boat", "metadata": { "name": "ada", "uid": "u" },
        "spec": { "metres": 10 },
    });
    let object = Some(("moorline.dev/boats/ada".into(), Expect::Absent, Some(old)));
    world.server.store().commit(Batch { object, private: vec![] }).await.unwrap();
    let (code, status) = apply(&world, "one", "spec: {metres: 12}").await;
    let message =
        r#"Apply failed with 1 conflict: conflict with "before-first-apply" using moorline.dev/v1alpha1: .spec.metres"#;
    assert_eq!((code.as_u16(), &status["message"]), (409, &json!(message)));
    assert_eq!(apply(&world, "one", "spec: {metres: 10}").await.0, 200);
}

#[tokio::test]
async fn two_writers_of_one_object_lose_nothing() {
    let world = World::new();
    world.boat("ada", json!({})).await;
    let patch = |i: u32| {
        let body = json!({ "metadata": { "labels": { (format!("l{i}")): "x" } } }).to_string();
        let world = &world;
        async move { world.call("PATCH", &format!("/boats/ada?fieldManager=m{}", i % 3), MERGE, &body).await.0 }
    };
    let all = futures_util::future::join_all((0..6).map(patch)).await;
    assert!(all.iter().all(|code| *code == 200), "{all:?}");
    let (_, boat) = world.get("/boats/ada").await;
    assert_eq!(boat["metadata"]["labels"].as_object().unwrap().len(), 6);
    let owned: usize = boat["metadata"]["managedFields"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| {
            m["fieldsV1"]["f:metadata"]["f:labels"].as_object().map_or(0, |l| l.keys().filter(|k| *k != ".").count())
        })
        .sum();
    assert_eq!(owned, 6, "each label has its owner");
}
