//! S52: what callers do not see, whatever a list is made to go on from, and whatever moment it is asked about.

use crate::world::{API, World, eventually};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use futures_util::{FutureExt, future::BoxFuture};
use moorline_plugin::{HubView, Plugin, PluginError, Registration};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};

/// A continue token as the API server would write it, about any moment and any name.
fn go_on(at: &Value, start: &str) -> String {
    URL_SAFE_NO_PAD.encode(json!({ "v": "meta.k8s.io/v1", "rv": at, "start": start }).to_string())
}

/// Ways to ask for more than a plain list says.
fn ways(moment: &str) -> Vec<String> {
    let at: u64 = moment.parse().unwrap();
    let mut all = Vec::new();
    for start in ["", "a", "edge1", "../users/", "\u{0}", "users/admin", "/"] {
        for at in [json!(at), json!(null), json!(1)] {
            all.push(format!("continue={}", go_on(&at, start)));
            all.push(format!("limit=1&continue={}", go_on(&at, start)));
        }
    }
    all.push(format!("resourceVersion={moment}&resourceVersionMatch=Exact"));
    all.push(format!("limit=500&resourceVersion={moment}"));
    all.push(format!("watch=true&timeoutSeconds=1&resourceVersion={moment}"));
    all
}

async fn moment(world: &World) -> String {
    let list = world.get(&world.admin, &format!("{API}/clusters")).await.json();
    list["metadata"]["resourceVersion"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn s52_no_token_and_no_moment_shows_what_a_caller_may_not_see() {
    let world = World::new().await;
    let before = moment(&world).await;
    for cluster in ["edge1", "edge2", "edge3"] {
        world.cluster(cluster).await;
    }
    let anna = world.user("anna", &["edge1"]).await;
    let bert = world.user("bert", &["edge1", "edge2"]).await;
    let with_bert = moment(&world).await;
    let sees = async |who: &str, query: &str| world.get(who, &format!("{API}/clusters?{query}")).await.body;
    let exact = format!("resourceVersion={with_bert}&resourceVersionMatch=Exact");
    assert!(sees(&bert, &exact).await.contains("edge2"), "what is asked below would show it");
    assert!(
        sees(&world.admin, &format!("watch=true&timeoutSeconds=1&resourceVersion={before}")).await.contains("edge2")
    );

    // Kinds of which the caller sees none: refused, whatever is asked.
    for plural in ["jointokens", "clustergrants", "groups", "agents", "nodes", "inventions"] {
        for query in ways(&with_bert) {
            let answer = world.get(&anna, &format!("{API}/{plural}?{query}")).await;
            assert_eq!(answer.code, if plural == "inventions" { 404 } else { 403 }, "{plural}?{query}: {answer:?}");
            assert!(!answer.body.contains("grant-bert"), "{plural}?{query}: {answer:?}");
        }
    }
    // A kind of which one is seen: no other, nor how many there are.
    for query in ways(&with_bert).into_iter().chain(ways(&before)) {
        let body = sees(&anna, &query).await;
        for hidden in ["edge2", "edge3", "remainingItemCount"] {
            assert!(!body.contains(hidden), "{query}: {body}");
        }
        let tokens = world.get(&anna, &format!("{API}/tokens?{query}")).await.body;
        assert!(!tokens.contains("\"user\":\"bert\""), "{query}: {tokens}");
    }
    // What was seen once, and is not any more: not as it was then either.
    let gone = world.call(&world.admin, "DELETE", &format!("{API}/clustergrants/grant-bert"), &Value::Null).await;
    assert_eq!(gone.code, 200, "{gone:?}");
    eventually("the grant's end", async || !sees(&bert, "").await.contains("edge2")).await;
    for query in ways(&with_bert) {
        let body = sees(&bert, &query).await;
        assert!(!body.contains("edge2") && !body.contains("edge1"), "{query}: {body}");
    }
}

/// Asks for what it has not registered.
struct Curious {
    queries: Mutex<Vec<String>>,
    heard: Mutex<Option<Vec<(String, u16)>>>,
}

impl Plugin for Curious {
    fn name(&self) -> &'static str {
        "curious"
    }
    fn register(&self, into: &mut Registration) {
        into.reads(&["clusters"]);
    }
    fn run(self: Arc<Self>, hub: HubView) -> BoxFuture<'static, Result<(), PluginError>> {
        async move {
            let mut heard = Vec::new();
            let queries = self.queries.lock().unwrap().clone();
            for query in queries {
                let request = http::Request::get(format!("{API}/{query}")).body(Vec::new()).unwrap();
                let code = match hub.client.request_text(request).await {
                    Ok(_) => 200,
                    Err(kube::Error::Api(status)) => status.code,
                    Err(error) => panic!("{query}: {error}"),
                };
                heard.push((query, code));
            }
            *self.heard.lock().unwrap() = Some(heard);
            std::future::pending().await
        }
        .boxed()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s52_a_plugin_sees_what_it_has_registered_and_nothing_by_another_way() {
    let plurals = ["users", "tokens", "clustergrants", "jointokens"];
    let refused: Vec<String> =
        plurals.iter().flat_map(|plural| ways("1").into_iter().map(move |query| format!("{plural}?{query}"))).collect();
    let mut queries = refused.clone();
    queries.push("clusters".to_owned());
    let curious = Arc::new(Curious { queries: Mutex::new(queries), heard: Mutex::default() });
    let plugin: Arc<dyn Plugin> = curious.clone();
    let world = World::with(move |config| config.plugins = vec![plugin]).await;
    eventually("its questions", async || curious.heard.lock().unwrap().is_some()).await;
    let heard = curious.heard.lock().unwrap().take().unwrap();
    assert_eq!(heard.last(), Some(&("clusters".to_owned(), 200)));
    let passed: Vec<_> = heard.iter().filter(|(query, code)| refused.contains(query) && *code != 403).collect();
    assert_eq!(passed, Vec::<&(String, u16)>::new());
    drop(world);
}
