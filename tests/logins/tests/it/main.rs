//! Logins at real directories and providers.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod active_directory;
mod clocks;
mod device;
mod github;
mod hub;
mod identities;
mod ldap;
mod names;
mod oidc;
mod secrets;
