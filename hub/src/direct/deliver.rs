//! Brings bundles to clusters over their sessions, and fetches what their endpoints recorded.

use super::{Bundles, Sealed, collect::collect};
use crate::{
    kinds::{ClusterSpec, DirectStatus},
    metrics::Metrics,
    records::{RecordError, Records},
    sessions::{Entry, Registry},
    signing::now,
};
use http::{Method, StatusCode};
use moorline_proto::header::Target;
use moorline_proxy::audit::AuditSink;
use serde::Deserialize;
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};
use tokio::{task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

/// How often it is looked at who needs what. It bounds how late a revocation reaches an endpoint that is connected.
const LOOK: Duration = Duration::from_secs(1);
/// Longest delivery, in either direction.
const PATIENCE: Duration = Duration::from_secs(30);
/// Deliveries under way.
const AT_ONCE: usize = 64;
/// How often an endpoint is asked what it has recorded.
const VISIT: Duration = Duration::from_secs(5);
/// Pause after one that failed.
const PAUSE: Duration = Duration::from_secs(10);
/// Largest answer of an agent, in bytes.
const ANSWER: usize = 64 << 10;
/// The fact by which an agent asks for bundles.
const WANTED: &str = "endpoint";
/// Tries to write a status that others write too.
const TRIES: u32 = 5;

/// What an agent answers to a bundle.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Told {
    /// Where the endpoint is reached, if it said so.
    server: Option<String>,
    /// Its authority, PEM.
    certificate_authority: Option<String>,
}

/// What one session was given.
#[derive(Default)]
struct Given {
    fingerprint: [u8; 32],
    /// A newer one is due, in seconds since 1970.
    again: u64,
    /// Not before, in seconds since 1970.
    retry: u64,
    /// When it is asked next what was recorded, in seconds since 1970.
    visit: u64,
}

/// The delivery of bundles.
pub(crate) struct Delivery {
    pub bundles: Arc<Bundles>,
    pub registry: Arc<Registry>,
    pub records: Records,
    pub metrics: Metrics,
    pub audit: Arc<dyn AuditSink>,
}

