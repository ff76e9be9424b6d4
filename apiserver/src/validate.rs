//! Values against schemas: defaults, and every violation with its own field, as kube-apiserver words it.

use crate::{
    Cause,
    schema::{Schema, branches},
};
use serde_json::{Map, Value};

impl Schema {
    /// Fills what is left out and has a default.
    pub(crate) fn fill(&self, value: &mut Value) {
        fill(&self.0, value);
    }

    /// Everything that is wrong with a value; `path`: where it stands.
    pub(crate) fn check(&self, value: &Value, path: &str) -> Vec<Cause> {
        let mut causes = Vec::new();
        check(&self.0, value, path, &mut causes);
        causes
    }
}

fn fill(schema: &Value, value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
                let nullable = inner["nullable"] == true;
                if map.get(name).is_some_and(|v| v.is_null() && !nullable) {
                    map.remove(name);
                }
                if !map.contains_key(name)
                    && let Some(default) = inner.get("default").filter(|d| !d.is_null())
                {
                    map.insert(name.clone(), default.clone());
                }
                if let Some(found) = map.get_mut(name) {
                    fill(inner, found);
                }
            }
            if let Some(rest) = schema.get("additionalProperties").filter(|v| v.is_object()) {
                map.values_mut().for_each(|inner| fill(rest, inner));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| fill(&schema["items"], item)),
        _ => {}
    }
}

/// The name of a value's type in JSON schema.
fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn check(schema: &Value, value: &Value, path: &str, causes: &mut Vec<Cause>) {
    if value.is_null() && (schema["nullable"] == true || schema.get("type").is_none()) {
        return;
    }
    let found = type_of(value);
    if let Some(wanted) = schema["type"].as_str() {
        let fits = wanted == found || (wanted == "number" && found == "integer");
        if !fits {
            let message = format!("\"{found}\": {path} in body must be of type {wanted}: \"{found}\"");
            // kube-apiserver's own name of the reason.
            causes.push(Cause::new("FieldValueTypeInvalid", path, message));
            return;
        }
    }
    if let Some(allowed) = schema["enum"].as_array()
        && !allowed.contains(value)
    {
        let all: Vec<String> = allowed.iter().map(Value::to_string).collect();
        causes.push(Cause::new(
            "FieldValueNotSupported",
            path,
            format!("{value}: supported values: {}", all.join(", ")),
        ));
    }
    match value {
        Value::Object(map) => fields(schema, map, path, causes),
        Value::Array(items) => list(schema, items, path, causes),
        Value::Number(_) => number(schema, value, path, causes),
        Value::String(text) => {
            length(schema, text.chars().count(), ("minLength", "maxLength"), "chars long", path, causes)
        }
        Value::Null | Value::Bool(_) => {}
    }
}

fn fields(schema: &Value, map: &Map<String, Value>, path: &str, causes: &mut Vec<Cause>) {
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if !map.contains_key(name) {
            causes.push(Cause::required(format!("{path}.{name}"), ""));
        }
    }
    let rest = schema.get("additionalProperties").filter(|v| v.is_object());
    for (name, inner) in map {
        if let Some(schema) = schema["properties"].get(name).or(rest) {
            check(schema, inner, &format!("{path}.{name}"), causes);
        }
    }
}

fn list(schema: &Value, items: &[Value], path: &str, causes: &mut Vec<Cause>) {
    length(schema, items.len(), ("minItems", "maxItems"), "items", path, causes);
    let mut all = Vec::new();
    branches(schema, &mut all);
    let kind = all.iter().find_map(|b| b["x-kubernetes-list-type"].as_str());
    let keys: Vec<&str> =
        schema["x-kubernetes-list-map-keys"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let mut seen = std::collections::HashSet::new();
    for (i, item) in items.iter().enumerate() {
        let here = format!("{path}[{i}]");
        let identity = match kind {
            Some("set") => Some(item.clone()),
            Some("map") => Some(keys.iter().map(|k| ((*k).to_owned(), item[*k].clone())).collect::<Value>()),
            _ => None,
        };
        if let Some(identity) = identity
            && !seen.insert(identity.to_string())
        {
            causes.push(Cause::new("FieldValueDuplicate", &here, identity.to_string()));
        }
        check(&schema["items"], item, &here, causes);
    }
}

fn number(schema: &Value, value: &Value, path: &str, causes: &mut Vec<Cause>) {
    let Some(found) = value.as_f64() else { return };
    let mut says = |what: &str, bound: &Value| {
        let message = format!("{value}: {path} in body should be {what} than or equal to {}", plain(bound));
        causes.push(Cause::invalid(path, message));
    };
    if schema["minimum"].as_f64().is_some_and(|least| found < least) {
        says("greater", &schema["minimum"]);
    }
    if schema["maximum"].as_f64().is_some_and(|most| most < found) {
        says("less", &schema["maximum"]);
    }
}

/// A bound without a fraction that says nothing.
fn plain(bound: &Value) -> String {
    let text = bound.to_string();
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

fn length(schema: &Value, found: usize, (least, most): (&str, &str), unit: &str, path: &str, causes: &mut Vec<Cause>) {
    let bound = |key: &str| schema[key].as_u64().and_then(|n| usize::try_from(n).ok());
    if let Some(least) = bound(least).filter(|n| found < *n) {
        causes.push(Cause::invalid(path, format!("{path} in body should be at least {least} {unit}")));
    }
    if let Some(most) = bound(most).filter(|n| *n < found) {
        causes.push(Cause::new("FieldValueTooLong", path, format!("may not be longer than {most}")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemars::JsonSchema;
    use serde_json::json;

    #[derive(JsonSchema)]
    #[allow(dead_code)]
    #[serde(rename_all = "lowercase")]
    enum Colour {
        Red,
        Green,
    }

    #[derive(JsonSchema)]
    #[allow(dead_code)]
    struct Inner {
        name: String,
        colour: Option<Colour>,
    }

    #[derive(JsonSchema)]
    #[allow(dead_code)]
    struct Outer {
        count: u8,
        #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
        list: Vec<Inner>,
        #[serde(default)]
        text: String,
        maybe: Option<u32>,
    }

    #[test]
    fn every_violation_names_its_field() {
        let schema = Schema::of::<Outer>();
        let good = json!({"count": 255, "list": [{"name": "a", "colour": null}, {"name": "b"}], "maybe": null});
        assert_eq!(schema.check(&good, "spec"), []);
        let bad = json!({"count": 256, "list": [{"name": "a", "colour": "blue"}, {"name": "a"}, {}], "text": 1});
        let found: Vec<(&str, String)> = schema.check(&bad, "spec").into_iter().map(|c| (c.reason, c.field)).collect();
        let wanted = [
            ("FieldValueInvalid", "spec.count"),
            ("FieldValueNotSupported", "spec.list[0].colour"),
            ("FieldValueDuplicate", "spec.list[1]"),
            ("FieldValueRequired", "spec.list[2].name"),
            ("FieldValueTypeInvalid", "spec.text"),
        ];
        assert_eq!(found, wanted.map(|(reason, field)| (reason, field.to_owned())));
    }

    #[test]
    fn defaults_fill_what_is_left_out() {
        let mut value = json!({"count": 1, "list": []});
        Schema::of::<Outer>().fill(&mut value);
        assert_eq!(value, json!({"count": 1, "list": [], "text": ""}));
    }
}
