//! Services that one cluster has and another reaches, after the multi-cluster services API (KEP-1645). There the kinds are
//! in the clusters and namespaced; here they are at the hub, and name the cluster and the namespace.

use super::{Condition, GROUP, VERSION};
use moorline_apiserver::Spec;
use moorline_authz::access::Transport;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The condition that says whether it works.
pub const READY: &str = "Ready";
/// The condition that says whether there is what is exported, as far as connections tell.
pub const VALID: &str = "Valid";
/// The condition that says whether exports of one service contradict each other. The oldest is right then.
pub const CONFLICT: &str = "Conflict";

impl Spec for ServiceExportSpec {
    type Status = ServiceExportStatus;
    const GROUP: &'static str = GROUP;
    const VERSION: &'static str = VERSION;
    const KIND: &'static str = "ServiceExport";
    const PLURAL: &'static str = "serviceexports";
    const SINGULAR: &'static str = "serviceexport";
    const SHORT_NAMES: &'static [&'static str] = &["svcex"];
}

impl Spec for ServiceImportSpec {
    type Status = ServiceImportStatus;
    const GROUP: &'static str = GROUP;
    const VERSION: &'static str = VERSION;
    const KIND: &'static str = "ServiceImport";
    const PLURAL: &'static str = "serviceimports";
    const SINGULAR: &'static str = "serviceimport";
    const SHORT_NAMES: &'static [&'static str] = &["svcim"];
}

/// A service of a cluster that others may import.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceExportSpec {
    /// The cluster that has it.
    #[schemars(length(min = 1, max = 63))]
    pub cluster: String,
    /// Its namespace.
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,
    /// Its name.
    #[schemars(length(min = 1, max = 63))]
    pub service: String,
    /// Its ports, as the service numbers them.
    #[schemars(length(min = 1, max = 32))]
    pub ports: Vec<SharedPort>,
    /// `ClientIP`: connections of one client, by its address where it is imported, keep to one of the clusters that are near.
    /// Default: `None`.
    #[serde(default, skip_serializing_if = "SessionAffinity::is_none")]
    pub session_affinity: SessionAffinity,
    /// Names of clusters that may import it, or `*` for all. Without one nobody may.
    #[serde(default)]
    #[schemars(length(max = 1000))]
    pub importers: Vec<String>,
}

/// What connections of one client have in common, as Kubernetes calls it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SessionAffinity {
    /// Nothing.
    #[default]
    None,
    /// Where they lead.
    #[serde(rename = "ClientIP")]
    ClientIp,
}

impl SessionAffinity {
    /// Whether it is none.
    pub fn is_none(&self) -> bool {
        *self == Self::None
    }
}

/// A port of a service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SharedPort {
    /// Its number.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// What it is called in clusters that import it. Default: `port-<number>`, and `udp-<number>` where it takes datagrams.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 15))]
    pub name: String,
    /// What it takes. Default: TCP.
    #[serde(default, skip_serializing_if = "Protocol::is_tcp")]
    pub protocol: Protocol,
}

impl SharedPort {
    /// Its name, or the one that it has without.
    pub fn name(&self) -> String {
        match (self.name.as_str(), self.protocol) {
            ("", Protocol::Tcp) => format!("port-{}", self.port),
            ("", Protocol::Udp) => format!("udp-{}", self.port),
            (name, _) => name.to_owned(),
        }
    }
}

/// What a port takes, as Kubernetes calls it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// Connections.
    #[default]
    Tcp,
    /// Datagrams.
    Udp,
}

impl Protocol {
    fn is_tcp(&self) -> bool {
        *self == Self::Tcp
    }
}

impl From<Protocol> for Transport {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Tcp => Self::Tcp,
            Protocol::Udp => Self::Udp,
        }
    }
}

impl From<Transport> for Protocol {
    fn from(transport: Transport) -> Self {
        match transport {
            Transport::Tcp => Self::Tcp,
            Transport::Udp => Self::Udp,
        }
    }
}

/// How an export is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceExportStatus {
    /// `Ready`: whether connections reach it, as far as the last ones tell. `Valid`: whether it is there. `Conflict`: whether
    /// exports of the same service in other clusters have other ports.
    pub conditions: Vec<Condition>,
    /// Clusters that import it.
    pub importers: Vec<String>,
}

/// A service that a cluster gets an address for, although others have it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceImportSpec {
    /// The cluster that gets the address.
    #[schemars(length(min = 1, max = 63))]
    pub cluster: String,
    /// The namespace of the service that is made there.
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,
    /// The name of the service that is made there.
    #[schemars(length(min = 1, max = 63))]
    pub service: String,
    /// What it leads to. Default: exports with the same namespace and name.
    #[serde(default)]
    pub from: ImportSource,
}

/// Which exports an import leads to.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ImportSource {
    /// Their namespace. Default: the import's.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 63))]
    pub namespace: String,
    /// Their name. Default: the import's.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 63))]
    pub service: String,
    /// Clusters that they are in. Default: all that export it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1000))]
    pub clusters: Vec<String>,
}

/// How an import is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceImportStatus {
    /// `Ready`: whether the address is there and leads somewhere.
    pub conditions: Vec<Condition>,
    /// The address of the service in its cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub address: Option<String>,
    /// Its ports.
    pub ports: Vec<SharedPort>,
    /// Clusters that it comes from.
    pub clusters: Vec<String>,
}
