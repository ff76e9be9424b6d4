//! Brings bundles to clusters over their sessions, and fetches what their endpoints recorded: records with each visit,
//! recordings beside it, for these may take long and a revocation must not wait for them.

use super::{
    Bundles, Sealed,
    collect::collect,
    condition::{Board, Holding, Stand},
    take::Takes,
};
use crate::{
    kinds::DirectStatus,
    metrics::Metrics,
    records::Records,
    sessions::{Entry, Registry},
    signing::now,
};
use http::{Method, StatusCode};
use moorline_authz::bundle::delta;
use moorline_proto::header::Target;
use moorline_proxy::{audit::AuditSink, tape::Store};
use serde::Deserialize;
use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    task::{AbortHandle, JoinSet},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

/// How often it is looked at who needs what. It bounds how late a revocation reaches an endpoint that is connected.
const LOOK: Duration = Duration::from_secs(1);
/// Longest delivery, in either direction.
const PATIENCE: Duration = Duration::from_secs(30);
/// Deliveries under way.
const AT_ONCE: usize = 64;
/// Agents whose recordings are being taken.
const TAKING: usize = 16;
/// How often an endpoint is asked what it has recorded.
const VISIT: Duration = Duration::from_secs(5);
/// Pause after one that failed.
const PAUSE: Duration = Duration::from_secs(10);
/// Largest answer of an agent, in bytes.
const ANSWER: usize = 64 << 10;
/// The fact by which a cluster's agent asks for bundles. A node's is not heard: it would be given the cluster's users, and
/// what it answers would be where kubeconfigs send their tokens.
const WANTED: &str = "endpoint";
/// Bytes of bundles that are remembered, so that only what changed is sent next time: some hundred of a thousand users.
const REMEMBERED: usize = 64 << 20;
/// A bundle below this many bytes is sent whole.
const WHOLE: usize = 2 << 10;

/// What an agent answers to a bundle.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Told {
    /// Where the endpoint is reached, if it said so.
    server: Option<String>,
    /// Its authority, PEM.
    certificate_authority: Option<String>,
}

/// A bundle as it was given, while there is room to remember it.
struct Remembered {
    bytes: Vec<u8>,
    sum: Arc<AtomicUsize>,
}

impl Remembered {
    fn new(bytes: Vec<u8>, sum: &Arc<AtomicUsize>) -> Option<Self> {
        let length = bytes.len();
        let room = |now: usize| (now + length <= REMEMBERED).then_some(now + length);
        sum.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).ok()?;
        Some(Self { bytes, sum: Arc::clone(sum) })
    }
}

impl Drop for Remembered {
    fn drop(&mut self) {
        self.sum.fetch_sub(self.bytes.len(), Ordering::Relaxed);
    }
}

/// What one session was given.
#[derive(Default)]
struct Given {
    /// The bundle itself.
    bundle: Option<Remembered>,
    /// Its serial; 0: there was none.
    serial: u64,
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
    pub recordings: Arc<Store>,
    /// How long what is known of rights counts while the store tells of no changes: from then on nothing is vouched for anew.
    pub rights_without_store: Duration,
}

/// The delivery, and what it remembers.
struct Deliverer {
    base: Delivery,
    takes: Arc<Takes>,
    board: Board,
    /// Bytes of all [`Remembered`].
    sum: Arc<AtomicUsize>,
}

impl Delivery {
    /// Delivers until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let board = Board::new(self.records.clone(), self.metrics.clone());
        let takes = Arc::new(Takes {
            store: Arc::clone(&self.recordings),
            audit: Arc::clone(&self.audit),
            metrics: self.metrics.clone(),
            settled: Mutex::default(),
        });
        let this = Arc::new(Deliverer { board, takes, base: self, sum: Arc::default() });
        let (mut given, mut busy): (HashMap<String, Given>, HashSet<String>) = Default::default();
        let mut under_way: JoinSet<(String, Given, Option<Arc<Entry>>)> = JoinSet::new();
        let (mut takers, mut taking): (JoinSet<()>, HashMap<String, AbortHandle>) = Default::default();
        let mut kept = this.base.bundles.directory.ended();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
                Some(done) = under_way.join_next() => {
                    if let Ok((key, result, waits)) = done {
                        busy.remove(&key);
                        // One of a cluster at a time, whatever it says of itself: there are others.
                        if let Some(entry) = waits && taking.len() < TAKING && !taking.contains_key(&entry.cluster) {
                            let (takes, cluster) = (Arc::clone(&this.takes), entry.cluster.clone());
                            let task = takers.spawn(async move { takes.take(&entry).await });
                            taking.insert(cluster, task);
                        }
                        given.insert(key, result);
                    }
                    continue;
                }
                Some(_) = takers.join_next() => {
                    taking.retain(|_, task| !task.is_finished());
                    continue;
                }
            }
            let ended = this.base.bundles.directory.ended();
            if ended != kept {
                match this.base.bundles.keep(&ended).await {
                    Ok(()) => kept = ended,
                    Err(error) => tracing::error!("logins that were ended are not kept: {error}"),
                }
            }
            let wants = |entry: &Arc<Entry>| !entry.node && entry.fact(WANTED).is_some();
            let wanting: Vec<_> = this.base.registry.all().into_iter().filter(wants).collect();
            let alive: HashSet<String> = wanting.iter().map(key).collect();
            let before = given.len();
            given.retain(|key, _| alive.contains(key));
            let gone = given.len() < before;
            this.board.look(gone, wanting.iter().map(|entry| entry.cluster.as_str()), now()).await;
            let mut prints: HashMap<String, [u8; 32]> = HashMap::new();
            let unheard = this.base.rights_without_store < this.base.records.unheard();
            for entry in wanting {
                let key = key(&entry);
                if busy.contains(&key) || AT_ONCE <= under_way.len() {
                    continue;
                }
                let cluster = entry.cluster.clone();
                let print = *prints.entry(cluster.clone()).or_insert_with(|| this.base.bundles.fingerprint(&cluster));
                let new = |had: &Given| had.fingerprint != print || had.again <= now();
                let due = !unheard && given.get(&key).is_none_or(|had| had.retry <= now() && new(had));
                if due {
                    busy.insert(key.clone());
                    let (this, before) = (Arc::clone(&this), given.remove(&key).and_then(|had| had.bundle));
                    under_way.spawn(async move { (key, this.deliver(&entry, before).await, None) });
                } else if given.get(&key).is_some_and(|had| had.retry <= now() && had.visit <= now()) {
                    let Some(had) = given.remove(&key) else { continue };
                    busy.insert(key.clone());
                    let this = Arc::clone(&this);
                    under_way.spawn(async move {
                        let waits = this.visit(&entry, had.serial).await;
                        (key, Given { visit: now() + VISIT.as_secs(), ..had }, waits.then_some(entry))
                    });
                }
            }
        }
    }
}

