//! Takes up what clusters' own endpoints recorded while they let users in.

use super::deliver::ask;
use crate::{
    records::{RecordError, Records},
    sessions::Entry,
};
use http::{Method, StatusCode};
use moorline_proxy::{
    audit::{AuditSink, AuditUser, Event, ObjectRef, ResponseStatus, Stage, recorded},
    tape::is_of,
};
use serde::Deserialize;
use std::collections::BTreeMap;

/// Where it is kept how far an endpoint's records were taken, in the keyspace that no API serves.
const TAKEN: &str = "moorline.dev/direct-audit";
/// Largest delivery, in bytes: what an agent gives at once, and a record that was longer.
const DELIVERY: usize = 3 << 20;
/// Deliveries of one visit: an endpoint that has much to tell is asked again soon.
const AT_ONCE: u32 = 8;

/// What a record says of its session's recording.
const RECORDED: [&str; 4] = [
    "moorline.dev/recording",
    "moorline.dev/recording-sha256",
    "moorline.dev/recording-bytes",
    "moorline.dev/recording-lost",
];

/// Why nothing more was taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum CollectError {
    #[error("{0}")]
    Session(String),
    #[error("the agent answers {0}")]
    Answer(StatusCode),
    #[error("the agent's answer cannot be read")]
    Malformed,
    #[error("the audit log takes no more records")]
    Full,
    #[error("the store: {0}")]
    Store(#[from] RecordError),
}

/// Takes what is there. Each record is taken once: how far that went is kept before the agent may forget it. A hub that
/// dies between the two may take one delivery twice; its records' ids tell.
pub(super) async fn collect(entry: &Entry, records: &Records, audit: &dyn AuditSink) -> Result<(), CollectError> {
    let (code, id) = ask(entry, Method::GET, "/audit/id", Vec::new(), 64).await.map_err(CollectError::Session)?;
    if code == StatusCode::NOT_FOUND {
        return Ok(());
    }
    let id = String::from_utf8(id).ok().filter(|id| id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()));
    let id = id.ok_or(CollectError::Malformed)?;
    let key = format!("{TAKEN}/{}/{id}", entry.cluster);
    let kept = records.secret(&key).and_then(|bytes| std::str::from_utf8(&bytes).ok()?.parse::<u64>().ok());
    let mut taken = kept.unwrap_or_default();
    for _ in 0..AT_ONCE {
        let path = format!("/audit?after={taken}");
        let (code, answer) =
            ask(entry, Method::GET, &path, Vec::new(), DELIVERY).await.map_err(CollectError::Session)?;
        if code != StatusCode::OK {
            return Err(CollectError::Answer(code));
        }
        let mut lines = answer.split(|b| *b == b'\n').filter(|line| !line.is_empty());
        let last = lines.next().and_then(|line| std::str::from_utf8(line).ok()?.parse::<u64>().ok());
        let last = last.filter(|last| taken <= *last).ok_or(CollectError::Malformed)?;
        if last == taken {
            return Ok(());
        }
        let mut odd = 0;
        for line in lines {
            match event(line, &entry.cluster) {
                Some(event) => audit.record(event).await.map_err(|_| CollectError::Full)?,
                None => odd += 1,
            }
        }
        if odd > 0 {
            tracing::error!(cluster = entry.cluster, odd, "records of the cluster's endpoint could not be read");
        }
        taken = last;
        records.set_secret(key.clone(), taken.to_string().into_bytes().into()).await?;
        let path = format!("/audit?upto={taken}");
        ask(entry, Method::DELETE, &path, Vec::new(), 64).await.map_err(CollectError::Session)?;
    }
    Ok(())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    #[serde(rename = "auditID")]
    audit_id: String,
    stage: String,
    #[serde(rename = "requestURI")]
    request_uri: String,
    verb: String,
    user: User,
    impersonated_user: Option<User>,
    #[serde(rename = "sourceIPs", default)]
    source_ips: Vec<String>,
    #[serde(default)]
    user_agent: String,
    object_ref: Option<Object>,
    response_status: Option<Status>,
    request_received_timestamp: String,
    stage_timestamp: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}
#[derive(Deserialize)]
struct User {
    username: String,
    #[serde(default)]
    uid: String,
    #[serde(default)]
    groups: Vec<String>,
}
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Object {
    resource: String,
    namespace: String,
    name: String,
    api_group: String,
    api_version: String,
    subresource: String,
}
#[derive(Deserialize)]
struct Status {
    code: u16,
}

/// A record as this hub writes it: what is not known of it is left out, and whose cluster it is of says the session.
fn event(line: &[u8], cluster: &str) -> Option<Event> {
    let line: Line = serde_json::from_slice(line).ok()?;
    let user = |user: User| AuditUser { username: user.username, uid: user.uid, groups: user.groups };
    let known = ["moorline.dev/trace-id", "moorline.dev/bytes-in", "moorline.dev/bytes-out", "moorline.dev/ended"];
    let mut annotations: BTreeMap<&'static str, String> =
        known.into_iter().filter_map(|name| Some((name, line.annotations.get(name)?.clone()))).collect();
    // A cluster says what became of its own recordings, and of nobody else's.
    let recording = line.annotations.get("moorline.dev/recording");
    if recording.is_some_and(|name| is_of(name, cluster)) {
        annotations.extend(RECORDED.iter().filter_map(|name| Some((*name, line.annotations.get(*name)?.clone()))));
    }
    annotations.insert("moorline.dev/cluster", cluster.to_owned());
    annotations.insert("moorline.dev/path", "direct".to_owned());
    Some(Event {
        audit_id: line.audit_id,
        stage: if line.stage == "ResponseStarted" { Stage::ResponseStarted } else { Stage::ResponseComplete },
        request_uri: recorded(&line.request_uri),
        verb: line.verb,
        user: user(line.user),
        impersonated_user: line.impersonated_user.map(user),
        source_ips: line.source_ips,
        user_agent: line.user_agent,
        object_ref: line.object_ref.map(|object| ObjectRef {
            resource: object.resource,
            namespace: object.namespace,
            name: object.name,
            api_group: object.api_group,
            api_version: object.api_version,
            subresource: object.subresource,
        }),
        response_status: line.response_status.map(|status| ResponseStatus { code: status.code }),
        request_received_timestamp: line.request_received_timestamp,
        stage_timestamp: line.stage_timestamp,
        annotations,
    })
}
