//! A store's content in an etcd, which several processes may share.
//!
//! Under the root of its keys there are `objects/…`, `private/…` and one `head`. The head has the store's revision, and
//! each transaction changes it, on condition that nobody else has since: so there is one history, its revisions are the
//! same for all processes, and a watch goes on at any of them. The head also names the objects that its transaction
//! changed, in order, and who wrote it: after an answer that did not come this tells whether the write did. And it names the
//! head that it came after, by which one history is told from another: an etcd that was put back from a backup counts from
//! there again, so that its revisions, and the store's, may be the same in both.
//!
//! etcd's own revisions count other changes too and are seen by nobody outside this module.

#[cfg(test)]
mod fake;
mod grpc;
mod pb;
mod place;
mod read;
#[cfg(test)]
mod tests;

pub use place::{EtcdPlace, EtcdTls};

use crate::{
    backend::{Backend, Bounds, Group, Landing, News, WriteError},
    seal::{self, Part, Seal, SealError, StoreKey},
    store::{CommitError, OpenError, State},
};
use bytes::Bytes;
use grpc::{Etcds, cause};
use read::{ReadError, read_head};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, VecDeque},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::task::AbortOnDropHandle;
use tonic::{Code, Status, Streaming};

/// The format of what is kept. A higher number was written by a newer version and is refused untouched.
const FORMAT: u64 = 2;
/// The format of what is not sealed, which older versions know too.
const PLAIN: u64 = 1;
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
/// Longest wait for the next head while one is known to be there.
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
    /// Its key, or the lack of one.
    #[error(transparent)]
    Sealed(#[from] SealError),
    /// What is stored cannot be read.
    #[error("{0}")]
    Corrupt(String),
}

impl EtcdError {
    pub(crate) fn named(self, place: String) -> OpenError {
        match self {
            Self::Sealed(source) => OpenError::Sealed { place, source },
            source => OpenError::Etcd { place, source },
        }
    }
}

/// The one key that every transaction changes.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    format: u64,
    revision: u64,
    /// Who wrote it, and which of theirs it is. No two heads have the same.
    by: String,
    /// That of the head before. `None`: an older version wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    after: Option<String>,
    /// The objects that were changed, in order; the last one's revision is the head's.
    #[serde(default)]
    changes: Vec<String>,
}

