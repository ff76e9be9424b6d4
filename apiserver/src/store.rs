//! A revisioned store: every change has one number, watchers see changes in that order, and nothing is acknowledged
//! before it is on disk.
//!
//! All objects are held in memory, as text; a [`Backend`] keeps them: a file of redb's, or an etcd. One thread writes: it takes what
//! waits, checks each change against the newest state, has them kept as one transaction, and only then shows and
//! acknowledges them.

mod errors;
#[cfg(test)]
mod tests;
mod watcher;

pub use errors::{CommitError, Compacted, OpenError};
pub use watcher::Watcher;

use crate::{
    Limits, Metrics,
    backend::Backend,
    disk::{Disk, File, OnDisk, With},
    etcd::{Etcd, EtcdPlace},
    seal::{Seal, StoreKey},
    stored::Stored,
    writer::Writer,
};
use bytes::Bytes;
use memchr::memmem::Finder;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::{
    collections::{BTreeMap, VecDeque},
    path::Path,
    sync::{
        Arc, Mutex, OnceLock, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};
use tokio::sync::{mpsc, oneshot, watch};

/// A stored object.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Revision of its last change; the object's `metadata.resourceVersion`.
    pub revision: u64,
    /// The object.
    pub value: Arc<Value>,
}

/// An object as it is kept.
#[derive(Debug, Clone)]
pub(crate) struct Kept {
    pub(crate) revision: u64,
    pub(crate) stored: Stored,
}

impl Kept {
    fn entry(&self) -> Entry {
        Entry { revision: self.revision, value: self.stored.value() }
    }
}

/// A stored object that nobody has looked at yet.
#[derive(Debug, Clone)]
pub struct Unread {
    key: Arc<str>,
    stored: Stored,
}

impl Unread {
    /// Its key.
    pub fn key(&self) -> &Arc<str> {
        &self.key
    }

    /// The object as a type, without a tree on the way.
    ///
    /// # Errors
    /// It is not of that type.
    pub fn read<T: DeserializeOwned>(&self) -> serde_json::Result<T> {
        serde_json::from_str(self.stored.text())
    }
}

/// One change, as watchers see it.
#[derive(Debug, Clone)]
pub struct StoreEvent {
    /// Its number.
    pub revision: u64,
    /// The key.
    pub key: Arc<str>,
    pub(crate) after: Option<Stored>,
    pub(crate) before: Option<Kept>,
}

impl StoreEvent {
    /// The object after it; `None`: deleted.
    pub fn value(&self) -> Option<Arc<Value>> {
        self.after.as_ref().map(Stored::value)
    }

    /// The object before it; `None`: created.
    pub fn previous(&self) -> Option<Entry> {
        self.before.as_ref().map(Kept::entry)
    }

    /// Whether it made the object.
    pub(crate) fn creates(&self) -> bool {
        self.before.is_none()
    }

    /// The object after it as text; empty: deleted.
    pub fn text(&self) -> &str {
        self.after.as_ref().map_or("", Stored::text)
    }

    /// Bytes of objects that are kept for as long as this is: before and after.
    pub(crate) fn size(&self) -> usize {
        self.key.len() + self.text().len() + self.before.as_ref().map_or(0, |kept| kept.stored.text().len())
    }
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

pub(crate) struct Order {
    pub(crate) batch: Batch,
    /// A private record, and what it has to be for the change to be made; `None`: not there.
    pub(crate) found: Option<(String, Option<Bytes>)>,
    pub(crate) done: oneshot::Sender<Result<u64, CommitError>>,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) revision: u64,
    pub(crate) objects: BTreeMap<Arc<str>, Kept>,
    pub(crate) private: BTreeMap<String, Bytes>,
    pub(crate) history: VecDeque<StoreEvent>,
    /// The sum of the sizes of those.
    pub(crate) history_bytes: usize,
    /// The newest objects as trees: whoever watches looks at them now.
    pub(crate) fresh: VecDeque<Arc<Value>>,
    /// The newest revision whose event is no longer in the history.
    pub(crate) compacted: u64,
    /// How often everything was read anew: what was seen before may be of another history, of whatever revision.
    pub(crate) age: u64,
}

