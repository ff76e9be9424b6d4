//! What the owner of a cluster refuses of its services, pods and hosts, and where addresses may lead at all.

use super::{EdgeDenial, EdgePolicy};
use crate::{
    access::importer,
    address::{AddressRule, never, plain},
    identity::Identity,
};
use moorline_proto::inside::Destination;
use serde::Deserialize;
use std::{
    collections::{BTreeSet, HashSet},
    net::{IpAddr, SocketAddr},
};

/// The section `services` of a policy.
///
/// `allow` and `deny` name services and pods as `namespace/name`, where `*` stands for any; without `allow` all are
/// allowed. `hosts: false` closes whatever is named by host or address. Addresses that nobody means (loopback,
/// link-local, metadata, nodes, the API server, the hub, the agent itself) are opened by `allowAddresses` alone.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct Services {
    allow: Option<Vec<String>>,
    deny: Vec<String>,
    hosts: bool,
    allow_addresses: Vec<String>,
    deny_addresses: Vec<String>,
    /// PEM: further authorities of backends that speak TLS.
    authorities: String,
    /// `namespace/name` of services whose certificate is not looked at.
    unverified_tls: Vec<String>,
    /// Streams of one service, pod or host at a time.
    max_streams: Option<usize>,
    /// New streams of one service, pod or host in a second.
    max_streams_per_second: Option<u32>,
    /// Bounds of services and pods by name, before those for all.
    limits: Vec<Bound>,
    /// Clusters whose pods may reach what the hub exports to them; absent: all.
    importers: Option<Vec<String>>,
}

/// Bounds of some services and pods. Of several that name one the first counts.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Bound {
    /// `namespace/name`.
    names: Vec<String>,
    max_streams: Option<usize>,
    max_streams_per_second: Option<u32>,
}

/// The section `imports` of a policy: the services that the hub may have the agent make in this cluster for what others
/// export, as `namespace/name`. Nothing named is nothing made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct Imports {
    allow: Vec<String>,
}

impl Imports {
    /// # Errors
    /// The first thing that is no rule.
    pub(super) fn check(&self) -> Result<(), String> {
        self.allow.iter().try_for_each(|name| whole("imports", name))
    }
}

/// # Errors
/// `name` is no rule for namespaces and names.
fn whole(section: &str, name: &str) -> Result<(), String> {
    let whole = |part: &str| !part.is_empty() && (part == "*" || !part.contains('*'));
    if name.split_once('/').is_some_and(|(ns, name)| whole(ns) && whole(name) && !name.contains('/')) {
        return Ok(());
    }
    Err(format!("{section}: {name:?} is not NAMESPACE/NAME, NAMESPACE/* or */NAME"))
}

impl Default for Services {
    fn default() -> Self {
        Self {
            allow: None,
            deny: Vec::new(),
            hosts: true,
            allow_addresses: Vec::new(),
            deny_addresses: Vec::new(),
            authorities: String::new(),
            unverified_tls: Vec::new(),
            max_streams: None,
            max_streams_per_second: None,
            limits: Vec::new(),
            importers: None,
        }
    }
}

impl Services {
    /// Reads what stands in it as text.
    ///
    /// # Errors
    /// The first thing that is no rule.
    pub(super) fn check(&self) -> Result<(), String> {
        let bounded = self.limits.iter().flat_map(|bound| &bound.names);
        let named = self.allow.iter().flatten().chain(&self.deny).chain(&self.unverified_tls).chain(bounded);
        named.into_iter().try_for_each(|name| whole("services", name))?;
        for rule in self.allow_addresses.iter().chain(&self.deny_addresses) {
            rule.parse::<AddressRule>().map_err(|e| format!("services: {e}"))?;
        }
        let nobody = |streams: Option<usize>, rate: Option<u32>| streams == Some(0) || rate == Some(0);
        if nobody(self.max_streams, self.max_streams_per_second)
            || self.limits.iter().any(|bound| nobody(bound.max_streams, bound.max_streams_per_second))
        {
            return Err("services: a bound of 0 serves nobody; deny instead".to_owned());
        }
        Ok(())
    }
}

