//! What happened to clusters: `Event` objects, one for each cause of each cluster, which count.
//!
//! They are bounded by what they are about, written at most as often as the status of their cluster, and go an hour after
//! they happened last, as Kubernetes' own do (`--event-ttl` of kube-apiserver), or with their cluster.

mod core;

pub(crate) use self::core::{core_events, is_core_events, is_watch};

use crate::{
    kinds::{ClusterSpec, GROUP, VERSION},
    records::{RecordError, Records},
    status::time,
};
use moorline_apiserver::{Column, KindSpec, Object, Spec};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::time::{Duration, SystemTime};
use tokio_util::sync::CancellationToken;

/// How long after it happened last an event is kept.
const KEPT: Duration = Duration::from_secs(3600);
/// How often those that are older are looked for.
const SWEEP: Duration = Duration::from_secs(600);
/// Attempts against other writers of the same event.
const TRIES: u32 = 5;

/// Something that happened to an object of the hub's.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EventSpec {
    /// To what.
    pub involved: Involved,
    /// `Normal` or `Warning`.
    pub r#type: String,
    /// One word for programs.
    pub reason: String,
    /// For people.
    #[serde(default)]
    pub message: String,
    /// How often.
    #[serde(default)]
    pub count: u32,
    /// RFC 3339: the first time.
    #[serde(default)]
    pub first_time: String,
    /// RFC 3339: the last time.
    #[serde(default)]
    pub last_time: String,
}

/// What an event is about.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Involved {
    /// Such as `Cluster`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    #[serde(default)]
    pub uid: String,
}

/// Events have none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NoEventStatus {}

impl Spec for EventSpec {
    type Status = NoEventStatus;
    const GROUP: &'static str = GROUP;
    const VERSION: &'static str = VERSION;
    const KIND: &'static str = "Event";
    const PLURAL: &'static str = "events";
    const SINGULAR: &'static str = "event";
    const SHORT_NAMES: &'static [&'static str] = &["ev"];
}

/// The kind, as the API server is told of it.
pub(crate) fn kind() -> KindSpec {
    let about = |object: &Value| {
        let text = |at: &str| object.pointer(at).and_then(Value::as_str).unwrap_or_default().to_ascii_lowercase();
        Value::from(format!("{}/{}", text("/spec/involved/kind"), text("/spec/involved/name")))
    };
    KindSpec::of::<EventSpec>()
        .column(Column::at("Last-Seen", "/spec/lastTime").typed("date"))
        .column(Column::at("Type", "/spec/type"))
        .column(Column::at("Reason", "/spec/reason"))
        .column(Column::with("Object", about))
        .column(Column::at("Count", "/spec/count").typed("integer"))
        .column(Column::at("Message", "/spec/message"))
        .selectable(&["spec.involved.name", "spec.involved.kind", "spec.reason", "spec.type"])
        .without_status()
}

/// What a cluster's change from one reason of `Connected` to another is called, and whether it is a trouble.
pub(crate) fn of_change(before: &str, after: &str) -> Option<(&'static str, bool)> {
    match (before, after) {
        _ if before == after => None,
        (_, "NodeAgentOnly") => Some(("NodeAgentOnly", true)),
        (_, "AgentSilent") => Some(("AgentSilent", true)),
        (_, "NoAgent") => Some(("Disconnected", true)),
        ("NodeAgentOnly" | "AgentSilent", "AgentConnected") => Some(("ClusterAgentBack", false)),
        ("NoAgent" | "", "AgentConnected") => Some(("Connected", false)),
        // After the hub's own restart every cluster comes back: nothing has happened to them.
        _ => None,
    }
}

/// Notes that something happened to a cluster. An event that cannot be written is worth a line of the log and no more.
pub(crate) async fn note(
    records: &Records,
    cluster: &Object<ClusterSpec>,
    (reason, trouble): (&str, bool),
    message: &str,
) {
    let (name, kind) = (&cluster.metadata.name, if trouble { "Warning" } else { "Normal" });
    if let Err(error) = write(records, cluster, (reason, kind), message).await {
        tracing::warn!(cluster = name, reason, "event not written: {error}");
    }
}

async fn write(
    records: &Records,
    cluster: &Object<ClusterSpec>,
    (reason, kind): (&str, &str),
    message: &str,
) -> Result<(), RecordError> {
    let about = &cluster.metadata.name;
    let name = format!("{about}.{}", reason.to_ascii_lowercase());
    let now = time(SystemTime::now());
    for _ in 0..TRIES {
        let written = match records.get::<EventSpec>(&name)? {
            Some(mut event) if event.spec.involved.uid == cluster.metadata.uid => {
                event.spec.count = event.spec.count.saturating_add(1);
                (event.spec.last_time, event.spec.message) = (now.clone(), message.to_owned());
                records.update(&event).await
            }
            // One of a namesake: it is about to go.
            Some(old) => match records.delete_event(&old.metadata.name).await {
                Ok(()) => Err(RecordError::Conflict),
                Err(error) => Err(error),
            },
            None => {
                let (uid, reason) = (cluster.metadata.uid.clone(), reason.to_owned());
                let spec = EventSpec {
                    involved: Involved { kind: ClusterSpec::KIND.to_owned(), name: about.clone(), uid },
                    r#type: kind.to_owned(),
                    reason,
                    message: message.to_owned(),
                    count: 1,
                    first_time: now.clone(),
                    last_time: now.clone(),
                };
                let mut event = Object::<EventSpec>::new(&name, spec);
                event.metadata.owner_references = vec![cluster.owner_reference()];
                records.create(&event).await
            }
        };
        match written {
            Err(RecordError::Conflict | RecordError::NotFound) => {}
            other => return other.map(drop),
        }
    }
    Err(RecordError::Conflict)
}

/// Takes away what happened long ago, again and again until `stop`.
pub(crate) async fn sweep(records: Records, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(SWEEP) => {}
        }
        let Ok(all) = records.list::<EventSpec>() else { continue };
        let now = jiff::Timestamp::now();
        for event in all.iter().filter(|event| is_old(&event.spec, now)) {
            if let Err(error) = records.delete_event(&event.metadata.name).await {
                tracing::debug!(event = event.metadata.name, "old event not removed: {error}");
            }
        }
    }
}

fn is_old(event: &EventSpec, now: jiff::Timestamp) -> bool {
    let Ok(last) = event.last_time.parse::<jiff::Timestamp>() else { return true };
    KEPT.as_secs_f64() < now.duration_since(last).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_has_a_name_and_a_hubs_own_restart_has_none() {
        assert_eq!(of_change("AgentConnected", "NodeAgentOnly"), Some(("NodeAgentOnly", true)));
        assert_eq!(of_change("NodeAgentOnly", "AgentConnected"), Some(("ClusterAgentBack", false)));
        assert_eq!(of_change("NodeAgentOnly", "NoAgent"), Some(("Disconnected", true)));
        assert_eq!(of_change("", "AgentConnected"), Some(("Connected", false)));
        assert_eq!(of_change("HubRestarted", "AgentConnected"), None);
        assert_eq!(of_change("AgentConnected", "AgentConnected"), None);
    }

    #[test]
    fn an_event_is_old_an_hour_after_it_happened_last() {
        let event = EventSpec { last_time: "2026-11-21T10:00:00Z".to_owned(), ..EventSpec::default() };
        assert!(!is_old(&event, "2026-11-21T11:00:00Z".parse().unwrap()));
        assert!(is_old(&event, "2026-11-21T11:00:01Z".parse().unwrap()));
        assert!(is_old(&EventSpec::default(), jiff::Timestamp::now()), "one without a time never ends otherwise");
    }
}
