//! Plugins in a real hub: kube-rs without sockets, and what happens when one of them goes wild.

use crate::world::{API, World, eventually};
use bytes::Bytes;
use futures_util::{
    FutureExt, StreamExt,
    future::{BoxFuture, join_all},
};
use kube::{
    Api,
    api::{DynamicObject, ListParams, Patch, PatchParams, PostParams},
    core::{ApiResource, GroupVersionKind},
    runtime::{WatchStreamExt, watcher},
};
use moorline_link::Carrier;
use moorline_plugin::{
    Cause, ClusterView, Condition, HubObject, HubRule, HubView, Plugin, PluginError, PluginKind, Registration, Spec,
    set_condition,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
struct BuoySpec {
    #[serde(default)]
    colour: String,
}
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
struct BuoyStatus {
    seen: String,
}
impl Spec for BuoySpec {
    type Status = BuoyStatus;
    const KIND: &'static str = "Buoy";
    const PLURAL: &'static str = "buoys";
    const SINGULAR: &'static str = "buoy";
}

/// A plugin as it should be.
#[derive(Default)]
struct Calm {
    refused: Mutex<Option<u16>>,
    heard: Mutex<Vec<String>>,
}

impl Plugin for Calm {
    fn name(&self) -> &'static str {
        "calm"
    }

    fn register(&self, into: &mut Registration) {
        let kind =
            PluginKind::of::<BuoySpec>().column("Colour", "/spec/colour").validate::<BuoySpec>(|new, _| {
                match new.spec.colour.as_str() {
                    "panic" => panic!("as a defect would"),
                    "loop" => loop {
                        std::thread::sleep(Duration::from_secs(1));
                    },
                    "plaid" => vec![Cause::invalid("spec.colour", "no such paint")],
                    _ => Vec::new(),
                }
            });
        into.kind(kind).writes(&["clusters"]).per_cluster().holds_clusters(HELD).route(|request| {
            let text = format!("{} {} {}", request.method, request.path, (request.may_see)("edge1"));
            if request.path == "/panic" {
                panic!("as a defect would")
            }
            async move { http::Response::new(Bytes::from(text)) }.boxed()
        });
    }

    fn run(self: Arc<Self>, hub: HubView) -> BoxFuture<'static, Result<(), PluginError>> {
        async move {
            let users =
                ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("moorline.dev", "v1alpha1", "User"), "users");
            let users: Api<DynamicObject> = Api::all_with(hub.client.clone(), &users);
            if let Err(kube::Error::Api(status)) = users.list(&ListParams::default()).await {
                *self.refused.lock().unwrap() = Some(status.code);
            }
            hub.publish_rules(vec![HubRule {
                users: vec!["anna".to_owned()],
                resource: "buoys".to_owned(),
                verbs: vec!["get".to_owned(), "list".to_owned(), "create".to_owned()],
                field: Some(("/spec/colour".to_owned(), vec!["red".to_owned()])),
                ..HubRule::default()
            }]);
            let buoys: Api<HubObject<BuoySpec>> = Api::all(hub.client.clone());
            let mut changes = std::pin::pin!(watcher(buoys.clone(), watcher::Config::default()).applied_objects());
            while let Some(buoy) = changes.next().await {
                let Ok(buoy) = buoy else { continue };
                let status = json!({ "status": { "seen": buoy.spec.colour } });
                if buoy.status.is_none_or(|status| status.seen != buoy.spec.colour) {
                    let name = buoy.metadata.name.clone().unwrap_or_default();
                    buoys.patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await?;
                }
            }
            Ok(())
        }
        .boxed()
    }

    fn run_cluster(self: Arc<Self>, hub: HubView, cluster: ClusterView) -> BoxFuture<'static, Result<(), PluginError>> {
        async move {
            let request = http::Request::get("/api/v1/forests").body(Vec::new()).unwrap();
            let text = cluster.client.request_text(request).await?;
            self.heard.lock().unwrap().push(format!("{}: {text}", cluster.name));
            let kind = ApiResource::from_gvk_with_plural(
                &GroupVersionKind::gvk("moorline.dev", "v1alpha1", "Cluster"),
                "clusters",
            );
            let clusters = Api::all_with(hub.client.clone(), &kind);
            set_condition(&clusters, &cluster.name, Condition::new("Calm", true, "Sea", "no wind")).await?;
            cluster.stop.cancelled().await;
            self.heard.lock().unwrap().push(format!("{} ended", cluster.name));
            std::future::pending().await
        }
        .boxed()
    }
}

