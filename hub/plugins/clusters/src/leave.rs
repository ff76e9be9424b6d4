//! What happens when a cluster is removed: the hub waits, for so long and no longer, until its plugins have taken out of
//! it what they made there, and says what was left.

use crate::clusters;
use futures_util::StreamExt;
use kube::{
    Api, ResourceExt,
    api::{DynamicObject, Patch, PatchParams},
    runtime::{WatchStreamExt, watcher},
};
use moorline_plugin::{
    Condition, HubView, PluginError,
    mirror::{SHUT_OUT, says_nothing},
    set_condition,
};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{collections::HashMap, time::Duration};
use tokio::time::{Instant, sleep_until};

/// Holds a cluster's object until this plugin has looked. The hub takes it off where this plugin is switched off.
pub const FINALIZER: &str = "clusters.plugins.moorline.dev/cleanup";
/// The condition of a Cluster that is being removed.
pub const CONDITION: &str = "CleanedUp";
/// What that condition says for its reason in the end, when something was left in the cluster.
const LEFT_BEHIND: &str = "LeftBehind";
/// How long that stands there before the object goes.
const SHOWN: Duration = Duration::from_secs(1);
/// When a cluster's object that could not be written is looked at again.
const AGAIN: Duration = Duration::from_secs(5);
/// How the conditions end by which plugins tell of what they keep in a cluster.
const KEPT: &str = "Synced";

/// How far a removal is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Way {
    /// Nothing is there any more of which anybody knows.
    Clean,
    /// This is still there, and may go yet.
    Wait(Vec<String>),
    /// This is there, and nobody can be asked to take it away.
    Leave(Vec<String>),
}

fn conditions(object: &DynamicObject) -> Vec<Condition> {
    let all = object.data.pointer("/status/conditions").and_then(Value::as_array).into_iter().flatten();
    // One that is none says nothing of what is there.
    let unreadable = |one: &Value| Condition {
        r#type: one["type"].as_str().unwrap_or_default().to_owned(),
        message: "its condition cannot be read".to_owned(),
        ..Condition::default()
    };
    all.map(|one| Condition::deserialize(one).unwrap_or_else(|_| unreadable(one))).collect()
}

