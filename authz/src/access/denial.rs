//! Why a request is refused.

/// A refusal. The text is for the caller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denial {
    /// No grant of the caller names the cluster, or there is no such cluster.
    #[error("user {user:?} has no access to cluster {cluster:?}")]
    NoGrant {
        /// Who asked.
        user: String,
        /// For what.
        cluster: String,
    },
    /// No grant of the caller names the place inside the cluster, or there is no such cluster.
    #[error(
        "user {user:?} has no access to {to} in cluster {cluster:?}; a ServiceGrant gives it: moorline grant service"
    )]
    NoServiceGrant {
        /// Who asked.
        user: String,
        /// In which cluster.
        cluster: String,
        /// For what.
        to: String,
    },
    /// The cluster has no such `ServiceImport`.
    #[error("cluster {cluster:?} has no import {import:?}")]
    NoImport {
        /// Which agent asked.
        cluster: String,
        /// For what.
        import: String,
    },
    /// Nothing exports the service of an import to this cluster.
    #[error(
        "nothing exports port {port} of import {import:?} to cluster {cluster:?}: a ServiceExport names it in spec.importers"
    )]
    NotExported {
        /// Which agent asked.
        cluster: String,
        /// By which import.
        import: String,
        /// For which port.
        port: u16,
    },
    /// A wish to act as somebody else towards a service.
    #[error("nobody acts as another user towards a service: it is reached as oneself")]
    ActAsInside,
    /// The token is for other clusters.
    #[error("this token is not valid for cluster {cluster:?}")]
    TokenScope {
        /// For what.
        cluster: String,
    },
    /// The token is for other verbs.
    #[error("this token is not valid for the verb {verb:?}")]
    TokenVerb {
        /// Which was asked.
        verb: String,
    },
    /// Nobody acts as this group through the hub.
    #[error("nobody may act as group {group:?} through this hub")]
    ForbiddenGroup {
        /// The group.
        group: String,
    },
    /// Nobody passes for one of the hub's plugins.
    #[error("user {user:?} is one of the hub's own")]
    OwnUser {
        /// Who it would be.
        user: String,
    },
    /// A request for access is decided by another person.
    #[error("nobody decides their own request for access")]
    OwnRequest,
    /// A request for access is decided by those who may.
    #[error("user {user:?} does not decide requests for access: administrators and members of moorline:approvers do")]
    NotApprover {
        /// Who tried.
        user: String,
    },
    /// Audit log and recordings are read by those who may.
    #[error("user {user:?} reads no audit log and no recordings: administrators and members of moorline:auditors do")]
    NotAuditor {
        /// Who tried.
        user: String,
    },
    /// The hub's own API.
    #[error("user {user:?} cannot {verb} resource {resource:?} in API group \"moorline.dev\"")]
    HubApi {
        /// Who asked.
        user: String,
        /// To do what.
        verb: String,
        /// With what.
        resource: String,
    },
}
