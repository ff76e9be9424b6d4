//! Errors as Kubernetes clients read them: `Status` objects.

use crate::body::{Body, full};
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};

/// One thing wrong with an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// Kubernetes' cause, for instance `FieldValueInvalid`.
    pub reason: &'static str,
    /// Path of the field, for instance `spec.expires`.
    pub field: String,
    /// What is wrong, for people.
    pub message: String,
}

impl Cause {
    /// Any cause.
    pub fn new(reason: &'static str, field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { reason, field: field.into(), message: message.into() }
    }

    /// The field has a value that is not allowed.
    pub fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { reason: "FieldValueInvalid", field: field.into(), message: message.into() }
    }

    /// The field has to be there.
    pub fn required(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { reason: "FieldValueRequired", field: field.into(), message: message.into() }
    }

    /// The field may not be set, or not changed.
    pub fn forbidden(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { reason: "FieldValueForbidden", field: field.into(), message: message.into() }
    }

    /// What kubectl prints after the field's path.
    fn text(&self) -> String {
        let word = match self.reason {
            "FieldValueRequired" => "Required value",
            "FieldValueForbidden" => "Forbidden",
            "FieldValueDuplicate" => "Duplicate value",
            "FieldValueNotFound" => "Not found",
            "FieldValueNotSupported" => "Unsupported value",
            "FieldValueTooLong" => "Too long",
            _ => "Invalid value",
        };
        if self.message.is_empty() { word.to_owned() } else { format!("{word}: {}", self.message) }
    }
}

/// An answer that is not the one asked for.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// HTTP status.
    pub code: StatusCode,
    /// Kubernetes' machine-readable reason.
    pub reason: &'static str,
    /// For people.
    pub message: String,
    pub(crate) details: Option<Value>,
    pub(crate) retry_after: Option<u32>,
    /// Where an expired list may go on, at the price of its consistency.
    pub(crate) go_on: Option<String>,
}

impl ApiError {
    /// Any error.
    pub fn new(code: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: None, retry_after: None, go_on: None }
    }

    /// No such object: `clusters.moorline.dev "x" not found`.
    pub fn not_found(group: &str, plural: &str, name: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "NotFound", format!("{plural}.{group} \"{name}\" not found"))
            .about(group, plural, name)
    }

    /// An object of that name is there already.
    pub fn already_exists(group: &str, plural: &str, name: &str) -> Self {
        Self::new(StatusCode::CONFLICT, "AlreadyExists", format!("{plural}.{group} \"{name}\" already exists"))
            .about(group, plural, name)
    }

    /// The object changed since the caller read it.
    pub fn conflict(group: &str, plural: &str, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {plural}.{group} \"{name}\": {why}");
        Self::new(StatusCode::CONFLICT, "Conflict", message).about(group, plural, name)
    }

    /// The caller may not do that.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "Forbidden", message)
    }

    /// The request makes no sense.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    /// The object breaks rules of its kind.
    pub fn invalid(group: &str, kind: &str, name: &str, causes: &[Cause]) -> Self {
        let texts: Vec<String> = causes.iter().map(|c| format!("{}: {}", c.field, c.text())).collect();
        let list = if let [one] = texts.as_slice() { one.clone() } else { format!("[{}]", texts.join(", ")) };
        let mut error = Self::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "Invalid",
            format!("{kind}.{group} \"{name}\" is invalid: {list}"),
        )
        .about(group, kind, name);
        if let Some(Value::Object(details)) = &mut error.details {
            let causes = causes.iter().map(|c| json!({"reason": c.reason, "message": c.text(), "field": c.field}));
            details.insert("causes".into(), causes.collect());
        }
        error
    }

    /// The revision asked for is no longer kept; list again.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GONE, "Expired", message)
    }

    /// Not now.
    pub fn unavailable(message: impl Into<String>) -> Self {
        let mut error = Self::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", message);
        error.retry_after = Some(5);
        error
    }

    /// Our own fault.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", message)
    }

    /// Whether this says that the object is not there.
    pub fn is_not_found(&self) -> bool {
        self.code == StatusCode::NOT_FOUND
    }

    /// Whether the object changed under the caller; reading again and retrying is right.
    pub fn is_conflict(&self) -> bool {
        self.reason == "Conflict"
    }

    /// Whether an object of that name was there already.
    pub fn is_already_exists(&self) -> bool {
        self.reason == "AlreadyExists"
    }

    fn about(mut self, group: &str, kind: &str, name: &str) -> Self {
        self.details = Some(json!({"name": name, "group": group, "kind": kind}));
        if let Some(details) = self.details.as_mut().and_then(Value::as_object_mut) {
            details.retain(|_, v| v != "");
        }
        self
    }

    /// The `Status` object.
    pub fn to_status(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code.as_u16(),
        });
        let mut details = self.details.clone().unwrap_or_else(|| json!({}));
        if let Some(seconds) = self.retry_after {
            details["retryAfterSeconds"] = json!(seconds);
        }
        if let Some(token) = &self.go_on {
            status["metadata"]["continue"] = token.as_str().into();
        }
        if details.as_object().is_some_and(|d| !d.is_empty()) {
            status["details"] = details;
        }
        status
    }

    /// As an answer.
    pub fn into_response(self) -> Response<Body> {
        let mut response = json_response(self.code, &self.to_status());
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// A JSON answer.
fn json_response(code: StatusCode, value: &Value) -> Response<Body> {
    let mut response = Response::new(full(value.to_string()));
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}
