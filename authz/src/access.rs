//! Which caller reaches which cluster and which object of the hub's API.

use crate::identity::{ADMINS, APPROVERS, AUDITORS, ActAs, Identity, MASTERS};
use std::collections::HashMap;

mod recording;
mod services;
mod shares;

pub use recording::Recording;
pub use services::{ServiceGrant, authorize_again, authorize_inside, refuse_act_as};
pub use shares::{AGENT_PREFIX, Export, Import, Shares, authorize_import, importer};

/// What one `ClusterGrant` says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Grant {
    /// Its own name.
    pub name: String,
    /// User names.
    pub users: Vec<String>,
    /// Group names.
    pub groups: Vec<String>,
    /// Cluster names; `*` is every cluster.
    pub clusters: Vec<String>,
    /// Groups that its holders have in these clusters, besides their own.
    pub as_groups: Vec<String>,
    /// What is kept of their sessions in terminals; `None`: as the cluster says, or the hub.
    pub record: Option<Recording>,
}

/// Grants by who holds them, then by cluster: with a million of them a decision looks at those that count alone.
type Index = HashMap<String, HashMap<String, Vec<usize>>>;

/// Every cluster, in a grant.
const EVERY: &str = "*";

/// All grants, indexed by user and by group. Build it anew when a grant changes.
#[derive(Debug, Clone, Default)]
pub struct Grants {
    all: Vec<Grant>,
    by_user: Index,
    by_group: Index,
    services: Vec<ServiceGrant>,
    recordings: recording::Recordings,
}

impl Grants {
    /// Builds the index.
    pub fn new(grants: impl IntoIterator<Item = Grant>) -> Self {
        let mut index = Self::default();
        for (at, grant) in grants.into_iter().enumerate() {
            let put = |index: &mut Index, holders: &[String]| {
                for holder in holders {
                    let held = index.entry(holder.clone()).or_default();
                    grant.clusters.iter().for_each(|cluster| held.entry(cluster.clone()).or_default().push(at));
                }
            };
            put(&mut index.by_user, &grant.users);
            put(&mut index.by_group, &grant.groups);
            index.all.push(grant);
        }
        index
    }

    /// The grants of `identity` that name `cluster`, or every cluster. One may come more than once.
    fn opening<'a>(&'a self, identity: &'a Identity, cluster: &'a str) -> impl Iterator<Item = &'a Grant> {
        let groups = identity.groups.iter().filter_map(|group| self.by_group.get(group));
        let held = self.by_user.get(&identity.user).into_iter().chain(groups);
        held.flat_map(move |held| [held.get(cluster), held.get(EVERY)])
            .flatten()
            .flatten()
            .filter_map(|&at| self.all.get(at))
    }
}

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
    fn with_granted_groups(&self, cluster: &str) -> Identity {
        let mut principal = self.identity.clone();
        for grant in self.grants.opening(self.identity, cluster) {
            for group in &grant.as_groups {
                if !principal.in_group(group) {
                    principal.groups.push(group.clone());
                }
            }
        }
        principal
    }

    fn token_covers(&self, cluster: &str) -> bool {
        self.token_clusters.is_none_or(|only| only.iter().any(|c| c == cluster))
    }
}

/// A decision that this caller reaches this cluster's API server, or one place inside it. Only [`authorize`],
/// [`authorize_inside`] and [`authorize_import`] make one, and no stream is dialled without.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permit {
    cluster: String,
    principal: Identity,
    act_as: Option<ActAs>,
    /// `None`: the API server.
    reach: Option<services::Reach>,
    record: Recording,
}

impl Permit {
    /// The cluster.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }
    /// The caller as the cluster shall know them: with the groups that grants add.
    pub fn principal(&self) -> &Identity {
        &self.principal
    }
    /// Whom the caller asks to act as. Not yet allowed: the edge asks the cluster.
    pub fn act_as(&self) -> Option<&ActAs> {
        self.act_as.as_ref()
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
    let principal = Identity::new(format!("{PLUGIN_PREFIX}{plugin}"), ["moorline:plugins"]);
    Permit { cluster: cluster.to_owned(), principal, act_as: None, reach: None, record: Recording::Never }
}

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
    Ok(Permit { cluster: cluster.to_owned(), principal, act_as, reach: None, record })
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

/// A decision in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// Whether the hub opens a stream to the cluster.
    pub allowed: bool,
    /// Why, or why not.
    pub reason: String,
    /// The rules that open the cluster: `ClusterGrant NAME, by user U` or `…, by group G`, or that they administer the
    /// hub.
    pub rules: Vec<String>,
    /// The groups that the cluster is told of.
    pub groups: Vec<String>,
    /// What is kept of sessions in terminals.
    pub record: Recording,
}

