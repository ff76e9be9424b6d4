//! A caller, in the terms of Kubernetes' `user.Info`.

use std::collections::BTreeMap;

/// The hub's own administrators: everything in the hub's API, and every cluster (where the cluster's own rules decide).
pub const ADMINS: &str = "moorline:admins";
/// Who decides requests for access besides administrators.
pub const APPROVERS: &str = "moorline:approvers";
/// Who reads the audit log and recordings besides administrators.
pub const AUDITORS: &str = "moorline:auditors";
/// The group that Kubernetes binds to everything. No caller of the hub is ever in it.
pub const MASTERS: &str = "system:masters";

/// Who somebody is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Identity {
    /// User name. Never empty once it stands for a caller.
    pub user: String,
    /// Stable id; empty where there is none.
    pub uid: String,
    /// Groups, in the order in which they are sent on.
    pub groups: Vec<String>,
    /// Further attributes, key to values. Keys are lower-case.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl Identity {
    /// A user with groups and nothing else.
    pub fn new(user: impl Into<String>, groups: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { user: user.into(), groups: groups.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    /// Whether the identity is in `group`.
    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }

    /// Whether the identity administers the hub.
    pub fn is_admin(&self) -> bool {
        self.in_group(ADMINS)
    }
}

/// The identity that a caller asks to act as (`kubectl --as`). A type of its own, so that what was asked for is
/// never taken for who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActAs(pub Identity);
