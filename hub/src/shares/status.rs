//! What the status of exports and imports says, and that it is written when it changes.

use super::{Shares, balance::Seen, limits, merge};
use crate::{
    kinds::{CONFLICT, Condition, Protocol, READY, ServiceExportSpec, ServiceImportSpec, VALID},
    records::{RecordError, Records},
    status::time,
};
use moorline_apiserver::{Object, Spec};
use moorline_authz::access::{Export, Import, Shares as Known};
use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};
use tokio_util::sync::CancellationToken;

/// Changes of one moment are written once.
const GATHER: Duration = Duration::from_millis(50);
/// Attempts against writers of the same object.
const TRIES: u32 = 5;

/// A verdict: whether it is so, one word, and words.
type Verdict = (Is, &'static str, String);

/// The status of a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Is {
    True,
    False,
    Unknown,
}

impl Is {
    fn name(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

fn yes(reason: &'static str) -> Verdict {
    (Is::True, reason, String::new())
}

fn no(reason: &'static str, message: impl Into<String>) -> Verdict {
    (Is::False, reason, message.into())
}

/// Reasons that agents give, as far as they are known here: labels of a status are a bounded set.
fn known_reason(reason: &str) -> &'static str {
    const ALL: [&str; 13] = [
        "PolicyForbids",
        "RBACForbids",
        "NameTaken",
        "NoNamespace",
        "ClusterFailed",
        "Forbidden",
        "NotFound",
        "NoEndpoints",
        "ConnectionRefused",
        "Timeout",
        "BadGateway",
        "AgentTooOld",
        "ServiceUnavailable",
    ];
    ALL.into_iter().find(|known| *known == reason).unwrap_or("Failed")
}

impl Shares {
    /// Writes until `stop`.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut known = self.known.subscribe();
        loop {
            let some = {
                let known = known.borrow_and_update();
                !(known.exports.is_empty() && known.imports.is_empty())
            };
            let look = async {
                if !some {
                    return std::future::pending().await;
                }
                tokio::time::sleep(limits::LOOK).await;
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.wake.notified() => tokio::time::sleep(GATHER).await,
                changed = known.changed() => if changed.is_err() { return },
                () = look => {}
            }
            let now = Arc::clone(&known.borrow_and_update());
            self.write(&now).await;
        }
    }

    async fn write(&self, known: &Known) {
        for (name, export) in &known.exports {
            let importers =
                known.imports.values().filter(|import| import.means(export) && export.admits(&import.cluster));
            let clusters = sorted(importers.map(|import| import.cluster.clone()));
            let ready = self.judge_export(name, export);
            let valid = self.judge_presence(name, export);
            let conflict = match merge::conflict(known, export) {
                Some((reason, words)) => (Is::True, reason, words),
                None => no("NoConflicts", ""),
            };
            let written = put::<ServiceExportSpec>(&self.records, name, |status| {
                condition(&mut status.conditions, READY, &ready);
                condition(&mut status.conditions, VALID, &valid);
                condition(&mut status.conditions, CONFLICT, &conflict);
                status.importers.clone_from(&clusters);
            });
            self.note(name, written.await);
        }
        for (name, import) in &known.imports {
            let (verdict, address) = self.judge_import(known, name, import);
            let clusters = sorted(known.admitted(import).map(|(_, export)| export.cluster.clone()));
            let ports = merge::ports(known, import);
            let written = put::<ServiceImportSpec>(&self.records, name, |status| {
                condition(&mut status.conditions, READY, &verdict);
                status.address.clone_from(&address);
                status.ports.clone_from(&ports);
                status.clusters.clone_from(&clusters);
            });
            self.note(name, written.await);
        }
    }

    /// A store that fails is asked again with the next look.
    fn note(&self, name: &str, written: Result<bool, RecordError>) {
        match written {
            Ok(true) => self.metrics.status_writes.with_label_values(&["written"]).inc(),
            Ok(false) => {}
            Err(error) => {
                self.metrics.status_writes.with_label_values(&["failed"]).inc();
                tracing::warn!(name, "status of a shared service not written: {error}");
            }
        }
    }

    fn judge_export(&self, name: &str, export: &Export) -> Verdict {
        let cluster = &export.cluster;
        if !self.records.cluster_exists(cluster) {
            return no("NoCluster", format!("there is no cluster {cluster:?}"));
        }
        if export.importers.is_empty() {
            return no("NoImporters", "spec.importers names no cluster: nobody may import it");
        }
        if !self.way(name, export).connected {
            return no("NotConnected", format!("no agent of cluster {cluster:?} is connected"));
        }
        match self.memory().seen(name) {
            Seen::Never | Seen::Well => yes("Exported"),
            Seen::Ill { reason, message } => no(known_reason(&reason), message),
        }
    }

    /// Whether there is what is exported. Only connections tell: nobody at the hub looks into clusters.
    fn judge_presence(&self, name: &str, export: &Export) -> Verdict {
        if !self.records.cluster_exists(&export.cluster) {
            return no("NoCluster", format!("there is no cluster {:?}", export.cluster));
        }
        match self.memory().seen(name) {
            Seen::Well => yes("Valid"),
            Seen::Ill { reason, .. } if reason == "NoEndpoints" || reason == "ConnectionRefused" => yes("Valid"),
            Seen::Ill { reason, message } if reason == "NotFound" => no("NoService", message),
            Seen::Ill { .. } | Seen::Never => {
                (Is::Unknown, "Pending", "no connection has come to the service yet, or none came so far".to_owned())
            }
        }
    }

