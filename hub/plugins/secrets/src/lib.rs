//! Secrets that are declared at the hub, and kept in the clusters and namespaces that they are meant for: they appear,
//! follow changes, and go when they are withdrawn.
//!
//! A Secret of that name that somebody else made is left alone, and that is told. In a cluster the plugin is the user
//! `moorline:plugin:secrets`; what it may do there is `deploy/plugins/secrets.yaml`.
#![forbid(unsafe_code)]

pub mod kinds;

use futures_util::{FutureExt, StreamExt, future::BoxFuture};
use k8s_openapi::api::core::v1::Namespace;
use kinds::{SharedSecretSpec, SyncStatus, check};
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
    core::PartialObjectMeta,
    runtime::watcher,
};
use moorline_plugin::{
    All, ClusterFacts, ClusterView, Condition, Configured, Feed, HubObject, HubView, Plugin, PluginError, PluginKind,
    Registration, TooMuch, follow_into, limits,
    mirror::{ANYWHERE, Board, Kept, Key, Objects, Tally, cannot_watch, unknown_where},
    name_of, watching,
};
use serde::Deserialize;
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::sync::watch;

const KINDS: &[Kept] = &[Kept::core("Secret", "secrets")];
/// The condition of a Cluster that says whether it has its secrets.
pub const CONDITION: &str = "SecretsSynced";
/// Which declaration of the hub's an object comes of, and how often that had changed. It begins with [`NAMED`] where no
/// labels are known to pick the namespace.
pub const STATE: &str = "moorline.dev/declared";
/// Only the namespace's name has picked it: without that it is not wanted there, for certain.
const NAMED: &str = "named/";
/// Changes of one moment are written into statuses once.
const GATHER: Duration = Duration::from_millis(300);

/// Settings: none yet.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {}

/// Labels of a cluster's namespaces, by name.
type Namespaces = BTreeMap<String, BTreeMap<String, String>>;

/// Everything that a cluster's secrets depend on.
struct Inputs {
    declared: Arc<All<SharedSecretSpec>>,
    /// As they were listed last.
    namespaces: Arc<Namespaces>,
    /// Why nobody knows whether these are all, and still labelled so.
    unsure: Option<String>,
}

/// The plugin.
#[derive(Debug, Default)]
pub struct Secrets {
    declared: Feed<SharedSecretSpec>,
    board: Board,
}

impl Configured for Secrets {
    const NAME: &'static str = "secrets";
    type Config = Config;
    fn new(Config {}: Config) -> Result<Self, String> {
        Ok(Self::default())
    }
}

impl Plugin for Secrets {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn register(&self, into: &mut Registration) {
        let kind = PluginKind::of::<SharedSecretSpec>()
            .column("Type", "/spec/type")
            .column("Clusters", "/status/sync/clusters")
            .column("Synced", "/status/sync/synced")
            .column("Failed", "/status/sync/failed")
            .validate::<SharedSecretSpec>(check);
        into.kind(kind).writes(&["clusters"]).per_cluster();
    }

    fn run(self: Arc<Self>, hub: HubView) -> BoxFuture<'static, Result<(), PluginError>> {
        async move {
            tokio::select! {
                ended = follow_into(hub.client.clone(), &self.declared) => ended,
                ended = self.tell(&hub) => ended,
            }
        }
        .boxed()
    }

    fn run_cluster(self: Arc<Self>, hub: HubView, cluster: ClusterView) -> BoxFuture<'static, Result<(), PluginError>> {
        async move {
            let (inputs, known) = watch::channel(None);
            tokio::select! {
                ended = self.gather(&hub, &cluster, inputs) => ended,
                ended = self.board.keep((&hub, &cluster), (KINDS, CONDITION), known, desired) => ended,
            }
        }
        .boxed()
    }
}

