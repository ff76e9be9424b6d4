//! Which groups a user is in: their own, those that login providers tell, and the hub's groups that hold any of these.

use crate::kinds::{GroupSpec, UserSpec, UserStatus};
use std::collections::{BTreeSet, HashMap};

/// The hub's groups, indexed by who is in them. A group that nobody named is in none.
#[derive(Debug, Default)]
pub(crate) struct Members {
    groups: HashMap<String, GroupSpec>,
    by_user: HashMap<String, BTreeSet<String>>,
    by_group: HashMap<String, BTreeSet<String>>,
}

impl Members {
    /// Puts in or replaces a group.
    pub fn put(&mut self, name: &str, spec: &GroupSpec) {
        self.remove(name);
        for user in &spec.users {
            self.by_user.entry(user.clone()).or_default().insert(name.to_owned());
        }
        for group in &spec.groups {
            self.by_group.entry(group.clone()).or_default().insert(name.to_owned());
        }
        self.groups.insert(name.to_owned(), spec.clone());
    }

    /// Takes a group out.
    pub fn remove(&mut self, name: &str) {
        let Some(old) = self.groups.remove(name) else { return };
        let leave = |index: &mut HashMap<String, BTreeSet<String>>, key: &String| {
            if let Some(within) = index.get_mut(key) {
                within.remove(name);
                if within.is_empty() {
                    index.remove(key);
                }
            }
        };
        old.users.iter().for_each(|user| leave(&mut self.by_user, user));
        old.groups.iter().for_each(|group| leave(&mut self.by_group, group));
    }

    /// Every group of a user, each once: `own` first and in order, then those that they lie in, however deep.
    pub fn of<'a>(&'a self, user: &str, own: &'a [String]) -> Vec<String> {
        let (mut all, mut seen) = (Vec::<&'a String>::with_capacity(own.len()), BTreeSet::new());
        let mut add = |all: &mut Vec<&'a String>, group: &'a String| {
            if seen.insert(group) {
                all.push(group);
            }
        };
        own.iter().for_each(|group| add(&mut all, group));
        self.by_user.get(user).into_iter().flatten().for_each(|group| add(&mut all, group));
        let mut at = 0;
        while let Some(group) = all.get(at).copied() {
            at += 1;
            self.by_group.get(group).into_iter().flatten().for_each(|outer| add(&mut all, outer));
        }
        all.into_iter().cloned().collect()
    }
}

/// The providers that stand for a user now, and the groups that are the user's own: those that an administrator gave
/// and those that live providers tell, each of these with its provider's name before it, so that no provider can put
/// anybody into a group of the hub or of Kubernetes.
pub(crate) fn own(spec: &UserSpec, status: Option<&UserStatus>, configured: &[String]) -> (Vec<String>, Vec<String>) {
    let mut groups = spec.groups.clone();
    let mut live = vec![crate::login::LOCAL.to_owned()];
    for identity in status.map(|status| status.identities.as_slice()).unwrap_or_default() {
        let linked = spec.identities.iter().any(|i| i.provider == identity.provider && i.subject == identity.subject);
        if linked && identity.gone.is_none() && configured.contains(&identity.provider) {
            live.push(identity.provider.clone());
            groups.extend(identity.groups.iter().map(|group| format!("{}:{group}", identity.provider)));
        }
    }
    (live, groups)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::{IdentityStatus, UserIdentity};

    fn list(names: &[&str]) -> Vec<String> {
        names.iter().map(|s| (*s).to_owned()).collect()
    }

    #[test]
    fn groups_hold_users_providers_groups_and_each_other() {
        let mut members = Members::default();
        members.put("ops", &GroupSpec { users: list(&["ann"]), groups: list(&["corp:unix"]), ..GroupSpec::default() });
        members.put("all", &GroupSpec { users: vec![], groups: list(&["ops", "all"]), ..GroupSpec::default() });
        assert_eq!(members.of("ann", &list(&["dev"])), ["dev", "ops", "all"]);
        assert_eq!(members.of("bob", &list(&["corp:unix"])), ["corp:unix", "ops", "all"]);
        assert!(members.of("cat", &[]).is_empty());
        members.put("ops", &GroupSpec { users: list(&["cat"]), ..GroupSpec::default() });
        assert!(members.of("ann", &[]).is_empty(), "what was replaced is gone");
        members.remove("ops");
        assert!(members.of("cat", &[]).is_empty() && members.by_user.is_empty());
    }

    #[test]
    fn s54_s55_a_provider_speaks_for_its_own_groups_while_it_is_there() {
        let identity =
            |provider: &str, subject: &str| UserIdentity { provider: provider.into(), subject: subject.into() };
        let told = |provider: &str, subject: &str, gone: Option<&str>| IdentityStatus {
            provider: provider.into(),
            subject: subject.into(),
            groups: list(&["moorline:admins"]),
            gone: gone.map(str::to_owned),
            ..IdentityStatus::default()
        };
        let spec = UserSpec { identities: vec![identity("corp", "1"), identity("old", "1")], ..UserSpec::default() };
        let status = |gone| {
            let stranger = told("corp", "another", None);
            UserStatus { identities: vec![told("corp", "1", gone), told("old", "1", None), stranger] }
        };
        let configured = list(&["corp"]);
        let (live, groups) = own(&spec, Some(&status(None)), &configured);
        assert_eq!((live, groups), (list(&["local", "corp"]), list(&["corp:moorline:admins"])));
        let (live, groups) = own(&spec, Some(&status(Some("disabled"))), &configured);
        assert_eq!((live, groups), (list(&["local"]), vec![]), "gone there is gone here");
        let unlinked = UserSpec::default();
        assert!(own(&unlinked, Some(&status(None)), &configured).1.is_empty(), "an administrator took the link away");
    }
}
