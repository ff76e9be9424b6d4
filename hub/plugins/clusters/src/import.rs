//! Imported clusters: one agent for each ClusterImport, as long as it is there.

use crate::{
    agents, clusters,
    host::{NAME, Plan, Running, State, Threads, has_joined},
    kind,
    kinds::{ClusterImportSpec, ClusterImportStatus},
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams},
};
use moorline_agent::rejoin::TokenSource;
use moorline_plugin::{All, Condition, Home, HubObject, HubView, PluginError, follow};
use serde_json::{Value, json};
use std::{
    collections::{BTreeSet, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{sync::Mutex, time::sleep};

/// The condition of an import whose agent runs.
pub(crate) const RUNNING: &str = "Running";
/// The condition of an import whose API server answers.
pub(crate) const REACHABLE: &str = "Reachable";
/// How long the token is good that such an agent joins with, in seconds.
const TOKEN: i64 = 600;
/// How often statuses are looked at.
const TELL: Duration = Duration::from_millis(500);
/// First pause before an import that could not be started is tried again, and the longest.
const RETRY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));

/// What runs, by name.
#[derive(Debug)]
struct Entry {
    uid: String,
    generation: i64,
    running: Option<Running>,
    /// Why it could not be started, since when, and how often.
    failed: Option<(String, tokio::time::Instant, u32)>,
}

/// All of them. They go on while this plugin's own part is started anew.
#[derive(Debug)]
pub(crate) struct Imports {
    threads: Threads,
    entries: Mutex<HashMap<String, Entry>>,
    /// Clusters that are no longer imported, and whose agent's object is still to be removed.
    left: Mutex<BTreeSet<String>>,
    most: usize,
}

fn folder(home: &Home, uid: &str) -> PathBuf {
    home.data.join("imports").join(uid)
}

/// The edge policy of an imported cluster. No services, pods or hosts: they would be dialled from the hub's own network.
fn policy(spec: &ClusterImportSpec) -> String {
    let spec = json!({
        "api": { "readOnly": spec.read_only },
        "plugins": { "allow": spec.plugins },
        "services": { "deny": ["*/*"], "hosts": false },
    });
    json!({ "apiVersion": "moorline.dev/v1alpha1", "kind": "EdgePolicy", "spec": spec }).to_string()
}

impl Imports {
    pub fn new(most: usize) -> Self {
        Self { threads: Threads::default(), entries: Mutex::default(), left: Mutex::default(), most }
    }

    /// Keeps agents as imports are declared.
    pub async fn run(&self, hub: &HubView) -> Result<(), PluginError> {
        let (mut declared, following) = follow::<ClusterImportSpec>(hub.client.clone());
        let work = async {
            let Some(home) = hub.home().await else { return Ok(()) };
            // Nothing is ended before it is known what is declared.
            while declared.borrow().is_none() {
                if declared.changed().await.is_err() {
                    return Ok(());
                }
            }
            let first = declared.borrow().clone();
            self.sweep(&home, first.as_deref()).await;
            loop {
                let now = declared.borrow_and_update().clone().unwrap_or_default();
                self.keep(hub, &home, &now).await;
                self.tell(hub, &now).await;
                let left = !self.left.lock().await.is_empty();
                tokio::select! {
                    changed = declared.changed() => if changed.is_err() { return Ok(()) },
                    () = sleep(TELL), if left || !now.is_empty() => {}
                }
            }
        };
        tokio::select! {
            ended = following => ended,
            ended = work => ended,
        }
    }

    /// Takes away the folders of imports that went while the hub did not run.
    async fn sweep(&self, home: &Home, declared: Option<&All<ClusterImportSpec>>) {
        let known: Vec<&str> =
            declared.into_iter().flat_map(|all| all.values()).filter_map(|one| one.metadata.uid.as_deref()).collect();
        let Ok(mut all) = tokio::fs::read_dir(home.data.join("imports")).await else { return };
        while let Ok(Some(one)) = all.next_entry().await {
            if !one.file_name().to_str().is_some_and(|uid| known.contains(&uid)) {
                remove(&one.path()).await;
            }
        }
    }

