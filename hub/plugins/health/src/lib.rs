//! How clusters are, each and all together: nodes, what they have and what is used of it, pods, the control plane's parts,
//! warnings; a condition `Ready` in each cluster's object; and, in memory, what it was like over the last hours, at
//! `/plugins/health/clusters/<name>` and `/plugins/health/fleet`.
//!
//! It asks little: nodes are watched and forgotten but for a few numbers, pods are counted by the API server
//! (`remainingItemCount`), only those in trouble are listed, as metadata, and usage is asked for as the sums that each node
//! has. What is kept and collected of each cluster is bounded: here, and in `look`, `usage`, `components` and `history`.
#![forbid(unsafe_code)]

mod ask;
mod components;
mod fleet;
mod history;
pub mod kinds;
mod look;
mod usage;

use bytes::Bytes;
use components::Pulses;
use fleet::Fleet;
use futures_util::{FutureExt, StreamExt, future::BoxFuture};
use history::History;
use kinds::{ClusterHealthSpec, ClusterHealthStatus, FLEET, FleetHealthSpec, State};
use kube::{
    Api, ResourceExt,
    api::{
        ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, PostParams,
        Preconditions,
    },
    runtime::watcher,
};
use look::{Node, Numbers, steady, sum, texts, warnings};
use moorline_plugin::{
    ClusterView, Condition, Configured, HubObject, HubView, Plugin, PluginError, PluginKind, Registration, RouteAnswer,
    RouteRequest, TooMuch, name_of, set_condition, watching,
};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use usage::Meter;

/// The condition of a Cluster that says whether it can work.
pub const CONDITION: &str = "Ready";
/// Pods in trouble that are counted.
const TROUBLE: u32 = 500;
/// Events that are read at a time.
const EVENTS: u32 = 500;
/// Nodes of one cluster that are known at a time.
const NODES: usize = 20_000;
/// Nodes of which nothing but errors were heard for this long are not known.
const SILENT: Duration = Duration::from_secs(120);
/// Longest time for one look at a cluster.
const LOOK: Duration = Duration::from_secs(300);
/// The fleet's object is written at most this often.
const FLEET_PAUSE: Duration = Duration::from_secs(5);
/// Pods that neither run nor have ended well.
const IN_TROUBLE: &str = "status.phase!=Running,status.phase!=Succeeded";

/// Somebody else has written the object meanwhile: it is written with the next look.
fn unless_changed<T>(done: Result<T, kube::Error>) -> Result<(), kube::Error> {
    match done {
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        done => done.map(drop),
    }
}

/// Settings.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Seconds between two looks at a cluster.
    pub every: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self { every: 60 }
    }
}

/// The plugin.
#[derive(Debug)]
pub struct Health {
    every: Duration,
    history: Arc<Mutex<HashMap<String, History>>>,
    /// By the uids of clusters that there are: what was seen of their leases is true after a look that failed, too.
    pulses: Mutex<HashMap<String, Pulses>>,
    fleet: Arc<Fleet>,
    meter: Meter,
}

impl Configured for Health {
    const NAME: &'static str = "health";
    type Config = Config;
    fn new(config: Config) -> Result<Self, String> {
        if !(10..=3600).contains(&config.every) {
            return Err("every: 10 to 3600 seconds".to_owned());
        }
        let every = Duration::from_secs(config.every);
        Ok(Self {
            every,
            history: Arc::default(),
            pulses: Mutex::default(),
            fleet: Arc::default(),
            meter: Meter::default(),
        })
    }
}

fn core(kind: &str, plural: &str) -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("", "v1", kind), plural)
}

fn clusters(hub: &HubView) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("moorline.dev", "v1alpha1", "Cluster");
    Api::all_with(hub.client.clone(), &ApiResource::from_gvk_with_plural(&kind, "clusters"))
}

