//! The one body type of the whole project.

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full, combinators::UnsyncBoxBody};
use moorline_link::StreamError;
use moorline_proto::code::ResetCode;
use std::io;

/// Bytes of a request or an answer, in either direction. Ends cleanly only if the other side ended it so.
pub type Body = UnsyncBoxBody<Bytes, BodyError>;

/// Why a body ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The stream ended without the mark of an end.
    #[error("the message was cut short")]
    Truncated,
    /// The other side gave up.
    #[error("stream reset by the peer: {0}")]
    Reset(ResetCode),
    /// The session under the stream ended.
    #[error("the session under the stream ended")]
    Lost,
    /// The peer broke the wire format.
    #[error("the peer broke the wire format: {0}")]
    Wire(&'static str),
    /// The source of the body failed: the client on the way up, the API server on the way down.
    #[error("the source of the body failed")]
    Source(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The transport failed in another way.
    #[error("transport failed")]
    Io(#[source] io::Error),
}

impl From<io::Error> for BodyError {
    fn from(e: io::Error) -> Self {
        match e.get_ref().and_then(|inner| inner.downcast_ref::<StreamError>()) {
            Some(StreamError::Reset(code)) => Self::Reset(*code),
            Some(StreamError::Lost) => Self::Lost,
            _ => Self::Io(e),
        }
    }
}

/// No bytes.
pub fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// These bytes.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// What hyper or another library hands in.
pub fn from<B>(body: B) -> Body
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    body.map_err(|e| BodyError::Source(e.into())).boxed_unsync()
}
