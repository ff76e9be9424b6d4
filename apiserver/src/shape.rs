//! Objects as trees of fields: what a list or map is made of, by its schema, after Kubernetes' structured merge.
//!
//! A list is one value unless its schema says `x-kubernetes-list-type: set` or `map`; a map is its entries unless it
//! says `x-kubernetes-map-type: atomic`.

use crate::{fields::Set, schema::branches};
use serde_json::{Map, Value};

/// The schema of a value of which nothing is known.
static ANY: Value = Value::Null;

enum Shape<'a> {
    /// One value, owned as a whole.
    Leaf,
    Fields(Vec<&'a Map<String, Value>>, &'a Value),
    /// A list of distinct values.
    Distinct,
    /// A list of maps that these fields tell apart.
    Keyed(Vec<&'a str>, &'a Value),
}

fn shape<'a>(schema: &'a Value, value: &Value) -> Shape<'a> {
    let mut all = Vec::new();
    branches(schema, &mut all);
    let said = |key: &str| all.iter().find_map(|b| b.get(key));
    match value {
        Value::Object(_) if said("x-kubernetes-map-type").is_some_and(|t| t == "atomic") => Shape::Leaf,
        Value::Object(_) => {
            let declared = all.iter().filter_map(|b| b["properties"].as_object()).collect();
            let open = all.iter().find_map(|b| b.get("additionalProperties").filter(|v| v.is_object()));
            Shape::Fields(declared, open.unwrap_or(&ANY))
        }
        Value::Array(_) => match said("x-kubernetes-list-type").and_then(Value::as_str) {
            Some("set") => Shape::Distinct,
            Some("map") => {
                let keys = said("x-kubernetes-list-map-keys").and_then(Value::as_array);
                let keys = keys.into_iter().flatten().filter_map(Value::as_str).collect();
                Shape::Keyed(keys, said("items").unwrap_or(&ANY))
            }
            _ => Shape::Leaf,
        },
        _ => Shape::Leaf,
    }
}

/// A field's schema, and whether it is declared by name.
fn field<'a>(declared: &[&'a Map<String, Value>], open: &'a Value, name: &str) -> (&'a Value, bool) {
    match declared.iter().find_map(|d| d.get(name)) {
        Some(schema) => (schema, true),
        None => (open, false),
    }
}

fn item_key(keys: &[&str], item: &Value) -> String {
    let named: Map<String, Value> = keys.iter().map(|k| ((*k).to_owned(), item[*k].clone())).collect();
    format!("k:{}", Value::Object(named))
}

/// The entries of a list under their keys; the schema of each.
fn items<'a, 'v>(shape: &Shape<'a>, value: &'v Value) -> Vec<(String, &'a Value, &'v Value)> {
    let all = value.as_array().into_iter().flatten();
    match shape {
        Shape::Distinct => all.map(|item| (format!("v:{item}"), &ANY, item)).collect(),
        Shape::Keyed(keys, schema) => all.map(|item| (item_key(keys, item), *schema, item)).collect(),
        Shape::Leaf | Shape::Fields(..) => Vec::new(),
    }
}

/// The fields that an applied configuration names.
pub(crate) fn named(schema: &Value, value: &Value) -> Set {
    let mut set = Set::default();
    let shape = shape(schema, value);
    match (&shape, value) {
        (Shape::Fields(declared, open), Value::Object(map)) => {
            for (name, inner) in map {
                let (schema, declared) = field(declared, open, name);
                let mut below = named(schema, inner);
                let empty = inner.is_null() || inner.as_object().is_some_and(Map::is_empty);
                below.member |= empty || !declared;
                set.put(format!("f:{name}"), below);
            }
        }
        (Shape::Distinct | Shape::Keyed(..), _) => {
            for (key, schema, item) in items(&shape, value) {
                let mut below = if matches!(shape, Shape::Distinct) { Set::default() } else { named(schema, item) };
                below.member = true;
                set.put(key, below);
            }
        }
        _ => set.member = true,
    }
    set
}

