//! How it stands with the clusters' own endpoints, as conditions of their `Cluster` objects and as numbers.
//!
//! Written when it changes and never otherwise; no message has a time that moves.

use crate::{
    kinds::{BUNDLE_CURRENT, ClusterSpec, Condition, DirectStatus, ENDPOINT_READY},
    metrics::Metrics,
    records::{RecordError, Records},
    signing::now,
    status::time,
};
use serde::Deserialize;
use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};
use tokio::sync::Mutex as AsyncMutex;

/// Tries to write a status that others write too.
const TRIES: u32 = 5;
/// How often clusters that nobody hears of are looked at.
const ROUND: Duration = Duration::from_secs(30);
/// How long an endpoint may take to use what was delivered.
const BEHIND: Duration = Duration::from_secs(15);
/// What the numbers say of each cluster.
const STATES: [&str; 5] = ["current", "late", "refused", "gone", "expired"];

/// How it stands with a cluster's bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Holding {
    /// It has what the hub would say now.
    Current,
    /// It does not take it, in the agent's words.
    Refused(String),
    /// It could not be brought there.
    Late,
    /// No agent is connected that could be given one.
    Gone,
    /// And the time of the last one is over.
    Expired,
}

impl Holding {
    fn label(&self) -> &'static str {
        match self {
            Self::Current => STATES[0],
            Self::Late => STATES[1],
            Self::Refused(_) => STATES[2],
            Self::Gone => STATES[3],
            Self::Expired => STATES[4],
        }
    }

    /// Status, reason and message of `BundleCurrent`.
    fn condition(&self) -> (&'static str, &'static str, String) {
        let words = str::to_owned;
        match self {
            Self::Current => ("True", "Delivered", String::new()),
            Self::Late => ("False", "NotDelivered", words("the agent does not answer; it is tried again")),
            Self::Refused(why) => ("False", "Refused", format!("the cluster did not take its bundle: {why}")),
            Self::Gone => {
                let message =
                    "no agent that keeps bundles is connected; users are let in by the last one, until bundleExpires";
                ("Unknown", "AgentGone", words(message))
            }
            Self::Expired => {
                let message = "no agent that keeps bundles is connected, and the last one is over: nobody is let in but whom the owner named";
                ("False", "Expired", words(message))
            }
        }
    }
}

/// What an agent says of the endpoints beside it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Stand {
    serial: Option<u64>,
    endpoints: Vec<InUse>,
    secret: Option<String>,
    /// Recordings that wait to be taken.
    pub(super) recordings: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct InUse {
    mode: String,
    serial: u64,
    current: bool,
}

impl Stand {
    /// Status, reason and message of `EndpointReady`. `lately`: a bundle was delivered so lately that it may not be in use.
    fn condition(&self, serial: u64, lately: bool) -> (&'static str, &'static str, String) {
        let clean = |text: &str| -> String { text.chars().filter(|c| !c.is_control()).take(200).collect() };
        let mut modes: Vec<String> = self.endpoints.iter().map(|one| clean(&one.mode)).collect();
        modes.dedup();
        if self.endpoints.is_empty() {
            let message = "the agent keeps bundles, and no endpoint uses them: moorline endpoint --mode proxy";
            return ("False", "NoEndpoint", message.to_owned());
        }
        if let Some(one) = self.endpoints.iter().find(|one| !one.current) {
            return (
                "False",
                "BundleExpired",
                format!("the {} has no bundle whose time is not over", clean(&one.mode)),
            );
        }
        if let Some(one) = self.endpoints.iter().find(|one| one.serial < serial && !lately) {
            return (
                "False",
                "Behind",
                format!("the {} does not use the newest bundle; see its log", clean(&one.mode)),
            );
        }
        match self.secret.as_deref() {
            None | Some("ok") => ("True", "Serving", modes.join(", ")),
            Some(wrong) => ("True", "NotInSecret", format!("{}; {}", modes.join(", "), clean(wrong))),
        }
    }
}

/// What was written of one cluster.
#[derive(Debug, Clone, Default, PartialEq)]
struct Written {
    holding: Option<Holding>,
    direct: DirectStatus,
    /// Status, reason and message.
    ready: Option<(&'static str, &'static str, String)>,
    /// When a bundle was delivered.
    delivered: Option<Instant>,
}

