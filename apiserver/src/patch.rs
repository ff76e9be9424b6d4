//! JSON patch (RFC 6902) and merge patch (RFC 7396).

use crate::{
    ApiError, Limits,
    negotiate::Syntax,
    request::{parse, unsupported},
};
use http::StatusCode;
use json_patch::PatchOperation;
use serde_json::Value;

/// Most operations of one JSON patch, as kube-apiserver has it.
const MAX_OPERATIONS: usize = 10_000;

/// A patch, read.
#[derive(Debug, Clone)]
pub(crate) enum Patch {
    Json(json_patch::Patch),
    Merge(Value),
    /// A configuration to apply: no patch, but sent as one.
    Apply(Value),
}

pub(crate) const KNOWN: [&str; 4] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/apply-patch+yaml",
    "application/apply-patch+json",
];

impl Patch {
    /// Refuses types of patches that are not known here, strategic merge among them, as kube-apiserver does for CRDs.
    pub(crate) fn known(content_type: &str) -> Result<(), ApiError> {
        if KNOWN.contains(&content_type) {
            return Ok(());
        }
        let message = "the body of the request was in an unknown format - accepted media types include: ";
        Err(unsupported(&format!("{message}{}", KNOWN.join(", "))))
    }

    pub(crate) fn read(content_type: &str, body: &[u8]) -> Result<Self, ApiError> {
        let bad = |e: serde_json::Error| ApiError::bad_request(format!("error decoding patch: {e}"));
        match content_type {
            "application/json-patch+json" => {
                let patch: json_patch::Patch = serde_json::from_slice(body).map_err(bad)?;
                if MAX_OPERATIONS < patch.0.len() {
                    let message = format!("a JSON patch may have at most {MAX_OPERATIONS} operations");
                    return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge", message));
                }
                Ok(Self::Json(patch))
            }
            "application/merge-patch+json" => serde_json::from_slice(body).map(Self::Merge).map_err(bad),
            _ => {
                let config = parse(Syntax::Yaml, body)?;
                let said = |field: &str| config[field].as_str().is_some_and(|v| !v.is_empty());
                for (field, name) in [("kind", "Kind"), ("apiVersion", "apiVersion")] {
                    if !said(field) {
                        return Err(ApiError::bad_request(format!("error decoding YAML: Object '{name}' is missing")));
                    }
                }
                Ok(Self::Apply(config))
            }
        }
    }

    pub(crate) fn apply(&self, object: &Value, limits: &Limits) -> Result<Value, ApiError> {
        let mut new = object.clone();
        match self {
            Self::Merge(patch) | Self::Apply(patch) => json_patch::merge(&mut new, patch),
            Self::Json(patch) => {
                let mut copied = 0;
                for operation in &patch.0 {
                    bound(operation, &new, &mut copied, limits)?;
                    // `new` is thrown away on an error: nothing has to be undone.
                    json_patch::patch_unsafe(&mut new, std::slice::from_ref(operation)).map_err(|e| {
                        ApiError::new(
                            StatusCode::UNPROCESSABLE_ENTITY,
                            "Invalid",
                            format!("the server rejected our request due to an error in our request: {e}"),
                        )
                    })?;
                }
            }
        }
        Ok(new)
    }

    /// Whether the patch itself names a revision: then a conflict is the caller's to solve.
    pub(crate) fn names_revision(&self) -> bool {
        match self {
            Self::Merge(patch) | Self::Apply(patch) => {
                patch.pointer("/metadata/resourceVersion").is_some_and(|v| !v.is_null())
            }
            Self::Json(patch) => patch.0.iter().any(|op| op.path().as_str() == "/metadata/resourceVersion"),
        }
    }
}

/// Deepest nesting of an object. serde_json reads 128 levels: what is deeper could be stored and never read back, and a
/// patch could nest deep enough to overflow the stack of whoever walks it.
pub(crate) const DEPTH: usize = 100;

/// How deep a value is nested, counted no further than `DEPTH + 1`.
pub(crate) fn depth(value: &Value) -> usize {
    fn below(value: &Value, left: usize) -> usize {
        let Some(left) = left.checked_sub(1) else { return 1 };
        let deepest = match value {
            Value::Array(items) => items.iter().map(|v| below(v, left)).max(),
            Value::Object(map) => map.values().map(|v| below(v, left)).max(),
            _ => None,
        };
        1 + deepest.unwrap_or(0)
    }
    below(value, DEPTH)
}

pub(crate) fn too_deep() -> ApiError {
    ApiError::bad_request(format!("the object must not be nested deeper than {DEPTH} levels"))
}

pub(crate) fn too_large(limit: usize) -> ApiError {
    let message = format!("the object must not have more than {limit} bytes");
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge", message)
}

/// Refuses an operation before it is done if it would nest too deep, or if what the patch copies grows too large: each
/// copy can double the object (kube-apiserver bounds the same sum).
fn bound(operation: &PatchOperation, object: &Value, copied: &mut usize, limits: &Limits) -> Result<(), ApiError> {
    let (to, value) = match operation {
        PatchOperation::Add(add) => (&add.path, Some(&add.value)),
        PatchOperation::Replace(replace) => (&replace.path, Some(&replace.value)),
        PatchOperation::Move(r#move) => (&r#move.path, object.pointer(r#move.from.as_str())),
        PatchOperation::Copy(copy) => {
            let value = object.pointer(copy.from.as_str());
            *copied = copied.saturating_add(value.map_or(0, |v| v.to_string().len()));
            if limits.object < *copied {
                return Err(too_large(limits.object));
            }
            (&copy.path, value)
        }
        PatchOperation::Remove(_) | PatchOperation::Test(_) => return Ok(()),
    };
    let whole = to.as_str().matches('/').count() + value.map_or(0, depth);
    if DEPTH < whole { Err(too_deep()) } else { Ok(()) }
}