/// What a cluster should have: a Secret in each namespace that is there and picked, and in each that is named, so that one
/// which is not there is told of. While nobody knows which namespaces there are, it is not known either what labels pick besides
/// those that were listed last.
fn desired(inputs: &Inputs, cluster: &ClusterFacts) -> Objects {
    let mut all = Objects::new();
    for (name, secret) in inputs.declared.iter().filter(|(_, secret)| secret.spec.clusters.picks(cluster)) {
        let spec = &secret.spec;
        let kind = if spec.r#type.is_empty() { "Opaque" } else { &spec.r#type };
        // A key that was taken out is no difference by itself: this makes one of every change.
        let meta = &secret.metadata;
        let of = format!("{}/", meta.uid.as_deref().unwrap_or_default());
        let state = format!("{of}{}", meta.generation.unwrap_or_default());
        if let (Some(why), false) = (&inputs.unsure, spec.namespaces.match_labels.is_empty()) {
            let anywhere = Key { kind: "Secret", namespace: ANYWHERE.to_owned(), name: name.clone() };
            all.insert(anywhere, unknown_where((STATE, &of), why.clone()));
        }
        let there = inputs.namespaces.iter().filter(|(_, labels)| spec.namespaces.labelled(labels));
        let labelled: BTreeSet<_> = there.map(|(name, _)| name).collect();
        for namespace in labelled.iter().copied().chain(&spec.namespaces.names) {
            let by = if labelled.contains(namespace) { "" } else { NAMED };
            let object = json!({
                "apiVersion": "v1", "kind": "Secret", "type": kind, "data": spec.data,
                "metadata": { "name": name, "namespace": namespace, "labels": spec.labels, "annotations": { STATE: format!("{by}{state}") } },
            });
            all.insert(Key { kind: "Secret", namespace: namespace.clone(), name: name.clone() }, object);
        }
    }
    all
}

impl Secrets {
    /// Puts together what is declared and which namespaces the cluster has, whenever either changes.
    async fn gather(
        &self,
        hub: &HubView,
        cluster: &ClusterView,
        inputs: watch::Sender<Option<Arc<Inputs>>>,
    ) -> Result<(), PluginError> {
        let api: Api<PartialObjectMeta<Namespace>> = Api::all(cluster.client.clone());
        let config = watcher::Config::default().page_size(limits::PAGE);
        let mut changes = watching(api, config, Some(limits::HELD));
        let mut declared = self.declared.subscribe();
        let (mut known, mut listing) = (Arc::<Namespaces>::default(), Namespaces::new());
        // Whether they were listed ever, and why it is not known that they still are these.
        let (mut listed, mut unsure) = (false, None::<String>);
        loop {
            let now = declared.borrow_and_update().clone();
            if let (Some(declared), true) = (now, listed || unsure.is_some()) {
                let (namespaces, unsure) = (Arc::clone(&known), unsure.clone());
                inputs.send_replace(Some(Arc::new(Inputs { declared, namespaces, unsure })));
            }
            tokio::select! {
                changed = declared.changed() => if changed.is_err() { return Ok(()) },
                event = changes.next() => match event {
                    None => return Err(PluginError::Other("the watch of namespaces ended".to_owned())),
                    Some(Ok(watcher::Event::Init)) => listing.clear(),
                    Some(Ok(watcher::Event::InitApply(one))) => drop(listing.insert(name_of(&one)?, one.labels().clone())),
                    Some(Ok(watcher::Event::InitDone)) => {
                        known = Arc::new(std::mem::take(&mut listing));
                        (listed, unsure) = (true, None);
                    }
                    // One that goes takes its secrets with it, and takes no new ones.
                    Some(Ok(watcher::Event::Apply(one))) => match one.metadata.deletion_timestamp {
                        None => drop(Arc::make_mut(&mut known).insert(name_of(&one)?, one.labels().clone())),
                        Some(_) => drop(Arc::make_mut(&mut known).remove(&one.name_any())),
                    },
                    Some(Ok(watcher::Event::Delete(one))) => drop(Arc::make_mut(&mut known).remove(&one.name_any())),
                    // It is told, and all begins anew: nobody knows by now which namespaces there are.
                    Some(Err(error)) if TooMuch::within(&error).is_some() => {
                        return Err(cannot_watch(hub, (&cluster.name, CONDITION), "namespaces", &error).await);
                    }
                    Some(Err(error)) => {
                        tracing::debug!(cluster = %cluster.name, "namespaces are asked for again after: {error}");
                        // What is to be revoked by name alone waits for no listing.
                        unsure = Some(format!("cannot list namespaces: {error}"));
                    }
                },
            }
        }
    }

