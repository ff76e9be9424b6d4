//! The kind of this plugin.

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
    /// What the nodes have for pods together: `cpu`, `memory`, `pods`.
    pub allocatable: BTreeMap<String, String>,
    /// Its pods.
    pub pods: u64,
    /// Pods that neither run nor have ended well. More than 500 are counted as 500.
    pub pods_in_trouble: u32,
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
