//! Takes over what clusters' own endpoints recorded of sessions in terminals.
//!
//! A recording is fetched piece by piece, put among the hub's own when it is whole and on disk, and only then removed at the
//! endpoint, whose agent compares hashes before it does. What broke off is fetched anew.

use super::deliver::ask;
use crate::{audit, metrics::Metrics, recordings::HUB, sessions::Entry};
use http::{Method, StatusCode};
use moorline_proxy::{
    audit::AuditSink,
    tape::{LONGEST_TAKEN, Store, Take, TakeError, Taking},
};
use std::{
    collections::HashSet,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::timeout;

/// Longest list of names, in bytes, and most names of one.
const LIST: usize = 16 << 10;
const NAMES: usize = 64;
/// Largest piece, in bytes.
const PIECE: usize = 1 << 20;
/// Longest wait for one answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// Least that an agent gives at once, in bytes, but for the last piece: who gives less holds up others.
const LEAST: u64 = 64 << 10;
/// Names that are remembered because nothing is to be done about them any more.
const SETTLED: usize = 4096;

/// Why one was not taken.
#[derive(Debug, thiserror::Error)]
enum Untaken {
    #[error("{0}")]
    Session(String),
    #[error("the agent did not answer in time")]
    Late,
    #[error("the agent answers {0}")]
    Answer(StatusCode),
    #[error("what the agent gives cannot be read, or is too little at a time")]
    Malformed,
    #[error(transparent)]
    Store(#[from] TakeError),
    #[error("the audit log takes no more records")]
    Full,
    #[error("failed by a bug")]
    Bug,
}

impl Untaken {
    /// Whether it would be the same the next time: what is there is not to be had, or is another one than is here already.
    fn is_final(&self) -> bool {
        match self {
            Self::Store(error) => error.is_final(),
            Self::Answer(code) => *code == StatusCode::CONFLICT,
            Self::Session(_) | Self::Late | Self::Malformed | Self::Full | Self::Bug => false,
        }
    }
}

/// Takes recordings into the hub's folder.
pub(crate) struct Takes {
    pub store: Arc<Store>,
    pub audit: Arc<dyn AuditSink>,
    pub metrics: Metrics,
    /// Clusters and names of those that would be refused again, or are here and said to be gone there.
    pub settled: Mutex<HashSet<(String, String)>>,
}

impl Takes {
    /// Takes those that wait at one agent, as far as they can be taken.
    pub async fn take(&self, entry: &Entry) {
        let cluster = entry.cluster.as_str();
        let names = match self.names(entry).await {
            Ok(names) => names,
            Err(error) => return self.told(cluster, "", &error),
        };
        for name in names {
            match self.one(entry, &name).await {
                Ok(true) => self.settled(cluster, name),
                Ok(false) => {}
                Err(error) if error.is_final() => self.refuse(cluster, name, &error),
                // This one alone cannot be read there, or was fetched by another session.
                Err(error @ Untaken::Answer(_)) => self.told(cluster, &name, &error),
                // The next ones would fare no better now.
                Err(error) => return self.told(cluster, &name, &error),
            }
        }
    }

    /// It is not fetched again.
    fn refuse(&self, cluster: &str, name: String, error: &Untaken) {
        self.count("refused");
        tracing::error!(cluster, name, "a recording of the cluster's endpoint is refused, and stays there: {error}");
        self.settled(cluster, name);
    }

    fn settled(&self, cluster: &str, name: String) {
        let mut settled = self.settled.lock().unwrap_or_else(PoisonError::into_inner);
        if SETTLED <= settled.len() {
            settled.clear();
        }
        settled.insert((cluster.to_owned(), name));
    }

    fn told(&self, cluster: &str, name: &str, error: &Untaken) {
        self.count("failed");
        tracing::warn!(cluster, name, "recordings of the cluster's endpoint were not taken: {error}");
    }

    fn count(&self, result: &str) {
        self.metrics.recordings_taken.with_label_values(&[result]).inc();
    }

    /// Those that wait there, but for those about which nothing is to be done.
    async fn names(&self, entry: &Entry) -> Result<Vec<String>, Untaken> {
        let text = String::from_utf8(asked(entry, Method::GET, "/recordings", LIST).await?);
        let text = text.map_err(|_| Untaken::Malformed)?;
        let settled = self.settled.lock().unwrap_or_else(PoisonError::into_inner);
        let waits = |name: &&str| !settled.contains(&(entry.cluster.clone(), (*name).to_owned()));
        Ok(text.lines().filter(waits).take(NAMES).map(str::to_owned).collect())
    }

    /// Whether it is here now, and gone there.
    async fn one(&self, entry: &Entry, name: &str) -> Result<bool, Untaken> {
        let (store, wanted, cluster) = (Arc::clone(&self.store), name.to_owned(), entry.cluster.clone());
        let sha256 = match off(move || store.take(&wanted, &cluster)).await? {
            Take::Busy => return Ok(false),
            Take::Have(sha256) => sha256,
            Take::Begun(taking) => {
                self.audit.admit().await.map_err(|_| Untaken::Full)?;
                let (bytes, sha256) = fetched(entry, name, taking).await?;
                self.record(&entry.cluster, name, bytes);
                self.count("ok");
                sha256
            }
        };
        // It names the one that is meant: another of this name stays there, and both can be looked at.
        asked(entry, Method::DELETE, &format!("/recordings/{name}?sha256={sha256}"), 64).await.map(|_| true)
    }

    /// Who has it now is on record. Its hash says the record of its session's end.
    fn record(&self, cluster: &str, name: &str, bytes: u64) {
        let (uri, nowhere) = (format!("/auth/recordings/{name}"), SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        let mut event = audit::event("take", &uri, HUB, nowhere, 200, "recordings", cluster);
        event.annotations.insert("moorline.dev/recording", name.to_owned());
        event.annotations.insert("moorline.dev/recording-bytes", bytes.to_string());
        self.audit.push(event);
    }
}

/// All of one, in the folder: its length and hash.
async fn fetched(entry: &Entry, name: &str, mut taking: Taking) -> Result<(u64, String), Untaken> {
    for _ in 0..LONGEST_TAKEN / LEAST {
        let path = format!("/recordings/{name}?from={}", taking.bytes());
        let piece = asked(entry, Method::GET, &path, PIECE).await?;
        if piece.is_empty() {
            let bytes = taking.bytes();
            return Ok((bytes, off(move || taking.keep()).await?));
        }
        taking = off(move || taking.push(&piece).map(|()| taking)).await?;
    }
    Err(Untaken::Malformed)
}

/// Work with files, off the runtime.
async fn off<T: Send + 'static>(work: impl FnOnce() -> Result<T, TakeError> + Send + 'static) -> Result<T, Untaken> {
    Ok(tokio::task::spawn_blocking(work).await.map_err(|_| Untaken::Bug)??)
}

async fn asked(entry: &Entry, method: Method, path: &str, most: usize) -> Result<Vec<u8>, Untaken> {
    match timeout(PATIENCE, ask(entry, method, path, Vec::new(), most)).await {
        Ok(Ok((StatusCode::OK, answer))) => Ok(answer),
        Ok(Ok((code, _))) => Err(Untaken::Answer(code)),
        Ok(Err(error)) => Err(Untaken::Session(error)),
        Err(_) => Err(Untaken::Late),
    }
}
