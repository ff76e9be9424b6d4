//! Role templates and bindings: written once at the hub, kept in every cluster that they are meant for; and roles in the
//! hub's own API.
//!
//! What others change in a cluster is put right, counted and reported. In a cluster the plugin is the user
//! `moorline:plugin:rbac`, and it can give nobody more than that user holds there, unless the cluster's owner gives it
//! `escalate` and `bind`: `deploy/plugins/rbac.yaml` has both ways.
#![forbid(unsafe_code)]

mod desired;
pub mod kinds;
pub mod powers;

use desired::{Inputs, desired, name_there, published};
use futures_util::{FutureExt, future::BoxFuture};
use kinds::{
    GlobalRoleBindingSpec, GlobalRoleSpec, RoleTemplateSpec, SyncStatus, TemplateBindingSpec, check_binding,
    check_global, check_template,
};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use moorline_plugin::{
    All, ClusterSelector, ClusterView, Condition, Configured, HubObject, HubView, Plugin, PluginError, PluginKind,
    Registration, Spec, follow,
    mirror::{Board, Kept, Key, Tally},
};
use serde::Deserialize;
use serde_json::json;
use std::{sync::Arc, time::Duration};
use tokio::sync::watch;

const GROUP: &str = "rbac.authorization.k8s.io";
const KINDS: &[Kept] = &[
    Kept { group: GROUP, version: "v1", kind: "ClusterRole", plural: "clusterroles", take_over: true, release: false },
    Kept {
        group: GROUP,
        version: "v1",
        kind: "ClusterRoleBinding",
        plural: "clusterrolebindings",
        take_over: true,
        release: false,
    },
    Kept { group: GROUP, version: "v1", kind: "RoleBinding", plural: "rolebindings", take_over: true, release: false },
];

/// The condition of a Cluster that says whether it has its roles.
pub const CONDITION: &str = "RolesSynced";
/// Changes of one moment are written into statuses once.
const GATHER: Duration = Duration::from_millis(300);

/// Settings: none yet.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {}

/// The plugin.
#[derive(Debug, Default)]
pub struct Rbac {
    inputs: watch::Sender<Option<Arc<Inputs>>>,
    board: Board,
}

impl Configured for Rbac {
    const NAME: &'static str = "rbac";
    type Config = Config;
    fn new(Config {}: Config) -> Result<Self, String> {
        Ok(Self::default())
    }
}

impl Plugin for Rbac {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn register(&self, into: &mut Registration) {
        let sync = |kind: PluginKind| {
            kind.column("Clusters", "/status/sync/clusters")
                .column("Synced", "/status/sync/synced")
                .column("Failed", "/status/sync/failed")
        };
        into.kind(
            sync(PluginKind::of::<RoleTemplateSpec>()).validate::<RoleTemplateSpec>(|new, _| check_template(new)),
        )
        .kind(
            sync(PluginKind::of::<TemplateBindingSpec>().column("Template", "/spec/template"))
                .column("Users", "/spec/users")
                .column("Groups", "/spec/groups")
                .wide_column("Namespaces", "/spec/namespaces")
                .validate::<TemplateBindingSpec>(|new, _| check_binding(new)),
        )
        .kind(
            PluginKind::of::<GlobalRoleSpec>().without_status().validate::<GlobalRoleSpec>(|new, _| check_global(new)),
        )
        .kind(
            PluginKind::of::<GlobalRoleBindingSpec>()
                .without_status()
                .column("Role", "/spec/role")
                .column("Users", "/spec/users")
                .column("Groups", "/spec/groups"),
        )
        .writes(&["clusters"])
        .per_cluster();
    }

    fn run(self: Arc<Self>, hub: HubView) -> BoxFuture<'static, Result<(), PluginError>> {
        async move { self.whole(hub).await }.boxed()
    }

    fn run_cluster(self: Arc<Self>, hub: HubView, cluster: ClusterView) -> BoxFuture<'static, Result<(), PluginError>> {
        async move {
            let inputs = self.inputs.subscribe();
            self.board.keep((&hub, &cluster), (KINDS, CONDITION), inputs, desired).await
        }
        .boxed()
    }
}

