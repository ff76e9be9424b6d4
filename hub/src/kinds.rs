//! The kinds of the hub's API: `moorline.dev/v1alpha1`, all cluster-scoped. Shared by hub and CLI.

use moorline_apiserver::Spec;
use moorline_authz::access::Recording;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

mod shares;

pub use shares::{
    CONFLICT, ImportSource, Protocol, READY, ServiceExportSpec, ServiceExportStatus, ServiceImportSpec,
    ServiceImportStatus, SessionAffinity, SharedPort, VALID,
};

/// The API group.
pub const GROUP: &str = "moorline.dev";
/// Its one version.
pub const VERSION: &str = "v1alpha1";
/// The two as they stand in an object.
pub const API_VERSION: &str = "moorline.dev/v1alpha1";
/// The condition that says whether an agent is connected.
pub const CONNECTED: &str = "Connected";
/// The condition that says whether a cluster has the bundle that the hub would make for it now.
pub const BUNDLE_CURRENT: &str = "BundleCurrent";
/// The condition that says whether a cluster's own endpoint lets users in by that bundle.
pub const ENDPOINT_READY: &str = "EndpointReady";

/// Kubernetes' `metav1.Condition`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Condition {
    /// What it is about.
    pub r#type: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// One word for programs.
    pub reason: String,
    /// For people.
    pub message: String,
    /// RFC 3339: since when `status` is what it is.
    pub last_transition_time: String,
}

macro_rules! kind {
    ($spec:ident, $status:ident, $kind:literal, $plural:literal, $singular:literal, $short:expr) => {
        impl Spec for $spec {
            type Status = $status;
            const GROUP: &'static str = GROUP;
            const VERSION: &'static str = VERSION;
            const KIND: &'static str = $kind;
            const PLURAL: &'static str = $plural;
            const SINGULAR: &'static str = $singular;
            const SHORT_NAMES: &'static [&'static str] = $short;
        }
    };
}
kind!(ClusterSpec, ClusterStatus, "Cluster", "clusters", "cluster", &[]);
kind!(AgentSpec, AgentStatus, "Agent", "agents", "agent", &[]);
kind!(UserSpec, UserStatus, "User", "users", "user", &[]);
kind!(GroupSpec, NoStatus, "Group", "groups", "group", &[]);
kind!(TokenSpec, TokenStatus, "Token", "tokens", "token", &[]);
kind!(AccessRequestSpec, AccessRequestStatus, "AccessRequest", "accessrequests", "accessrequest", &[]);
kind!(JoinTokenSpec, JoinTokenStatus, "JoinToken", "jointokens", "jointoken", &[]);
kind!(ClusterGrantSpec, NoStatus, "ClusterGrant", "clustergrants", "clustergrant", &["grant", "grants"]);
kind!(ServiceGrantSpec, NoStatus, "ServiceGrant", "servicegrants", "servicegrant", &[]);

// `with = "String"` on options: absent is the one way to say nothing, `null` is not a type of its own (and kubectl
// explain cannot show a schema with two types).

/// What is wanted of a cluster.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClusterSpec {
    /// A name for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(max = 256))]
    pub display_name: Option<String>,
    /// What is recorded of sessions in its terminals: `never`, `always` (what they show) or `withInput` (and what is
    /// typed). Absent: as the hub's configuration says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", regex(pattern = "^(never|always|withInput)$"))]
    pub record: Option<Recording>,
}

/// How a cluster is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterStatus {
    /// `Connected`, `AgentUpToDate` and `Ready`; with an endpoint of its own `BundleCurrent` and `EndpointReady`; while it
    /// is removed `CleanedUp`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// Cluster agents that are connected now.
    pub agents: u32,
    /// Node agents that stand by now. The others are parked: they come when they are needed.
    pub node_agents: u32,
    /// What carries the newest session: `quic`, `tls` or `websocket`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub carrier: Option<String>,
    /// Why nothing better carries it, in the agent's words.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub carrier_reason: Option<String>,
    /// Round trip at the last change, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u64")]
    pub rtt_ms: Option<u64>,
    /// RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub connected_since: Option<String>,
    /// RFC 3339: when the last session ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub last_seen: Option<String>,
    /// Of the cluster's API server.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub kubernetes_version: Option<String>,
    /// Its nodes, as the plugin `health` counts them.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u32")]
    pub nodes: Option<u32>,
    /// Those that are ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u32")]
    pub nodes_ready: Option<u32>,
    /// What its nodes have together: `cpu`, `memory`, `pods`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub capacity: BTreeMap<String, String>,
    /// Of the newest session's agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub agent_version: Option<String>,
    /// Where the newest session comes from.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub remote_address: Option<String>,
    /// The way that does not lead through the hub.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "DirectStatus")]
    pub direct: Option<DirectStatus>,
}

