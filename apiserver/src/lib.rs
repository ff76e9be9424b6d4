//! A small embeddable Kubernetes-style API server over a revisioned store.
//!
//! [`Store`] keeps JSON documents under one revision counter; [`KindSpec`] says what a kind is; [`ApiServer`] serves
//! the kinds over HTTP as kubectl, kube-rs and client-go expect it; [`Api`] is the same door for code in this process.
//!
//! From the outside in:
//!
//! | module | what it does |
//! |---|---|
//! | `server` | paths and verbs; `flow` says how many at once, `auth` asks who may |
//! | `request`, `negotiate` | parameters and bodies in; forms, YAML and gzip out |
//! | `discovery`, `openapi`, `openapi_pb` | what clients ask before they ask for objects |
//! | `list`, `watch`, `table`, `select` | reading many |
//! | `decode`, `check`, `schema`, `validate` | what was sent, in the shape of its kind and by its rules |
//! | `ops`, `patch`, `scale`, `delete` | the rules of writing one object, and what goes with it |
//! | `manage`, `shape`, `fields` | whose field is whose: server-side apply |
//! | `store`, `writer`, `backup` | revisions, one writer, everything at one revision |
//! | `backend`, `disk`, `etcd`, `seal` | what keeps it: a file, or an etcd; sealed, if there is a key |
//!
//! Where it differs from kube-apiserver on purpose, the rows of `tests/e2e/tests/conformance` say why.
#![forbid(unsafe_code)]

mod auth;
mod backend;
mod backup;
mod body;
mod check;
mod client;
mod decode;
mod delete;
mod discovery;
mod disk;
mod etcd;
mod fields;
mod flow;
mod kind;
mod limits;
mod list;
mod manage;
mod meta;
mod metrics;
mod names;
mod negotiate;
mod openapi;
mod openapi_pb;
mod ops;
mod patch;
mod request;
mod scale;
mod schema;
mod seal;
mod select;
mod server;
mod shape;
mod status;
mod store;
mod stored;
mod table;
mod validate;
mod versions;
mod watch;
mod witness;
mod writer;

pub use auth::{Attributes, Authorizer, Everything};
pub use backup::{BackupError, BackupInfo, open_idle, restore, rotate};
pub use body::{Body, BoxError};
pub use client::{Api, ApiWatch, WatchEvent};
pub use disk::Disk;
pub use etcd::{EtcdError, EtcdPlace, EtcdTls};
pub use kind::{Column, Created, KindSpec, NewObject, Spec};
pub use limits::Limits;
pub use meta::{Object, ObjectMeta, OwnerReference};
pub use metrics::Metrics;
pub use names::{dns_label, dns_subdomain};
pub use redb::StorageBackend;
pub use scale::Scale;
pub use seal::{SealError, StoreKey};
pub use select::{LabelSelector, SelectorError};
pub use server::ApiServer;
pub use status::{ApiError, Cause};
pub use store::{Batch, CommitError, Compacted, Entry, Expect, OpenError, Store, StoreEvent, Unread, Watcher};
pub use versions::Convert;
