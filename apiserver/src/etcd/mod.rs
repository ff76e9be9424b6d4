//! A store's content in an etcd, which several processes may share.
//!
//! Under the root of its keys there are `objects/…`, `private/…` and one `head`. The head has the store's revision, and
//! each transaction changes it, on condition that nobody else has since: so there is one history, its revisions are the
//! same for all processes, and a watch goes on at any of them. The head also names the objects that its transaction
//! changed, in order, and who wrote it: after an answer that did not come this tells whether the write did.
//!
//! etcd's own revisions count other changes too and are seen by nobody outside this module.

mod grpc;
mod pb;
mod place;

pub use place::{EtcdPlace, EtcdTls};

use crate::{
    backend::{Backend, Bounds, Group, Landed, Landing, News, WriteError},
    disk::revision_of,
    store::{CommitError, Entry, State},
};
use bytes::Bytes;
use grpc::{Etcds, PAGE, cause};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tonic::{Code, Status, Streaming};

/// The format of what is kept. A higher number was written by a newer version and is refused untouched.
const FORMAT: u64 = 1;
/// Keys of one transaction (etcd's `--max-txn-ops`: 128); private records that go with an object may come on top.
const KEYS: usize = 96;
/// Bytes of one transaction, unless one change is larger (etcd's `--max-request-bytes`: 1.5 MiB).
const BYTES: usize = 512 << 10;
/// Longest that a transaction is tried while it is not known whether it was made. An election takes one or two seconds.
const WRITE: Duration = Duration::from_secs(8);
/// Longest that the first reading is tried.
const OPEN: Duration = Duration::from_secs(20);
/// Pause before the next member is asked.
const PAUSE: Duration = Duration::from_millis(100);
/// Longest wait for changes that are known to be there.
const CATCH_UP: Duration = Duration::from_secs(5);
/// How often etcd is told to forget what is older than the last time (kube-apiserver: 5 minutes).
const COMPACT: Duration = Duration::from_secs(300);

/// Why an etcd does not serve as a store.
#[derive(Debug, thiserror::Error)]
pub enum EtcdError {
    /// The address.
    #[error("{address:?}: {why}")]
    Address {
        /// As it was given.
        address: String,
        /// What is wrong with it.
        why: String,
    },
    /// A file of the TLS to it.
    #[error("{}: {why}", file.display())]
    Tls {
        /// Which.
        file: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// No member answered as it should.
    #[error("etcd does not answer: {0}")]
    Unreachable(String),
    /// A newer version wrote it.
    #[error("it has format {found} and this version knows {FORMAT}: use the version that wrote it")]
    Newer {
        /// Its format.
        found: u64,
    },
    /// There are objects and no head: copying into it was cut short.
    #[error("it holds a part of a store, whose migration was cut short: run the migration again")]
    Unfinished,
    /// Something is there already.
    #[error("there is a store already; nothing was overwritten")]
    Exists,
    /// What is stored cannot be read.
    #[error("{0}")]
    Corrupt(String),
}

/// The one key that every transaction changes.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    format: u64,
    revision: u64,
    /// Who wrote it, and which of theirs it is.
    by: String,
    /// The objects that were changed, in order; the last one's revision is the head's.
    #[serde(default)]
    changes: Vec<String>,
}

/// See the module.
pub(crate) struct Etcd {
    etcds: Etcds,
    /// Beginning of all keys.
    root: String,
    /// etcd's revision of the head that this process knows; 0: there was none.
    head: i64,
    /// etcd's revision up to which everything is known.
    seen: i64,
    /// The store's revision there.
    revision: u64,
    /// etcd's revision of a head of somebody else's that a write of this process came after; 0: of none.
    overtaken: i64,
    watch: Option<Streaming<pb::WatchResponse>>,
    /// Read off the watch, and not given out yet.
    ready: VecDeque<Landing>,
    /// This process, and its next write.
    me: uuid::Uuid,
    written: u64,
    forget: (Instant, i64),
}

