//! Reading: all of a store, and what others wrote since.

use super::{CATCH_UP, Etcd, EtcdError, FORMAT, Head, OPEN, PAUSE, end_of, grpc::PAGE, pb, told, unavailable};
use crate::{
    backend::{Landed, Landing, News, WriteError},
    seal::{self, Part, SealError},
    store::{CommitError, Kept, State},
    stored::Stored,
};
use bytes::Bytes;
use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};
use tokio::time::{Instant, sleep, timeout_at};
use tonic::{Code, Status};

/// Why a page, or a portion of the watch, was not read.
pub(super) enum ReadError {
    /// etcd has forgotten it, or there is a gap: everything has to be read again.
    Lost,
    Status(Status),
    Corrupt(String),
}

impl From<Status> for ReadError {
    fn from(status: Status) -> Self {
        if status.code() == Code::OutOfRange { Self::Lost } else { Self::Status(status) }
    }
}

impl Etcd {
    /// What the store is sealed with, if it is there and sealed.
    pub(super) async fn wrapped(&mut self) -> Result<Option<Bytes>, EtcdError> {
        let until = Instant::now() + OPEN;
        loop {
            let key = Bytes::from(self.seal_key());
            match self.etcds.range(pb::RangeRequest { key, ..Default::default() }).await {
                Ok(answer) => return Ok(answer.kvs.into_iter().next().map(|kv| kv.value)),
                Err(status) if until < Instant::now() => return Err(EtcdError::Unreachable(told(&status))),
                Err(_) => self.etcds.turn(),
            }
            sleep(PAUSE).await;
        }
    }

    /// The store as it is; `None`: there is none. Members are asked in turn for as long as `patience` lasts.
    pub(super) async fn load_or(&mut self, patience: Duration) -> Result<Option<State>, EtcdError> {
        let until = Instant::now() + patience;
        loop {
            let why = match self.load().await {
                Ok(found) => return found,
                Err(ReadError::Corrupt(why)) => return Err(EtcdError::Corrupt(why)),
                Err(ReadError::Lost) => "it forgets faster than it can be read".to_owned(),
                Err(ReadError::Status(status)) => told(&status),
            };
            if until < Instant::now() {
                return Err(EtcdError::Unreachable(why));
            }
            self.etcds.turn();
            sleep(PAUSE).await;
        }
    }

    async fn load(&mut self) -> Result<Result<Option<State>, EtcdError>, ReadError> {
        let key = Bytes::from(self.head_key());
        let answer = self.etcds.range(pb::RangeRequest { key, ..Default::default() }).await?;
        let at = answer.header.map_or(0, |h| h.revision);
        let Some(kv) = answer.kvs.first() else {
            let (key, range_end) = (self.root.clone().into(), end_of(&self.root));
            let any = self.etcds.range(pb::RangeRequest { key, range_end, limit: 1, ..Default::default() }).await?;
            return Ok(if any.kvs.is_empty() { Ok(None) } else { Err(EtcdError::Unfinished) });
        };
        let head = match read_head(&kv.value)? {
            Head { format, .. } if FORMAT < format => return Ok(Err(EtcdError::Newer { found: format })),
            head => head,
        };
        let mut state = State { revision: head.revision, compacted: head.revision, ..State::default() };
        for (key, value) in self.all("objects/", at).await? {
            let (stored, revision) = self.read_object(&key, &value)?;
            state.objects.insert(key.into(), Kept { revision, stored });
        }
        for (key, value) in self.all("private/", at).await? {
            let record = self.read_private(&key, value)?;
            state.private.insert(key, record);
        }
        (self.head, self.seen, self.reached, self.revision) = (kv.mod_revision, at, at, head.revision);
        (self.by, self.text) = (head.by, kv.value.clone());
        (self.overtaken, self.lost) = (0, false);
        self.watch = None;
        self.ready.clear();
        Ok(Ok(Some(state)))
    }

    /// All values under a part of the root, as they were at etcd's revision `at`.
    async fn all(&self, part: &str, at: i64) -> Result<BTreeMap<String, Bytes>, ReadError> {
        let prefix = format!("{}{part}", self.root);
        let (mut key, range_end) = (Bytes::from(prefix.clone()), end_of(&prefix));
        let mut found = BTreeMap::new();
        loop {
            let request = pb::RangeRequest { key, range_end: range_end.clone(), limit: PAGE, revision: at };
            let answer = self.etcds.range(request).await?;
            let last = answer.kvs.last().map(|kv| kv.key.clone());
            for kv in answer.kvs {
                found.insert(under(&prefix, &kv.key)?, kv.value);
            }
            let Some(last) = last.filter(|_| answer.more) else { return Ok(found) };
            // The key after this one.
            key = [&last[..], &[0]].concat().into();
        }
    }

