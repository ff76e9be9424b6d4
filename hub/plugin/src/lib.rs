//! What management logic that rides on the hub is written against.
//!
//! A [`Plugin`] says in [`Plugin::register`] what it adds to the hub's API, and runs controllers against two ordinary
//! kube-rs clients: the hub's own API ([`HubView::client`]) and that of each connected cluster
//! ([`ClusterView::client`], through the tunnel). The hub serves traffic with no plugin at all, and a plugin that panics
//! or stands still takes nothing else with it: each has a runtime of its own, of low priority, and what the hub asks of
//! a plugin while it answers a request is asked with a bound on time.
//!
//! | module | what it does |
//! |---|---|
//! | `plugin`, `register` | what a plugin is, and what it may add |
//! | `factory` | a plugin made from its table of the configuration |
//! | `view`, `client` | what a running plugin sees: hub, clusters, two clients |
//! | `answers`, `watching` | how much of a cluster's answers is taken, and of its watches all together |
//! | `host`, `keeper`, `guard` | runs plugins: own threads, restarts with pauses, a watchdog, bounds |
//! | `logins` | login providers that plugins bring, on their threads |
//! | `kind`, `object`, `condition`, `follow` | kinds of the hub's API, typed for kube-rs |
//! | [`mirror`], `select` | keeps objects in clusters as the hub wants them, and tells how far it is |
//! | `testing` | with the feature of that name: clusters without a network, for tests of plugins |
#![forbid(unsafe_code)]

mod answers;
mod client;
mod condition;
mod factory;
mod follow;
mod guard;
mod host;
mod keeper;
mod kind;
pub mod limits;
mod logins;
mod metrics;
pub mod mirror;
mod object;
mod plugin;
pub mod quantity;
mod register;
mod select;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod view;
mod watching;

pub use answers::{TooMuch, name_of};
pub use client::{Backend, Body, BoxError};
pub use condition::{Condition, set_condition};
pub use factory::{Configured, Factory, FactoryError};
pub use follow::{All, Feed, Known, follow, follow_into};
pub use host::{Access, FINALIZER, Host, HostError, Readiness};
pub use kind::PluginKind;
pub use metrics::PluginMetrics;
pub use moorline_apiserver::{Cause, Spec, dns_label};
pub use moorline_authz::hubrules::{HubRule, HubRules};
pub use moorline_logins::LoginProvider;
pub use object::{HubObject, NoStatus};
pub use plugin::{Plugin, PluginError};
pub use register::{Registration, RouteAnswer, RouteRequest};
pub use select::ClusterSelector;
pub use view::{ClusterFacts, ClusterView, Clusters, Home, HubView};
pub use watching::watching;
