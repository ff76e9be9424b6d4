//! The hub's own way to its objects: reads from memory, writes through the API server's own rules.

use crate::{
    events::EventSpec,
    kinds::{CONNECTED, ClusterSpec, TokenSpec, UserSpec},
    specs::{HASH, PASSWORD, REFRESH},
};
use bytes::Bytes;
use moorline_apiserver::{
    Api, ApiError, ApiServer, Batch, CommitError, Object, Spec, Store, StoreEvent, Unread, Watcher,
};
use moorline_authz::{refresh::RefreshRecord, token::TokenHash};
use std::{collections::BTreeSet, marker::PhantomData, num::NonZeroUsize, sync::Arc, thread, vec};

/// Why an object was not read or written.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("no such object")]
    NotFound,
    #[error("somebody else has changed the object")]
    Conflict,
    #[error("{0}")]
    Failed(String),
}

impl From<ApiError> for RecordError {
    fn from(error: ApiError) -> Self {
        match error.reason {
            "NotFound" => Self::NotFound,
            "Conflict" | "AlreadyExists" => Self::Conflict,
            _ => Self::Failed(error.message),
        }
    }
}

/// A change of an object.
pub(crate) enum Change<S: Spec> {
    /// It is there, and so.
    Put(Box<Object<S>>),
    /// It is not there any more.
    Gone(String),
}

/// Objects and their private records. Clones share.
#[derive(Clone)]
pub(crate) struct Records {
    store: Store,
    server: Arc<ApiServer>,
}

impl std::fmt::Debug for Records {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Records").finish_non_exhaustive()
    }
}

fn prefix<S: Spec>() -> String {
    [S::GROUP, "/", S::PLURAL, "/"].concat()
}

fn key<S: Spec>(name: &str) -> String {
    prefix::<S>() + name
}

fn typed<S: Spec>(read: serde_json::Result<Object<S>>) -> Result<Object<S>, RecordError> {
    read.map_err(|e| RecordError::Failed(format!("a stored {} cannot be read: {e}", S::KIND)))
}

impl Records {
    pub fn new(store: Store, server: Arc<ApiServer>) -> Self {
        Self { store, server }
    }

    fn api<S: Spec>(&self) -> Api<S> {
        self.server.api::<S>()
    }

    /// Whether the store takes writes.
    pub fn healthy(&self) -> Result<(), String> {
        self.store.healthy()
    }

    /// How long others may have changed what is not known here.
    pub fn unheard(&self) -> std::time::Duration {
        self.store.unheard()
    }

    pub fn get<S: Spec>(&self, name: &str) -> Result<Option<Object<S>>, RecordError> {
        self.store.read(&key::<S>(name)).map(typed).transpose()
    }

    pub fn list<S: Spec>(&self) -> Result<Vec<Object<S>>, RecordError> {
        self.store.read_all(&prefix::<S>()).1.map(typed).collect()
    }

    /// Whether there is any of a kind.
    pub fn any<S: Spec>(&self) -> bool {
        self.store.any(&prefix::<S>())
    }

    pub async fn create<S: Spec>(&self, object: &Object<S>) -> Result<Object<S>, RecordError> {
        Ok(self.api::<S>().create(object).await?)
    }

    /// Writes spec and metadata of an object that was read before; it must not have changed since.
    pub async fn update<S: Spec>(&self, object: &Object<S>) -> Result<Object<S>, RecordError> {
        Ok(self.api::<S>().update(object).await?)
    }

    /// The same for its status.
    pub async fn update_status<S: Spec>(&self, object: &Object<S>) -> Result<Object<S>, RecordError> {
        Ok(self.api::<S>().update_status(object).await?)
    }

    pub async fn delete_token(&self, id: &str) -> Result<(), RecordError> {
        Ok(self.api::<TokenSpec>().delete(id).await.map(drop)?)
    }

    pub async fn delete_event(&self, name: &str) -> Result<(), RecordError> {
        Ok(self.api::<EventSpec>().delete(name).await.map(drop)?)
    }

    /// The hash behind a token or join token.
    pub fn token_hash<S: Spec>(&self, id: &str) -> Option<TokenHash> {
        let bytes = self.store.private(&format!("{}/{HASH}", key::<S>(id)))?;
        Some(TokenHash::from_bytes(bytes.as_ref().try_into().ok()?))
    }

