//! Namespaces of a cluster grouped into projects: members, a quota that they share, isolation, pod security.
//!
//! A member who may manage namespaces makes a ProjectNamespace at the hub, in own projects only; the namespace follows in
//! the cluster, and goes only when that object is deleted. Whatever else happens (the project is deleted, the plugin is
//! switched off, the hub is put back from an old backup), namespaces stay, for they hold others' work.
#![forbid(unsafe_code)]

mod desired;
pub mod kinds;
mod quota;
mod shares;
mod tell;

use desired::{Inputs, desired, held, published};
use futures_util::{FutureExt, future::BoxFuture};
use kinds::{ProjectNamespaceSpec, ProjectSpec, check_namespace, check_project};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use moorline_plugin::{
    All, ClusterView, Configured, HubObject, HubView, Plugin, PluginError, PluginKind, Registration, follow,
    mirror::{Board, Kept},
};
use serde::Deserialize;
use serde_json::json;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};
use tokio::sync::watch;

/// Holds a ProjectNamespace until its namespace is gone.
pub(crate) const FINALIZER: &str = "moorline.dev/projects";
/// The condition of a Cluster that says whether it has its projects.
pub const CONDITION: &str = "ProjectsSynced";

const fn kept(group: &'static str, kind: &'static str, plural: &'static str) -> Kept {
    Kept { group, version: "v1", kind, plural, take_over: true, release: false }
}
const KINDS: &[Kept] = &[
    Kept { group: "", version: "v1", kind: "Namespace", plural: "namespaces", take_over: false, release: true },
    kept("networking.k8s.io", "NetworkPolicy", "networkpolicies"),
    kept("", "ResourceQuota", "resourcequotas"),
    kept("rbac.authorization.k8s.io", "RoleBinding", "rolebindings"),
];

/// Settings: none yet.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {}

/// Projects and namespaces of the whole hub.
#[derive(Debug)]
pub(crate) struct Known {
    pub projects: Arc<All<ProjectSpec>>,
    pub namespaces: Arc<All<ProjectNamespaceSpec>>,
}

/// The plugin.
#[derive(Debug, Default)]
pub struct Projects {
    known: watch::Sender<Option<Arc<Known>>>,
    board: Board,
    /// What each project uses, as text.
    used: Mutex<BTreeMap<String, BTreeMap<String, String>>>,
    used_changed: tokio::sync::Notify,
}

impl Configured for Projects {
    const NAME: &'static str = "projects";
    type Config = Config;
    fn new(Config {}: Config) -> Result<Self, String> {
        Ok(Self::default())
    }
}

impl Plugin for Projects {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn register(&self, into: &mut Registration) {
        into.kind(
            PluginKind::of::<ProjectSpec>()
                .column("Cluster", "/spec/cluster")
                .column("Namespaces", "/status/namespaces")
                .condition_column("Synced", "Synced")
                .selectable(&["spec.cluster"])
                .validate::<ProjectSpec>(check_project),
        )
        .kind(
            PluginKind::of::<ProjectNamespaceSpec>()
                .column("Project", "/spec/project")
                .column("Phase", "/status/phase")
                .wide_column("Message", "/status/message")
                .selectable(&["spec.project"])
                .validate::<ProjectNamespaceSpec>(check_namespace),
        )
        .writes(&["clusters"])
        .per_cluster();
    }

    fn run(self: Arc<Self>, hub: HubView) -> BoxFuture<'static, Result<(), PluginError>> {
        async move {
            let (projects, follow_projects) = follow::<ProjectSpec>(hub.client.clone());
            let (namespaces, follow_namespaces) = follow::<ProjectNamespaceSpec>(hub.client.clone());
            let spread = async {
                let (mut projects, mut namespaces) = (projects, namespaces);
                loop {
                    let now = (projects.borrow_and_update().clone(), namespaces.borrow_and_update().clone());
                    if let (Some(projects), Some(namespaces)) = now {
                        hub.publish_rules(published(&projects));
                        self.known.send_replace(Some(Arc::new(Known { projects, namespaces })));
                    }
                    tokio::select! {
                        Ok(()) = projects.changed() => {}
                        Ok(()) = namespaces.changed() => {}
                        else => return Ok(()),
                    }
                }
            };
            tokio::select! {
                ended = follow_projects => ended,
                ended = follow_namespaces => ended,
                ended = spread => ended,
                ended = hold(&hub, self.known.subscribe()) => ended,
                ended = self.tell(&hub) => ended,
            }
        }
        .boxed()
    }

    fn run_cluster(self: Arc<Self>, hub: HubView, cluster: ClusterView) -> BoxFuture<'static, Result<(), PluginError>> {
        async move {
            let (mine, inputs) = watch::channel::<Option<Arc<Inputs>>>(None);
            tokio::select! {
                ended = self.share(&hub, &cluster, &mine) => ended,
                ended = self.board.keep((&hub, &cluster), (KINDS, CONDITION), inputs, desired) => ended,
            }
        }
        .boxed()
    }
}

/// Sees to it that no ProjectNamespace goes before its namespace does.
async fn hold(hub: &HubView, mut known: watch::Receiver<Option<Arc<Known>>>) -> Result<(), PluginError> {
    let api: Api<HubObject<ProjectNamespaceSpec>> = Api::all(hub.client.clone());
    loop {
        let now = known.borrow_and_update().clone();
        let all = now.iter().flat_map(|now| now.namespaces.values());
        for object in all.filter(|object| object.metadata.deletion_timestamp.is_none() && !held(object)) {
            finalizers(&api, object, |all| all.push(FINALIZER.to_owned())).await?;
        }
        if known.changed().await.is_err() {
            return Ok(());
        }
    }
}

/// Changes the finalizers of an object. One that has changed meanwhile is seen again.
pub(crate) async fn finalizers(
    api: &Api<HubObject<ProjectNamespaceSpec>>,
    object: &HubObject<ProjectNamespaceSpec>,
    change: impl FnOnce(&mut Vec<String>),
) -> Result<(), PluginError> {
    let mut all = object.metadata.finalizers.clone().unwrap_or_default();
    change(&mut all);
    let patch = json!({ "metadata": { "finalizers": all, "resourceVersion": object.metadata.resource_version } });
    match api.patch(object.name(), &PatchParams::default(), &Patch::Merge(patch)).await {
        Err(kube::Error::Api(answer)) if matches!(answer.code, 404 | 409) => Ok(()),
        other => other.map(drop).map_err(Into::into),
    }
}
