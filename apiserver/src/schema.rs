//! JSON schemas of the kinds: what fields there are, for strict decoding and for clients that ask.

use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::{Map, Value, json};

/// A schema with every reference resolved in place.
#[derive(Clone, Debug)]
pub(crate) struct Schema(pub(crate) Value);

/// Deepest nesting of types that is followed; a recursive type is open below it.
const DEPTH: usize = 16;

impl Schema {
    pub(crate) fn of<T: JsonSchema>() -> Self {
        let mut root = SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<T>().to_value();
        let definitions = root.as_object_mut().and_then(|o| o.remove("$defs")).unwrap_or(json!({}));
        Self(resolve(&root, &definitions, 0))
    }

    /// Takes fields that the schema does not know out of `value` and names them (`spec.foo`, `spec.list[0].bar`).
    pub(crate) fn prune(&self, value: &mut Value, path: &str) -> Vec<String> {
        let mut unknown = Vec::new();
        prune(&self.0, value, path, &mut unknown);
        unknown
    }
}

fn resolve(schema: &Value, definitions: &Value, depth: usize) -> Value {
    let Value::Object(map) = schema else { return schema.clone() };
    if DEPTH < depth {
        return json!({});
    }
    if let Some(target) = map.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix("#/$defs/")) {
        let mut found = resolve(&definitions[target], definitions, depth + 1);
        if let (Some(to), Some(said)) = (found.as_object_mut(), map.get("description")) {
            to.insert("description".into(), said.clone());
        }
        return found;
    }
    let mut out = Map::new();
    for (key, value) in map {
        let kept = match (key.as_str(), value) {
            ("$schema" | "title", Value::String(_)) => continue,
            ("properties", Value::Object(all)) => {
                all.iter().map(|(k, v)| (k.clone(), resolve(v, definitions, depth + 1))).collect()
            }
            ("items" | "additionalProperties", v) => resolve(v, definitions, depth + 1),
            ("anyOf" | "oneOf" | "allOf", Value::Array(all)) => {
                all.iter().map(|v| resolve(v, definitions, depth + 1)).collect()
            }
            (_, v) => v.clone(),
        };
        out.insert(key.clone(), kept);
    }
    structural(out)
}

/// As Kubernetes writes schemas: one type, `nullable` beside it, choices of texts as `enum`.
fn structural(mut schema: Map<String, Value>) -> Value {
    if let Some(Value::Array(types)) = schema.get("type") {
        let null = types.iter().any(|t| t == "null");
        let mut rest = types.iter().filter(|t| *t != "null").cloned();
        if let (Some(one), None) = (rest.next(), rest.next()) {
            schema.insert("type".into(), one);
            if null {
                schema.insert("nullable".into(), true.into());
            }
        }
    }
    if let Some(Value::Array(values)) = schema.get_mut("enum") {
        values.retain(|v| !v.is_null());
    }
    if let Some(Value::Array(all)) = schema.get("anyOf")
        && let [one, null] = all.as_slice()
        && null["type"] == "null"
    {
        let mut inner = one.as_object().cloned().unwrap_or_default();
        schema.remove("anyOf");
        inner.extend(schema);
        inner.insert("nullable".into(), true.into());
        return inner.into();
    }
    // What schemars makes of an enum of unit variants with docs.
    if let Some(Value::Array(all)) = schema.get("oneOf")
        && all.iter().all(|v| v["const"].is_string() || v["enum"].is_array())
    {
        let one = |v: &Value| v["enum"].as_array().cloned().unwrap_or_else(|| vec![v["const"].clone()]);
        let values: Vec<Value> = all.iter().flat_map(one).collect();
        schema.remove("oneOf");
        schema.insert("type".into(), "string".into());
        schema.insert("enum".into(), values.into());
    }
    schema.into()
}

