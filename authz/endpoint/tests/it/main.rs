//! An endpoint on loopback, real TLS, a recorder in the API server's place, and bundles that a hub would sign.
//!
//! Numbers such as `s01_` are cases of the project's list of attacks (S), faults (F) and bad inputs (Z).
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod bundles;
mod cases;
mod proxying;
mod recorded;
mod reviews;
mod world;