impl Plugin for Health {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn register(&self, into: &mut Registration) {
        let (history, fleet) = (Arc::clone(&self.history), Arc::clone(&self.fleet));
        let kind = PluginKind::of::<ClusterHealthSpec>()
            .column("Nodes", "/status/nodes")
            .column("Ready", "/status/nodesReady")
            .column("CPU", "/status/allocatable/cpu")
            .column("CPU-Used", "/status/used/cpu")
            .wide_column("Memory", "/status/allocatable/memory")
            .wide_column("Memory-Used", "/status/used/memory")
            .column("Pods", "/status/pods")
            .column("Trouble", "/status/podsInTrouble")
            .column("Unhealthy", "/status/componentsUnhealthy");
        let whole = PluginKind::of::<FleetHealthSpec>()
            .column("Clusters", "/status/clusters")
            .column("Known", "/status/clustersKnown")
            .column("Ready", "/status/clustersReady")
            .column("Nodes", "/status/nodes")
            .column("Nodes-Ready", "/status/nodesReady")
            .column("CPU", "/status/allocatable/cpu")
            .column("Pods", "/status/pods")
            .column("Trouble", "/status/podsInTrouble")
            .column("Unhealthy", "/status/componentsUnhealthy");
        into.kind(kind).kind(whole).writes(&["clusters"]).per_cluster().route(move |request| {
            let answer = plot(&history, &fleet, &request);
            async move { answer }.boxed()
        });
    }

    fn run(self: Arc<Self>, hub: HubView) -> BoxFuture<'static, Result<(), PluginError>> {
        async move {
            tokio::select! {
                ended = self.whole(&hub) => ended,
                ended = self.tell_fleet(&hub) => ended,
            }
        }
        .boxed()
    }

    fn run_cluster(self: Arc<Self>, hub: HubView, cluster: ClusterView) -> BoxFuture<'static, Result<(), PluginError>> {
        async move {
            let result = self.one(&hub, &cluster).await;
            if let Err(error) = &result {
                self.fleet.forget(&cluster.name);
                let why = error.to_string();
                let reason = if why.contains("edge policy") { "NotAllowed" } else { "CannotAsk" };
                let mut unknown = Condition::new(CONDITION, false, reason, why);
                "Unknown".clone_into(&mut unknown.status);
                set_condition(&clusters(&hub), &cluster.name, unknown).await?;
            }
            result
        }
        .boxed()
    }
}

