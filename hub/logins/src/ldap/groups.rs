//! Which groups a user is in, groups within groups included.

use super::{Ldap, NO_SUCH_OBJECT, SIZE_LIMIT, attribute, lost};
use crate::{LoginError, limits};
use ldap3::{
    Ldap as Handle, Scope, SearchEntry, SearchOptions,
    adapters::{Adapter, EntriesOnly, PagedResults},
    ldap_escape,
};
use std::collections::BTreeSet;

/// LDAP_MATCHING_RULE_IN_CHAIN (MS-ADTS §3.1.1.3.4.4.3): the directory follows nested groups itself.
const IN_CHAIN: &str = "1.2.840.113556.1.4.1941";

impl Ldap {
    /// The names of all groups of a user.
    pub(super) async fn groups_of(
        &self,
        handle: &mut Handle,
        dn: &str,
        username: &str,
    ) -> Result<Vec<String>, LoginError> {
        let Some(base) = &self.group_base else { return Ok(Vec::new()) };
        if self.active_directory {
            let filter = format!("(&{}(member:{IN_CHAIN}:={}))", self.group_filter, ldap_escape(dn));
            let found = self.page_through(handle, base, &filter).await?;
            return Ok(found.into_iter().map(|(_, name)| name).collect());
        }
        let mut names = Vec::new();
        let mut seen = BTreeSet::new();
        let mut ask =
            vec![format!("(member={0})(uniqueMember={0})(memberUid={1})", ldap_escape(dn), ldap_escape(username))];
        for _ in 0..limits::NESTING {
            let mut next = Vec::new();
            for some in ask.chunks(limits::GROUPS_ASKED) {
                let filter = format!("(&{}(|{}))", self.group_filter, some.concat());
                for (group, name) in self.page_through(handle, base, &filter).await? {
                    // Groups may lie within each other in a circle: each is asked about once.
                    if seen.insert(group.to_lowercase()) {
                        next.push(format!("(member={0})(uniqueMember={0})", ldap_escape(group.as_str())));
                        names.push(name);
                    }
                }
            }
            if next.is_empty() || names.len() >= limits::GROUPS {
                break;
            }
            ask = next;
        }
        Ok(names)
    }

    /// DN and name of every group that fits, page by page (RFC 2696).
    async fn page_through(
        &self,
        handle: &mut Handle,
        base: &str,
        filter: &str,
    ) -> Result<Vec<(String, String)>, LoginError> {
        let adapters: Vec<Box<dyn Adapter<'_, &str, Vec<&str>>>> =
            vec![Box::new(EntriesOnly::new()), Box::new(PagedResults::new(limits::PAGE))];
        let naming = self.group_attribute.as_str();
        handle.with_search_options(SearchOptions::new()).with_timeout(limits::LOGIN);
        let mut found = Vec::new();
        let mut stream =
            handle.streaming_search_with(adapters, base, Scope::Subtree, filter, vec![naming]).await.map_err(lost)?;
        while let Some(entry) = stream.next().await.map_err(lost)? {
            let entry = SearchEntry::construct(entry);
            if let Some(name) = attribute(&entry, naming).and_then(|values| values.first().cloned()) {
                found.push((entry.dn, name));
            }
            if found.len() >= limits::GROUPS {
                tracing::warn!(provider = self.name, "a user has more groups than are taken; the rest is left out");
                return Ok(found);
            }
        }
        let result = stream.finish().await;
        match result.rc {
            0 | NO_SUCH_OBJECT => Ok(found),
            SIZE_LIMIT => {
                tracing::warn!(
                    provider = self.name,
                    "the directory told some of a user's groups only (its size limit)"
                );
                Ok(found)
            }
            _ => Err(LoginError::unavailable(format!("the search for groups failed: {result}"))),
        }
    }
}