    /// The next portion of the watch, into `ready`.
    ///
    /// # Cancel safety
    /// Safe: what was taken off the watch is there, or comes again: a watch of which something could not be read is left,
    /// and the next one begins at what is known.
    pub(super) async fn listen(&mut self) -> Result<(), ReadError> {
        let watch = match &mut self.watch {
            Some(watch) => watch,
            none => {
                let (from, end) = (self.root.clone().into(), end_of(&self.root));
                none.insert(self.etcds.watch(from, end, self.seen + 1).await?)
            }
        };
        let answer = match watch.message().await {
            Ok(Some(answer)) => answer,
            Ok(None) => {
                self.watch = None;
                return Err(Status::unavailable("the watch ended").into());
            }
            Err(status) => {
                self.watch = None;
                return Err(status.into());
            }
        };
        if answer.canceled {
            self.watch = None;
            if 0 < answer.compact_revision {
                return Err(ReadError::Lost);
            }
            return Err(Status::unavailable(answer.cancel_reason).into());
        }
        // Nothing but how far it is: on this watch all was told up to there. A store that nobody writes to would stay behind
        // what others make etcd forget, and after a broken watch be read as a whole. The first answer of a watch says how far
        // etcd is, and not the watch.
        if answer.events.is_empty() && !answer.created {
            self.seen = self.seen.max(answer.header.map_or(0, |h| h.revision));
        }
        let mut transactions: BTreeMap<i64, Vec<(pb::KeyValue, bool)>> = BTreeMap::new();
        for event in answer.events {
            let put = event.r#type == pb::EventType::Put as i32;
            let Some(kv) = event.kv else { continue };
            transactions.entry(kv.mod_revision).or_default().push((kv, put));
        }
        let head_key = self.head_key();
        for (at, changes) in transactions {
            // What this process wrote itself. What has no head is not: it stands before one that was written over it unseen.
            let head = changes.iter().find(|(kv, _)| *kv.key == *head_key.as_bytes());
            if let Some((kv, put)) = head.filter(|_| at <= self.head) {
                // Or another's: one of a history that a backup began, which etcd counts alike.
                if at == self.head && !(*put && kv.value == self.text) {
                    self.watch = None;
                    return Err(ReadError::Lost);
                }
                self.seen = self.seen.max(at);
                continue;
            }
            let landing = self.landing(at, changes).inspect_err(|_| self.watch = None)?;
            self.ready.push_back(landing);
        }
        Ok(())
    }

    /// What one transaction of somebody's brought. After an error nothing of it counts.
    pub(super) fn landing(&mut self, at: i64, changes: Vec<(pb::KeyValue, bool)>) -> Result<Landing, ReadError> {
        let (head_key, objects, private) = (self.head_key(), self.object_key(""), self.private_key(""));
        let (mut head, mut changed, mut landing) = (None, HashMap::new(), Landing::default());
        for (kv, put) in changes {
            let value = put.then_some(kv.value);
            if *kv.key == *head_key.as_bytes() {
                head = value;
            } else if kv.key.starts_with(objects.as_bytes()) {
                changed.insert(under(&objects, &kv.key)?, value);
            } else if kv.key.starts_with(private.as_bytes()) {
                let key = under(&private, &kv.key)?;
                let record = value.map(|value| self.read_private(&key, value)).transpose()?;
                landing.private.push((key, record));
            }
        }
        // Not a transaction of a store's: somebody used etcdctl.
        let Some(text) = head else { return Err(ReadError::Lost) };
        let head = read_head(&text)?;
        let before = head.revision.checked_sub(head.changes.len() as u64);
        // Of another history it may be, and begin at the same revision: one after a backup that was put back.
        if before != Some(self.revision) || head.after.is_some_and(|after| after != self.by) {
            return Err(ReadError::Lost);
        }
        for (place, key) in head.changes.into_iter().enumerate() {
            // At most the head's, of which their number was just taken off.
            let revision = self.revision + 1 + place as u64;
            let value = changed.remove(&key).ok_or(ReadError::Lost)?;
            let after = value.map(|text| self.read_object(&key, &text)).transpose()?.map(|(stored, _)| stored);
            landing.events.push(Landed { revision, key: key.into(), after });
        }
        (self.head, self.seen, self.revision) = (at, at, head.revision);
        (self.by, self.text) = (head.by, text);
        Ok(landing)
    }

