//! Whether a cluster's agents are as new as the hub.

use crate::{agents, clusters};
use futures_util::StreamExt;
use kube::{ResourceExt, api::DynamicObject, runtime::WatchStreamExt, runtime::watcher};
use moorline_plugin::{Condition, HubView, PluginError, set_condition};
use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};
use tokio::time::{Instant, sleep_until};

/// The condition of a Cluster.
pub const CONDITION: &str = "AgentUpToDate";
/// When a cluster that could not be told is told again.
const AGAIN: Duration = Duration::from_secs(5);
/// Agents that a message names; the others are counted.
const NAMED: usize = 3;
/// The hub's version, which its agents have too when they are up to date.
const OURS: &str = env!("CARGO_PKG_VERSION");

/// What counts of an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    cluster: String,
    version: String,
    connected: bool,
}

impl Seen {
    fn of(object: &DynamicObject) -> Self {
        let text = |pointer| object.data.pointer(pointer).and_then(|value| value.as_str()).unwrap_or_default();
        Self {
            cluster: text("/spec/cluster").to_owned(),
            version: text("/status/version").rsplit('/').next().unwrap_or_default().to_owned(),
            connected: !text("/status/connectedSince").is_empty(),
        }
    }
}

/// `1.10.2` as numbers; what follows a `-` does not count.
fn numbers(version: &str) -> Vec<u64> {
    let plain = version.split(['-', '+']).next().unwrap_or_default();
    plain.split('.').map(|part| part.parse().unwrap_or(0)).collect()
}

/// What is to be said of a cluster whose connected agents have these versions.
fn judge(agents: &BTreeMap<&str, &str>, ours: &str) -> Condition {
    if agents.is_empty() {
        let mut unknown = Condition::new(CONDITION, false, "NotConnected", "no agent is connected");
        "Unknown".clone_into(&mut unknown.status);
        return unknown;
    }
    let named = |wanted: Ordering| {
        let all: Vec<_> = agents.iter().filter(|(_, v)| numbers(v).cmp(&numbers(ours)) == wanted).collect();
        let first: Vec<_> = all.iter().take(NAMED).map(|(name, version)| format!("{name} runs {version}")).collect();
        let more = all.len().saturating_sub(NAMED);
        let more = if more == 0 { String::new() } else { format!(" and {more} more") };
        (!all.is_empty()).then(|| format!("{}{more}", first.join(", ")))
    };
    match (named(Ordering::Less), named(Ordering::Greater)) {
        (Some(older), _) => Condition::new(CONDITION, false, "Older", format!("{older}; the hub runs {ours}")),
        (None, Some(newer)) => {
            Condition::new(CONDITION, false, "Newer", format!("{newer}; the hub runs {ours}: upgrade it first"))
        }
        (None, None) => Condition::new(CONDITION, true, "SameVersion", format!("{} agents run {ours}", agents.len())),
    }
}

/// Tells of every cluster, when something changes.
pub(crate) async fn run(hub: &HubView) -> Result<(), PluginError> {
    let mut changes = watcher(agents(hub), watcher::Config::default()).default_backoff().boxed();
    let mut all = hub.clusters.clone();
    let (mut known, mut listing) = (HashMap::<String, Seen>::new(), HashMap::new());
    let mut told = BTreeMap::<String, (String, Condition)>::new();
    let (mut listed, mut owed, mut again) = (false, BTreeSet::new(), Instant::now());
    loop {
        let mut touched = BTreeSet::new();
        tokio::select! {
            () = sleep_until(again), if !owed.is_empty() => touched.append(&mut owed),
            changed = all.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                touched.extend(all.borrow_and_update().keys().cloned());
            }
            event = changes.next() => match event {
                None => return Err(PluginError::Other("the watch of agents ended".to_owned())),
                Some(Ok(watcher::Event::Init)) => listing.clear(),
                Some(Ok(watcher::Event::InitApply(one))) => drop(listing.insert(one.name_any(), Seen::of(&one))),
                Some(Ok(watcher::Event::InitDone)) => {
                    (known, listed) = (std::mem::take(&mut listing), true);
                    touched.extend(all.borrow().keys().cloned());
                }
                Some(Ok(watcher::Event::Apply(one))) => {
                    let seen = Seen::of(&one);
                    touched.insert(seen.cluster.clone());
                    known.insert(one.name_any(), seen);
                }
                Some(Ok(watcher::Event::Delete(one))) => {
                    touched.extend(known.remove(&one.name_any()).map(|seen| seen.cluster));
                }
                Some(Err(error)) => tracing::debug!("agents are asked for again after: {error}"),
            },
        }
        if !listed {
            continue;
        }
        let now = all.borrow().clone();
        told.retain(|name, _| now.contains_key(name));
        let mut by_cluster: HashMap<&str, BTreeMap<&str, &str>> = HashMap::new();
        for (name, seen) in known.iter().filter(|(_, seen)| seen.connected && touched.contains(&seen.cluster)) {
            by_cluster.entry(&seen.cluster).or_default().insert(name, &seen.version);
        }
        for name in &touched {
            let Some(facts) = now.get(name) else { continue };
            let condition = judge(by_cluster.get(name.as_str()).unwrap_or(&BTreeMap::new()), OURS);
            let same = |(uid, old): &(String, Condition)| {
                *uid == facts.uid && (&old.status, &old.message) == (&condition.status, &condition.message)
            };
            if !told.get(name).is_some_and(same) {
                // What one cluster's object does not take, the others' need not wait for.
                match set_condition(&clusters(hub), name, condition.clone()).await {
                    Ok(()) => drop(told.insert(name.clone(), (facts.uid.clone(), condition))),
                    Err(error) => {
                        tracing::debug!(cluster = name, "not told of its agents' versions yet: {error}");
                        if owed.is_empty() {
                            again = Instant::now() + AGAIN;
                        }
                        owed.insert(name.clone());
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers_and_the_first_few_are_named() {
        let is = |agents: &[(&str, &str)]| {
            let condition = judge(&agents.iter().copied().collect(), "1.10.0");
            (condition.status, condition.reason, condition.message)
        };
        assert_eq!(is(&[]).0, "Unknown");
        let (status, reason, _) = is(&[("a", "1.10.0"), ("b", "1.10.0-rc.1")]);
        assert_eq!((status.as_str(), reason.as_str()), ("True", "SameVersion"));
        let (status, reason, message) =
            is(&[("a", "1.9.9"), ("b", "1.9.9"), ("c", "0"), ("d", ""), ("e", "1.10.0"), ("f", "2.0.0")]);
        assert_eq!((status.as_str(), reason.as_str()), ("False", "Older"));
        assert_eq!(message, "a runs 1.9.9, b runs 1.9.9, c runs 0 and 1 more; the hub runs 1.10.0");
        assert_eq!(is(&[("a", "1.11.0")]).1, "Newer");
    }
}
