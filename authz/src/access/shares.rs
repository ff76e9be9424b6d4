//! Which cluster's pods reach which service of another cluster.

use super::{Denial, Permit, Recording, services::Reach};
use crate::identity::Identity;
use moorline_proto::inside::Destination;
use std::{collections::BTreeMap, sync::Arc};

/// What begins the names of agents towards clusters whose services they import. Nobody who logs in has such a name.
pub const AGENT_PREFIX: &str = "moorline:agent:";

/// Every cluster, in an export.
const EVERY: &str = "*";

/// What a port takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Transport {
    /// Connections.
    #[default]
    Tcp,
    /// Datagrams.
    Udp,
}

/// What one `ServiceExport` says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Export {
    /// When it was made, as Kubernetes writes times: in the order of the texts. Of two that contradict each other the
    /// older one is right.
    pub made: String,
    /// The cluster that has the service.
    pub cluster: String,
    /// Its namespace there.
    pub namespace: String,
    /// Its name there.
    pub service: String,
    /// Its ports, by number and what they take, and what they are called.
    pub ports: BTreeMap<(u16, Transport), String>,
    /// Connections of one client keep to one cluster.
    pub sticky: bool,
    /// Clusters that may import it; `*` is every cluster. Nothing named is nobody.
    pub importers: Vec<String>,
}

impl Export {
    /// Whether this cluster may import it. No cluster imports what it has itself.
    pub fn admits(&self, cluster: &str) -> bool {
        self.cluster != cluster && self.importers.iter().any(|name| name == EVERY || name == cluster)
    }
}

/// What one `ServiceImport` says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Import {
    /// The cluster that gets an address for it.
    pub cluster: String,
    /// The namespace of the service that stands for it there.
    pub namespace: String,
    /// The name of the service that stands for it there.
    pub service: String,
    /// The namespace of the exported service.
    pub from_namespace: String,
    /// The name of the exported service.
    pub from_service: String,
    /// Clusters that it may come from; none named: from every one that exports it.
    pub from_clusters: Vec<String>,
}

impl Import {
    /// Whether it means this export, permitted or not.
    pub fn means(&self, export: &Export) -> bool {
        export.namespace == self.from_namespace
            && export.service == self.from_service
            && (self.from_clusters.is_empty() || self.from_clusters.contains(&export.cluster))
    }
}

/// All exports and imports, by name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Shares {
    /// Every `ServiceExport`.
    pub exports: BTreeMap<String, Export>,
    /// Every `ServiceImport`.
    pub imports: BTreeMap<String, Import>,
}

impl Shares {
    /// The exports that an import means, permitted or not.
    pub fn meant<'a>(&'a self, import: &'a Import) -> impl Iterator<Item = (&'a String, &'a Export)> {
        self.exports.iter().filter(|(_, export)| import.means(export))
    }

    /// Those of them that its cluster may import.
    pub fn admitted<'a>(&'a self, import: &'a Import) -> impl Iterator<Item = (&'a String, &'a Export)> {
        self.meant(import).filter(|(_, export)| export.admits(&import.cluster))
    }
}

/// May this agent, which stands for the pods of its cluster, reach `port` of the service of `export` by `import`, in this
/// way? The edge policy of the cluster that has the service has a word of its own.
///
/// # Errors
/// The reason. An unknown import and one of another cluster get the same answer.
pub fn authorize_import(
    shares: &Shares,
    (cluster, agent): (&str, &str),
    import: &str,
    export: &str,
    (port, transport): (u16, Transport),
) -> Result<Permit, Denial> {
    let no_import = || Denial::NoImport { cluster: cluster.to_owned(), import: import.to_owned() };
    let known = shares.imports.get(import).filter(|known| known.cluster == cluster).ok_or_else(no_import)?;
    let denied = || Denial::NotExported { cluster: cluster.to_owned(), import: import.to_owned(), port };
    let fits =
        |found: &&Export| known.means(found) && found.admits(cluster) && found.ports.contains_key(&(port, transport));
    let found = shares.exports.get(export).filter(fits).ok_or_else(denied)?;
    let to = Destination::service(&found.namespace, &found.service, &port.to_string()).map_err(|_| denied())?;
    let principal = Arc::new(Identity::new(format!("{AGENT_PREFIX}{cluster}.{agent}"), ["moorline:agents"]));
    let reach = Some(Box::new(Reach { to, labels: Vec::new() }));
    Ok(Permit { cluster: found.cluster.as_str().into(), principal, act_as: None, reach, record: Recording::Never })
}