/// Every field of a value, and what holds it.
fn every(schema: &Value, value: &Value) -> Set {
    let mut set = Set::leaf();
    let shape = shape(schema, value);
    match (&shape, value) {
        (Shape::Fields(declared, open), Value::Object(map)) => {
            for (name, inner) in map {
                set.put(format!("f:{name}"), every(field(declared, open, name).0, inner));
            }
        }
        (Shape::Keyed(..), _) => {
            for (key, schema, item) in items(&shape, value) {
                set.put(key, every(schema, item));
            }
        }
        (Shape::Distinct, _) => {
            for (key, ..) in items(&shape, value) {
                set.put(key, Set::leaf());
            }
        }
        _ => {}
    }
    set
}

/// What is different between two values.
#[derive(Debug, Default)]
pub(crate) struct Difference {
    /// New, or of another value.
    pub(crate) changed: Set,
    /// No longer there.
    pub(crate) removed: Set,
}

pub(crate) fn compare(schema: &Value, old: Option<&Value>, new: Option<&Value>) -> Difference {
    let mut out = Difference::default();
    let (old, new) = match (old, new) {
        (None, None) => return out,
        (None, Some(new)) => return Difference { changed: every(schema, new), removed: Set::default() },
        (Some(old), None) => return Difference { changed: Set::default(), removed: every(schema, old) },
        (Some(old), Some(new)) if old == new => return out,
        (Some(old), Some(new)) => (old, new),
    };
    let mut below = |key: String, inner: Difference| {
        out.changed.put(key.clone(), inner.changed);
        out.removed.put(key, inner.removed);
    };
    let shape = shape(schema, new);
    match (&shape, old, new) {
        (Shape::Fields(declared, open), Value::Object(before), Value::Object(after)) => {
            let gone = before.keys().filter(|name| !after.contains_key(*name));
            for name in after.keys().chain(gone) {
                let schema = field(declared, open, name).0;
                below(format!("f:{name}"), compare(schema, before.get(name), after.get(name)));
            }
        }
        (Shape::Distinct | Shape::Keyed(..), Value::Array(_), Value::Array(_)) => {
            let (before, after) = (items(&shape, old), items(&shape, new));
            for (key, schema, item) in &after {
                let was = before.iter().find(|(k, ..)| k == key).map(|(.., item)| *item);
                below(key.clone(), compare(schema, was, Some(item)));
            }
            for (key, schema, item) in before {
                if !after.iter().any(|(k, ..)| *k == key) {
                    below(key, compare(schema, Some(item), None));
                }
            }
        }
        _ => out.changed.member = true,
    }
    out
}

/// `config` laid over `live`: its fields win, what it does not name stays.
pub(crate) fn merge(schema: &Value, live: &Value, config: &Value) -> Value {
    let shape = shape(schema, config);
    match (&shape, live, config) {
        (Shape::Fields(declared, open), Value::Object(before), Value::Object(after)) => {
            let mut out = before.clone();
            for (name, value) in after {
                let merged = match before.get(name) {
                    Some(was) => merge(field(declared, open, name).0, was, value),
                    None => value.clone(),
                };
                out.insert(name.clone(), merged);
            }
            out.into()
        }
        (Shape::Distinct | Shape::Keyed(..), Value::Array(_), Value::Array(_)) => {
            let (before, after) = (items(&shape, live), items(&shape, config));
            let laid = before.iter().map(|(key, schema, was)| match after.iter().find(|(k, ..)| k == key) {
                Some((.., item)) if matches!(shape, Shape::Keyed(..)) => merge(schema, was, item),
                _ => (*was).clone(),
            });
            let added = after.iter().filter(|(key, ..)| !before.iter().any(|(k, ..)| k == key));
            laid.chain(added.map(|(.., item)| (*item).clone())).collect()
        }
        _ => config.clone(),
    }
}

