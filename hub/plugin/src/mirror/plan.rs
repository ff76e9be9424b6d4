//! What has to be done so that a cluster has what is wanted: a pure comparison.

use serde_json::Value;
use std::collections::BTreeMap;

/// One object of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Its kind.
    pub kind: &'static str,
    /// Empty: cluster-scoped.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.namespace.as_str() {
            "" => write!(f, "{} {}", self.kind, self.name),
            namespace => write!(f, "{} {namespace}/{}", self.kind, self.name),
        }
    }
}

/// In the place of an object: it must not be there. Unlike what is just not wanted, it is deleted whatever its kind.
pub const ABSENT: Value = Value::Null;
/// As a key's namespace, for what is [`unknown`]: whichever it is in.
pub const ANYWHERE: &str = "*";

/// In the place of an object: nobody knows whether it is wanted, and why not. What is there stays as it is, and this is told.
pub fn unknown(why: impl Into<String>) -> Value {
    Value::String(why.into())
}

/// As [`unknown`], in a key with [`ANYWHERE`], of those alone that have an annotation of this name which begins so: the
/// others are not wanted, for certain.
pub fn unknown_where((annotation, begins): (&str, &str), why: impl Into<String>) -> Value {
    Value::Array(vec![Value::String(why.into()), annotation.into(), begins.into()])
}

/// Why nobody knows whether this object is wanted.
pub(crate) fn why_unknown(object: &Value) -> Option<&String> {
    match object {
        Value::String(why) => Some(why),
        Value::Array(all) => match all.as_slice() {
            [Value::String(why), ..] => Some(why),
            _ => None,
        },
        _ => None,
    }
}

/// The key by which it is told that nobody knows whether what is there is wanted.
pub(crate) fn spared(wanted: &Objects, key: &Key, there: &Value) -> Option<Key> {
    let anywhere = Key { namespace: ANYWHERE.to_owned(), ..key.clone() };
    let may_be_wanted = match wanted.get(&anywhere)? {
        Value::Array(all) => match all.as_slice() {
            [_, Value::String(annotation), Value::String(begins)] => {
                let text = there["metadata"]["annotations"][annotation.as_str()].as_str();
                text.is_some_and(|text| text.starts_with(begins.as_str()))
            }
            _ => false,
        },
        object => why_unknown(object).is_some(),
    };
    (may_be_wanted && !wanted.contains_key(key)).then_some(anywhere)
}

/// Objects by key.
pub type Objects = BTreeMap<Key, Value>;

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Lay what is wanted over what is there. `drift`: it was as wanted before, and somebody changed it.
    Apply { key: Key, drift: bool },
    /// Nobody wants it any more.
    Delete(Key),
    /// It must not be there.
    Remove(Key),
}

impl Step {
    /// What it is about.
    pub(crate) const fn key(&self) -> &Key {
        match self {
            Self::Apply { key, .. } | Self::Delete(key) | Self::Remove(key) => key,
        }
    }
}

/// The steps from `actual` to `wanted`. `held`: what was as it is wanted now, the last time that it was looked at.
pub(crate) fn steps(wanted: &Objects, actual: &Objects, held: &Objects) -> Vec<Step> {
    let not_wanted = |(key, there): &(&Key, &Value)| !wanted.contains_key(key) && spared(wanted, key, there).is_none();
    let stale = actual.iter().filter(not_wanted).map(|(key, _)| Step::Delete(key.clone()));
    let unlike = |(key, object): &(&Key, &Value)| match actual.get(key) {
        _ if why_unknown(object).is_some() => false,
        Some(there) => **object == ABSENT || !covers(there, object),
        None => **object != ABSENT,
    };
    let apply = wanted.iter().filter(unlike).map(|(key, object)| match object {
        &ABSENT => Step::Remove(key.clone()),
        _ => Step::Apply { key: key.clone(), drift: held.get(key) == Some(object) },
    });
    // What is gone first: a name may be wanted again in another kind.
    stale.chain(apply).collect()
}

fn empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(all) => all.is_empty(),
        Value::Object(all) => all.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

