//! JSON patch (RFC 6902) and merge patch (RFC 7396).

use crate::ApiError;
use http::StatusCode;
use serde_json::Value;

/// Most operations of one JSON patch, as kube-apiserver has it.
const MAX_OPERATIONS: usize = 10_000;

/// A patch, read.
#[derive(Debug, Clone)]
pub(crate) enum Patch {
    Json(json_patch::Patch),
    Merge(Value),
}

impl Patch {
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
            _ => Err(ApiError::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "UnsupportedMediaType",
                "the body of the request was in an unknown format - accepted media types include: \
                 application/json-patch+json, application/merge-patch+json",
            )),
        }
    }

    pub(crate) fn apply(&self, object: &Value) -> Result<Value, ApiError> {
        let mut new = object.clone();
        match self {
            Self::Merge(patch) => json_patch::merge(&mut new, patch),
            Self::Json(patch) => json_patch::patch(&mut new, patch).map_err(|e| {
                ApiError::new(
                    StatusCode::UNPROCESSABLE_ENTITY,
                    "Invalid",
                    format!("the server rejected our request due to an error in our request: {e}"),
                )
            })?,
        }
        Ok(new)
    }

    /// Whether the patch itself names a revision: then a conflict is the caller's to solve.
    pub(crate) fn names_revision(&self) -> bool {
        match self {
            Self::Merge(patch) => patch.pointer("/metadata/resourceVersion").is_some_and(|v| !v.is_null()),
            Self::Json(patch) => patch.0.iter().any(|op| op.path().as_str() == "/metadata/resourceVersion"),
        }
    }
}
