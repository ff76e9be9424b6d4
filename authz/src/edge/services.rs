//! What the owner of a cluster refuses of its services, pods and hosts, and where addresses may lead at all.

use super::{EdgeDenial, EdgePolicy};
use crate::{
    address::{AddressRule, never, plain},
    identity::Identity,
};
use moorline_proto::inside::Destination;
use serde::Deserialize;
use std::{
    collections::HashSet,
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
        }
    }
}

impl Services {
    /// Reads what stands in it as text.
    ///
    /// # Errors
    /// The first thing that is no rule.
    pub(super) fn check(&self) -> Result<(), String> {
        for name in self.allow.iter().flatten().chain(&self.deny).chain(&self.unverified_tls) {
            let whole = |part: &str| !part.is_empty() && (part == "*" || !part.contains('*'));
            if !name.split_once('/').is_some_and(|(ns, name)| whole(ns) && whole(name) && !name.contains('/')) {
                return Err(format!("services: {name:?} is not NAMESPACE/NAME, NAMESPACE/* or */NAME"));
            }
        }
        for rule in self.allow_addresses.iter().chain(&self.deny_addresses) {
            rule.parse::<AddressRule>().map_err(|e| format!("services: {e}"))?;
        }
        if self.max_streams == Some(0) || self.max_streams_per_second == Some(0) {
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

    /// Streams of one place at a time, and new ones in a second; `None`: no bound of the owner's.
    pub fn stream_bounds(&self) -> (Option<usize>, Option<u32>) {
        (self.0.services.max_streams, self.0.services.max_streams_per_second)
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
}