/// See the module.
pub(crate) struct Etcd {
    etcds: Etcds,
    /// Beginning of all keys.
    root: String,
    seal: Option<Arc<Seal>>,
    /// etcd's revision of the head that this process knows; 0: there was none.
    head: i64,
    /// Whose it is.
    by: String,
    /// It, as it stands there.
    text: Bytes,
    /// etcd's revision up to which everything is known: where a watch goes on.
    seen: i64,
    /// The furthest revision that etcd is known to have been at: one that is not as far was put back from a backup. What
    /// somebody changed up to there that is no transaction of a store's may not be seen yet.
    reached: i64,
    /// The store's revision there.
    revision: u64,
    /// etcd's revision of a head of somebody else's that a write of this process came after; 0: of none.
    overtaken: i64,
    /// Something happened that cannot be gone on from: nothing is written before all was read again.
    lost: bool,
    watch: Option<Streaming<pb::WatchResponse>>,
    /// Read off the watch, and not given out yet.
    ready: VecDeque<Landing>,
    /// This process, and its next write.
    me: uuid::Uuid,
    written: u64,
    forget: (Instant, i64),
    /// The call that says so. Who listens is interrupted by orders, and the call is not.
    forgetting: Option<AbortOnDropHandle<()>>,
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
            seal: None,
            head: 0,
            by: String::new(),
            text: Bytes::new(),
            seen: 0,
            reached: 0,
            revision: 0,
            overtaken: 0,
            lost: false,
            watch: None,
            ready: VecDeque::new(),
            me: uuid::Uuid::new_v4(),
            written: 0,
            forget: (Instant::now() + COMPACT, 0),
            forgetting: None,
        })
    }

    /// Reads the store, or makes an empty one.
    pub(crate) async fn open(place: &EtcdPlace, key: Option<&StoreKey>) -> Result<(Self, State), EtcdError> {
        let mut etcd = Self::new(place)?;
        let wrapped = etcd.wrapped().await?;
        let state = match wrapped {
            // Nobody knows yet whether one is there.
            None => etcd.load_or(OPEN).await?,
            Some(wrapped) => {
                etcd.seal = Seal::of(Some(&wrapped), key, false)?;
                etcd.load_or(OPEN).await?
            }
        };
        if etcd.seal.is_none() {
            etcd.seal = Seal::of(None, key, state.is_none())?;
        }
        let state = match state {
            Some(state) => state,
            None => {
                // Not 0, which means "any" in requests: an empty store has been at 1.
                etcd.begin(1).await?;
                // Whoever began it: with what it is sealed is kept there.
                let wrapped = etcd.wrapped().await?;
                etcd.seal = Seal::of(wrapped.as_deref(), key, false)?;
                etcd.load_or(OPEN).await?.ok_or(EtcdError::Unfinished)?
            }
        };
        Ok((etcd, state))
    }

    /// Writes a whole store into a place where none is. What an earlier one that was cut short has left there goes; one that
    /// was cut short after its last write is done, as long as nobody has written there since.
    pub(crate) async fn fill(
        place: &EtcdPlace,
        moment: &crate::store::Moment,
        seal: Option<Arc<Seal>>,
    ) -> Result<(), EtcdError> {
        let mut etcd = Self::new(place)?;
        let there = etcd.wrapped().await?;
        let alike = there.as_deref() == seal.as_deref().map(Seal::wrapped);
        if there.is_some() && !alike {
            return Err(EtcdError::Exists);
        }
        etcd.seal = seal.clone().filter(|_| there.is_some());
        match etcd.load_or(OPEN).await {
            Ok(None) => {}
            Ok(Some(state)) if alike && moment.is(&state) => return Ok(()),
            Ok(Some(_)) => return Err(EtcdError::Exists),
            Err(EtcdError::Unfinished) => {
                let all = pb::DeleteRangeRequest { key: etcd.root.clone().into(), range_end: end_of(&etcd.root) };
                etcd.insist(vec![pb::Request::Delete(all).into()]).await?;
            }
            Err(other) => return Err(other),
        }
        etcd.seal = seal;
        let objects = moment.events.iter().map(|e| etcd.put_object(&e.key, e.text()));
        let private = moment.private.iter().filter_map(|(key, value)| Some(etcd.put_private(key, value.as_ref()?)));
        let all: Vec<pb::RequestOp> = objects.chain(private).collect::<Result<_, _>>()?;
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
        let absent = self.expect(pb::Wanted::ModRevision(0));
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
        let mut ops = vec![self.put(&self.head_key(), head.into())];
        if let Some(seal) = &self.seal {
            ops.push(self.put(&self.seal_key(), Bytes::copy_from_slice(seal.wrapped())));
        }
        match self.insist(ops).await {
            // Somebody else was first, or this one twice.
            Err(EtcdError::Exists) if revision == 1 => Ok(()),
            done => done,
        }
    }

    fn head_key(&self) -> String {
        format!("{}head", self.root)
    }
    fn seal_key(&self) -> String {
        format!("{}seal", self.root)
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
    fn put_object(&self, key: &str, text: &str) -> Result<pb::RequestOp, SealError> {
        let value = seal::kept(self.seal.as_deref(), Part::Objects, key, text.as_bytes())?.into_owned();
        Ok(self.put(&self.object_key(key), value.into()))
    }
    fn put_private(&self, key: &str, record: &[u8]) -> Result<pb::RequestOp, SealError> {
        let value = seal::kept(self.seal.as_deref(), Part::Private, key, record)?.into_owned();
        Ok(self.put(&self.private_key(key), value.into()))
    }
    fn delete(&self, key: &str) -> pb::RequestOp {
        pb::Request::Delete(pb::DeleteRangeRequest { key: key.to_owned().into(), ..Default::default() }).into()
    }
    fn expect(&self, head: pb::Wanted) -> pb::Compare {
        pb::Compare { result: 0, target: head.target(), key: self.head_key().into(), wanted: Some(head) }
    }

    fn next_head(&mut self, revision: u64, changes: Vec<String>) -> Result<String, EtcdError> {
        self.written += 1;
        let format = if self.seal.is_some() { FORMAT } else { PLAIN };
        let after = (!self.by.is_empty()).then(|| self.by.clone());
        let head = Head { format, revision, by: format!("{}-{}", self.me, self.written), after, changes };
        serde_json::to_string(&head).map_err(|e| EtcdError::Corrupt(e.to_string()))
    }

    /// What a group comes to in one transaction.
    fn operations(&self, group: &Group, head: String) -> Result<Vec<pb::RequestOp>, SealError> {
        let mut all = vec![self.put(&self.head_key(), head.into())];
        for event in &group.events {
            all.push(match &event.after {
                Some(_) => self.put_object(&event.key, event.text())?,
                None => self.delete(&self.object_key(&event.key)),
            });
        }
        // The last word on each record: etcd takes a key once.
        let records: BTreeMap<&String, &Option<Bytes>> = group.private.iter().map(|(k, v)| (k, v)).collect();
        for (key, value) in records {
            all.push(match value {
                Some(value) => self.put_private(key, value)?,
                None => self.delete(&self.private_key(key)),
            });
        }
        Ok(all)
    }

    /// There is something that cannot be gone on from. To read all anew takes a while, in which others' changes are not
    /// heard of, and which no order may begin again: it is for who asks what became of a doubt.
    fn gap(&mut self) -> WriteError {
        self.lost = true;
        WriteError::Doubtful(CommitError::Unavailable("all of the store is read again".to_owned()))
    }

    fn landings(&mut self) -> News {
        News::Landings(self.ready.drain(..).collect())
    }
}