    /// The hash of a user's password.
    pub fn password(&self, user: &str) -> Option<String> {
        let bytes = self.store.private(&format!("{}/{PASSWORD}", key::<UserSpec>(user)))?;
        String::from_utf8(bytes.to_vec()).ok()
    }

    pub async fn set_password(&self, user: &str, hash: &str) -> Result<(), RecordError> {
        let record = (format!("{}/{PASSWORD}", key::<UserSpec>(user)), Some(Bytes::copy_from_slice(hash.as_bytes())));
        let batch = Batch { object: None, private: vec![record] };
        self.store.commit(batch).await.map(drop).map_err(|e| RecordError::Failed(e.to_string()))
    }

    /// What proves a login's refresh tokens.
    pub fn refresh(&self, id: &str) -> Option<RefreshRecord> {
        RefreshRecord::read(&self.store.private(&format!("{}/{REFRESH}", key::<TokenSpec>(id)))?)
    }

    /// Keeps that, once a token was answered with the next one.
    pub async fn set_refresh(&self, id: &str, record: &RefreshRecord) -> Result<(), RecordError> {
        self.set_secret(format!("{}/{REFRESH}", key::<TokenSpec>(id)), record.store().into()).await
    }

    /// A record of the hub's own that belongs to no object.
    pub fn secret(&self, name: &str) -> Option<Bytes> {
        self.store.private(name)
    }

    /// Keeps one.
    pub async fn set_secret(&self, name: String, value: Bytes) -> Result<(), RecordError> {
        let batch = Batch { object: None, private: vec![(name, Some(value))] };
        self.store.commit(batch).await.map(drop).map_err(|e| RecordError::Failed(e.to_string()))
    }

    /// The same for one that other hubs write too: what there is by then is made what is to be there.
    pub async fn merge_secret(
        &self,
        name: &str,
        merge: impl Fn(Option<Bytes>) -> Result<Bytes, RecordError>,
    ) -> Result<(), RecordError> {
        loop {
            let found = self.secret(name);
            let merged = merge(found.clone())?;
            match self.store.replace_private(name.to_owned(), found, merged).await {
                // One of the others was first: what they wrote can be read now.
                Err(CommitError::Conflict(_)) => {}
                done => return done.map_err(|e| RecordError::Failed(e.to_string())),
            }
        }
    }

    /// Forgets one.
    pub async fn forget_secret(&self, name: String) -> Result<(), RecordError> {
        if self.store.private(&name).is_none() {
            return Ok(());
        }
        let batch = Batch { object: None, private: vec![(name, None)] };
        self.store.commit(batch).await.map(drop).map_err(|e| RecordError::Failed(e.to_string()))
    }

    pub fn user_exists(&self, name: &str) -> bool {
        self.store.has(&key::<UserSpec>(name))
    }

    pub fn cluster_exists(&self, name: &str) -> bool {
        self.store.has(&key::<ClusterSpec>(name))
    }

    /// Since when a cluster is not connected; `None`: it never was.
    pub fn lost_since(&self, cluster: &str) -> Option<String> {
        let status = self.get::<ClusterSpec>(cluster).ok()??.status?;
        let condition = status.conditions.into_iter().find(|c| c.r#type == CONNECTED)?;
        status.last_seen.map(|_| condition.last_transition_time)
    }

    /// Everything that is there, then every change.
    pub fn watch<S: Spec>(&self) -> Changes<S> {
        let (all, watcher) = self.store.follow(&prefix::<S>());
        Changes {
            records: self.clone(),
            known: keys(&all),
            gone: Vec::new(),
            there: all.into_iter(),
            watcher,
            kind: PhantomData,
        }
    }
}

/// See [`Records::watch`].
pub(crate) struct Changes<S: Spec> {
    records: Records,
    /// Keys that were told of, to see which are gone after a gap.
    known: BTreeSet<Arc<str>>,
    /// Names that are to be told of as gone.
    gone: Vec<String>,
    /// Told before the watcher is asked, each read only then.
    there: vec::IntoIter<Unread>,
    watcher: Watcher,
    kind: PhantomData<fn() -> S>,
}

/// Objects that are read before they are told of: a start does not hold all of them a second time.
const WINDOW: usize = 2048;
/// As few are read by one core.
const FEW: usize = 256;
/// Cores that read.
const READERS: usize = 4;

fn read_by_all_cores<S: Spec>(window: &[Unread]) -> Vec<Result<Object<S>, RecordError>> {
    let read = |part: &[Unread]| part.iter().map(|one| typed::<S>(one.read())).collect::<Vec<_>>();
    let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get).min(READERS);
    if window.len() <= FEW || cores == 1 {
        return read(window);
    }
    let failed = |_| vec![Err(RecordError::Failed(format!("reading {} failed", S::PLURAL)))];
    thread::scope(|scope| {
        let parts = window.chunks(window.len().div_ceil(cores)).map(|part| scope.spawn(move || read(part)));
        let parts: Vec<_> = parts.collect();
        parts.into_iter().flat_map(|part| part.join().unwrap_or_else(failed)).collect()
    })
}

