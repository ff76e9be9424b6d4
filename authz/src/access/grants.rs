//! Which clusters who is granted, indexed for a million grants.

use super::{Recording, ServiceGrant, recording};
use crate::identity::Identity;
use std::collections::HashMap;

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
pub(super) const EVERY: &str = "*";

/// All grants, indexed by user and by group. Build it anew when a grant changes.
#[derive(Debug, Clone, Default)]
pub struct Grants {
    all: Vec<Grant>,
    by_user: Index,
    by_group: Index,
    pub(super) services: Vec<ServiceGrant>,
    pub(super) recordings: recording::Recordings,
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
    pub(super) fn opening<'a>(&'a self, identity: &'a Identity, cluster: &'a str) -> impl Iterator<Item = &'a Grant> {
        let groups = identity.groups.iter().filter_map(|group| self.by_group.get(group));
        let held = self.by_user.get(&identity.user).into_iter().chain(groups);
        held.flat_map(move |held| [held.get(cluster), held.get(EVERY)])
            .flatten()
            .flatten()
            .filter_map(|&at| self.all.get(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::{Facts, authorize, tests::grants};

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
}