impl Backend for Etcd {
    fn seal(&self) -> Option<Arc<Seal>> {
        self.seal.clone()
    }

    fn bounds(&self) -> Bounds {
        Bounds { keys: KEYS, bytes: BYTES, once: true }
    }

    fn is_shared(&self) -> bool {
        true
    }

    async fn write(&mut self, group: &Group) -> Result<(), WriteError> {
        if self.lost {
            return Err(WriteError::Behind);
        }
        let revision = group.events.last().map_or(self.revision, |e| e.revision);
        let changes = group.events.iter().map(|e| e.key.to_string()).collect();
        let stopped = |e: EtcdError| WriteError::Stopped(CommitError::Failed(e.to_string()));
        let head = self.next_head(revision, changes).map_err(stopped)?;
        let by = format!("{}-{}", self.me, self.written);
        let text = Bytes::from(head.clone());
        let success = self.operations(group, head).map_err(|e| stopped(e.into()))?;
        let look = pb::Request::Range(pb::RangeRequest { key: self.head_key().into(), ..Default::default() });
        // Not its revision alone, which another head may have had after a backup was put back.
        let compare =
            vec![self.expect(pb::Wanted::ModRevision(self.head)), self.expect(pb::Wanted::Value(self.text.clone()))];
        let request = pb::TxnRequest { compare, success, failure: vec![look.into()] };
        let found = |answer: &pb::TxnResponse| {
            answer.responses.iter().find_map(|r| match &r.response {
                Some(pb::Response::Range(range)) => range.kvs.first().cloned(),
                None => None,
            })
        };
        let wrote = |kv: &pb::KeyValue| read_head(&kv.value).is_ok_and(|head| head.by == by);
        let mine = |answer: &pb::TxnResponse| found(answer).as_ref().is_some_and(wrote);
        let (answer, doubtful) = self.etcds.txn_once(&request, Instant::now() + WRITE, mine).await;
        match answer {
            Ok(answer) if answer.succeeded => {
                // What somebody changed before it that is no transaction of a store's is not seen yet: the watch tells of it.
                (self.head, self.revision) = (answer.header.map_or(0, |h| h.revision), revision);
                (self.by, self.text) = (by, text);
                Ok(())
            }
            Ok(answer) => {
                let found = found(&answer);
                self.overtaken = found.as_ref().map_or(0, |kv| kv.mod_revision);
                match found.filter(wrote) {
                    // An earlier sending, whose answer did not come.
                    Some(kv) => {
                        (self.head, self.revision) = (kv.mod_revision, revision);
                        (self.by, self.text) = (by, text);
                        Ok(())
                    }
                    None if doubtful => Err(WriteError::Doubtful(CommitError::Unavailable(
                        "others wrote while an answer did not come".to_owned(),
                    ))),
                    None => Err(WriteError::Behind),
                }
            }
            Err(status) => Err(match status.code() {
                Code::InvalidArgument => WriteError::Refused(CommitError::TooLarge(told(&status))),
                // Its quota is used up. Nothing was written.
                Code::ResourceExhausted if !doubtful => WriteError::Doubtful(CommitError::Full(told(&status))),
                _ => WriteError::Doubtful(unavailable(&status)),
            }),
        }
    }

    async fn recover(&mut self, _: &Group, _: u64) -> Result<News, WriteError> {
        if self.lost {
            return self.otherwise(ReadError::Lost).await;
        }
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
            if self.lost {
                return Err(self.gap());
            }
            let (forget_at, forget) = self.forget;
            tokio::select! {
                heard = self.listen() => match heard {
                    Ok(()) => {}
                    Err(ReadError::Lost) => return Err(self.gap()),
                    Err(error) => return self.otherwise(error).await,
                },
                () = sleep_until(forget_at) => {
                    // Not as far as the watch is: what others wrote since is theirs, and is for them to forget.
                    self.forget = (Instant::now() + COMPACT, self.head);
                    self.forgetting = (0 < forget).then(|| {
                        let asked = self.etcds.compact(forget);
                        AbortOnDropHandle::new(tokio::spawn(async move {
                            // It may have been done by another, or be refused: there is a next time.
                            if let Err(status) = asked.await {
                                tracing::debug!(%status, "etcd was not compacted");
                            }
                        }))
                    });
                }
            }
        }
    }
}
