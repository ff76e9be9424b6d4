//! The agent's identity as its parts share it: key, membership, and where both are kept.

use crate::{
    limits,
    membership::{BadChain, Membership},
    metrics::Metrics,
    state::{StateDir, StateError},
    upstream,
};
use moorline_link::tls::{self, TlsError};
use moorline_proto::id::InstanceId;
use rcgen::KeyPair;
use rustls_pki_types::CertificateDer;
use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};
use tokio::{sync::watch, task::spawn_blocking, time::sleep};

/// Why new certificates were not taken.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// They are not this agent's.
    #[error(transparent)]
    Chain(#[from] BadChain),
    /// They cannot be kept.
    #[error(transparent)]
    State(#[from] StateError),
}

/// Who this agent is, now.
pub struct Holder {
    /// Drawn once per process: tells an overlap of sessions from a copied identity.
    pub instance: InstanceId,
    key: KeyPair,
    state: StateDir,
    hub: String,
    current: watch::Sender<Arc<Membership>>,
    /// What is used is not what a next start would find.
    unkept: AtomicBool,
    /// Authorities that were believed when the folder could not be written: they are owed to it. Who writes there holds this.
    owed: Mutex<Vec<CertificateDer<'static>>>,
    metrics: Metrics,
}

impl Holder {
    /// Takes over what was read or joined.
    pub fn new(key: KeyPair, state: StateDir, hub: String, membership: Membership, metrics: Metrics) -> Self {
        let holder = Self {
            instance: InstanceId(rand::random()),
            key,
            state,
            hub,
            current: watch::Sender::new(Arc::new(membership)),
            unkept: AtomicBool::new(false),
            owed: Mutex::default(),
            metrics,
        };
        holder.gauge();
        holder
    }

    /// Who this agent is, now.
    pub fn membership(&self) -> Arc<Membership> {
        self.current.borrow().clone()
    }

    /// Hears of each change from now on.
    pub fn changes(&self) -> watch::Receiver<Arc<Membership>> {
        self.current.subscribe()
    }

    /// The key that every certificate of this agent is for.
    pub fn key(&self) -> &KeyPair {
        &self.key
    }

    /// Whether an authority with this pin was believed once, and is not any more. Blocks on the disk.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn was_trusted(&self, pin: &[u8; 32]) -> Result<bool, StateError> {
        let current = self.membership();
        let is = |cert: &&CertificateDer<'_>| tls::spki_sha256(cert).is_ok_and(|found| found == *pin);
        let owed = self.owed().iter().filter(|cert| !current.bundle.contains(cert)).any(|cert| is(&cert));
        Ok(owed || self.state.was_trusted(pin)?)
    }

    /// For the next dial.
    ///
    /// # Errors
    /// Certificate or bundle cannot be used.
    pub fn tls(&self) -> Result<Arc<rustls::ClientConfig>, TlsError> {
        let membership = self.membership();
        tls::client_config(&membership.identity(&self.key), &membership.trust())
    }

    /// Keeps and uses new certificates. Blocks on the disk. What cannot be kept is used all the same: a disk that only reads
    /// any more costs the next start, not the way into the cluster. But not where the authorities are others, for to the hub
    /// who uses a new one has kept it; unless those certificates that are in use are of no `further_use`, or about to end.
    ///
    /// # Errors
    /// They are not this agent's, or cannot be kept and there is time to ask again; the agent uses what it used.
    pub fn adopt(
        &self,
        chain: Vec<CertificateDer<'static>>,
        bundle: Vec<CertificateDer<'static>>,
        further_use: bool,
    ) -> Result<(), AdoptError> {
        let mut owed = self.owed();
        let now = self.membership();
        let next = Membership { chain, bundle, ..(*now).clone() };
        next.check(&self.key)?;
        // First: a token that stays in the configuration must not look like one of another hub after a restart.
        let more = now.bundle.iter().filter(|cert| !owed.contains(cert)).cloned();
        let old: Vec<_> = owed.iter().cloned().chain(more).collect();
        let forgone = self.state.forgo(&old, &next.bundle);
        match forgone.and_then(|()| self.state.keep(&self.hub, &next)) {
            Ok(()) => {
                owed.clear();
                self.unkept.store(false, Ordering::Relaxed);
            }
            Err(error)
                if further_use
                    && now.bundle != next.bundle
                    && !now.has_expired(SystemTime::now() + limits::RENEW_UNKEPT) =>
            {
                return Err(error.into());
            }
            Err(error) => {
                // As many as the folder remembers.
                *owed = old.into_iter().rev().take(limits::FORMER_PINS).rev().collect();
                self.unkept.store(true, Ordering::Relaxed);
                // A Secret has it then, if it is this agent's.
                if !matches!(error, StateError::Taken { .. }) {
                    self.state.hold(&self.hub, &next, &owed)?;
                }
                let cause = upstream::chain(&error);
                tracing::error!(cause, "the renewed certificate is used but could not be kept; trying again");
            }
        }
        self.current.send_replace(Arc::new(next));
        self.gauge();
        Ok(())
    }

    /// What is used is not what a next start would find.
    pub fn is_unkept(&self) -> bool {
        self.unkept.load(Ordering::Relaxed)
    }

    /// Keeps what could not be kept once it can be. Never ends.
    pub async fn mend(self: &Arc<Self>) {
        let mut changes = self.changes();
        loop {
            if self.is_unkept() {
                sleep(limits::KEEP_PAUSE).await;
                let holder = Arc::clone(self);
                // A panic there is told by the task's own hook.
                let _ = spawn_blocking(move || holder.keep()).await;
            } else if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Tries once more to keep what is used. Blocks on the disk.
    fn keep(&self) {
        let mut owed = self.owed();
        let now = self.membership();
        if !self.is_unkept() {
            return;
        }
        match self.state.forgo(&owed, &now.bundle).and_then(|()| self.state.keep(&self.hub, &now)) {
            Ok(()) => {
                owed.clear();
                self.unkept.store(false, Ordering::Relaxed);
                tracing::info!("the renewed certificate is kept now");
            }
            Err(error) => tracing::warn!(cause = %upstream::chain(&error), "the certificate cannot be kept yet"),
        }
    }

    fn owed(&self) -> MutexGuard<'_, Vec<CertificateDer<'static>>> {
        self.owed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn gauge(&self) {
        let end = self.membership().validity().ok().and_then(|(_, end)| end.duration_since(UNIX_EPOCH).ok());
        self.metrics.certificate_expiry.set(end.and_then(|end| i64::try_from(end.as_secs()).ok()).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::{
        certificates,
        tests::{AGENT, membership},
    };
    use std::fs;

    #[test]
    fn p16_what_cannot_be_kept_is_used_where_nothing_else_is_of_use_and_kept_later() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let state = StateDir::open(&path).unwrap();
        let key = state.key().unwrap();
        let (first, next) = (membership(&key, AGENT), membership(&key, AGENT));
        state.keep("hub:1", &first).unwrap();
        let metrics = Metrics::new(&prometheus::Registry::new()).unwrap();
        let holder = Holder::new(key, state.clone(), "hub:1".to_owned(), first.clone(), metrics);
        // Nobody can write into a file as into a folder.
        fs::remove_dir_all(&path).unwrap();
        fs::write(&path, "").unwrap();
        let adopt = |further_use| holder.adopt(next.chain.clone(), next.bundle.clone(), further_use);
        assert!(matches!(adopt(true), Err(AdoptError::State(_))), "there is time");
        assert_eq!((&*holder.membership(), holder.is_unkept()), (&first, false));
        // The same authorities: the hub takes nothing from it that it is used.
        holder.adopt(first.chain.clone(), first.bundle.clone(), true).unwrap();
        assert!(holder.is_unkept());
        adopt(false).unwrap();
        assert_eq!((&*holder.membership(), holder.is_unkept()), (&next, true));
        let copied: serde_json::Value = serde_json::from_slice(&state.files().unwrap()["agent.json"]).unwrap();
        let bundle: Vec<String> = serde_json::from_value(copied["bundle"].clone()).unwrap();
        assert_eq!(certificates(&bundle).unwrap(), next.bundle, "its Secret has it");
        let pins = String::from_utf8(state.files().unwrap()["former-pins"].clone()).unwrap();
        let pin = tls::spki_sha256(&first.bundle[0]).unwrap();
        assert_eq!(pins, format!("{}\n", moorline_authz::hex::hex(&pin)), "and what was dropped");
        holder.keep();
        assert!(holder.is_unkept(), "it cannot be yet");
        let pin = tls::spki_sha256(&first.bundle[0]).unwrap();
        assert!(holder.was_trusted(&pin).unwrap(), "it is owed to the folder");
        fs::remove_file(&path).unwrap();
        holder.keep();
        assert!(!holder.is_unkept());
        let read = StateDir::open(&path).unwrap();
        assert_eq!(read.membership(holder.key()).unwrap(), Some(next));
        assert!(read.was_trusted(&pin).unwrap(), "what was believed before is not forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn what_could_not_be_kept_is_kept_without_anybody_asking() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let state = StateDir::open(&path).unwrap();
        let key = state.key().unwrap();
        let first = membership(&key, AGENT);
        state.keep("hub:1", &first).unwrap();
        let metrics = Metrics::new(&prometheus::Registry::new()).unwrap();
        let holder = Arc::new(Holder::new(key, state, "hub:1".to_owned(), first.clone(), metrics));
        let mending = tokio::spawn({
            let holder = Arc::clone(&holder);
            async move { holder.mend().await }
        });
        fs::remove_dir_all(&path).unwrap();
        fs::write(&path, "").unwrap();
        holder.adopt(first.chain.clone(), first.bundle.clone(), true).unwrap();
        sleep(limits::KEEP_PAUSE * 2).await;
        assert!(holder.is_unkept());
        fs::remove_file(&path).unwrap();
        let kept = async {
            while holder.is_unkept() {
                sleep(limits::KEEP_PAUSE / 4).await;
            }
        };
        tokio::time::timeout(limits::KEEP_PAUSE * 4, kept).await.unwrap();
        assert!(StateDir::open(&path).unwrap().is_whole().unwrap());
        mending.abort();
    }
}