/// A cluster's own endpoint.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DirectStatus {
    /// Where kubectl reaches it: `https://host:port`. Empty: it has not said.
    pub server: String,
    /// The authority of its certificate, PEM. Empty: a public one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub certificate_authority: String,
    /// RFC 3339, to the hour: how long it lets users in if it hears nothing more.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub bundle_expires: String,
}

/// What an agent serves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AgentRole {
    /// The whole cluster.
    #[default]
    Agent,
    /// One node; stands in for the cluster's agents where none is left.
    Node,
}

impl std::fmt::Display for AgentRole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Agent => "cluster",
            Self::Node => "node",
        })
    }
}

/// An agent's identity.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AgentSpec {
    /// Name of its cluster.
    pub cluster: String,
    /// `metadata.uid` of that cluster: a cluster of the same name made later has other agents.
    pub cluster_uid: String,
    /// Its name within the cluster.
    pub name: String,
    /// What it serves.
    #[serde(default)]
    pub role: AgentRole,
    /// The whole name of the Kubernetes node that its cluster vouched for. Missing: it joined by a token, or before hubs
    /// kept this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(max = 253))]
    pub node: Option<String>,
    /// SHA-256 of its public key (SubjectPublicKeyInfo, DER), in hex. No other key is let in.
    #[schemars(regex(pattern = r"^[0-9a-f]{64}$"))]
    pub public_key_sha256: String,
}

/// How an agent is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AgentStatus {
    /// `Connected`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// `quic`, `tls` or `websocket`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub carrier: Option<String>,
    /// RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub connected_since: Option<String>,
    /// RFC 3339: when its last session ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub last_seen: Option<String>,
    /// Of its software.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub version: Option<String>,
    /// RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub certificate_expires: Option<String>,
    /// `sha256:` and the hash of the key of the hub's authority that its certificate is of.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub authority: Option<String>,
    /// Where it comes from.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub remote_address: Option<String>,
}

/// A user. Passwords are set at `…/users/<name>/password` and stand in no object.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UserSpec {
    /// A name for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(max = 256))]
    pub display_name: Option<String>,
    /// Groups, known to the hub and to clusters.
    #[serde(default)]
    #[schemars(length(max = 256), inner(length(min = 1, max = 256)))]
    pub groups: Vec<String>,
    /// Nothing is permitted, and every open stream is cut.
    #[serde(default)]
    pub disabled: bool,
    /// Who this user is at login providers, one or several of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub identities: Vec<UserIdentity>,
}

/// Who a user is at one login provider.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UserIdentity {
    /// Name of the provider in the hub's configuration.
    #[schemars(length(min = 1, max = 32))]
    pub provider: String,
    /// The provider's own unchanging id of them: objectGUID, entryUUID, sub, a number.
    #[schemars(length(min = 1, max = 256))]
    pub subject: String,
}

/// What login providers say of a user.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct UserStatus {
    /// One for each provider that they have come in through.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub identities: Vec<IdentityStatus>,
}

/// What one login provider says of a user.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct IdentityStatus {
    /// Name of the provider.
    pub provider: String,
    /// The provider's own unchanging id of them.
    pub subject: String,
    /// What they are called there.
    pub username: String,
    /// Their groups there, without the provider's name that they carry here.
    pub groups: Vec<String>,
    /// RFC 3339: when they last proved who they are.
    pub last_proven: String,
    /// Why the provider no longer stands for them. Absent: it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub gone: Option<String>,
}

/// A group: users, and groups of login providers or of this hub. Its name is a group of all of them, to grants and to
/// clusters. The group moorline:admins is the hub's administrators.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GroupSpec {
    /// A name for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(max = 256))]
    pub display_name: Option<String>,
    /// User names.
    #[serde(default)]
    #[schemars(length(max = 10000))]
    pub users: Vec<String>,
    /// Groups of login providers, as PROVIDER:GROUP, and of this hub.
    #[serde(default)]
    #[schemars(length(max = 10000))]
    pub groups: Vec<String>,
}

/// Nothing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NoStatus {}

/// A token.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TokenSpec {
    /// Whose it is.
    #[schemars(length(min = 1, max = 253))]
    pub user: String,
    /// What it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(max = 256))]
    pub description: Option<String>,
    /// RFC 3339: from then on it is nothing.
    pub expires: String,
    /// It is good for these clusters only, and for nothing of the hub's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Vec<String>", length(max = 256))]
    pub clusters: Option<Vec<String>>,
    /// It is good for these verbs only, such as get, list and watch, and makes no other tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Vec<String>", length(max = 16))]
    pub verbs: Option<Vec<String>>,
    /// A login, and which provider proved who it is. Absent: an API key. The hub alone sets it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(max = 63))]
    pub provider: Option<String>,
}

