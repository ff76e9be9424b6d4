//! The kinds of the hub's API, by the names that people type.

/// Path of the hub's API group and version.
pub const API: &str = "/apis/moorline.dev/v1alpha1";
/// The group, as it stands behind a kind in `-o name`.
const GROUP: &str = "moorline.dev";

/// A kind of the hub's API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Resource {
    /// A cluster that dials in
    #[value(name = "clusters", alias = "cluster")]
    Cluster,
    /// An agent of a cluster
    #[value(name = "agents", alias = "agent")]
    Agent,
    /// A node, as its agent tells of it
    #[value(name = "nodes", alias = "node")]
    Node,
    /// What is to be done on nodes
    #[value(name = "nodeplans", aliases = ["nodeplan", "plans", "plan"])]
    NodePlan,
    /// A person or machine that may log in
    #[value(name = "users", alias = "user")]
    User,
    /// Users and providers' groups under one name
    #[value(name = "groups", alias = "group")]
    Group,
    /// A request for more rights for a while
    #[value(name = "accessrequests", alias = "accessrequest")]
    AccessRequest,
    /// A login or API key
    #[value(name = "tokens", alias = "token")]
    Token,
    /// A token that lets an agent join
    #[value(name = "jointokens", alias = "jointoken")]
    JoinToken,
    /// Who may use which cluster
    #[value(name = "clustergrants", aliases = ["clustergrant", "grants", "grant"])]
    ClusterGrant,
    /// Who may reach which services, pods and hosts inside clusters
    #[value(name = "servicegrants", alias = "servicegrant")]
    ServiceGrant,
    /// A service of a cluster that others may import
    #[value(name = "serviceexports", aliases = ["serviceexport", "exports", "export"])]
    ServiceExport,
    /// A service that a cluster gets an address for, although others have it
    #[value(name = "serviceimports", aliases = ["serviceimport", "imports", "import"])]
    ServiceImport,
    /// A cluster that the hub reaches with a kubeconfig
    #[value(name = "clusterimports", alias = "clusterimport")]
    ClusterImport,
}

impl Resource {
    /// As it stands in the path.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Cluster => "clusters",
            Self::Agent => "agents",
            Self::Node => "nodes",
            Self::NodePlan => "nodeplans",
            Self::User => "users",
            Self::Group => "groups",
            Self::AccessRequest => "accessrequests",
            Self::Token => "tokens",
            Self::JoinToken => "jointokens",
            Self::ClusterGrant => "clustergrants",
            Self::ServiceGrant => "servicegrants",
            Self::ServiceExport => "serviceexports",
            Self::ServiceImport => "serviceimports",
            Self::ClusterImport => "clusterimports",
        }
    }

    /// One of them, for people.
    pub fn singular(self) -> &'static str {
        match self {
            Self::Cluster => "cluster",
            Self::Agent => "agent",
            Self::Node => "node",
            Self::NodePlan => "nodeplan",
            Self::User => "user",
            Self::Group => "group",
            Self::AccessRequest => "accessrequest",
            Self::Token => "token",
            Self::JoinToken => "jointoken",
            Self::ClusterGrant => "clustergrant",
            Self::ServiceGrant => "servicegrant",
            Self::ServiceExport => "serviceexport",
            Self::ServiceImport => "serviceimport",
            Self::ClusterImport => "clusterimport",
        }
    }

    /// The name that objects carry in `kind`.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Cluster => "Cluster",
            Self::Agent => "Agent",
            Self::Node => "Node",
            Self::NodePlan => "NodePlan",
            Self::User => "User",
            Self::Group => "Group",
            Self::AccessRequest => "AccessRequest",
            Self::Token => "Token",
            Self::JoinToken => "JoinToken",
            Self::ClusterGrant => "ClusterGrant",
            Self::ServiceGrant => "ServiceGrant",
            Self::ServiceExport => "ServiceExport",
            Self::ServiceImport => "ServiceImport",
            Self::ClusterImport => "ClusterImport",
        }
    }

    /// The path of all objects.
    pub fn collection(self) -> String {
        format!("{API}/{}", self.plural())
    }

    /// The path of one object.
    pub fn path(self, name: &str) -> String {
        format!("{API}/{}/{}", self.plural(), segment(name))
    }

    /// An object as `-o name` prints it.
    pub fn full_name(self, name: &str) -> String {
        format!("{}.{GROUP}/{name}", self.singular())
    }

    /// A new object of the kind, ready to be sent. `name: None` lets the hub choose.
    pub fn object(self, name: Option<&str>, spec: serde_json::Value) -> serde_json::Value {
        let metadata = name.map_or_else(|| serde_json::json!({}), |name| serde_json::json!({ "name": name }));
        serde_json::json!({
            "apiVersion": format!("{GROUP}/v1alpha1"), "kind": self.kind(), "metadata": metadata, "spec": spec,
        })
    }
}

/// One segment of a path: everything but RFC 3986's unreserved characters, `:` and `@` is percent-encoded,
/// so that no name can reach into another path.
pub fn segment(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'~' | b':' | b'@' => out.push(byte.into()),
            // A dot is harmless except where it would be a path segment of its own.
            b'.' if name != "." && name != ".." => out.push('.'),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_leaves_its_segment() {
        assert_eq!(segment("edge-1.a@b"), "edge-1.a@b");
        assert_eq!(segment("../users?x#y"), "..%2Fusers%3Fx%23y");
        assert_eq!(segment(".."), "%2E%2E");
    }
}
