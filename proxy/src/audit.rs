//! One line of JSON for every call that crosses the hub, each a link of a chain.

pub mod chain;
pub mod files;
mod queue;
pub mod search;
mod uri;
mod writer;

use chain::Chain;
use files::{Found, LogFile, Output, Rotation};
use futures_util::future::BoxFuture;
use moorline_authz::{identity::Identity, verb::RequestInfo};
use serde::Serialize;
use std::{
    cell::RefCell,
    collections::BTreeMap,
    convert::Infallible,
    io,
    path::Path,
    sync::{Arc, Mutex, atomic::Ordering, mpsc},
    time::Duration,
};
pub use uri::recorded;
use writer::{Shared, Writer};

/// One audit record, with the field names of Kubernetes' `audit.k8s.io/v1` Event.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// The same in both records of a call.
    #[serde(rename = "auditID")]
    pub audit_id: String,
    /// Where in the call.
    pub stage: Stage,
    /// Path and query as they came, but as [`recorded`] leaves them.
    #[serde(rename = "requestURI")]
    pub request_uri: String,
    /// Kubernetes verb.
    pub verb: String,
    /// Who asked.
    pub user: AuditUser,
    /// As whom.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub impersonated_user: Option<AuditUser>,
    /// The socket's address.
    #[serde(rename = "sourceIPs")]
    pub source_ips: Vec<String>,
    /// As the client says.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user_agent: String,
    /// What it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object_ref: Option<ObjectRef>,
    /// The answer; absent at the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_status: Option<ResponseStatus>,
    /// RFC 3339, UTC, microseconds.
    pub request_received_timestamp: String,
    /// RFC 3339, UTC, microseconds.
    pub stage_timestamp: String,
    /// Cluster, trace id, bytes, how it ended.
    pub annotations: BTreeMap<&'static str, String>,
}

/// Where in a call a record was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Stage {
    /// A call without an end of its own has begun.
    ResponseStarted,
    /// The call is over.
    ResponseComplete,
}

/// A user in an audit record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AuditUser {
    /// Name.
    pub username: String,
    /// Stable id.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// Groups.
    pub groups: Vec<String>,
}

/// An object in an audit record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct ObjectRef {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub resource: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub api_group: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub api_version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub subresource: String,
}

impl AuditUser {
    /// Somebody, as the hub knows them.
    pub fn of(who: &Identity) -> Self {
        Self { username: who.user.clone(), uid: who.uid.clone(), groups: who.groups.clone() }
    }
}

impl ObjectRef {
    /// What a request is about; `None`: no object of an API.
    pub fn of(info: &RequestInfo) -> Option<Self> {
        info.is_resource.then(|| Self {
            resource: info.resource.clone(),
            namespace: info.namespace.clone(),
            name: info.name.clone(),
            api_group: info.api_group.clone(),
            api_version: info.version.clone(),
            subresource: info.subresource.clone(),
        })
    }
}

/// The answer in an audit record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ResponseStatus {
    /// HTTP status.
    pub code: u16,
}

/// The log takes no more: the call is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the audit log takes no more records")]
pub struct AuditFull;

/// Where audit records go.
///
/// A call is let in with [`AuditSink::admit`] before anything reaches a cluster; what it then records is always taken,
/// so that no call that happened is missing. What waits is so bounded by [`QUEUE`] and the calls under way.
pub trait AuditSink: Send + Sync + 'static {
    /// Waits at most [`PATIENCE`] until there is room for one more call.
    ///
    /// # Errors
    /// No room came: the call must be refused.
    fn admit(&self) -> BoxFuture<'_, Result<(), AuditFull>>;

    /// Takes a record of a call that was admitted. Never waits.
    fn push(&self, event: Event);

    /// Both at once: for a call that is not yet answered when it is recorded.
    ///
    /// # Errors
    /// No room came, and nothing was recorded.
    fn record(&self, event: Event) -> BoxFuture<'_, Result<(), AuditFull>> {
        Box::pin(async move {
            self.admit().await?;
            self.push(event);
            Ok(())
        })
    }
}

/// Longest wait for room in the log before a call is refused.
pub const PATIENCE: Duration = Duration::from_millis(100);
/// Records that may wait for the writer before calls are refused.
pub const QUEUE: usize = 4096;

/// Longest that the end waits for the writer: whoever reads the log may have stopped.
const END: Duration = Duration::from_secs(5);
/// Memory that each thread keeps for the next record, in bytes.
const LINE: usize = 4 << 10;

/// Now, as audit records write it: RFC 3339, UTC, microseconds.
pub fn now() -> String {
    format!("{:.6}", jiff::Timestamp::now())
}

/// What happens while the log cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum OnFailure {
    /// No call passes: none goes unrecorded.
    #[default]
    Refuse,
    /// Calls pass. As many records as may wait are kept and written later; what comes after these is lost. How many is
    /// counted, and recorded once the log can be written.
    Continue,
}

impl OnFailure {
    /// What happens while the log cannot be written, and `most` records may wait for it.
    fn meanwhile(self, most: usize) -> String {
        match self {
            Self::Refuse => "calls are refused until it can, and the records of those before wait".to_owned(),
            Self::Continue => {
                format!("calls go on: {most} records wait until it can, and those that come then are lost and counted")
            }
        }
    }
}

