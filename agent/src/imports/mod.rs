//! Services of other clusters, at addresses of this one.
//!
//! The hub says what to import ([`client`]). For each port the agent listens in its own pod, and says so in the cluster
//! by a Service and an EndpointSlice ([`cluster`]); each connection that comes in is one of its own to the hub, which
//! joins it to the service elsewhere, and the datagrams of a port share one ([`datagrams`]). The owner's policy names what may be made here; without it nothing is.

mod client;
mod cluster;
mod datagrams;
mod listen;

use crate::{identity::Holder, limits, policy::PolicyFile, upstream::ApiServer};
use client::Hub;
use cluster::Kubernetes;
use listen::Listening;
use moorline_link::HubAddress;
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// The label of what the agent makes, with the name of the `ServiceImport`: nothing without it is touched.
pub const LABEL: &str = "moorline.dev/service-import";

/// What is counted.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Services that are imported now.
    imported: IntGauge,
    /// Connections to them, by what became of them.
    connections: IntCounterVec,
    /// Bytes that passed, both ways.
    bytes: IntCounter,
}

impl Metrics {
    /// Makes and registers them.
    ///
    /// # Errors
    /// One of the names is taken.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let connections = Opts::new("moorline_agent_import_connections_total", "Connections to imported services");
        let this = Self {
            imported: IntGauge::new("moorline_agent_imports", "Services of other clusters that have an address here")?,
            connections: IntCounterVec::new(connections, &["result"])?,
            bytes: IntCounter::new("moorline_agent_import_bytes_total", "Bytes from and to imported services")?,
        };
        registry.register(Box::new(this.imported.clone()))?;
        registry.register(Box::new(this.connections.clone()))?;
        registry.register(Box::new(this.bytes.clone()))?;
        Ok(this)
    }
}

/// A port of an import.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Port {
    /// Its number.
    pub port: u16,
    /// Its name.
    pub name: String,
    /// What it takes.
    #[serde(default)]
    pub protocol: Protocol,
}

/// What a port takes, as Kubernetes calls it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// Connections.
    #[default]
    Tcp,
    /// Datagrams.
    Udp,
}

/// A service that the hub wants to be made here.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Wanted {
    /// The `ServiceImport`.
    pub name: String,
    /// The namespace of the service.
    pub namespace: String,
    /// Its name.
    pub service: String,
    /// Its ports.
    pub ports: Vec<Port>,
    /// What connections of one client have in common, as Kubernetes calls it.
    #[serde(default = "no_affinity")]
    pub session_affinity: String,
}

fn no_affinity() -> String {
    "None".to_owned()
}

/// What the hub answers.
#[derive(Debug, Default, Deserialize)]
struct News {
    revision: String,
    imports: Vec<Wanted>,
    /// This cluster's agents that import.
    agents: HashSet<String>,
}

/// How an import is, for the hub.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Told {
    import: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<IpAddr>,
    #[serde(skip_serializing_if = "str::is_empty")]
    reason: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
}

/// Why a service has no address here. The text is for whoever looks at the import.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The owner does not allow it.
    #[error("{0}")]
    Policy(String),
    /// The agent may not.
    #[error("the agent may not {0}: give its service account that right in this namespace (deploy/imports/rbac.yaml)")]
    Forbidden(String),
    /// There is such a service, and it is not the agent's.
    #[error("service {0} is there already, and was not made for this import: choose another name")]
    NameTaken(String),
    /// There is no such namespace.
    #[error("there is no namespace {0:?}")]
    NoNamespace(String),
    /// The API server, or the agent's host.
    #[error("{0}")]
    Failed(String),
}

impl Failure {
    /// As a condition says it.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Policy(_) => "PolicyForbids",
            Self::Forbidden(_) => "RBACForbids",
            Self::NameTaken(_) => "NameTaken",
            Self::NoNamespace(_) => "NoNamespace",
            Self::Failed(_) => "ClusterFailed",
        }
    }
}

/// Keeps what is imported as the hub wants it.
pub struct Imports {
    hub: Arc<Hub>,
    cluster: Kubernetes,
    policy: Arc<PolicyFile>,
    metrics: Metrics,
    address: IpAddr,
}

