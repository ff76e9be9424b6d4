//! The kinds of this plugin.

use moorline_plugin::Spec;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

impl Spec for ClusterHealthSpec {
    type Status = ClusterHealthStatus;
    const KIND: &'static str = "ClusterHealth";
    const PLURAL: &'static str = "clusterhealths";
    const SINGULAR: &'static str = "clusterhealth";
    const SHORT_NAMES: &'static [&'static str] = &["health"];
}

impl Spec for FleetHealthSpec {
    type Status = FleetHealthStatus;
    const KIND: &'static str = "FleetHealth";
    const PLURAL: &'static str = "fleethealths";
    const SINGULAR: &'static str = "fleethealth";
    const SHORT_NAMES: &'static [&'static str] = &["fleet"];
}

/// The name of the one FleetHealth.
pub const FLEET: &str = "fleet";

/// Nothing to be said: the hub makes one for each cluster, with the cluster's name.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ClusterHealthSpec {}

/// How a cluster is. Written when it changes, at most once in the plugin's interval.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterHealthStatus {
    /// Its nodes.
    pub nodes: u32,
    /// Those that are ready.
    pub nodes_ready: u32,
    /// What the nodes have together: `cpu`, `memory`, `pods`.
    pub capacity: BTreeMap<String, String>,
    /// What they have of it for pods.
    pub allocatable: BTreeMap<String, String>,
    /// What is used, as the cluster measures it: `cpu`, `memory`. Written when it has changed by a twentieth of what the
    /// nodes have for pods. Empty where it is not measured: `usage` says why.
    pub used: BTreeMap<String, String>,
    /// Where `used` is from.
    pub usage: Usage,
    /// Its pods.
    pub pods: u64,
    /// Pods that neither run nor have ended well. More than 500 are counted as 500.
    pub pods_in_trouble: u32,
    /// Parts of its control plane: `kube-apiserver`, and as far as the cluster has and shows them `etcd`,
    /// `kube-controller-manager`, `kube-scheduler`.
    pub components: Vec<Component>,
    /// Those that are unhealthy.
    pub components_unhealthy: u32,
    /// Warnings of its events, those of one cause once, the newest first.
    pub warnings: Vec<Warning>,
}

/// Warnings of one cause.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Warning {
    /// `FailedScheduling`, `BackOff`, …
    pub reason: String,
    /// The kind of what it is about.
    pub kind: String,
    /// Its namespace.
    pub namespace: String,
    /// For people, of the newest one.
    pub message: String,
    /// Objects that it befell.
    pub objects: u32,
    /// RFC 3339: the newest one.
    pub last: String,
}

/// Whether a cluster's usage is known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Usage {
    /// The cluster has no metrics API (`metrics.k8s.io`), or nobody serves it now.
    #[default]
    NotServed,
    /// Its metrics API tells.
    Measured,
    /// The cluster does not let the plugin ask.
    NotAllowed,
    /// The answer does not come, cannot be read, or is too large.
    NoAnswer,
}

/// How a part of a control plane is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum State {
    /// Nobody can tell.
    #[default]
    Unknown,
    /// It works.
    Healthy,
    /// It does not.
    Unhealthy,
}

/// A part of a cluster's control plane.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Component {
    /// `kube-scheduler`, …
    pub name: String,
    /// How it is.
    pub state: State,
    /// For people; empty where all is well.
    pub message: String,
}

/// Nothing to be said: the hub makes the one that there is, `fleet`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FleetHealthSpec {}

/// How all clusters are together. Those that are not connected, or do not let the plugin in, are in `clusters` alone.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct FleetHealthStatus {
    /// Clusters of the hub.
    pub clusters: u32,
    /// Those whose health is known; the sums are theirs.
    pub clusters_known: u32,
    /// Those with nodes, all of which are ready.
    pub clusters_ready: u32,
    /// Those whose usage is known.
    pub clusters_measured: u32,
    /// Nodes.
    pub nodes: u64,
    /// Those that are ready.
    pub nodes_ready: u64,
    /// Pods.
    pub pods: u64,
    /// Pods that neither run nor have ended well.
    pub pods_in_trouble: u64,
    /// Parts of control planes that are unhealthy.
    pub components_unhealthy: u32,
    /// What the nodes have: `cpu`, `memory`, `pods`.
    pub capacity: BTreeMap<String, String>,
    /// What they have of it for pods.
    pub allocatable: BTreeMap<String, String>,
    /// What is used of `measured`: `cpu`, `memory`.
    pub used: BTreeMap<String, String>,
    /// What the nodes of those clusters have for pods whose usage is known.
    pub measured: BTreeMap<String, String>,
    /// Warnings of all clusters, those of one cause once, those of most clusters first.
    pub warnings: Vec<FleetWarning>,
}

/// Warnings of one cause in all clusters.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct FleetWarning {
    /// `FailedScheduling`, `BackOff`, …
    pub reason: String,
    /// The kind of what it is about.
    pub kind: String,
    /// Clusters that have it.
    pub clusters: u32,
    /// Objects that it befell.
    pub objects: u32,
    /// RFC 3339: the newest one.
    pub last: String,
}
