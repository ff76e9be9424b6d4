//! The authorized cluster endpoint: lets a cluster's users in by what the cluster knows itself, whether the hub is there
//! or not.
//!
//! The hub signs a [bundle](moorline_authz::bundle) for each cluster; [`shelf`] keeps the newest that was accepted, sealed
//! by [`seal`], [`live`] has it ready to be asked. [`proxy`] is a TLS server in front of the API server, with the hub's own data path;
//! [`webhook`] answers an API server's TokenReviews. [`queue`] keeps what the audit log of the hub has not got yet,
//! [`recordings`] the sessions in terminals that it has not got yet.
#![forbid(unsafe_code)]

pub mod limits;
pub mod live;
pub mod metrics;
pub mod ops;
pub mod proxy;
pub mod queue;
pub mod recordings;
pub mod seal;
pub mod server;
pub mod shelf;
pub mod tls;
pub mod trust;
pub mod usage;
pub mod webhook;

use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
