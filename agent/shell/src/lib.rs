//! A terminal on a node, for one user and nothing else of the node's.
//!
//! The agent is privileged, the shell is not. On Linux it runs as a user id of its own, in mount, process, network, IPC and host
//! name namespaces of its own, on a root that holds programs and no data, with no capability, a system call filter and
//! resource limits. Its one way out is a listener within its own network, behind which the agent does to its calls what
//! it does to all of the user's: the edge policy, impersonation, the cluster's own rights.
//!
//! On Windows it has a token that may do less than every user of the node, in a job that bounds it; it sees the node's
//! network and what every user may read, and its way out asks for a key that only its kubeconfig has.
//!
//! [`Shells`] serves terminals to clients, [`inside`] is what the agent's own binary runs to become one, and
//! [`frames`] is the protocol between terminal and client.

#![forbid(unsafe_code)]

pub mod frames;
pub mod limits;

#[cfg(any(target_os = "linux", windows))]
mod history;
#[cfg(any(target_os = "linux", windows))]
mod kube;
#[cfg(any(target_os = "linux", windows))]
mod running;
#[cfg(target_os = "linux")]
mod sandbox;
#[cfg(any(target_os = "linux", windows))]
mod serve;
#[cfg(any(target_os = "linux", windows))]
mod terminal;

#[cfg(target_os = "linux")]
pub use self::sandbox::inside;
#[cfg(any(target_os = "linux", windows))]
pub use self::{
    kube::Kube,
    serve::{Patience, Shells, Visitor},
};

/// Where shells are no processes of the agent's own binary it is never started as one.
#[cfg(not(target_os = "linux"))]
pub fn inside() -> Option<std::process::ExitCode> {
    None
}