/// Why a page, or a portion of the watch, was not read.
enum ReadError {
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

fn told(status: &Status) -> String {
    match status.message() {
        "" => cause(status),
        message => message.to_owned(),
    }
}

fn unavailable(status: &Status) -> CommitError {
    CommitError::Unavailable(told(status))
}

/// The first key after all that begin with `prefix`, which ends in a slash.
fn end_of(prefix: &str) -> Bytes {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end.into()
}

impl Etcd {
    fn new(place: &EtcdPlace) -> Result<Self, EtcdError> {
        Ok(Self {
            etcds: Etcds::new(place)?,
            root: format!("/{}/", place.root),
            head: 0,
            seen: 0,
            revision: 0,
            overtaken: 0,
            watch: None,
            ready: VecDeque::new(),
            me: uuid::Uuid::new_v4(),
            written: 0,
            forget: (Instant::now() + COMPACT, 0),
        })
    }

    /// Reads the store, or makes an empty one.
    pub(crate) async fn open(place: &EtcdPlace) -> Result<(Self, State), EtcdError> {
        let mut etcd = Self::new(place)?;
        let state = match etcd.load_or(OPEN).await? {
            Some(state) => state,
            None => {
                // Not 0, which means "any" in requests: an empty store has been at 1.
                etcd.begin(1).await?;
                etcd.load_or(OPEN).await?.ok_or(EtcdError::Unfinished)?
            }
        };
        Ok((etcd, state))
    }

    /// Writes a whole store into a place where none is. What an earlier one that was cut short has left there goes.
    pub(crate) async fn fill(place: &EtcdPlace, moment: &crate::store::Moment) -> Result<(), EtcdError> {
        let mut etcd = Self::new(place)?;
        match etcd.load_or(OPEN).await {
            Ok(None) => {}
            Ok(Some(_)) => return Err(EtcdError::Exists),
            Err(EtcdError::Unfinished) => {
                let all = pb::DeleteRangeRequest { key: etcd.root.clone().into(), range_end: end_of(&etcd.root) };
                etcd.insist(vec![pb::Request::Delete(all).into()]).await?;
            }
            Err(other) => return Err(other),
        }
        let objects = moment.events.iter().map(|e| etcd.put(&etcd.object_key(&e.key), e.text().to_owned().into()));
        let private = moment.private.iter().filter_map(|(key, value)| {
            let value = value.clone()?;
            Some(etcd.put(&etcd.private_key(key), value))
        });
        let all: Vec<pb::RequestOp> = objects.chain(private).collect();
        let mut rest = all.into_iter().peekable();
        while rest.peek().is_some() {
            let (mut portion, mut bytes) = (Vec::new(), 0);
            while portion.len() < KEYS
                && let Some(op) =
                    rest.next_if(|op| portion.is_empty() || bytes + prost::Message::encoded_len(op) < BYTES)
            {
                bytes += prost::Message::encoded_len(&op);
                portion.push(op);
            }
            // Written again, it is the same: a portion may be tried as often as it takes.
            etcd.insist(portion).await?;
        }
        // Last: what has no head is no store.
        etcd.begin(moment.revision).await
    }

    async fn insist(&mut self, success: Vec<pb::RequestOp>) -> Result<(), EtcdError> {
        let until = Instant::now() + OPEN;
        let absent = self.expect(0);
        loop {
            let request =
                pb::TxnRequest { compare: vec![absent.clone()], success: success.clone(), failure: Vec::new() };
            match self.etcds.txn(request).await {
                Ok(answer) if answer.succeeded => return Ok(()),
                Ok(_) => return Err(EtcdError::Exists),
                Err(status) if until < Instant::now() || status.code() == Code::InvalidArgument => {
                    return Err(EtcdError::Unreachable(told(&status)));
                }
                Err(_) => self.etcds.turn(),
            }
            sleep(PAUSE).await;
        }
    }

