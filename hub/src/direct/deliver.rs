//! Brings bundles to clusters over their sessions, and fetches what their endpoints recorded: records with each visit,
//! recordings beside it, for these may take long and a revocation must not wait for them.

use super::{
    Bundles, Sealed,
    collect::collect,
    condition::{Board, Holding, Stand},
    take::Takes,
    turns::{Turns, Wish},
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
    time::{Duration, Instant},
};
use tokio::{
    task::{AbortHandle, Id, JoinError, JoinSet},
    time::{MissedTickBehavior, timeout},
};
use tokio_util::sync::CancellationToken;

/// How often it is looked at who needs what. It bounds how late a revocation reaches an endpoint that is connected.
const LOOK: Duration = Duration::from_secs(1);
/// Longest delivery, in either direction.
const PATIENCE: Duration = Duration::from_secs(30);
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
    /// It did not answer the last time.
    doubtful: bool,
}

impl Given {
    /// It is tried again after a pause.
    fn failed() -> Self {
        Self { retry: now() + PAUSE.as_secs(), ..Self::default() }
    }

    /// It was asked what it has recorded; `late`: and did not answer in time.
    fn visited(self, late: bool) -> Self {
        let retry = if late { now() + PAUSE.as_secs() } else { self.retry };
        Self { visit: now() + VISIT.as_secs(), retry, doubtful: late, ..self }
    }
}

/// What came of a visit.
struct Visited {
    /// Recordings wait to be taken.
    recordings: bool,
    /// It did not answer in time.
    late: bool,
}

/// What is done at an agent whose turn it is.
#[derive(Clone, Copy)]
enum Errand {
    /// A bundle is due.
    Bundle,
    /// It is asked what was recorded.
    Visit,
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

/// What comes of an errand: the session, what it has been given, and from whom recordings are to be taken.
type Done = (String, Given, Option<Arc<Entry>>);

/// Everything that changes while it delivers.
struct Round {
    this: Arc<Deliverer>,
    given: HashMap<String, Given>,
    turns: Turns<(Arc<Entry>, Errand)>,
    under_way: JoinSet<Done>,
    /// Whose those are, for one that does not come to its end.
    keys: HashMap<Id, String>,
    takers: JoinSet<()>,
    taking: HashMap<String, AbortHandle>,
    /// Looks at the clusters nobody hears of; one at a time.
    boards: JoinSet<()>,
    gone: bool,
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
        let mut kept = self.bundles.directory.ended();
        let mut round = Round {
            this: Arc::new(Deliverer { board, takes, base: self, sum: Arc::default() }),
            given: HashMap::new(),
            turns: Turns::new(),
            under_way: JoinSet::new(),
            keys: HashMap::new(),
            takers: JoinSet::new(),
            taking: HashMap::new(),
            boards: JoinSet::new(),
            gone: false,
        };
        // By the clock, however often something else happens in between.
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = looks.tick() => {
                    let bundles = &round.this.base.bundles;
                    let ended = bundles.directory.ended();
                    if ended != kept {
                        match bundles.keep(&ended).await {
                            Ok(()) => kept = ended,
                            Err(error) => tracing::error!("logins that were ended are not kept: {error}"),
                        }
                    }
                    round.look();
                }
                Some(done) = round.under_way.join_next_with_id() => round.settle(done),
                Some(_) = round.takers.join_next() => round.taking.retain(|_, task| !task.is_finished()),
                Some(_) = round.boards.join_next() => {}
            }
            round.begin();
        }
    }
}

impl Round {
    /// Finds out who needs what.
    fn look(&mut self) {
        let (base, since) = (&self.this.base, Instant::now());
        let wants = |entry: &Arc<Entry>| !entry.node && entry.fact(WANTED).is_some();
        let wanting: Vec<_> = base.registry.all().into_iter().filter(wants).collect();
        let alive: HashSet<String> = wanting.iter().map(key).collect();
        let before = self.given.len();
        self.given.retain(|key, _| alive.contains(key));
        self.turns.retain(&alive);
        self.gone |= self.given.len() < before;
        if self.boards.is_empty() {
            let here: HashSet<String> = wanting.iter().map(|entry| entry.cluster.clone()).collect();
            let (this, gone) = (Arc::clone(&self.this), std::mem::take(&mut self.gone));
            // It writes, and a store that is slow holds up no bundle.
            self.boards.spawn(async move { this.board.look(gone, &here, since).await });
        }
        let mut prints: HashMap<String, [u8; 32]> = HashMap::new();
        let unheard = self.this.unheard();
        for entry in wanting {
            let key = key(&entry);
            if self.turns.visits(&key) {
                continue;
            }
            let cluster = entry.cluster.clone();
            let print = *prints.entry(cluster.clone()).or_insert_with(|| base.bundles.fingerprint(&cluster));
            let had = self.given.get(&key);
            let new = |had: &Given| had.fingerprint != print || had.again <= now();
            let errand = match had {
                _ if !unheard && had.is_none_or(|had| had.retry <= now() && new(had)) => Errand::Bundle,
                Some(had) if had.retry <= now() && had.visit <= now() => Errand::Visit,
                _ => continue,
            };
            let (doubtful, urgent) = (had.is_some_and(|had| had.doubtful), matches!(errand, Errand::Bundle));
            self.turns.wait(Wish { key, cluster, doubtful, urgent, what: (entry, errand) });
        }
    }

