//! What is made of what a cluster tells: pure functions.

use crate::kinds::{ClusterHealthStatus, Usage, Warning};
use moorline_plugin::quantity;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Warnings that a status holds.
const WARNINGS: usize = 20;
/// Longest message of one, and longest of its other words, in letters.
const MESSAGE: usize = 200;
const WORD: usize = 128;
/// Usage is written anew when it has changed by this part of what the nodes have: it moves all the time.
const STEP: i128 = 20;

/// What a node has for a label if the control plane runs on it.
const CONTROL_PLANE: &str = "node-role.kubernetes.io/control-plane";

/// Largest amount of a node that is believed, in thousandths: no sum of these is too large for its type.
const LARGEST: i128 = 1 << 80;

/// What a node says that it has or uses of something, in thousandths.
pub(crate) fn amount(text: &str) -> Option<i128> {
    quantity::parse(text).filter(|amount| *amount <= LARGEST)
}

/// Amounts by name, in thousandths.
pub(crate) type Amounts = BTreeMap<String, i128>;

/// What counts of a node. Everything else of it is forgotten at once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Node {
    pub ready: bool,
    /// It is one of those that the control plane runs on.
    pub control_plane: bool,
    pub allocatable: Amounts,
    /// The same, with what the node keeps for itself.
    pub capacity: Amounts,
}

impl Node {
    pub fn of(object: &Value) -> Self {
        let conditions = object.pointer("/status/conditions").and_then(Value::as_array).into_iter().flatten();
        let ready = conditions.into_iter().any(|c| c["type"] == "Ready" && c["status"] == "True");
        let amounts = |of: &str| {
            let said = |name: &str| amount(object.pointer(&format!("/status/{of}/{name}"))?.as_str()?);
            ["cpu", "memory", "pods"].into_iter().filter_map(|name| Some((name.to_owned(), said(name)?))).collect()
        };
        let control_plane =
            object.pointer("/metadata/labels").is_some_and(|labels| labels.get(CONTROL_PLANE).is_some());
        Self { ready, control_plane, allocatable: amounts("allocatable"), capacity: amounts("capacity") }
    }
}

/// What all nodes have together.
pub(crate) fn sum<'a>(nodes: impl Iterator<Item = &'a Amounts>) -> Amounts {
    let mut all = Amounts::new();
    nodes.for_each(|amounts| add(&mut all, amounts, 1));
    all
}

fn add(all: &mut Amounts, more: &Amounts, sign: i128) {
    for (name, amount) in more {
        *all.entry(name.clone()).or_default() += sign * amount;
    }
}

/// Amounts as Kubernetes writes them.
pub(crate) fn texts(amounts: &Amounts) -> BTreeMap<String, String> {
    amounts.iter().map(|(name, amount)| (name.clone(), quantity::write(*amount))).collect()
}

/// What a cluster, or several, come to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Numbers {
    pub clusters: u64,
    pub clusters_ready: u64,
    /// Clusters whose usage is known.
    pub measured: u64,
    pub nodes: u64,
    pub nodes_ready: u64,
    pub pods: u64,
    pub pods_in_trouble: u64,
    pub components_unhealthy: u64,
    pub capacity: Amounts,
    pub allocatable: Amounts,
    pub used: Amounts,
    /// Of `allocatable`, what is of clusters whose usage is known.
    pub measurable: Amounts,
}

impl Numbers {
    /// One cluster's.
    pub fn of(status: &ClusterHealthStatus, nodes: &BTreeMap<String, Node>, used: &Amounts) -> Self {
        let allocatable = sum(nodes.values().map(|node| &node.allocatable));
        let measured = status.usage == Usage::Measured;
        Self {
            clusters: 1,
            clusters_ready: u64::from(status.nodes > 0 && status.nodes == status.nodes_ready),
            measured: u64::from(measured),
            nodes: status.nodes.into(),
            nodes_ready: status.nodes_ready.into(),
            pods: status.pods,
            pods_in_trouble: status.pods_in_trouble.into(),
            components_unhealthy: status.components_unhealthy.into(),
            capacity: sum(nodes.values().map(|node| &node.capacity)),
            measurable: if measured { allocatable.clone() } else { Amounts::new() },
            allocatable,
            used: used.clone(),
        }
    }

