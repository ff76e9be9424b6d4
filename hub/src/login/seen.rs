//! Principals of providers that cannot be searched: whoever came in through them.

use crate::{
    kinds::UserSpec,
    records::{RecordError, Records},
};
use moorline_logins::Principal;
use std::collections::BTreeSet;

/// Users whom `provider` stands for here, and the groups that they have there, with `text` in their names: `most` of each.
pub(super) fn search(
    records: &Records,
    provider: &str,
    text: &str,
    most: usize,
) -> Result<Vec<Principal>, RecordError> {
    let text = text.to_lowercase();
    let fits = |name: &str| name.to_lowercase().contains(&text);
    let (mut found, mut groups) = (Vec::new(), BTreeSet::new());
    for user in records.list::<UserSpec>()? {
        let shown = user.spec.display_name;
        let identities = user.status.into_iter().flat_map(|status| status.identities);
        for one in identities.filter(|one| one.provider == provider && one.gone.is_none()) {
            groups.extend(one.groups.into_iter().filter(|group| fits(group)));
            if found.len() < most && (fits(&one.username) || shown.as_deref().is_some_and(fits)) {
                let (display_name, subject) = (shown.clone(), Some(one.subject));
                found.push(Principal { kind: "user", name: one.username, display_name, subject });
            }
        }
    }
    let group = |name| Principal { kind: "group", name, display_name: None, subject: None };
    found.extend(groups.into_iter().take(most).map(group));
    Ok(found)
}
