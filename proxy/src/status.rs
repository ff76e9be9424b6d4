//! Errors as Kubernetes clients read them: `Status` objects.

use crate::Body;
use http::{
    HeaderValue, Response, StatusCode,
    header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS},
};
use moorline_proto::code::RefuseCode;
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

/// How a refusal by an agent is told over HTTP: each cause has a status and a reason of its own.
pub fn of_refusal(code: RefuseCode) -> (StatusCode, &'static str) {
    match code {
        RefuseCode::Policy => (StatusCode::FORBIDDEN, "Forbidden"),
        RefuseCode::NotFound => (StatusCode::NOT_FOUND, "NotFound"),
        RefuseCode::NoEndpoints => (StatusCode::SERVICE_UNAVAILABLE, "NoEndpoints"),
        RefuseCode::ConnectionRefused => (StatusCode::BAD_GATEWAY, "ConnectionRefused"),
        RefuseCode::Tls => (StatusCode::BAD_GATEWAY, "TLSMismatch"),
        RefuseCode::Deadline => (StatusCode::GATEWAY_TIMEOUT, "Timeout"),
        RefuseCode::Busy | RefuseCode::Draining => (StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable"),
        RefuseCode::UnknownTarget | RefuseCode::BadHeader => (StatusCode::BAD_GATEWAY, "AgentTooOld"),
        _ => (StatusCode::BAD_GATEWAY, "BadGateway"),
    }
}

/// A `Status` for a refusal.
pub fn refusal_response(code: RefuseCode, message: &str) -> Response<Body> {
    let (status, reason) = of_refusal(code);
    let retry_after = (status == StatusCode::SERVICE_UNAVAILABLE).then_some(Duration::from_secs(1));
    status_with(status, reason, message, &Details { retry_after, ..Details::default() })
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
        408 => "RequestTimeout",
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