    async fn keep(&self, hub: &HubView, home: &Arc<Home>, now: &All<ClusterImportSpec>) {
        let mut entries = self.entries.lock().await;
        let stale =
            |name: &str, entry: &Entry| now.get(name).is_none_or(|one| one.metadata.uid.as_deref() != Some(&entry.uid));
        let gone: Vec<String> =
            entries.iter().filter(|(name, entry)| stale(name, entry)).map(|(name, _)| name.clone()).collect();
        for name in gone {
            let Some(entry) = entries.remove(&name) else { continue };
            if let Some(running) = entry.running {
                running.end().await;
            }
            remove(&folder(home, &entry.uid)).await;
            tracing::info!(cluster = name, "no longer imported");
            self.left.lock().await.insert(name);
        }
        let mut left = self.left.lock().await;
        for name in left.clone() {
            // Imported anew under that name: its own start does that.
            if !now.contains_key(&name)
                && let Err(error) = forget(hub, &name).await
            {
                tracing::debug!(cluster = name, "the agent of what was imported is there yet: {error}");
                continue;
            }
            left.remove(&name);
        }
        drop(left);
        for (name, one) in now {
            let uid = one.metadata.uid.clone().unwrap_or_default();
            let generation = one.metadata.generation.unwrap_or_default();
            let old = entries.get(name);
            let same = old.is_some_and(|entry| entry.generation == generation);
            let due = old.and_then(|entry| entry.failed.as_ref()).is_some_and(|(_, at, failures)| {
                RETRY.0.saturating_mul(1 << (*failures).min(10)).min(RETRY.1) < at.elapsed()
            });
            if same && !due {
                continue;
            }
            let failures = if same { old.and_then(|e| e.failed.as_ref()).map_or(0, |(.., n)| n + 1) } else { 0 };
            if let Some(running) = entries.remove(name).and_then(|entry| entry.running) {
                running.end().await;
            }
            let started = if self.most <= entries.len() {
                Err(PluginError::Other(format!("{} clusters are imported: that is as many as may be", self.most)))
            } else {
                self.start(hub, home, one).await
            };
            let entry = match started {
                Ok(running) => Entry { uid, generation, running: Some(running), failed: None },
                Err(error) => {
                    let failed = Some((error.to_string(), tokio::time::Instant::now(), failures));
                    Entry { uid, generation, running: None, failed }
                }
            };
            entries.insert(name.clone(), entry);
        }
    }

    /// Makes what an agent needs, and starts it.
    async fn start(
        &self,
        hub: &HubView,
        home: &Arc<Home>,
        import: &HubObject<ClusterImportSpec>,
    ) -> Result<Running, PluginError> {
        let cluster = own(hub, import).await?;
        let uid = import.metadata.uid.clone().unwrap_or_default();
        let plan = Plan {
            tokens: tokens(hub, &cluster),
            cluster,
            dir: folder(home, &uid),
            home: Arc::clone(home),
            kubeconfig: import.spec.given(),
            policy: policy(&import.spec),
        };
        if !has_joined(&plan.dir)? {
            // An identity that was lost, or has ended: this plugin alone gives that name.
            remove(&plan.dir).await;
        }
        plan.start(&self.threads)
    }

    /// Writes statuses that have changed.
    async fn tell(&self, hub: &HubView, now: &All<ClusterImportSpec>) {
        let api: Api<HubObject<ClusterImportSpec>> = Api::all(hub.client.clone());
        let entries = self.entries.lock().await;
        for (name, one) in now {
            let Some(entry) = entries.get(name) else { continue };
            let state = entry.running.as_ref().map(|running| running.state.borrow().clone());
            let before = one.status.clone().unwrap_or_default();
            let after = status(&before, &one.spec, state.as_ref(), entry.failed.as_ref().map(|(why, ..)| why));
            if after != before {
                let patch = Patch::Merge(json!({ "status": after }));
                match api.patch_status(name, &PatchParams::default(), &patch).await {
                    Ok(_) => {}
                    Err(kube::Error::Api(status)) if status.code == 404 => {}
                    // It is looked at again in a moment; the others' need not wait for it.
                    Err(error) => tracing::debug!(cluster = name, "the status of an import was not written: {error}"),
                }
            }
        }
    }
}

/// What an import's status says of its agent.
fn status(
    before: &ClusterImportStatus,
    spec: &ClusterImportSpec,
    state: Option<&State>,
    failed: Option<&String>,
) -> ClusterImportStatus {
    let mut after = before.clone();
    after.server = spec.given().server().unwrap_or_default();
    let stopped = failed.or_else(|| state.and_then(|state| state.stopped.as_ref()));
    match (stopped, state) {
        (Some(why), _) => Condition::new(RUNNING, false, "Failed", why),
        (None, Some(_)) => Condition::new(RUNNING, true, "Started", "the hub's own agent serves it"),
        (None, None) => Condition::new(RUNNING, false, "Waiting", "not yet started"),
    }
    .put(&mut after.conditions);
    match state.and_then(|state| state.server.as_ref()) {
        Some(Ok(version)) => Condition::new(REACHABLE, true, "Answers", version),
        Some(Err(why)) => Condition::new(REACHABLE, false, "NoAnswer", why),
        None => {
            let mut unknown = Condition::new(REACHABLE, false, "NotAsked", "");
            "Unknown".clone_into(&mut unknown.status);
            unknown
        }
    }
    .put(&mut after.conditions);
    after
}

