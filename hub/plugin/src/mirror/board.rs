//! How far each cluster is: one board a plugin, written by the clusters' halves and read by the hub-wide one.

use super::{
    Kept, Key, Mirror, Objects, Report,
    pace::Pace,
    plan::why_unknown,
    said::{as_condition, clusters_of, says_nothing},
    unsure::Unsure,
};
use crate::{ClusterFacts, ClusterView, Condition, HubView, PluginError, condition::change_condition, limits};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until},
};

/// How one object of the hub fares in one cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// As it is wanted.
    Synced,
    /// Nothing has been heard yet, or the cluster is not connected.
    Waiting,
    /// Why not.
    Failed(String),
}

/// How one object of the hub fares in all clusters that it is meant for: a part of its status.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Tally {
    /// Clusters that it is meant for.
    pub clusters: u32,
    /// Clusters that have it.
    pub synced: u32,
    /// Clusters that refuse it.
    pub failed: u32,
    /// The first of those, and why.
    pub failures: Vec<String>,
}

impl Tally {
    /// Takes one cluster into account.
    pub fn add(&mut self, cluster: &str, outcome: Outcome) {
        self.clusters += 1;
        match outcome {
            Outcome::Synced => self.synced += 1,
            Outcome::Waiting => {}
            Outcome::Failed(why) => {
                self.failed += 1;
                if self.failures.len() < limits::NAMED {
                    self.failures.push(format!("{cluster}: {why}").chars().take(limits::MESSAGE).collect());
                }
            }
        }
    }
}

#[derive(Debug, Default)]
struct Entry {
    wanted: Arc<Objects>,
    report: Report,
}

/// How far each cluster is.
#[derive(Debug, Default)]
pub struct Board {
    clusters: Mutex<BTreeMap<String, Entry>>,
    /// What may be on its way into clusters, by the uid of theirs.
    unsure: Mutex<BTreeMap<String, Unsure>>,
    changed: Notify,
}

/// Takes a cluster off the board when its half ends, however it ends.
struct Listed<'a>(&'a Board, &'a str);
impl Drop for Listed<'_> {
    fn drop(&mut self) {
        self.0.lock().remove(self.1);
        self.0.changed.notify_one();
    }
}