/// Addresses that belong to the cluster's own machinery.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Terrain {
    /// Of nodes.
    pub nodes: HashSet<IpAddr>,
    /// Of the API server.
    pub api: HashSet<IpAddr>,
    /// Of the hub.
    pub hub: HashSet<IpAddr>,
}

fn names(list: &[String], namespace: &str, name: &str) -> bool {
    let is = |pattern: &str, text: &str| pattern == "*" || pattern == text;
    list.iter().filter_map(|rule| rule.split_once('/')).any(|(ns, n)| is(ns, namespace) && is(n, name))
}

impl EdgePolicy {
    /// May this caller reach this place inside the cluster, as far as names go? Each address is asked about once more.
    ///
    /// # Errors
    /// The rule that refuses.
    pub fn reach(&self, principal: &Identity, to: &Destination) -> Result<(), EdgeDenial> {
        self.admit(principal)?;
        let rules = &self.0.services;
        let refused = || Err(EdgeDenial::Service(to.to_string()));
        if let (Some(cluster), Some(allowed)) = (importer(&principal.user), &rules.importers)
            && !allowed.iter().any(|name| name == cluster)
        {
            return Err(EdgeDenial::Importer { cluster: cluster.to_owned(), to: to.to_string() });
        }
        // Bytes that nobody reads may change anything: a cluster that is read-only names what is open.
        if self.0.api.read_only && rules.allow.is_none() {
            return Err(EdgeDenial::ServiceReadOnly(to.to_string()));
        }
        match to {
            Destination::Service { namespace, name, .. } | Destination::Pod { namespace, name, .. } => {
                if self.0.api.deny_namespaces.contains(namespace) {
                    return Err(EdgeDenial::Namespace(namespace.clone()));
                }
                let allowed = rules.allow.as_ref().is_none_or(|list| names(list, namespace, name));
                if !allowed || names(&rules.deny, namespace, name) { refused() } else { Ok(()) }
            }
            Destination::Host { .. } => {
                if rules.hosts && !self.0.api.read_only {
                    Ok(())
                } else {
                    refused()
                }
            }
        }
    }

    /// May this address be dialled? Asked about each address that is, at the moment it is.
    ///
    /// # Errors
    /// What the address is.
    pub fn address(&self, address: SocketAddr, terrain: &Terrain) -> Result<(), EdgeDenial> {
        let rules = &self.0.services;
        let hit = |list: &[String]| {
            list.iter().filter_map(|rule| rule.parse::<AddressRule>().ok()).any(|rule| rule.covers(address))
        };
        let refuse = |what| Err(EdgeDenial::Address { address: address.to_string(), what });
        if hit(&rules.deny_addresses) {
            return refuse("denied");
        }
        let ip = plain(address.ip());
        let what = match never(ip) {
            Some(what) => Some(what),
            None if terrain.api.contains(&ip) => Some("the API server's"),
            None if terrain.nodes.contains(&ip) => Some("a node's"),
            None if terrain.hub.contains(&ip) => Some("the hub's"),
            None => None,
        };
        match what {
            Some(what) if !hit(&rules.allow_addresses) => refuse(what),
            _ => Ok(()),
        }
    }

    /// The same for an address of the agent's own host.
    ///
    /// # Errors
    /// Nothing opens it.
    pub fn own_address(&self, address: SocketAddr) -> Result<(), EdgeDenial> {
        let list = &self.0.services.allow_addresses;
        if list.iter().filter_map(|rule| rule.parse::<AddressRule>().ok()).any(|rule| rule.covers(address)) {
            return Ok(());
        }
        Err(EdgeDenial::Address { address: address.to_string(), what: "the agent's own" })
    }

    /// PEM of authorities that vouch for backends, besides the cluster's.
    pub fn authorities(&self) -> &str {
        &self.0.services.authorities
    }