/// What [`authorize`] decides, and by which rules. It asks that same function, so that the two never differ.
pub fn explain(facts: &Facts<'_>, verbs: Option<&[String]>, cluster: &str, verb: &str) -> Explanation {
    let no = |reason: String| Explanation {
        allowed: false,
        reason,
        rules: Vec::new(),
        groups: Vec::new(),
        record: Recording::Never,
    };
    if let Err(denial) = within_verbs(verbs, verb) {
        return no(denial.to_string());
    }
    let permit = match authorize(facts, cluster, None) {
        Ok(permit) => permit,
        Err(denial) => return no(denial.to_string()),
    };
    let mut rules: Vec<String> = Vec::new();
    if facts.identity.is_admin() {
        rules.push(format!("group {ADMINS}: administrators of the hub reach every cluster"));
    }
    for grant in facts.grants.opening(facts.identity, cluster) {
        let by_group = || facts.identity.groups.iter().find(|group| grant.groups.contains(group));
        let rule = match (grant.users.contains(&facts.identity.user), by_group()) {
            (true, _) => format!("ClusterGrant {}, by user {}", grant.name, facts.identity.user),
            (false, Some(group)) => format!("ClusterGrant {}, by group {group}", grant.name),
            (false, None) => continue,
        };
        if !rules.contains(&rule) {
            rules.push(rule);
        }
    }
    let reason = "the hub opens this cluster; what is permitted there is for its own RBAC and edge policy".to_owned();
    Explanation { allowed: true, reason, rules, record: permit.record, groups: permit.principal.groups }
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

/// A request to the hub's own API.
#[derive(Debug, Clone, Copy, Default)]
pub struct HubRequest<'a> {
    /// Kubernetes verb: get, list, watch, create, update, patch, delete, deletecollection.
    pub verb: &'a str,
    /// Plural: `clusters`, `tokens`, …
    pub resource: &'a str,
    /// `status`, `password`, …; empty: the object itself.
    pub subresource: &'a str,
    /// Name of the object; empty for list, watch of many and create.
    pub name: &'a str,
    /// `spec.user` of the token that is read, made or deleted, where it is known.
    pub owner: Option<&'a str>,
}

/// Which objects of a list or watch a caller sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// All.
    All,
    /// Clusters that a grant names: ask [`Facts::reaches`] with each name.
    GrantedClusters,
    /// The `User` with the caller's name.
    OwnUser,
    /// Tokens and requests for access whose `spec.user` is the caller's name.
    OwnTokens,
}

impl Scope {
    /// Whether an object is within. `owner`: `spec.user` of a token.
    pub fn shows(self, facts: &Facts<'_>, name: &str, owner: Option<&str>) -> bool {
        match self {
            Self::All => true,
            Self::GrantedClusters => facts.reaches(name),
            Self::OwnUser => name == facts.identity.user,
            Self::OwnTokens => owner == Some(facts.identity.user.as_str()),
        }
    }
}

