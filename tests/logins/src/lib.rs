//! Real directories and providers on loopback, each in a folder of its own that goes with it.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

pub mod browser;
pub mod clock;
pub mod cluster;
pub mod github;
pub mod hub;
pub mod oidc;
pub mod pki;
pub mod process;
pub mod samba;
pub mod slapd;

use moorline_logins::{LoginProvider, config};
use std::sync::Arc;

/// The provider of this piece of configuration.
pub fn provider(yaml: &str) -> Arc<dyn LoginProvider> {
    let all: Vec<config::ProviderConfig> = serde_saphyr::from_str(yaml).unwrap();
    config::build(&all).unwrap().remove(0)
}