    /// Writes the first head.
    async fn begin(&mut self, revision: u64) -> Result<(), EtcdError> {
        let head = self.next_head(revision, Vec::new())?;
        let op = self.put(&self.head_key(), head.into());
        match self.insist(vec![op]).await {
            // Somebody else was first, or this one twice.
            Err(EtcdError::Exists) if revision == 1 => Ok(()),
            done => done,
        }
    }

    fn head_key(&self) -> String {
        format!("{}head", self.root)
    }
    fn object_key(&self, key: &str) -> String {
        format!("{}objects/{key}", self.root)
    }
    fn private_key(&self, key: &str) -> String {
        format!("{}private/{key}", self.root)
    }

    fn put(&self, key: &str, value: Bytes) -> pb::RequestOp {
        pb::Request::Put(pb::PutRequest { key: key.to_owned().into(), value }).into()
    }
    fn delete(&self, key: &str) -> pb::RequestOp {
        pb::Request::Delete(pb::DeleteRangeRequest { key: key.to_owned().into(), ..Default::default() }).into()
    }
    fn expect(&self, head: i64) -> pb::Compare {
        let wanted = Some(pb::Wanted::ModRevision(head));
        pb::Compare { result: 0, target: pb::MOD, key: self.head_key().into(), wanted }
    }

    fn next_head(&mut self, revision: u64, changes: Vec<String>) -> Result<String, EtcdError> {
        self.written += 1;
        let head = Head { format: FORMAT, revision, by: format!("{}-{}", self.me, self.written), changes };
        serde_json::to_string(&head).map_err(|e| EtcdError::Corrupt(e.to_string()))
    }

    /// The store as it is; `None`: there is none. Members are asked in turn for as long as `patience` lasts.
    async fn load_or(&mut self, patience: Duration) -> Result<Option<State>, EtcdError> {
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
            let size = value.len();
            let value = read_object(&key, &value)?;
            let entry = Entry { revision: revision_of(&value), value: Arc::new(value), size };
            state.objects.insert(key.into(), entry);
        }
        state.private = self.all("private/", at).await?;
        (self.head, self.seen, self.revision) = (kv.mod_revision, at, head.revision);
        self.overtaken = 0;
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
    /// Safe: what was taken off the watch is there.
    async fn listen(&mut self) -> Result<(), ReadError> {
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
        let mut transactions: BTreeMap<i64, Vec<(pb::KeyValue, bool)>> = BTreeMap::new();
        for event in answer.events {
            let put = event.r#type == pb::EventType::Put as i32;
            let Some(kv) = event.kv.filter(|kv| self.head < kv.mod_revision) else { continue };
            transactions.entry(kv.mod_revision).or_default().push((kv, put));
        }
        for (at, changes) in transactions {
            if let Some(landing) = self.landing(at, changes)? {
                self.ready.push_back(landing);
            }
        }
        Ok(())
    }

    /// What one transaction of somebody's brought; `None`: nothing of the store's.
    fn landing(&mut self, at: i64, changes: Vec<(pb::KeyValue, bool)>) -> Result<Option<Landing>, ReadError> {
        let (head_key, objects, private) = (self.head_key(), self.object_key(""), self.private_key(""));
        let (mut head, mut changed, mut landing) = (None, HashMap::new(), Landing::default());
        for (kv, put) in changes {
            let value = put.then_some(kv.value);
            if *kv.key == *head_key.as_bytes() {
                head = value;
            } else if kv.key.starts_with(objects.as_bytes()) {
                changed.insert(under(&objects, &kv.key)?, value);
            } else if kv.key.starts_with(private.as_bytes()) {
                landing.private.push((under(&private, &kv.key)?, value));
            }
        }
        // Not a transaction of a store's: somebody used etcdctl.
        let Some(head) = head else { return Err(ReadError::Lost) };
        let head = read_head(&head)?;
        let before = head.revision.checked_sub(head.changes.len() as u64);
        if before != Some(self.revision) {
            return Err(ReadError::Lost);
        }
        for (revision, key) in (self.revision + 1..).zip(head.changes) {
            let value = changed.remove(&key).ok_or(ReadError::Lost)?;
            let value = value.map(|text| read_object(&key, &text).map(Arc::new)).transpose()?;
            landing.events.push(Landed { revision, key: key.into(), value });
        }
        (self.head, self.seen, self.revision) = (at, at, head.revision);
        Ok(Some(landing))
    }