    fn counts(&mut self) -> [&mut u64; 8] {
        [
            &mut self.clusters,
            &mut self.clusters_ready,
            &mut self.measured,
            &mut self.nodes,
            &mut self.nodes_ready,
            &mut self.pods,
            &mut self.pods_in_trouble,
            &mut self.components_unhealthy,
        ]
    }

    fn amounts(&mut self) -> [&mut Amounts; 4] {
        [&mut self.capacity, &mut self.allocatable, &mut self.used, &mut self.measurable]
    }

    /// Adds a cluster's.
    pub fn add(&mut self, other: &Self) {
        let mut other = other.clone();
        self.counts().into_iter().zip(other.counts()).for_each(|(sum, n)| *sum = sum.wrapping_add(*n));
        self.amounts().into_iter().zip(other.amounts()).for_each(|(sum, more)| add(sum, more, 1));
    }

    /// Takes off what was added. What a hostile cluster says may go round: it comes back the same way.
    pub fn subtract(&mut self, other: &Self) {
        let mut other = other.clone();
        self.counts().into_iter().zip(other.counts()).for_each(|(sum, n)| *sum = sum.wrapping_sub(*n));
        for (sum, less) in self.amounts().into_iter().zip(other.amounts()) {
            add(sum, less, -1);
            sum.retain(|_, amount| *amount != 0);
        }
    }
}