    fn judge_import(&self, known: &Known, name: &str, import: &Import) -> (Verdict, Option<String>) {
        let cluster = &import.cluster;
        let wanted = || format!("{}/{}", import.from_namespace, import.from_service);
        if !self.records.cluster_exists(cluster) {
            return (no("NoCluster", format!("there is no cluster {cluster:?}")), None);
        }
        if known.meant(import).next().is_none() {
            let where_from =
                if import.from_clusters.is_empty() { String::new() } else { " by these clusters".to_owned() };
            return (no("NoExport", format!("no ServiceExport of {}{where_from}", wanted())), None);
        }
        if known.admitted(import).next().is_none() {
            let names: Vec<&str> = known.meant(import).map(|(name, _)| name.as_str()).collect();
            let names = names.join(", ");
            return (
                no("NotAllowed", format!("spec.importers of ServiceExport {names} does not name {cluster:?}")),
                None,
            );
        }
        let place =
            known.imports.iter().filter(|(_, other)| other.cluster == *cluster).position(|(other, _)| other == name);
        if place.is_some_and(|place| limits::IMPORTS <= place) {
            return (no("TooMany", format!("a cluster imports {} services at most", limits::IMPORTS)), None);
        }
        let agents = self.importing(cluster);
        let told: Vec<_> = {
            let importers = self.importers();
            let all = importers.get(cluster).into_iter().flatten().filter(|(agent, _)| agents.contains(agent));
            all.flat_map(|(_, agent)| &agent.told).filter(|told| told.import == name).cloned().collect()
        };
        if agents.is_empty() {
            let message = format!(
                "no agent of cluster {cluster:?} imports: start it with --imports-address, its pod's own address"
            );
            return (no("NoImporter", message), None);
        }
        let datagrams = merge::ports(known, import).iter().any(|port| port.protocol == Protocol::Udp);
        if datagrams && !self.carries_datagrams(cluster) {
            let message = "an agent of this cluster that imports carries no datagrams: upgrade it, or export no UDP";
            return (no("AgentTooOld", message), None);
        }
        let Some(address) = told.iter().find_map(|told| told.address).map(|address| address.to_string()) else {
            let verdict = match told.first() {
                Some(told) => no(known_reason(&told.reason), plain(&told.message)),
                None => no("Pending", "its agents have not made the service yet"),
            };
            return (verdict, None);
        };
        let ways: Vec<_> =
            known.admitted(import).map(|(name, export)| (name, export, self.way(name, export))).collect();
        if ways.iter().all(|(_, _, way)| !way.connected) {
            return (no("NotConnected", "none of the clusters that export it is connected"), Some(address));
        }
        let now = Instant::now();
        let ill: Vec<_> = ways.iter().filter(|(name, _, _)| !self.memory().look(name, now).0).collect();
        if ill.len() == ways.len() {
            let words = ill.iter().filter_map(|(name, export, _)| match self.memory().seen(name) {
                Seen::Ill { reason, .. } => Some(format!("{}: {}", export.cluster, known_reason(&reason))),
                Seen::Never | Seen::Well => None,
            });
            return (no("NoneReachable", words.collect::<Vec<_>>().join(", ")), Some(address));
        }
        (yes("Imported"), Some(address))
    }
}

fn sorted(names: impl Iterator<Item = String>) -> Vec<String> {
    let mut names: Vec<String> = names.collect();
    names.sort();
    names.dedup();
    names
}

/// What an agent wrote, as it may stand in a status.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect()
}

/// Sets a condition; its time is that of the last turn.
fn condition(all: &mut Vec<Condition>, kind: &str, (is, reason, message): &Verdict) {
    let status = is.name();
    let found = match all.iter_mut().position(|c| c.r#type == kind) {
        Some(at) => all.get_mut(at),
        None => {
            all.push(Condition { r#type: kind.to_owned(), ..Condition::default() });
            all.last_mut()
        }
    };
    if let Some(found) = found {
        if found.status != status {
            found.last_transition_time = time(SystemTime::now());
        }
        (found.status, found.reason, found.message) = (status.to_owned(), (*reason).to_owned(), message.clone());
    }
}

/// Writes a status if it is not so already. Whether it was written.
async fn put<S: Spec>(records: &Records, name: &str, change: impl Fn(&mut S::Status)) -> Result<bool, RecordError>
where
    S::Status: Default + Clone + PartialEq,
{
    for _ in 0..TRIES {
        let Some(mut object): Option<Object<S>> = records.get::<S>(name)? else { return Ok(false) };
        let before = object.status.clone();
        change(object.status.get_or_insert_default());
        if object.status == before {
            return Ok(false);
        }
        match records.update_status(&object).await {
            Err(RecordError::Conflict) => {}
            Err(RecordError::NotFound) => return Ok(false),
            other => return other.map(|_| true),
        }
    }
    Err(RecordError::Conflict)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_keeps_its_time_until_it_turns() {
        let mut all = Vec::new();
        condition(&mut all, READY, &no("NoExport", "a"));
        all[0].last_transition_time = "then".to_owned();
        condition(&mut all, READY, &no("NotAllowed", "b"));
        assert_eq!((all[0].last_transition_time.as_str(), all[0].reason.as_str()), ("then", "NotAllowed"));
        condition(&mut all, READY, &yes("Imported"));
        assert_ne!(all[0].last_transition_time, "then");
        condition(&mut all, CONFLICT, &no("NoConflicts", ""));
        assert_eq!((all.len(), all[0].status.as_str(), all[1].status.as_str()), (2, "True", "False"));
    }
}
