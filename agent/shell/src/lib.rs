//! A terminal on a node, for one user and nothing else of the node's.
//!
//! The agent is privileged, the shell is not: it runs as a user id of its own, in mount, process, network, IPC and host
//! name namespaces of its own, on a root that holds programs and no data, with no capability, a system call filter and
//! resource limits. Its one way out is a listener within its own network, behind which the agent does to its calls what
//! it does to all of the user's: the edge policy, impersonation, the cluster's own rights.
//!
//! [`Shells`] serves terminals to clients, [`inside`] is what the agent's own binary runs to become one, and
//! [`frames`] is the protocol between terminal and client.

#![forbid(unsafe_code)]

pub mod frames;
pub mod limits;

#[cfg(target_os = "linux")]
mod history;
#[cfg(target_os = "linux")]
mod kube;
#[cfg(target_os = "linux")]
mod running;
#[cfg(target_os = "linux")]
mod sandbox;
#[cfg(target_os = "linux")]
mod serve;
#[cfg(target_os = "linux")]
mod terminal;

#[cfg(target_os = "linux")]
pub use self::{
    kube::Kube,
    sandbox::inside,
    serve::{Patience, Shells, Visitor},
};

/// Where there are no shells the binary is never started as one.
#[cfg(not(target_os = "linux"))]
pub fn inside() -> Option<std::process::ExitCode> {
    None
}
