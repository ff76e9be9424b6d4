//! Keeps a set of objects in a cluster as it is wanted at the hub: applies, puts drift right, takes away.
//!
//! What it made is known by two labels, [`PLUGIN_LABEL`] and [`CLUSTER_LABEL`], and only that is watched and ever
//! deleted. Everything else in the cluster is out of its reach.

mod board;
mod pace;
mod plan;
mod said;
#[cfg(test)]
mod tests;
mod unsure;

pub use board::{Board, Outcome, Tally};
pub use plan::{ABSENT, ANYWHERE, Key, Objects, unknown, unknown_where};
pub use said::{REMOVED, SHUT_OUT, cannot_watch, says_nothing};

use crate::{ClusterView, PluginError, PluginMetrics, TooMuch, limits, name_of, watching};
use futures_util::{StreamExt, stream::BoxStream, stream::SelectAll};
use kube::{
    Api, ResourceExt,
    api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams, Preconditions},
    runtime::watcher,
};
use plan::{Step, covers, spared, steps, why_unknown};
use serde_json::Value;
use std::{
    collections::{BTreeMap, HashMap, HashSet, hash_map::RandomState},
    hash::BuildHasher,
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use unsure::Unsure;

/// Which plugin made an object.
pub const PLUGIN_LABEL: &str = "moorline.dev/plugin";
/// For which registration of the cluster: the uid of its object at the hub.
pub const CLUSTER_LABEL: &str = "moorline.dev/cluster";

/// Why what must not be there is not said to be gone.
const COMES: &str = "what was written of it may still come";

/// On what is wanted: it is taken over, whoever made it, where its kind is not in general.
pub const ADOPT: &str = "moorline.dev/adopt";

/// A kind that a mirror keeps.
#[derive(Debug, Clone, Copy)]
pub struct Kept {
    /// API group; empty: the core one.
    pub group: &'static str,
    /// Its version.
    pub version: &'static str,
    /// The kind.
    pub kind: &'static str,
    /// Its plural.
    pub plural: &'static str,
    /// Whether an object of that name that somebody else made is taken over. Where it is not, that is reported.
    pub take_over: bool,
    /// Whether what nobody wants any more is let go, by taking off the labels, rather than deleted: for what holds
    /// others' work, such as namespaces.
    pub release: bool,
}

impl Kept {
    /// A kind of Kubernetes' core group: what somebody else made of it is left alone, and what nobody wants any more deleted.
    pub const fn core(kind: &'static str, plural: &'static str) -> Self {
        Self { group: "", version: "v1", kind, plural, take_over: false, release: false }
    }

    fn resource(&self) -> ApiResource {
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(self.group, self.version, self.kind), self.plural)
    }

    fn api(&self, client: &kube::Client, namespace: &str) -> Api<DynamicObject> {
        match namespace {
            "" => Api::all_with(client.clone(), &self.resource()),
            namespace => Api::namespaced_with(client.clone(), namespace, &self.resource()),
        }
    }
}

/// How far a mirror is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Objects that are as they are wanted.
    pub synced: usize,
    /// Objects of the hub's that the cluster has, be they wanted or not.
    pub there: usize,
    /// Those that are not as they are wanted, and why: for people.
    pub failed: BTreeMap<Key, String>,
    /// The cluster could not be asked at all.
    pub trouble: Option<String>,
    /// How often something that was as wanted was changed by others, and put right.
    pub drifted: u64,
    /// What was put right last.
    pub last_drift: Option<Key>,
    /// Something is being made there right now.
    pub making: bool,
    /// What was wanted when this was so; `None`: nothing has been looked at yet, or not all of it since that changed.
    pub of: Option<Arc<Objects>>,
}

impl Report {
    /// Whether the cluster has what is wanted.
    pub fn in_sync(&self) -> bool {
        self.failed.is_empty() && self.trouble.is_none() && self.of.is_some()
    }
}

