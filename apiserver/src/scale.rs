//! The scale subresource: how many of a thing there are to be, for `kubectl scale` and autoscalers.

use crate::{ApiError, KindSpec, ops::text};
use serde_json::{Value, json};

/// Where a kind keeps its numbers; JSON pointers such as `/spec/replicas`.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    /// How many are wanted.
    pub spec: &'static str,
    /// How many there are.
    pub status: &'static str,
    /// A label selector, as text, for what is counted.
    pub selector: Option<&'static str>,
}

/// The `Scale` of an object.
pub(crate) fn of(kind: &KindSpec, object: &Value) -> Value {
    let number = |pointer: Option<&str>| pointer.and_then(|p| object.pointer(p)).and_then(Value::as_i64).unwrap_or(0);
    let meta = &object["metadata"];
    let mut scale = json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1",
        "metadata": {
            "name": meta["name"], "uid": meta["uid"], "resourceVersion": meta["resourceVersion"],
            "creationTimestamp": meta["creationTimestamp"],
        },
        "spec": { "replicas": number(kind.scale.map(|s| s.spec)) },
        "status": { "replicas": number(kind.scale.map(|s| s.status)) },
    });
    if let Some(selector) = kind.scale.and_then(|s| s.selector) {
        let selector = text(object, selector);
        if !selector.is_empty() {
            scale["status"]["selector"] = selector.into();
        }
    }
    scale
}

/// The object with the number that a `Scale` asks for.
pub(crate) fn laid_over(kind: &KindSpec, object: &Value, scale: &Value) -> Result<Value, ApiError> {
    let (version, of_kind) = (text(scale, "/apiVersion"), text(scale, "/kind"));
    if (version, of_kind) != ("autoscaling/v1", "Scale") {
        return Err(ApiError::bad_request(format!("wanted a Scale of autoscaling/v1, and got {version} {of_kind}")));
    }
    let mut new = object.clone();
    let replicas = scale["spec"].get("replicas").cloned().unwrap_or_else(|| 0.into());
    let Some(place) = kind.scale.and_then(|s| new.pointer_mut(s.spec)) else {
        return Err(ApiError::internal("the object has no number of replicas"));
    };
    *place = replicas;
    for field in ["uid", "resourceVersion", "name"] {
        match scale["metadata"].get(field) {
            Some(value) => new["metadata"][field] = value.clone(),
            None if field == "name" => {}
            None => drop(new["metadata"].as_object_mut().and_then(|m| m.remove(field))),
        }
    }
    Ok(new)
}
