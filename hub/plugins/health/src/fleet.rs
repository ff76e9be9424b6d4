//! How all clusters are together. Each look at a cluster replaces what that cluster adds to the sums; whoever asks is
//! answered from one object, and from memory.

use crate::{
    history::History,
    kinds::{FleetHealthStatus, FleetWarning, Warning},
    look::{Numbers, texts},
};
use serde_json::Value;
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
};
use tokio::sync::Notify;

/// Warnings that the fleet's object names.
const WARNINGS: usize = 20;

#[derive(Debug, Default)]
struct Sums {
    /// What each cluster adds, and its warnings. Bounded by the number of connected clusters, and in each by `look`.
    parts: HashMap<String, (Numbers, Vec<Warning>)>,
    total: Numbers,
    history: History,
}

/// The sums, and that they changed.
#[derive(Debug, Default)]
pub(crate) struct Fleet {
    sums: Mutex<Sums>,
    changed: Notify,
}

impl Sums {
    fn take_off(&mut self, cluster: &str) {
        if let Some((numbers, _)) = self.parts.remove(cluster) {
            self.total.subtract(&numbers);
        }
    }
}

impl Fleet {
    fn lock(&self) -> MutexGuard<'_, Sums> {
        self.sums.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Resolves when something has changed since it last did.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// How a cluster is now, in place of how it was.
    pub fn put(&self, cluster: &str, numbers: Numbers, warnings: Vec<Warning>) {
        let mut sums = self.lock();
        sums.take_off(cluster);
        sums.total.add(&numbers);
        sums.parts.insert(cluster.to_owned(), (numbers, warnings));
        self.changed.notify_one();
    }

    /// Nobody knows how this cluster is.
    pub fn forget(&self, cluster: &str) {
        self.lock().take_off(cluster);
        self.changed.notify_one();
    }

    /// Clusters have come, gone or changed.
    pub fn touch(&self) {
        self.changed.notify_one();
    }

    /// Forgets those that are not connected any more: whoever left while it was looked at, too.
    pub fn retain(&self, connected: impl Fn(&str) -> bool) {
        let mut sums = self.lock();
        let gone: Vec<String> = sums.parts.keys().filter(|name| !connected(name)).cloned().collect();
        gone.iter().for_each(|name| sums.take_off(name));
    }

    /// One more moment for plots.
    pub fn remember(&self, at: jiff::Timestamp) {
        let sums = &mut *self.lock();
        sums.history.remember(at, &sums.total);
    }

    pub fn plot(&self) -> Value {
        self.lock().history.plot()
    }

    /// What stands in the object, of so many clusters in all.
    pub fn status(&self, clusters: usize) -> FleetHealthStatus {
        let sums = self.lock();
        let count = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        let total = &sums.total;
        FleetHealthStatus {
            clusters: u32::try_from(clusters).unwrap_or(u32::MAX),
            clusters_known: count(total.clusters),
            clusters_ready: count(total.clusters_ready),
            clusters_measured: count(total.measured),
            nodes: total.nodes,
            nodes_ready: total.nodes_ready,
            pods: total.pods,
            pods_in_trouble: total.pods_in_trouble,
            components_unhealthy: count(total.components_unhealthy),
            capacity: texts(&total.capacity),
            allocatable: texts(&total.allocatable),
            used: texts(&total.used),
            measured: texts(&total.measurable),
            warnings: warnings(sums.parts.values().map(|(_, warnings)| warnings.as_slice())),
        }
    }
}

/// Warnings of all clusters by cause, those of most clusters first.
fn warnings<'a>(clusters: impl Iterator<Item = &'a [Warning]>) -> Vec<FleetWarning> {
    let mut all: BTreeMap<(&str, &str), FleetWarning> = BTreeMap::new();
    for one in clusters {
        let mut here: BTreeMap<(&str, &str), u32> = BTreeMap::new();
        for warning in one {
            let cause = (warning.reason.as_str(), warning.kind.as_str());
            let sum = all.entry(cause).or_default();
            sum.objects = sum.objects.saturating_add(warning.objects);
            // A cause in several namespaces of a cluster is one of that cluster.
            let seen = here.entry(cause).or_default();
            if *seen == 0 {
                (*seen, sum.clusters) = (1, sum.clusters.saturating_add(1));
            }
            if sum.last < warning.last {
                sum.last.clone_from(&warning.last);
            }
        }
    }
    let named = |((reason, kind), warning): ((&str, &str), FleetWarning)| FleetWarning {
        reason: reason.to_owned(),
        kind: kind.to_owned(),
        ..warning
    };
    let mut all: Vec<FleetWarning> = all.into_iter().map(named).collect();
    all.sort_by(|a, b| (b.clusters, b.objects, &b.last).cmp(&(a.clusters, a.objects, &a.last)));
    all.truncate(WARNINGS);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(nodes: u64, cpu: i128, measured: bool) -> Numbers {
        let amount = |amount: i128| BTreeMap::from([("cpu".to_owned(), amount)]);
        Numbers {
            clusters: 1,
            clusters_ready: 1,
            measured: u64::from(measured),
            nodes,
            nodes_ready: nodes,
            pods: nodes * 10,
            capacity: amount(cpu),
            allocatable: amount(cpu),
            used: if measured { amount(cpu / 2) } else { BTreeMap::new() },
            measurable: if measured { amount(cpu) } else { BTreeMap::new() },
            ..Numbers::default()
        }
    }

    #[test]
    fn the_sums_are_those_of_the_clusters_whatever_came_and_went() {
        let fleet = Fleet::default();
        for round in 0..5 {
            for n in 0..50 {
                fleet.put(&format!("c{n}"), numbers(n + round, 1000, n % 2 == 0), Vec::new());
            }
        }
        fleet.forget("c0");
        fleet.forget("c0");
        fleet.retain(|name| name != "c1");
        fleet.put("c2", numbers(1000, 7000, true), Vec::new());
        let status = fleet.status(60);
        let nodes: u64 = (3..50).map(|n| n + 4).sum::<u64>() + 1000;
        assert_eq!((status.clusters, status.clusters_known, status.clusters_measured), (60, 48, 24));
        assert_eq!((status.nodes, status.pods), (nodes, nodes * 10));
        assert_eq!((status.allocatable["cpu"].as_str(), status.used["cpu"].as_str()), ("54", "15"));
        assert_eq!(status.measured["cpu"], "30", "what is used is of this much");
        fleet.retain(|_| false);
        assert_eq!(fleet.status(0), FleetHealthStatus::default(), "nothing is left behind");
    }

    #[test]
    fn a_cause_in_many_clusters_is_one_line() {
        let warning = |reason: &str, namespace: &str, last: &str| Warning {
            reason: reason.to_owned(),
            kind: "Pod".to_owned(),
            namespace: namespace.to_owned(),
            objects: 3,
            last: last.to_owned(),
            ..Warning::default()
        };
        let fleet = Fleet::default();
        for n in 0..30 {
            let own = warning(&format!("own{n}"), "a", "2030-01-03T00:00:00Z");
            let shared =
                ["a", "b"].map(|space| warning("BackOff", space, &format!("2030-01-{:02}T00:00:00Z", n % 28 + 1)));
            fleet.put(&format!("c{n}"), Numbers::default(), [own].into_iter().chain(shared).collect());
        }
        let all = fleet.status(30).warnings;
        assert_eq!(all.len(), WARNINGS, "bounded");
        assert_eq!((all[0].reason.as_str(), all[0].clusters, all[0].objects), ("BackOff", 30, 180));
        assert_eq!(all[0].last, "2030-01-28T00:00:00Z");
    }
}