    /// Everything up to the newest head, into `ready`.
    async fn catch_up(&mut self) -> Result<(), ReadError> {
        let late = |_| Status::unavailable("changes that are there do not come");
        if self.head < self.overtaken {
            while self.head < self.overtaken {
                timeout(CATCH_UP, self.listen()).await.map_err(late)??;
            }
            return Ok(());
        }
        let key = Bytes::from(self.head_key());
        let answer = self.etcds.range(pb::RangeRequest { key, ..Default::default() }).await?;
        let at = answer.header.map_or(0, |h| h.revision);
        let newest = answer.kvs.first().ok_or(ReadError::Lost)?.mod_revision;
        // Older than what is known: an etcd that was put back from a backup.
        if newest < self.head {
            return Err(ReadError::Lost);
        }
        while self.head < newest {
            timeout(CATCH_UP, self.listen()).await.map_err(late)??;
        }
        self.seen = self.seen.max(at);
        Ok(())
    }

    fn landings(&mut self) -> News {
        News::Landings(self.ready.drain(..).collect())
    }

    /// What there is when a portion could not be read.
    async fn otherwise(&mut self, error: ReadError) -> Result<News, WriteError> {
        match error {
            ReadError::Status(status) => {
                self.watch = None;
                self.etcds.turn();
                Err(WriteError::Doubtful(unavailable(&status)))
            }
            ReadError::Corrupt(why) => Err(WriteError::Stopped(CommitError::Failed(why))),
            ReadError::Lost => {
                tracing::warn!("etcd has forgotten what this process had not seen yet; reading all of the store again");
                match self.load().await {
                    Ok(Ok(Some(state))) => Ok(News::Everything(Box::new(state))),
                    Ok(Ok(None)) => Err(WriteError::Stopped(CommitError::Failed("the store is gone from etcd".into()))),
                    Ok(Err(error)) => Err(WriteError::Stopped(CommitError::Failed(error.to_string()))),
                    Err(ReadError::Corrupt(why)) => Err(WriteError::Stopped(CommitError::Failed(why))),
                    Err(ReadError::Status(status)) => Err(WriteError::Doubtful(unavailable(&status))),
                    Err(ReadError::Lost) => {
                        Err(WriteError::Doubtful(CommitError::Unavailable("etcd forgets too fast".into())))
                    }
                }
            }
        }
    }
}

impl Backend for Etcd {
    fn bounds(&self) -> Bounds {
        Bounds { keys: KEYS, bytes: BYTES, once: true }
    }

    fn recovers_by_itself(&self) -> bool {
        true
    }

