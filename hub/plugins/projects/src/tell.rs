//! Statuses of projects and their namespaces, and the end of those that are deleted.

use crate::{
    FINALIZER, Known, Projects,
    desired::{Origin, held, namespaces},
    finalizers,
    kinds::{ProjectNamespaceSpec, ProjectNamespaceStatus, ProjectSpec, ProjectStatus, namespace_of},
};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use moorline_plugin::{
    Condition, HubObject, HubView, PluginError, Spec,
    mirror::{Key, Outcome},
};
use serde_json::json;
use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

/// Changes of one moment are written once.
const GATHER: Duration = Duration::from_millis(300);

async fn write<S: Spec>(api: &Api<HubObject<S>>, object: &HubObject<S>, status: S::Status) -> Result<(), PluginError>
where
    S::Status: PartialEq + Default,
{
    if object.status.clone().unwrap_or_default() == status {
        return Ok(());
    }
    match api.patch_status(object.name(), &PatchParams::default(), &Patch::Merge(json!({ "status": status }))).await {
        Err(kube::Error::Api(answer)) if answer.code == 404 => Ok(()),
        other => other.map(drop).map_err(Into::into),
    }
}

impl Projects {
    pub(crate) async fn tell(&self, hub: &HubView) -> Result<(), PluginError> {
        let (mut known, mut clusters) = (self.known.subscribe(), hub.clusters.clone());
        let projects: Api<HubObject<ProjectSpec>> = Api::all(hub.client.clone());
        let spaces: Api<HubObject<ProjectNamespaceSpec>> = Api::all(hub.client.clone());
        loop {
            tokio::select! {
                () = self.board.changed() => {}
                () = self.used_changed.notified() => {}
                changed = known.changed() => if changed.is_err() { return Ok(()) },
                changed = clusters.changed() => if changed.is_err() { return Ok(()) },
            }
            tokio::time::sleep(GATHER).await;
            clusters.borrow_and_update();
            let Some(now) = known.borrow_and_update().clone() else { continue };
            for project in now.projects.values() {
                write(&projects, project, self.of_project(&now, project)).await?;
            }
            for object in now.namespaces.values() {
                let status = self.of_namespace(&now, hub, object);
                if status.phase == GONE {
                    finalizers(&spaces, object, |all| all.retain(|finalizer| finalizer != FINALIZER)).await?;
                } else {
                    write(&spaces, object, status).await?;
                }
            }
        }
    }

    fn of_project(&self, now: &Known, project: &Arc<HubObject<ProjectSpec>>) -> ProjectStatus {
        let (name, cluster) = (project.name(), &project.spec.cluster);
        let owners = namespaces(&now.projects, &now.namespaces, cluster);
        let mine: Vec<String> =
            owners.iter().filter(|(_, owner)| owner.0 == name).map(|(namespace, _)| (*namespace).to_owned()).collect();
        let about = |key: &Key| mine.contains(&key.namespace) || (key.kind == "Namespace" && mine.contains(&key.name));
        let condition = match self.board.outcome(cluster, about) {
            Outcome::Synced => Condition::new("Synced", true, "InSync", format!("{} namespaces", mine.len())),
            Outcome::Waiting => Condition::new("Synced", false, "Waiting", format!("waiting for cluster {cluster}")),
            Outcome::Failed(why) => Condition::new("Synced", false, "Failing", why),
        };
        let mut conditions = project.status.clone().unwrap_or_default().conditions;
        condition.put(&mut conditions);
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned().unwrap_or_default();
        ProjectStatus { conditions, namespaces: mine, used }
    }

    fn of_namespace(
        &self,
        now: &Known,
        hub: &HubView,
        object: &Arc<HubObject<ProjectNamespaceSpec>>,
    ) -> ProjectNamespaceStatus {
        let is = |phase: &str, message: String| ProjectNamespaceStatus { phase: phase.to_owned(), message };
        let deleting = object.metadata.deletion_timestamp.is_some();
        let Some(project) = now.projects.get(&object.spec.project) else {
            // The namespace stays: nobody knows any more where it is.
            return if deleting {
                is(GONE, String::new())
            } else {
                is("Failed", "there is no such project".to_owned())
            };
        };
        let cluster = &project.spec.cluster;
        if deleting && (!held(object) || !hub.clusters.borrow().contains_key(cluster)) {
            return is(GONE, String::new());
        }
        let namespace = namespace_of(object);
        let owners = namespaces(&now.projects, &now.namespaces, cluster);
        let mine = [Origin::Made(object.name()), Origin::Leaving(object.name())];
        let taken = owners.get(namespace).filter(|(_, origin)| !mine.contains(origin));
        if let Some((owner, _)) = taken {
            let why = format!("namespace {namespace} belongs to project {owner} already");
            return if deleting { is(GONE, String::new()) } else { is("Failed", why) };
        }
        let about = |key: &Key| key.namespace == namespace || (key.kind == "Namespace" && key.name == namespace);
        let itself = Key { kind: "Namespace", namespace: String::new(), name: namespace.to_owned() };
        let outcome = match (self.board.outcome(cluster, about), self.board.wanted(cluster, &itself)) {
            // What the cluster is told lags behind what is wanted by a moment.
            (Outcome::Synced, wanted) if wanted != Some(!deleting) => Outcome::Waiting,
            (outcome, _) => outcome,
        };
        match (outcome, deleting) {
            (Outcome::Synced, false) => is("Ready", String::new()),
            (Outcome::Synced, true) => is(GONE, String::new()),
            (Outcome::Waiting, false) => is("Waiting", format!("waiting for cluster {cluster}")),
            (Outcome::Waiting, true) => is("Deleting", format!("waiting for cluster {cluster}")),
            (Outcome::Failed(why), false) => is("Failed", why),
            (Outcome::Failed(why), true) => is("Deleting", why),
        }
    }
}

/// Nothing is left: the object may go.
const GONE: &str = "Gone";