    /// Whether the certificate of this place is looked at.
    pub fn verifies_tls(&self, to: &Destination) -> bool {
        match to {
            Destination::Service { namespace, name, .. } | Destination::Pod { namespace, name, .. } => {
                !names(&self.0.services.unverified_tls, namespace, name)
            }
            Destination::Host { .. } => true,
        }
    }

    /// Streams of this place at a time, and new ones in a second; `None`: no bound of the owner's.
    pub fn stream_bounds(&self, to: &Destination) -> (Option<usize>, Option<u32>) {
        let rules = &self.0.services;
        let own = match to {
            Destination::Service { namespace, name, .. } | Destination::Pod { namespace, name, .. } => {
                rules.limits.iter().find(|bound| names(&bound.names, namespace, name))
            }
            Destination::Host { .. } => None,
        };
        let most = own.and_then(|bound| bound.max_streams).or(rules.max_streams);
        (most, own.and_then(|bound| bound.max_streams_per_second).or(rules.max_streams_per_second))
    }

    /// May the hub have a service of this name made in the cluster, for one that another cluster exports?
    ///
    /// # Errors
    /// Nothing allows it.
    pub fn import(&self, namespace: &str, name: &str) -> Result<(), EdgeDenial> {
        if names(&self.0.imports.allow, namespace, name) {
            return Ok(());
        }
        Err(EdgeDenial::Import(format!("{namespace}/{name}")))
    }

    /// The namespaces by name in which services may be made for those of other clusters.
    pub fn import_namespaces(&self) -> BTreeSet<String> {
        let named = self.0.imports.allow.iter().filter_map(|rule| rule.split_once('/'));
        named.map(|(namespace, _)| namespace.to_owned()).filter(|namespace| namespace != "*").collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(spec: &str) -> EdgePolicy {
        EdgePolicy::from_yaml(&format!("apiVersion: moorline.dev/v1alpha1\nkind: EdgePolicy\nspec:\n{spec}")).unwrap()
    }
    fn reach(policy: &EdgePolicy, to: &str) -> Result<(), EdgeDenial> {
        policy.reach(&Identity::new("ann", ["dev"]), &to.parse().unwrap())
    }

    #[test]
    fn without_a_file_services_are_open_to_whom_the_hub_grants_them() {
        let policy = EdgePolicy::default();
        for to in ["svc/a/b:80", "pod/a/b:80", "host/10.0.0.1:80"] {
            assert_eq!(reach(&policy, to), Ok(()));
        }
        assert!(policy.reach(&Identity::new("ann", ["system:masters"]), &"svc/a/b:80".parse().unwrap()).is_err());
    }

    #[test]
    fn s22_the_owner_has_the_last_word() {
        let some = policy("  services: {allow: ['shop/*', 'mon/grafana'], deny: ['shop/db'], hosts: false}");
        assert!(reach(&some, "svc/shop/web:80").is_ok() && reach(&some, "svc/mon/grafana:80").is_ok());
        for to in ["svc/shop/db:80", "pod/shop/db:80", "svc/mon/prom:80", "svc/x/grafana:80", "host/10.0.0.1:80"] {
            assert!(reach(&some, to).is_err(), "{to}");
        }
        let closed = policy("  api: {denyNamespaces: [vault]}");
        assert!(reach(&closed, "svc/vault/x:80").is_err() && reach(&closed, "svc/a/x:80").is_ok());
        let reads = policy("  api: {readOnly: true}");
        assert!(reach(&reads, "svc/a/x:80").is_err() && reach(&reads, "host/10.0.0.1:1").is_err());
        let named = policy("  api: {readOnly: true}\n  services: {allow: [a/x]}");
        assert!(reach(&named, "svc/a/x:80").is_ok() && reach(&named, "host/10.0.0.1:1").is_err());
    }

    #[test]
    fn s23_addresses_that_nobody_means_are_closed_until_named() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let terrain =
            Terrain { nodes: [ip("10.9.0.1")].into(), api: [ip("10.96.0.1")].into(), hub: [ip("1.2.3.4")].into() };
        let ask = |policy: &EdgePolicy, address: &str| policy.address(address.parse().unwrap(), &terrain);
        let none = EdgePolicy::default();
        for bad in [
            "127.0.0.1:10250",
            "[::1]:80",
            "0.0.0.0:80",
            "169.254.169.254:80",
            "[fe80::1]:80",
            "10.9.0.1:10250",
            "10.96.0.1:443",
            "1.2.3.4:8443",
            "[::ffff:10.9.0.1]:80",
            "[::ffff:127.0.0.1]:80",
            "[fd00:ec2::254]:80",
        ] {
            assert!(ask(&none, bad).is_err(), "{bad}");
        }
        assert_eq!(ask(&none, "10.8.0.1:80"), Ok(()));
        let some = policy("  services: {allowAddresses: ['10.9.0.1:9100'], denyAddresses: ['10.8.0.0/16']}");
        assert_eq!(ask(&some, "10.9.0.1:9100"), Ok(()));
        assert!(ask(&some, "10.9.0.1:10250").is_err() && ask(&some, "10.8.0.1:80").is_err());
    }