/// May this caller do this in the hub's API, and which objects do they see?
///
/// A token that is restricted to clusters is for those clusters: with it nobody administers the hub, and nobody makes
/// or deletes tokens, for such a token could make one that is not restricted.
///
/// # Errors
/// The reason.
pub fn hub_api(facts: &Facts<'_>, request: &HubRequest<'_>) -> Result<Scope, Denial> {
    let HubRequest { verb, resource, subresource, name, owner } = *request;
    let user = facts.identity.user.as_str();
    let restricted = facts.token_clusters.is_some();
    if facts.identity.is_admin() && !restricted {
        return Ok(Scope::All);
    }
    let one = verb == "get" || (verb == "watch" && !name.is_empty());
    let many = matches!(verb, "list" | "watch") && name.is_empty();
    let scope = match (resource, subresource) {
        ("clusters", "") if many || (one && facts.reaches(name)) => Some(Scope::GrantedClusters),
        ("clusters", "link") if one && facts.reaches(name) => Some(Scope::GrantedClusters),
        ("users", "") if many || (one && name == user) => Some(Scope::OwnUser),
        ("accessrequests", "") if !restricted && facts.identity.in_group(APPROVERS) && (many || one) => {
            Some(Scope::All)
        }
        ("accessrequests", "") if !restricted => {
            let own = owner == Some(user);
            (many || ((one || verb == "create" || verb == "delete") && own)).then_some(Scope::OwnTokens)
        }
        ("tokens", "") if !restricted => {
            let own = owner == Some(user);
            let write = matches!(verb, "create" | "delete") && own;
            (many || write || (one && own)).then_some(Scope::OwnTokens)
        }
        _ => None,
    };
    scope.ok_or_else(|| {
        let resource = if subresource.is_empty() { resource.to_owned() } else { format!("{resource}/{subresource}") };
        Denial::HubApi { user: user.to_owned(), verb: verb.to_owned(), resource }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grants() -> Grants {
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
    fn an_explanation_names_the_rule_and_never_differs_from_the_decision() {
        let grants = grants();
        let tell = |who: &Identity, only: Option<&[String]>, verbs: Option<&[String]>, cluster| {
            let facts = Facts { identity: who, token_clusters: only, grants: &grants };
            let told = explain(&facts, verbs, cluster, "get");
            let decided = authorize(&facts, cluster, None).is_ok() && within_verbs(verbs, "get").is_ok();
            assert_eq!(told.allowed, decided, "{told:?}");
            assert_eq!(told.allowed, !told.rules.is_empty(), "{told:?}");
            told
        };
        let ann = Identity::new("ann", ["all"]);
        let told = tell(&ann, None, None, "a");
        assert_eq!(told.rules, ["ClusterGrant one, by user ann", "ClusterGrant two, by group all"]);
        assert_eq!(told.groups, ["all", "ops", "viewers"]);
        assert_eq!(tell(&ann, None, None, "b").rules, ["ClusterGrant two, by group all"]);
        let (only, list) = (["b".to_owned()], ["list".to_owned()]);
        assert!(tell(&ann, Some(&only), None, "a").reason.contains("not valid for cluster"));
        assert!(!tell(&ann, None, Some(&list), "a").allowed);
        assert!(tell(&Identity::new("eve", [""; 0]), None, None, "a").reason.contains("no access"));
        assert!(tell(&Identity::new("root", [ADMINS]), None, None, "x").rules[0].contains(ADMINS));
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

    proptest::proptest! {
        /// The index decides as a look at every grant does.
        #[test]
        fn s53_the_index_finds_what_a_look_at_every_grant_finds(
            all in proptest::collection::vec(("[ab]{0,2}", "[gh]{0,2}", "[xy*]{1,2}"), 0..12),
            user in "[ab]{1,2}", group in "[gh]{1,2}", cluster in "[xy]{1,2}",
        ) {
            let one = |text: &str| if text.is_empty() { vec![] } else { vec![text.to_owned()] };
            let grant = |(n, (user, group, cluster)): (usize, &(String, String, String))| Grant {
                name: n.to_string(),
                users: one(user),
                groups: one(group),
                clusters: one(cluster),
                as_groups: vec![format!("as-{n}")],
                record: None,
            };
            let list: Vec<Grant> = all.iter().enumerate().map(grant).collect();
            let who = Identity::new(user, [group]);
            let fits = |grant: &&Grant| {
                let held = grant.users.contains(&who.user) || grant.groups.iter().any(|group| who.in_group(group));
                held && grant.clusters.iter().any(|name| *name == cluster || name == "*")
            };
            let mut wanted: Vec<String> = list.iter().filter(fits).flat_map(|grant| grant.as_groups.clone()).collect();
            let index = Grants::new(list.clone());
            let facts = Facts { identity: &who, token_clusters: None, grants: &index };
            let found = authorize(&facts, &cluster, None).map(|permit| permit.principal().groups[1..].to_vec());
            proptest::prop_assert_eq!(found.is_ok(), !wanted.is_empty());
            let mut found = found.unwrap_or_default();
            wanted.sort();
            found.sort();
            proptest::prop_assert_eq!(found, wanted);
        }
    }

    #[test]
    fn s53_a_grant_of_a_group_is_not_one_of_a_user_with_that_name() {
        let (grants, all) = (grants(), Identity::new("all", ["ann"]));
        let facts = Facts { identity: &all, token_clusters: None, grants: &grants };
        assert!(authorize(&facts, "a", None).is_err());
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

    #[test]
    fn users_see_what_is_theirs() {
        let (grants, ann) = (grants(), Identity::new("ann", ["dev"]));
        let facts = Facts { identity: &ann, token_clusters: None, grants: &grants };
        let ask = |verb, resource, subresource, name, owner| {
            hub_api(&facts, &HubRequest { verb, resource, subresource, name, owner })
        };
        assert_eq!(ask("list", "clusters", "", "", None), Ok(Scope::GrantedClusters));
        assert!(ask("get", "clusters", "", "a", None).is_ok());
        assert!(ask("get", "clusters", "", "b", None).is_err());
        assert!(ask("delete", "clusters", "", "a", None).is_err());
        assert!(ask("update", "clusters", "status", "a", None).is_err());
        assert!(ask("get", "users", "", "ann", None).is_ok());
        assert!(ask("get", "users", "", "bob", None).is_err());
        assert!(ask("update", "users", "password", "ann", None).is_err());
        assert!(ask("create", "tokens", "", "", Some("ann")).is_ok());
        assert!(ask("create", "tokens", "", "", Some("bob")).is_err());
        assert!(ask("delete", "tokens", "", "t", None).is_err());
        assert!(ask("deletecollection", "tokens", "", "", Some("ann")).is_err());
        assert!(ask("list", "jointokens", "", "", None).is_err());
        assert!(!Scope::OwnTokens.shows(&facts, "t", Some("bob")));
        assert!(!Scope::OwnTokens.shows(&facts, "t", None));
    }
}
