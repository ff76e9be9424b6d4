//! Which caller reaches which cluster and which object of the hub's API.

use crate::identity::{APPROVERS, AUDITORS, ActAs, Identity, MASTERS};
use grants::EVERY;
use std::sync::Arc;

mod denial;
mod explain;
mod grants;
mod hub;
mod recording;
mod services;
mod shares;

pub use denial::Denial;
pub use explain::{Explanation, explain};
pub use grants::{Grant, Grants};
pub use hub::{HubRequest, Scope, hub_api};
pub use recording::Recording;
pub use services::{ServiceGrant, authorize_again, authorize_inside, refuse_act_as};
pub use shares::{AGENT_PREFIX, Export, Import, Shares, Transport, authorize_import, importer};

/// What a decision is taken from.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// Who asks.
    pub identity: &'a Identity,
    /// The clusters that the presented token is restricted to; `None`: no restriction.
    pub token_clusters: Option<&'a [String]>,
    /// All grants.
    pub grants: &'a Grants,
}

impl Facts<'_> {
    /// Whether the caller may see this cluster.
    pub fn reaches(&self, cluster: &str) -> bool {
        self.token_covers(cluster)
            && (self.identity.is_admin() || self.grants.opening(self.identity, cluster).next().is_some())
    }

    /// Whether the caller may know which clusters exist: only to such a caller is an unknown cluster "not found".
    pub fn reaches_all(&self) -> bool {
        let by_grant = || self.grants.opening(self.identity, EVERY).next().is_some();
        self.token_clusters.is_none() && (self.identity.is_admin() || by_grant())
    }

    /// The caller with the groups that grants add in this cluster.
    fn with_granted_groups(&self, cluster: &str) -> Arc<Identity> {
        let mut principal = self.identity.clone();
        for grant in self.grants.opening(self.identity, cluster) {
            for group in &grant.as_groups {
                if !principal.in_group(group) {
                    principal.groups.push(group.clone());
                }
            }
        }
        Arc::new(principal)
    }

    fn token_covers(&self, cluster: &str) -> bool {
        self.token_clusters.is_none_or(|only| only.iter().any(|c| c == cluster))
    }
}

/// A decision that this caller reaches this cluster's API server, or one place inside it. Only [`authorize`],
/// [`authorize_inside`] and [`authorize_import`] make one, and no stream is dialled without.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permit {
    // Shared, and with what is rare elsewhere: a permit is copied for each call that it is given again for.
    cluster: Arc<str>,
    principal: Arc<Identity>,
    act_as: Option<Box<ActAs>>,
    /// `None`: the API server.
    reach: Option<Box<services::Reach>>,
    record: Recording,
}

impl Permit {
    /// The cluster.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }
    /// The caller as the cluster shall know them: with the groups that grants add.
    pub fn principal(&self) -> &Arc<Identity> {
        &self.principal
    }
    /// Whom the caller asks to act as. Not yet allowed: the edge asks the cluster.
    pub fn act_as(&self) -> Option<&ActAs> {
        self.act_as.as_deref()
    }
    /// What has to be kept of a session in a terminal that is opened with it.
    pub fn record(&self) -> Recording {
        self.record
    }
}

/// What begins the names of the hub's own users towards clusters. Nobody who logs in has such a name.
pub const PLUGIN_PREFIX: &str = "moorline:plugin:";

/// Whether a name is one that nobody who logs in has: a plugin's or an agent's.
fn is_own(user: &str) -> bool {
    user.starts_with(PLUGIN_PREFIX) || user.starts_with(AGENT_PREFIX)
}

/// The permit of one of the hub's plugins: it reaches every cluster as the user `moorline:plugin:<name>`, who may do
/// there what the cluster lets it. An edge policy that does not name the plugin lets it do nothing.
pub fn permit_plugin(plugin: &str, cluster: &str) -> Permit {
    let principal = Arc::new(Identity::new(format!("{PLUGIN_PREFIX}{plugin}"), ["moorline:plugins"]));
    Permit { cluster: cluster.into(), principal, act_as: None, reach: None, record: Recording::Never }
}

/// May this caller reach this cluster? Whether they may do there what they ask is the cluster's own decision.
///
/// # Errors
/// The reason. For an unknown cluster the caller gets the same answer as for one without a grant.
pub fn authorize(facts: &Facts<'_>, cluster: &str, act_as: Option<ActAs>) -> Result<Permit, Denial> {
    if !facts.token_covers(cluster) {
        return Err(Denial::TokenScope { cluster: cluster.to_owned() });
    }
    if !facts.reaches(cluster) {
        return Err(Denial::NoGrant { user: facts.identity.user.clone(), cluster: cluster.to_owned() });
    }
    if act_as.as_ref().is_some_and(|ActAs(who)| who.in_group(MASTERS)) {
        return Err(Denial::ForbiddenGroup { group: MASTERS.to_owned() });
    }
    let names = [Some(&facts.identity.user), act_as.as_ref().map(|ActAs(who)| &who.user)];
    if let Some(user) = names.into_iter().flatten().find(|user| is_own(user)) {
        return Err(Denial::OwnUser { user: user.clone() });
    }
    let (principal, record) = (facts.with_granted_groups(cluster), recording::decide(facts, cluster));
    Ok(Permit { cluster: cluster.into(), principal, act_as: act_as.map(Box::new), reach: None, record })
}

/// Whether a token that is bound to `verbs` is good for a request with this verb; `None`: it is bound to none.
///
/// # Errors
/// It is not.
pub fn within_verbs(verbs: Option<&[String]>, verb: &str) -> Result<(), Denial> {
    match verbs {
        Some(only) if !only.iter().any(|v| v == verb) => Err(Denial::TokenVerb { verb: verb.to_owned() }),
        _ => Ok(()),
    }
}