    #[test]
    fn s66_what_is_no_rule_is_refused() {
        for bad in [
            "{allow: [web]}",
            "{allow: ['a/b/c']}",
            "{deny: ['a*/b']}",
            "{allowAddresses: [x]}",
            "{denyAddresses: ['10.0.0.1/8']}",
            "{maxStreams: 0}",
            "{open: true}",
        ] {
            let text = format!("apiVersion: moorline.dev/v1alpha1\nkind: EdgePolicy\nspec: {{services: {bad}}}");
            assert!(EdgePolicy::from_yaml(&text).is_err(), "{bad}");
        }
    }

    #[test]
    fn bounds_of_one_service_go_before_those_of_all() {
        let bounded = policy(
            "  services: {maxStreams: 100, limits: [{names: ['shop/*'], maxStreams: 3, maxStreamsPerSecond: 2}, {names: ['*/db'], maxStreams: 1}]}",
        );
        let of = |to: &str| bounded.stream_bounds(&to.parse().unwrap());
        assert_eq!(of("svc/shop/web:80"), (Some(3), Some(2)));
        assert_eq!(of("svc/shop/db:80"), (Some(3), Some(2)), "the first that names it");
        assert_eq!(of("pod/x/db:80"), (Some(1), None));
        assert_eq!(of("svc/x/web:80"), (Some(100), None));
        assert_eq!(of("host/10.0.0.5:80"), (Some(100), None));
        for bad in ["limits: [{names: ['x']}]", "limits: [{names: ['a/b'], maxStreams: 0}]", "limits: [{other: 1}]"] {
            let text = format!("apiVersion: moorline.dev/v1alpha1\nkind: EdgePolicy\nspec: {{services: {{{bad}}}}}");
            assert!(EdgePolicy::from_yaml(&text).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_owner_says_which_clusters_come_in_and_what_is_imported() {
        let to = "svc/shop/web:80".parse().unwrap();
        let agent = |cluster: &str| Identity::new(format!("moorline:agent:{cluster}.x"), ["moorline:agents"]);
        let some = policy("  services: {importers: [b]}");
        assert_eq!(some.reach(&agent("b"), &to), Ok(()));
        assert!(matches!(some.reach(&agent("c"), &to), Err(EdgeDenial::Importer { .. })));
        assert_eq!(some.reach(&Identity::new("ann", ["x"]), &to), Ok(()), "people are not clusters");
        assert_eq!(policy("  services: {}").reach(&agent("c"), &to), Ok(()));
        let imports = policy("  imports: {allow: ['shop/*']}");
        assert_eq!(imports.import("shop", "web"), Ok(()));
        assert!(imports.import("kube-system", "web").is_err());
        assert!(EdgePolicy::default().import("shop", "web").is_err(), "nothing by default");
        let several = policy("  imports: {allow: ['shop/*', '*/web', 'a/b', 'a/c']}");
        assert_eq!(several.import_namespaces().into_iter().collect::<Vec<_>>(), ["a", "shop"]);
    }
}
