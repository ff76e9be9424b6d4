//! Keeps a set of objects in a cluster as it is wanted at the hub: applies, puts drift right, takes away.
//!
//! What it made is known by two labels, [`PLUGIN_LABEL`] and [`CLUSTER_LABEL`], and only that is watched and ever
//! deleted. Everything else in the cluster is out of its reach.

mod board;
mod pace;
mod plan;
mod said;
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
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, hash_map::RandomState},
    hash::BuildHasher,
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

/// Which plugin made an object.
pub const PLUGIN_LABEL: &str = "moorline.dev/plugin";
/// For which registration of the cluster: the uid of its object at the hub.
pub const CLUSTER_LABEL: &str = "moorline.dev/cluster";

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
    /// What was wanted when this was so; `None`: nothing has been looked at yet.
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
    unsure: BTreeSet<Key>,
    /// Keys of what failed, and when to try again.
    resting: HashMap<Key, (Instant, u32)>,
    /// Why nothing is heard of a kind.
    down: BTreeMap<&'static str, String>,
    /// What of a kind is not looked at.
    left_out: BTreeMap<&'static str, LeftOut>,
    hashes: RandomState,
    report: Report,
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
            unsure: BTreeSet::new(),
            resting: HashMap::new(),
            down: BTreeMap::new(),
            left_out: BTreeMap::new(),
            hashes: RandomState::new(),
            report: Report::default(),
        }
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
        mut tell: impl FnMut(&Report),
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
                        look = self.reconcile(&now, &unlisted, (&mut tell, &mut may_make)).await;
                        if unlisted.is_empty() {
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
                let gone = self.actual.extract_if(.., |key, _| key.kind == kind.kind).map(|(key, _)| key);
                self.unsure.extend(gone);
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
    /// to look again, if something failed. Before anything is made, that is told, and `may_make` waited for.
    async fn reconcile(
        &mut self,
        wanted: &Objects,
        unlisted: &[&'static str],
        (tell, may_make): (&mut impl FnMut(&Report), &mut watch::Receiver<bool>),
    ) -> Option<Instant> {
        let labelled = |object: &Value| if object.is_object() { self.labelled(object) } else { object.clone() };
        let wanted: Objects = wanted.iter().map(|(key, object)| (key.clone(), labelled(object))).collect();
        let more = self.settle(&wanted).await;
        let todo = steps(&wanted, &self.actual, &self.held);
        let due: HashSet<&Key> = todo.iter().map(Step::key).chain(&self.unsure).collect();
        self.report.failed.retain(|key, _| wanted.contains_key(key) || due.contains(key));
        // What nothing is to be done about rests no more: its time would come, and never go.
        self.resting.retain(|key, _| due.contains(key));
        self.held.retain(|key, object| wanted.get(key) == Some(object));
        for step in todo {
            let (key, drift) = (step.key().clone(), matches!(step, Step::Apply { drift: true, .. }));
            let rests = self.resting.get(&key).is_some_and(|(until, _)| Instant::now() < *until);
            if rests || unlisted.contains(&key.kind) {
                continue;
            }
            let home = home(&key);
            if matches!(step, Step::Apply { .. }) && wanted.contains_key(&home) && !self.actual.contains_key(&home) {
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
            if *object == ABSENT && there.is_none() && !self.unsure.contains(key) {
                self.report.failed.remove(key);
            } else if there.is_some_and(|there| *object != ABSENT && covers(there, object)) {
                self.held.insert(key.clone(), object.clone());
                self.report.failed.remove(key);
            }
        }
        self.report.synced = self.held.len();
        self.report.there = self.there();
        let soon = Instant::now() + limits::GATHER;
        let next = self.resting.values().map(|(until, _)| *until).min().map(|until| until.max(soon));
        if more { Some(soon) } else { next }
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
        self.unsure.insert(key.clone());
        let applied = match api.patch(&key.name, &params, &Patch::Apply(object)).await {
            // Some fields never change (`roleRef`): then it is made anew.
            Err(kube::Error::Api(status)) if status.code == 422 && self.actual.contains_key(key) => {
                api.delete(&key.name, &DeleteParams::background()).await.map_err(words)?;
                api.patch(&key.name, &params, &Patch::Apply(object)).await
            }
            other => other,
        };
        let refused =
            |error: &kube::Error| matches!(error, kube::Error::Api(status) if (400..500).contains(&status.code));
        if applied.as_ref().map_or_else(refused, |_| true) {
            self.unsure.remove(key);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Backend, Body, BoxError,
        client::{Target, Wire},
        metrics::Metrics,
    };
    use bytes::Bytes;
    use futures_util::{FutureExt, future::BoxFuture, stream};
    use http::{Request, Response};
    use http_body::Frame;
    use http_body_util::{BodyExt, Full, StreamBody};
    use serde_json::json;
    use std::{
        convert::Infallible,
        sync::atomic::{AtomicUsize, Ordering},
    };
    use tokio_util::sync::CancellationToken;

    /// A cluster with these objects, of which nothing ever changes.
    struct Fixed(Value);
    impl Backend for Fixed {
        fn hub(&self, _: &'static str, _: Request<Bytes>) -> BoxFuture<'static, Result<Response<Body>, BoxError>> {
            async { Err("nobody asks".into()) }.boxed()
        }
        fn cluster(
            &self,
            _: &'static str,
            _: &str,
            request: Request<Bytes>,
        ) -> BoxFuture<'static, Result<Response<Body>, BoxError>> {
            let list =
                json!({ "apiVersion": "v1", "kind": "List", "metadata": { "resourceVersion": "7" }, "items": self.0 });
            let body = match request.uri().query().is_some_and(|query| query.contains("watch=true")) {
                true => StreamBody::new(stream::pending::<Result<Frame<Bytes>, Infallible>>())
                    .map_err(BoxError::from)
                    .boxed_unsync(),
                false => Full::new(Bytes::from(list.to_string())).map_err(BoxError::from).boxed_unsync(),
            };
            async { Ok(Response::new(body)) }.boxed()
        }
    }

    #[tokio::test]
    async fn what_is_named_as_no_cluster_names_is_left_out_and_told() {
        static KINDS: &[Kept] =
            &[Kept { group: "", version: "v1", kind: "Secret", plural: "secrets", take_over: false, release: false }];
        let secret = |name: &str| json!({ "metadata": { "name": name, "namespace": "team" } });
        let backend: Arc<dyn Backend> =
            Arc::new(Fixed(json!([secret("short"), secret(&"n".repeat(limits::NAME + 1))])));
        let target = Target::Cluster("edge1".to_owned());
        let client = Wire { backend: Arc::downgrade(&backend), plugin: "test", target }.client();
        let cluster =
            ClusterView { name: "edge1".to_owned(), uid: "1".to_owned(), client, stop: CancellationToken::new() };
        let metrics = Metrics::new(&prometheus::Registry::new()).unwrap().of("test");
        let key = Key { kind: "Secret", namespace: "team".to_owned(), name: "short".to_owned() };
        let wish = Objects::from([(key, secret("short"))]);
        let (_wish, wanted) = watch::channel(Arc::new(wish));
        let (tell, mut told) = watch::channel(Report::default());
        let mirror = Mirror::new("test", &cluster, KINDS, metrics);
        let looked = |report: &Report| report.of.is_some();
        tokio::select! {
            ended = mirror.run((wanted, always()), |report| drop(tell.send_replace(report.clone()))) => panic!("{ended:?}"),
            report = told.wait_for(looked) => {
                let trouble = report.unwrap().trouble.clone().unwrap_or_default();
                assert!(trouble.contains("cannot watch secrets") && trouble.contains("1024 letters"), "{trouble}");
            }
        }
    }

    /// Whoever hears of what is made has no objection.
    fn always() -> watch::Receiver<bool> {
        watch::channel(true).1
    }

    const PAIR: &[Kept] = &[
        Kept { group: "", version: "v1", kind: "ConfigMap", plural: "configmaps", take_over: false, release: false },
        Kept { group: "", version: "v1", kind: "Secret", plural: "secrets", take_over: false, release: false },
    ];

    fn pair(backend: &Arc<dyn Backend>) -> Mirror {
        let target = Target::Cluster("edge1".to_owned());
        let client = Wire { backend: Arc::downgrade(backend), plugin: "test", target }.client();
        let cluster =
            ClusterView { name: "edge1".to_owned(), uid: "1".to_owned(), client, stop: CancellationToken::new() };
        Mirror::new("test", &cluster, PAIR, Metrics::new(&prometheus::Registry::new()).unwrap().of("test"))
    }

    /// When something of the other kind changes, and when the broken one can be listed again.
    const OTHER: Duration = Duration::from_secs(10);
    const HEALED: Duration = Duration::from_secs(300);

    /// A cluster of which a line of the first watch of secrets is too long, and that does not list them then for a while.
    struct Broken {
        since: Instant,
        lists: Arc<AtomicUsize>,
    }
    impl Backend for Broken {
        fn hub(&self, _: &'static str, _: Request<Bytes>) -> BoxFuture<'static, Result<Response<Body>, BoxError>> {
            async { Err("nobody asks".into()) }.boxed()
        }
        fn cluster(
            &self,
            _: &'static str,
            _: &str,
            request: Request<Bytes>,
        ) -> BoxFuture<'static, Result<Response<Body>, BoxError>> {
            let (secrets, healed) = (request.uri().path().ends_with("/secrets"), HEALED <= self.since.elapsed());
            let watch = request.uri().query().is_some_and(|query| query.contains("watch=true"));
            let whole = |text: String| Full::new(Bytes::from(text)).map_err(BoxError::from).boxed_unsync();
            let line = |wait: Duration, text: String| {
                let line = async move {
                    tokio::time::sleep(wait).await;
                    Ok::<_, Infallible>(Frame::data(Bytes::from(text)))
                };
                StreamBody::new(line.into_stream().chain(stream::pending())).map_err(BoxError::from).boxed_unsync()
            };
            let mut answer = Response::new(match (watch, secrets) {
                (false, _) => whole(
                    json!({ "apiVersion": "v1", "kind": "List", "metadata": { "resourceVersion": "7" }, "items": [] })
                        .to_string(),
                ),
                (true, true) if healed => line(Duration::MAX, String::new()),
                (true, true) => line(Duration::ZERO, "x".repeat(limits::WATCH_LINE + 1)),
                (true, false) => {
                    let object = json!({ "apiVersion": "v1", "kind": "ConfigMap",
                        "metadata": { "name": "c", "namespace": "team", "resourceVersion": "8" } });
                    line(OTHER, json!({ "type": "DELETED", "object": object }).to_string() + "\n")
                }
            });
            if secrets && !watch {
                let again = 0 < self.lists.fetch_add(1, Ordering::Relaxed);
                if again && !healed {
                    *answer.status_mut() = http::StatusCode::INTERNAL_SERVER_ERROR;
                }
            }
            async { Ok(answer) }.boxed()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_kind_whose_watch_is_down_is_told_until_it_is_listed_anew_whatever_is_heard_of_others() {
        let (since, lists) = (Instant::now(), Arc::<AtomicUsize>::default());
        let backend: Arc<dyn Backend> = Arc::new(Broken { since, lists: Arc::clone(&lists) });
        let (_wish, wanted) = watch::channel(Arc::default());
        let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
        let run = pair(&backend).run((wanted, always()), |report| drop(tell.send(report.trouble.clone())));
        let look = async {
            let mut all = Vec::new();
            while since.elapsed() < HEALED {
                all.push((told.recv().await.unwrap(), since.elapsed()));
            }
            all
        };
        let all = tokio::select! {
            ended = run => panic!("{ended:?}"),
            all = look => all,
        };
        let long = |trouble: &Option<String>| trouble.as_ref().is_some_and(|why| why.contains("longer than 4 MiB"));
        let down = all.iter().position(|(trouble, _)| long(trouble)).unwrap();
        let up = all.iter().skip(down).find(|(trouble, _)| trouble.is_none());
        assert!(up.is_some_and(|(_, at)| HEALED <= *at), "{all:?}");
        // The first pauses together have half a minute, and each after them has half of the longest at least.
        let most = 8 + 2 * usize::try_from(HEALED.as_secs() / limits::RESTART_LONGEST.as_secs()).unwrap();
        let lists = lists.load(Ordering::Relaxed);
        assert!((5..=most).contains(&lists), "{lists} listings of secrets, and {most} at most");
    }

    /// A cluster that lists no secrets, and has a config map. It tells of what it is asked for besides.
    struct Half(tokio::sync::mpsc::UnboundedSender<String>);
    impl Backend for Half {
        fn hub(&self, _: &'static str, _: Request<Bytes>) -> BoxFuture<'static, Result<Response<Body>, BoxError>> {
            async { Err("nobody asks".into()) }.boxed()
        }
        fn cluster(
            &self,
            plugin: &'static str,
            cluster: &str,
            request: Request<Bytes>,
        ) -> BoxFuture<'static, Result<Response<Body>, BoxError>> {
            let path = request.uri().path().to_owned();
            if path.ends_with("/configmaps") {
                let there = json!({ "metadata": { "name": "c", "namespace": "team", "resourceVersion": "1" } });
                return Fixed(json!([there])).cluster(plugin, cluster, request);
            }
            let mut answer = Response::new(
                Full::new(Bytes::from(json!({ "kind": "Status", "status": "Success" }).to_string()))
                    .map_err(BoxError::from)
                    .boxed_unsync(),
            );
            match path.ends_with("/secrets") {
                true => *answer.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE,
                false => drop(self.0.send(format!("{} {path}", request.method()))),
            }
            async { Ok(answer) }.boxed()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_kind_that_cannot_be_listed_is_left_as_it_is_and_stops_no_other() {
        let (ask, mut asked) = tokio::sync::mpsc::unbounded_channel();
        let backend: Arc<dyn Backend> = Arc::new(Half(ask));
        let key = Key { kind: "Secret", namespace: "team".to_owned(), name: "s".to_owned() };
        let wish = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "s", "namespace": "team" } });
        let wish = Objects::from([(key, wish)]);
        let (_wish, wanted) = watch::channel(Arc::new(wish));
        let mut last = Report::default();
        let run = pair(&backend).run((wanted, always()), |report| last = report.clone());
        assert!(tokio::time::timeout(HEALED, run).await.is_err());
        assert_eq!(
            asked.try_recv().unwrap(),
            "DELETE /api/v1/namespaces/team/configmaps/c",
            "nobody wants it any more"
        );
        assert!(asked.try_recv().is_err(), "whether the secret is there is not known");
        assert!(last.trouble.as_ref().is_some_and(|why| why.contains("cannot watch secrets")), "{last:?}");
        assert_eq!((last.in_sync(), last.of), (false, None));
    }

    #[tokio::test]
    async fn what_is_in_a_namespace_of_which_nobody_knows_whose_it_is_is_put_right_and_nothing_is_added() {
        let (ask, mut asked) = tokio::sync::mpsc::unbounded_channel();
        let backend: Arc<dyn Backend> = Arc::new(Half(ask));
        let mut mirror = pair(&backend);
        let key = |name: &str| Key { kind: "ConfigMap", namespace: "team".to_owned(), name: name.to_owned() };
        let (there, new) = (key("there"), key("new"));
        mirror.actual.insert(there.clone(), json!({}));
        let wish = json!({ "apiVersion": "v1", "kind": "ConfigMap", "data": { "a": "b" } });
        let wanted = Objects::from([(home(&new), json!({})), (there.clone(), wish.clone()), (new.clone(), wish)]);
        // What it is asked for is told, and answered with what is no config map.
        mirror.reconcile(&wanted, &["Namespace"], (&mut |_: &Report| (), &mut always())).await;
        assert_eq!(asked.try_recv().unwrap(), "PATCH /api/v1/namespaces/team/configmaps/there");
        assert!(asked.try_recv().is_err(), "nothing is laid where it may be somebody else's");
        assert_eq!(mirror.report.failed.keys().collect::<Vec<_>>(), [&there]);
        mirror.reconcile(&wanted, &[], (&mut |_: &Report| (), &mut always())).await;
        assert!(mirror.report.failed.contains_key(&new), "it is somebody else's");
    }

    #[tokio::test]
    async fn of_what_nobody_knows_whether_it_is_wanted_nothing_is_taken_away_and_that_is_told() {
        let (ask, mut asked) = tokio::sync::mpsc::unbounded_channel();
        let backend: Arc<dyn Backend> = Arc::new(Half(ask));
        let mut mirror = pair(&backend);
        let key = |namespace: &str| Key { kind: "ConfigMap", namespace: namespace.to_owned(), name: "c".to_owned() };
        mirror.actual.insert(key("team"), json!({}));
        let unsure = Objects::from([(key(ANYWHERE), unknown("nobody tells"))]);
        mirror.reconcile(&unsure, &[], (&mut |_: &Report| (), &mut always())).await;
        assert!(asked.try_recv().is_err(), "it is left as it is");
        assert_eq!((mirror.report.synced, mirror.report.there), (0, 1), "it would be left behind");
        assert_eq!(mirror.report.failed, [(key(ANYWHERE), "nobody tells; 1 are left as they are".to_owned())].into());
        // It is known now: not wanted.
        mirror.reconcile(&Objects::new(), &[], (&mut |_: &Report| (), &mut always())).await;
        assert_eq!(asked.try_recv().unwrap(), "DELETE /api/v1/namespaces/team/configmaps/c");
        assert!(mirror.report.failed.is_empty());
    }

    #[tokio::test]
    async fn what_nothing_is_to_be_done_about_any_more_is_not_looked_at_again() {
        let (ask, _asked) = tokio::sync::mpsc::unbounded_channel();
        let backend: Arc<dyn Backend> = Arc::new(Half(ask));
        let mut mirror = pair(&backend);
        let key = |kind| Key { kind, namespace: "team".to_owned(), name: "c".to_owned() };
        let laid = key("ConfigMap");
        let wish = json!({ "apiVersion": "v1", "kind": "ConfigMap", "data": { "a": "b" } });
        let wanted = Objects::from([(laid.clone(), wish.clone())]);
        // The cluster answers with what is no config map.
        assert!(
            mirror.reconcile(&wanted, &[], (&mut |_: &Report| (), &mut always())).await.is_some(),
            "it is tried again"
        );
        mirror.actual.insert(laid.clone(), mirror.labelled(&wish));
        assert_eq!(
            mirror.reconcile(&wanted, &[], (&mut |_: &Report| (), &mut always())).await,
            None,
            "it was written all the same"
        );

        mirror.actual.clear();
        let mut owned = wanted.clone();
        owned.insert(home(&laid), ABSENT);
        for unlisted in [&["Namespace"][..], &[]] {
            mirror.resting.insert(laid.clone(), (Instant::now(), 1));
            assert_eq!(
                mirror.reconcile(&owned, unlisted, (&mut |_: &Report| (), &mut always())).await,
                None,
                "its namespace is not known to be the hub's"
            );
        }

        // A kind that this mirror does not keep: taking it away fails.
        let other = key("Other");
        mirror.actual = Objects::from([(other.clone(), json!({}))]);
        assert!(mirror.reconcile(&Objects::new(), &[], (&mut |_: &Report| (), &mut always())).await.is_some());
        let anywhere = Key { namespace: ANYWHERE.to_owned(), ..other };
        let unsure = Objects::from([(anywhere.clone(), unknown("nobody tells"))]);
        assert_eq!(
            mirror.reconcile(&unsure, &[], (&mut |_: &Report| (), &mut always())).await,
            None,
            "it may be wanted"
        );
        assert_eq!(mirror.report.failed.keys().collect::<Vec<_>>(), [&anywhere]);
    }

    /// A cluster that answers what changes an object with what it is told to, and has nothing.
    struct Answers {
        patch: u16,
        delete: Value,
        asked: tokio::sync::mpsc::UnboundedSender<String>,
    }
    impl Backend for Answers {
        fn hub(&self, _: &'static str, _: Request<Bytes>) -> BoxFuture<'static, Result<Response<Body>, BoxError>> {
            async { Err("nobody asks".into()) }.boxed()
        }
        fn cluster(
            &self,
            _: &'static str,
            _: &str,
            request: Request<Bytes>,
        ) -> BoxFuture<'static, Result<Response<Body>, BoxError>> {
            let status =
                |code: u16, reason| json!({ "kind": "Status", "status": "Failure", "code": code, "reason": reason });
            drop(self.asked.send(request.method().to_string()));
            let (code, body) = match *request.method() {
                http::Method::PATCH => (self.patch, status(self.patch, "No")),
                http::Method::DELETE => (200, self.delete.clone()),
                _ => (404, status(404, "NotFound")),
            };
            let body = Full::new(Bytes::from(body.to_string())).map_err(BoxError::from).boxed_unsync();
            let mut answer = Response::new(body);
            *answer.status_mut() = http::StatusCode::from_u16(code).unwrap();
            async { Ok(answer) }.boxed()
        }
    }

    #[tokio::test]
    async fn what_was_asked_for_and_not_answered_counts_until_it_is_known_not_to_be_there() {
        for (patch, there) in [(504, 1), (403, 0)] {
            let (asked, mut ask) = tokio::sync::mpsc::unbounded_channel();
            let backend: Arc<dyn Backend> = Arc::new(Answers { patch, delete: json!({}), asked });
            let mut mirror = pair(&backend);
            let key = Key { kind: "ConfigMap", namespace: "team".to_owned(), name: "c".to_owned() };
            let wish = json!({ "apiVersion": "v1", "kind": "ConfigMap" });
            let mut look = async |wanted: Objects| {
                mirror.reconcile(&wanted, &[], (&mut |_: &Report| (), &mut always())).await;
                mirror.resting.clear();
                mirror.report.there
            };
            assert_eq!(look(Objects::from([(key, wish)])).await, there, "after {patch}");
            while ask.try_recv().is_ok() {}
            assert_eq!(look(Objects::new()).await, 0);
            assert_eq!(ask.try_recv().is_ok(), 0 < there, "it is asked whether it is there");
        }
    }

    #[tokio::test]
    async fn what_must_not_be_there_is_asked_after_when_nobody_saw_it_go() {
        let (asked, _ask) = tokio::sync::mpsc::unbounded_channel();
        let backend: Arc<dyn Backend> = Arc::new(Answers { patch: 504, delete: json!({}), asked });
        let (mut mirror, kind) = (pair(&backend), &PAIR[0]);
        let key = Key { kind: "ConfigMap", namespace: "team".to_owned(), name: "c".to_owned() };
        mirror.actual.insert(key.clone(), json!({}));
        mirror.resting.insert(key.clone(), (Instant::now(), 1));
        mirror.heard(kind, watcher::Event::InitDone, &mut HashMap::new(), &mut Vec::new());
        let wanted = Objects::from([(key.clone(), ABSENT)]);
        let next = mirror.reconcile(&wanted, &[], (&mut |_: &Report| (), &mut always())).await;
        assert_eq!((next, mirror.there(), mirror.unsure.len()), (None, 0, 0), "it is not there, and nothing rests");
        // More than are asked after at once are asked after in a moment.
        let name = |n| Key { name: format!("c{n}"), ..key.clone() };
        mirror.unsure.extend((0..100).map(name));
        assert!(mirror.reconcile(&wanted, &[], (&mut |_: &Report| (), &mut always())).await.is_some());
        assert!((1..100).contains(&mirror.there()), "{}", mirror.there());
    }

    #[tokio::test]
    async fn what_is_being_deleted_is_there_until_it_is_gone() {
        let (asked, _ask) = tokio::sync::mpsc::unbounded_channel();
        let meta = json!({ "name": "c", "namespace": "team", "uid": "1", "deletionTimestamp": "2026-01-01T00:00:00Z" });
        let delete = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": meta });
        let backend: Arc<dyn Backend> = Arc::new(Answers { patch: 200, delete: delete.clone(), asked });
        let (mut mirror, kind) = (pair(&backend), &PAIR[0]);
        let key = Key { kind: "ConfigMap", namespace: "team".to_owned(), name: "c".to_owned() };
        mirror.actual.insert(key.clone(), delete.clone());
        mirror.reconcile(&Objects::new(), &[], (&mut |_: &Report| (), &mut always())).await;
        assert_eq!((mirror.report.there, mirror.report.failed.len()), (1, 1), "somebody's finalizer holds it");
        let mut gone: DynamicObject = serde_json::from_value(delete).unwrap();
        for (uid, there) in [("0", 1), ("1", 0)] {
            gone.metadata.uid = Some(uid.to_owned());
            mirror.heard(kind, watcher::Event::Delete(gone.clone()), &mut HashMap::new(), &mut Vec::new());
            assert_eq!(mirror.there(), there, "{uid} is gone");
        }
    }

    #[tokio::test]
    async fn what_was_made_since_a_listing_was_written_counts_though_it_is_not_in_it() {
        let backend: Arc<dyn Backend> = Arc::new(Fixed(json!([])));
        let (mut mirror, kind) = (pair(&backend), &PAIR[0]);
        let key = |kind| Key { kind, namespace: "team".to_owned(), name: "c".to_owned() };
        mirror.actual = Objects::from([(key("ConfigMap"), json!({})), (key("Secret"), json!({}))]);
        mirror.heard(kind, watcher::Event::InitDone, &mut HashMap::new(), &mut Vec::new());
        assert_eq!((mirror.actual.len(), mirror.there()), (1, 2));
    }

    #[tokio::test]
    async fn what_is_left_out_is_told_until_the_last_of_its_kind_is_gone() {
        let backend: Arc<dyn Backend> = Arc::new(Fixed(json!([])));
        let (mut mirror, kind) = (pair(&backend), &PAIR[0]);
        let object = |name: &str, letters| DynamicObject::new(&name.repeat(letters), &kind.resource()).within("team");
        let (a, b, short) = (object("a", limits::NAME + 1), object("b", limits::NAME + 1), object("c", 1));
        let (mut listing, mut unlisted) = (HashMap::new(), Vec::new());
        let mut told = |event| {
            mirror.heard(kind, event, &mut listing, &mut unlisted);
            mirror.trouble().is_some()
        };
        assert!(told(watcher::Event::Apply(a.clone())));
        assert!(told(watcher::Event::Apply(a.clone())), "it is the same one");
        assert!(told(watcher::Event::Apply(b.clone())));
        assert!(told(watcher::Event::Delete(a.clone())), "there is another one");
        assert!(told(watcher::Event::Delete(short)), "that was none of them");
        assert!(!told(watcher::Event::Delete(b)));
        assert!(told(watcher::Event::InitApply(a)));
        assert!(!told(watcher::Event::Init), "all is told anew");
    }
}
