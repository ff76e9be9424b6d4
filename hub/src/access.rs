//! More rights for a while: asked for with a reason, granted by another person, ended by the clock.

use crate::{
    audit,
    directory::{Authenticated, Directory},
    kinds::{AccessPhase, AccessRequestSpec, AccessRequestStatus},
    metrics::Metrics,
    records::{Change, RecordError, Records},
    status::time,
};
use moorline_apiserver::Object;
use moorline_authz::access::{Denial, Facts, Grant, decide_access};
use moorline_proxy::audit::AuditSink;
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio_util::sync::CancellationToken;

/// Shortest and longest time that rights are asked for.
pub(crate) const DURATION: std::ops::RangeInclusive<u64> = 1..=24 * 3600;
/// Requests that nobody has decided are over after this.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);
/// How often a request is read and written while others write.
const TRIES: u32 = 5;
/// Longest sleep of the clock: a change of the system's time is noticed within it.
const TICK: Duration = Duration::from_secs(1);

/// Why a request was not decided.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DecideError {
    #[error("{0}")]
    Denied(#[from] Denial),
    #[error("accessrequests.moorline.dev {0:?} not found")]
    Unknown(String),
    #[error("this request was decided before, or is over")]
    Over,
    #[error("the store: {0}")]
    Store(#[from] RecordError),
}

fn parse(at: &str) -> Option<SystemTime> {
    at.parse::<jiff::Timestamp>().ok().map(SystemTime::from)
}

/// What an approved request grants, and until when. `None`: nothing.
pub(crate) fn granted(request: &Object<AccessRequestSpec>) -> Option<(Grant, SystemTime)> {
    let status = request.status.as_ref().filter(|status| status.phase == AccessPhase::Approved)?;
    let ends = parse(&status.expires)?;
    let spec = &request.spec;
    let grant = Grant {
        name: format!("by AccessRequest {}", request.metadata.name),
        users: vec![spec.user.clone()],
        groups: Vec::new(),
        clusters: vec![spec.cluster.clone()],
        as_groups: spec.groups.clone(),
        record: None,
    };
    Some((grant, ends))
}

/// Approves or denies.
pub(crate) async fn decide(
    records: &Records,
    directory: &Directory,
    who: &Authenticated,
    name: &str,
    approve: bool,
    message: Option<String>,
) -> Result<Object<AccessRequestSpec>, DecideError> {
    for _ in 0..TRIES {
        let request = records.get::<AccessRequestSpec>(name)?;
        let mut request = request.ok_or_else(|| DecideError::Unknown(name.to_owned()))?;
        let grants = directory.grants();
        let facts = Facts { identity: &who.identity, token_clusters: who.clusters.as_deref(), grants: &grants };
        decide_access(&facts, who.verbs.as_deref(), &request.spec.user)?;
        let now = SystemTime::now();
        let status = request.status.take().unwrap_or_default();
        let asked = parse(&request.metadata.creation_timestamp.clone().unwrap_or_default());
        if status.phase != AccessPhase::Pending || asked.is_none_or(|asked| asked + PATIENCE < now) {
            return Err(DecideError::Over);
        }
        request.status = Some(AccessRequestStatus {
            phase: if approve { AccessPhase::Approved } else { AccessPhase::Denied },
            decided_by: who.identity.user.clone(),
            decided_at: time(now),
            expires: if approve {
                time(now + Duration::from_secs(request.spec.duration_seconds))
            } else {
                String::new()
            },
            message: message.clone(),
        });
        match records.update_status(&request).await {
            Ok(decided) => {
                directory.access_changed(&Change::Put(Box::new(decided.clone())));
                directory.settled().await;
                return Ok(decided);
            }
            Err(RecordError::Conflict) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(DecideError::Store(RecordError::Conflict))
}

/// Ends what has run its time, until `stop`: in memory at once, then in the store and on record.
pub(crate) async fn clock(
    records: Records,
    directory: Arc<Directory>,
    audit: Arc<dyn AuditSink>,
    metrics: Metrics,
    stop: CancellationToken,
) {
    while stop.run_until_cancelled(tokio::time::sleep(TICK)).await.is_some() {
        let over = directory.end_access(SystemTime::now());
        if !over.is_empty() {
            directory.settled().await;
        }
        for name in over {
            metrics.access_ended.inc();
            let Ok(Some(mut request)) = records.get::<AccessRequestSpec>(&name) else { continue };
            let Some(status) = &mut request.status else { continue };
            status.phase = AccessPhase::Expired;
            if let Err(error) = records.update_status(&request).await {
                tracing::warn!(request = name, "ended, and the store was not told: {error}");
            }
            let nowhere = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
            let (path, user) = (format!("/accessrequests/{name}"), &request.spec.user);
            let mut event = audit::event("expire", &path, user, nowhere, 200, "accessrequests", &request.spec.cluster);
            event.annotations.insert("moorline.dev/ended", "by the clock".to_owned());
            audit.push(event);
        }
    }
}
