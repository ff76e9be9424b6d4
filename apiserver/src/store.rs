//! A revisioned store: every change has one number, watchers see changes in that order, and nothing is acknowledged
//! before it is on disk.
//!
//! All objects are held in memory; redb has them on disk. One thread writes: it takes what waits, checks each change
//! against the newest state, commits them as one transaction, and only then shows and acknowledges them.

use crate::Limits;
use bytes::Bytes;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde_json::Value;
use std::{
    collections::{BTreeMap, VecDeque},
    path::Path,
    sync::{Arc, OnceLock, PoisonError, RwLock},
    time::Duration,
};
use tokio::sync::{mpsc, oneshot, watch};

const OBJECTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("objects");
const PRIVATE: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("private");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

/// The format of the file. A higher number was written by a newer version and is refused untouched.
const FORMAT: u64 = 1;

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file is held by another process, is no store, or cannot be read or written.
    #[error("cannot open the store {path}: {why}; does another hub run on this folder?")]
    Database {
        /// The file.
        path: String,
        /// The cause.
        why: String,
    },
    /// A newer version wrote it.
    #[error("the store {path} has format {found} and this version knows {FORMAT}: use the version that wrote it")]
    Newer {
        /// The file.
        path: String,
        /// Its format.
        found: u64,
    },
}

/// Why a change was not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// The object is not at the revision that the change expects; this is where it is.
    #[error("the object is at revision {0:?}")]
    Conflict(Option<u64>),
    /// The disk failed: nothing was written, and nothing will be until a restart.
    #[error("the store takes no writes: {0}")]
    Failed(String),
    /// No place or no answer in time. Whether it was written is unknown if it waited for the answer.
    #[error("the store is overloaded")]
    Overloaded,
}

/// The revision asked for is no longer kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too old resource version")]
pub struct Compacted;

/// A stored object.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Revision of its last change; the object's `metadata.resourceVersion`.
    pub revision: u64,
    /// The object.
    pub value: Arc<Value>,
}

/// One change, as watchers see it.
#[derive(Debug, Clone)]
pub struct StoreEvent {
    /// Its number.
    pub revision: u64,
    /// The key.
    pub key: Arc<str>,
    /// The object after it; `None`: deleted.
    pub value: Option<Arc<Value>>,
    /// The object before it; `None`: created.
    pub previous: Option<Entry>,
}

/// What an object must be at for a change to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// Not there.
    Absent,
    /// At this revision.
    Revision(u64),
}

/// One conditional change: an object, private records, or both in one transaction.
#[derive(Debug, Default)]
pub struct Batch {
    /// Key, condition, and the new object; `None` deletes it and its private records.
    pub object: Option<(String, Expect, Option<Value>)>,
    /// Private records to set or delete: key and value.
    pub private: Vec<(String, Option<Bytes>)>,
}

struct Order {
    batch: Batch,
    done: oneshot::Sender<Result<u64, CommitError>>,
}

#[derive(Default)]
struct State {
    revision: u64,
    objects: BTreeMap<Arc<str>, Entry>,
    private: BTreeMap<String, Bytes>,
    history: VecDeque<StoreEvent>,
    /// The newest revision whose event is no longer in the history.
    compacted: u64,
}

struct Shared {
    state: RwLock<State>,
    revision: watch::Sender<u64>,
    failed: OnceLock<String>,
    write_time: Duration,
}

