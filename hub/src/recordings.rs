//! Sessions in terminals on record: how they are kept, and what the audit log says of those that go.

use moorline_authz::access::Recording;
use moorline_proxy::{
    audit::{AuditSink, OnFailure},
    tape::{Over, Settings, Store},
};
use serde::Deserialize;
use std::{io, path::Path, sync::Arc, time::Duration};

/// Most that `maxFileMib` may say: clients take answers of 64 MiB.
const LONGEST: u64 = 60;

/// What is recorded, and for how long it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Recordings {
    /// Where neither cluster nor grants say anything.
    pub sessions: Recording,
    /// Longest recording, in MiB.
    pub max_file_mib: u64,
    /// All together, in MiB: the oldest are removed.
    pub max_total_mib: u64,
    /// Older ones are removed.
    pub keep_days: u64,
    /// What becomes of a session that cannot be recorded because the disk fails or is full.
    pub on_failure: OnFailure,
}

impl Default for Recordings {
    fn default() -> Self {
        Self {
            sessions: Recording::Never,
            max_file_mib: 32,
            max_total_mib: 10 << 10,
            keep_days: 90,
            on_failure: OnFailure::Refuse,
        }
    }
}

impl Recordings {
    /// # Errors
    /// What cannot work, in words.
    pub(crate) fn validate(&self) -> Result<(), &'static str> {
        if !(1..=LONGEST).contains(&self.max_file_mib) || !(self.max_file_mib..1 << 30).contains(&self.max_total_mib) {
            return Err("maxFileMib is from 1 to 60, so that one can be fetched, and at most maxTotalMib");
        }
        if self.keep_days == 0 || 36_500 < self.keep_days { Err("keepDays is from 1 to 36500") } else { Ok(()) }
    }

    /// Opens them under the hub's data folder.
    pub(crate) fn open(&self, data_dir: &Path, log: Arc<dyn AuditSink>) -> io::Result<Arc<Store>> {
        let settings = Settings {
            dir: data_dir.join("recordings"),
            max_file: self.max_file_mib << 20,
            max_total: self.max_total_mib << 20,
            keep: Duration::from_secs(self.keep_days * 24 * 3600),
            policy: self.on_failure,
            over: Over::Kept,
        };
        Store::open(settings, move |lost| log.push(lost.event(HUB)))
    }
}

/// Who made a record that nobody asked for.
pub(crate) const HUB: &str = "moorline:hub";
