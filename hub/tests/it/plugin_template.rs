//! The plugin of `docs/src/write-a-plugin.md`, in a hub with a cluster: what the guide says of it is so.

use crate::{
    stub::Stub,
    world::{API, World, eventually},
};
use moorline_plugin::{Configured, Plugin};
use moorline_plugin_template::{Config, Notices};
use serde_json::json;
use std::sync::Arc;

#[tokio::test(flavor = "multi_thread")]
async fn the_plugin_of_the_guide_does_what_the_guide_says() {
    let world = World::with(|config| {
        config.plugins = vec![Arc::new(Notices::new(Config { longest: Some(20) }).unwrap()) as Arc<dyn Plugin>];
    })
    .await;
    let (mut edge1, mut edge2) = (Stub::default(), Stub::default());
    edge1.connect(&world, "edge1").await;
    edge2.connect(&world, "edge2").await;
    let notice =
        |text: &str| json!({ "text": text, "clusters": { "names": ["edge1"] }, "namespaces": ["team", "shop"] });
    world.create("notices", "Notice", "hello", notice("good morning")).await;
    let text = |stub: &Stub, namespace: &str| {
        let object = stub.get(&format!("/api/v1/namespaces/{namespace}/configmaps/notice-hello"))?;
        Some(object["data"]["text"].as_str().unwrap_or_default().to_owned())
    };
    let shows = async |wanted: Option<&str>| {
        eventually("the notice", async || ["team", "shop"].iter().all(|ns| text(&edge1, ns).as_deref() == wanted))
            .await;
    };
    shows(Some("good morning")).await;
    let condition = async |wanted: &str| {
        let cluster = world.get(&world.admin, &format!("{API}/clusters/edge1")).await.json();
        let all = cluster["status"]["conditions"].as_array().cloned().unwrap_or_default();
        all.iter().any(|c| c["type"] == "NoticesSynced" && c["status"] == wanted)
    };
    eventually("the condition", async || condition("True").await).await;
    // What somebody else makes of it is put right, and what somebody else made is left alone, and told.
    let mut theirs = edge1.get("/api/v1/namespaces/team/configmaps/notice-hello").unwrap();
    theirs["data"]["text"] = "bad morning".into();
    edge1.put("/api/v1/namespaces/team/configmaps/notice-hello", theirs);
    shows(Some("good morning")).await;
    let own =
        json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "labels": {} }, "data": { "text": "ours" } });
    edge1.put("/api/v1/namespaces/team/configmaps/notice-second", own);
    world.create("notices", "Notice", "second", notice("ours too")).await;
    eventually("it is told", async || condition("False").await).await;
    let kept = edge1.get("/api/v1/namespaces/team/configmaps/notice-second").unwrap();
    assert_eq!(kept["data"]["text"], "ours");
    // Its rule, its rights, and the clusters that it is not meant for.
    let long = json!({ "apiVersion": "moorline.dev/v1alpha1", "kind": "Notice", "metadata": { "name": "long" }, "spec": notice(&"x".repeat(21)) });
    let refused = world.call(&world.admin, "POST", &format!("{API}/notices"), &long).await;
    assert_eq!((refused.code, refused.body.contains("at most 20 letters")), (422, true), "{refused:?}");
    assert!(
        edge1.seen().iter().all(|line| line.starts_with("moorline:plugin:notices: ") || !line.contains("configmaps"))
    );
    assert_eq!(text(&edge2, "team"), None);
    let gone = world.call(&world.admin, "DELETE", &format!("{API}/notices/hello"), &json!(null)).await;
    assert_eq!(gone.code, 200, "{gone:?}");
    shows(None).await;
}
