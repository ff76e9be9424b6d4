//! The nodes of all clusters: what their agents tell of them, as objects.
//!
//! A node agent reports in its greeting and as things change, so that one that is parked reports too, each time it asks
//! for a session. Everything that it says is hostile until it has been cut to size here ([`report`]); the object is
//! written when it changes and at most once in a while ([`keeper`]).

mod keeper;
mod report;

pub(crate) use keeper::Keeper;

use crate::kinds::Condition;
use moorline_apiserver::{Cause, Column, KindSpec, Spec};
use moorline_proto::id::{AgentName, ClusterId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The label that names a node's cluster.
pub const CLUSTER_LABEL: &str = "moorline.dev/cluster";
/// The condition that says whether a node's agent reports.
pub const REPORTING: &str = "Reporting";
/// Conditions whose good state is `True`; of all others it is `False`.
const GOOD_WHEN_TRUE: [&str; 4] = [REPORTING, "Ready", "ApiServerReachable", "EtcdReachable"];

/// A node of a cluster, by the agent that stands on it. Its name is that of the agent: `<cluster>.<agent>`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeSpec {
    /// Name of its cluster.
    pub cluster: String,
    /// Name of its agent within the cluster.
    pub agent: String,
    /// What the cluster calls it.
    #[serde(default)]
    pub node: String,
}

/// How a node is, as its agent says: labels, texts and numbers are the node's own word.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeStatus {
    /// `Reporting`, `Ready`, `MemoryPressure`, `DiskPressure`, `ApiServerReachable`, `EtcdReachable`,
    /// `CertificatesExpiring`, `ClockSkewed`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// Such as `Debian GNU/Linux 13 (trixie)`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub os_image: String,
    /// `linux` or `windows`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub operating_system: String,
    /// Such as `amd64`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub architecture: String,
    /// Of the kernel.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kernel_version: String,
    /// Of the kubelet.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kubelet_version: String,
    /// Such as `containerd://1.7.24`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub container_runtime_version: String,
    /// Of the agent.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub agent_version: String,
    /// How far the node's clock is before the hub's, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "i64")]
    pub clock_skew_ms: Option<i64>,
    /// Memory that is available, in percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u8")]
    pub memory_available_percent: Option<u8>,
    /// Of the fullest file system that is looked at, in percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u8")]
    pub disk_available_percent: Option<u8>,
    /// Certificates on the node, those that end first; at most sixteen.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub certificates: Vec<NodeCertificate>,
}

/// A certificate on a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeCertificate {
    /// Its file, below the folder that is looked at.
    pub name: String,
    /// RFC 3339.
    pub expires: String,
}

impl Spec for NodeSpec {
    type Status = NodeStatus;
    const KIND: &'static str = "Node";
    const PLURAL: &'static str = "nodes";
    const SINGULAR: &'static str = "node";
}

/// The kind, as the API server is told of it.
pub(crate) fn kind() -> KindSpec {
    let first = |object: &Value| object.pointer("/status/certificates/0/expires").cloned().unwrap_or(Value::Null);
    KindSpec::of::<NodeSpec>()
        .column(Column::at("Cluster", "/spec/cluster"))
        .column(Column::at("Node", "/spec/node").described("What the cluster calls it"))
        .column(Column::condition("Ready", "Ready").described("Whether the kubelet says so"))
        .column(Column::with("Problems", problems).described("What is not as it should be"))
        .column(Column::at("Kubelet", "/status/kubeletVersion"))
        .column(Column::with("Certificates-Until", first).described("When the first certificate ends"))
        .column(Column::at("Skew-Ms", "/status/clockSkewMs").typed("integer").wide())
        .column(Column::at("OS", "/status/osImage").wide())
        .column(Column::at("Kernel", "/status/kernelVersion").wide())
        .column(Column::at("Arch", "/status/architecture").wide())
        .column(Column::at("Runtime", "/status/containerRuntimeVersion").wide())
        .column(Column::at("Agent-Version", "/status/agentVersion").wide())
        .selectable(&["spec.cluster", "spec.node"])
        .validate(|object, _| {
            let text = |at: &str| object.pointer(at).and_then(Value::as_str).unwrap_or_default();
            let (cluster, agent) = (text("/spec/cluster"), text("/spec/agent"));
            let known = cluster.parse::<ClusterId>().is_ok() && agent.parse::<AgentName>().is_ok();
            if known && text("/metadata/name") == format!("{cluster}.{agent}") {
                Vec::new()
            } else {
                vec![Cause::invalid("metadata.name", "must be <spec.cluster>.<spec.agent>: node agents make their own")]
            }
        })
}

/// The conditions that are not as they should be.
fn problems(object: &Value) -> Value {
    let all = object.pointer("/status/conditions").and_then(Value::as_array);
    let wrong = all.into_iter().flatten().filter_map(|condition| {
        let name = condition["type"].as_str()?;
        let good = if GOOD_WHEN_TRUE.contains(&name) { "True" } else { "False" };
        (condition["status"] != good).then(|| match name {
            REPORTING => "Silent".to_owned(),
            name if GOOD_WHEN_TRUE.contains(&name) => format!("Not{name}"),
            name => name.to_owned(),
        })
    });
    let wrong: Vec<String> = wrong.collect();
    Value::from(if wrong.is_empty() { "<none>".to_owned() } else { wrong.join(",") })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn problems_are_what_is_not_as_it_should_be() {
        let node = |conditions: Value| problems(&json!({ "status": { "conditions": conditions } }));
        assert_eq!(node(json!([])), "<none>");
        let good = json!([{ "type": "Ready", "status": "True" }, { "type": "DiskPressure", "status": "False" }]);
        assert_eq!(node(good), "<none>");
        let bad = json!([
            { "type": "Reporting", "status": "Unknown" }, { "type": "EtcdReachable", "status": "False" },
            { "type": "ClockSkewed", "status": "True" },
        ]);
        assert_eq!(node(bad), "Silent,NotEtcdReachable,ClockSkewed");
    }
}
