//! The hub: sessions, router, certificate authority, front door.
//!
//! [`Hub::start`] brings everything up and returns once it serves; [`run`] does that and ends when it is told to.
#![forbid(unsafe_code)]

mod access;
mod alive;
mod ask;
mod audit;
pub mod authority;
pub mod backup;
mod bench;
mod bootstrap;
pub mod config;
#[cfg(unix)]
mod control;
mod crowd;
mod direct;
mod directory;
mod events;
mod files;
mod follow;
mod front;
mod given;
mod hubapi;
mod issue;
mod join;
pub mod kinds;
mod known;
mod lease;
mod link;
mod listener;
mod login;
mod members;
mod metrics;
pub mod nodes;
mod ops;
pub mod pki;
mod place;
pub mod plans;
mod plugins;
mod quota;
mod rate;
mod reader;
mod recordings;
mod records;
mod route;
mod seat;
mod sessions;
mod shares;
mod signing;
mod specs;
mod standby;
mod start;
mod status;
mod websocket;

pub use moorline_logins as logins;
pub use moorline_proxy::audit::{OnFailure, files as audit_files};

pub use login::Lockout;
pub use moorline_authz::access::Recording;
pub use quota::{Rate, RateLimits};
pub use recordings::Recordings;

pub use config::{Config, ConfigError, Limits};
pub use moorline_apiserver::StoreKey;
pub use place::{PlaceError, StorePlace, StoreSettings, seal_key};
pub use start::{Hub, HubError};

use tokio_util::sync::CancellationToken;

/// Runs a hub until `stop` fires, then lets open work end for at most [`Limits::grace`].
///
/// # Errors
/// The hub could not start; the text says what to do. Once it serves, it ends without an error.
pub async fn run(config: Config, stop: CancellationToken, registry: &prometheus::Registry) -> Result<(), HubError> {
    let hub = Hub::start(config, registry).await?;
    stop.cancelled().await;
    hub.shutdown().await;
    Ok(())
}