/// What is written of usage: what stands there already, as long as it is about right.
pub(crate) fn steady(
    before: &BTreeMap<String, String>,
    used: &Amounts,
    allocatable: &Amounts,
) -> BTreeMap<String, String> {
    let near = |(name, amount): (&String, &i128)| {
        let was = before.get(name).and_then(|text| quantity::parse(text))?;
        let whole = allocatable.get(name).copied().unwrap_or(0);
        ((was - amount).abs() * STEP < whole).then_some(())
    };
    let all_near = before.len() == used.len() && used.iter().all(|one| near(one).is_some());
    if all_near { before.clone() } else { texts(used) }
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// When an event was last seen, whichever of its fields says so.
fn time(event: &Value) -> &str {
    let fields = ["/series/lastObservedTime", "/lastTimestamp", "/eventTime", "/metadata/creationTimestamp"];
    fields.into_iter().map(|at| text(event, at)).find(|time| !time.is_empty()).unwrap_or_default()
}

/// Warnings by cause, the newest first: a thousand pods that fail in one way are one line.
pub(crate) fn warnings<'a>(events: impl Iterator<Item = &'a Value>) -> Vec<Warning> {
    let mut all: BTreeMap<(&str, &str, &str), (BTreeSet<&str>, &Value)> = BTreeMap::new();
    for event in events.filter(|event| text(event, "/type") == "Warning") {
        let about = text(event, "/involvedObject/namespace");
        let cause = (text(event, "/reason"), text(event, "/involvedObject/kind"), about);
        let (objects, newest) = all.entry(cause).or_insert_with(|| (BTreeSet::new(), event));
        objects.insert(text(event, "/involvedObject/name"));
        if time(newest) < time(event) {
            *newest = event;
        }
    }
    let made = |((reason, kind, namespace), (objects, newest)): (_, (BTreeSet<&str>, &Value))| {
        let (reason, kind, namespace): (&str, &str, &str) = (reason, kind, namespace);
        let word = |text: &str| text.chars().take(WORD).collect();
        Warning {
            reason: word(reason),
            kind: word(kind),
            namespace: word(namespace),
            message: text(newest, "/message").chars().take(MESSAGE).collect(),
            objects: u32::try_from(objects.len()).unwrap_or(u32::MAX),
            last: word(time(newest)),
        }
    };
    let mut all: Vec<Warning> = all.into_iter().map(made).collect();
    all.sort_by(|a, b| b.last.cmp(&a.last));
    all.truncate(WARNINGS);
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nodes_are_summed_up() {
        let node = |ready: &str, cpu: &str| {
            Node::of(&json!({ "status": {
                "conditions": [{ "type": "MemoryPressure", "status": "True" }, { "type": "Ready", "status": ready }],
                "allocatable": { "cpu": cpu, "memory": "1Gi", "pods": "110", "x": "1" } } }))
        };
        let labels = json!({ "node-role.kubernetes.io/control-plane": "" });
        assert!(Node::of(&json!({ "metadata": { "labels": labels } })).control_plane);
        let all = [node("True", "1500m"), node("False", "2"), Node::of(&json!({}))];
        assert!(!all.iter().any(|node| node.control_plane));
        assert_eq!(all.iter().map(|node| node.ready).collect::<Vec<_>>(), [true, false, false]);
        let sum = texts(&sum(all.iter().map(|node| &node.allocatable)));
        assert_eq!((sum["cpu"].as_str(), sum["memory"].as_str(), sum["pods"].as_str()), ("3500m", "2147483648", "220"));
        assert_eq!(sum.len(), 3);
    }

    #[test]
    fn many_events_of_one_cause_are_one_warning() {
        let event = |reason: &str, name: &str, at: &str, kind: &str| {
            json!({ "type": kind, "reason": reason, "message": name, "lastTimestamp": at,
                "involvedObject": { "kind": "Pod", "namespace": "a", "name": name } })
        };
        let mut all: Vec<Value> =
            (0..500).map(|n| event("BackOff", &format!("p{n}"), "2030-01-01T00:00:00Z", "Warning")).collect();
        all.push(event("BackOff", "p7", "2030-01-01T00:00:09Z", "Warning"));
        all.push(event("Pulled", "p7", "2031-01-01T00:00:00Z", "Normal"));
        all.push(event("Other", "p7", "2030-06-01T00:00:00Z", "Warning"));
        let seen = warnings(all.iter());
        assert_eq!(
            seen.iter().map(|w| (w.reason.as_str(), w.objects)).collect::<Vec<_>>(),
            [("Other", 1), ("BackOff", 500)]
        );
        assert_eq!((seen[1].message.as_str(), seen[1].last.as_str()), ("p7", "2030-01-01T00:00:09Z"));
        let many: Vec<Value> =
            (0..100).map(|n| event(&format!("r{n}"), "p", "2030-01-01T00:00:00Z", "Warning")).collect();
        assert_eq!(warnings(many.iter()).len(), WARNINGS, "bounded");
        let long = event(&"x".repeat(9999), &"y".repeat(9999), "2030-01-01T00:00:00Z", "Warning");
        let long = &warnings([&long].into_iter())[0];
        assert_eq!((long.message.len(), long.reason.len()), (MESSAGE, WORD));
    }

    #[test]
    fn usage_that_hardly_moves_is_not_written_anew() {
        let amounts = |cpu: i128| Amounts::from([("cpu".to_owned(), cpu)]);
        let (before, whole) = (texts(&amounts(1000)), amounts(10_000));
        assert_eq!(steady(&before, &amounts(1499), &whole), before);
        assert_eq!(steady(&before, &amounts(1500), &whole)["cpu"], "1500m");
        assert_eq!(steady(&before, &amounts(499), &whole)["cpu"], "499m");
        assert_eq!(steady(&before, &Amounts::new(), &whole), BTreeMap::new(), "nobody measures it any more");
        assert_eq!(steady(&BTreeMap::new(), &amounts(7), &whole)["cpu"], "7m");
        assert_eq!(steady(&before, &amounts(1001), &Amounts::new())["cpu"], "1001m");
    }
}