impl Imports {
    /// `address`: the agent's own, which the cluster's pods reach.
    pub fn new(
        (hub, holder): (HubAddress, Arc<Holder>),
        upstream: Arc<ApiServer>,
        policy: Arc<PolicyFile>,
        address: IpAddr,
        metrics: Metrics,
    ) -> Self {
        let agent = holder.membership().name.to_string();
        let cluster = Kubernetes::new(upstream, agent, address);
        Self { hub: Arc::new(Hub::new(hub, holder)), cluster, policy, metrics, address }
    }

    /// Works until `stop`; then takes its addresses back, and lets open connections end for at most [`limits::GRACE`].
    ///
    /// # Cancel safety
    /// Dropping the future cuts every connection. What was made in the cluster stays.
    pub async fn run(&self, stop: CancellationToken) {
        let mut listening = Listening::new(Arc::clone(&self.hub), self.address, self.metrics.clone());
        let (mut seen, mut told) = (String::new(), Vec::new());
        let mut missing = Missing::default();
        while let Some(()) = stop.run_until_cancelled(async {
            match self.hub.news(&seen, &told).await {
                Ok(news) => {
                    told = self.apply(&news, &mut listening, &mut missing).await;
                    seen = news.revision;
                }
                Err(e) => {
                    tracing::warn!(cause = %e, "the hub was not asked what to import; what is imported stays as it is");
                    sleep(limits::IMPORTS_PAUSE.mul_f64(1.0 + rand::random::<f64>())).await;
                }
            }
        }).await {}
        let _ = tokio::time::timeout(limits::IMPORTS_LAST, self.cluster.withdraw()).await;
        listening.finish().await;
    }

    async fn apply(&self, news: &News, listening: &mut Listening, missing: &mut Missing) -> Vec<Told> {
        let policy = self.policy.current();
        let mut told = Vec::with_capacity(news.imports.len());
        let mut kept = HashMap::new();
        for wanted in &news.imports {
            let made = async {
                policy.import(&wanted.namespace, &wanted.service).map_err(|e| Failure::Policy(e.to_string()))?;
                let ports = listening.ports(wanted).await?;
                kept.insert((wanted.namespace.clone(), wanted.service.clone()), wanted.name.clone());
                self.cluster.make(wanted, &ports).await
            };
            let import = wanted.name.clone();
            told.push(match made.await {
                Ok(address) => Told { import, address: Some(address), reason: "", message: String::new() },
                Err(e) => {
                    tracing::warn!(import, cause = %e, "an import has no address here");
                    Told { import, address: None, reason: e.reason(), message: e.to_string() }
                }
            });
        }
        let gone = missing.since(&news.agents, Instant::now());
        self.cluster.clean(&policy.import_namespaces(), &kept, gone).await;
        listening.keep(|import| kept.values().any(|name| name == import));
        let imported = told.iter().filter(|told| told.address.is_some()).count();
        self.metrics.imported.set(i64::try_from(imported).unwrap_or(i64::MAX));
        told
    }
}

/// Since when agents of this cluster have not been seen by the hub. One that is away for a moment keeps what it made.
#[derive(Default)]
struct Missing(BTreeMap<String, Instant>);

impl Missing {
    /// Whether an agent has been away for long, asked about each that has made something here.
    fn since<'a>(&'a mut self, here: &'a HashSet<String>, now: Instant) -> impl FnMut(&str) -> bool + 'a {
        self.0.retain(|agent, _| !here.contains(agent));
        move |agent| {
            if here.contains(agent) {
                return false;
            }
            if self.0.len() >= limits::IMPORTS_AGENTS {
                return false;
            }
            let since = *self.0.entry(agent.to_owned()).or_insert(now);
            limits::IMPORTS_GONE <= now.duration_since(since)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_that_is_away_for_a_moment_keeps_what_it_made() {
        let (mut missing, begin) = (Missing::default(), Instant::now());
        let here = |names: &[&str]| names.iter().map(|s| (*s).to_owned()).collect::<HashSet<_>>();
        assert!(!missing.since(&here(&["a"]), begin)("a"));
        assert!(!missing.since(&here(&["a"]), begin)("b"), "the first time");
        let later = begin + limits::IMPORTS_GONE;
        assert!(missing.since(&here(&["a"]), later)("b"));
        assert!(!missing.since(&here(&["b"]), later)("b"));
        assert!(!missing.since(&here(&[]), later)("b"), "it was back in between");
    }
}