impl Deliverer {
    /// Asks what was recorded, and how it stands with the bundle `serial`. Whether recordings wait to be taken.
    async fn visit(&self, entry: &Entry, serial: u64) -> bool {
        let result = match timeout(PATIENCE, collect(entry, &self.base.records, &*self.base.audit)).await {
            Ok(Ok(())) => "ok",
            Ok(Err(error)) => {
                tracing::warn!(cluster = entry.cluster, "records of the cluster's endpoint were not taken: {error}");
                "failed"
            }
            Err(_) => "late",
        };
        self.base.metrics.visits.with_label_values(&[result]).inc();
        // Agents before this one have no word of it, and then nothing is said.
        if let Ok(Ok((StatusCode::OK, answer))) =
            timeout(PATIENCE, ask(entry, Method::GET, "/state", Vec::new(), ANSWER)).await
            && let Ok(stand) = serde_json::from_slice::<Stand>(&answer)
        {
            self.board.stands(&entry.cluster, &stand, serial, now()).await;
            return stand.recordings != 0;
        }
        false
    }

    /// Sends what changed where that is known and enough, or else the whole.
    async fn send(
        &self,
        entry: &Entry,
        sealed: &Sealed,
        before: Option<Remembered>,
    ) -> Result<(StatusCode, Vec<u8>), String> {
        let bytes = sealed.bytes.clone();
        let before = before.filter(|_| WHOLE <= bytes.len());
        let made = tokio::task::spawn_blocking(move || before.and_then(|before| delta::make(&before.bytes, &bytes)));
        let count =
            |form: &str, length: usize| self.base.metrics.bundle_bytes.with_label_values(&[form]).inc_by(length as u64);
        if let Ok(Some(delta)) = made.await {
            let length = delta.len();
            if let answer @ (StatusCode::OK, _) = ask(entry, Method::PATCH, "/bundle", delta, ANSWER).await? {
                count("delta", length);
                return Ok(answer);
            }
            // It has another one than was thought, or knows no deltas: the whole is always right.
        }
        let answer = ask(entry, Method::PUT, "/bundle", sealed.bytes.clone(), ANSWER).await?;
        count("whole", sealed.bytes.len());
        Ok(answer)
    }

    async fn deliver(&self, entry: &Entry, before: Option<Remembered>) -> Given {
        let count = |result: &str| self.base.metrics.bundles.with_label_values(&[result]).inc();
        let failed = || Given { retry: now() + PAUSE.as_secs(), ..Given::default() };
        let sealed = match self.base.bundles.make(&entry.cluster) {
            Ok(sealed) => sealed,
            Err(error) => {
                tracing::error!(cluster = entry.cluster, "no bundle was made: {error}");
                count("failed");
                return failed();
            }
        };
        let cluster = entry.cluster.as_str();
        match timeout(PATIENCE, self.send(entry, &sealed, before)).await {
            Ok(Ok((StatusCode::OK, answer))) => {
                count("delivered");
                let Sealed { bytes, fingerprint, serial, expires } = sealed;
                let told: Told = serde_json::from_slice(&answer).unwrap_or_default();
                self.board.note(cluster, direct(told, expires), Holding::Current).await;
                let left = expires.saturating_sub(now());
                let bundle = Remembered::new(bytes, &self.sum);
                Given { bundle, serial, fingerprint, again: now() + left / 8, retry: 0, visit: 0 }
            }
            Ok(Ok((code, answer))) => {
                let words = String::from_utf8_lossy(&answer).chars().filter(|c| !c.is_control()).take(200).collect();
                tracing::warn!(cluster, %code, words, "the cluster did not take its bundle");
                count("refused");
                self.board.holds(cluster, Holding::Refused(words)).await;
                failed()
            }
            Ok(Err(why)) => {
                tracing::debug!(cluster, "a bundle was not delivered: {why}");
                count("failed");
                self.board.holds(cluster, Holding::Late).await;
                failed()
            }
            Err(_) => {
                count("failed");
                self.board.holds(cluster, Holding::Late).await;
                failed()
            }
        }
    }
}

/// Where the endpoint is, so that kubeconfigs can name it, and how long it lets users in.
fn direct(told: Told, expires: u64) -> DirectStatus {
    // The time changes with each bundle, and is worth a write only once in a while.
    let hour = Duration::from_secs(expires / 3600 * 3600);
    DirectStatus {
        server: told.server.unwrap_or_default(),
        certificate_authority: told.certificate_authority.unwrap_or_default(),
        bundle_expires: crate::status::time(std::time::SystemTime::UNIX_EPOCH + hour),
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
