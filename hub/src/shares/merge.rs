//! One service of several clusters: the ports that it has where it is imported, and where its exports contradict each other.
//!
//! After KEP-1645: the ports are those of all exports; where two differ in what they say of one, the older one is right,
//! and all are told.

use crate::kinds::{Protocol, SharedPort};
use moorline_authz::access::{Export, Import, Shares as Known, Transport};
use std::collections::{BTreeMap, BTreeSet};

/// An export and its name.
type Named<'a> = (&'a String, &'a Export);

/// Oldest first; of two that were made in one second the first by name.
fn oldest_first(mut exports: Vec<Named<'_>>) -> Vec<Named<'_>> {
    exports.sort_by(|(a, one), (b, other)| (&one.made, a).cmp(&(&other.made, b)));
    exports
}

/// The ports of all exports that an import may use, by number. A name that an older export gives to another port, and
/// another name of a port that an older one has, do not count.
pub(super) fn ports(known: &Known, import: &Import) -> Vec<SharedPort> {
    let mut ports: BTreeMap<(u16, Transport), &String> = BTreeMap::new();
    let mut called = BTreeSet::new();
    for (_, export) in oldest_first(known.admitted(import).collect()) {
        for (port, name) in &export.ports {
            if !ports.contains_key(port) && called.insert(name) {
                ports.insert(*port, name);
            }
        }
    }
    let shared = |((port, transport), name): ((u16, Transport), &String)| SharedPort {
        port,
        name: name.clone(),
        protocol: Protocol::from(transport),
    };
    ports.into_iter().map(shared).collect()
}

/// Whether connections of one client keep to one cluster: the oldest export's word.
pub(super) fn is_sticky(known: &Known, import: &Import) -> bool {
    oldest_first(known.admitted(import).collect()).first().is_some_and(|(_, export)| export.sticky)
}

/// What a cluster offers: ports by number and what they take, with their names, and whether it is sticky.
type Offer = (BTreeMap<(u16, Transport), String>, bool);

/// What the exports of this one's service contradict each other in, if they do: one word and, for people, more. Clusters are compared, with all
/// that each exports of the service: it need not be one object.
pub(super) fn conflict(known: &Known, export: &Export) -> Option<(&'static str, String)> {
    let same = |(_, other): &Named<'_>| other.namespace == export.namespace && other.service == export.service;
    let all = oldest_first(known.exports.iter().filter(same).collect());
    let oldest = all.first()?.1.cluster.as_str();
    let mut offered: BTreeMap<&str, Offer> = BTreeMap::new();
    for (_, export) in &all {
        let (ports, _) = offered.entry(&export.cluster).or_insert_with(|| (BTreeMap::new(), export.sticky));
        ports.extend(export.ports.clone());
    }
    let right = offered.remove(oldest)?;
    let clusters = offered.len() + 1;
    offered.retain(|_, offer| *offer != right);
    let (other, offer) = offered.first_key_value()?;
    let reason = match offered.values().fold((false, false), |(a, b), o| (a || o.0 != right.0, b || o.1 != right.1)) {
        (true, true) => "PortConflict,SessionAffinityConflict",
        (true, false) => "PortConflict",
        (false, _) => "SessionAffinityConflict",
    };
    let words = format!(
        "{}/{clusters} clusters disagree with {oldest}, which was first and is right where they differ. It has {}; {other} \
         has {}",
        offered.len(),
        shown(&right),
        shown(offer),
    );
    Some((reason, words))
}

/// `http 80/TCP, dns 53/UDP, ClientIP`
fn shown((ports, sticky): &Offer) -> String {
    let one = |((port, transport), name): (&(u16, Transport), &String)| {
        let transport = if *transport == Transport::Tcp { "TCP" } else { "UDP" };
        format!("{name} {port}/{transport}")
    };
    let affinity = sticky.then(|| "ClientIP".to_owned());
    ports.iter().map(one).chain(affinity).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn export(made: &str, cluster: &str, ports: &[(u16, Transport, &str)]) -> Export {
        Export {
            made: format!("2026-01-01T00:00:0{made}Z"),
            cluster: cluster.to_owned(),
            namespace: "shop".to_owned(),
            service: "web".to_owned(),
            ports: ports.iter().map(|(port, transport, name)| ((*port, *transport), (*name).to_owned())).collect(),
            importers: vec!["*".to_owned()],
            sticky: false,
        }
    }

    fn known(exports: Vec<(&str, Export)>) -> Known {
        Known { exports: exports.into_iter().map(|(name, e)| (name.to_owned(), e)).collect(), ..Known::default() }
    }

    fn offered(known: &Known) -> Vec<String> {
        let import = Import {
            cluster: "z".to_owned(),
            from_namespace: "shop".to_owned(),
            from_service: "web".to_owned(),
            ..Import::default()
        };
        ports(known, &import).iter().map(|port| format!("{} {}{:?}", port.name, port.port, port.protocol)).collect()
    }

    const TCP: Transport = Transport::Tcp;
    const UDP: Transport = Transport::Udp;

    #[test]
    fn exports_that_say_the_same_do_not_conflict_and_those_that_do_not_are_all_told() {
        let agreed = known(vec![
            ("b", export("1", "one", &[(80, TCP, "http")])),
            ("a", export("2", "two", &[(80, TCP, "http")])),
        ]);
        assert!(agreed.exports.values().all(|export| conflict(&agreed, export).is_none()));
        let others = [
            [(81, TCP, "http")].as_slice(),
            &[(80, UDP, "http")],
            &[(80, TCP, "web")],
            &[(80, TCP, "http"), (81, TCP, "x")],
        ];
        for ports in others {
            let apart = known(vec![("b", export("1", "one", &[(80, TCP, "http")])), ("a", export("2", "two", ports))]);
            for export in apart.exports.values() {
                let (reason, words) = conflict(&apart, export).unwrap();
                assert_eq!(reason, "PortConflict");
                assert!(words.starts_with("1/2 clusters disagree with one, which was first"), "{words}");
            }
        }
    }

    #[test]
    fn who_keeps_clients_together_is_told_too_and_the_oldest_is_right() {
        let sticky = Export { sticky: true, ..export("2", "two", &[(80, TCP, "http")]) };
        let mut apart = known(vec![("b", export("1", "one", &[(80, TCP, "http")])), ("a", sticky)]);
        let import = Import {
            cluster: "z".to_owned(),
            from_namespace: "shop".to_owned(),
            from_service: "web".to_owned(),
            ..Import::default()
        };
        assert!(!is_sticky(&apart, &import));
        assert_eq!(conflict(&apart, &apart.exports["a"]).unwrap().0, "SessionAffinityConflict");
        let one = apart.exports.get_mut("b").unwrap();
        (one.made, one.ports) = ("2026-01-01T00:00:03Z".to_owned(), BTreeMap::new());
        assert!(is_sticky(&apart, &import), "the other one is the older one now");
        assert_eq!(conflict(&apart, &apart.exports["a"]).unwrap().0, "PortConflict,SessionAffinityConflict");
    }

    #[test]
    fn what_other_services_and_other_exports_of_the_same_cluster_offer_is_no_conflict() {
        let mut apart = known(vec![
            ("a", export("1", "one", &[(80, TCP, "http")])),
            ("b", export("2", "one", &[(81, TCP, "admin")])),
            ("c", export("3", "two", &[(82, TCP, "http")])),
        ]);
        apart.exports.get_mut("c").unwrap().service = "other".to_owned();
        assert!(apart.exports.values().all(|export| conflict(&apart, export).is_none()));
    }

    #[test]
    fn an_import_has_the_ports_of_all_and_the_oldest_is_right_about_each() {
        let old = export("1", "one", &[(53, UDP, "dns"), (80, TCP, "http")]);
        let young = export("2", "two", &[(53, TCP, "dns-tcp"), (80, TCP, "web"), (81, TCP, "http"), (82, TCP, "more")]);
        // The name of the object decides nothing but between two of one second.
        let both = known(vec![("z", old), ("a", young.clone())]);
        assert_eq!(offered(&both), ["dns-tcp 53Tcp", "dns 53Udp", "http 80Tcp", "more 82Tcp"]);
        let twins = known(vec![("z", export("2", "one", &[(80, TCP, "http")])), ("a", young)]);
        assert_eq!(offered(&twins), ["dns-tcp 53Tcp", "web 80Tcp", "http 81Tcp", "more 82Tcp"]);
    }
}
