//! The tunnel on networks as they are.
#![allow(clippy::unwrap_used)] // tests

mod ladder;
mod proxies;