pub(crate) struct Shared {
    pub(crate) state: RwLock<State>,
    pub(crate) revision: watch::Sender<u64>,
    /// Why no writes are taken.
    pub(crate) trouble: RwLock<Option<CommitError>>,
    /// Since when what others write may not be heard of: something was asked that has no answer yet, or got none.
    pub(crate) silent: Mutex<Option<Instant>>,
    pub(crate) metrics: OnceLock<Metrics>,
    /// Whether all writes are refused, so that what was copied stays all there is.
    pub(crate) frozen: AtomicBool,
    /// What the store is sealed with.
    pub(crate) seal: Option<Arc<Seal>>,
    write_time: Duration,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// The whole content at one revision, as the events that make it.
pub(crate) struct Moment {
    pub(crate) revision: u64,
    pub(crate) events: Vec<StoreEvent>,
    pub(crate) private: Vec<(String, Option<Bytes>)>,
}

impl Moment {
    /// Whether a state is this very content.
    pub(crate) fn is(&self, state: &State) -> bool {
        let objects = state.objects.iter().map(|(key, kept)| (&**key, kept.revision, kept.stored.text()));
        let private = state.private.iter().map(|(key, value)| (key, Some(value)));
        self.revision == state.revision
            && self.events.iter().map(|event| (&*event.key, event.revision, event.text())).eq(objects)
            && self.private.iter().map(|(key, value)| (key, value.as_ref())).eq(private)
    }
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
        Self::open_on(File(path.to_owned()), limits)
    }

    /// Opens one that is sealed with this key, or makes it. Blocks.
    ///
    /// # Errors
    /// See [`OpenError`]; also when it is sealed with another key, or not at all.
    pub fn open_sealed(path: &Path, key: StoreKey, limits: &Limits) -> Result<Self, OpenError> {
        Self::open_with(Box::new(File(path.to_owned())), With::Key(key), limits)
    }