impl Delivery {
    /// Delivers until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let this = Arc::new(self);
        let (mut given, mut busy): (HashMap<String, Given>, HashSet<String>) = Default::default();
        let mut under_way = JoinSet::new();
        let mut kept = this.bundles.directory.ended();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
                Some(done) = under_way.join_next() => {
                    if let Ok((key, result)) = done {
                        busy.remove(&key);
                        given.insert(key, result);
                    }
                    continue;
                }
            }
            let ended = this.bundles.directory.ended();
            if ended != kept {
                match this.bundles.keep(&ended).await {
                    Ok(()) => kept = ended,
                    Err(error) => tracing::error!("logins that were ended are not kept: {error}"),
                }
            }
            let wanting: Vec<_> = this.registry.all().into_iter().filter(|e| e.fact(WANTED).is_some()).collect();
            let alive: HashSet<String> = wanting.iter().map(key).collect();
            given.retain(|key, _| alive.contains(key));
            let mut prints: HashMap<String, [u8; 32]> = HashMap::new();
            for entry in wanting {
                let key = key(&entry);
                if busy.contains(&key) || AT_ONCE <= under_way.len() {
                    continue;
                }
                let cluster = entry.cluster.clone();
                let print = *prints.entry(cluster.clone()).or_insert_with(|| this.bundles.fingerprint(&cluster));
                let due = given
                    .get(&key)
                    .is_none_or(|had| had.retry <= now() && (had.fingerprint != print || had.again <= now()));
                if due {
                    busy.insert(key.clone());
                    let this = Arc::clone(&this);
                    under_way.spawn(async move { (key, this.deliver(&entry).await) });
                } else if given.get(&key).is_some_and(|had| had.retry <= now() && had.visit <= now()) {
                    let Some(had) = given.remove(&key) else { continue };
                    busy.insert(key.clone());
                    let this = Arc::clone(&this);
                    under_way.spawn(async move {
                        this.visit(&entry).await;
                        (key, Given { visit: now() + VISIT.as_secs(), ..had })
                    });
                }
            }
        }
    }

    async fn visit(&self, entry: &Entry) {
        let result = match timeout(PATIENCE, collect(entry, &self.records, &*self.audit)).await {
            Ok(Ok(())) => "ok",
            Ok(Err(error)) => {
                tracing::warn!(cluster = entry.cluster, "records of the cluster's endpoint were not taken: {error}");
                "failed"
            }
            Err(_) => "late",
        };
        self.metrics.visits.with_label_values(&[result]).inc();
    }

    async fn deliver(&self, entry: &Entry) -> Given {
        let count = |result: &str| self.metrics.bundles.with_label_values(&[result]).inc();
        let failed = || Given { retry: now() + PAUSE.as_secs(), ..Given::default() };
        let sealed = match self.bundles.make(&entry.cluster) {
            Ok(sealed) => sealed,
            Err(error) => {
                tracing::error!(cluster = entry.cluster, "no bundle was made: {error}");
                count("failed");
                return failed();
            }
        };
        let Sealed { bytes, fingerprint, expires } = sealed;
        match timeout(PATIENCE, ask(entry, Method::PUT, "/bundle", bytes, ANSWER)).await {
            Ok(Ok((StatusCode::OK, answer))) => {
                count("delivered");
                let told: Told = serde_json::from_slice(&answer).unwrap_or_default();
                if let Err(error) = self.note(&entry.cluster, told, expires).await {
                    tracing::warn!(cluster = entry.cluster, "status not written: {error}");
                }
                let left = expires.saturating_sub(now());
                Given { fingerprint, again: now() + left / 8, retry: 0, visit: 0 }
            }
            Ok(Ok((code, answer))) => {
                let words = String::from_utf8_lossy(&answer).into_owned();
                tracing::warn!(cluster = entry.cluster, %code, words, "the cluster did not take its bundle");
                count("refused");
                failed()
            }
            Ok(Err(why)) => {
                tracing::debug!(cluster = entry.cluster, "a bundle was not delivered: {why}");
                count("failed");
                failed()
            }
            Err(_) => {
                count("failed");
                failed()
            }
        }
    }

    /// Notes where the endpoint is, so that kubeconfigs can name it.
    async fn note(&self, cluster: &str, told: Told, expires: u64) -> Result<(), RecordError> {
        let Some(server) = told.server else { return Ok(()) };
        // The time changes with each bundle, and is worth a write only once in a while.
        let day = |seconds: u64| seconds / 3600;
        let direct = DirectStatus {
            server,
            certificate_authority: told.certificate_authority.unwrap_or_default(),
            bundle_expires: crate::status::time(
                std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(day(expires) * 3600),
            ),
        };
        for _ in 0..TRIES {
            let Some(mut object) = self.records.get::<ClusterSpec>(cluster)? else { return Ok(()) };
            let status = object.status.get_or_insert_default();
            if status.direct.as_ref() == Some(&direct) {
                return Ok(());
            }
            status.direct = Some(direct.clone());
            match self.records.update_status(&object).await {
                Err(RecordError::Conflict) => {}
                Err(RecordError::NotFound) => return Ok(()),
                other => return other.map(drop),
            }
        }
        Err(RecordError::Conflict)
    }
}

/// What tells one session from another.
fn key(entry: &Arc<Entry>) -> String {
    let since = entry.since.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    format!("{} {}", entry.agent, since.as_nanos())
}

/// One request to the agent's own room.
pub(super) async fn ask(
    entry: &Entry,
    method: Method,
    path: &str,
    body: Vec<u8>,
    most: usize,
) -> Result<(StatusCode, Vec<u8>), String> {
    crate::ask::ask(entry, Target::Endpoint, (method, path), body, most).await
}
