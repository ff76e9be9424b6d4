//! Requests of the hub's own to an agent: one HTTP message each way on a stream without a principal.

use crate::sessions::Entry;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use moorline_proto::header::{Class, StreamHeader, Target};
use moorline_proxy::{Body, body, wire};

/// Asks, and gives the answer as it comes.
///
/// # Errors
/// In words: the session is gone, or the agent does not serve such streams.
pub(crate) async fn open(
    entry: &Entry,
    target: Target,
    method: Method,
    path: &str,
    body: Body,
) -> Result<Response<Body>, String> {
    let header = StreamHeader { target, class: Class::Interactive, deadline_ms: 0, traceparent: None, principal: None };
    let stream = entry.session.open(&header).await.map_err(|e| e.to_string())?;
    let request = Request::builder().method(method).uri(path).body(body).map_err(|e| e.to_string())?;
    wire::request(stream, request).await.map_err(|e| e.to_string())
}

/// Asks, and gives the whole answer, of `most` bytes.
///
/// # Errors
/// As [`open`]; or the answer is longer, or broke off.
pub(crate) async fn ask(
    entry: &Entry,
    target: Target,
    (method, path): (Method, &str),
    body: Vec<u8>,
    most: usize,
) -> Result<(StatusCode, Vec<u8>), String> {
    let response = open(entry, target, method, path, body::full(body)).await?;
    let code = response.status();
    let answer = Limited::new(response.into_body(), most).collect().await.map_err(|e| e.to_string())?;
    Ok((code, answer.to_bytes().to_vec()))
}
