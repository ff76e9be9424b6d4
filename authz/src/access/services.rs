//! Which caller reaches which service, pod or host inside a cluster.

use super::{Denial, Facts, Grants, Permit, Recording};
use crate::{address::HostRule, identity::ActAs};
use moorline_proto::inside::{Destination, Labels};

/// What one `ServiceGrant` says. Nothing named is nothing granted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServiceGrant {
    /// User names.
    pub users: Vec<String>,
    /// Group names.
    pub groups: Vec<String>,
    /// Cluster names; `*` is every cluster.
    pub clusters: Vec<String>,
    /// Namespaces of services and pods; `*` is every namespace.
    pub namespaces: Vec<String>,
    /// Names of services in them; `*` is every service.
    pub services: Vec<String>,
    /// Names of pods in them; `*` is every pod.
    pub pods: Vec<String>,
    /// Hosts, as the cluster sees them.
    pub hosts: Vec<HostRule>,
    /// Labels that service or pod must carry. The hub does not know them: the agent looks.
    pub labels: Labels,
}

impl ServiceGrant {
    fn covers(&self, cluster: &str, to: &Destination) -> bool {
        let named = |list: &[String], name: &str| list.iter().any(|n| n == "*" || n == name);
        named(&self.clusters, cluster)
            && match to {
                Destination::Service { namespace, name, .. } => {
                    named(&self.namespaces, namespace) && named(&self.services, name)
                }
                Destination::Pod { namespace, name, .. } => {
                    named(&self.namespaces, namespace) && named(&self.pods, name)
                }
                Destination::Host { host, port } => self.hosts.iter().any(|rule| rule.covers(host, *port)),
            }
    }
}

impl Grants {
    /// The same with grants for services.
    #[must_use]
    pub fn with_services(mut self, services: impl IntoIterator<Item = ServiceGrant>) -> Self {
        self.services = services.into_iter().collect();
        self
    }
}

/// A place inside a cluster that a permit is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reach {
    pub(super) to: Destination,
    pub(super) labels: Vec<Labels>,
}

impl Permit {
    /// The place inside the cluster that it is for, and the sets of labels of which the place must carry one (none: any
    /// will do); `None`: it is for the API server.
    pub fn inside(&self) -> Option<(&Destination, &[Labels])> {
        self.reach.as_ref().map(|reach| (&reach.to, &reach.labels[..]))
    }
}

/// May this caller reach this place inside this cluster? The cluster's edge policy has a word of its own.
///
/// # Errors
/// The reason. An unknown cluster and an unknown place get the same answer as those without a grant.
pub fn authorize_inside(facts: &Facts<'_>, cluster: &str, to: &Destination) -> Result<Permit, Denial> {
    if !facts.token_covers(cluster) {
        return Err(Denial::TokenScope { cluster: cluster.to_owned() });
    }
    let who = facts.identity;
    // The hub's own users are for its plugins' calls to API servers, and for agents.
    if super::is_own(&who.user) {
        return Err(no_longer(facts, cluster, to));
    }
    let held =
        |grant: &&ServiceGrant| grant.users.contains(&who.user) || grant.groups.iter().any(|group| who.in_group(group));
    let mut labels: Vec<Labels> = Vec::new();
    let mut free = who.is_admin();
    for grant in facts.grants.services.iter().filter(held).filter(|grant| grant.covers(cluster, to)) {
        // Hosts carry no labels: to them a grant that asks for some says nothing.
        match (grant.labels.is_empty(), to) {
            (true, _) => free = true,
            (false, Destination::Host { .. }) => {}
            (false, _) if !labels.contains(&grant.labels) => labels.push(grant.labels.clone()),
            (false, _) => {}
        }
    }
    if free {
        labels.clear();
    } else if labels.is_empty() {
        let (user, cluster) = (who.user.clone(), cluster.to_owned());
        return Err(Denial::NoServiceGrant { user, cluster, to: to.to_string() });
    }
    let principal = facts.with_granted_groups(cluster);
    Ok(Permit {
        cluster: cluster.into(),
        principal,
        act_as: None,
        reach: Some(Box::new(Reach { to: to.clone(), labels })),
        record: Recording::Never,
    })
}

/// The same decision again, from the facts of now.
///
/// # Errors
/// The right is gone.
pub fn authorize_again(facts: &Facts<'_>, permit: &Permit) -> Result<Permit, Denial> {
    match &permit.reach {
        None => super::authorize(facts, &permit.cluster, permit.act_as().cloned()),
        Some(reach) => {
            let again = authorize_inside(facts, &permit.cluster, &reach.to)?;
            // The agent looked for the labels of then. It is not asked again: only what covers them all is the same right.
            let now = again.reach.as_ref().map_or(&[][..], |reach| &reach.labels);
            let covered =
                now.is_empty() || (!reach.labels.is_empty() && reach.labels.iter().all(|set| now.contains(set)));
            if covered { Ok(again) } else { Err(no_longer(facts, &permit.cluster, &reach.to)) }
        }
    }
}