/// Writes one JSON line for each record, from a thread of its own: a slow disk holds up no other task.
pub struct FileSink {
    shared: Arc<Shared>,
    policy: OnFailure,
    most: usize,
    writer: Mutex<Option<Running>>,
}

/// The thread that writes.
struct Running {
    thread: std::thread::Thread,
    /// Nothing comes of it: the other end is gone once the thread is done, and its log closed.
    ended: mpsc::Receiver<Infallible>,
}

impl FileSink {
    /// Opens a log (creating it with mode 0600) and goes on with it.
    ///
    /// # Errors
    /// The file cannot be opened for appending, or its end cannot be read.
    pub fn open(path: &Path, rotation: Rotation, policy: OnFailure) -> io::Result<(Arc<Self>, Found)> {
        let (log, found) = LogFile::open(path, rotation)?;
        Ok((Self::to_writer(log, found.chain.clone(), QUEUE, policy)?, found))
    }

    /// Records that were not kept, in all: none but with [`OnFailure::Continue`], and at the end of a log that cannot be
    /// written.
    pub fn lost(&self) -> u64 {
        self.shared.lost.all.load(Ordering::Acquire)
    }

    /// Whether the log is written.
    pub fn healthy(&self) -> bool {
        !self.shared.failed.load(Ordering::Acquire)
    }

    /// Writes to `out`, on from `chain`; at most `most` records wait before calls are refused.
    ///
    /// # Errors
    /// No thread could be started.
    pub fn to_writer(out: impl Output, chain: Chain, most: usize, policy: OnFailure) -> io::Result<Arc<Self>> {
        // Bounded by `admit`, not by the queue: see the trait.
        let shared = Arc::new(Shared::default());
        let (done, ended) = mpsc::channel();
        let writer = Writer { out, chain, most, policy, shared: Arc::clone(&shared) };
        let writer = std::thread::Builder::new().name("audit".to_owned()).spawn(move || {
            writer.run();
            drop(done);
        })?;
        let writer = Running { thread: writer.thread().clone(), ended };
        Ok(Arc::new(Self { shared, policy, most, writer: Mutex::new(Some(writer)) }))
    }

    /// Writes out what is queued, tried once more where it could not be written, and ends the thread. Later records
    /// are lost; later calls are refused. A write that does not end is waited for no longer than [`END`].
    pub async fn close(&self) {
        self.close_within(END).await;
    }

    /// The same. Returns how many records are left in a write that does not end, or wait behind it.
    async fn close_within(&self, patience: Duration) -> usize {
        self.shared.closing.store(true, Ordering::Release);
        self.shared.queue.close();
        let writer = lock(&self.writer).take(); // not in the `if let`: its guard would live across the await
        let Some(writer) = writer else { return 0 };
        writer.thread.unpark();
        let ended = tokio::task::spawn_blocking(move || writer.ended.recv_timeout(patience)).await;
        if !matches!(ended, Ok(Err(mpsc::RecvTimeoutError::Timeout))) {
            return 0;
        }
        let lost = self.shared.waiting.load(Ordering::Acquire);
        tracing::error!(lost, "the audit log was closed while a write of it did not end");
        lost
    }

    fn has_room(&self) -> bool {
        if self.policy == OnFailure::Continue {
            return true;
        }
        let shared = &self.shared;
        let writes = !shared.failed.load(Ordering::Acquire) && !shared.closing.load(Ordering::Acquire);
        writes && shared.waiting.load(Ordering::Acquire) < self.most
    }
}

impl Drop for FileSink {
    /// What waits is written all the same.
    fn drop(&mut self) {
        self.shared.queue.close();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl AuditSink for FileSink {
    fn admit(&self) -> BoxFuture<'_, Result<(), AuditFull>> {
        if self.has_room() {
            return Box::pin(std::future::ready(Ok(())));
        }
        Box::pin(async move {
            let room = async {
                loop {
                    let mut notified = std::pin::pin!(self.shared.room.notified());
                    notified.as_mut().enable();
                    if self.has_room() {
                        return;
                    }
                    notified.await;
                }
            };
            tokio::time::timeout(PATIENCE, room).await.map_err(|_| AuditFull)
        })
    }

    fn push(&self, event: Event) {
        if self.policy == OnFailure::Continue && self.most <= self.shared.waiting.load(Ordering::Acquire) {
            self.shared.lost.add(1);
            return;
        }
        RECORD.with_borrow_mut(|record| {
            // One record is one line: JSON escapes every control character within strings.
            if serde_json::to_writer(&mut *record, &event).is_ok() {
                self.shared.waiting.fetch_add(1, Ordering::AcqRel);
                if !self.shared.queue.put(record) {
                    self.shared.waiting.fetch_sub(1, Ordering::AcqRel);
                    self.shared.lost.add(1); // the log is closed
                }
            }
            record.clear();
            record.shrink_to(LINE);
        });
    }
}

thread_local! {
    /// A record while it is made.
    static RECORD: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

#[cfg(test)]
mod tests;