/// The schema of a whole object. `metadata` as in Kubernetes' own documents, so far as it is kept here.
pub(crate) fn whole(spec: &Schema, status: &Schema) -> Value {
    let map = |what: &str| {
        let description = format!("{what} (https://kubernetes.io/docs/concepts/overview/working-with-objects/).");
        json!({ "type": "object", "additionalProperties": { "type": "string" }, "description": description })
    };
    let text = |description: &str| json!({ "type": "string", "description": description });
    let time = |description: &str| json!({ "type": "string", "format": "date-time", "description": description });
    let owner = json!({
        "type": "object", "x-kubernetes-map-type": "atomic", "required": ["apiVersion", "kind", "name", "uid"],
        "properties": {
            "apiVersion": text("Group and version of the owner."), "kind": text("Kind of the owner."),
            "name": text("Name of the owner."), "uid": text("Uid of the owner."),
            "controller": { "type": "boolean", "description": "Whether it is the managing owner." },
            "blockOwnerDeletion": {
                "type": "boolean", "description": "Whether the owner's foreground deletion waits for this object.",
            },
        },
    });
    json!({
        "type": "object",
        "properties": {
            "apiVersion": text("Group and version of the object."),
            "kind": text("Kind of the object."),
            "metadata": {
                "type": "object", "description": "Name, labels, revision and the like.",
                "properties": {
                    "name": text("Unique name within the kind."),
                    "generateName": text("Prefix of a name that the server makes when there is none."),
                    "uid": text("Unique id of this object over all time."),
                    "resourceVersion": text("Opaque revision of the last change."),
                    "generation": { "type": "integer", "format": "int64", "description": "Counts changes of the spec." },
                    "creationTimestamp": time("When it was created."),
                    "deletionTimestamp": time("When its deletion was asked for."),
                    "deletionGracePeriodSeconds": { "type": "integer", "format": "int64" },
                    "labels": map("Labels, to select by"),
                    "annotations": map("Annotations, for tools"),
                    "finalizers": {
                        "type": "array", "items": { "type": "string" }, "x-kubernetes-list-type": "set",
                        "description": "Who must finish before the object goes.",
                    },
                    "ownerReferences": {
                        "type": "array", "items": owner, "x-kubernetes-list-type": "map",
                        "x-kubernetes-list-map-keys": ["uid"], "description": "Objects with which this one goes.",
                    },
                    "managedFields": {
                        "type": "array", "items": { "type": "object" }, "x-kubernetes-list-type": "atomic",
                        "description": "Who set which fields.",
                    },
                },
            },
            "spec": spec.0, "status": status.0,
        },
    })
}

/// The branches of a schema that may describe an object or array: itself, and those of its combinators.
pub(crate) fn branches<'a>(schema: &'a Value, into: &mut Vec<&'a Value>) {
    into.push(schema);
    for combinator in ["anyOf", "oneOf", "allOf"] {
        for branch in schema[combinator].as_array().into_iter().flatten() {
            branches(branch, into);
        }
    }
}

fn prune(schema: &Value, value: &mut Value, path: &str, unknown: &mut Vec<String>) {
    let mut all = Vec::new();
    branches(schema, &mut all);
    match value {
        Value::Object(map) => {
            let closed: Vec<_> = all.iter().filter_map(|b| b["properties"].as_object()).collect();
            let open = all.iter().find_map(|b| b.get("additionalProperties").filter(|v| **v != Value::Bool(false)));
            let empty_type = all.iter().any(|b| b["type"] == "object") && open.is_none();
            if closed.is_empty() && open.is_none() && !empty_type {
                return; // any value
            }
            map.retain(|key, inner| {
                let here = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                if let Some(next) = closed.iter().find_map(|p| p.get(key)).or(open) {
                    prune(next, inner, &here, unknown);
                    return true;
                }
                unknown.push(here);
                false
            });
        }
        Value::Array(items) => {
            let Some(next) = all.iter().find_map(|b| b.get("items")) else { return };
            for (i, inner) in items.iter_mut().enumerate() {
                prune(next, inner, &format!("{path}[{i}]"), unknown);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[derive(JsonSchema)]
    #[allow(dead_code)]
    struct Inner {
        a: u32,
    }

    #[derive(JsonSchema)]
    #[allow(dead_code)]
    struct Outer {
        inner: Option<Inner>,
        list: Vec<Inner>,
        map: BTreeMap<String, Inner>,
        free: Value,
    }

    #[test]
    fn unknown_fields_are_taken_out_and_named() {
        let mut value = json!({
            "inner": {"a": 1, "b": 2}, "list": [{"a": 1}, {"c": 1}], "map": {"any": {"d": 1}},
            "free": {"x": {"y": 1}}, "top": 1
        });
        let mut unknown = Schema::of::<Outer>().prune(&mut value, "spec");
        unknown.sort();
        assert_eq!(unknown, ["spec.inner.b", "spec.list[1].c", "spec.map.any.d", "spec.top"]);
        let kept = json!({"inner": {"a": 1}, "list": [{"a": 1}, {}], "map": {"any": {}}, "free": {"x": {"y": 1}}});
        assert_eq!(value, kept);
    }
}