/// Takes out of `value` what is in `gone` and in no other's `kept`.
pub(crate) fn prune(schema: &Value, value: &mut Value, gone: &Set, kept: &Set) {
    let none = Set::default();
    let shape = shape(schema, value);
    match (&shape, &mut *value) {
        (Shape::Fields(declared, open), Value::Object(map)) => {
            for (key, gone) in &gone.below {
                let Some(name) = key.strip_prefix("f:") else { continue };
                let Some(inner) = map.get_mut(name) else { continue };
                let kept = kept.below.get(key);
                if !inner.as_object().is_some_and(Map::is_empty) {
                    prune(field(declared, open, name).0, inner, gone, kept.unwrap_or(&none));
                }
                let held = match inner {
                    Value::Object(map) => !map.is_empty(),
                    // A list that lost its last entry, or one value.
                    Value::Array(all) => !all.is_empty() && gone.below.keys().any(|k| !k.is_empty()),
                    _ => false,
                };
                if kept.is_none() && !held {
                    map.remove(name);
                }
            }
        }
        (Shape::Distinct | Shape::Keyed(..), Value::Array(all)) => {
            let keys: Vec<&str> = if let Shape::Keyed(keys, _) = &shape { keys.clone() } else { Vec::new() };
            all.retain_mut(|item| {
                let (key, schema) = match &shape {
                    Shape::Keyed(_, schema) => (item_key(&keys, item), *schema),
                    _ => (format!("v:{item}"), &ANY),
                };
                let Some(gone) = gone.below.get(&key) else { return true };
                let Some(kept) = kept.below.get(&key) else { return false };
                // What tells an entry that stays from the others stays.
                let mut gone = gone.clone();
                gone.below.retain(|k, _| k.strip_prefix("f:").is_none_or(|name| !keys.contains(&name)));
                prune(schema, item, &gone, kept);
                true
            });
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn schema() -> Value {
        json!({"properties": {
            "a": {"type": "integer"},
            "b": {"type": "object", "properties": {"c": {}, "d": {}}},
            "map": {"type": "object", "additionalProperties": {"type": "string"}},
            "set": {"type": "array", "x-kubernetes-list-type": "set"},
            "keyed": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                "items": {"properties": {"name": {}, "v": {}}}},
            "plain": {"type": "array"},
        }})
    }

    fn any_object() -> impl Strategy<Value = Value> {
        let map = prop::collection::btree_map("[xyz]", "[pq]", 0..3);
        let set = prop::collection::btree_set("[xyz]", 0..3);
        let keyed = prop::collection::btree_map("[xyz]", 0..3, 0..3);
        (any::<[bool; 6]>(), 0..3, map, set, keyed).prop_map(|(has, number, map, set, keyed)| {
            let keyed: Vec<Value> = keyed.into_iter().map(|(name, v)| json!({"name": name, "v": v})).collect();
            let all = [
                ("a", json!(number)),
                ("b", json!({"c": number})),
                ("map", json!(map)),
                ("set", json!(set)),
                ("keyed", json!(keyed)),
                ("plain", json!([number])),
            ];
            all.into_iter().zip(has).filter(|(_, has)| *has).map(|((k, v), _)| (k.to_owned(), v)).collect()
        })
    }

    proptest! {
        /// What was merged has every field of the configuration as it says, and merging again changes nothing.
        #[test]
        fn a_merge_holds_the_configuration(live in any_object(), config in any_object()) {
            let merged = merge(&schema(), &live, &config);
            prop_assert_eq!(&merge(&schema(), &merged, &config), &merged);
            prop_assert!(compare(&schema(), Some(&live), Some(&merged)).removed.is_empty());
        }

        /// Nothing is different exactly if nothing is.
        #[test]
        fn no_difference_means_equal(a in any_object(), b in any_object()) {
            let found = compare(&schema(), Some(&a), Some(&b));
            prop_assert_eq!(found.changed.is_empty() && found.removed.is_empty(), a == b);
        }

        /// An applied configuration that is withdrawn leaves what was there before, where it added and changed nothing else.
        #[test]
        fn a_withdrawn_configuration_leaves_nothing(config in any_object()) {
            let mut value = merge(&schema(), &json!({}), &config);
            prune(&schema(), &mut value, &named(&schema(), &config), &Set::default());
            let left = value.as_object().unwrap();
            prop_assert!(left.values().all(|v| v.as_array().is_some_and(Vec::is_empty)), "{value}");
        }
    }
}