impl Health {
    /// Nobody knows how a cluster is that is not connected; and what is said of one that is gone goes too.
    async fn whole(&self, hub: &HubView) -> Result<(), PluginError> {
        let (api, all): (Api<HubObject<ClusterHealthSpec>>, _) = (Api::all(hub.client.clone()), clusters(hub));
        let mut changes = hub.clusters.clone();
        loop {
            let now = Arc::clone(&changes.borrow_and_update());
            self.fleet.touch();
            self.forget_pulses(now.values().map(|facts| facts.uid.as_str()).collect());
            for facts in now.values().filter(|facts| !facts.connected) {
                let mut unknown = Condition::new(CONDITION, false, "NotConnected", "no agent is connected");
                "Unknown".clone_into(&mut unknown.status);
                set_condition(&all, &facts.name, unknown).await?;
            }
            for object in api.list_metadata(&ListParams::default()).await?.items {
                let name = object.name_any();
                // `now` may be older than what another half has just made.
                if now.contains_key(&name) || changes.borrow().contains_key(&name) {
                    continue;
                }
                // First what was: a cluster of this name that comes meanwhile has a history of its own.
                self.history.lock().unwrap_or_else(PoisonError::into_inner).remove(&name);
                let (uid, resource_version) = (object.uid(), object.resource_version());
                let preconditions = Some(Preconditions { uid, resource_version });
                match api.delete(&name, &DeleteParams { preconditions, ..DeleteParams::default() }).await {
                    Ok(_) => {}
                    // It is another one by now, or gone.
                    Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            if changes.changed().await.is_err() {
                return Ok(());
            }
        }
    }

    /// Writes how all clusters are together, when that changes, and remembers it as often as each cluster is looked at.
    async fn tell_fleet(&self, hub: &HubView) -> Result<(), PluginError> {
        let mut tick = interval(self.every);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tick.reset();
        loop {
            tokio::select! {
                () = self.fleet.changed() => {
                    self.write_fleet(hub).await?;
                    sleep(FLEET_PAUSE).await;
                }
                _ = tick.tick() => self.fleet.remember(jiff::Timestamp::now()),
            }
        }
    }

    async fn write_fleet(&self, hub: &HubView) -> Result<(), PluginError> {
        let api: Api<HubObject<FleetHealthSpec>> = Api::all(hub.client.clone());
        let mut stored = match api.get_opt(FLEET).await? {
            Some(object) => object,
            None => api.create(&PostParams::default(), &HubObject::new(FLEET, FleetHealthSpec {})).await?,
        };
        let now = Arc::clone(&hub.clusters.borrow());
        self.fleet.retain(|name| now.get(name).is_some_and(|facts| facts.connected));
        let status = Some(self.fleet.status(now.len()));
        if stored.status != status {
            stored.status = status;
            unless_changed(api.replace_status(FLEET, &PostParams::default(), &stored).await)?;
        }
        Ok(())
    }

    async fn one(&self, hub: &HubView, cluster: &ClusterView) -> Result<(), PluginError> {
        let nodes: Api<DynamicObject> = Api::all_with(cluster.client.clone(), &core("Node", "nodes"));
        // Of a node a few numbers are kept, and at most `NODES` of them: 5,000 with all their images have 150 MiB.
        let mut changes = watching(nodes, watcher::Config::default(), None);
        let mut failing: Option<Instant> = None;
        let (mut known, mut listing, mut listed) = (BTreeMap::new(), BTreeMap::new(), false);
        let node = |object: &DynamicObject| -> Result<_, PluginError> {
            Ok((
                name_of(object)?,
                Node::of(&json!({ "status": object.data["status"], "metadata": { "labels": object.labels() } })),
            ))
        };
        let mut tick = interval(self.every);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(event) = changes.next() => match event {
                    Ok(watcher::Event::Init) => listing.clear(),
                    Ok(watcher::Event::InitApply(object)) => listing.extend([node(&object)?]),
                    Ok(watcher::Event::InitDone) => {
                        (known, failing) = (std::mem::take(&mut listing), None);
                        if !listed {
                            listed = true;
                            tick.reset_immediately();
                        }
                    }
                    Ok(watcher::Event::Apply(object)) => known.extend([node(&object)?]),
                    Ok(watcher::Event::Delete(object)) => drop(known.remove(&object.name_any())),
                    Err(error) if !listed => return Err(PluginError::Other(format!("cannot watch nodes: {error}"))),
                    // What is known of its nodes would be of the time before, for ever.
                    Err(error) if TooMuch::within(&error).is_some() => {
                        return Err(PluginError::Other(format!("cannot watch nodes: {error}")));
                    }
                    Err(error) if SILENT < failing.get_or_insert_with(Instant::now).elapsed() => {
                        return Err(PluginError::Other(format!("cannot watch nodes: {error}")));
                    }
                    Err(_) => {}
                },
                _ = tick.tick() => {
                    if listed {
                        let look = timeout(LOOK, self.look(hub, cluster, &known)).await;
                        look.unwrap_or_else(|_| Err(PluginError::Other("the cluster answers too slowly".to_owned())))?;
                    }
                }
            }
            if NODES < known.len().max(listing.len()) {
                return Err(PluginError::Other(format!("the cluster names more than {NODES} nodes")));
            }
        }
    }

