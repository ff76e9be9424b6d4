//! What a plugin is.

use crate::{ClusterView, HubView, Registration};
use futures_util::future::{BoxFuture, pending};
use std::sync::Arc;

/// Why a part of a plugin ended. It is started again after a pause.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    /// The hub's or a cluster's API refused or failed.
    #[error("{0}")]
    Kube(#[from] Box<kube::Error>),
    /// A cluster says more than is taken of it.
    #[error("{0}")]
    TooMuch(#[from] crate::TooMuch),
    /// Anything else, in words.
    #[error("{0}")]
    Other(String),
}

impl From<kube::Error> for PluginError {
    fn from(error: kube::Error) -> Self {
        Self::Kube(Box::new(error))
    }
}

/// Management logic that rides on the hub.
///
/// Both long-running halves run on the plugin's own threads and are dropped when the hub ends, or, for a cluster, when
/// it is no longer connected. One that returns or panics is started again after a pause; the other half, the other
/// clusters, the other plugins and the traffic do not notice.
pub trait Plugin: Send + Sync + 'static {
    /// Its table in the configuration, its metric label, and its name towards clusters (`moorline:plugin:<name>`).
    /// Lower-case letters and digits; never changes.
    fn name(&self) -> &'static str;

    /// What it adds to the hub's API, and what of others' it uses. Called once, before the hub serves.
    fn register(&self, into: &mut Registration);

    /// The hub-wide half.
    fn run(self: Arc<Self>, _hub: HubView) -> BoxFuture<'static, Result<(), PluginError>> {
        Box::pin(pending())
    }

    /// The half that runs once for each connected cluster.
    fn run_cluster(
        self: Arc<Self>,
        _hub: HubView,
        _cluster: ClusterView,
    ) -> BoxFuture<'static, Result<(), PluginError>> {
        Box::pin(pending())
    }
}