/// The cluster of an import, made where there is none, and the import's owner from then on: they go together.
async fn own(hub: &HubView, import: &HubObject<ClusterImportSpec>) -> Result<String, PluginError> {
    let (name, all) = (import.name().to_owned(), clusters(hub));
    let owner = import.metadata.owner_references.iter().flatten().find(|owner| owner.kind == "Cluster");
    let cluster = match (all.get_opt(&name).await?, owner) {
        (Some(there), Some(owner)) if there.metadata.uid.as_ref() != Some(&owner.uid) => {
            return Err(PluginError::Other("its cluster was removed; delete this import and make it anew".to_owned()));
        }
        (Some(_), Some(_)) => return Ok(name),
        (Some(there), None) => {
            // Two API servers must not answer under one name, each now and then.
            let of_it = ListParams::default().fields(&format!("spec.cluster={name}"));
            let theirs = agents(hub).list_metadata(&of_it).await?;
            if let Some(agent) = theirs.iter().find(|agent| agent.name_any() != format!("{name}.{NAME}")) {
                let agent = agent.name_any();
                let why = format!("the cluster has an agent of its own, {agent}: import it under another name");
                return Err(PluginError::Other(why));
            }
            there
        }
        (None, Some(_)) => return Err(PluginError::Other("its cluster is being removed".to_owned())),
        (None, None) => {
            let made = json!({
                "apiVersion": "moorline.dev/v1alpha1", "kind": "Cluster", "metadata": { "name": name }, "spec": {},
            });
            all.create(&PostParams::default(), &object(made)?).await?
        }
    };
    let owner = json!({
        "apiVersion": "moorline.dev/v1alpha1", "kind": "Cluster", "name": name,
        "uid": cluster.metadata.uid.unwrap_or_default(),
    });
    let patch = Patch::Merge(json!({ "metadata": { "ownerReferences": [owner] } }));
    kind(hub, "ClusterImport", "clusterimports").patch(&name, &PatchParams::default(), &patch).await?;
    Ok(name)
}

/// Where an import's agent gets its tokens.
fn tokens(hub: &HubView, cluster: &str) -> TokenSource {
    let (hub, cluster) = (hub.clone(), cluster.to_owned());
    TokenSource::new(move || {
        let (hub, cluster) = (hub.clone(), cluster.clone());
        async move {
            // An identity that is lost with its folder would be in its own way: this plugin alone gives that name.
            forget(&hub, &cluster).await.map_err(|error| error.to_string())?;
            join_token(&hub, &cluster).await.map_err(|error| error.to_string())
        }
    })
}

async fn join_token(hub: &HubView, cluster: &str) -> Result<String, PluginError> {
    let until = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(TOKEN);
    let token = json!({
        "apiVersion": "moorline.dev/v1alpha1", "kind": "JoinToken", "metadata": {},
        "spec": { "cluster": cluster, "expires": until.to_string(), "maxUses": 1 },
    });
    let made = kind(hub, "JoinToken", "jointokens").create(&PostParams::default(), &object(token)?).await?;
    let text = made.data.pointer("/status/token").and_then(Value::as_str);
    text.map(str::to_owned).ok_or_else(|| PluginError::Other("the hub gave no token".to_owned()))
}

/// Takes away the agent that an import had.
async fn forget(hub: &HubView, cluster: &str) -> Result<(), PluginError> {
    match agents(hub).delete(&format!("{cluster}.{NAME}"), &DeleteParams::default()).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error.into()),
    }
}

async fn remove(dir: &Path) {
    if let Err(error) = tokio::fs::remove_dir_all(dir).await {
        tracing::debug!(dir = %dir.display(), "not removed: {error}");
    }
}

fn object(value: Value) -> Result<DynamicObject, PluginError> {
    serde_json::from_value(value).map_err(|error| PluginError::Other(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_say_what_is_and_change_when_that_does() {
        let spec = ClusterImportSpec::default();
        let seen = |state: Option<&State>, failed: Option<&String>| {
            let status = status(&ClusterImportStatus::default(), &spec, state, failed);
            status.conditions.iter().map(|c| format!("{} {} {}", c.r#type, c.status, c.reason)).collect::<Vec<_>>()
        };
        assert_eq!(seen(None, None), ["Running False Waiting", "Reachable Unknown NotAsked"]);
        assert_eq!(seen(None, Some(&"x".to_owned()))[0], "Running False Failed");
        let up = State { stopped: None, server: Some(Ok("v1.32.4".to_owned())) };
        assert_eq!(seen(Some(&up), None), ["Running True Started", "Reachable True Answers"]);
        let down = State { stopped: Some("no".to_owned()), server: Some(Err("refused".to_owned())) };
        assert_eq!(seen(Some(&down), None), ["Running False Failed", "Reachable False NoAnswer"]);
        let once = status(&ClusterImportStatus::default(), &spec, Some(&up), None);
        assert_eq!(status(&once, &spec, Some(&up), None), once, "nothing new, nothing written");
    }

    #[test]
    fn the_policy_of_an_import_is_one() {
        let spec = ClusterImportSpec { plugins: vec!["health".to_owned()], read_only: true, ..Default::default() };
        moorline_authz::edge::EdgePolicy::from_yaml(&policy(&spec)).unwrap();
    }
}