/// Keeps objects of some kinds in one cluster.
pub struct Mirror {
    client: kube::Client,
    plugin: &'static str,
    cluster_uid: String,
    kinds: &'static [Kept],
    metrics: PluginMetrics,
    actual: Objects,
    held: Objects,
    unsure: Unsure,
    /// Keys of what failed, and when to try again.
    resting: HashMap<Key, (Instant, u32)>,
    /// Why nothing is heard of a kind.
    down: BTreeMap<&'static str, String>,
    /// What of a kind is not looked at.
    left_out: BTreeMap<&'static str, LeftOut>,
    hashes: RandomState,
    report: Report,
}

/// Who has a say while objects are changed.
struct Outside<'a> {
    /// Hears of the report before anything is made.
    tell: &'a mut (dyn FnMut(&Report) + Send),
    /// Whether anything may be made, now that it was told.
    may_make: &'a mut watch::Receiver<bool>,
    /// Whether something else is wanted of this one by now.
    newer: &'a mut (dyn FnMut(&Key) -> bool + Send),
}

/// Objects of a kind that are not looked at, and are there.
struct LeftOut {
    why: String,
    /// What their names come to: these are too long to be kept. No more of a kind are heard of than [`limits::OBJECTS`].
    names: HashSet<u64>,
}

type Changes = SelectAll<BoxStream<'static, (&'static Kept, Result<watcher::Event<DynamicObject>, watcher::Error>)>>;

impl Mirror {
    /// A mirror into `cluster`. `plugin` is the plugin's name.
    pub fn new(plugin: &'static str, cluster: &ClusterView, kinds: &'static [Kept], metrics: PluginMetrics) -> Self {
        Self {
            client: cluster.client.clone(),
            plugin,
            cluster_uid: cluster.uid.clone(),
            kinds,
            metrics,
            actual: Objects::new(),
            held: Objects::new(),
            unsure: Unsure::default(),
            resting: HashMap::new(),
            down: BTreeMap::new(),
            left_out: BTreeMap::new(),
            hashes: RandomState::new(),
            report: Report::default(),
        }
    }

    /// One that knows what the one before it had on its way into this cluster.
    fn after(self, unsure: Unsure) -> Self {
        Self { unsure, ..self }
    }

    /// What every object of this mirror carries besides what is wanted.
    fn labelled(&self, object: &Value) -> Value {
        let mut object = object.clone();
        for (label, value) in [(PLUGIN_LABEL, self.plugin), (CLUSTER_LABEL, self.cluster_uid.as_str())] {
            object["metadata"]["labels"][label] = value.into();
        }
        object["metadata"]["labels"]["app.kubernetes.io/managed-by"] = "moorline".into();
        object
    }