    /// Asks, and writes what has changed.
    async fn look(
        &self,
        hub: &HubView,
        cluster: &ClusterView,
        nodes: &BTreeMap<String, Node>,
    ) -> Result<(), PluginError> {
        let pods: Api<DynamicObject> = Api::all_with(cluster.client.clone(), &core("Pod", "pods"));
        let counted = pods.list_metadata(&ListParams::default().limit(1)).await?;
        let more = counted.metadata.remaining_item_count.and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
        let trouble = pods.list_metadata(&ListParams::default().fields(IN_TROUBLE).limit(TROUBLE)).await?;
        let events: Api<DynamicObject> = Api::all_with(cluster.client.clone(), &core("Event", "events"));
        let events = events.list(&ListParams::default().fields("type=Warning").limit(EVENTS)).await?;
        let (used, usage) = self.meter.read(&cluster.client).await;
        let mut pulses = self.pulses().get(&cluster.uid).cloned().unwrap_or_default();
        let components = components::read(&cluster.client, nodes, &mut pulses).await;
        self.pulses().insert(cluster.uid.clone(), pulses);
        let api: Api<HubObject<ClusterHealthSpec>> = Api::all(hub.client.clone());
        let mut stored = match api.get_opt(&cluster.name).await? {
            Some(object) => object,
            None => api.create(&PostParams::default(), &HubObject::new(&cluster.name, ClusterHealthSpec {})).await?,
        };
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let before = stored.status.take().unwrap_or_default();
        let allocatable = sum(nodes.values().map(|node| &node.allocatable));
        let capacity = texts(&sum(nodes.values().map(|node| &node.capacity)));
        let status = ClusterHealthStatus {
            nodes: count(nodes.len()),
            nodes_ready: count(nodes.values().filter(|node| node.ready).count()),
            capacity: capacity.clone(),
            used: steady(&before.used, &used, &allocatable),
            allocatable: texts(&allocatable),
            usage,
            pods: more + counted.items.len() as u64,
            pods_in_trouble: count(trouble.items.len()),
            components_unhealthy: count(components.iter().filter(|one| one.state == State::Unhealthy).count()),
            components,
            warnings: warnings(events.items.iter().map(|event| &event.data)),
        };
        let numbers = Numbers::of(&status, nodes, &used);
        self.remember(&cluster.name, &numbers);
        self.fleet.put(&cluster.name, numbers, status.warnings.clone());
        if before != status {
            stored.status = Some(status.clone());
            unless_changed(api.replace_status(&cluster.name, &PostParams::default(), &stored).await)?;
        }
        let object = clusters(hub).get_opt(&cluster.name).await?.map(|object| object.data).unwrap_or_default();
        let there = &object["status"];
        let before: BTreeMap<String, String> = serde_json::from_value(there["capacity"].clone()).unwrap_or_default();
        if there["nodes"] != status.nodes || there["nodesReady"] != status.nodes_ready || before != capacity {
            let capacity = in_place_of(before.keys(), &capacity);
            let facts = json!({ "nodes": status.nodes, "nodesReady": status.nodes_ready, "capacity": capacity });
            let patch = Patch::Merge(json!({ "status": facts }));
            clusters(hub).patch_status(&cluster.name, &PatchParams::default(), &patch).await?;
        }
        let (ready, all) = (status.nodes_ready, status.nodes);
        let holds = ready == all && ready > 0;
        let reason = if holds { "NodesReady" } else { "NodesNotReady" };
        let condition = Condition::new(CONDITION, holds, reason, format!("{ready} of {all} nodes are ready"));
        set_condition(&clusters(hub), &cluster.name, condition).await?;
        hub.metrics.count("looked");
        Ok(())
    }

    fn pulses(&self) -> MutexGuard<'_, HashMap<String, Pulses>> {
        self.pulses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets those of clusters that are gone.
    fn forget_pulses(&self, there: HashSet<&str>) {
        self.pulses().retain(|uid, _| there.contains(uid.as_str()));
    }

    fn remember(&self, cluster: &str, numbers: &Numbers) {
        let mut all = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(cluster.to_owned()).or_default().remember(jiff::Timestamp::now(), numbers);
    }
}