/// Knows what was written, so that nothing is written twice. Of one cluster one thing is written at a time, so that what was
/// written last is what is known.
pub(super) struct Board {
    records: Records,
    metrics: Metrics,
    written: Mutex<HashMap<String, Arc<AsyncMutex<Written>>>>,
    looked: Mutex<Option<Instant>>,
}

impl Board {
    pub fn new(records: Records, metrics: Metrics) -> Self {
        Self { records, metrics, written: Mutex::default(), looked: Mutex::default() }
    }

    fn written(&self) -> MutexGuard<'_, HashMap<String, Arc<AsyncMutex<Written>>>> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A cluster took its bundle, and said where its endpoint is.
    pub async fn note(&self, cluster: &str, direct: DirectStatus, holding: Holding) {
        self.change(cluster, |written| {
            (written.direct, written.holding, written.delivered) = (direct, Some(holding), Some(Instant::now()));
        })
        .await;
    }

    /// A cluster did not.
    pub async fn holds(&self, cluster: &str, holding: Holding) {
        self.change(cluster, |written| written.holding = Some(holding)).await;
    }

    /// What its agent says of its endpoints; `serial` is what it was given.
    pub async fn stands(&self, cluster: &str, stand: &Stand, serial: u64) {
        self.change(cluster, |written| {
            let lately = written.delivered.is_some_and(|at| at.elapsed() < BEHIND);
            written.ready = Some(stand.condition(serial, lately));
        })
        .await;
    }

