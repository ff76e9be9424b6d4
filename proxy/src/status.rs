//! Errors as Kubernetes clients read them: `Status` objects.

use crate::Body;
use http::{
    HeaderValue, Response, StatusCode,
    header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS},
};
use serde_json::json;
use std::time::Duration;

/// What goes into a `Status` besides code and message.
#[derive(Debug, Clone, Default)]
pub struct Details {
    /// `details.retryAfterSeconds` and the `Retry-After` header.
    pub retry_after: Option<Duration>,
    /// `details.causes`: reason and message.
    pub causes: Vec<(String, String)>,
    /// Adds `Connection: close`: the rest of this connection cannot be trusted.
    pub close: bool,
}

/// A `Status` with Kubernetes' own reason for `code`; 401 carries `WWW-Authenticate: Bearer`.
pub fn status_response(code: StatusCode, message: &str) -> Response<Body> {
    status_with(code, reason_of(code), message, &Details::default())
}

/// A `Status` with everything said.
pub fn status_with(code: StatusCode, reason: &str, message: &str, details: &Details) -> Response<Body> {
    let retry_after = details.retry_after.map(|pause| pause.as_secs().max(1));
    let causes = details.causes.iter().map(|(reason, message)| json!({"reason": reason, "message": message}));
    let mut status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code.as_u16(),
    });
    if retry_after.is_some() || !details.causes.is_empty() {
        let mut details = json!({});
        if let Some(seconds) = retry_after {
            details["retryAfterSeconds"] = seconds.into();
        }
        let causes: Vec<_> = causes.collect();
        if !causes.is_empty() {
            details["causes"] = causes.into();
        }
        status["details"] = details;
    }
    let mut response = Response::new(crate::body::full(status.to_string()));
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if code == StatusCode::UNAUTHORIZED {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if let Some(seconds) = retry_after {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if details.close {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Kubernetes' `metav1.StatusReason` for a code.
pub fn reason_of(code: StatusCode) -> &'static str {
    match code.as_u16() {
        400 => "BadRequest",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        405 => "MethodNotAllowed",
        406 => "NotAcceptable",
        409 => "Conflict",
        410 => "Expired",
        413 => "RequestEntityTooLarge",
        415 => "UnsupportedMediaType",
        422 => "Invalid",
        429 => "TooManyRequests",
        500 => "InternalError",
        503 => "ServiceUnavailable",
        504 => "Timeout",
        // Kubernetes has no reason of its own for these.
        502 => "BadGateway",
        421 => "MisdirectedRequest",
        431 => "RequestHeaderFieldsTooLarge",
        _ => "Unknown",
    }
}