    /// The same on another medium than a file.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open_on(disk: impl Disk, limits: &Limits) -> Result<Self, OpenError> {
        Self::open_with(Box::new(disk), With::Nothing, limits)
    }

    fn open_with(disk: Box<dyn Disk>, with: With, limits: &Limits) -> Result<Self, OpenError> {
        let name = disk.name();
        Self::start(async { OnDisk::open(disk, with) }, name, limits)
    }

    /// Opens the store that an etcd has at this place, or makes it; `key`: sealed. Blocks.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn connect(place: EtcdPlace, key: Option<StoreKey>, limits: &Limits) -> Result<Self, OpenError> {
        let name = place.to_string();
        let named = name.clone();
        let open = async move { Etcd::open(&place, key.as_ref()).await.map_err(|error| error.named(named)) };
        Self::start(open, name, limits)
    }

    /// Gives a backend its thread. What it does to wait, for a disk or for a network, nobody else waits for.
    fn start<B: Backend>(
        open: impl Future<Output = Result<(B, State), OpenError>> + Send + 'static,
        name: String,
        limits: &Limits,
    ) -> Result<Self, OpenError> {
        let failed = |path: &str, why: &dyn std::fmt::Display| OpenError::Database {
            path: path.to_owned(),
            why: why.to_string(),
        };
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| failed(&name, &e))?;
        let (orders, inbox) = mpsc::channel(limits.queued_writes);
        let (opened, answer) = std::sync::mpsc::sync_channel(1);
        let limits = limits.clone();
        // The thread ends when the last sender is gone; what it has open is closed with it.
        let thread = std::thread::Builder::new().name("store".into()).spawn(move || {
            runtime.block_on(async move {
                let (backend, state) = match open.await {
                    Ok(open) => open,
                    Err(error) => return drop(opened.send(Err(error))),
                };
                let shared = Arc::new(Shared {
                    revision: watch::Sender::new(state.revision),
                    state: RwLock::new(state),
                    trouble: RwLock::new(None),
                    silent: Mutex::default(),
                    metrics: OnceLock::new(),
                    frozen: AtomicBool::new(false),
                    seal: backend.seal(),
                    write_time: limits.write_time,
                    thread: Mutex::new(None),
                });
                if opened.send(Ok(Arc::clone(&shared))).is_ok() {
                    drop(opened);
                    Writer::new(backend, shared, &limits).run(inbox).await;
                }
            });
        });
        let thread = thread.map_err(|e| failed(&name, &e))?;
        let shared = answer.recv().map_err(|_| failed(&name, &"reading it failed: it may be damaged"))??;
        *shared.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(Self { shared, orders })
    }

    /// Drops this handle, which has to be the last one, and waits until the file is closed. Blocks.
    pub fn close(self) {
        let thread = self.shared.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(self);
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }

    pub(crate) fn sealed(&self) -> Option<Arc<Seal>> {
        self.shared.seal.clone()
    }

    /// Counts its commits there.
    pub(crate) fn observe(&self, metrics: &Metrics) {
        let _ = self.shared.metrics.set(metrics.clone());
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
        let trouble = self.shared.trouble.read().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(trouble) = trouble else { return Ok(()) };
        // Asked for, so that a full disk that has space again is noticed without a client's write.
        let (done, _) = oneshot::channel();
        let _ = self.orders.try_send(Order { batch: Batch::default(), found: None, done });
        Err(trouble.to_string())
    }

    /// How long others may have written what is not known here: since its etcd was asked what it did not answer, or was seen
    /// not to tell, which a silent one is after nine seconds. Nothing while it answers, nor for a file, which has one owner.
    pub fn unheard(&self) -> Duration {
        let silent = *self.shared.silent.lock().unwrap_or_else(PoisonError::into_inner);
        silent.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Refuses all writes from now on; when it returns, those before are kept or refused. Reads and watches go on.
    ///
    /// # Errors
    /// The store is in trouble: whether its last write is kept is not known.
    pub async fn freeze(&self) -> Result<(), CommitError> {
        self.shared.frozen.store(true, Ordering::SeqCst);
        // Orders are served in turn, so those before this one are done.
        let done = match self.commit(Batch::default()).await {
            Err(CommitError::Moving) => self.healthy().map_err(CommitError::Failed),
            Err(other) => Err(other),
            Ok(_) => Err(CommitError::Overloaded),
        };
        if done.is_err() {
            self.thaw();
        }
        done
    }

    /// Takes writes again.
    pub fn thaw(&self) {
        self.shared.frozen.store(false, Ordering::SeqCst);
    }

    /// One object.
    pub fn get(&self, key: &str) -> Option<Entry> {
        let kept = self.state().objects.get(key).cloned();
        kept.map(|kept| kept.entry())
    }

    /// A private record.
    pub fn private(&self, key: &str) -> Option<Bytes> {
        self.state().private.get(key).cloned()
    }

    /// Every object under a prefix, and the revision at which that was so.
    pub fn list(&self, prefix: &str) -> (u64, Vec<(Arc<str>, Entry)>) {
        let (revision, all) = self.kept(prefix);
        (revision, all.into_iter().map(|(key, kept)| (key, kept.entry())).collect())
    }

    /// The same without their trees.
    pub(crate) fn kept(&self, prefix: &str) -> (u64, Vec<(Arc<str>, Kept)>) {
        let state = self.state();
        (state.revision, under(&state.objects, prefix).map(|(k, e)| (Arc::clone(k), e.clone())).collect())
    }

    /// The one of this key, if there is one.
    pub(crate) fn kept_one(&self, key: &str) -> (u64, Vec<(Arc<str>, Kept)>) {
        let state = self.state();
        let one = state.objects.get_key_value(key).map(|(key, kept)| (Arc::clone(key), kept.clone()));
        (state.revision, one.into_iter().collect())
    }

    /// Those of them whose text has one of these words in it: only they become trees.
    pub(crate) fn list_with(&self, prefix: &str, words: &[&str]) -> Vec<Entry> {
        let (_, all) = self.kept(prefix);
        let words: Vec<Finder<'_>> = words.iter().map(Finder::new).collect();
        let has = |kept: &Kept| words.iter().any(|word| word.find(kept.stored.text().as_bytes()).is_some());
        all.into_iter().filter(|(_, kept)| has(kept)).map(|(_, kept)| kept.entry()).collect()
    }

    /// Whether there is one of this key.
    pub fn has(&self, key: &str) -> bool {
        self.state().objects.contains_key(key)
    }

    /// Reads one object into a type, without a tree on the way; `None`: there is none.
    ///
    /// # Errors
    /// It is not of that type.
    pub fn read<T: DeserializeOwned>(&self, key: &str) -> Option<serde_json::Result<T>> {
        let kept = self.state().objects.get(key).cloned()?;
        Some(serde_json::from_str(kept.stored.text()))
    }

    /// The same for every object under a prefix, and the revision at which that was so.
    pub fn read_all<T: DeserializeOwned>(
        &self,
        prefix: &str,
    ) -> (u64, impl Iterator<Item = serde_json::Result<T>> + use<T>) {
        let (revision, all) = self.unread(prefix);
        (revision, all.into_iter().map(|one| one.read()))
    }

    /// The same, to be read one by one later: what it takes meanwhile is a reference to each.
    fn unread(&self, prefix: &str) -> (u64, Vec<Unread>) {
        let (revision, all) = self.kept(prefix);
        (revision, all.into_iter().map(|(key, kept)| Unread { key, stored: kept.stored }).collect())
    }

    /// The same, and every change after it, in one step: nothing can come between them, be it another history.
    pub fn follow(&self, prefix: &str) -> (Vec<Unread>, Watcher) {
        let state = self.state();
        let one = |(key, kept): (&Arc<str>, &Kept)| Unread { key: Arc::clone(key), stored: kept.stored.clone() };
        (under(&state.objects, prefix).map(one).collect(), self.watcher(prefix, state.revision, &state))
    }

    fn watcher(&self, prefix: &str, seen: u64, state: &State) -> Watcher {
        let (age, revision) = (state.age, self.shared.revision.subscribe());
        Watcher { store: self.clone(), prefix: prefix.to_owned(), seen, age, revision, ready: VecDeque::new() }
    }

    /// Whether there is any under a prefix.
    pub fn any(&self, prefix: &str) -> bool {
        under(&self.state().objects, prefix).next().is_some()
    }

    /// All that is stored, private records too.
    pub(crate) fn moment(&self) -> Moment {
        let state = self.state();
        let event = |(key, kept): (&Arc<str>, &Kept)| StoreEvent {
            revision: kept.revision,
            key: Arc::clone(key),
            after: Some(kept.stored.clone()),
            before: None,
        };
        Moment {
            revision: state.revision,
            events: state.objects.iter().map(event).collect(),
            private: state.private.iter().map(|(key, value)| (key.clone(), Some(value.clone()))).collect(),
        }
    }

    /// The same as it was at an earlier revision.
    ///
    /// # Errors
    /// What changed since then is no longer known.
    pub fn list_at(&self, prefix: &str, revision: u64) -> Result<Vec<(Arc<str>, Entry)>, Compacted> {
        Ok(self.kept_at(prefix, revision)?.into_iter().map(|(key, kept)| (key, kept.entry())).collect())
    }

    /// The same without their trees.
    pub(crate) fn kept_at(&self, prefix: &str, revision: u64) -> Result<Vec<(Arc<str>, Kept)>, Compacted> {
        let state = self.state();
        if revision < state.compacted || state.revision < revision {
            return Err(Compacted);
        }
        let mut found: BTreeMap<Arc<str>, Kept> =
            under(&state.objects, prefix).map(|(k, e)| (Arc::clone(k), e.clone())).collect();
        let newer = state.history.iter().rev().take_while(|e| revision < e.revision);
        for event in newer.filter(|e| e.key.starts_with(prefix)) {
            match &event.before {
                Some(kept) => found.insert(Arc::clone(&event.key), kept.clone()),
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
        self.order(batch, None).await
    }

    /// Sets a private record that is as it was found; `None`: not there.
    ///
    /// # Errors
    /// See [`CommitError`]; a conflict: it is otherwise by now, as can be read then.
    pub async fn replace_private(&self, key: String, found: Option<Bytes>, value: Bytes) -> Result<(), CommitError> {
        let batch = Batch { object: None, private: vec![(key.clone(), Some(value))] };
        self.order(batch, Some((key, found))).await.map(drop)
    }

    async fn order(&self, batch: Batch, found: Option<(String, Option<Bytes>)>) -> Result<u64, CommitError> {
        let (done, answer) = oneshot::channel();
        let work = async {
            self.orders
                .send(Order { batch, found, done })
                .await
                .map_err(|_| CommitError::Failed("it is closed".into()))?;
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
        let state = self.state();
        if from < state.compacted || state.revision < from {
            return Err(Compacted);
        }
        Ok(self.watcher(prefix, from, &state))
    }
}

fn under<'a>(objects: &'a BTreeMap<Arc<str>, Kept>, prefix: &'a str) -> impl Iterator<Item = (&'a Arc<str>, &'a Kept)> {
    let from = (std::ops::Bound::Included(prefix), std::ops::Bound::Unbounded);
    objects.range::<str, _>(from).take_while(move |(key, _)| key.starts_with(prefix))
}
