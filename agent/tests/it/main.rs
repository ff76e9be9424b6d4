//! The agent between a recorder in the API server's place and a hub of a few lines.
#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests stand outside of test functions

mod hub;
mod imports;
mod inside;
mod pki;
mod recorder;
mod rejoin;
mod room;
mod run;
mod streams;
