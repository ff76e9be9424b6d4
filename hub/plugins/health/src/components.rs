//! How the parts of a cluster's control plane are: its API server and what that checks, and who holds a lease while it
//! works. `componentstatuses` says less and is on its way out.

use crate::{
    ask::ask,
    kinds::{Component, State},
    look::Node,
};
use serde_json::Value;
use std::{collections::BTreeMap, time::Duration};
use tokio::time::Instant;

const READYZ: &str = "/readyz?verbose";
/// Largest of these answers, in bytes.
const LARGEST: usize = 64 << 10;
/// Longest message, in letters.
const MESSAGE: usize = 200;
/// Parts that work while they hold a lease in `kube-system`, and nobody else sees how they are.
const LEASES: [&str; 2] = ["kube-controller-manager", "kube-scheduler"];
/// How long a lease holds that does not say it, and the longest that is believed.
const LEASE: u64 = 15;
const LONGEST_LEASE: u64 = 600;

/// When a lease was seen to move. Clocks of clusters are not believed, but for the first look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pulse {
    renewed: String,
    since: Instant,
    /// It was seen to move, or was as new as the hub's clock says when it was first seen.
    alive: bool,
    /// Its holder was a node of the cluster while it was looked at.
    of_node: bool,
}

/// What is remembered of a cluster's leases from one look to the next.
pub(crate) type Pulses = BTreeMap<&'static str, Pulse>;

/// How they are now. A part that the cluster does not have, as where somebody else runs it, is not among them.
pub(crate) async fn read(
    cluster: &kube::Client,
    nodes: &BTreeMap<String, Node>,
    pulses: &mut Pulses,
) -> Vec<Component> {
    let mut all = match ask(cluster, READYZ, LARGEST, None).await {
        Some((code, text)) => of_readyz(code, &String::from_utf8_lossy(&text)),
        None => vec![component("kube-apiserver", State::Unknown, "it does not say")],
    };
    for name in LEASES {
        let path = format!("/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/{name}");
        match ask(cluster, &path, LARGEST, None).await {
            Some((200, text)) => {
                let lease = serde_json::from_slice(&text).unwrap_or_default();
                let (state, message) = of_lease(pulses, name, &lease, nodes, Instant::now(), jiff::Timestamp::now());
                all.push(component(name, state, message));
            }
            Some((404, _)) => {}
            Some((code, _)) => all.push(component(name, State::Unknown, &format!("its lease cannot be read: {code}"))),
            None => all.push(component(name, State::Unknown, "its lease cannot be read")),
        }
    }
    all
}

fn component(name: &str, state: State, message: &str) -> Component {
    Component { name: name.to_owned(), state, message: message.chars().take(MESSAGE).collect() }
}

/// What `[+]name ok` and `[-]name failed: reason withheld` say, line by line.
fn of_readyz(code: u16, text: &str) -> Vec<Component> {
    let checks = text.lines().filter_map(|line| {
        let (good, rest) = match line.strip_prefix("[+]") {
            Some(rest) => (true, rest),
            None => (false, line.strip_prefix("[-]")?),
        };
        Some((rest.split(' ').next().unwrap_or_default(), good))
    });
    let checks: Vec<(&str, bool)> = checks.collect();
    let failing: Vec<&str> = checks.iter().filter(|(_, good)| !good).map(|(name, _)| *name).collect();
    let api = match code {
        200 => component("kube-apiserver", State::Healthy, ""),
        401 | 403 | 404 => component("kube-apiserver", State::Unknown, &format!("{READYZ} is not answered: {code}")),
        _ if failing.is_empty() => component("kube-apiserver", State::Unhealthy, &format!("not ready: {code}")),
        _ => component("kube-apiserver", State::Unhealthy, &format!("not ready: {}", failing.join(", "))),
    };
    let etcd = checks.iter().find(|(name, _)| *name == "etcd").map(|(_, good)| match good {
        true => component("etcd", State::Healthy, ""),
        false => component("etcd", State::Unhealthy, "the API server does not reach it"),
    });
    [api].into_iter().chain(etcd).collect()
}