fn keys(all: &[Unread]) -> BTreeSet<Arc<str>> {
    all.iter().map(|one| Arc::clone(one.key())).collect()
}

fn name_of<S: Spec>(key: &str) -> String {
    key.strip_prefix(&prefix::<S>()).unwrap_or(key).to_owned()
}

impl<S: Spec> Changes<S> {
    /// Lists, and watches from there. What is missing of what was known is gone.
    fn begin(&mut self) {
        let (all, watcher) = self.records.store.follow(&prefix::<S>());
        let before = std::mem::replace(&mut self.known, keys(&all));
        self.gone = before.difference(&self.known).map(|key| name_of::<S>(key)).collect();
        self.there = all.into_iter();
        self.watcher = watcher;
    }

    /// The next of those that are there already, by name, without waiting; `None`: all of them were told.
    pub fn there(&mut self) -> Option<(String, Result<Change<S>, RecordError>)> {
        if let Some(name) = self.gone.pop() {
            return Some((name.clone(), Ok(Change::Gone(name))));
        }
        let one = self.there.next()?;
        let read = typed::<S>(one.read()).map(|object| Change::Put(Box::new(object)));
        Some((name_of::<S>(one.key()), read))
    }

    /// Tells of everything that is there already, without waiting: read by all cores, a window at a time.
    ///
    /// # Errors
    /// One of them cannot be read.
    pub fn tell_there(&mut self, mut tell: impl FnMut(&Change<S>)) -> Result<(), RecordError> {
        loop {
            let window: Vec<Unread> = self.there.by_ref().take(WINDOW).collect();
            if window.is_empty() {
                return Ok(());
            }
            for object in read_by_all_cores::<S>(&window) {
                tell(&Change::Put(Box::new(object?)));
            }
        }
    }

    /// The next change; `None` once the store is closed.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn next(&mut self) -> Option<Change<S>> {
        loop {
            if let Some((name, told)) = self.there() {
                // What cannot be read gives nobody anything.
                return Some(told.unwrap_or_else(|error| {
                    tracing::error!("{error}");
                    Change::Gone(name)
                }));
            }
            match self.watcher.next().await {
                Ok(Some(event)) => {
                    if let Some(change) = self.change(&event) {
                        return Some(change);
                    }
                }
                Ok(None) => return None,
                Err(_) => {
                    tracing::warn!(kind = S::KIND, "fell behind the store; listing again");
                    self.begin();
                }
            }
        }
    }

    fn change(&mut self, event: &StoreEvent) -> Option<Change<S>> {
        if event.text().is_empty() {
            self.known.remove(&event.key);
            return Some(Change::Gone(name_of::<S>(&event.key)));
        }
        match typed::<S>(serde_json::from_str(event.text())) {
            Ok(object) => {
                self.known.insert(Arc::clone(&event.key));
                Some(Change::Put(Box::new(object)))
            }
            Err(error) => {
                tracing::error!("{error}");
                None
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{
        pki::Authority,
        specs::{self, JoinFacts},
    };
    use moorline_apiserver::Limits;
    use tokio_util::sync::CancellationToken;

    /// Those of an empty store in that folder.
    pub(crate) async fn records(dir: &std::path::Path) -> Records {
        let path = dir.join("store");
        let store = tokio::task::spawn_blocking(move || Store::open(&path, &Limits::default()));
        let store = store.await.unwrap().unwrap();
        let authority = Arc::new(Authority::open(dir, &"moorline.local".parse().unwrap()).unwrap());
        let kinds = specs::all(&store, JoinFacts { authority, public_url: "https://hub.example".into() });
        let (registry, stop) = (prometheus::Registry::new(), CancellationToken::new());
        let server = ApiServer::new(store.clone(), kinds, Limits::default(), &registry, stop).unwrap();
        Records::new(store, Arc::new(server))
    }
}
