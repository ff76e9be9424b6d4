//! Imports in a real hub. Their API servers need not be there: an agent joins and dials whether or not its cluster answers.
#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests stand outside of test functions

use base64::{Engine, engine::general_purpose::STANDARD};
use futures_util::{FutureExt, future::BoxFuture};
use kube::{
    Api,
    api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind, PostParams},
};
use moorline_hub::{Config, Hub};
use moorline_plugin::{Configured, HubView, Plugin, PluginError, Registration};
use moorline_plugin_clusters::{ClustersPlugin, Config as Settings};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType};
use serde_json::{Value, json};
use std::{path::Path, sync::Arc, time::Duration};
use tempfile::TempDir;
use tokio::{sync::mpsc, time::timeout};

/// Guards against a hang, no more.
const LONG: Duration = Duration::from_secs(40);

/// Hands out what it sees of the hub: the API without sockets.
struct Probe(mpsc::UnboundedSender<HubView>);

impl Plugin for Probe {
    fn name(&self) -> &'static str {
        "probe"
    }
    fn register(&self, into: &mut Registration) {
        into.writes(&["clusters", "agents", "clusterimports"]);
    }
    fn run(self: Arc<Self>, hub: HubView) -> BoxFuture<'static, Result<(), PluginError>> {
        async move {
            let stop = hub.stop.clone();
            let _ = self.0.send(hub);
            stop.cancelled().await;
            Ok(())
        }
        .boxed()
    }
}

/// A hub with this plugin, and its API.
struct Running {
    hub: Hub,
    view: HubView,
}

impl Running {
    async fn start(dir: &TempDir) -> Self {
        let (tell, mut told) = mpsc::unbounded_channel();
        let mut config = Config::new(dir.path().join("hub"));
        config.listen = "127.0.0.1:0".parse().unwrap();
        config.ops_listen = "127.0.0.1:0".parse().unwrap();
        config.names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        config.limits.grace = Duration::from_secs(5);
        config.plugins = vec![Arc::new(ClustersPlugin::new(Settings::default()).unwrap()), Arc::new(Probe(tell))];
        let hub = Hub::start(config, &prometheus::Registry::new()).await.unwrap();
        let view = timeout(LONG, told.recv()).await.expect("the plugin runs").unwrap();
        Self { hub, view }
    }

    fn api(&self, kind: &str, plural: &str) -> Api<DynamicObject> {
        let gvk = GroupVersionKind::gvk("moorline.dev", "v1alpha1", kind);
        Api::all_with(self.view.client.clone(), &ApiResource::from_gvk_with_plural(&gvk, plural))
    }

    async fn create(&self, kind: &str, plural: &str, name: &str, spec: Value) -> DynamicObject {
        let object =
            json!({ "apiVersion": "moorline.dev/v1alpha1", "kind": kind, "metadata": { "name": name }, "spec": spec });
        let object = serde_json::from_value(object).unwrap();
        self.api(kind, plural).create(&PostParams::default(), &object).await.unwrap()
    }

    /// Imports a cluster whose API server is not there.
    async fn import(&self, dir: &TempDir, name: &str) -> DynamicObject {
        let authority = STANDARD.encode(std::fs::read(dir.path().join("hub/ca.crt")).unwrap());
        let kubeconfig = json!({
            "current-context": "c",
            "contexts": [{ "name": "c", "context": { "cluster": "k", "user": "u" } }],
            "clusters": [{ "name": "k", "cluster": { "server": "https://127.0.0.1:9", "certificate-authority-data": authority } }],
            "users": [{ "name": "u", "user": { "token": "x" } }],
        });
        self.create("ClusterImport", "clusterimports", name, json!({ "kubeconfig": kubeconfig.to_string() })).await
    }

    /// Waits until a condition of an object has this status.
    async fn condition(&self, (kind, plural): (&str, &str), name: &str, condition: &str, status: &str) -> String {
        let api = self.api(kind, plural);
        let wait = async {
            loop {
                let object = api.get_opt(name).await.unwrap().map(|object| object.data).unwrap_or_default();
                let all = object.pointer("/status/conditions").and_then(Value::as_array).cloned().unwrap_or_default();
                if let Some(found) = all.iter().find(|c| c["type"] == condition && c["status"] == status) {
                    return found["message"].as_str().unwrap_or_default().to_owned();
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(LONG, wait).await.unwrap_or_else(|_| panic!("{kind} {name} has no {condition}={status}"))
    }
}

/// Puts a certificate into an agent's folder that the hub's authority would have made for it long ago.
fn expire(hub: &Path, folder: &Path) {
    let file = |name: &str| std::fs::read_to_string(hub.join(name)).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&file("ca.crt"), KeyPair::from_pem(&file("ca.key")).unwrap()).unwrap();
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let mut state: Value = serde_json::from_str(&read("agent.json")).unwrap();
    let text = |key: &str| state[key].as_str().unwrap().to_owned();
    let id = format!("spiffe://{}/cluster/{}/agent/{}", text("trustDomain"), text("cluster"), text("name"));
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    (params.not_before, params.not_after) = (rcgen::date_time_ymd(2020, 1, 1), rcgen::date_time_ymd(2020, 1, 2));
    let cert = params.signed_by(&KeyPair::from_pem(&read("agent.key")).unwrap(), &issuer).unwrap();
    state["chain"][0] = cert.pem().into();
    std::fs::write(folder.join("agent.json"), state.to_string()).unwrap();
}

/// A hub that was down for longer than certificates live gets its imported clusters back.
#[tokio::test(flavor = "multi_thread")]
async fn an_imported_cluster_whose_agents_certificate_expired_is_back_when_the_hub_is() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(&dir).await;
    let import = running.import(&dir, "site").await;
    running.condition(("Agent", "agents"), "site.import", "Connected", "True").await;
    running.hub.shutdown().await;

    let hub = dir.path().join("hub");
    expire(&hub, &hub.join("imports").join(import.metadata.uid.unwrap()));
    let running = Running::start(&dir).await;
    running.condition(("Agent", "agents"), "site.import", "Connected", "True").await;
    running.hub.shutdown().await;
}

/// Two API servers under one name would answer a user's requests by turns.
#[tokio::test(flavor = "multi_thread")]
async fn an_import_takes_no_cluster_that_has_agents_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(&dir).await;
    let cluster = running.create("Cluster", "clusters", "edge1", json!({})).await;
    let spec = json!({
        "cluster": "edge1", "clusterUid": cluster.metadata.uid.unwrap(), "name": "a1", "role": "agent",
        "publicKeySha256": "0".repeat(64),
    });
    running.create("Agent", "agents", "edge1.a1", spec).await;
    running.import(&dir, "edge1").await;
    let import = ("ClusterImport", "clusterimports");
    let why = running.condition(import, "edge1", "Running", "False").await;
    assert!(why.contains("of its own") && why.contains("edge1.a1"), "{why}");
    let agents = running.api("Agent", "agents");
    assert!(agents.get_opt("edge1.import").await.unwrap().is_none());
    assert!(agents.get_opt("edge1.a1").await.unwrap().is_some());
    let owners = running.api(import.0, import.1).get("edge1").await.unwrap().metadata.owner_references;
    assert!(owners.unwrap_or_default().is_empty(), "it has not taken the cluster");

    // What it says to do helps.
    agents.delete("edge1.a1", &DeleteParams::default()).await.unwrap();
    running.condition(("Agent", "agents"), "edge1.import", "Connected", "True").await;
    running.hub.shutdown().await;
}