    fn watch(&self) -> Changes {
        let labels = format!("{PLUGIN_LABEL}={},{CLUSTER_LABEL}={}", self.plugin, self.cluster_uid);
        let one = |kind: &'static Kept| {
            let config = watcher::Config::default().labels(&labels).page_size(limits::PAGE);
            watching(kind.api(&self.client, ""), config, Some(limits::HELD)).map(move |event| (kind, event)).boxed()
        };
        self.kinds.iter().map(one).collect()
    }

    /// Keeps the cluster as `wanted` says, until the cluster is gone. `tell` hears of every change of the report. Nothing is
    /// made before it has heard of [`Report::making`] and `may_make` is true.
    ///
    /// # Errors
    /// Never by itself: what fails is reported and tried again.
    pub async fn run(
        mut self,
        (mut wanted, mut may_make): (watch::Receiver<Arc<Objects>>, watch::Receiver<bool>),
        mut tell: impl FnMut(&Report) + Send,
    ) -> Result<(), PluginError> {
        let mut changes = self.watch();
        let mut listing: HashMap<&'static str, Objects> = HashMap::new();
        let mut unlisted: Vec<&'static str> = self.kinds.iter().map(|kind| kind.kind).collect();
        let mut look: Option<Instant> = None;
        loop {
            let soon = Instant::now() + limits::GATHER;
            let sleep = async {
                match look {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some((kind, event)) = changes.next() => match event {
                    Ok(event) => {
                        // A listing says nothing before its end: it may fail again.
                        if !matches!(event, watcher::Event::Init | watcher::Event::InitApply(_)) {
                            self.down.remove(kind.kind);
                        }
                        self.heard(kind, event, &mut listing, &mut unlisted);
                        look = Some(look.map_or(soon, |at| at.min(soon)));
                    }
                    // It begins anew: what is told here ends with a listing.
                    Err(error) => {
                        listing.remove(kind.kind);
                        self.down.insert(kind.kind, format!("cannot watch {}: {error}", kind.plural));
                        let trouble = self.trouble();
                        if self.report.trouble != trouble {
                            self.report.trouble = trouble;
                            self.report.there = self.there();
                            tell(&self.report);
                        }
                        // The others may have waited for it.
                        look = Some(look.map_or(soon, |at| at.min(soon)));
                    }
                },
                changed = wanted.changed() => match changed {
                    Ok(()) => {
                        // What failed may be wanted in another way now.
                        self.resting.clear();
                        look = Some(look.map_or(soon, |at| at.min(soon)));
                    }
                    Err(_) => return Ok(()),
                },
                () = sleep => {
                    look = None;
                    // All that are being listed are waited for: steps are taken in their order. A kind that cannot be
                    // listed stops no others: what is to be revoked there is.
                    if unlisted.iter().all(|kind| self.down.contains_key(kind)) {
                        let before = self.report.clone();
                        let now = Arc::clone(&wanted.borrow_and_update());
                        self.report.trouble = self.trouble();
                        let mut cut = false;
                        let mut newer = |key: &Key| {
                            let latest = wanted.borrow();
                            let other = !Arc::ptr_eq(&latest, &now) && is_other(&now, &latest, key);
                            cut |= other;
                            other
                        };
                        let outside = Outside { tell: &mut tell, may_make: &mut may_make, newer: &mut newer };
                        look = self.reconcile(&now, &unlisted, outside).await;
                        if cut {
                            self.report.of = None;
                        } else if unlisted.is_empty() {
                            self.report.of = Some(now);
                        }
                        let made = std::mem::take(&mut self.report.making);
                        if made || before != self.report {
                            tell(&self.report);
                        }
                    }
                }
            }
        }
    }

    fn trouble(&self) -> Option<String> {
        self.down.values().chain(self.left_out.values().map(|left| &left.why)).next().cloned()
    }

    fn heard(
        &mut self,
        kind: &'static Kept,
        event: watcher::Event<DynamicObject>,
        listing: &mut HashMap<&'static str, Objects>,
        unlisted: &mut Vec<&'static str>,
    ) {
        let named = |object: &DynamicObject, name: String| Key {
            kind: kind.kind,
            namespace: object.namespace().unwrap_or_default(),
            name,
        };
        let key = |object: &DynamicObject| name_of(object).map(|name| named(object, name));
        match event {
            watcher::Event::Init => {
                self.left_out.remove(kind.kind);
                listing.insert(kind.kind, Objects::new());
            }
            watcher::Event::InitApply(object) => match key(&object) {
                Ok(key) => drop(listing.entry(kind.kind).or_default().insert(key, plain(&object))),
                Err(error) => self.leave_out(kind, &object, error),
            },
            watcher::Event::InitDone => {
                // What was made since the listing was written is not in it.
                for (key, _) in self.actual.extract_if(.., |key, _| key.kind == kind.kind) {
                    self.unsure.missing(key);
                }
                self.actual.extend(listing.remove(kind.kind).unwrap_or_default());
                unlisted.retain(|other| *other != kind.kind);
            }
            watcher::Event::Apply(object) => match key(&object) {
                Ok(key) => {
                    let new = plain(&object);
                    // What was written here comes back later, and what others wrote before it too.
                    if self.actual.get(&key).is_none_or(|old| revision(old) <= revision(&new)) {
                        self.actual.insert(key, new);
                    }
                }
                Err(error) => self.leave_out(kind, &object, error),
            },
            watcher::Event::Delete(object) => {
                let key = named(&object, object.name_any());
                // What was made in its place is another one.
                let uid = self.actual.get(&key).and_then(|there| there["metadata"]["uid"].as_str());
                if uid.is_none_or(|uid| object.uid().is_none_or(|gone| gone == uid)) {
                    self.actual.remove(&key);
                }
                let gone = self.hash(&object);
                // With the last one that was left out nothing is missing any more.
                let none = self.left_out.get_mut(kind.kind).is_some_and(|left| {
                    left.names.remove(&gone);
                    left.names.is_empty()
                });
                if none {
                    self.left_out.remove(kind.kind);
                }
            }
        }
    }

    fn hash(&self, object: &DynamicObject) -> u64 {
        self.hashes.hash_one((object.namespace(), object.name_any()))
    }

    /// It is no object of anybody's here; the others go on, and this is told until it is gone, or they are listed anew.
    fn leave_out(&mut self, kind: &'static Kept, object: &DynamicObject, error: TooMuch) {
        let (name, why) = (self.hash(object), format!("cannot watch {}: {error}", kind.plural));
        let left = self.left_out.entry(kind.kind).or_insert_with(|| LeftOut { why, names: HashSet::new() });
        left.names.insert(name);
    }

    /// Takes every step that is due, but for those of `unlisted` kinds: of these nobody knows what is missing. Returns when
    /// to look again, if something failed. A step whose object is wanted in another way by now is left: to get to it may have
    /// taken long.
    async fn reconcile(
        &mut self,
        wanted: &Objects,
        unlisted: &[&'static str],
        Outside { tell, may_make, newer }: Outside<'_>,
    ) -> Option<Instant> {
        let labelled = |object: &Value| if object.is_object() { self.labelled(object) } else { object.clone() };
        let wanted: Objects = wanted.iter().map(|(key, object)| (key.clone(), labelled(object))).collect();
        self.settle(&wanted).await;
        let todo = steps(&wanted, &self.actual, &self.held);
        let steps_of: HashSet<&Key> = todo.iter().map(Step::key).collect();
        let (unsure, to_ask) = (self.unsure.keys(), self.unsure.due());
        self.report.failed.retain(|key, _| wanted.contains_key(key) || steps_of.contains(key) || unsure.contains(key));
        // What nothing is to be done about rests no more: its time would come, and never go.
        self.resting.retain(|key, _| steps_of.contains(key) || to_ask.contains(key));
        self.held.retain(|key, object| wanted.get(key) == Some(object));
        for step in todo {
            let (key, drift) = (step.key().clone(), matches!(step, Step::Apply { drift: true, .. }));
            let rests = self.resting.get(&key).is_some_and(|(until, _)| Instant::now() < *until);
            if rests || unlisted.contains(&key.kind) {
                continue;
            }
            let home = home(&key);
            if matches!(step, Step::Apply { .. }) && wanted.contains_key(&home) && !self.actual.contains_key(&home) {
                if newer(&home) {
                    continue;
                }
                if !unlisted.contains(&home.kind) {
                    // In a namespace that turned out to be somebody else's, nothing is laid.
                    self.resting.remove(&key);
                    self.report.failed.insert(key, "its namespace is not the hub's".to_owned());
                    continue;
                }
                // Whose it is, is not known. What the mirror has there already is put right all the same.
                if !self.actual.contains_key(&key) {
                    self.resting.remove(&key);
                    continue;
                }
            }
            if matches!(step, Step::Apply { .. }) && !self.report.making {
                (self.report.making, self.report.there) = (true, self.there());
                tell(&self.report);
                if may_make.wait_for(|may| *may).await.is_err() {
                    return None;
                }
            }
            if newer(&key) {
                continue;
            }
            let done = match &step {
                Step::Apply { .. } => match wanted.get(&key) {
                    Some(object) => self.apply(&key, object).await,
                    None => Ok(()),
                },
                Step::Delete(_) => self.delete(&key).await,
                Step::Remove(_) => self.remove(&key).await,
            };
            match done {
                Ok(()) => {
                    self.resting.remove(&key);
                    self.report.failed.remove(&key);
                    self.metrics.count(match (&step, drift) {
                        (Step::Delete(_) | Step::Remove(_), _) => "deleted",
                        (_, true) => "drift_corrected",
                        (_, false) => "applied",
                    });
                    if drift {
                        tracing::warn!(plugin = self.plugin, %key, "was changed in the cluster, and is put right");
                        self.report.drifted += 1;
                        self.report.last_drift = Some(key);
                    }
                }
                Err(why) => self.fail(key, why),
            }
        }
        let mut left = BTreeMap::<Key, usize>::new();
        for key in self.actual.iter().filter_map(|(key, there)| spared(&wanted, key, there)) {
            *left.entry(key).or_default() += 1;
        }
        for (key, object) in &wanted {
            if let Some(why) = why_unknown(object) {
                let why = match left.get(key) {
                    Some(count) => format!("{why}; {count} are left as they are"),
                    None => why.clone(),
                };
                self.report.failed.insert(key.clone(), why);
                continue;
            }
            let there = self.actual.get(key);
            if *object == ABSENT && there.is_none() {
                match self.unsure.contains(key) {
                    // Or why it cannot be asked.
                    true => drop(self.report.failed.entry(key.clone()).or_insert_with(|| COMES.to_owned())),
                    false => drop(self.report.failed.remove(key)),
                }
            } else if there.is_some_and(|there| *object != ABSENT && covers(there, object)) {
                self.held.insert(key.clone(), object.clone());
                self.report.failed.remove(key);
            }
        }
        self.report.synced = self.held.len();
        self.report.there = self.there();
        let soon = Instant::now() + limits::GATHER;
        let asked = self.ask_at(&wanted);
        self.resting.values().map(|(until, _)| *until).chain(asked).min().map(|until| until.max(soon))
    }

    /// It rests, longer each time.
    fn fail(&mut self, key: Key, why: String) {
        self.metrics.count("failed");
        let failures = self.resting.get(&key).map_or(0, |(_, failures)| *failures);
        let wait = limits::RETRY_FIRST.saturating_mul(1 << failures.min(10)).min(limits::RETRY_LONGEST);
        let wait: Duration = wait.mul_f64(rand::random_range(0.75..1.0));
        self.resting.insert(key.clone(), (Instant::now() + wait, failures + 1));
        self.report.failed.insert(key, why);
    }

    fn kept(&self, key: &Key) -> Result<&'static Kept, String> {
        self.kinds
            .iter()
            .find(|kept| kept.kind == key.kind)
            .ok_or_else(|| format!("{}: not a kind of this plugin", key.kind))
    }

    async fn apply(&mut self, key: &Key, object: &Value) -> Result<(), String> {
        let kept = self.kept(key)?;
        let api = kept.api(&self.client, &key.namespace);
        let adopt = object["metadata"]["annotations"].get(ADOPT).is_some();
        if !kept.take_over && !adopt && !self.actual.contains_key(key) {
            let there = api.get_metadata_opt(&key.name).await.map_err(words)?;
            let mine = |labels: &BTreeMap<String, String>| labels.get(PLUGIN_LABEL).is_some_and(|p| p == self.plugin);
            if there.is_some_and(|there| !mine(there.labels()) && !self.held.contains_key(key)) {
                return Err("somebody else made an object of this name; it is left alone".to_owned());
            }
        }
        let params = PatchParams::apply(&format!("moorline-{}", self.plugin)).force();
        let before = self.unsure.asking(key);
        let applied = match api.patch(&key.name, &params, &Patch::Apply(object)).await {
            // Some fields never change (`roleRef`): then it is made anew.
            Err(kube::Error::Api(status)) if status.code == 422 && self.actual.contains_key(key) => {
                match api.delete(&key.name, &DeleteParams::background()).await {
                    Ok(_) => {
                        self.unsure.asking(key);
                        api.patch(&key.name, &params, &Patch::Apply(object)).await
                    }
                    // What was asked for was refused before.
                    Err(error) => {
                        self.unsure.answered(key, before, false);
                        return Err(words(error));
                    }
                }
            }
            other => other,
        };
        let refused =
            |error: &kube::Error| matches!(error, kube::Error::Api(status) if (400..500).contains(&status.code));
        if applied.as_ref().map_or_else(refused, |_| true) {
            self.unsure.answered(key, before, applied.is_ok());
        }
        let there = plain(&applied.map_err(words)?);
        let as_wanted = covers(&there, object);
        self.actual.insert(key.clone(), there);
        if as_wanted { Ok(()) } else { Err("the cluster changes what is written".to_owned()) }
    }

    /// Deletes what must not be there. It may take its time to go: until it is gone it counts as failed.
    async fn remove(&mut self, key: &Key) -> Result<(), String> {
        let api = self.kept(key)?.api(&self.client, &key.namespace);
        let uid = self.actual.get(key).and_then(|there| there["metadata"]["uid"].as_str());
        let preconditions = uid.map(|uid| Preconditions { uid: Some(uid.to_owned()), resource_version: None });
        let params = DeleteParams { preconditions, ..DeleteParams::background() };
        match api.delete(&key.name, &params).await {
            Ok(_) => Err("is being deleted".to_owned()),
            Err(kube::Error::Api(status)) if status.code == 404 => {
                self.actual.remove(key);
                Ok(())
            }
            Err(error) => Err(words(error)),
        }
    }

    async fn delete(&mut self, key: &Key) -> Result<(), String> {
        let kept = self.kept(key)?;
        let api = kept.api(&self.client, &key.namespace);
        let done = if kept.release {
            let there = self.actual.get(key).unwrap_or(&Value::Null);
            api.patch(&key.name, &PatchParams::default(), &Patch::Merge(released(there))).await.map(|_| None)
        } else {
            api.delete(&key.name, &DeleteParams::background()).await.map(|answer| answer.left())
        };
        match done {
            // Somebody's finalizer holds it.
            Ok(Some(held)) if held.metadata.deletion_timestamp.is_some() => return Err("is being deleted".to_owned()),
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(words(error)),
        }
        self.actual.remove(key);
        Ok(())
    }
}

