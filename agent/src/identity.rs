//! The agent's identity as its parts share it: key, membership, and where both are kept.

use crate::{
    metrics::Metrics,
    state::{BadChain, Membership, StateDir, StateError},
};
use moorline_link::tls::{self, TlsError};
use moorline_proto::id::InstanceId;
use rcgen::KeyPair;
use rustls_pki_types::CertificateDer;
use std::{sync::Arc, time::UNIX_EPOCH};
use tokio::sync::watch;

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
        self.state.was_trusted(pin)
    }

    /// For the next dial.
    ///
    /// # Errors
    /// Certificate or bundle cannot be used.
    pub fn tls(&self) -> Result<Arc<rustls::ClientConfig>, TlsError> {
        let membership = self.membership();
        tls::client_config(&membership.identity(&self.key), &membership.trust())
    }

    /// Keeps and uses renewed certificates. Blocks on the disk.
    ///
    /// # Errors
    /// They are not this agent's, or cannot be kept; nothing changed.
    pub fn adopt(
        &self,
        chain: Vec<CertificateDer<'static>>,
        bundle: Vec<CertificateDer<'static>>,
    ) -> Result<(), AdoptError> {
        let next = Membership { chain, bundle, ..(*self.membership()).clone() };
        next.check(&self.key)?;
        // First: a token that stays in the configuration must not look like one of another hub after a restart.
        self.state.forgo(&self.membership().bundle, &next.bundle)?;
        self.state.keep(&self.hub, &next)?;
        self.current.send_replace(Arc::new(next));
        self.gauge();
        Ok(())
    }

    fn gauge(&self) {
        let end = self.membership().validity().ok().and_then(|(_, end)| end.duration_since(UNIX_EPOCH).ok());
        self.metrics.certificate_expiry.set(end.and_then(|end| i64::try_from(end.as_secs()).ok()).unwrap_or_default());
    }
}
