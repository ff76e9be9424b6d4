//! What is made of what a cluster tells: pure functions.

use crate::kinds::Warning;
use moorline_plugin::quantity;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Warnings that a status holds.
const WARNINGS: usize = 20;
/// Longest message of one, in letters.
const MESSAGE: usize = 200;

/// What counts of a node. Everything else of it is forgotten at once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Node {
    pub ready: bool,
    /// In thousandths.
    pub allocatable: BTreeMap<String, i128>,
    /// The same, with what the node keeps for itself.
    pub capacity: BTreeMap<String, i128>,
}

impl Node {
    pub fn of(object: &Value) -> Self {
        let conditions = object.pointer("/status/conditions").and_then(Value::as_array).into_iter().flatten();
        let ready = conditions.into_iter().any(|c| c["type"] == "Ready" && c["status"] == "True");
        let amounts = |of: &str| {
            let amount = |name: &str| quantity::parse(object.pointer(&format!("/status/{of}/{name}"))?.as_str()?);
            ["cpu", "memory", "pods"].into_iter().filter_map(|name| Some((name.to_owned(), amount(name)?))).collect()
        };
        Self { ready, allocatable: amounts("allocatable"), capacity: amounts("capacity") }
    }
}

/// What all nodes have together, as text.
pub(crate) fn sum<'a>(nodes: impl Iterator<Item = &'a BTreeMap<String, i128>>) -> BTreeMap<String, String> {
    let mut all: BTreeMap<&str, i128> = BTreeMap::new();
    for (name, amount) in nodes.flatten() {
        *all.entry(name).or_default() += amount;
    }
    all.into_iter().map(|(name, amount)| (name.to_owned(), quantity::write(amount))).collect()
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
        Warning {
            reason: reason.to_owned(),
            kind: kind.to_owned(),
            namespace: namespace.to_owned(),
            message: text(newest, "/message").chars().take(MESSAGE).collect(),
            objects: u32::try_from(objects.len()).unwrap_or(u32::MAX),
            last: time(newest).to_owned(),
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
        let all = [node("True", "1500m"), node("False", "2"), Node::of(&json!({}))];
        assert_eq!(all.iter().map(|node| node.ready).collect::<Vec<_>>(), [true, false, false]);
        let sum = sum(all.iter().map(|node| &node.allocatable));
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
        let long = event("x", &"y".repeat(9999), "2030-01-01T00:00:00Z", "Warning");
        assert_eq!(warnings([&long].into_iter())[0].message.len(), MESSAGE);
    }
}