/// Whether `there` is as `wanted` says, wherever it says something: what a server fills in besides is no difference.
pub(crate) fn covers(there: &Value, wanted: &Value) -> bool {
    match (there, wanted) {
        (Value::Object(there), Value::Object(wanted)) => wanted.iter().all(|(key, value)| match there.get(key) {
            Some(there) => covers(there, value),
            None => empty(value),
        }),
        (Value::Array(there), Value::Array(wanted)) => {
            there.len() == wanted.len() && there.iter().zip(wanted).all(|(there, wanted)| covers(there, wanted))
        }
        _ => there == wanted || (empty(there) && empty(wanted)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn key(name: &str) -> Key {
        Key { kind: "Role", namespace: "a".to_owned(), name: name.to_owned() }
    }
    fn objects(all: &[(&str, Value)]) -> Objects {
        all.iter().map(|(name, value)| (key(name), value.clone())).collect()
    }

    #[test]
    fn what_a_server_fills_in_is_no_difference() {
        let wanted = json!({ "rules": [{ "verbs": ["get"] }], "labels": { "a": "b" }, "subjects": [] });
        let there =
            json!({ "rules": [{ "verbs": ["get"], "apiGroups": [""] }], "labels": { "a": "b", "c": "d" }, "uid": "1" });
        assert!(covers(&there, &wanted));
        for changed in [
            json!({ "rules": [{ "verbs": ["get", "list"] }], "labels": { "a": "b" } }),
            json!({ "rules": [], "labels": { "a": "b" } }),
            json!({ "rules": [{ "verbs": ["get"] }, { "verbs": ["*"] }], "labels": { "a": "b" } }),
            json!({ "rules": [{ "verbs": ["get"] }], "labels": {} }),
            json!({ "rules": [{ "verbs": ["get"] }], "labels": { "a": "b" }, "subjects": [{ "name": "eve" }] }),
        ] {
            assert!(!covers(&changed, &wanted), "{changed}");
        }
    }

    #[test]
    fn drift_is_told_from_a_new_wish() {
        let wanted = objects(&[("r", json!({ "n": 1 }))]);
        let changed = objects(&[("r", json!({ "n": 2 }))]);
        assert_eq!(steps(&wanted, &changed, &wanted), [Step::Apply { key: key("r"), drift: true }]);
        assert_eq!(steps(&wanted, &objects(&[]), &wanted), [Step::Apply { key: key("r"), drift: true }]);
        assert_eq!(steps(&wanted, &changed, &changed), [Step::Apply { key: key("r"), drift: false }]);
        assert_eq!(steps(&wanted, &wanted, &objects(&[])), []);
        assert_eq!(steps(&objects(&[]), &changed, &objects(&[])), [Step::Delete(key("r"))]);
        let absent = objects(&[("r", ABSENT)]);
        assert_eq!(steps(&absent, &changed, &objects(&[])), [Step::Remove(key("r"))]);
        assert_eq!(steps(&absent, &objects(&[]), &objects(&[])), []);
    }

    #[test]
    fn what_may_be_wanted_is_neither_taken_away_nor_laid() {
        let there = objects(&[("r", json!({ "n": 1 })), ("s", json!({ "n": 1 }))]);
        let unknown = |namespace: &str| {
            let key = Key { namespace: namespace.to_owned(), ..key("r") };
            Objects::from([(key, unknown("nobody tells"))])
        };
        for namespace in ["a", ANYWHERE] {
            assert_eq!(steps(&unknown(namespace), &there, &objects(&[])), [Step::Delete(key("s"))], "{namespace}");
            assert_eq!(steps(&unknown(namespace), &objects(&[]), &objects(&[])), [], "{namespace}");
        }
        // What is known to be wanted in one namespace is put right there.
        let mut both = unknown(ANYWHERE);
        both.extend(objects(&[("r", json!({ "n": 2 }))]));
        let put = Step::Apply { key: key("r"), drift: false };
        assert_eq!(steps(&both, &there, &objects(&[])), [Step::Delete(key("s")), put]);
    }

    #[test]
    fn of_what_may_be_wanted_somewhere_that_alone_is_spared_which_is_annotated_so() {
        let annotated = |text: &str| json!({ "metadata": { "annotations": { "of": text } } });
        let at = |namespace: &str| Key { namespace: namespace.to_owned(), ..key("r") };
        let there = Objects::from([
            (at("a"), annotated("u/1")),
            (at("b"), annotated("v/1")),
            (at("c"), annotated("named/u/1")),
            (at("d"), json!({})),
        ]);
        let unsure = Objects::from([(at(ANYWHERE), unknown_where(("of", "u/"), "nobody tells"))]);
        let gone = ["b", "c", "d"].map(|namespace| Step::Delete(at(namespace)));
        assert_eq!(steps(&unsure, &there, &objects(&[])), gone);
        assert_eq!(why_unknown(&unsure[&at(ANYWHERE)]).map(String::as_str), Some("nobody tells"));
    }

    proptest! {
        /// Taking the steps leads to what is wanted, and then there is nothing left to do.
        #[test]
        fn steps_end(
            wanted in prop::collection::btree_map("[a-c]", 0u8..3, 0..4),
            actual in prop::collection::btree_map("[a-c]", 0u8..3, 0..4),
        ) {
            let all = |map: &BTreeMap<String, u8>| -> Objects { map.iter().map(|(k, v)| (key(k), json!({ "n": v }))).collect() };
            let (wanted, mut actual) = (all(&wanted), all(&actual));
            for step in steps(&wanted, &actual.clone(), &Objects::new()) {
                match step {
                    Step::Delete(key) | Step::Remove(key) => drop(actual.remove(&key)),
                    Step::Apply { key, .. } => drop(actual.insert(key.clone(), wanted[&key].clone())),
                }
            }
            prop_assert_eq!(&actual, &wanted);
            prop_assert_eq!(steps(&wanted, &actual, &actual), []);
        }
    }
}