    /// Sets out for all whose turn it is.
    fn begin(&mut self) {
        while let Some(Wish { key, what: (entry, errand), .. }) = self.turns.next(Instant::now()) {
            // It may have waited since it was looked at.
            if matches!(errand, Errand::Bundle) && self.this.unheard() {
                self.turns.over(&key);
                continue;
            }
            let (this, had, name) = (Arc::clone(&self.this), self.given.remove(&key).unwrap_or_default(), key.clone());
            let task = match errand {
                Errand::Bundle => {
                    self.under_way.spawn(async move { (name, this.deliver(&entry, had.bundle).await, None) })
                }
                Errand::Visit => self.under_way.spawn(async move {
                    let Visited { recordings, late } = this.visit(&entry, had.serial).await;
                    (name, had.visited(late), recordings.then_some(entry))
                }),
            };
            self.keys.insert(task.id(), key);
        }
    }

    /// One is back; or was lost to a defect, which costs its own cluster a pause and nobody else anything.
    fn settle(&mut self, done: Result<(Id, Done), JoinError>) {
        let (id, done) = match done {
            Ok((id, done)) => (id, Some(done)),
            Err(error) => (error.id(), None),
        };
        let Some(key) = self.keys.remove(&id) else { return };
        self.turns.over(&key);
        let Some((key, given, waits)) = done else {
            self.given.insert(key, Given::failed());
            return;
        };
        // One of a cluster at a time, whatever it says of itself: there are others.
        if let Some(entry) = waits
            && self.taking.len() < TAKING
            && !self.taking.contains_key(&entry.cluster)
        {
            let (takes, cluster) = (Arc::clone(&self.this.takes), entry.cluster.clone());
            let task = self.takers.spawn(async move { takes.take(&entry).await });
            self.taking.insert(cluster, task);
        }
        self.given.insert(key, given);
    }
}

impl Deliverer {
    /// Whether what is known of rights is too old to vouch for.
    fn unheard(&self) -> bool {
        self.base.rights_without_store < self.base.records.unheard()
    }

    /// Asks what was recorded, and how it stands with the bundle `serial`.
    async fn visit(&self, entry: &Entry, serial: u64) -> Visited {
        let result = match timeout(PATIENCE, collect(entry, &self.base.records, &*self.base.audit)).await {
            Ok(Ok(())) => "ok",
            Ok(Err(error)) => {
                tracing::warn!(cluster = entry.cluster, "records of the cluster's endpoint were not taken: {error}");
                "failed"
            }
            Err(_) => "late",
        };
        self.base.metrics.visits.with_label_values(&[result]).inc();
        let state = timeout(PATIENCE, ask(entry, Method::GET, "/state", Vec::new(), ANSWER)).await;
        let late = result == "late" || state.is_err();
        // Agents before this one have no word of it, and then nothing is said.
        if let Ok(Ok((StatusCode::OK, answer))) = state
            && let Ok(stand) = serde_json::from_slice::<Stand>(&answer)
        {
            self.board.stands(&entry.cluster, &stand, serial).await;
            return Visited { recordings: stand.recordings != 0, late };
        }
        Visited { recordings: false, late }
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
        let sealed = match self.base.bundles.make(&entry.cluster) {
            Ok(sealed) => sealed,
            Err(error) => {
                tracing::error!(cluster = entry.cluster, "no bundle was made: {error}");
                count("failed");
                return Given::failed();
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
                Given { bundle, serial, fingerprint, again: now() + left / 8, ..Given::default() }
            }
            Ok(Ok((code, answer))) => {
                let words = String::from_utf8_lossy(&answer).chars().filter(|c| !c.is_control()).take(200).collect();
                tracing::warn!(cluster, %code, words, "the cluster did not take its bundle");
                count("refused");
                self.board.holds(cluster, Holding::Refused(words)).await;
                Given::failed()
            }
            Ok(Err(why)) => {
                tracing::debug!(cluster, "a bundle was not delivered: {why}");
                count("failed");
                self.board.holds(cluster, Holding::Late).await;
                Given::failed()
            }
            Err(_) => {
                count("failed");
                self.board.holds(cluster, Holding::Late).await;
                Given { doubtful: true, ..Given::failed() }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f44_only_who_does_not_answer_is_doubted_and_each_that_failed_is_given_a_pause() {
        let answered = Given::default().visited(false);
        assert!(!answered.doubtful && answered.retry <= now() && now() < answered.visit);
        let late = Given { serial: 7, ..Given::default() }.visited(true);
        assert!(late.doubtful && now() < late.retry);
        assert_eq!(late.serial, 7, "it has what it had");
        let failed = Given::failed();
        assert!(!failed.doubtful && now() < failed.retry, "the hub's own fault, or a refusal");
    }
}
