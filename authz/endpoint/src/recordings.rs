//! Sessions in terminals of the direct path on record, kept until the hub has them.
//!
//! The endpoint records as the hub does, in files of its own; its agent gives those that are over, piece by piece, and
//! removes one when the hub has proved that it has it. Where there is no room sessions that have to be recorded are refused.

use moorline_proxy::{
    audit::{AuditSink, OnFailure},
    tape::{Outbox, Over, Settings, Store},
};
use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// Who makes records of its own accord.
const ENDPOINT: &str = "moorline:endpoint";

fn folder(dir: &Path) -> PathBuf {
    dir.join("recordings")
}

/// Where the endpoint in `dir` records: files of `max_file` bytes, `max_total` together. What was cut short when it ended
/// last is sealed, and `log` told.
///
/// # Errors
/// The folder cannot be made or read.
pub fn store(dir: &Path, max_file: u64, max_total: u64, log: Arc<dyn AuditSink>) -> io::Result<Arc<Store>> {
    let settings = Settings {
        dir: folder(dir),
        max_file,
        max_total,
        keep: Duration::MAX,
        policy: OnFailure::Refuse,
        over: Over::Fetched,
    };
    Store::open(settings, move |lost| log.push(lost.event(ENDPOINT)))
}

/// What the endpoint in `dir` has recorded, for its agent.
pub fn outbox(dir: &Path) -> Outbox {
    Outbox::new(folder(dir))
}
