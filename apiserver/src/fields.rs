//! Sets of fields, as `metadata.managedFields` has them (`FieldsV1`).

use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Some fields of an object. Keys are FieldsV1's own: `f:name`, `k:{"name":"x"}`, `v:"x"`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Set {
    /// Whether this very field is in the set, whatever is below it.
    pub(crate) member: bool,
    pub(crate) below: BTreeMap<String, Set>,
}

impl Set {
    pub(crate) fn leaf() -> Self {
        Self { member: true, below: BTreeMap::new() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        !self.member && self.below.is_empty()
    }

    /// Reads FieldsV1. What is no set there is none here.
    pub(crate) fn from_json(value: &Value) -> Self {
        let Some(map) = value.as_object() else { return Self::default() };
        let read = |(key, value): (&String, &Value)| {
            let mut set = Self::from_json(value);
            if value.as_object().is_some_and(Map::is_empty) {
                set.member = true;
            }
            (key.clone(), set)
        };
        Self { member: map.contains_key("."), below: map.iter().filter(|(k, _)| *k != ".").map(read).collect() }
    }

    pub(crate) fn to_json(&self) -> Value {
        let mut map = Map::new();
        if self.member && !self.below.is_empty() {
            map.insert(".".into(), json!({}));
        }
        map.extend(self.below.iter().map(|(key, set)| (key.clone(), set.to_json())));
        map.into()
    }

    pub(crate) fn put(&mut self, key: String, set: Self) {
        if !set.is_empty() {
            self.below.insert(key, set);
        }
    }

    pub(crate) fn union(&mut self, other: &Self) {
        self.member |= other.member;
        for (key, set) in &other.below {
            self.below.entry(key.clone()).or_default().union(set);
        }
    }

    /// Takes out the members of `other`.
    pub(crate) fn subtract(&mut self, other: &Self) {
        self.member &= !other.member;
        for (key, set) in &other.below {
            if let Some(mine) = self.below.get_mut(key) {
                mine.subtract(set);
                if mine.is_empty() {
                    self.below.remove(key);
                }
            }
        }
    }

    pub(crate) fn intersection(&self, other: &Self) -> Self {
        let mut both = Self { member: self.member && other.member, below: BTreeMap::new() };
        for (key, set) in &self.below {
            if let Some(theirs) = other.below.get(key) {
                both.put(key.clone(), set.intersection(theirs));
            }
        }
        both
    }

    /// Every member as kube-apiserver writes paths: `.spec.list[name="x"].value`.
    pub(crate) fn paths(&self) -> Vec<String> {
        let mut out = Vec::new();
        self.collect("", &mut out);
        out
    }

    fn collect(&self, path: &str, out: &mut Vec<String>) {
        if self.member {
            out.push(path.to_owned());
        }
        for (key, set) in &self.below {
            set.collect(&format!("{path}{}", element(key)), out);
        }
    }
}

fn element(key: &str) -> String {
    match key.split_once(':') {
        Some(("f", name)) => format!(".{name}"),
        Some(("v", value)) => format!("[={value}]"),
        Some(("i", index)) => format!("[{index}]"),
        Some(("k", keys)) => {
            let keys: Value = serde_json::from_str(keys).unwrap_or_default();
            let pairs = keys.as_object().into_iter().flatten().map(|(k, v)| format!("{k}={v}"));
            format!("[{}]", pairs.collect::<Vec<_>>().join(","))
        }
        _ => format!(".{key}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_set() -> impl Strategy<Value = Set> {
        let leaf = Just(Set::leaf());
        leaf.prop_recursive(3, 24, 4, |inner| {
            (any::<bool>(), prop::collection::btree_map("f:[a-d]", inner, 1..4))
                .prop_map(|(member, below)| Set { member, below })
        })
        .prop_map(|set| Set { member: false, ..set })
    }

    proptest! {
        #[test]
        fn fields_v1_is_read_as_written(set in any_set()) {
            prop_assert_eq!(Set::from_json(&set.to_json()), set);
        }

        /// What is taken out and what both have make the whole again.
        #[test]
        fn difference_and_intersection_are_a_partition(a in any_set(), b in any_set()) {
            let mut left = a.clone();
            left.subtract(&b);
            prop_assert!(left.intersection(&b).is_empty());
            left.union(&a.intersection(&b));
            prop_assert_eq!(left, a);
        }
    }

    #[test]
    fn paths_read_like_kubernetes() {
        let json = json!({"f:spec": {"f:list": {"k:{\"name\":\"x\"}": {".": {}, "f:v": {}}, "v:\"y\"": {}}}});
        let paths = [".spec.list[name=\"x\"]", ".spec.list[name=\"x\"].v", ".spec.list[=\"y\"]"];
        assert_eq!(Set::from_json(&json).paths(), paths);
    }
}