/// What a merge patch says so that these amounts are there, and none of those of before besides.
fn in_place_of<'a>(before: impl Iterator<Item = &'a String>, amounts: &BTreeMap<String, String>) -> Value {
    let gone = before.filter(|name| !amounts.contains_key(*name)).map(|name| (name.clone(), Value::Null));
    let now = amounts.iter().map(|(name, amount)| (name.clone(), amount.as_str().into()));
    Value::Object(gone.chain(now).collect())
}

/// Answers `GET /plugins/health/clusters/<name>` to who may see that cluster, and `/plugins/health/fleet` to administrators.
fn plot(history: &Mutex<HashMap<String, History>>, fleet: &Fleet, request: &RouteRequest) -> RouteAnswer {
    let gets = request.method == http::Method::GET;
    let found = match request.path.strip_prefix("/clusters/") {
        // The same answer for one that is unknown and for one that the caller may not see.
        Some(name) if gets && (request.may_see)(name) => {
            history.lock().unwrap_or_else(PoisonError::into_inner).get(name).map(History::plot)
        }
        None if gets && request.path == "/fleet" && request.admin => Some(fleet.plot()),
        _ => None,
    };
    let (code, body) = match found {
        Some(plot) => (200, plot),
        None => (404, json!({ "message": "nothing is known of this cluster" })),
    };
    let mut answer = RouteAnswer::new(Bytes::from(body.to_string()));
    *answer.status_mut() = http::StatusCode::from_u16(code).unwrap_or_default();
    let json = http::HeaderValue::from_static("application/json");
    answer.headers_mut().insert(http::header::CONTENT_TYPE, json);
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_amount_that_is_no_more_is_taken_away() {
        let amounts = |all: &[(&str, &str)]| -> BTreeMap<String, String> {
            all.iter().map(|(name, amount)| ((*name).to_owned(), (*amount).to_owned())).collect()
        };
        let before = amounts(&[("cpu", "4"), ("pods", "110")]);
        assert_eq!(in_place_of(before.keys(), &amounts(&[("cpu", "2")])), json!({ "cpu": "2", "pods": null }));
        assert_eq!(in_place_of(before.keys(), &amounts(&[])), json!({ "cpu": null, "pods": null }));
    }

    #[test]
    fn what_was_seen_of_leases_is_known_for_as_long_as_there_is_the_cluster() {
        let health = Health::new(Config::default()).unwrap();
        for uid in ["1", "2"] {
            health.pulses().insert(uid.to_owned(), Pulses::new());
        }
        health.forget_pulses(["1", "3"].into());
        assert_eq!(health.pulses().keys().collect::<Vec<_>>(), ["1"]);
    }

    #[test]
    fn history_is_bounded_and_for_those_who_see_the_cluster() {
        let health = Health::new(Config::default()).unwrap();
        for pods in 0..1000 {
            health.remember("edge1", &Numbers { pods, ..Numbers::default() });
        }
        health.fleet.remember(jiff::Timestamp::now());
        let ask = |path: &str, sees: bool, admin: bool| {
            let request = RouteRequest {
                method: http::Method::GET,
                path: path.to_owned(),
                query: String::new(),
                body: Bytes::new(),
                user: "ann".to_owned(),
                may_see: Arc::new(move |_| sees),
                admin,
            };
            let answer = plot(&health.history, &health.fleet, &request);
            let body: Value = serde_json::from_slice(answer.body()).unwrap();
            (answer.status().as_u16(), body["points"].as_array().map_or(0, Vec::len), body["points"][359][3].clone())
        };
        assert_eq!(ask("/clusters/edge1", true, false), (200, history::POINTS, json!(999)));
        assert_eq!(ask("/clusters/edge1", false, false).0, 404);
        assert_eq!(ask("/clusters/edge2", true, false).0, 404);
        assert_eq!((ask("/fleet", true, true).0, ask("/fleet", true, true).1), (200, 1));
        assert_eq!(ask("/fleet", true, false).0, 404, "sums tell of clusters that one may not see");
        assert!(Health::new(Config { every: 1 }).is_err());
    }
}
