//! "May I?", asked through the edge: it says no where it would refuse, whatever the cluster's own rules permit.

use crate::{Body, body};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use moorline_authz::{
    edge::{Asked, EdgePolicy},
    verb::RequestInfo,
};
use serde_json::{Value, json};

/// Largest question that is looked into, in bytes; the API server answers a larger one alone.
const LARGEST: u64 = 64 << 10;

/// Whether this asks what the caller may do, in words that are understood here.
fn is_one(request: &Request<Body>, info: &RequestInfo) -> bool {
    let value = |name| request.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let len = value(header::CONTENT_LENGTH).and_then(|len| len.parse::<u64>().ok());
    let json = value(header::CONTENT_TYPE).is_none_or(|kind| kind.starts_with("application/json"));
    let read = value(header::ACCEPT).is_none_or(|kinds| ["application/json", "*/*"].iter().any(|k| kinds.contains(k)));
    request.method() == Method::POST
        && info.api_group == "authorization.k8s.io"
        && info.resource == "selfsubjectaccessreviews"
        && info.subresource.is_empty()
        && len.is_some_and(|len| len <= LARGEST)
        && json
        && read
}

/// The request as it came, or the answer to a question that the policy says no to.
pub(super) async fn look(
    request: Request<Body>,
    info: &RequestInfo,
    policy: &EdgePolicy,
) -> Result<Request<Body>, Box<Response<Body>>> {
    if !is_one(&request, info) {
        return Ok(request);
    }
    let (parts, sent) = request.into_parts();
    let most = usize::try_from(LARGEST).unwrap_or(usize::MAX);
    let Ok(read) = Limited::new(sent, most).collect().await else {
        let message = "the question ended before its end";
        return Err(Box::new(crate::status::status_response(StatusCode::BAD_REQUEST, message)));
    };
    let bytes = read.to_bytes();
    match refusal(&bytes, policy) {
        Some(review) => Err(Box::new(said(&review))),
        None => Ok(Request::from_parts(parts, body::full(bytes))),
    }
}

/// The review with its answer, where that is no. What is no review is for the API server to refuse.
fn refusal(bytes: &Bytes, policy: &EdgePolicy) -> Option<Value> {
    let mut review: Value = serde_json::from_slice(bytes).ok()?;
    let asked: Asked = serde_json::from_value(review.get("spec")?.clone()).ok()?;
    let denial = policy.review(&asked).err()?;
    let status = json!({ "allowed": false, "denied": true, "reason": denial.to_string() });
    review.as_object_mut()?.insert("status".to_owned(), status);
    Some(review)
}

fn said(review: &Value) -> Response<Body> {
    let mut response = Response::new(body::full(review.to_string()));
    *response.status_mut() = StatusCode::CREATED;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