impl Board {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.clusters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What earlier halves of a cluster may have on its way.
    pub(super) fn unsure(&self, uid: &str) -> Unsure {
        let mut all = self.unsure.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, unsure| !unsure.is_over());
        all.entry(uid.to_owned()).or_default().clone()
    }

    /// Resolves when something has changed since it last did.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// How those objects fare in a cluster that come of one object of the hub.
    pub fn outcome(&self, cluster: &str, of: impl Fn(&Key) -> bool) -> Outcome {
        let all = self.lock();
        let Some(entry) = all.get(cluster) else { return Outcome::Waiting };
        if let Some(why) = &entry.report.trouble {
            return Outcome::Failed(why.clone());
        }
        if let Some((key, why)) = entry.report.failed.iter().find(|(key, _)| of(key)) {
            return Outcome::Failed(format!("{key}: {why}"));
        }
        match &entry.report.of {
            // Not whether it is the same list: what was wanted may have come back to what it was before anybody looked.
            Some(seen) if *seen == entry.wanted => Outcome::Synced,
            _ => Outcome::Waiting,
        }
    }

    /// Whether a cluster is told to have an object: `Some(false)`, that it must not; `None`, nothing.
    pub fn wanted(&self, cluster: &str, key: &Key) -> Option<bool> {
        match self.lock().get(cluster)?.wanted.get(key)? {
            &super::ABSENT => Some(false),
            object => why_unknown(object).is_none().then_some(true),
        }
    }

    /// Keeps one cluster as `desired` says of the newest `inputs`, and tells of it on this board and in a condition of
    /// the cluster's object. The plugin's [`crate::Plugin::run_cluster`].
    ///
    /// # Errors
    /// The hub's API failed.
    pub async fn keep<T: Send + Sync + 'static>(
        &self,
        (hub, cluster): (&HubView, &ClusterView),
        (kinds, condition): (&'static [Kept], &'static str),
        mut inputs: watch::Receiver<Option<Arc<T>>>,
        desired: impl Fn(&T, &ClusterFacts) -> Objects + Send,
    ) -> Result<(), PluginError> {
        let mut clusters = hub.clusters.clone();
        // Another one may have its name by now.
        let mine = |facts: &&Arc<ClusterFacts>| facts.uid == cluster.uid;
        // In a cluster that is being removed nothing is wanted, whatever the inputs are.
        let make = |inputs: Option<&T>, clusters: &crate::Clusters| {
            let wish = |facts: &Arc<ClusterFacts>| match facts.leaving {
                true => Some(Objects::new()),
                false => inputs.map(|inputs| desired(inputs, facts)),
            };
            clusters.get(&cluster.name).filter(mine).and_then(wish).map(Arc::new)
        };
        // Nothing is taken away before it is known what is wanted, and of which cluster.
        let begun = loop {
            let (now, facts) = (inputs.borrow_and_update().clone(), Arc::clone(&clusters.borrow_and_update()));
            if let Some(wish) = make(now.as_deref(), &facts) {
                break wish;
            }
            let changed = tokio::select! {
                changed = inputs.changed() => changed,
                changed = clusters.changed() => changed,
            };
            changed.map_err(|_| PluginError::Other("nothing to go by".to_owned()))?;
        };
        let _listed = Listed(self, &cluster.name);
        self.lock().insert(cluster.name.clone(), Entry { wanted: Arc::clone(&begun), report: Report::default() });
        let (wish, wanted) = watch::channel(begun);
        let (report, mut reports) = watch::channel(Report::default());
        let (said, may_make) = watch::channel(false);
        let mirror = Mirror::new(hub.plugin, cluster, kinds, hub.metrics.clone()).after(self.unsure(&cluster.uid));
        let mirror = mirror.run((wanted, may_make), |now| {
            report.send_replace(now.clone());
            // What is being made is no news to who looks at what there is.
            let now = Report { making: false, ..now.clone() };
            if let Some(entry) = self.lock().get_mut(&cluster.name)
                && entry.report != now
            {
                entry.report = now;
                self.changed.notify_one();
            }
        });
        let follow = async {
            loop {
                tokio::select! {
                    changed = inputs.changed() => if changed.is_err() { return Ok(()) },
                    changed = clusters.changed() => if changed.is_err() { return Ok(()) },
                }
                let (now, facts) = (inputs.borrow_and_update().clone(), Arc::clone(&clusters.borrow_and_update()));
                let Some(new) = make(now.as_deref(), &facts) else { continue };
                if *wish.borrow() == new {
                    continue;
                }
                if let Some(entry) = self.lock().get_mut(&cluster.name) {
                    entry.wanted = Arc::clone(&new);
                }
                wish.send_replace(new);
            }
        };
        let leaves =
            |all: &Arc<crate::Clusters>| all.get(&cluster.name).filter(mine).is_some_and(|facts| facts.leaving);
        let tell = async {
            let api = clusters_of(hub);
            let (mut all, mut leaving) = (hub.clusters.clone(), false);
            let (mut pace, mut last) = (Pace::new(Instant::now()), None);
            loop {
                tokio::select! {
                    changed = reports.changed() => if changed.is_err() { return Ok(()) },
                    left = all.wait_for(leaves), if !leaving => leaving = left.is_ok(),
                }
                let now = reports.borrow_and_update().clone();
                let mut shape = as_condition(condition, &now, leaving, None);
                shape.last_transition_time.clear();
                // What is written hangs on these besides.
                let shape = Some((shape, now.of.is_none(), leaving));
                if now == Report::default() || last == shape {
                    continue;
                }
                last = shape;
                // From here on nothing is made until what is written says that something may be there.
                said.send_replace(false);
                let new = |before: Option<&Condition>| as_condition(condition, &now, leaving, before);
                let something =
                    change_condition(&api, &cluster.name, condition, new).await?.is_some_and(|new| !says_nothing(&new));
                said.send_replace(something);
                let mut first = reports.clone();
                tokio::select! {
                    () = sleep_until(pace.told(Instant::now())) => {}
                    // It waits for this to be told.
                    _ = first.wait_for(|report| report.making), if !something => {}
                }
            }
        };
        tokio::select! {
            ended = mirror => ended,
            ended = follow => ended,
            ended = tell => ended,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn what_is_wanted_again_as_before_is_there() {
        let board = Board::default();
        let wants = |object: Value| {
            let key = Key { kind: "Role", namespace: String::new(), name: "r".to_owned() };
            Arc::new(Objects::from([(key, object)]))
        };
        let report = Report { of: Some(wants(Value::Null)), synced: 1, ..Report::default() };
        let entry = |wanted| Entry { wanted, report: report.clone() };
        board.lock().insert("edge1".to_owned(), entry(wants(true.into())));
        assert_eq!(board.outcome("edge1", |_| true), Outcome::Waiting);
        board.lock().insert("edge1".to_owned(), entry(wants(Value::Null)));
        assert_eq!(board.outcome("edge1", |_| true), Outcome::Synced, "it was looked at, and told");
    }
}
