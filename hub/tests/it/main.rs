//! A real hub on loopback, real TLS, and an agent with a recorder in the API server's place.
//!
//! Numbers such as `s01_` are cases of the project's list of attacks (S) and faults (F).
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod access;
mod authority;
mod backup;
mod bodies;
mod bounds;
mod direct;
mod direct_recordings;
mod expiry;
mod framing;
mod http2;
mod inside;
mod joins;
mod link;
mod lockouts;
mod logins;
mod names;
mod node_objects;
mod nodes;
mod older;
mod outage;
mod parsers;
mod plans;
mod plugin_health;
mod plugin_logins;
mod plugin_panics;
mod plugin_rights;
mod plugin_template;
mod plugins;
mod proxying;
mod recordings;
mod records;
mod rights;
mod rotation;
mod sessions;
mod shares;
mod shells;
mod strangers;
mod stub;
mod unseen;
mod world;
