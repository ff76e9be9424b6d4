//! Every bound of this crate.

use std::time::Duration;

/// Bounds of the API server and its store.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Largest request body, in bytes. A larger one is answered 413 after reading at most this much.
    pub body: usize,
    /// Largest object, in bytes of its JSON (etcd takes 1.5 MiB). A write that would make a larger one is answered 413;
    /// the copies that one JSON patch makes are held to the same sum.
    pub object: usize,
    /// Longest time a request body may take to arrive.
    pub body_time: Duration,
    /// Events the store keeps for watchers. A watcher that falls further behind gets 410 and lists again.
    pub history: usize,
    /// Objects that are kept as trees besides as texts: those of the newest events, at which watchers look now.
    pub fresh: usize,
    /// Bytes of objects, as text, that those events may keep: large objects that change often shorten the history.
    pub history_bytes: usize,
    /// Writes waiting for the writer thread; further writers wait for a place.
    pub queued_writes: usize,
    /// Longest a write waits for a place in that queue, or its answer, before it is refused with 503.
    pub write_time: Duration,
    /// How often a store whose disk was full tries again, once it is asked to.
    pub full_retry: Duration,
    /// Writes that share one commit to disk.
    pub group: usize,
    /// Requests served at once that only read (kube-apiserver: 400); a further one is answered 429.
    pub reads: usize,
    /// Requests served at once that write (kube-apiserver: 200).
    pub writes: usize,
    /// How many of those one caller may have, so that it cannot take the others' places.
    pub caller_requests: usize,
    /// Open watches; a further one is answered 429.
    pub watches: usize,
    /// Longest life of a watch whose client names no limit. Clients come back with their last revision.
    pub watch_time: Duration,
    /// How often a silent watch that asked for bookmarks is told the revision (kube-apiserver: about a minute).
    pub bookmark_every: Duration,
    /// Tries of a read-change-write on behalf of a client (patch without a revision, `modify_status`).
    pub conflict_retries: usize,
    /// Bytes of all annotations of one object (Kubernetes: 256 KiB).
    pub annotations: usize,
    /// Objects that one deletion may take with it through owner references.
    pub cascade: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body: 1024 * 1024,
            object: 1536 * 1024,
            body_time: Duration::from_secs(30),
            history: 10_000,
            fresh: 256,
            history_bytes: 16 * 1024 * 1024,
            queued_writes: 1024,
            write_time: Duration::from_secs(10),
            full_retry: Duration::from_secs(1),
            group: 256,
            reads: 400,
            writes: 200,
            caller_requests: 100,
            watches: 10_000,
            watch_time: Duration::from_secs(45 * 60),
            bookmark_every: Duration::from_secs(60),
            conflict_retries: 8,
            annotations: 256 * 1024,
            cascade: 10_000,
        }
    }
}