/// Whether who holds a lease (`<host>_<uuid>`) works on a node of the cluster's: nodes are named by their hosts, with the
/// domain or without.
fn on_node(holder: &str, nodes: &BTreeMap<String, Node>) -> bool {
    let host = holder.rsplit_once('_').map_or(holder, |(host, _)| host).to_lowercase();
    let short = |name: &str| name.split('.').next().unwrap_or_default().to_owned();
    nodes.contains_key(&host) || nodes.keys().any(|node| short(node) == host || *node == short(&host))
}

/// A lease that moves is held by somebody who works. One that stands still was left behind if its holder's node is gone,
/// or was never a node's and never moved: of that nobody can say that it should, unless the cluster has nodes for its control plane.
fn of_lease(
    pulses: &mut Pulses,
    name: &'static str,
    lease: &Value,
    nodes: &BTreeMap<String, Node>,
    now: Instant,
    clock: jiff::Timestamp,
) -> (State, &'static str) {
    let spec = &lease["spec"];
    let renewed = spec["renewTime"].as_str().unwrap_or_default();
    let holder = spec["holderIdentity"].as_str().unwrap_or_default();
    if holder.is_empty() || renewed.is_empty() {
        pulses.remove(name);
        return (State::Unhealthy, "nobody holds its lease");
    }
    let holds = Duration::from_secs(spec["leaseDurationSeconds"].as_u64().unwrap_or(LEASE).clamp(1, LONGEST_LEASE));
    let there = on_node(holder, nodes);
    let renewed: String = renewed.chars().take(MESSAGE).collect();
    let pulse = match pulses.get_mut(name) {
        Some(pulse) if pulse.renewed == renewed => pulse,
        before => {
            let fresh = || {
                let at = renewed.parse::<jiff::Timestamp>().ok()?;
                Some(at.duration_since(clock).unsigned_abs() <= holds)
            };
            let alive = before.is_some() || fresh().unwrap_or(false);
            pulses.insert(name, Pulse { renewed, since: now, alive, of_node: there });
            return if alive { (State::Healthy, "") } else { (State::Unknown, "seen once") };
        }
    };
    pulse.of_node |= there;
    let here = there || nodes.values().any(|node| node.control_plane);
    let still = holds < now.duration_since(pulse.since);
    match (pulse.alive, here) {
        (alive, here) if still && (here || (alive && !pulse.of_node)) => {
            (State::Unhealthy, "it renews its lease no more")
        }
        _ if still => (State::Unknown, "its lease was left behind: who held it is no node of the cluster"),
        (true, _) => (State::Healthy, ""),
        (false, _) => (State::Unknown, "seen once"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn nodes(names: &[&str]) -> BTreeMap<String, Node> {
        names.iter().map(|name| ((*name).to_owned(), Node::default())).collect()
    }

    fn told(all: &[Component]) -> Vec<(&str, State, &str)> {
        all.iter().map(|c| (c.name.as_str(), c.state, c.message.as_str())).collect()
    }

    #[test]
    fn the_api_server_says_which_of_its_checks_fail() {
        let good = of_readyz(200, "[+]ping ok\n[+]etcd ok\n[+]informer-sync ok\nreadyz check passed\n");
        assert_eq!(told(&good), [("kube-apiserver", State::Healthy, ""), ("etcd", State::Healthy, "")]);
        let bad = of_readyz(500, "[+]ping ok\n[-]etcd failed: reason withheld\n[-]shutdown failed: reason withheld\n");
        assert_eq!(
            told(&bad),
            [
                ("kube-apiserver", State::Unhealthy, "not ready: etcd, shutdown"),
                ("etcd", State::Unhealthy, "the API server does not reach it")
            ]
        );
        // One that keeps no etcd of its own, and one that does not tell.
        assert_eq!(told(&of_readyz(200, "ok")), [("kube-apiserver", State::Healthy, "")]);
        assert_eq!(of_readyz(403, "{}")[0].state, State::Unknown);
        let long = of_readyz(500, &"[-]x failed\n".repeat(5000));
        assert_eq!((long.len(), long[0].message.chars().count()), (1, MESSAGE), "bounded");
    }

    #[test]
    fn a_lease_that_stands_still_is_held_by_nobody_who_works_whatever_the_clocks_say() {
        let clock: jiff::Timestamp = "2030-01-01T00:00:00Z".parse().unwrap();
        let lease =
            |at: &str| json!({ "spec": { "holderIdentity": "n", "leaseDurationSeconds": 15, "renewTime": at } });
        let (mut pulses, begun) = (Pulses::new(), Instant::now());
        let mut look = |at: &str, seconds: u64| {
            let now = begun + Duration::from_secs(seconds);
            of_lease(&mut pulses, "kube-scheduler", &lease(at), &nodes(&["n"]), now, clock).0
        };
        // An hour off: only that it moves says that it lives.
        assert_eq!(look("2030-01-01T01:00:00.5Z", 0), State::Unknown);
        assert_eq!(look("2030-01-01T01:00:10.5Z", 10), State::Healthy);
        assert_eq!(look("2030-01-01T01:00:10.5Z", 20), State::Healthy, "it holds for as long as it says");
        assert_eq!(look("2030-01-01T01:00:10.5Z", 26), State::Unhealthy);
        assert_eq!(look("2030-01-01T01:00:36.5Z", 36), State::Healthy);
        assert_eq!(look("", 46), State::Unhealthy);
        // As new as it should be: healthy at the first look.
        assert_eq!(look("2030-01-01T00:00:03.000000Z", 56), State::Healthy);
        for junk in [json!(null), json!({ "spec": 7 }), json!({ "spec": { "holderIdentity": "", "renewTime": "x" } })] {
            let (state, _) = of_lease(&mut pulses, "kube-scheduler", &junk, &nodes(&["n"]), begun, clock);
            assert_eq!(state, State::Unhealthy, "{junk}");
        }
    }

    /// What is said of a lease that `holder` has, at each of these seconds: when it was renewed, and which nodes there are.
    fn over_time(holder: &str, looks: &[(u64, &str, &[&str])]) -> Vec<State> {
        let (mut pulses, begun, clock) = (Pulses::new(), Instant::now(), "2030-01-01T00:00:00Z".parse().unwrap());
        let look = |&(second, at, names): &(u64, &str, &[&str])| {
            let lease = json!({ "spec": { "holderIdentity": holder, "renewTime": at } });
            let now = begun + Duration::from_secs(second);
            of_lease(&mut pulses, "kube-scheduler", &lease, &nodes(names), now, clock).0
        };
        looks.iter().map(look).collect()
    }

    #[test]
    fn a_lease_that_a_node_left_behind_is_no_component_that_fails_for_ever() {
        use State::{Healthy, Unhealthy, Unknown};
        let (old, new) = ("2029-01-01T00:00:00Z", "2029-01-01T00:00:10Z");
        // Its holder's node is gone: before anybody looked, or since.
        assert_eq!(over_time("n1_7f", &[(0, old, &["n2"]), (60, old, &["n2"])]), [Unknown, Unknown]);
        let since = over_time("n1_7f", &[(0, old, &["n1"]), (10, new, &["n1"]), (60, new, &["n1"]), (120, new, &[])]);
        assert_eq!(since, [Unknown, Healthy, Unhealthy, Unknown], "it counts for as long as its node is there");
        // The node is there and the scheduler is not, also where one of the two names has a domain.
        for (holder, node) in [("n1_7f", "n1"), ("N1_7f", "n1"), ("n1_7f", "n1.example"), ("n1.example_7f", "n1")] {
            assert_eq!(over_time(holder, &[(0, old, &[node]), (60, old, &[node])])[1], Unhealthy, "{holder} {node}");
        }
        // Its node was replaced by another one of the control plane, where none ever starts.
        let replaced = Node { control_plane: true, ..Node::default() };
        let replaced = BTreeMap::from([("n2".to_owned(), replaced)]);
        let lease = json!({ "spec": { "holderIdentity": "n1_7f", "renewTime": old } });
        let (mut pulses, begun, clock) = (Pulses::new(), Instant::now(), "2030-01-01T00:00:00Z".parse().unwrap());
        let states = [0, 60].map(|second| {
            let now = begun + Duration::from_secs(second);
            of_lease(&mut pulses, "kube-scheduler", &lease, &replaced, now, clock).0
        });
        assert_eq!(states, [Unknown, Unhealthy]);
        // A control plane on machines that are no nodes: what moved there and stopped has failed.
        assert_eq!(over_time("cp_7f", &[(0, old, &["n1"]), (10, new, &["n1"]), (60, new, &["n1"])])[2], Unhealthy);
    }
}
