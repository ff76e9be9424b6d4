//! A small embeddable Kubernetes-style API server over a revisioned store.
//!
//! [`Store`] keeps JSON documents under one revision counter; [`KindSpec`] says what a kind is; [`ApiServer`] serves
//! the kinds over HTTP as kubectl, kube-rs and client-go expect it; [`Api`] is the same door for code in this process.
#![forbid(unsafe_code)]

mod body;
mod client;
mod discovery;
mod kind;
mod limits;
mod meta;
mod metrics;
mod names;
mod ops;
mod patch;
mod schema;
mod select;
mod server;
mod status;
mod store;
mod table;
mod watch;

pub use body::{Body, BoxError};
pub use client::{Api, ApiWatch, WatchEvent};
pub use kind::{Column, Created, KindSpec, NewObject, Spec};
pub use limits::Limits;
pub use meta::{Object, ObjectMeta, OwnerReference};
pub use metrics::Metrics;
pub use names::{dns_label, dns_subdomain};
pub use select::{LabelSelector, SelectorError};
pub use server::{ApiServer, Attributes, Authorizer, Everything};
pub use status::{ApiError, Cause};
pub use store::{Batch, CommitError, Compacted, Entry, Expect, OpenError, Store, StoreEvent, Watcher};
