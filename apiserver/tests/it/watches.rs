//! Watches: each change once, in order, and a word when that cannot be.

use super::*;

/// The lines of a watch, one at a time.
struct Lines {
    body: Body,
    rest: Vec<u8>,
}

impl Lines {
    async fn open(world: &World, query: &str) -> Self {
        let request =
            Request::get(format!("/apis/moorline.dev/v1alpha1/boats?watch=true{query}")).body(Full::default()).unwrap();
        let response = world.send(request, Arc::new(Narrow)).await;
        assert_eq!(response.status(), 200);
        Self { body: response.into_body(), rest: Vec::new() }
    }

    async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            if let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                let event: Value = serde_json::from_slice(&line).unwrap();
                return Some((event["type"].as_str().unwrap().to_owned(), event["object"].clone()));
            }
            let frame = self.body.frame().await?.unwrap();
            self.rest.extend_from_slice(frame.data_ref().unwrap());
        }
    }

    async fn name(&mut self) -> (String, String) {
        let (what, object) = self.next().await.unwrap();
        (what, object["metadata"]["name"].as_str().unwrap_or_default().to_owned())
    }
}

fn pair(what: &str, name: &str) -> (String, String) {
    (what.to_owned(), name.to_owned())
}

#[tokio::test]
async fn every_change_comes_once_and_in_order() {
    let world = World::new();
    world.boat("ada", json!({})).await;
    let mut lines = Lines::open(&world, "").await;
    assert_eq!(lines.name().await, pair("ADDED", "ada"));
    world.boat("bo", json!({})).await;
    world.call("PATCH", "/boats/ada", "application/merge-patch+json", r#"{"spec":{"metres":1}}"#).await;
    world.call("DELETE", "/boats/bo", "", "").await;
    assert_eq!(lines.name().await, pair("ADDED", "bo"));
    let (what, ada) = lines.next().await.unwrap();
    assert_eq!((what.as_str(), &ada["spec"]["metres"]), ("MODIFIED", &json!(1)));
    assert_eq!(lines.name().await, pair("DELETED", "bo"));
    // From a revision on: exactly what came after it.
    let revision = ada["metadata"]["resourceVersion"].as_str().unwrap();
    let mut later = Lines::open(&world, &format!("&resourceVersion={revision}")).await;
    assert_eq!(later.name().await, pair("DELETED", "bo"));
}

#[tokio::test]
async fn leaving_a_selection_is_a_deletion() {
    let world = World::new();
    let mut lines = Lines::open(&world, "&labelSelector=a%3Db").await;
    world.boat("ada", json!({ "a": "b" })).await;
    assert_eq!(lines.name().await, pair("ADDED", "ada"));
    world.call("PATCH", "/boats/ada", "application/merge-patch+json", r#"{"metadata":{"labels":{"a":"c"}}}"#).await;
    assert_eq!(lines.name().await, pair("DELETED", "ada"));
}

#[tokio::test]
async fn s52_a_watch_shows_only_what_its_caller_may_see() {
    let world = World::new();
    let mut lines = Lines::open(&world, "").await;
    world.boat("eve", json!({ "secret": "yes" })).await;
    world.boat("ada", json!({})).await;
    assert_eq!(lines.name().await, pair("ADDED", "ada"));
    world
        .call("PATCH", "/boats/ada", "application/merge-patch+json", r#"{"metadata":{"labels":{"secret":"now"}}}"#)
        .await;
    assert_eq!(lines.name().await, pair("DELETED", "ada"));
}

#[tokio::test]
async fn p14_too_far_behind_is_said() {
    let world = World::new();
    let made = world.boat("ada", json!({})).await;
    let from = made["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let mut slow = Lines::open(&world, &format!("&resourceVersion={from}")).await;
    for i in 0..60 {
        world
            .call("PATCH", "/boats/ada", "application/merge-patch+json", &format!(r#"{{"spec":{{"metres":{i}}}}}"#))
            .await;
    }
    let (what, status) = slow.next().await.unwrap();
    assert_eq!((what.as_str(), &status["code"], &status["reason"]), ("ERROR", &json!(410), &json!("Expired")));
    assert!(slow.next().await.is_none());
    let (_, event) = world.get(&format!("/boats?watch=true&resourceVersion={from}")).await;
    assert_eq!((&event["type"], &event["object"]["code"]), (&json!("ERROR"), &json!(410)));
}

#[tokio::test(start_paused = true)]
async fn bookmarks_and_time_outs_come_by_the_clock() {
    let world = World::new();
    let mut lines = Lines::open(&world, "&allowWatchBookmarks=true&timeoutSeconds=90").await;
    let (what, mark) = lines.next().await.unwrap();
    assert_eq!(what, "BOOKMARK");
    assert!(mark["metadata"]["resourceVersion"].is_string());
    assert!(lines.next().await.is_none(), "a watch ends at its time");
}

#[tokio::test]
async fn a_stopped_server_ends_its_watches() {
    let world = World::new();
    let mut lines = Lines::open(&world, "").await;
    world.stop.cancel();
    assert!(lines.next().await.is_none());
}

/// Clients that asked for metadata alone know no other kind.
#[tokio::test]
async fn bookmarks_have_the_form_that_was_asked_for() {
    let world = World::new();
    world.boat("ada", json!({})).await;
    let query =
        "watch=true&timeoutSeconds=0&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan";
    let accept = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
    let request = Request::get(format!("/apis/moorline.dev/v1alpha1/boats?{query}")).header("accept", accept);
    let response = world.send(request.body(Full::default()).unwrap(), Arc::new(Everything)).await;
    let mut lines = Lines { body: response.into_body(), rest: Vec::new() };
    for wanted in ["ADDED", "BOOKMARK"] {
        let (what, object) = lines.next().await.unwrap();
        assert_eq!((what.as_str(), &object["kind"]), (wanted, &json!("PartialObjectMetadata")));
        let ends = &object["metadata"]["annotations"]["k8s.io/initial-events-end"];
        assert_eq!(ends == "true", wanted == "BOOKMARK");
    }
}
