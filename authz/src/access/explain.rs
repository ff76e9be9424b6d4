//! A decision in words.

use super::{Facts, Recording, authorize, within_verbs};
use crate::identity::ADMINS;

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
    Explanation { allowed: true, reason, rules, record: permit.record, groups: permit.principal.groups.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{access::tests::grants, identity::Identity};

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
}
