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
    All, ClusterFacts, ClusterView, Condition, Configured, HubObject, HubView, Plugin, PluginError, PluginKind,
    Registration, TooMuch, follow, limits,
    mirror::{Board, Kept, Key, Objects, Tally, cannot_watch},
    name_of, watching,
};
use serde::Deserialize;
use serde_json::json;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::sync::watch;

const KINDS: &[Kept] =
    &[Kept { group: "", version: "v1", kind: "Secret", plural: "secrets", take_over: false, release: false }];
/// The condition of a Cluster that says whether it has its secrets.
pub const CONDITION: &str = "SecretsSynced";
/// Which declaration of the hub's an object comes of, and how often that had changed.
pub const STATE: &str = "moorline.dev/declared";
/// Changes of one moment are written into statuses once.
const GATHER: Duration = Duration::from_millis(300);

/// Settings: none yet.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {}

type Declared = Option<Arc<All<SharedSecretSpec>>>;
/// Labels of a cluster's namespaces, by name.
type Namespaces = BTreeMap<String, BTreeMap<String, String>>;

/// Everything that a cluster's secrets depend on.
struct Inputs {
    declared: Arc<All<SharedSecretSpec>>,
    namespaces: Arc<Namespaces>,
}

/// The plugin.
#[derive(Debug, Default)]
pub struct Secrets {
    declared: watch::Sender<Declared>,
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
            let (mut declared, following) = follow::<SharedSecretSpec>(hub.client.clone());
            let spread = async {
                while declared.changed().await.is_ok() {
                    self.declared.send_replace(declared.borrow_and_update().clone());
                }
                Ok(())
            };
            tokio::select! {
                ended = following => ended,
                ended = spread => ended,
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
/// which is not there is told of.
fn desired(inputs: &Inputs, cluster: &ClusterFacts) -> Objects {
    let mut all = Objects::new();
    for (name, secret) in inputs.declared.iter().filter(|(_, secret)| secret.spec.clusters.picks(cluster)) {
        let spec = &secret.spec;
        let kind = if spec.r#type.is_empty() { "Opaque" } else { &spec.r#type };
        // A key that was taken out is no difference by itself: this makes one of every change.
        let meta = &secret.metadata;
        let state = format!("{}/{}", meta.uid.as_deref().unwrap_or_default(), meta.generation.unwrap_or_default());
        let labelled = inputs.namespaces.iter().filter(|(name, labels)| spec.namespaces.picks(name, labels));
        for namespace in labelled.map(|(name, _)| name).chain(&spec.namespaces.names) {
            let object = json!({
                "apiVersion": "v1", "kind": "Secret", "type": kind, "data": spec.data,
                "metadata": { "name": name, "namespace": namespace, "labels": spec.labels, "annotations": { STATE: state } },
            });
            all.insert(Key { kind: "Secret", namespace: namespace.clone(), name: name.clone() }, object);
        }
    }
    all
}

/// Whether a cluster does not let the plugin list its namespaces. Those that are named are wanted all the same then: the
/// mirror finds out what it may do, and tells. After any other error the listing is waited for: without it no namespace is
/// picked by its labels, and the mirror would take away what is there.
fn refused(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::InitialListFailed(kube::Error::Api(status)) if status.code == 403)
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
        let (mut namespaces, mut listing, mut listed) = (Arc::<Namespaces>::default(), Namespaces::new(), false);
        loop {
            let now = declared.borrow_and_update().clone();
            if let (Some(declared), true) = (now, listed) {
                inputs.send_replace(Some(Arc::new(Inputs { declared, namespaces: Arc::clone(&namespaces) })));
            }
            tokio::select! {
                changed = declared.changed() => if changed.is_err() { return Ok(()) },
                event = changes.next() => match event {
                    None => return Err(PluginError::Other("the watch of namespaces ended".to_owned())),
                    Some(Ok(watcher::Event::Init)) => listing.clear(),
                    Some(Ok(watcher::Event::InitApply(one))) => drop(listing.insert(name_of(&one)?, one.labels().clone())),
                    Some(Ok(watcher::Event::InitDone)) => {
                        (namespaces, listed) = (Arc::new(std::mem::take(&mut listing)), true);
                    }
                    Some(Ok(watcher::Event::Apply(one))) => {
                        // One that goes takes its secrets with it, and takes no new ones.
                        let all = Arc::make_mut(&mut namespaces);
                        match one.metadata.deletion_timestamp {
                            None => drop(all.insert(name_of(&one)?, one.labels().clone())),
                            Some(_) => drop(all.remove(&one.name_any())),
                        }
                    }
                    Some(Ok(watcher::Event::Delete(one))) => drop(Arc::make_mut(&mut namespaces).remove(&one.name_any())),
                    // It is told, and all begins anew: nobody knows by now which namespaces there are.
                    Some(Err(error)) if TooMuch::within(&error).is_some() => {
                        return Err(cannot_watch(hub, (&cluster.name, CONDITION), "namespaces", &error).await);
                    }
                    Some(Err(error)) => {
                        tracing::debug!(cluster = %cluster.name, "namespaces are asked for again after: {error}");
                        listed |= refused(&error);
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
    use kube::core::Status;
    use moorline_plugin::ClusterSelector;

    #[test]
    fn of_all_errors_only_a_refusal_stands_for_the_listing_of_namespaces() {
        let answered = |code| kube::Error::Api(Status::failure("no", "").with_code(code).boxed());
        assert!(refused(&watcher::Error::InitialListFailed(answered(403))));
        for code in [0, 401, 404, 410, 429, 500, 503, 504] {
            assert!(!refused(&watcher::Error::InitialListFailed(answered(code))), "{code}");
        }
        let silent = kube::Error::Service("no answer within 30 s".into());
        assert!(!refused(&watcher::Error::InitialListFailed(silent)));
        assert!(!refused(&watcher::Error::WatchStartFailed(answered(403))), "a listing was there, or is to come");
    }

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
    }
}
