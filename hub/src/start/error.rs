//! Why a hub did not start, in words for who starts it.

use crate::{bootstrap::BootstrapError, config::ConfigError, pki::CaError, records::RecordError};
use moorline_plugin::HostError;
use std::{io, net::SocketAddr, path::PathBuf};

/// Why a hub did not start.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The settings.
    #[error("settings: {0}")]
    Config(#[from] ConfigError),
    /// A login provider.
    #[error("settings: {0}")]
    Logins(#[from] moorline_logins::config::ConfigError),
    /// The data folder.
    #[error("cannot use the data folder {dir}: make it, or give the hub's user the right to write there")]
    DataDir {
        /// Which.
        dir: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The data folder, by another.
    #[error("another hub runs on the data folder {0}: stop it, or give each hub a folder of its own")]
    Taken(PathBuf),
    /// The authority.
    #[error("the certificate authority cannot be used")]
    Ca(#[from] CaError),
    /// The store.
    #[error("{why}")]
    Store {
        /// Which.
        path: PathBuf,
        /// In words.
        why: String,
    },
    /// The store, later.
    #[error("the store failed: {0}")]
    Records(String),
    /// An address.
    #[error("cannot listen on {address} ({what}): is another program using it?")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// TCP, UDP or ops.
        what: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The audit log.
    #[error("the audit log {path} cannot be opened")]
    Audit {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A certificate that was given and cannot be used.
    #[error("the certificate that was given cannot be used: {0}")]
    Certificate(String),
    /// First user and files.
    #[error("the first start could not be finished")]
    Bootstrap(#[from] BootstrapError),
    /// Plugins that cannot run together.
    #[error("plugins: {0}")]
    Plugins(#[from] HostError),
    /// Certificates or metrics that fit into nothing: a defect.
    #[error("internal: {0}")]
    Internal(String),
}

impl From<RecordError> for HubError {
    fn from(error: RecordError) -> Self {
        Self::Records(error.to_string())
    }
}
