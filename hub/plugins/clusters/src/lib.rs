//! Clusters as objects of the hub: whether their agents are up to date, what is cleaned up when one is removed, and
//! clusters that the hub reaches by itself, with a kubeconfig.
//!
//! An imported cluster has an agent like any other; only that it runs here, beside the hub, and dials it over loopback. So
//! proxy, audit, edge policy and every other plugin treat it as they treat the rest, and nothing of them knows of it.
#![forbid(unsafe_code)]

mod host;
mod import;
pub mod kinds;
mod leave;
mod versions;

use futures_util::{FutureExt, future::BoxFuture};
use kinds::{ClusterImportSpec, check};
use kube::{
    Api,
    api::{ApiResource, DynamicObject, GroupVersionKind},
};
use moorline_plugin::{Configured, HubView, Plugin, PluginError, PluginKind, Registration};
use serde::Deserialize;
use std::{sync::Arc, time::Duration};

pub use leave::CONDITION as CLEANED_UP;
pub use versions::CONDITION as UP_TO_DATE;

/// Settings.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Seconds that a cluster's removal waits at most until what plugins made in it is gone.
    pub cleanup: u64,
    /// Clusters that can be imported.
    pub imports: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { cleanup: 30, imports: 100 }
    }
}

/// The plugin.
#[derive(Debug)]
pub struct ClustersPlugin {
    config: Config,
    imports: import::Imports,
}

impl Configured for ClustersPlugin {
    const NAME: &'static str = "clusters";
    type Config = Config;
    fn new(config: Config) -> Result<Self, String> {
        if !(1..=600).contains(&config.cleanup) {
            return Err("cleanup: 1 to 600 seconds".to_owned());
        }
        if 1000 < config.imports {
            return Err("imports: at most 1000; more clusters than that need agents of their own".to_owned());
        }
        Ok(Self { config, imports: import::Imports::new(config.imports) })
    }
}

fn kind(hub: &HubView, kind: &str, plural: &str) -> Api<DynamicObject> {
    let gvk = GroupVersionKind::gvk("moorline.dev", "v1alpha1", kind);
    Api::all_with(hub.client.clone(), &ApiResource::from_gvk_with_plural(&gvk, plural))
}

fn clusters(hub: &HubView) -> Api<DynamicObject> {
    kind(hub, "Cluster", "clusters")
}

fn agents(hub: &HubView) -> Api<DynamicObject> {
    kind(hub, "Agent", "agents")
}

impl Plugin for ClustersPlugin {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn register(&self, into: &mut Registration) {
        let imports = PluginKind::of::<ClusterImportSpec>()
            .column("Server", "/status/server")
            .condition_column("Running", import::RUNNING)
            .condition_column("Reachable", import::REACHABLE)
            .validate::<ClusterImportSpec>(check);
        into.kind(imports).writes(&["clusters", "agents", "jointokens"]).holds_clusters(leave::FINALIZER);
    }

    fn run(self: Arc<Self>, hub: HubView) -> BoxFuture<'static, Result<(), PluginError>> {
        async move {
            tokio::select! {
                ended = versions::run(&hub) => ended,
                ended = leave::run(&hub, Duration::from_secs(self.config.cleanup)) => ended,
                ended = self.imports.run(&hub) => ended,
            }
        }
        .boxed()
    }
}
