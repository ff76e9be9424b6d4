//! What a client sent, in the shape of its kind: known fields only.

use crate::{ApiError, Cause, KindSpec, ops::Unknown};
use serde_json::{Map, Value, json};

const META_KNOWN: [&str; 16] = [
    "name",
    "generateName",
    "namespace",
    "labels",
    "annotations",
    "finalizers",
    "ownerReferences",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "managedFields",
    "selfLink",
    "clusterName",
];

/// Takes what a client sent apart. The warnings name what was left out.
pub(crate) fn object(kind: &KindSpec, incoming: Value, unknown: Unknown) -> Result<(Value, Vec<String>), ApiError> {
    let Value::Object(mut fields) = incoming else {
        return Err(ApiError::bad_request("the object must be a JSON object"));
    };
    // What is left out is what the path says, as with Kubernetes' own kinds.
    let said = |fields: &mut Map<String, Value>, field: &str, wanted: &str| match fields.remove(field) {
        None => None,
        Some(Value::String(given)) if given == wanted => None,
        Some(Value::String(given)) => Some(given),
        Some(other) => Some(other.to_string()),
    };
    let version = kind.api_version();
    if let Some(given) = said(&mut fields, "apiVersion", &version) {
        return Err(ApiError::bad_request(format!(
            "the API version in the data ({given}) does not match the expected API version ({version})"
        )));
    }
    if let Some(given) = said(&mut fields, "kind", kind.kind) {
        let cause = Cause::invalid("kind", format!("{given:?}: must be {}", kind.kind));
        let name = fields.get("metadata").and_then(|m| m["name"].as_str()).unwrap_or_default();
        return Err(ApiError::invalid(kind.group, &given, name, &[cause]));
    }
    let Value::Object(mut meta) = fields.remove("metadata").unwrap_or_else(|| json!({})) else {
        return Err(ApiError::bad_request("metadata must be an object"));
    };
    if let Some(why) = unreadable(&meta) {
        return Err(ApiError::bad_request(format!("the object cannot be read: metadata.{why}")));
    }
    let mut strangers = Vec::new();
    let (mut spec, mut status) = (fields.remove("spec"), fields.remove("status"));
    strangers.extend(fields.keys().cloned());
    meta.retain(|key, _| {
        let known = META_KNOWN.contains(&key.as_str());
        if !known {
            strangers.push(format!("metadata.{key}"));
        }
        known
    });
    if let Some(spec) = &mut spec {
        strangers.extend(kind.spec_schema.prune(spec, "spec"));
    }
    if let Some(status) = &mut status {
        strangers.extend(kind.status_schema.prune(status, "status"));
    }
    strangers.sort();
    let mut warnings = Vec::new();
    match unknown {
        Unknown::Refuse if !strangers.is_empty() => {
            let list: Vec<String> = strangers.iter().map(|f| format!("unknown field \"{f}\"")).collect();
            return Err(ApiError::bad_request(format!("strict decoding error: {}", list.join(", "))));
        }
        Unknown::Warn => warnings.extend(strangers.iter().map(|f| format!("unknown field \"{f}\""))),
        _ => {}
    }
    let mut object = json!({ "apiVersion": kind.api_version(), "kind": kind.kind, "metadata": meta });
    if let Some(spec) = spec {
        object["spec"] = spec;
    }
    if let Some(status) = status {
        object["status"] = status;
    }
    Ok((object, warnings))
}

/// What is of a type that it cannot have: kube-apiserver does not even read such an object. What a patch makes of one is
/// another matter, see `check`.
fn unreadable(meta: &Map<String, Value>) -> Option<String> {
    let there = |field: &str| meta.get(field).filter(|value| !value.is_null());
    let mut names = ["name", "generateName"].into_iter();
    if let Some(name) = names.find(|name| there(name).is_some_and(|value| !value.is_string())) {
        return Some(format!("{name} must be a string"));
    }
    let texts = |map: &Map<String, Value>| map.values().all(Value::is_string);
    let mut maps = ["labels", "annotations"].into_iter();
    let map = maps.find(|field| there(field).is_some_and(|value| !value.as_object().is_some_and(texts)));
    map.map(|field| format!("{field} must be a map of strings"))
}
