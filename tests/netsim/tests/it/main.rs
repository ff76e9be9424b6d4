//! The tunnel on networks as they are.
#![allow(clippy::unwrap_used)] // tests

mod faults;
mod herd;
mod isolation;
mod ladder;
mod proxies;
mod speed;