/// A handle; clones are the same store. It closes when the last one is dropped.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
    orders: mpsc::Sender<Order>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("revision", &self.revision()).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the file, or makes it. Blocks.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(path: &Path, limits: &Limits) -> Result<Self, OpenError> {
        let failed = |e: redb::Error| OpenError::Database { path: path.display().to_string(), why: e.to_string() };
        let database = Database::create(path).map_err(|e| failed(e.into()))?;
        let state = match load(&database).map_err(failed)? {
            Ok(state) => state,
            Err(found) => return Err(OpenError::Newer { path: path.display().to_string(), found }),
        };
        let (orders, inbox) = mpsc::channel(limits.queued_writes);
        let shared = Arc::new(Shared {
            revision: watch::Sender::new(state.revision),
            state: RwLock::new(state),
            failed: OnceLock::new(),
            write_time: limits.write_time,
        });
        let writer = Writer { database, shared: Arc::clone(&shared), group: limits.group, history: limits.history };
        // The thread ends when the last sender is gone; the file is closed with it.
        std::thread::Builder::new()
            .name("store".into())
            .spawn(move || writer.run(inbox))
            .map_err(|e| OpenError::Database { path: path.display().to_string(), why: e.to_string() })?;
        Ok(Self { shared, orders })
    }

    fn state(&self) -> std::sync::RwLockReadGuard<'_, State> {
        self.shared.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest revision.
    pub fn revision(&self) -> u64 {
        self.state().revision
    }

    /// Whether it takes writes.
    ///
    /// # Errors
    /// Why not.
    pub fn healthy(&self) -> Result<(), String> {
        self.shared.failed.get().map_or(Ok(()), |why| Err(why.clone()))
    }

    /// One object.
    pub fn get(&self, key: &str) -> Option<Entry> {
        self.state().objects.get(key).cloned()
    }

    /// A private record.
    pub fn private(&self, key: &str) -> Option<Bytes> {
        self.state().private.get(key).cloned()
    }

    /// Every object under a prefix, and the revision at which that was so.
    pub fn list(&self, prefix: &str) -> (u64, Vec<(Arc<str>, Entry)>) {
        let state = self.state();
        (state.revision, under(&state.objects, prefix).map(|(k, e)| (Arc::clone(k), e.clone())).collect())
    }

    /// The same as it was at an earlier revision.
    ///
    /// # Errors
    /// What changed since then is no longer known.
    pub fn list_at(&self, prefix: &str, revision: u64) -> Result<Vec<(Arc<str>, Entry)>, Compacted> {
        let state = self.state();
        if revision < state.compacted || state.revision < revision {
            return Err(Compacted);
        }
        let mut found: BTreeMap<Arc<str>, Entry> =
            under(&state.objects, prefix).map(|(k, e)| (Arc::clone(k), e.clone())).collect();
        let newer = state.history.iter().rev().take_while(|e| revision < e.revision);
        for event in newer.filter(|e| e.key.starts_with(prefix)) {
            match &event.previous {
                Some(entry) => found.insert(Arc::clone(&event.key), entry.clone()),
                None => found.remove(&event.key),
            };
        }
        Ok(found.into_iter().collect())
    }

    /// Makes a change; returns once it is on disk. The object's `metadata.resourceVersion` is set to its revision.
    ///
    /// # Errors
    /// See [`CommitError`].
    pub async fn commit(&self, batch: Batch) -> Result<u64, CommitError> {
        let (done, answer) = oneshot::channel();
        let work = async {
            self.orders.send(Order { batch, done }).await.map_err(|_| CommitError::Failed("it is closed".into()))?;
            answer.await.unwrap_or_else(|_| Err(CommitError::Failed("its writer ended".into())))
        };
        tokio::time::timeout(self.shared.write_time, work).await.unwrap_or(Err(CommitError::Overloaded))
    }

    /// Every change under a prefix after a revision, in order.
    ///
    /// # Errors
    /// The next change after `from` is no longer known, or `from` has not been: then it is of another history, as
    /// after a backup was put back, and waiting for it would skip what happens until then.
    pub fn watch(&self, prefix: &str, from: u64) -> Result<Watcher, Compacted> {
        {
            let state = self.state();
            if from < state.compacted || state.revision < from {
                return Err(Compacted);
            }
        }
        let revision = self.shared.revision.subscribe();
        Ok(Watcher { store: self.clone(), prefix: prefix.to_owned(), seen: from, revision, ready: VecDeque::new() })
    }
}

fn under<'a>(
    objects: &'a BTreeMap<Arc<str>, Entry>,
    prefix: &'a str,
) -> impl Iterator<Item = (&'a Arc<str>, &'a Entry)> {
    let from = (std::ops::Bound::Included(prefix), std::ops::Bound::Unbounded);
    objects.range::<str, _>(from).take_while(move |(key, _)| key.starts_with(prefix))
}