fn no_longer(facts: &Facts<'_>, cluster: &str, to: &Destination) -> Denial {
    Denial::NoServiceGrant { user: facts.identity.user.clone(), cluster: cluster.to_owned(), to: to.to_string() }
}

/// Nobody reaches a service as somebody else: it would not know.
///
/// # Errors
/// There is such a wish.
pub fn refuse_act_as(act_as: Option<&ActAs>) -> Result<(), Denial> {
    if act_as.is_some() { Err(Denial::ActAsInside) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|s| (*s).to_owned()).collect()
    }

    fn grants() -> Grants {
        let labels = |set: &[(&str, &str)]| set.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Grants::default().with_services([
            ServiceGrant {
                users: names(&["ann"]),
                clusters: names(&["a"]),
                namespaces: names(&["shop"]),
                services: names(&["web"]),
                ..ServiceGrant::default()
            },
            ServiceGrant {
                groups: names(&["ops"]),
                clusters: names(&["*"]),
                namespaces: names(&["*"]),
                services: names(&["*"]),
                labels: labels(&[("expose", "yes")]),
                ..ServiceGrant::default()
            },
            ServiceGrant {
                users: names(&["ann"]),
                clusters: names(&["a"]),
                hosts: vec!["10.0.0.5:5432".parse().unwrap(), "*.corp".parse().unwrap()],
                ..ServiceGrant::default()
            },
        ])
    }

    fn ask(user: &str, groups: &[&str], cluster: &str, to: &str) -> Result<Permit, Denial> {
        let identity = Identity::new(user, groups.iter().copied());
        let grants = grants();
        let facts = Facts { identity: &identity, token_clusters: None, grants: &grants };
        authorize_inside(&facts, cluster, &to.parse().unwrap())
    }

    #[test]
    fn s22_a_grant_opens_what_it_names_and_nothing_else() {
        let permit = ask("ann", &[], "a", "svc/shop/web:80").unwrap();
        assert_eq!(
            permit.inside().map(|(to, labels)| (to.to_string(), labels.len())),
            Some(("svc/shop/web:80".into(), 0))
        );
        assert!(ask("ann", &[], "a", "host/10.0.0.5:5432").is_ok() && ask("ann", &[], "a", "host/db.corp:1").is_ok());
        for (cluster, to) in [
            ("b", "svc/shop/web:80"),
            ("a", "svc/shop/api:80"),
            ("a", "svc/other/web:80"),
            ("a", "pod/shop/web:80"),
            ("a", "host/10.0.0.5:80"),
            ("a", "host/10.0.0.6:5432"),
            ("a", "host/web.shop.svc:443"),
        ] {
            let asked = ask("ann", &[], cluster, to);
            assert_eq!(asked.is_ok(), to == "host/web.shop.svc:443", "{cluster} {to}: that name is the service itself");
        }
        assert!(matches!(ask("bob", &[], "a", "svc/shop/web:80"), Err(Denial::NoServiceGrant { .. })));
    }

    #[test]
    fn labels_are_asked_for_unless_another_grant_asks_for_none() {
        let permit = ask("bob", &["ops"], "b", "svc/x/y:80").unwrap();
        assert_eq!(permit.inside().unwrap().1, [vec![("expose".to_owned(), "yes".to_owned())]]);
        assert!(ask("ann", &["ops"], "a", "svc/shop/web:80").unwrap().inside().unwrap().1.is_empty());
        assert!(
            ask("bob", &["ops"], "b", "host/10.0.0.5:5432").is_err() && ask("bob", &["ops"], "b", "pod/x/y:1").is_err()
        );
    }

    #[test]
    fn s51_a_right_that_shrank_is_gone() {
        let (ann, all) = (Identity::new("ann", ["ops"]), grants());
        let facts = |grants| Facts { identity: &ann, token_clusters: None, grants };
        let permit = authorize_inside(&facts(&all), "a", &"svc/shop/web:80".parse().unwrap()).unwrap();
        assert!(authorize_again(&facts(&all), &permit).is_ok());
        let without = all.services[1..].to_vec();
        let less = Grants::default().with_services(without);
        assert!(
            authorize_again(&facts(&less), &permit).is_err(),
            "what is left asks for labels that nobody looked for"
        );
        assert!(authorize_again(&facts(&Grants::default()), &permit).is_err());
    }

    #[test]
    fn s10_a_restricted_token_opens_services_of_its_clusters_alone() {
        let (admin, grants, only) = (Identity::new("root", ["moorline:admins"]), Grants::default(), ["a".to_owned()]);
        let facts = Facts { identity: &admin, token_clusters: Some(&only), grants: &grants };
        let to = "svc/shop/web:80".parse().unwrap();
        assert!(authorize_inside(&facts, "a", &to).is_ok());
        assert!(matches!(authorize_inside(&facts, "b", &to), Err(Denial::TokenScope { .. })));
    }
}