/// What the conditions of a cluster say.
fn way(object: &DynamicObject) -> Way {
    let all = conditions(object);
    let connected = all.iter().any(|one| one.r#type == "Connected" && one.status == "True");
    let (mut open, mut shut) = (Vec::new(), Vec::new());
    for one in all.iter().filter(|one| one.r#type.ends_with(KEPT) && !says_nothing(one)) {
        let kind = &one.r#type;
        match one.reason.as_str() {
            SHUT_OUT => shut.push(format!("{kind}: the cluster lets the plugin in no more")),
            _ => open.push(format!("{kind}: {}", one.message)),
        }
    }
    match (open.is_empty(), connected) {
        (true, _) if shut.is_empty() => Way::Clean,
        (true, _) => Way::Leave(shut),
        (false, true) => Way::Wait(open),
        (false, false) => {
            open.insert(0, "the cluster is not connected".to_owned());
            Way::Wait(open)
        }
    }
}

/// What of an object's finalizers is to be written, under the revision that was read.
fn finalizers(object: &DynamicObject, ours: bool) -> Patch<Value> {
    let mut all: Vec<&str> = object.finalizers().iter().map(String::as_str).filter(|f| *f != FINALIZER).collect();
    if ours {
        all.push(FINALIZER);
    }
    Patch::Merge(json!({ "metadata": { "resourceVersion": object.resource_version(), "finalizers": all } }))
}

/// Whether it was written: not if it is another one by now, which comes again, or is gone.
async fn write(api: &Api<DynamicObject>, object: &DynamicObject, ours: bool) -> Result<bool, PluginError> {
    match api.patch(&object.name_any(), &PatchParams::default(), &finalizers(object, ours)).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// A cluster that is being removed.
struct Leaving {
    object: DynamicObject,
    /// When its time is over.
    until: Instant,
    /// What is left was said, and is there to be read until then.
    told: bool,
}

/// Clusters whose objects could not be written, and when each is looked at again: the others' need not wait for them.
#[derive(Default)]
struct Owed(HashMap<String, Instant>);

impl Owed {
    fn note(&mut self, name: String, done: Result<(), PluginError>) {
        if let Err(error) = done {
            tracing::debug!(cluster = name, "looked at again, after: {error}");
            self.0.insert(name, Instant::now() + AGAIN);
        }
    }

    /// Those whose time it is; they are owed no more.
    fn due(&mut self, now: Instant) -> Vec<String> {
        let due: Vec<_> = self.0.iter().filter(|(_, at)| **at <= now).map(|(name, _)| name.clone()).collect();
        for name in &due {
            self.0.remove(name);
        }
        due
    }
}

/// Holds every cluster, and lets those go that are clean, or that took longer than `patience`.
pub(crate) async fn run(hub: &HubView, patience: Duration) -> Result<(), PluginError> {
    let api = clusters(hub);
    let mut changes = watcher(api.clone(), watcher::Config::default()).default_backoff().boxed();
    let (mut leaving, mut owed) = (HashMap::<String, Leaving>::new(), Owed::default());
    loop {
        let next = leaving.values().map(|one| one.until).chain(owed.0.values().copied()).min();
        let over = async {
            match next {
                Some(until) => sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            event = changes.next() => match event {
                None => return Err(PluginError::Other("the watch of clusters ended".to_owned())),
                Some(Ok(watcher::Event::Apply(one) | watcher::Event::InitApply(one))) => {
                    let name = one.name_any();
                    owed.0.remove(&name);
                    owed.note(name, look(hub, &api, one, &mut leaving, patience).await);
                }
                Some(Ok(watcher::Event::Delete(one))) => {
                    leaving.remove(&one.name_any());
                    owed.0.remove(&one.name_any());
                }
                Some(Ok(watcher::Event::Init | watcher::Event::InitDone)) => {}
                Some(Err(error)) => tracing::debug!("clusters are asked for again after: {error}"),
            },
            () = over => {
                let now = Instant::now();
                let due: Vec<_> = leaving.iter().filter(|(_, one)| one.until <= now).map(|(n, _)| n.clone()).collect();
                for name in due {
                    let Some(one) = leaving.remove(&name) else { continue };
                    let done = match way(&one.object) {
                        Way::Wait(left) | Way::Leave(left) if !one.told => {
                            tell(hub, &api, one.object, &left, &mut leaving).await
                        }
                        _ => let_go(&api, &one.object).await,
                    };
                    owed.note(name, done);
                }
                for name in owed.due(now) {
                    let done = match api.get_opt(&name).await {
                        Ok(Some(one)) => look(hub, &api, one, &mut leaving, patience).await,
                        Ok(None) => {
                            leaving.remove(&name);
                            Ok(())
                        }
                        Err(error) => Err(error.into()),
                    };
                    owed.note(name, done);
                }
            }
        }
    }
}

async fn look(
    hub: &HubView,
    api: &Api<DynamicObject>,
    object: DynamicObject,
    leaving: &mut HashMap<String, Leaving>,
    patience: Duration,
) -> Result<(), PluginError> {
    let name = object.name_any();
    let held = object.finalizers().iter().any(|f| f == FINALIZER);
    if object.metadata.deletion_timestamp.is_none() {
        leaving.remove(&name);
        return if held { Ok(()) } else { write(api, &object, true).await.map(drop) };
    }
    let told = leaving.get(&name).is_some_and(|one| one.told);
    if !held || told {
        return Ok(());
    }
    match way(&object) {
        Way::Clean => {
            leaving.remove(&name);
            // As it was judged: where something else is said of it by now it is another one, and judged again.
            if write(api, &object, false).await? {
                hub.metrics.count("cluster_cleaned");
                tracing::info!(cluster = name, "removed; nothing of the hub's is left in the cluster");
            }
            Ok(())
        }
        Way::Leave(left) => tell(hub, api, object, &left, leaving).await,
        Way::Wait(left) => {
            // From when the hub was asked, be it before a restart.
            let since = object.metadata.deletion_timestamp.as_ref().map(|at| at.0.as_millisecond());
            let asked = since.map_or(0, |since| jiff::Timestamp::now().as_millisecond().saturating_sub(since));
            let gone = Duration::from_millis(u64::try_from(asked).unwrap_or(0));
            let until = Instant::now() + patience.saturating_sub(gone);
            let known = leaving.entry(name.clone());
            known.and_modify(|one| one.object = object.clone()).or_insert(Leaving { object, until, told: false });
            let message = format!("waits until this is gone: {}", left.join("; "));
            set_condition(api, &name, Condition::new(CONDITION, false, "Waiting", message)).await.map_err(Into::into)
        }
    }
}

/// Says what is left. It is there to be read for a moment by whoever waits for the deletion.
async fn tell(
    hub: &HubView,
    api: &Api<DynamicObject>,
    object: DynamicObject,
    left: &[String],
    leaving: &mut HashMap<String, Leaving>,
) -> Result<(), PluginError> {
    let (name, words) = (object.name_any(), left.join("; "));
    tracing::warn!(cluster = name, "removed; what the hub made in the cluster may be left there: {words}");
    hub.metrics.count("cluster_left_behind");
    match set_condition(api, &name, Condition::new(CONDITION, false, LEFT_BEHIND, words)).await {
        // Its conditions cannot be read, and none can be added: it was told in the log.
        Err(kube::Error::SerdeError(_)) => {}
        told => told?,
    }
    leaving.insert(name, Leaving { object, until: Instant::now() + SHOWN, told: true });
    Ok(())
}

async fn let_go(api: &Api<DynamicObject>, object: &DynamicObject) -> Result<(), PluginError> {
    // What is said in its conditions has changed it.
    match api.get_opt(&object.name_any()).await?.filter(|now| now.uid() == object.uid()) {
        Some(now) => write(api, &now, false).await.map(drop),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use moorline_plugin::mirror::REMOVED;

    fn cluster(all: &[(&str, &str, &str, &str)]) -> DynamicObject {
        let all: Value = all
            .iter()
            .map(|(kind, status, reason, message)| {
                json!({ "type": kind, "status": status, "reason": reason, "message": message })
            })
            .collect();
        cluster_of(all)
    }

    fn cluster_of(conditions: Value) -> DynamicObject {
        let object = json!({ "metadata": { "name": "c" }, "status": { "conditions": conditions } });
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn a_cluster_goes_when_nothing_is_left_or_nobody_can_be_asked() {
        let up = ("Connected", "True", "AgentConnected", "");
        let roles =
            |reason, message| ("RolesSynced", if reason == "Failing" { "False" } else { "True" }, reason, message);
        assert_eq!(way(&cluster(&[])), Way::Clean);
        assert_eq!(way(&cluster(&[up, roles(REMOVED, "")])), Way::Clean);
        assert_eq!(way(&cluster(&[up, roles("InSync", "0 objects")])), Way::Clean);
        assert!(matches!(way(&cluster(&[up, roles("InSync", "3 objects")])), Way::Wait(left) if left.len() == 1));
        assert!(matches!(way(&cluster(&[up, roles("Failing", "1 of 1")])), Way::Wait(_)));
        assert!(matches!(way(&cluster(&[roles("InSync", "3 objects")])), Way::Wait(left) if left.len() == 2));
        let never = ("SecretsSynced", "False", "NotAllowed", "by the edge policy");
        assert_eq!(way(&cluster(&[up, never])), Way::Clean);
        let unreadable = cluster_of(json!([{ "type": "RolesSynced", "status": "True", "message": null }]));
        assert!(matches!(way(&unreadable), Way::Wait(_)), "what it says nobody knows");
        let shut = ("SecretsSynced", "False", SHUT_OUT, "by the edge policy");
        assert!(matches!(way(&cluster(&[up, shut, roles(REMOVED, "")])), Way::Leave(left) if left.len() == 1));
        assert!(matches!(way(&cluster(&[up, shut, roles("InSync", "3 objects")])), Way::Wait(_)));
    }

    #[test]
    fn finalizers_of_others_stay() {
        let mut object = cluster(&[]);
        object.metadata.finalizers = Some(vec!["other/one".to_owned(), FINALIZER.to_owned()]);
        object.metadata.resource_version = Some("7".to_owned());
        let Patch::Merge(patch) = finalizers(&object, false) else { panic!("a merge patch") };
        assert_eq!(patch["metadata"], json!({ "resourceVersion": "7", "finalizers": ["other/one"] }));
        let Patch::Merge(patch) = finalizers(&object, true) else { panic!("a merge patch") };
        assert_eq!(patch["metadata"]["finalizers"], json!(["other/one", FINALIZER]));
    }
}
