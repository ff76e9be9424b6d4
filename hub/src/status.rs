//! Writes what the session table says into `Cluster` and `Agent` objects, when it changes and never otherwise.

use crate::{
    events,
    kinds::{AgentSpec, CONNECTED, ClusterSpec, Condition},
    metrics::Metrics,
    records::{RecordError, Records},
    sessions::{Entry, Registry},
};
use moorline_apiserver::Object;
use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Changes of one moment are written once.
const GATHER: Duration = Duration::from_millis(50);
/// Attempts against writers of the same object.
const TRIES: u32 = 5;
/// Pause after a store that failed.
const PAUSE: Duration = Duration::from_secs(1);

/// Takes note of what changed. Bounded by the number of agents: a name is in the set once.
#[derive(Debug, Clone, Default)]
pub(crate) struct StatusWriter(Arc<Dirty>);

#[derive(Debug, Default)]
struct Dirty {
    names: Mutex<BTreeSet<(String, String)>>,
    wake: Notify,
}

impl StatusWriter {
    /// Something about this agent, and so about its cluster, is not as it was.
    pub fn changed(&self, cluster: &str, agent: &str) {
        self.0.names.lock().unwrap_or_else(PoisonError::into_inner).insert((cluster.to_owned(), agent.to_owned()));
        self.0.wake.notify_one();
    }