/// Follows the changes under a prefix. Holds no events but a bounded portion: one that is too slow is told so.
#[derive(Debug)]
pub struct Watcher {
    store: Store,
    prefix: String,
    seen: u64,
    revision: watch::Receiver<u64>,
    ready: VecDeque<StoreEvent>,
}

/// Events that a watcher takes out of the history at once.
const PORTION: usize = 64;

impl Watcher {
    /// The newest revision that was looked at: while [`Watcher::next`] waits, everything up to it was given out.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// The next change. `Ok(None)`: the store is closed.
    ///
    /// # Errors
    /// This watcher fell behind what is kept.
    ///
    /// # Cancel safety
    /// Safe: nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Result<Option<StoreEvent>, Compacted> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(Some(event));
            }
            self.revision.borrow_and_update();
            {
                let state = self.store.shared.state.read().unwrap_or_else(PoisonError::into_inner);
                if self.seen < state.compacted {
                    return Err(Compacted);
                }
                let skip = state.history.partition_point(|e| e.revision <= self.seen);
                let mut last = state.revision.max(self.seen);
                for event in state.history.iter().skip(skip) {
                    if self.ready.len() == PORTION {
                        last = event.revision - 1;
                        break;
                    }
                    if event.key.starts_with(&self.prefix) {
                        self.ready.push_back(event.clone());
                    }
                }
                self.seen = last;
            }
            if self.ready.is_empty() && self.revision.changed().await.is_err() {
                return Ok(None);
            }
        }
    }
}

/// Reads the whole file. `Ok(Err(n))`: it has the newer format `n`.
fn load(database: &Database) -> Result<Result<State, u64>, redb::Error> {
    let write = database.begin_write()?;
    {
        let mut meta = write.open_table(META)?;
        let found = meta.get("format")?.map(|v| v.value());
        match found {
            Some(found) if FORMAT < found => {
                drop(meta);
                write.abort()?;
                return Ok(Err(found));
            }
            Some(_) => {}
            None => {
                meta.insert("format", FORMAT)?;
            }
        }
        write.open_table(OBJECTS)?;
        write.open_table(PRIVATE)?;
    }
    write.commit()?;
    let read = database.begin_read()?;
    let revision = read.open_table(META)?.get("revision")?.map_or(0, |v| v.value());
    let mut state = State { revision, compacted: revision, ..State::default() };
    for row in read.open_table(OBJECTS)?.iter()? {
        let (key, value) = row?;
        let value: Value = serde_json::from_slice(value.value())
            .map_err(|e| redb::Error::Corrupted(format!("object {}: {e}", key.value())))?;
        let revision = revision_of(&value);
        state.objects.insert(key.value().into(), Entry { revision, value: Arc::new(value) });
    }
    for row in read.open_table(PRIVATE)?.iter()? {
        let (key, value) = row?;
        state.private.insert(key.value().to_owned(), Bytes::copy_from_slice(value.value()));
    }
    Ok(Ok(state))
}

fn revision_of(value: &Value) -> u64 {
    value.pointer("/metadata/resourceVersion").and_then(Value::as_str).and_then(|v| v.parse().ok()).unwrap_or(0)
}

struct Writer {
    database: Database,
    shared: Arc<Shared>,
    group: usize,
    history: usize,
}

/// What a group of orders comes to, before it is on disk.
#[derive(Default)]
struct Group {
    events: Vec<StoreEvent>,
    private: Vec<(String, Option<Bytes>)>,
    acknowledge: Vec<(oneshot::Sender<Result<u64, CommitError>>, u64)>,
}

impl Writer {
    fn run(self, mut inbox: mpsc::Receiver<Order>) {
        let mut waiting = Vec::new();
        while inbox.blocking_recv_many(&mut waiting, self.group) > 0 {
            let group = self.check(waiting.drain(..));
            if group.acknowledge.is_empty() {
                continue;
            }
            match self.write(&group) {
                Ok(()) => self.show(group),
                Err(error) => {
                    // What redb says after an I/O error is that nothing can be written until it is opened again.
                    let why = self.shared.failed.get_or_init(|| error.to_string()).clone();
                    tracing::error!(error = why, "the store cannot write; restart once the disk is well");
                    for (done, _) in group.acknowledge {
                        let _ = done.send(Err(CommitError::Failed(why.clone())));
                    }
                }
            }
        }
    }