    async fn write(&mut self, group: &Group) -> Result<(), WriteError> {
        let revision = group.events.last().map_or(self.revision, |e| e.revision);
        let changes = group.events.iter().map(|e| e.key.to_string()).collect();
        let stopped = |e: EtcdError| WriteError::Stopped(CommitError::Failed(e.to_string()));
        let head = self.next_head(revision, changes).map_err(stopped)?;
        let by = format!("{}-{}", self.me, self.written);
        let mut success: Vec<pb::RequestOp> = vec![self.put(&self.head_key(), head.into())];
        success.extend(group.events.iter().map(|event| match &event.value {
            Some(_) => self.put(&self.object_key(&event.key), event.text().to_owned().into()),
            None => self.delete(&self.object_key(&event.key)),
        }));
        // The last word on each record: etcd takes a key once.
        let records: BTreeMap<&String, &Option<Bytes>> = group.private.iter().map(|(k, v)| (k, v)).collect();
        success.extend(records.into_iter().map(|(key, value)| match value {
            Some(value) => self.put(&self.private_key(key), value.clone()),
            None => self.delete(&self.private_key(key)),
        }));
        let look = pb::Request::Range(pb::RangeRequest { key: self.head_key().into(), ..Default::default() });
        let request = pb::TxnRequest { compare: vec![self.expect(self.head)], success, failure: vec![look.into()] };
        let until = Instant::now() + WRITE;
        let mut doubtful = false;
        loop {
            match self.etcds.txn(request.clone()).await {
                Ok(answer) if answer.succeeded => {
                    let at = answer.header.map_or(0, |h| h.revision);
                    (self.head, self.seen, self.revision) = (at, at, revision);
                    return Ok(());
                }
                Ok(answer) => {
                    let found = answer.responses.into_iter().find_map(|r| match r.response {
                        Some(pb::Response::Range(range)) => range.kvs.into_iter().next(),
                        None => None,
                    });
                    self.overtaken = found.as_ref().map_or(0, |kv| kv.mod_revision);
                    let mine = found.filter(|kv| read_head(&kv.value).is_ok_and(|head| head.by == by));
                    return match mine {
                        // An earlier try, whose answer did not come.
                        Some(kv) => {
                            (self.head, self.seen, self.revision) = (kv.mod_revision, kv.mod_revision, revision);
                            Ok(())
                        }
                        None if doubtful => Err(WriteError::Doubtful(CommitError::Unavailable(
                            "others wrote while an answer did not come".to_owned(),
                        ))),
                        None => Err(WriteError::Behind),
                    };
                }
                Err(status) => match status.code() {
                    Code::InvalidArgument => return Err(WriteError::Refused(CommitError::TooLarge(told(&status)))),
                    // Its quota is used up. Nothing was written.
                    Code::ResourceExhausted if !doubtful => {
                        return Err(WriteError::Doubtful(CommitError::Full(told(&status))));
                    }
                    _ if until < Instant::now() => return Err(WriteError::Doubtful(unavailable(&status))),
                    _ => {
                        doubtful = true;
                        self.etcds.turn();
                        sleep(PAUSE).await;
                    }
                },
            }
        }
    }

    async fn recover(&mut self, _: &Group, _: u64) -> Result<News, WriteError> {
        // Who has a majority behind it is not known: each is asked.
        for _ in 1..self.etcds.members() {
            match self.catch_up().await {
                Ok(()) => return Ok(self.landings()),
                Err(ReadError::Status(_)) => {
                    self.watch = None;
                    self.etcds.turn();
                }
                Err(other) => return self.otherwise(other).await,
            }
        }
        match self.catch_up().await {
            Ok(()) => Ok(self.landings()),
            Err(error) => self.otherwise(error).await,
        }
    }

    async fn news(&mut self) -> Result<News, WriteError> {
        loop {
            if !self.ready.is_empty() {
                return Ok(self.landings());
            }
            let (forget_at, forget) = self.forget;
            tokio::select! {
                heard = self.listen() => if let Err(error) = heard {
                    return self.otherwise(error).await;
                },
                () = sleep_until(forget_at) => {
                    self.forget = (Instant::now() + COMPACT, self.seen);
                    // It may have been done by another, or be refused: there is a next time.
                    if 0 < forget && let Err(status) = self.etcds.compact(forget).await {
                        tracing::debug!(%status, "etcd was not compacted");
                    }
                }
            }
        }
    }
}

fn read_head(value: &[u8]) -> Result<Head, ReadError> {
    serde_json::from_slice(value).map_err(|e| ReadError::Corrupt(format!("the head of the store in etcd: {e}")))
}

fn read_object(key: &str, value: &[u8]) -> Result<Value, ReadError> {
    serde_json::from_slice(value).map_err(|e| ReadError::Corrupt(format!("object {key}: {e}")))
}

fn under(prefix: &str, key: &[u8]) -> Result<String, ReadError> {
    let key = key.strip_prefix(prefix.as_bytes()).and_then(|key| std::str::from_utf8(key).ok());
    key.map(str::to_owned).ok_or_else(|| ReadError::Corrupt(format!("a key in etcd under {prefix} is no text")))
}
