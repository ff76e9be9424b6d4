//! A cluster's shares of its projects' quotas, kept up to date with what is in use.

use crate::{
    CONDITION, Known, Projects,
    desired::{Inputs, OWN, Shares, namespaces},
    quota::{Share, plan},
};
use futures_util::StreamExt;
use kube::{
    Api, ResourceExt,
    api::{ApiResource, DynamicObject, GroupVersionKind},
    runtime::watcher,
};
use moorline_plugin::{
    ClusterView, HubView, PluginError, TooMuch, limits,
    mirror::{CLUSTER_LABEL, PLUGIN_LABEL, cannot_watch},
    name_of, quantity, watching,
};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, PoisonError},
    time::Duration,
};
use tokio::sync::watch;

/// Usage changes of one moment are looked at once.
const GATHER: Duration = Duration::from_millis(200);

/// The quota of one namespace, as the cluster shows it.
#[derive(Debug, Clone, Default)]
struct Seen {
    hard: BTreeMap<String, i128>,
    in_force: BTreeMap<String, i128>,
    used: BTreeMap<String, i128>,
}

fn amounts(object: &Value, pointer: &str) -> BTreeMap<String, i128> {
    let all = object.pointer(pointer).and_then(Value::as_object).into_iter().flatten();
    all.filter_map(|(name, amount)| Some((name.clone(), quantity::parse(amount.as_str()?)?))).collect()
}

impl Seen {
    fn of(object: &DynamicObject) -> Self {
        let data = &object.data;
        Self {
            hard: amounts(data, "/spec/hard"),
            in_force: amounts(data, "/status/hard"),
            used: amounts(data, "/status/used"),
        }
    }
}

/// What was last asked for: by namespace, then by resource.
type Planned = BTreeMap<String, BTreeMap<String, i128>>;

/// The next shares of all projects of a cluster, and what each project uses.
fn next(
    known: &Known,
    cluster: &str,
    seen: &BTreeMap<String, Seen>,
    planned: &Planned,
) -> (Planned, BTreeMap<String, BTreeMap<String, String>>) {
    let owners = namespaces(&known.projects, &known.namespaces, cluster);
    let (mut shares, mut used) = (Planned::new(), BTreeMap::new());
    for (name, project) in known.projects.iter().filter(|(_, project)| project.spec.cluster == cluster) {
        let mine: Vec<&str> = owners.iter().filter(|(_, owner)| owner.0 == name.as_str()).map(|(ns, _)| *ns).collect();
        let mut sum = BTreeMap::new();
        for (resource, limit) in &project.spec.quota {
            let Some(limit) = quantity::parse(limit) else { continue };
            let share = |namespace: &str| {
                let there = seen.get(namespace);
                Share {
                    hard: there.and_then(|s| s.hard.get(resource).copied()),
                    in_force: there.and_then(|s| s.in_force.get(resource).copied()),
                    used: there.and_then(|s| s.used.get(resource).copied()).unwrap_or(0),
                    planned: planned.get(namespace).and_then(|p| p.get(resource).copied()),
                }
            };
            let now: BTreeMap<String, Share> = mine.iter().map(|ns| ((*ns).to_owned(), share(ns))).collect();
            sum.insert(resource.clone(), quantity::write(now.values().map(|share| share.used).sum()));
            for (namespace, hard) in plan(limit, unit_of(resource), &now) {
                shares.entry(namespace).or_default().insert(resource.clone(), hard);
            }
        }
        used.insert(name.clone(), sum);
    }
    (shares, used)
}

/// The smallest step of a resource, in thousandths: processors are shared in thousandths, everything else in ones.
fn unit_of(resource: &str) -> i128 {
    if resource.ends_with("cpu") { 1 } else { 1000 }
}

fn as_text(planned: &Planned) -> Shares {
    let one = |all: &BTreeMap<String, i128>| all.iter().map(|(name, n)| (name.clone(), quantity::write(*n))).collect();
    planned.iter().map(|(namespace, all)| (namespace.clone(), one(all))).collect()
}

impl Projects {
    /// Runs beside the mirror of a cluster, and tells it what to mirror.
    pub(crate) async fn share(
        &self,
        hub: &HubView,
        cluster: &ClusterView,
        mine: &watch::Sender<Option<Arc<Inputs>>>,
    ) -> Result<(), PluginError> {
        let mut known = self.known.subscribe();
        let kind =
            ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("", "v1", "ResourceQuota"), "resourcequotas");
        let api: Api<DynamicObject> = Api::all_with(cluster.client.clone(), &kind);
        let labels = format!("{PLUGIN_LABEL}=projects,{CLUSTER_LABEL}={}", cluster.uid);
        let mut changes = watching(api, watcher::Config::default().labels(&labels), Some(limits::HELD));
        let (mut seen, mut listing) = (BTreeMap::new(), BTreeMap::new());
        let (mut planned, mut listed) = (Planned::new(), false);
        loop {
            tokio::select! {
                Some(event) = changes.next() => match event {
                    Ok(watcher::Event::Init) => listing.clear(),
                    Ok(watcher::Event::InitApply(object)) => put(&mut listing, &object),
                    Ok(watcher::Event::InitDone) => (seen, listed) = (std::mem::take(&mut listing), true),
                    Ok(watcher::Event::Apply(object)) => put(&mut seen, &object),
                    Ok(watcher::Event::Delete(object)) => drop(seen.remove(&object.namespace().unwrap_or_default())),
                    // Without knowing what is in use nothing is shared out.
                    Err(error) if !listed || TooMuch::within(&error).is_some() => {
                        return Err(cannot_watch(hub, (&cluster.name, CONDITION), "resourcequotas", &error).await);
                    }
                    Err(_) => continue,
                },
                changed = known.changed() => if changed.is_err() { return Ok(()) },
            }
            if !listed {
                continue;
            }
            // Until a share that was just asked for is seen, further news of the same moment tells nothing new.
            tokio::time::sleep(GATHER).await;
            let Some(now) = known.borrow_and_update().clone() else { continue };
            let (new, used) = next(&now, &cluster.name, &seen, &planned);
            planned = new;
            let inputs = Inputs {
                projects: Arc::clone(&now.projects),
                namespaces: Arc::clone(&now.namespaces),
                shares: Arc::new(as_text(&planned)),
            };
            mine.send_replace(Some(Arc::new(inputs)));
            let mut all = self.used.lock().unwrap_or_else(PoisonError::into_inner);
            let mut changed = BTreeSet::new();
            for (project, used) in used {
                if all.get(&project) != Some(&used) {
                    all.insert(project.clone(), used);
                    changed.insert(project);
                }
            }
            all.retain(|project, _| now.projects.contains_key(project));
            if !changed.is_empty() {
                self.used_changed.notify_one();
            }
        }
    }
}

/// The mirror, which watches the same, tells of names that are too long.
fn put(all: &mut BTreeMap<String, Seen>, object: &DynamicObject) {
    if name_of(object).is_ok_and(|name| name == OWN) {
        all.insert(object.namespace().unwrap_or_default(), Seen::of(object));
    }
}
