//! Who may do what with the objects of the hub's own API.

use super::{Denial, Facts};
use crate::identity::APPROVERS;

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
    use crate::{access::tests::grants, identity::Identity};

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
