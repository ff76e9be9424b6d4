//! Plans of the hub's: taken if they are signed and the owner allows them, done once, and kept on disk, so that an agent
//! that starts anew goes on where it was.

mod certificates;
mod collect;
mod drain;
mod runner;
mod serve;
mod steps;
mod store;
#[cfg(test)]
#[cfg(unix)]
mod tests;

use crate::{membership::Membership, policy::PolicyFile, upstream::ApiServer};
use moorline_authz::plan::{Phase, Plan, Progress};
use moorline_endpoint::trust::{Anchors, BadAnchors};
use rustls_pki_types::CertificateDer;
use std::{
    collections::BTreeMap,
    io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use store::Store;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Why no plans can be kept.
#[derive(Debug, thiserror::Error)]
pub enum PlansError {
    /// The folder.
    #[error("plans cannot be kept in {path}")]
    Folder {
        /// Which.
        path: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The trust bundle.
    #[error("nothing says whose plans are believed")]
    Anchors(#[from] BadAnchors),
}

/// One plan on this node.
struct Known {
    plan: Plan,
    progress: Progress,
    /// Ends what is under way.
    stop: CancellationToken,
}

/// The plans of this node.
pub struct Plans {
    store: Store,
    anchors: Anchors,
    cluster: String,
    agent: String,
    /// What the cluster calls the node.
    node: Option<String>,
    policy: Arc<PolicyFile>,
    upstream: Arc<ApiServer>,
    known: Mutex<BTreeMap<String, Known>>,
    wake: Notify,
}

impl Plans {
    /// Takes up what an earlier run left.
    ///
    /// # Errors
    /// The folder cannot be used, or the state holds no authority.
    pub fn open(
        state_dir: &Path,
        membership: &Membership,
        node: Option<String>,
        policy: Arc<PolicyFile>,
        upstream: Arc<ApiServer>,
    ) -> Result<Self, PlansError> {
        let dir = state_dir.join("plans");
        let store = Store::open(&dir);
        let store = store.map_err(|source| PlansError::Folder { path: dir.display().to_string(), source })?;
        let known = store
            .all()
            .into_iter()
            .map(|(uid, plan, progress)| (uid, Known { plan, progress, stop: CancellationToken::new() }));
        Ok(Self {
            known: Mutex::new(known.collect()),
            store,
            anchors: Anchors::new(membership.bundle.clone())?,
            cluster: membership.cluster.to_string(),
            agent: membership.name.to_string(),
            node,
            policy,
            upstream,
            wake: Notify::new(),
        })
    }

    /// Plans of these authorities are believed from now on.
    pub fn trust(&self, bundle: &[CertificateDer<'static>]) {
        if let Err(error) = self.anchors.replace(bundle.to_vec()) {
            tracing::error!("plans are believed as before: {error}");
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How far a plan is.
    fn progress(&self, uid: &str) -> Option<Progress> {
        self.lock().get(uid).map(|known| known.progress.clone())
    }

    /// Notes progress, in memory and on disk. A plan that was taken away meanwhile stays away.
    fn note(&self, uid: &str, progress: &Progress) {
        let mut all = self.lock();
        let Some(known) = all.get_mut(uid).filter(|known| known.progress.checksum == progress.checksum) else { return };
        known.progress = progress.clone();
        if let Err(error) = self.store.take(&known.plan, progress) {
            tracing::error!(plan = known.plan.name, "its progress could not be kept: {error}");
        }
    }

    /// The next plan to be done: those under way first, then the one that was signed first.
    fn next(&self) -> Option<(String, Plan, Progress, CancellationToken)> {
        let all = self.lock();
        let open = all.iter().filter(|(_, known)| !known.progress.phase.is_over());
        let next = open.min_by_key(|(_, known)| (known.progress.phase != Phase::Running, known.plan.issued));
        next.map(|(uid, known)| (uid.clone(), known.plan.clone(), known.progress.clone(), known.stop.clone()))
    }
}

/// Seconds since 1970.
fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}

/// What a program or a cause says, fit to be shown in somebody's terminal: its end, if it is long.
fn tail(text: &[u8], most: usize) -> String {
    let text = String::from_utf8_lossy(text);
    let plain: String = text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect();
    let start = plain.len().saturating_sub(most);
    let start = (start..plain.len()).find(|at| plain.is_char_boundary(*at)).unwrap_or(plain.len());
    plain.get(start..).unwrap_or_default().trim_end().to_owned()
}
