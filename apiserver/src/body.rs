//! The body type of answers.

use bytes::Bytes;
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};

/// Any error.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Body of an answer. Those of this crate never fail; a watch ends by ending.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// All of it at once.
pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}
