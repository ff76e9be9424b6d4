//! What makes a node agent: what it knows of its node.

pub mod clock;
pub mod facts;
pub mod plans;
mod probe;

pub use clock::HubClock;

use std::path::PathBuf;

/// What a node agent looks at on its node.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Folders whose certificates are watched, in them and one folder below.
    pub pki_dirs: Vec<PathBuf>,
    /// The etcd of this node: `http://HOST:PORT` or `https://HOST:PORT`. `None`: a node whose first folder of
    /// certificates has `etcd/server.crt` has one at `https://127.0.0.1:2379`.
    pub etcd: Option<String>,
}

impl Default for Settings {
    /// Where kubeadm and the kubelet keep certificates.
    fn default() -> Self {
        Self { pki_dirs: vec!["/etc/kubernetes/pki".into(), "/var/lib/kubelet/pki".into()], etcd: None }
    }
}