impl Rbac {
    async fn whole(&self, hub: HubView) -> Result<(), PluginError> {
        let (templates, follow_templates) = follow::<RoleTemplateSpec>(hub.client.clone());
        let (bindings, follow_bindings) = follow::<TemplateBindingSpec>(hub.client.clone());
        let (roles, follow_roles) = follow::<GlobalRoleSpec>(hub.client.clone());
        let (holders, follow_holders) = follow::<GlobalRoleBindingSpec>(hub.client.clone());
        let spread = async {
            let (mut templates, mut bindings) = (templates, bindings);
            loop {
                let now = (templates.borrow_and_update().clone(), bindings.borrow_and_update().clone());
                if let (Some(templates), Some(bindings)) = now {
                    self.inputs.send_replace(Some(Arc::new(Inputs { templates, bindings })));
                }
                tokio::select! {
                    Ok(()) = templates.changed() => {}
                    Ok(()) = bindings.changed() => {}
                    else => return Ok(()),
                }
            }
        };
        let publish = async {
            let (mut roles, mut holders) = (roles, holders);
            loop {
                let now = (roles.borrow_and_update().clone(), holders.borrow_and_update().clone());
                if let (Some(roles), Some(holders)) = now {
                    hub.publish_rules(published(&roles, &holders));
                }
                tokio::select! {
                    Ok(()) = roles.changed() => {}
                    Ok(()) = holders.changed() => {}
                    else => return Ok(()),
                }
            }
        };
        tokio::select! {
            ended = follow_templates => ended,
            ended = follow_bindings => ended,
            ended = follow_roles => ended,
            ended = follow_holders => ended,
            ended = spread => ended,
            ended = publish => ended,
            ended = self.tell(&hub) => ended,
        }
    }

    /// Writes into each template and binding how far the clusters are, when that changes.
    async fn tell(&self, hub: &HubView) -> Result<(), PluginError> {
        let mut inputs = self.inputs.subscribe();
        let mut clusters = hub.clusters.clone();
        loop {
            tokio::select! {
                () = self.board.changed() => {}
                changed = inputs.changed() => if changed.is_err() { return Ok(()) },
                changed = clusters.changed() => if changed.is_err() { return Ok(()) },
            }
            tokio::time::sleep(GATHER).await;
            let Some(now) = inputs.borrow_and_update().clone() else { continue };
            clusters.borrow_and_update();
            let role = |key: &Key| key.kind == "ClusterRole";
            self.tell_kind(hub, &now.templates, |spec: &RoleTemplateSpec| &spec.clusters, role).await?;
            self.tell_kind(hub, &now.bindings, |spec: &TemplateBindingSpec| &spec.clusters, |key| !role(key)).await?;
        }
    }

    async fn tell_kind<S: Spec<Status = SyncStatus>>(
        &self,
        hub: &HubView,
        all: &All<S>,
        meant: impl Fn(&S) -> &ClusterSelector,
        kind: impl Fn(&Key) -> bool,
    ) -> Result<(), PluginError> {
        let api: Api<HubObject<S>> = Api::all(hub.client.clone());
        for (name, object) in all {
            let there = name_there(name);
            let mut sync = Tally::default();
            let clusters = Arc::clone(&hub.clusters.borrow());
            for facts in clusters.values().filter(|facts| meant(&object.spec).picks(facts)) {
                sync.add(&facts.name, self.board.outcome(&facts.name, |key| kind(key) && key.name == there));
            }
            let before = object.status.clone().unwrap_or_default();
            let mut conditions = before.conditions.clone();
            let (done, message) =
                (sync.synced == sync.clusters, format!("{} of {} clusters", sync.synced, sync.clusters));
            let reason = if done {
                "InSync"
            } else if sync.failed > 0 {
                "Failing"
            } else {
                "Waiting"
            };
            Condition::new("Synced", done, reason, message).put(&mut conditions);
            let status = SyncStatus { conditions, sync };
            if status == before {
                continue;
            }
            match api.patch_status(name, &PatchParams::default(), &Patch::Merge(json!({ "status": status }))).await {
                Err(kube::Error::Api(answer)) if answer.code == 404 => {}
                other => drop(other?),
            }
        }
        Ok(())
    }
}
