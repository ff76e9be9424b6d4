//! What makes a node agent: what it knows of its node.

pub mod clock;
pub mod facts;
mod kubeconfigs;
pub mod plans;
mod probe;
pub mod vouch;

pub use clock::HubClock;

use std::{num::NonZeroUsize, path::PathBuf};

/// What a node agent looks at on its node, and gives there.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Folders whose certificates are watched, in them and one folder below. Beside one that is called `pki`: those in
    /// kubeconfig files too, as kubeadm lays them out.
    pub pki_dirs: Vec<PathBuf>,
    /// The etcd of this node: `http://HOST:PORT` or `https://HOST:PORT`. `None`: a node whose first folder of
    /// certificates has `etcd/server.crt` has one at `https://127.0.0.1:2379`.
    pub etcd: Option<String>,
    /// Shells at a time: as many as there is memory for. `None`: [`moorline_shell::limits::SHELLS`].
    pub shells: Option<NonZeroUsize>,
    /// How it joins without a token. `None`: it does not.
    pub join: Option<AccountJoin>,
    /// Whom a cluster agent vouches for: the service account of the node agents' pods.
    pub account: vouch::NodeAccount,
}

/// Joining by the service account of a node agent's pod, which one of the cluster's agents vouches for. There is no secret
/// that nodes share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountJoin {
    /// File of a token that is bound to the pod and for the audience [`vouch::AUDIENCE`]. Read again for each attempt.
    pub token_file: PathBuf,
    /// The hub's authority: SHA-256 of its SubjectPublicKeyInfo. Nothing is sent to whoever is not of it.
    pub hub_pin: [u8; 32],
}

impl Default for Settings {
    /// Where kubeadm and the kubelet keep certificates.
    fn default() -> Self {
        Self {
            pki_dirs: vec!["/etc/kubernetes/pki".into(), "/var/lib/kubelet/pki".into()],
            etcd: None,
            shells: None,
            join: None,
            account: vouch::NodeAccount::default(),
        }
    }
}