const HELD: &str = "calm.plugins.moorline.dev/anchor";

/// One that fails whenever it runs.
struct Wild;
impl Plugin for Wild {
    fn name(&self) -> &'static str {
        "wild"
    }
    fn register(&self, _: &mut Registration) {}
    fn run(self: Arc<Self>, _: HubView) -> BoxFuture<'static, Result<(), PluginError>> {
        panic!("as a defect would")
    }
}

/// One that never gives its thread back.
struct Spinning(Arc<AtomicBool>);
impl Plugin for Spinning {
    fn name(&self) -> &'static str {
        "spinning"
    }
    fn register(&self, into: &mut Registration) {
        into.route(|_| async { http::Response::new(Bytes::from("never")) }.boxed());
    }
    fn run(self: Arc<Self>, _: HubView) -> BoxFuture<'static, Result<(), PluginError>> {
        async move {
            while !self.0.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
            Ok(())
        }
        .boxed()
    }
}

async fn readyz(world: &World) -> String {
    let url = "GET /readyz?verbose HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut socket = tokio::net::TcpStream::connect(world.hub.ops_addr()).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut socket, url.as_bytes()).await.unwrap();
    let answer = crate::world::read_answer(&mut socket).await;
    assert_eq!(answer.code, 200, "the hub is ready whatever its plugins are: {answer:?}");
    answer.body
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_is_a_kube_rs_program_with_rights_of_its_own() {
    let calm = Arc::new(Calm::default());
    let plugin: Arc<dyn Plugin> = calm.clone();
    let world = World::with(move |config| config.plugins = vec![plugin]).await;
    world.create("buoys", "Buoy", "north", json!({ "colour": "red" })).await;
    let path = format!("{API}/buoys/north");
    eventually("the controller's status", async || {
        world.get(&world.admin, &path).await.json()["status"]["seen"] == "red"
    })
    .await;
    assert_eq!(*calm.refused.lock().unwrap(), Some(403), "s52: kinds that it has not registered");

    // Its own name at the cluster, and a half that comes and goes with the cluster.
    let agent = world.connected("edge1", Carrier::Tls).await;
    eventually("the cluster's half", async || calm.heard.lock().unwrap().len() == 1).await;
    assert_eq!(calm.heard.lock().unwrap()[0], "edge1: up: /api/v1/forests");
    assert_eq!(agent.last().principal.user, "moorline:plugin:calm");
    let cluster = format!("{API}/clusters/edge1");
    let conditions = async || world.get(&world.admin, &cluster).await.json()["status"]["conditions"].clone();
    eventually("its condition", async || {
        conditions().await.as_array().is_some_and(|all| all.iter().any(|c| c["type"] == "Calm"))
    })
    .await;
    // A cluster is held from its first revision on, so that it cannot go before its plugins are out of it.
    let made = json!({ "apiVersion": "moorline.dev/v1alpha1", "kind": "Cluster",
        "metadata": { "name": "edge7", "finalizers": ["else.example/mine"] }, "spec": {} });
    let made = world.call(&world.admin, "POST", &format!("{API}/clusters"), &made).await.json();
    assert_eq!(made["metadata"]["finalizers"], json!(["else.example/mine", HELD]));
    assert_eq!(made["metadata"]["generation"], 1);
    agent.session.close(moorline_proto::code::CloseCode::Shutdown, "bye");
    eventually("no half", async || world.metric("moorline_plugin_clusters{plugin=\"calm\"}") == 0.0).await;
    assert!(conditions().await.as_array().unwrap().iter().any(|c| c["type"] == "Calm"), "others' conditions stay");

    // Rules that it published.
    let anna = world.user("anna", &["edge1"]).await;
    let bert = world.user("bert", &[]).await;
    world.create("buoys", "Buoy", "south", json!({ "colour": "green" })).await;
    let seen = world.get(&anna, &format!("{API}/buoys")).await.json();
    let names: Vec<_> = seen["items"].as_array().unwrap().iter().map(|o| o["metadata"]["name"].clone()).collect();
    assert_eq!(names, ["north"], "s52: what the rule covers, and nothing beside it");
    assert_eq!(world.get(&anna, &format!("{API}/buoys/south")).await.code, 403);
    assert_eq!(world.get(&bert, &format!("{API}/buoys")).await.code, 403);
    let make = async |colour: &str| {
        let object = json!({ "apiVersion": "moorline.dev/v1alpha1", "kind": "Buoy", "metadata": { "generateName": "b-" }, "spec": { "colour": colour } });
        world.call(&anna, "POST", &format!("{API}/buoys"), &object).await.code
    };
    assert_eq!((make("red").await, make("green").await), (201, 403));

    // Its route, with the caller's own reach.
    let answer = world.get(&anna, "/plugins/calm/x?y").await;
    assert_eq!((answer.code, answer.body.as_str()), (200, "GET /x true"));
    assert_eq!(world.get(&bert, "/plugins/calm/x").await.body, "GET /x false");
    assert_eq!(world.get(&bert, "/plugins/none/x").await.code, 404);
    assert_eq!(world.send("GET", "/plugins/calm/x", &[], "").await.code, 401);
    assert!(readyz(&world).await.contains("[+]plugin-calm ok"));
    // Disabled means gone: its kinds, routes and rules with it.
    let none = World::new().await;
    assert_eq!(none.get(&none.admin, &format!("{API}/buoys")).await.code, 404);
    assert_eq!(none.get(&none.admin, "/plugins/calm/x").await.code, 404);
    assert!(!readyz(&none).await.contains("plugin-"));
}

#[tokio::test(flavor = "multi_thread")]
async fn f42_what_goes_wrong_in_a_plugin_stays_there() {
    let (calm, end) = (Arc::new(Calm::default()), Arc::new(AtomicBool::new(false)));
    let plugins: Vec<Arc<dyn Plugin>> = vec![calm.clone(), Arc::new(Wild), Arc::new(Spinning(Arc::clone(&end)))];
    let world = World::with(move |config| config.plugins = plugins).await;
    let agent = world.connected("edge1", Carrier::Tls).await;
    let anna = world.user("anna", &["edge1"]).await;
    // Panics: counted, and tried again with growing pauses.
    let panics = || world.metric("moorline_plugin_restarts_total{cause=\"panic\",plugin=\"wild\"}");
    eventually("panics", async || panics() >= 2.0).await;
    assert!(panics() < 10.0, "never a tight loop");
    // A loop: told, while the hub is ready.
    eventually("the loop is noticed", async || readyz(&world).await.contains("[!]plugin-spinning failed")).await;
    assert!(readyz(&world).await.contains("[!]plugin-wild failed"));
    assert!(readyz(&world).await.contains("[+]plugin-calm ok"));
    assert_eq!(world.metric("moorline_plugin_ready{plugin=\"spinning\"}"), 0.0);
    // Traffic and the other plugin go on; how fast is compared in `plugin_panics`.
    for _ in 0..20 {
        assert_eq!(world.get(&anna, "/k8s/clusters/edge1/api").await.code, 200);
    }
    assert!(agent.lines().len() >= 20);
    let buoy = |name: &str, colour: &str| json!({ "apiVersion": "moorline.dev/v1alpha1", "kind": "Buoy", "metadata": { "name": name }, "spec": { "colour": colour } });
    let make = async |name: &str, colour: &str| {
        world.call(&world.admin, "POST", &format!("{API}/buoys"), &buoy(name, colour)).await
    };
    // Beside a loop on two cores a rule may get its thread too late: then the write is refused, and is tried again.
    let made = async |name: &str, colour: &str| {
        let mut answer = make(name, colour).await;
        for _ in 0..20 {
            if !answer.body.contains("do not answer") {
                break;
            }
            answer = make(name, colour).await;
        }
        answer
    };
    assert_eq!(made("a", "red").await.code, 201);
    assert!(made("b", "plaid").await.body.contains("no such paint"));
    // Rules that panic or do not end refuse the write, and only that.
    let refused = make("c", "panic").await;
    assert_eq!((refused.code, refused.body.contains("the rules of plugin")), (422, true), "{refused:?}");
    for _ in 0..5 {
        let refused = make("d", "loop").await;
        assert_eq!((refused.code, refused.body.contains("do not answer")), (422, true), "{refused:?}");
        assert_eq!(world.get(&anna, "/k8s/clusters/edge1/api").await.code, 200);
    }
    assert_eq!(make("e", "red").await.code, 422, "its threads are used up: fail closed");
    assert_eq!(world.get(&world.admin, "/plugins/calm/panic").await.code, 500);
    assert_eq!(world.create("users", "User", "carl", json!({})).await["kind"], "User");
    assert_eq!(calm.heard.lock().unwrap().len(), 1);
    end.store(true, Ordering::Relaxed);
    let begun = Instant::now();
    world.hub.shutdown().await;
    assert!(begun.elapsed() < Duration::from_secs(15), "an end in spite of threads that never return");
}

/// One that has much to write at once, and looks who is there when it begins.
#[derive(Default)]
struct Busy {
    there: Mutex<Option<Vec<String>>>,
    written: Mutex<Option<Vec<Option<String>>>>,
}

/// More than one caller may ask at a time.
const AT_ONCE: usize = 300;

impl Plugin for Busy {
    fn name(&self) -> &'static str {
        "busy"
    }
    fn register(&self, into: &mut Registration) {
        into.kind(PluginKind::of::<BuoySpec>());
    }
    fn run(self: Arc<Self>, hub: HubView) -> BoxFuture<'static, Result<(), PluginError>> {
        async move {
            *self.there.lock().unwrap() = Some(hub.clusters.borrow().keys().cloned().collect());
            let buoys: Api<HubObject<BuoySpec>> = Api::all(hub.client.clone());
            let write = async |i: usize| {
                let object = HubObject::new(format!("b{i}"), BuoySpec::default());
                buoys.create(&PostParams::default(), &object).await.err().map(|error| error.to_string())
            };
            *self.written.lock().unwrap() = Some(join_all((0..AT_ONCE).map(write)).await);
            std::future::pending().await
        }
        .boxed()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_with_a_thousand_clusters_waits_its_turn_and_knows_them_all_from_the_start() {
    let world = World::new().await;
    for i in 0..50 {
        world.cluster(&format!("c{i:02}")).await;
    }
    let World { hub, dir, .. } = world;
    hub.shutdown().await;
    let busy = Arc::new(Busy::default());
    let mut config = crate::world::config(&dir);
    config.plugins = vec![busy.clone()];
    let hub = moorline_hub::Hub::start(config, &prometheus::Registry::new()).await.unwrap();
    eventually("everything is written", async || busy.written.lock().unwrap().is_some()).await;
    assert_eq!(busy.there.lock().unwrap().as_ref().map(Vec::len), Some(50), "none was taken for gone");
    let refused: Vec<_> = busy.written.lock().unwrap().take().unwrap().into_iter().flatten().collect();
    assert_eq!(refused, Vec::<String>::new());
    hub.shutdown().await;
}