    /// Now and then, and when one is `gone`: clusters that had a bundle and whose agents are gone. `here` are those of
    /// which some was there at `since`.
    pub async fn look(&self, gone: bool, here: &HashSet<String>, since: Instant) {
        {
            let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
            if looked.is_some_and(|at| since < at + ROUND) && !gone {
                return;
            }
            *looked = Some(since);
        }
        let Ok(all) = self.records.list::<ClusterSpec>() else { return };
        let mut names = HashSet::new();
        for cluster in all {
            let name = cluster.metadata.name;
            names.insert(name.clone());
            let Some(direct) = cluster.status.and_then(|status| status.direct) else { continue };
            if here.contains(name.as_str()) {
                continue;
            }
            let ends = direct.bundle_expires.parse::<jiff::Timestamp>().map_or(0, |at| at.as_second());
            // The hour in which it ends counts: the object has no more than that.
            let over = u64::try_from(ends).unwrap_or_default() + 3600 <= now();
            let holding = if over { Holding::Expired } else { Holding::Gone };
            self.change(&name, |written| {
                // It came back meanwhile.
                if written.delivered.is_some_and(|at| since <= at) {
                    return;
                }
                let (status, reason, message) = holding.condition();
                (written.direct, written.holding) = (direct, Some(holding));
                written.ready = Some((if over { status } else { "Unknown" }, reason, message));
            })
            .await;
        }
        self.written().retain(|name, _| names.contains(name));
        let all: Vec<_> = self.written().values().cloned().collect();
        let mut held = Vec::new();
        for one in all {
            held.extend(one.lock().await.holding.as_ref().map(Holding::label));
        }
        for state in STATES {
            let count = held.iter().filter(|label| **label == state).count();
            self.metrics.endpoints.with_label_values(&[state]).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    async fn change(&self, cluster: &str, change: impl FnOnce(&mut Written)) {
        let one = Arc::clone(self.written().entry(cluster.to_owned()).or_default());
        let mut written = one.lock().await;
        let mut after = written.clone();
        change(&mut after);
        let same = Written { delivered: after.delivered, ..written.clone() } == after;
        if !same && let Err(error) = self.write(cluster, &after).await {
            tracing::warn!(cluster, "status not written: {error}");
            return;
        }
        *written = after;
    }

    async fn write(&self, cluster: &str, written: &Written) -> Result<(), RecordError> {
        for _ in 0..TRIES {
            let Some(mut object) = self.records.get::<ClusterSpec>(cluster)? else { return Ok(()) };
            let before = object.status.clone();
            let status = object.status.get_or_insert_default();
            status.direct = Some(written.direct.clone())
                .filter(|direct| *direct != DirectStatus::default())
                .or(status.direct.take());
            if let Some(holding) = &written.holding {
                set(&mut status.conditions, BUNDLE_CURRENT, holding.condition());
            }
            if let Some(ready) = &written.ready {
                set(&mut status.conditions, ENDPOINT_READY, ready.clone());
            }
            if object.status == before {
                return Ok(());
            }
            match self.records.update_status(&object).await {
                Err(RecordError::Conflict) => {}
                Err(RecordError::NotFound) => return Ok(()),
                other => return other.map(drop),
            }
        }
        Err(RecordError::Conflict)
    }
}

fn set(all: &mut Vec<Condition>, name: &str, (status, reason, message): (&str, &str, String)) {
    let found = all.iter().position(|one| one.r#type == name).unwrap_or_else(|| {
        all.push(Condition { r#type: name.to_owned(), ..Condition::default() });
        all.len() - 1
    });
    if let Some(one) = all.get_mut(found) {
        if one.status != status {
            one.last_transition_time = time(SystemTime::now());
        }
        (one.status, one.reason, one.message) = (status.to_owned(), reason.to_owned(), message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::tests::records;
    use moorline_apiserver::Object;

    fn stand(endpoints: &[(u64, bool)]) -> Stand {
        let one = |(serial, current): &(u64, bool)| InUse { mode: "proxy".into(), serial: *serial, current: *current };
        Stand { serial: Some(7), endpoints: endpoints.iter().map(one).collect(), secret: None, recordings: 0 }
    }

    #[test]
    fn an_endpoint_is_ready_when_it_uses_what_was_delivered() {
        let reason = |stand: &Stand, lately| stand.condition(7, lately).1;
        assert_eq!(reason(&stand(&[]), false), "NoEndpoint");
        assert_eq!(reason(&stand(&[(7, true)]), false), "Serving");
        assert_eq!(reason(&stand(&[(9, true)]), false), "Serving", "another session brought a newer one");
        assert_eq!(reason(&stand(&[(7, true), (6, true)]), false), "Behind");
        assert_eq!(reason(&stand(&[(6, true)]), true), "Serving", "it has not had the time");
        assert_eq!(reason(&stand(&[(7, false)]), true), "BundleExpired");
        let wrong = Stand { secret: Some("too large".into()), ..stand(&[(7, true)]) };
        assert_eq!(wrong.condition(7, false), ("True", "NotInSecret", "proxy; too large".to_owned()));
    }

    #[test]
    fn a_condition_changes_its_time_only_when_it_turns() {
        let mut all = vec![Condition { r#type: "Connected".into(), status: "True".into(), ..Condition::default() }];
        set(&mut all, BUNDLE_CURRENT, Holding::Current.condition());
        all[1].last_transition_time = "then".into();
        set(&mut all, BUNDLE_CURRENT, Holding::Current.condition());
        assert_eq!(all[1].last_transition_time, "then");
        set(&mut all, BUNDLE_CURRENT, Holding::Late.condition());
        assert_ne!(all[1].last_transition_time, "then");
        assert_eq!((all.len(), all[0].status.as_str()), (2, "True"), "and others stay as they are");
        let labels: HashSet<_> =
            [Holding::Current, Holding::Late, Holding::Refused(String::new()), Holding::Gone, Holding::Expired]
                .iter()
                .map(Holding::label)
                .collect();
        assert_eq!(labels.len(), STATES.len());
    }

    /// A board over a store with one cluster.
    async fn board(dir: &std::path::Path) -> Board {
        let records = records(dir).await;
        records.create(&Object::<ClusterSpec>::new("edge1", ClusterSpec::default())).await.unwrap();
        Board::new(records, Metrics::new(&prometheus::Registry::new()).unwrap())
    }

    #[tokio::test]
    async fn f44_a_cluster_that_came_back_during_a_look_is_not_told_gone() {
        let dir = tempfile::tempdir().unwrap();
        let board = board(dir.path()).await;
        let reason = || {
            let status = board.records.get::<ClusterSpec>("edge1").unwrap().unwrap().status.unwrap();
            status.conditions.into_iter().find(|one| one.r#type == BUNDLE_CURRENT).unwrap().reason
        };
        let nobody = HashSet::new();
        let since = Instant::now();
        let expires = time(SystemTime::now() + Duration::from_secs(7200));
        let direct = DirectStatus { bundle_expires: expires, ..DirectStatus::default() };
        board.note("edge1", direct, Holding::Current).await;
        board.look(true, &nobody, since).await;
        assert_eq!(reason(), "Delivered");
        assert_eq!(board.metrics.endpoints.with_label_values(&["current"]).get(), 1);
        board.look(true, &nobody, Instant::now() + Duration::from_millis(1)).await;
        assert_eq!(reason(), "AgentGone", "it is gone since");
        assert_eq!(board.metrics.endpoints.with_label_values(&["current"]).get(), 0);
    }
}