    fn take(&self) -> BTreeSet<(String, String)> {
        std::mem::take(&mut *self.0.names.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Writes until `stop`, and what is left then.
    pub async fn run(self, registry: Arc<Registry>, records: Records, metrics: Metrics, stop: CancellationToken) {
        loop {
            let last = tokio::select! {
                () = stop.cancelled() => true,
                () = self.0.wake.notified() => { tokio::time::sleep(GATHER).await; false }
            };
            let names = self.take();
            let clusters: BTreeSet<String> = names.iter().map(|(cluster, _)| cluster.clone()).collect();
            let mut failed = false;
            for (cluster, agent) in names {
                let result = write_agent(&registry, &records, &cluster, &agent).await;
                failed |= note(&metrics, result, || self.changed(&cluster, &agent));
            }
            for cluster in clusters {
                let result = write_cluster(&registry, &records, &cluster, "NoAgent", "no agent is connected").await;
                let result = tell(result, &records, &metrics).await;
                failed |= note(&metrics, result, || self.changed(&cluster, ""));
            }
            if last {
                return;
            }
            if failed {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

fn note(metrics: &Metrics, result: Result<(), RecordError>, again: impl FnOnce()) -> bool {
    let label = if result.is_ok() { "written" } else { "failed" };
    metrics.status_writes.with_label_values(&[label]).inc();
    if let Err(error) = &result {
        tracing::warn!("status not written: {error}");
        again();
    }
    result.is_err()
}

/// After a start nobody is connected, whatever the objects say.
pub(crate) async fn forget_sessions(records: &Records) -> Result<(), RecordError> {
    let nobody = Registry::default();
    for cluster in records.list::<ClusterSpec>()? {
        if connected(cluster.status.as_ref().map(|s| &s.conditions)) {
            let message = "the hub was started anew; no agent has come back yet";
            let name = &cluster.metadata.name;
            // One that cannot be written, as an older version's may be, is no reason for the others to be without their hub.
            if let Err(error) = write_cluster(&nobody, records, name, "HubRestarted", message).await {
                tracing::warn!(cluster = name, "its status says still that it is connected: {error}");
            }
        }
    }
    for agent in records.list::<AgentSpec>()? {
        if connected(agent.status.as_ref().map(|s| &s.conditions)) {
            let name = &agent.metadata.name;
            if let Err(error) = write_agent(&nobody, records, &agent.spec.cluster, name).await {
                tracing::warn!(agent = name, "its status says still that it is connected: {error}");
            }
        }
    }
    Ok(())
}

fn connected(conditions: Option<&Vec<Condition>>) -> bool {
    conditions.into_iter().flatten().any(|c| c.r#type == CONNECTED && c.status == "True")
}

async fn write_agent(registry: &Registry, records: &Records, cluster: &str, agent: &str) -> Result<(), RecordError> {
    for _ in 0..TRIES {
        let Some(mut object) = records.get::<AgentSpec>(agent)? else { return Ok(()) };
        let before = object.status.clone().unwrap_or_default();
        let newest = newest(registry.of_agent(cluster, agent));
        let status = object.status.get_or_insert_default();
        let (reason, message) = if newest.is_some() { ("AgentConnected", "") } else { ("NoSession", "not connected") };
        condition(&mut status.conditions, newest.is_some(), reason, message);
        match newest {
            Some(entry) => {
                status.carrier = Some(entry.session.carrier().to_string());
                status.connected_since = Some(time(entry.since));
                status.version = Some(entry.software.clone());
                status.certificate_expires = Some(time(entry.certificate_expires()));
                status.authority = Some(entry.authority.clone());
                status.remote_address = Some(entry.session.remote().ip().to_string());
            }
            None if before.connected_since.is_some() => {
                status.last_seen = Some(time(SystemTime::now()));
                status.connected_since = None;
                status.carrier = None;
            }
            None => {}
        }
        if object.status.as_ref() == Some(&before) {
            return Ok(());
        }
        match records.update_status(&object).await {
            Err(RecordError::Conflict) => {}
            Err(RecordError::NotFound) => return Ok(()),
            other => return other.map(drop),
        }
    }
    Err(RecordError::Conflict)
}

/// A cluster whose `Connected` has another reason than before.
struct Turned {
    cluster: Object<ClusterSpec>,
    /// The reason before; empty: there was none.
    before: String,
}

/// Makes an event, and a number, of what has turned.
async fn tell(
    written: Result<Option<Turned>, RecordError>,
    records: &Records,
    metrics: &Metrics,
) -> Result<(), RecordError> {
    let Some(Turned { cluster, before }) = written? else { return Ok(()) };
    let Some(now) = cluster.status.as_ref().and_then(|s| s.conditions.iter().find(|c| c.r#type == CONNECTED)) else {
        return Ok(());
    };
    match (before.as_str(), now.reason.as_str()) {
        (_, "NodeAgentOnly") => metrics.fallback_switches.with_label_values(&["node"]).inc(),
        ("NodeAgentOnly", "AgentConnected") => metrics.fallback_switches.with_label_values(&["agent"]).inc(),
        _ => {}
    }
    if let Some(change) = events::of_change(&before, &now.reason) {
        let message = if now.message.is_empty() { "a cluster agent carries the requests" } else { &now.message };
        events::note(records, &cluster, change, message).await;
    }
    Ok(())
}

fn reason_of(conditions: &[Condition]) -> String {
    conditions.iter().find(|c| c.r#type == CONNECTED).map_or_else(String::new, |c| c.reason.clone())
}

async fn write_cluster(
    registry: &Registry,
    records: &Records,
    cluster: &str,
    reason: &str,
    message: &str,
) -> Result<Option<Turned>, RecordError> {
    for _ in 0..TRIES {
        let Some(mut object) = records.get::<ClusterSpec>(cluster)? else { return Ok(None) };
        let before = object.status.clone().unwrap_or_default();
        let sessions = registry.carriers(cluster);
        let status = object.status.get_or_insert_default();
        let count = |node: bool| {
            let names: BTreeSet<&str> =
                sessions.iter().filter(|entry| entry.node == node).map(|entry| entry.agent.as_str()).collect();
            u32::try_from(names.len()).unwrap_or(u32::MAX)
        };
        (status.agents, status.node_agents) = (count(false), count(true));
        let healthy = sessions.iter().any(|entry| !entry.node && !*entry.doubt.borrow());
        let (reason, message) = match (sessions.is_empty(), healthy) {
            (true, _) => (reason, message),
            (false, true) => ("AgentConnected", ""),
            (false, false) if status.node_agents > 0 => {
                ("NodeAgentOnly", "no cluster agent answers; a node agent carries the requests")
            }
            (false, false) => ("AgentSilent", "the cluster agent has not answered its last probe"),
        };
        condition(&mut status.conditions, !sessions.is_empty(), reason, message);
        match newest(sessions.clone()) {
            Some(entry) => {
                status.carrier = Some(entry.session.carrier().to_string());
                status.carrier_reason = entry.why();
                status.rtt_ms = Some(u64::try_from(entry.session.rtt().as_millis()).unwrap_or(u64::MAX));
                // Not what was written before: a break may have been too short to be written.
                status.connected_since = Some(time(entry.unbroken()));
                status.agent_version = Some(entry.software.clone());
                status.remote_address = Some(entry.session.remote().ip().to_string());
                if let Some(version) = entry.fact("kubernetesVersion") {
                    status.kubernetes_version = Some(version);
                }
            }
            None if before.connected_since.is_some() => {
                status.last_seen = Some(time(SystemTime::now()));
                (status.connected_since, status.carrier, status.rtt_ms) = (None, None, None);
                status.carrier_reason = None;
            }
            None => {}
        }
        if object.status.as_ref() == Some(&before) {
            return Ok(None);
        }
        match records.update_status(&object).await {
            Err(RecordError::Conflict) => {}
            Err(RecordError::NotFound) => return Ok(None),
            Err(other) => return Err(other),
            Ok(cluster) => {
                let (before, now) = (reason_of(&before.conditions), cluster.status.as_ref());
                let turned = now.is_some_and(|now| reason_of(&now.conditions) != before);
                return Ok(turned.then_some(Turned { cluster, before }));
            }
        }
    }
    Err(RecordError::Conflict)
}

fn newest(sessions: Vec<Arc<Entry>>) -> Option<Arc<Entry>> {
    sessions.into_iter().max_by_key(|entry| (!entry.node, entry.since))
}

fn condition(all: &mut Vec<Condition>, connected: bool, reason: &str, message: &str) {
    let status = if connected { "True" } else { "False" };
    let now = || time(SystemTime::now());
    match all.iter_mut().find(|c| c.r#type == CONNECTED) {
        // While nobody is connected the first cause stays: the later ones follow from it.
        Some(c) if c.status == status && !connected => {}
        Some(c) => {
            if c.status != status {
                c.last_transition_time = now();
            }
            (c.status, c.reason, c.message) = (status.to_owned(), reason.to_owned(), message.to_owned());
        }
        None => all.push(Condition {
            r#type: CONNECTED.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message: message.to_owned(),
            last_transition_time: now(),
        }),
    }
}

/// RFC 3339, whole seconds, as Kubernetes writes times.
pub(crate) fn time(at: SystemTime) -> String {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::UNIX_EPOCH).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_changes_its_time_only_when_it_turns() {
        let mut all = Vec::new();
        condition(&mut all, false, "NoAgent", "none");
        all[0].last_transition_time = "then".to_owned();
        condition(&mut all, false, "HubRestarted", "new");
        assert_eq!((all[0].last_transition_time.as_str(), all[0].reason.as_str()), ("then", "NoAgent"));
        condition(&mut all, true, "AgentConnected", "");
        assert_ne!(all[0].last_transition_time, "then");
        assert_eq!((all.len(), all[0].reason.as_str()), (1, "AgentConnected"));
        all[0].last_transition_time = "then".to_owned();
        condition(&mut all, true, "NodeAgentOnly", "");
        assert_eq!((all[0].last_transition_time.as_str(), all[0].reason.as_str()), ("then", "NodeAgentOnly"));
    }
}