/// The patch that takes off an object what says that it is kept from here.
fn released(object: &Value) -> Value {
    let mut patch = serde_json::json!({ "metadata": { "labels": {}, "annotations": {} } });
    for field in ["labels", "annotations"] {
        let names = object["metadata"][field].as_object().into_iter().flatten().map(|(name, _)| name);
        for name in names.filter(|name| name.starts_with("moorline.dev/") || *name == "app.kubernetes.io/managed-by") {
            patch["metadata"][field][name] = Value::Null;
        }
    }
    patch
}

/// Whether something else is wanted of an object, by its own name or by its kind.
fn is_other(before: &Objects, latest: &Objects, key: &Key) -> bool {
    let anywhere = Key { namespace: ANYWHERE.to_owned(), ..key.clone() };
    [key, &anywhere].into_iter().any(|key| latest.get(key) != before.get(key))
}

/// The namespace that an object is in.
fn home(key: &Key) -> Key {
    Key { kind: "Namespace", namespace: String::new(), name: key.namespace.clone() }
}

fn words(error: kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// An object without what is nobody's business here.
fn plain(object: &DynamicObject) -> Value {
    let mut value = serde_json::to_value(object).unwrap_or_default();
    if let Some(meta) = value["metadata"].as_object_mut() {
        meta.remove("managedFields");
    }
    value
}

fn revision(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().and_then(|text| text.parse().ok()).unwrap_or(u64::MAX)
}