    /// Checks each order against the state as the ones before it leave it.
    fn check(&self, orders: impl Iterator<Item = Order>) -> Group {
        let state = self.shared.state.read().unwrap_or_else(PoisonError::into_inner);
        let mut group = Group::default();
        let mut revision = state.revision;
        for Order { batch, done } in orders {
            if let Some(why) = self.shared.failed.get() {
                let _ = done.send(Err(CommitError::Failed(why.clone())));
                continue;
            }
            if let Some((key, expect, value)) = batch.object {
                let newest = group.events.iter().rev().find(|e| *e.key == *key);
                let current = match newest {
                    Some(e) => e.value.clone().map(|value| Entry { revision: e.revision, value }),
                    None => state.objects.get(key.as_str()).cloned(),
                };
                let at = current.as_ref().map(|e| e.revision);
                if at
                    != (match expect {
                        Expect::Absent => None,
                        Expect::Revision(r) => Some(r),
                    })
                {
                    let _ = done.send(Err(CommitError::Conflict(at)));
                    continue;
                }
                revision += 1;
                let (made, deleted) = (at.is_none(), value.is_none());
                let value = value.map(|mut value| {
                    value["metadata"]["resourceVersion"] = revision.to_string().into();
                    Arc::new(value)
                });
                if made || deleted {
                    // An object's private records go with it, those of this same group too; one that was set after it
                    // had gone is not for a namesake.
                    let prefix = format!("{key}/");
                    let stored = state.private.range(prefix.clone()..).take_while(|(k, _)| k.starts_with(&prefix));
                    let stored = stored.map(|(k, _)| k.clone());
                    let pending = group.private.iter().filter(|(k, v)| v.is_some() && k.starts_with(&prefix));
                    let own: Vec<_> = stored.chain(pending.map(|(k, _)| k.clone())).map(|k| (k, None)).collect();
                    group.private.extend(own);
                }
                group.events.push(StoreEvent { revision, key: key.into(), value, previous: current });
            }
            group.private.extend(batch.private);
            group.acknowledge.push((done, revision));
        }
        group
    }

    fn write(&self, group: &Group) -> Result<(), redb::Error> {
        let write = self.database.begin_write()?;
        {
            let mut objects = write.open_table(OBJECTS)?;
            for event in &group.events {
                match &event.value {
                    Some(value) => {
                        let bytes = serde_json::to_vec(&**value).map_err(|e| redb::Error::Corrupted(e.to_string()))?;
                        objects.insert(&*event.key, bytes.as_slice())?;
                    }
                    None => {
                        objects.remove(&*event.key)?;
                    }
                }
            }
            let mut private = write.open_table(PRIVATE)?;
            for (key, value) in &group.private {
                match value {
                    Some(value) => private.insert(key.as_str(), value.as_ref())?,
                    None => private.remove(key.as_str())?,
                };
            }
            if let Some(last) = group.events.last() {
                write.open_table(META)?.insert("revision", last.revision)?;
            }
        }
        write.commit()?;
        Ok(())
    }

    fn show(&self, group: Group) {
        let mut state = self.shared.state.write().unwrap_or_else(PoisonError::into_inner);
        for (key, value) in group.private {
            match value {
                Some(value) => state.private.insert(key, value),
                None => state.private.remove(&key),
            };
        }
        for event in group.events {
            state.revision = event.revision;
            match &event.value {
                Some(value) => {
                    let entry = Entry { revision: event.revision, value: Arc::clone(value) };
                    state.objects.insert(Arc::clone(&event.key), entry)
                }
                None => state.objects.remove(&event.key),
            };
            state.history.push_back(event);
            if self.history < state.history.len() {
                state.compacted = state.history.pop_front().map_or(state.compacted, |e| e.revision);
            }
        }
        let revision = state.revision;
        drop(state);
        self.shared.revision.send_replace(revision);
        for (done, revision) in group.acknowledge {
            let _ = done.send(Ok(revision));
        }
    }
}
