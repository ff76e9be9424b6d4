//! What open watches hold, looked at from outside: in a process of its own.
#![cfg(target_os = "linux")]
#![allow(missing_docs, clippy::unwrap_used, reason = "a test")]

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use moorline_apiserver::{ApiServer, Batch, Everything, Expect, KindSpec, Limits, Spec, Store};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
struct BoatSpec {
    metres: u32,
}
impl Spec for BoatSpec {
    type Status = BoatSpec;
    const KIND: &'static str = "Boat";
    const PLURAL: &'static str = "boats";
    const SINGULAR: &'static str = "boat";
}

const OBJECTS: usize = 2000;
const WATCHES: usize = 1000;
/// What one watch may hold: far less than a pointer for each object of its kind.
const EACH: usize = 24 << 10;

/// Bytes of this process that are its own.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
}

/// A thousand who each watch one object do not hold places for all the others.
#[tokio::test]
async fn a_watch_of_one_object_holds_nothing_of_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("s"), &Limits::default()).unwrap();
    let put = |i: usize| {
        let name = format!("b{i:05}");
        let object = json!({ "apiVersion": "moorline.dev/v1alpha1", "kind": "Boat", "metadata": { "name": name }, "spec": { "metres": i } });
        let object = Some((format!("moorline.dev/boats/{name}"), Expect::Absent, Some(object)));
        store.commit(Batch { object, private: Vec::new() })
    };
    for made in futures_util::future::join_all((0..OBJECTS).map(put)).await {
        made.unwrap();
    }
    let kinds = vec![KindSpec::of::<BoatSpec>()];
    let registry = prometheus::Registry::new();
    let server = ApiServer::new(store, kinds, Limits::default(), &registry, CancellationToken::new()).unwrap();
    let open = async |query: &str| {
        let path = format!("/apis/moorline.dev/v1alpha1/boats?watch=true&{query}");
        let request = Request::get(path).body(Full::<Bytes>::default()).unwrap();
        let mut body = server.handle(request, Arc::new(Everything)).await.into_body();
        let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
        (String::from_utf8(first.to_vec()).unwrap(), body)
    };
    let before = resident();
    let mut held = Vec::new();
    for i in 0..WATCHES {
        let (first, body) = open(&format!("fieldSelector=metadata.name%3Db{i:05}")).await;
        assert!(first.starts_with("{\"type\":\"ADDED\"") && first.contains(&format!("\"b{i:05}\"")), "{first}");
        held.push(body);
    }
    let each = resident().saturating_sub(before) / WATCHES;
    eprintln!("a watch holds {each} bytes");
    assert!(each < EACH, "{each} bytes each");
}
