//! The tunnel on networks as they are.
#![allow(clippy::unwrap_used)] // tests

mod authority;
mod ends;
mod faults;
mod full;
mod herd;
mod isolation;
mod ladder;
mod load;
mod node_facts;
mod node_loss;
mod nodes;
mod proxies;
mod speed;
