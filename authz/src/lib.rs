//! Who is asking, and may they: pure decisions. Facts come in as arguments, a decision goes out; no sockets, no
//! clock, no HTTP and no Kubernetes client.
#![forbid(unsafe_code)]

pub mod access;
pub mod access_token;
pub mod address;
pub mod bundle;
pub mod edge;
pub mod hex;
pub mod hubrules;
pub mod identity;
pub mod impersonation;
pub mod password;
pub mod plan;
pub mod refresh;
pub mod seal;
pub mod signed;
pub mod token;
pub mod verb;