/// The cluster that a principal is an agent of, if it is one.
pub fn importer(user: &str) -> Option<&str> {
    user.strip_prefix(AGENT_PREFIX)?.split('.').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn export(cluster: &str, importers: &[&str]) -> Export {
        Export {
            cluster: cluster.to_owned(),
            namespace: "shop".to_owned(),
            service: "pay".to_owned(),
            ports: [((80, Transport::Tcp), "http".to_owned())].into(),
            made: String::new(),
            sticky: false,
            importers: importers.iter().map(|s| (*s).to_owned()).collect(),
        }
    }

    fn import(cluster: &str, from: &[&str]) -> Import {
        Import {
            cluster: cluster.to_owned(),
            namespace: "web".to_owned(),
            service: "payments".to_owned(),
            from_namespace: "shop".to_owned(),
            from_service: "pay".to_owned(),
            from_clusters: from.iter().map(|s| (*s).to_owned()).collect(),
        }
    }

    fn shares() -> Shares {
        Shares {
            exports: [
                ("one".to_owned(), export("a", &["b"])),
                ("two".to_owned(), export("c", &["*"])),
                ("none".to_owned(), export("d", &[])),
                ("other".to_owned(), Export { service: "db".to_owned(), ..export("a", &["*"]) }),
            ]
            .into(),
            imports: [("in-b".to_owned(), import("b", &[])), ("in-c".to_owned(), import("c", &[]))].into(),
        }
    }

    #[test]
    fn s22_an_import_reaches_what_is_exported_to_its_cluster_and_nothing_else() {
        let shares = shares();
        let ask = |cluster, import, export, port| {
            authorize_import(&shares, (cluster, "x"), import, export, (port, Transport::Tcp))
        };
        let permit = ask("b", "in-b", "one", 80).unwrap();
        assert_eq!((permit.cluster(), permit.principal().user.as_str()), ("a", "moorline:agent:b.x"));
        assert_eq!(permit.inside().unwrap().0.to_string(), "svc/shop/pay:80");
        assert_eq!(ask("b", "in-b", "two", 80).unwrap().cluster(), "c");
        for (cluster, import, export, port) in [
            ("b", "in-b", "one", 81),
            ("b", "in-b", "none", 80),
            ("b", "in-b", "other", 80),
            ("b", "in-b", "unknown", 80),
            ("c", "in-c", "one", 80),
            ("c", "in-c", "two", 80), // its own
        ] {
            let denied = ask(cluster, import, export, port);
            assert!(matches!(denied, Err(Denial::NotExported { .. })), "{cluster} {export} {port}: {denied:?}");
        }
        let datagrams = authorize_import(&shares, ("b", "x"), "in-b", "one", (80, Transport::Udp));
        assert!(matches!(datagrams, Err(Denial::NotExported { .. })), "the number of a TCP port: {datagrams:?}");
        for (cluster, import) in [("b", "in-c"), ("e", "in-b"), ("b", "unknown")] {
            assert!(matches!(ask(cluster, import, "two", 80), Err(Denial::NoImport { .. })), "{cluster} {import}");
        }
    }

    #[test]
    fn an_import_may_name_the_clusters_that_it_comes_from() {
        let mut shares = shares();
        shares.imports.insert("in-b".to_owned(), import("b", &["c"]));
        let names: Vec<&str> = shares.admitted(&shares.imports["in-b"]).map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["two"]);
        assert!(authorize_import(&shares, ("b", "x"), "in-b", "one", (80, Transport::Tcp)).is_err());
    }

    #[test]
    fn agents_are_told_from_people_by_their_name() {
        assert_eq!((importer("moorline:agent:b.x"), importer("bob"), importer("agent:b.x")), (Some("b"), None, None));
    }
}