    fn read_object(&self, key: &str, value: &[u8]) -> Result<(Stored, u64), ReadError> {
        let text = seal::read(self.seal.as_deref(), Part::Objects, key, value).map_err(damaged)?;
        Stored::read(text.into_owned()).map_err(|e| ReadError::Corrupt(format!("object {key}: {e}")))
    }

    fn read_private(&self, key: &str, value: Bytes) -> Result<Bytes, ReadError> {
        match self.seal.as_deref() {
            None => Ok(value),
            seal => Ok(seal::read(seal, Part::Private, key, &value).map_err(damaged)?.into_owned().into()),
        }
    }

    /// Everything up to the newest head, into `ready`.
    pub(super) async fn catch_up(&mut self) -> Result<(), ReadError> {
        // On a watch that is open it is on its way. One that had to be left may have ended with its etcd, and one that was
        // put back from a backup since may never come there: then it is asked what there is.
        if self.watch.is_some() && self.head < self.overtaken {
            return self.hear(self.overtaken).await;
        }
        let key = Bytes::from(self.head_key());
        let answer = self.etcds.range(pb::RangeRequest { key, ..Default::default() }).await?;
        let at = answer.header.map_or(0, |h| h.revision);
        let kv = answer.kvs.first().ok_or(ReadError::Lost)?;
        let newest = kv.mod_revision;
        // Another head than the known one, at a revision up to which all was known; or etcd is not as far as that: it was put
        // back from a backup. A watch from what is known would wait for what etcd does not have yet, or has had before it.
        let known = newest == self.head && kv.value == self.text;
        let reached = self.reached.max(self.seen);
        if at < reached || (!known && newest <= self.head.max(reached)) {
            return Err(ReadError::Lost);
        }
        self.hear(newest).await?;
        self.reached = reached.max(at);
        Ok(())
    }

    /// Listens until the head at etcd's revision `newest` is known, for as long as heads come.
    async fn hear(&mut self, newest: i64) -> Result<(), ReadError> {
        let late = |_| Status::unavailable("changes that are there do not come");
        let mut until = Instant::now() + CATCH_UP;
        while self.head < newest {
            // All was told up to there, and no such head: it is of a history that is no more.
            if newest <= self.seen {
                return Err(ReadError::Lost);
            }
            let before = self.head;
            timeout_at(until, self.listen()).await.map_err(late)??;
            // A member that only says how far it is, and is behind, says so for ever.
            if before < self.head {
                until = Instant::now() + CATCH_UP;
            }
        }
        Ok(())
    }

    /// What there is when a portion could not be read.
    pub(super) async fn otherwise(&mut self, error: ReadError) -> Result<News, WriteError> {
        match error {
            ReadError::Status(status) => {
                self.watch = None;
                self.etcds.turn();
                Err(WriteError::Doubtful(unavailable(&status)))
            }
            ReadError::Corrupt(why) => Err(WriteError::Stopped(CommitError::Failed(why))),
            ReadError::Lost => {
                // Until it is done: nothing is written before.
                self.lost = true;
                tracing::warn!("etcd has forgotten what this process had not seen yet; reading all of the store again");
                match self.load().await {
                    Ok(Ok(Some(state))) => Ok(News::Everything(Box::new(state))),
                    Ok(Ok(None)) => Err(WriteError::Stopped(CommitError::Failed("the store is gone from etcd".into()))),
                    Ok(Err(error)) => Err(WriteError::Stopped(CommitError::Failed(error.to_string()))),
                    Err(ReadError::Corrupt(why)) => Err(WriteError::Stopped(CommitError::Failed(why))),
                    // The next one is asked then: this one may never answer.
                    Err(ReadError::Status(status)) => {
                        self.etcds.turn();
                        Err(WriteError::Doubtful(unavailable(&status)))
                    }
                    Err(ReadError::Lost) => {
                        self.etcds.turn();
                        Err(WriteError::Doubtful(CommitError::Unavailable("etcd forgets too fast".into())))
                    }
                }
            }
        }
    }
}

pub(super) fn read_head(value: &[u8]) -> Result<Head, ReadError> {
    serde_json::from_slice(value).map_err(|e| ReadError::Corrupt(format!("the head of the store in etcd: {e}")))
}

fn damaged(error: SealError) -> ReadError {
    ReadError::Corrupt(error.to_string())
}

fn under(prefix: &str, key: &[u8]) -> Result<String, ReadError> {
    let key = key.strip_prefix(prefix.as_bytes()).and_then(|key| std::str::from_utf8(key).ok());
    key.map(str::to_owned).ok_or_else(|| ReadError::Corrupt(format!("a key in etcd under {prefix} is no text")))
}