/// In the answer to its creation only.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TokenStatus {
    /// The token. Shown once, kept nowhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub token: Option<String>,
}

/// More rights on a cluster for a while: asked for with a reason, granted by another person, ended by the clock.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AccessRequestSpec {
    /// Who asks, for themselves.
    #[schemars(length(min = 1, max = 253))]
    pub user: String,
    /// The cluster.
    #[schemars(length(min = 1, max = 63))]
    pub cluster: String,
    /// Groups that they want to have there. None: only to reach it.
    #[serde(default)]
    #[schemars(length(max = 32), inner(length(min = 1, max = 256)))]
    pub groups: Vec<String>,
    /// For how long, from the approval on.
    #[schemars(range(min = 1, max = 86400))]
    pub duration_seconds: u64,
    /// What for. Whoever decides reads it, and it stays on record.
    #[schemars(length(min = 1, max = 1024))]
    pub reason: String,
}

/// How far a request for access is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AccessPhase {
    /// Nobody has decided.
    #[default]
    Pending,
    /// They have the rights.
    Approved,
    /// They do not get them.
    Denied,
    /// They had them.
    Expired,
}

/// What became of a request for access. The hub alone writes it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AccessRequestStatus {
    /// How far it is.
    pub phase: AccessPhase,
    /// Who decided.
    pub decided_by: String,
    /// RFC 3339.
    pub decided_at: String,
    /// RFC 3339: until when it is granted.
    pub expires: String,
    /// What was said with the decision.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub message: Option<String>,
}

/// What a join token permits.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct JoinTokenSpec {
    /// The cluster to join.
    #[schemars(length(min = 1, max = 63))]
    pub cluster: String,
    /// RFC 3339: from then on it is nothing.
    pub expires: String,
    /// How many agents may join with it.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_uses: u32,
}

fn one() -> u32 {
    1
}

/// How often it was used; the texts in the answer to its creation only.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct JoinTokenStatus {
    /// Agents that joined with it.
    pub uses: u32,
    /// The token. Shown once, kept nowhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub token: Option<String>,
    /// The line that starts an agent with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub join_command: Option<String>,
}

/// Who may use which clusters. What they may do there is each cluster's own RBAC.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClusterGrantSpec {
    /// User names.
    #[serde(default)]
    #[schemars(length(max = 1000))]
    pub users: Vec<String>,
    /// Group names.
    #[serde(default)]
    #[schemars(length(max = 1000))]
    pub groups: Vec<String>,
    /// Cluster names, or `*` for all.
    #[serde(default)]
    #[schemars(length(max = 1000))]
    pub clusters: Vec<String>,
    /// Groups that its holders have in these clusters besides their own.
    #[serde(default)]
    #[schemars(length(max = 256))]
    pub as_groups: Vec<String>,
    /// What is recorded of its holders' sessions in terminals: the most that cluster and grants say. `never` takes them
    /// out where each grant by which they reach the cluster says it. Absent: as the cluster says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", regex(pattern = "^(never|always|withInput)$"))]
    pub record: Option<Recording>,
}

/// Who may reach which services, pods and hosts inside clusters. What is not named is not granted; the edge policy of a
/// cluster's owner may refuse it all the same.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceGrantSpec {
    /// User names.
    #[serde(default)]
    #[schemars(length(max = 1000))]
    pub users: Vec<String>,
    /// Group names.
    #[serde(default)]
    #[schemars(length(max = 1000))]
    pub groups: Vec<String>,
    /// Cluster names, or `*` for all.
    #[serde(default)]
    #[schemars(length(max = 1000))]
    pub clusters: Vec<String>,
    /// Namespaces of the services and pods, or `*` for all.
    #[serde(default)]
    #[schemars(length(max = 1000))]
    pub namespaces: Vec<String>,
    /// Names of services, or `*` for all.
    #[serde(default)]
    #[schemars(length(max = 1000))]
    pub services: Vec<String>,
    /// Names of pods, or `*` for all.
    #[serde(default)]
    #[schemars(length(max = 1000))]
    pub pods: Vec<String>,
    /// Hosts as the cluster sees them: `10.0.0.0/8`, `10.0.0.5:5432`, `db.corp:5432`, `*.corp`, or `*` for all.
    #[serde(default)]
    #[schemars(length(max = 1000))]
    pub hosts: Vec<String>,
    /// Labels that the service or pod must carry.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub labels: BTreeMap<String, String>,
}
