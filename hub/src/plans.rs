//! Plans for nodes: what is to be done on which nodes of a cluster, in which order, and how far it is.
//!
//! The object says what is wanted. [`driver`] signs it for each node with the authority's key, hands it to the node's
//! agent, and writes what that tells; [`rollout`] decides which nodes are next. What is done on a node is the agent's
//! matter, and whether, its owner's.

mod driver;
mod files;
mod holders;
mod rollout;

pub(crate) use driver::Driver;
pub(crate) use files::{FILE, FileError, Files};

use crate::nodes::CLUSTER_LABEL;
use moorline_apiserver::{Cause, Column, KindSpec, Spec};
use moorline_authz::plan::{self, Progress, Step, Watch};
use moorline_proto::id::ClusterId;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// What is to be done on nodes of a cluster. Their agents do it once; it is done again when steps, probes or `run` change.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodePlanSpec {
    /// The cluster.
    #[schemars(length(min = 1, max = 63))]
    pub cluster: String,
    /// Nodes by the names of their agents, or by those that the cluster gives them.
    #[serde(default)]
    #[schemars(length(max = 1000))]
    pub nodes: Vec<String>,
    /// Nodes by their labels; nothing: only those that are named.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub node_selector: BTreeMap<String, String>,
    /// What to do, in this order.
    #[schemars(length(min = 1, max = 64))]
    pub steps: Vec<Step>,
    /// What to look at afterwards, again and again.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub probes: Vec<Watch>,
    /// How it goes from node to node.
    #[serde(default)]
    pub strategy: Strategy,
    /// No further node begins.
    #[serde(default)]
    pub paused: bool,
    /// Another word here has it done again.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub run: String,
}

/// How a plan goes from node to node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Strategy {
    /// Nodes that are under way, or have failed, at a time.
    #[schemars(range(min = 1, max = 1000))]
    pub max_unavailable: u32,
    /// Empty each node of its pods first and take it back into use at the end; so many seconds at most. 0: do not.
    #[schemars(range(max = 3600))]
    pub drain_seconds: u32,
    /// No further node begins once one has failed. Without it, failed nodes count as unavailable, and others go on.
    pub pause_on_failure: bool,
}

impl Default for Strategy {
    fn default() -> Self {
        Self { max_unavailable: 1, drain_seconds: 0, pause_on_failure: true }
    }
}

/// How far a plan is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NodePlanStatus {
    /// `Waiting`, `Running`, `Paused`, `Succeeded` or `Failed`.
    pub phase: String,
    /// Why it is no further.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// `metadata.generation` that this is about.
    pub observed_generation: i64,
    /// Nodes that it is for.
    pub total: u32,
    /// Nodes on which it has succeeded.
    pub done: u32,
    /// Nodes on which it has failed, or whose owner refuses it.
    pub failed: u32,
    /// Each of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<NodeProgress>,
}

/// How far one node is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeProgress {
    /// Name of its agent within the cluster.
    pub agent: String,
    /// Its agent has it.
    pub sent: bool,
    /// As its agent tells.
    pub progress: Progress,
}

impl Spec for NodePlanSpec {
    type Status = NodePlanStatus;
    const KIND: &'static str = "NodePlan";
    const PLURAL: &'static str = "nodeplans";
    const SINGULAR: &'static str = "nodeplan";
}

/// The kind, as the API server is told of it.
pub(crate) fn kind() -> KindSpec {
    KindSpec::of::<NodePlanSpec>()
        .column(Column::at("Cluster", "/spec/cluster"))
        .column(Column::with("Phase", |object| match object.pointer("/status/phase").and_then(Value::as_str) {
            None | Some("") => Value::from("Waiting"),
            Some(phase) => Value::from(phase),
        }))
        .column(Column::with("Nodes", |object| {
            let number = |at| object.pointer(at).and_then(Value::as_u64).unwrap_or(0);
            Value::from(format!("{}/{}", number("/status/done"), number("/status/total")))
        }))
        .column(Column::at("Failed", "/status/failed").typed("integer"))
        .column(Column::at("Message", "/status/message"))
        .selectable(&["spec.cluster"])
        .validate(|object, old| {
            let wrong = |(field, why): (String, String)| Cause::invalid(&field, why);
            let Ok(spec) = serde_json::from_value::<NodePlanSpec>(object["spec"].clone()) else {
                return vec![wrong(("spec".to_owned(), "cannot be read".to_owned()))];
            };
            let mut all: Vec<Cause> = plan::check(&spec.steps, &spec.probes).into_iter().map(wrong).collect();
            if spec.cluster.parse::<ClusterId>().is_err() {
                all.push(Cause::invalid("spec.cluster", "not a cluster name"));
            }
            if spec.nodes.is_empty() && spec.node_selector.is_empty() {
                let why =
                    format!("name nodes, or select them; {CLUSTER_LABEL}: {} selects all of the cluster", spec.cluster);
                all.push(Cause::invalid("spec.nodes", why));
            }
            if spec.strategy.max_unavailable == 0 {
                all.push(Cause::invalid("spec.strategy.maxUnavailable", "at least 1"));
            }
            if old.is_some_and(|old| old["spec"]["cluster"] != object["spec"]["cluster"]) {
                all.push(Cause::invalid("spec.cluster", "a plan never moves to another cluster"));
            }
            all
        })
}
