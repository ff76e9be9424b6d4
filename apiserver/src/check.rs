//! Defaults, types and rules: what every write of an object has to pass.

use crate::{ApiError, Cause, KindSpec, Limits, names, ops::name_of, patch};
use serde_json::{Value, json};

/// Fills defaults and checks. `old`: on updates.
pub(crate) fn object(
    kind: &KindSpec,
    object: &mut Value,
    old: Option<&Value>,
    limits: &Limits,
) -> Result<(), ApiError> {
    if patch::DEPTH < patch::depth(object) {
        return Err(patch::too_deep());
    }
    if object["spec"].is_null() {
        object["spec"] = json!({});
    }
    if let Some(default) = &kind.default {
        default(object);
    }
    let name = name_of(object).to_owned();
    let mut causes = Vec::new();
    if old.is_none()
        && let Err(rule) = (kind.name_rule)(&name)
    {
        causes.push(Cause::invalid("metadata.name", format!("\"{name}\": {rule}")));
    }
    metadata(object, old, limits, &mut causes);
    let parts =
        [("spec", &kind.spec_schema, kind.normalise_spec), ("status", &kind.status_schema, kind.normalise_status)];
    for (field, schema, normalise) in parts {
        let Some(value) = object.get_mut(field).filter(|v| !v.is_null()) else { continue };
        schema.fill(value);
        let wrong = schema.check(value, field);
        if !wrong.is_empty() {
            causes.extend(wrong);
            continue;
        }
        match normalise(value) {
            Ok(normal) => object[field] = normal,
            Err(why) => causes.push(Cause::invalid(field, why)),
        }
    }
    if causes.is_empty()
        && let Some(validate) = &kind.validate
    {
        causes.extend(validate(object, old));
    }
    if !causes.is_empty() {
        return Err(ApiError::invalid(kind.group, kind.kind, &name, &causes));
    }
    if limits.object < object.to_string().len() {
        return Err(patch::too_large(limits.object));
    }
    Ok(())
}

fn metadata(object: &Value, old: Option<&Value>, limits: &Limits, causes: &mut Vec<Cause>) {
    let Some(meta) = object.get("metadata") else { return };
    for field in ["labels", "annotations"] {
        let path = format!("metadata.{field}");
        let map = match meta.get(field) {
            None | Some(Value::Null) => continue,
            Some(Value::Object(map)) => map,
            Some(_) => {
                causes.push(Cause::invalid(path, "must be a map of strings"));
                continue;
            }
        };
        let mut size = 0;
        for (key, value) in map {
            if !names::qualified(key) {
                causes.push(Cause::invalid(&path, format!("\"{key}\": {}", names::QUALIFIED)));
            }
            match value.as_str() {
                Some(value) if field == "labels" && !names::label_value(value) => {
                    let breaks = names::label_value_breaks(value);
                    causes.extend(breaks.map(|rule| Cause::invalid(&path, format!("\"{value}\": {rule}"))));
                }
                Some(value) => size += key.len() + value.len(),
                None => causes.push(Cause::invalid(&path, format!("\"{key}\": must be a string"))),
            }
        }
        if limits.annotations < size {
            let message = format!("must have at most {} bytes", limits.annotations);
            causes.push(Cause::new("FieldValueTooLong", path, message));
        }
    }
    finalizers(meta, old, causes);
    if let Some(owners) = meta.get("ownerReferences").filter(|v| !v.is_null()) {
        for owner in owners.as_array().into_iter().flatten() {
            for field in ["apiVersion", "kind", "name", "uid"] {
                if owner[field].as_str().is_none_or(str::is_empty) {
                    let path = format!("metadata.ownerReferences.{field}");
                    causes.push(Cause::invalid(path, format!("\"\": {field} must not be empty")));
                }
            }
        }
        let controllers = owners.as_array().into_iter().flatten().filter(|o| o["controller"] == true);
        let names: Vec<&str> = controllers.filter_map(|o| o["name"].as_str()).collect();
        if let [first, second, ..] = names.as_slice() {
            let rule = "Only one reference can have Controller set to true";
            let message = format!("{rule}. Found \"true\" in references for {first} and {second}");
            causes.push(Cause::invalid("metadata.ownerReferences", message));
        }
        if !owners.is_array() {
            causes.push(Cause::invalid("metadata.ownerReferences", "must be a list"));
        }
    }
}

fn finalizers(meta: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    const PATH: &str = "metadata.finalizers";
    let Some(all) = meta.get("finalizers").filter(|v| !v.is_null()) else { return };
    let Some(all) = all.as_array() else {
        causes.push(Cause::invalid(PATH, "must be a list of qualified names"));
        return;
    };
    for finalizer in all {
        let known = ["orphan", "foregroundDeletion"].iter().any(|f| finalizer == f);
        if !known && !finalizer.as_str().is_some_and(names::qualified) {
            causes.push(Cause::invalid(PATH, format!("{finalizer}: {}", names::QUALIFIED)));
        }
    }
    // An object that goes may only lose what holds it.
    if let Some(old) = old.filter(|o| o["metadata"]["deletionTimestamp"].is_string()) {
        let before = old["metadata"]["finalizers"].as_array();
        let new: Vec<String> = all
            .iter()
            .filter(|f| !before.is_some_and(|b| b.contains(f)))
            .map(|f| format!("{:?}", f.as_str().unwrap_or_default()))
            .collect();
        if !new.is_empty() {
            let message = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                new.join(", ")
            );
            causes.push(Cause::forbidden(PATH, message));
        }
    }
}
