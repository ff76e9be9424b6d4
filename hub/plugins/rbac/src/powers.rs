//! What a global role can hand out of the hub's kinds. Each kind is named here; one that is not is for administrators
//! alone, so that a kind that nobody has thought about gives nobody anything.

/// How far a global role reaches into a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// There are credentials in them: who reads them has what is in them.
    Hidden,
    /// They may be seen. Who writes them could take any right, at the hub or in a cluster, or says what only the hub knows.
    Seen,
    /// They may be seen, and these verbs may be given besides.
    Written(&'static [&'static str]),
}

/// The kinds of the hub and of the plugins that it is built with, by plural.
pub const KINDS: &[(&str, Reach)] = &[
    // Their labels decide which roles and secrets reach a cluster, and `record` what is kept of its sessions: who makes one
    // decides that for this one, and nobody changes it for one that is there.
    ("clusters", Reach::Written(&["create", "delete"])),
    ("jointokens", Reach::Written(&["create", "delete"])),
    // The key of an agent stands in it: it is taken away, never given.
    ("agents", Reach::Written(&["delete"])),
    ("clusterhealths", Reach::Seen),
    ("events", Reach::Seen),
    ("fleethealths", Reach::Seen),
    ("nodes", Reach::Seen),
    // Who is who.
    ("groups", Reach::Seen),
    ("tokens", Reach::Seen),
    ("users", Reach::Seen),
    // Who may do what.
    ("accessrequests", Reach::Seen),
    ("clustergrants", Reach::Seen),
    ("globalrolebindings", Reach::Seen),
    ("globalroles", Reach::Seen),
    ("roletemplates", Reach::Seen),
    ("servicegrants", Reach::Seen),
    ("templatebindings", Reach::Seen),
    // A project gives its members any template in any namespace; its namespaces go with all that is in them. Members have
    // what `manageNamespaces` gives.
    ("projectnamespaces", Reach::Seen),
    ("projects", Reach::Seen),
    // What they say opens a way into a cluster.
    ("serviceexports", Reach::Seen),
    ("serviceimports", Reach::Seen),
    // A kubeconfig; Secrets, which are laid into any namespace; files that are written on machines, and what commands printed.
    ("clusterimports", Reach::Hidden),
    ("nodeplans", Reach::Hidden),
    ("sharedsecrets", Reach::Hidden),
];

const READS: [&str; 3] = ["get", "list", "watch"];

/// Whether a global role may give a verb on a plural, or on `plural/subresource`.
///
/// # Errors
/// Why only administrators have it.
pub fn may_give(resource: &str, verb: &str) -> Result<(), &'static str> {
    let (plural, sub) = resource.split_once('/').map_or((resource, None), |(plural, sub)| (plural, Some(sub)));
    let Some((_, reach)) = KINDS.iter().find(|(known, _)| *known == plural) else {
        return Err("there is no such kind, or nobody has said what it gives; only administrators have it");
    };
    match reach {
        Reach::Hidden => Err("who has these has the credentials in them, so only administrators do"),
        _ if READS.contains(&verb) => Ok(()),
        Reach::Written(verbs) if sub.is_none() && verbs.contains(&verb) => Ok(()),
        _ => Err("who writes these could take any right, so only administrators do"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITES: [&str; 5] = ["create", "update", "patch", "delete", "deletecollection"];

    #[test]
    fn s55_each_kind_gives_what_it_is_classified_to_give_and_no_more() {
        for (plural, reach) in KINDS {
            for verb in WRITES {
                let given = matches!(reach, Reach::Written(verbs) if verbs.contains(&verb));
                assert_eq!(may_give(plural, verb).is_ok(), given, "{verb} {plural}");
                assert!(may_give(&format!("{plural}/status"), verb).is_err(), "{verb} {plural}/status");
            }
            for verb in READS {
                assert_eq!(may_give(plural, verb).is_ok(), *reach != Reach::Hidden, "{verb} {plural}");
                assert_eq!(may_give(&format!("{plural}/status"), verb).is_ok(), *reach != Reach::Hidden);
            }
        }
        // Those by which somebody reaches into a cluster, or becomes somebody: none of them is ever given away.
        for plural in [
            "accessrequests",
            "clustergrants",
            "clusterimports",
            "globalrolebindings",
            "globalroles",
            "groups",
            "nodeplans",
            "projectnamespaces",
            "projects",
            "roletemplates",
            "servicegrants",
            "serviceexports",
            "serviceimports",
            "sharedsecrets",
            "templatebindings",
            "tokens",
            "users",
        ] {
            assert!(WRITES.iter().all(|verb| may_give(plural, verb).is_err()), "{plural}");
        }
        for (resource, verb) in
            [("users/password", "update"), ("inventions", "get"), ("", "get"), ("clusters", "proxy")]
        {
            assert!(may_give(resource, verb).is_err(), "{verb} {resource}");
        }
        assert!(may_give("clusters/link", "get").is_ok());
    }
}