    /// Writes into each secret's status how far the clusters are, when that changes.
    async fn tell(&self, hub: &HubView) -> Result<(), PluginError> {
        let (mut declared, mut clusters) = (self.declared.subscribe(), hub.clusters.clone());
        let api: Api<HubObject<SharedSecretSpec>> = Api::all(hub.client.clone());
        loop {
            tokio::select! {
                () = self.board.changed() => {}
                changed = declared.changed() => if changed.is_err() { return Ok(()) },
                changed = clusters.changed() => if changed.is_err() { return Ok(()) },
            }
            tokio::time::sleep(GATHER).await;
            let Some(all) = declared.borrow_and_update().clone() else { continue };
            let clusters = Arc::clone(&clusters.borrow_and_update());
            for (name, object) in all.iter() {
                let mut sync = Tally::default();
                for facts in clusters.values().filter(|facts| object.spec.clusters.picks(facts)) {
                    sync.add(&facts.name, self.board.outcome(&facts.name, |key| key.name == *name));
                }
                let before = object.status.clone().unwrap_or_default();
                let mut conditions = before.conditions.clone();
                let done = sync.synced == sync.clusters;
                let reason = match (done, sync.failed) {
                    (true, _) => "InSync",
                    (false, 0) => "Waiting",
                    (false, _) => "Failing",
                };
                let message = format!("{} of {} clusters", sync.synced, sync.clusters);
                Condition::new("Synced", done, reason, message).put(&mut conditions);
                let status = SyncStatus { conditions, sync };
                if status == before {
                    continue;
                }
                let patch = Patch::Merge(json!({ "status": status }));
                match api.patch_status(name, &PatchParams::default(), &patch).await {
                    Err(kube::Error::Api(answer)) if answer.code == 404 => {}
                    other => drop(other?),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kinds::NamespaceSelector;
    use moorline_plugin::ClusterSelector;
    use serde_json::Value;

    #[test]
    fn s53_a_secret_is_where_it_is_meant_to_be_and_nowhere_else() {
        let spec = SharedSecretSpec {
            data: [("k".to_owned(), "dg==".to_owned())].into(),
            clusters: ClusterSelector { names: vec!["a".to_owned()], ..ClusterSelector::default() },
            namespaces: NamespaceSelector {
                names: vec!["named".to_owned(), "absent".to_owned()],
                match_labels: [("team".to_owned(), "x".to_owned())].into(),
            },
            ..SharedSecretSpec::default()
        };
        let namespaces = [("named", ""), ("labelled", "x"), ("other", "y")]
            .map(|(name, team)| (name.to_owned(), BTreeMap::from([("team".to_owned(), team.to_owned())])));
        let inputs = Inputs {
            declared: Arc::new([("s".to_owned(), Arc::new(HubObject::new("s", spec)))].into()),
            namespaces: Arc::new(namespaces.into()),
            unsure: None,
        };
        let facts = |name: &str| ClusterFacts {
            name: name.to_owned(),
            uid: "u".to_owned(),
            labels: BTreeMap::new(),
            connected: true,
            session: String::new(),
            leaving: false,
        };
        let there = desired(&inputs, &facts("a"));
        let keys: Vec<String> = there.keys().map(ToString::to_string).collect();
        assert_eq!(keys, ["Secret absent/s", "Secret labelled/s", "Secret named/s"]);
        let object = there.values().next().unwrap();
        assert_eq!((&object["type"], &object["data"]["k"]), (&json!("Opaque"), &json!("dg==")));
        assert!(desired(&inputs, &facts("b")).is_empty());
        let by = |object: &Value| object["metadata"]["annotations"][STATE].as_str().unwrap().starts_with(NAMED);
        assert_eq!(there.values().map(by).collect::<Vec<_>>(), [true, false, true], "a label has picked the second");
        // Which namespaces labels pick by now is not known: nor is where it should not be.
        let unsure = Inputs { unsure: Some("no".to_owned()), ..inputs };
        let keys = |inputs: &Inputs| desired(inputs, &facts("a")).keys().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(keys(&unsure), ["Secret */s", "Secret absent/s", "Secret labelled/s", "Secret named/s"]);
        assert!(desired(&unsure, &facts("b")).is_empty(), "where it is not meant to be at all, it goes");
        let unlisted = Inputs { namespaces: Arc::default(), ..unsure };
        assert_eq!(keys(&unlisted), ["Secret */s", "Secret absent/s", "Secret named/s"]);
    }
}
