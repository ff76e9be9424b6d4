//! The answers of the hub's own paths.

use crate::{join::JoinError, login::LoginError};
use http::{HeaderValue, Response, StatusCode, header};
use moorline_proxy::{
    Body, body,
    status::{Details, reason_of, status_response, status_with},
};
use std::time::Duration;

pub(super) fn closing(code: StatusCode, message: &str) -> Response<Body> {
    status_with(code, reason_of(code), message, &Details { close: true, ..Details::default() })
}

pub(super) fn later(code: StatusCode, message: &str, wait: Duration) -> Response<Body> {
    let wait = Duration::from_secs(wait.as_secs() + 1);
    status_with(code, reason_of(code), message, &Details { retry_after: Some(wait), ..Details::default() })
}

pub(super) fn store_failed(error: &crate::records::RecordError) -> Response<Body> {
    tracing::error!("the store failed: {error}");
    later(StatusCode::SERVICE_UNAVAILABLE, "the hub's store does not answer", Duration::from_secs(1))
}

pub(super) fn text(code: StatusCode, words: &str) -> Response<Body> {
    let mut response = Response::new(body::full(words.to_owned()));
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

pub(super) fn json(code: StatusCode, value: &impl serde::Serialize) -> Response<Body> {
    let bytes = serde_json::to_vec(value).unwrap_or_default();
    let mut response = Response::new(body::full(bytes));
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

pub(super) fn login_refused(error: &LoginError) -> Response<Body> {
    let message = error.to_string();
    match error {
        LoginError::Wrong => status_response(StatusCode::UNAUTHORIZED, &message),
        LoginError::Often(wait) => later(StatusCode::TOO_MANY_REQUESTS, &message, *wait),
        LoginError::Busy => later(StatusCode::SERVICE_UNAVAILABLE, &message, Duration::from_secs(1)),
        LoginError::Refused(_) => status_response(StatusCode::FORBIDDEN, &message),
        LoginError::Away(_) => later(StatusCode::SERVICE_UNAVAILABLE, &message, Duration::from_secs(5)),
        LoginError::Bad(_) => status_response(StatusCode::BAD_REQUEST, &message),
        LoginError::Store(error) => store_failed(error),
    }
}

pub(super) fn join_answer(result: Result<crate::join::JoinAnswer, JoinError>) -> Response<Body> {
    let error = match result {
        Ok(answer) => return json(StatusCode::OK, &answer),
        Err(error) => error,
    };
    let message = error.to_string();
    match error {
        JoinError::Token => status_response(StatusCode::UNAUTHORIZED, &message),
        JoinError::Cluster | JoinError::Account(_) => status_response(StatusCode::FORBIDDEN, &message),
        JoinError::Bad(_) => status_response(StatusCode::BAD_REQUEST, &message),
        JoinError::Full { .. } => status_response(StatusCode::FORBIDDEN, &message),
        JoinError::Taken { .. } => status_response(StatusCode::CONFLICT, &message),
        JoinError::Often(wait) => later(StatusCode::TOO_MANY_REQUESTS, &message, wait),
        JoinError::Busy(_) => later(StatusCode::SERVICE_UNAVAILABLE, &message, Duration::from_secs(1)),
    }
}
