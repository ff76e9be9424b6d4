//! The way to clusters that does not lead through the hub: what their own endpoints need from it.
//!
//! Each cluster whose agents ask for it gets a bundle whenever something changed that is about it, and before the one it
//! has grows old; what its endpoint recorded comes back the same way. Clusters do not wait for each other.

mod collect;
mod condition;
mod deliver;
mod take;
mod turns;

use crate::{
    directory::Directory,
    pki::{Authority, CaError},
    records::{RecordError, Records},
    signing::{Signing, now},
};
use moorline_authz::bundle::{self, Bundle, Revoked};
use sha2::{Digest as _, Sha256};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

pub(crate) use deliver::Delivery;

/// Where logins that were ended are kept, in the keyspace that no API serves.
const ENDED: &str = "moorline.dev/ended-logins";

/// A bundle, signed.
pub(crate) struct Sealed {
    /// What an endpoint reads.
    pub bytes: Vec<u8>,
    /// Of its content, without serial and times.
    pub fingerprint: [u8; 32],
    /// Grows with each.
    pub serial: u64,
    /// When its time is over, in seconds since 1970.
    pub expires: u64,
}

/// Makes bundles.
pub(crate) struct Bundles {
    directory: Arc<Directory>,
    signing: Arc<Signing>,
    authority: Arc<Authority>,
    records: Records,
    life: Duration,
    serial: AtomicU64,
}

impl Bundles {
    /// Takes up what an earlier run noted.
    pub fn new(
        directory: Arc<Directory>,
        signing: Arc<Signing>,
        authority: Arc<Authority>,
        records: Records,
        life: Duration,
    ) -> Self {
        let kept = records.secret(ENDED).and_then(|bytes| serde_json::from_slice::<Vec<Revoked>>(&bytes).ok());
        directory.recall(kept.unwrap_or_default());
        Self { directory, signing, authority, records, life, serial: AtomicU64::new(0) }
    }

    /// Keeps what was ended, for after a restart.
    async fn keep(&self, ended: &[Revoked]) -> Result<(), RecordError> {
        let bytes = serde_json::to_vec(ended).unwrap_or_default();
        self.records.set_secret(ENDED.to_owned(), bytes.into()).await
    }

    /// What a cluster's bundle would say now.
    fn content(&self, cluster: &str) -> Bundle {
        let found = self.directory.bundle(cluster);
        Bundle { issuer: self.signing.issuer().to_owned(), keys: self.signing.keys(), ..found }
    }

    /// A bundle for `cluster`, newer than every one before it.
    ///
    /// # Errors
    /// The authority cannot sign: a defect.
    pub fn make(&self, cluster: &str) -> Result<Sealed, CaError> {
        let mut content = self.content(cluster);
        let fingerprint = self.print(&content);
        // Grows over restarts too, without being kept: by the clock.
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let clock = u64::try_from(clock).unwrap_or(u64::MAX);
        let next = |last: u64| Some(clock.max(last + 1));
        let last = self.serial.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).unwrap_or_default();
        content.serial = clock.max(last + 1);
        content.issued = now();
        content.expires = content.issued + self.life.as_secs();
        let (serial, expires) = (content.serial, content.expires);
        let bytes = bundle::seal(&content, |message| self.authority.sign(message))?;
        Ok(Sealed { bytes, fingerprint, serial, expires })
    }

    /// Tells a bundle that says something new from one that does not.
    fn fingerprint(&self, cluster: &str) -> [u8; 32] {
        self.print(&self.content(cluster))
    }

    /// Of the content, and of who vouches for it: under another authority every cluster is to have it anew.
    fn print(&self, content: &Bundle) -> [u8; 32] {
        let mut hash = Sha256::new_with_prefix(bundle::fingerprint(content));
        hash.update(self.authority.serving_pin());
        hash.finalize().into()
    }
}
