//! The same door for code in this process: typed, without HTTP.

use crate::{
    ApiError, Compacted, Object, Spec, Watcher,
    delete::{Deleted, Preconditions, Propagation},
    ops::{Ops, Part, Unknown, WriteOptions, Writer},
};
use std::{marker::PhantomData, sync::Arc};

const OPTIONS: WriteOptions = WriteOptions { unknown: Unknown::Refuse, dry_run: false, unconditional: true };

/// The field manager of this process's own writes.
const MANAGER: &str = "moorline";

/// Typed access to the objects of one kind. No authorization: it is for the server's own code.
pub struct Api<S> {
    ops: Arc<Ops>,
    kind: PhantomData<fn() -> S>,
}

impl<S> Clone for Api<S> {
    fn clone(&self) -> Self {
        Self { ops: Arc::clone(&self.ops), kind: PhantomData }
    }
}

/// A change of one object.
#[derive(Clone)]
pub enum WatchEvent<S: Spec> {
    /// Made or changed.
    Applied(Box<Object<S>>),
    /// Deleted; its last state.
    Deleted(Box<Object<S>>),
}

/// The changes of one kind.
pub struct ApiWatch<S> {
    watcher: Watcher,
    kind: PhantomData<fn() -> S>,
}

fn unreadable<S: Spec>(error: serde_json::Error) -> ApiError {
    ApiError::internal(format!("a stored {} cannot be read: {error}", S::KIND))
}

fn read<S: Spec>(value: &serde_json::Value) -> Result<Object<S>, ApiError> {
    serde::Deserialize::deserialize(value).map_err(unreadable::<S>)
}

impl<S: Spec> Api<S> {
    pub(crate) fn new(ops: Arc<Ops>) -> Self {
        Self { ops, kind: PhantomData }
    }

    fn kind(&self) -> Result<&crate::KindSpec, ApiError> {
        self.ops.kind(S::PLURAL).ok_or_else(|| ApiError::internal(format!("the kind {} is not served", S::KIND)))
    }

    /// One object; `None`: there is none of that name.
    ///
    /// # Errors
    /// What is stored cannot be read.
    pub fn get(&self, name: &str) -> Result<Option<Object<S>>, ApiError> {
        self.ops.store.read(&self.kind()?.key(name)).transpose().map_err(unreadable::<S>)
    }

    /// All objects, and the revision to watch from.
    ///
    /// # Errors
    /// What is stored cannot be read.
    pub fn list(&self) -> Result<(u64, Vec<Object<S>>), ApiError> {
        let (revision, all) = self.ops.store.read_all(&self.kind()?.prefix());
        Ok((revision, all.collect::<Result<_, _>>().map_err(unreadable::<S>)?))
    }

    /// Stores a new object; the answer has what the kind's creation hook adds for the creator alone.
    ///
    /// # Errors
    /// As over HTTP.
    pub async fn create(&self, object: &Object<S>) -> Result<Object<S>, ApiError> {
        let made = self.ops.create(self.kind()?, json(object)?, OPTIONS, Writer::Updates(MANAGER)).await?;
        read(&made.object)
    }

    /// Replaces metadata and spec. With a `resourceVersion`: only if nobody changed it since.
    ///
    /// # Errors
    /// As over HTTP.
    pub async fn update(&self, object: &Object<S>) -> Result<Object<S>, ApiError> {
        self.put(object, Part::Main).await
    }

    /// Replaces the status. With a `resourceVersion`: only if nobody changed the object since.
    ///
    /// # Errors
    /// As over HTTP.
    pub async fn update_status(&self, object: &Object<S>) -> Result<Object<S>, ApiError> {
        self.put(object, Part::Status).await
    }

    async fn put(&self, object: &Object<S>, part: Part) -> Result<Object<S>, ApiError> {
        let new = self.ops.update(self.kind()?, object.name(), part, json(object)?, OPTIONS, MANAGER).await?;
        read(&new.object)
    }

    /// Deletes; `false`: there was none. Dependents go too.
    ///
    /// # Errors
    /// As over HTTP.
    pub async fn delete(&self, name: &str) -> Result<bool, ApiError> {
        match self.ops.delete(self.kind()?, name, &Preconditions::default(), Propagation::Background, false).await {
            Ok(Deleted::Gone(_) | Deleted::Held(_)) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The changes after a revision.
    ///
    /// # Errors
    /// They are no longer known: list again.
    pub fn watch(&self, from: u64) -> Result<ApiWatch<S>, Compacted> {
        let prefix = self.kind().map_err(|_| Compacted)?.prefix();
        Ok(ApiWatch { watcher: self.ops.store.watch(&prefix, from)?, kind: PhantomData })
    }

    /// The key of an object's private record.
    ///
    /// # Errors
    /// The kind is not served.
    pub fn private_key(&self, name: &str, suffix: &str) -> Result<String, ApiError> {
        Ok(format!("{}/{suffix}", self.kind()?.key(name)))
    }
}

impl<S: Spec> ApiWatch<S> {
    /// The next change; `None`: the store is closed, or this watch fell behind what is kept. List again.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn next(&mut self) -> Option<WatchEvent<S>> {
        loop {
            let event = self.watcher.next().await.ok()??;
            let made = match (&event.after, event.previous()) {
                (Some(stored), _) => serde_json::from_str(stored.text())
                    .map(|o| WatchEvent::Applied(Box::new(o)))
                    .map_err(unreadable::<S>),
                (None, Some(previous)) => read(&previous.value).map(|o| WatchEvent::Deleted(Box::new(o))),
                (None, None) => continue,
            };
            match made {
                Ok(event) => return Some(event),
                // One unreadable object must not stop the others' news.
                Err(error) => tracing::error!(%error, key = &*event.key, "skipped a change"),
            }
        }
    }
}

fn json<S: Spec>(object: &Object<S>) -> Result<serde_json::Value, ApiError> {
    let mut value = serde_json::to_value(object).map_err(|e| ApiError::internal(e.to_string()))?;
    // What a typed object does not fill in is not said, rather than said to be empty.
    if let Some(meta) = value["metadata"].as_object_mut() {
        meta.retain(|_, v| v.as_str() != Some(""));
    }
    Ok(value)
}