/// May this caller decide a request for access of `requester`? Another person, who is meant to, with a token that is
/// not restricted.
///
/// # Errors
/// The reason.
pub fn decide_access(facts: &Facts<'_>, verbs: Option<&[String]>, requester: &str) -> Result<(), Denial> {
    let who = facts.identity;
    let meant = (who.is_admin() || who.in_group(APPROVERS)) && facts.token_clusters.is_none() && verbs.is_none();
    match (meant, who.user == requester) {
        (_, true) => Err(Denial::OwnRequest),
        (false, _) => Err(Denial::NotApprover { user: who.user.clone() }),
        (true, false) => Ok(()),
    }
}

/// May this caller read the audit log, and what was recorded of sessions in terminals? With a token that is not
/// restricted.
///
/// # Errors
/// The reason.
pub fn read_audit(facts: &Facts<'_>, verbs: Option<&[String]>) -> Result<(), Denial> {
    let who = facts.identity;
    let meant = (who.is_admin() || who.in_group(AUDITORS)) && facts.token_clusters.is_none() && verbs.is_none();
    if meant { Ok(()) } else { Err(Denial::NotAuditor { user: who.user.clone() }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::ADMINS;

    /// `one`: user ann on cluster a, as ops; `two`: group all everywhere, as viewers.
    pub(super) fn grants() -> Grants {
        let list = |names: &[&str]| names.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        Grants::new([
            Grant {
                name: "one".to_owned(),
                users: list(&["ann"]),
                groups: vec![],
                clusters: list(&["a"]),
                as_groups: list(&["ops"]),
                record: None,
            },
            Grant {
                name: "two".to_owned(),
                users: vec![],
                groups: list(&["all"]),
                clusters: list(&["*"]),
                as_groups: list(&["viewers"]),
                record: None,
            },
        ])
    }

    #[test]
    fn a_grant_opens_its_clusters_and_adds_its_groups() {
        let (grants, ann) = (grants(), Identity::new("ann", ["dev"]));
        let facts = Facts { identity: &ann, token_clusters: None, grants: &grants };
        let permit = authorize(&facts, "a", None).unwrap();
        assert_eq!(permit.principal().groups, ["dev", "ops"]);
        assert!(matches!(authorize(&facts, "b", None), Err(Denial::NoGrant { .. })));
        assert!(!facts.reaches_all());
    }

    #[test]
    fn s55_access_is_granted_by_another_person_who_is_meant_to() {
        let grants = grants();
        let decide = |who: &Identity, only: Option<&[String]>, verbs: Option<&[String]>| {
            decide_access(&Facts { identity: who, token_clusters: only, grants: &grants }, verbs, "ann")
        };
        let some = ["a".to_owned()];
        for group in [ADMINS, APPROVERS] {
            assert_eq!(decide(&Identity::new("bob", [group]), None, None), Ok(()));
            assert_eq!(decide(&Identity::new("ann", [group]), None, None), Err(Denial::OwnRequest));
            assert!(decide(&Identity::new("bob", [group]), Some(&some), None).is_err());
            assert!(decide(&Identity::new("bob", [group]), None, Some(&some)).is_err());
        }
        assert!(matches!(decide(&Identity::new("bob", ["dev"]), None, None), Err(Denial::NotApprover { .. })));
        let ann = Identity::new("ann", ["dev"]);
        let facts = Facts { identity: &ann, token_clusters: None, grants: &grants };
        let ask = |verb, subresource, owner| {
            hub_api(&facts, &HubRequest { verb, resource: "accessrequests", subresource, name: "", owner }).is_ok()
        };
        assert!(ask("create", "", Some("ann")) && !ask("create", "", Some("bob")));
        assert!(!ask("update", "", Some("ann")) && !ask("update", "status", Some("ann")));
    }

    #[test]
    fn s10_a_restricted_token_opens_nothing_else() {
        let (grants, admin) = (grants(), Identity::new("admin", ["moorline:admins"]));
        let only = ["a".to_owned()];
        let facts = Facts { identity: &admin, token_clusters: Some(&only), grants: &grants };
        assert!(authorize(&facts, "a", None).is_ok());
        assert!(matches!(authorize(&facts, "b", None), Err(Denial::TokenScope { .. })));
        assert!(!facts.reaches_all());
        let make = HubRequest { verb: "create", resource: "tokens", owner: Some("admin"), ..HubRequest::default() };
        assert!(hub_api(&facts, &make).is_err());
    }

    #[test]
    fn s03_nobody_acts_as_masters() {
        let (grants, admin) = (grants(), Identity::new("admin", ["moorline:admins"]));
        let facts = Facts { identity: &admin, token_clusters: None, grants: &grants };
        let asked = Some(ActAs(Identity::new("bob", ["x", "system:masters"])));
        assert!(matches!(authorize(&facts, "a", asked), Err(Denial::ForbiddenGroup { .. })));
    }

    #[test]
    fn nobody_passes_for_a_plugin() {
        let grants = grants();
        let (false_one, admin) =
            (Identity::new("moorline:plugin:rbac", ["all"]), Identity::new("x", ["moorline:admins"]));
        let as_plugin = Some(ActAs(Identity::new("moorline:plugin:rbac", ["x"])));
        for (who, act_as) in [(false_one, None), (admin, as_plugin)] {
            let facts = Facts { identity: &who, token_clusters: None, grants: &grants };
            assert!(matches!(authorize(&facts, "a", act_as), Err(Denial::OwnUser { .. })));
        }
        assert_eq!(permit_plugin("rbac", "a").principal().user, "moorline:plugin:rbac");
    }
}
