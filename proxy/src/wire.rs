//! One HTTP message each way over one stream, as frames: nothing in a tunnel is ever parsed as HTTP text.
//!
//! Frame: `kind u8 | length u32 | payload`, network byte order, payload at most [`MAX_FRAME`].
//!
//! | kind | payload |
//! | --- | --- |
//! | 1 REQUEST | `flags u8` (bit 0: wants an upgrade) `method u16+bytes`, `target u32+bytes`, headers |
//! | 2 RESPONSE | `flags u8` (0), `status u16`, headers |
//! | 3 DATA | bytes of the body |
//! | 4 TRAILERS | headers; ends the message |
//! | 5 END | empty; ends the message |
//!
//! headers: `count u16`, then each `name u16+bytes`, `value u32+bytes`. Names are lower-case.
//!
//! A message is one head, DATA frames, then TRAILERS or END. The stream's own end without one of these is a message
//! cut short, never an end. Each side ends its direction right after its message, so that the end travels with it; a hub
//! that no longer waits for the answer resets the stream. After a 101 both directions are raw bytes.

use crate::{
    Body, BodyError,
    upgrade::{Io, Rewound, UpgradedIo},
};
use bytes::{Buf, Bytes, BytesMut};
use http::{Request, Response, StatusCode};
use moorline_link::StreamError;
use moorline_proto::{code::ResetCode, header::Refusal};
use std::{
    future::{Future, poll_fn},
    io,
    pin::pin,
    task::Poll,
    time::Duration,
};

mod codec;
mod incoming;
mod outgoing;

use codec::{Head, RequestHead, ResponseHead};
pub use codec::{MAX_FRAME, MAX_HEAD, MAX_HEADERS};
use incoming::{Feed, Incoming};
use outgoing::Outgoing;

/// Longest wait of the agent for the hub's end of the stream after a whole answer was written: it comes late if the hub
/// still sends a body that nobody wanted.
const LINGER: Duration = Duration::from_secs(10);

/// Why an exchange failed before there was an answer, or (at the agent) at all.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The acceptor refused the stream. Nothing reached the API server unless the refusal says otherwise.
    #[error("stream refused ({}): {}", .0.code, .0.message)]
    Refused(Refusal),
    /// The stream failed. Whether the API server saw the request is unknown.
    #[error("the stream failed")]
    Stream(#[source] BodyError),
    /// Whoever carries the stream seems to be gone, somebody else could take it, and the request [`MayRepeat`].
    #[error("whoever carries the stream does not answer")]
    Elsewhere,
    /// The head is over the limits, or not one that may be sent.
    #[error("the head cannot be sent: {0}")]
    Head(&'static str),
    /// The peer broke the wire format.
    #[error("the peer broke the wire format: {0}")]
    Peer(&'static str),
}

impl From<io::Error> for WireError {
    fn from(e: io::Error) -> Self {
        match e.get_ref().and_then(|inner| inner.downcast_ref::<StreamError>()) {
            Some(StreamError::Refused(refusal)) => Self::Refused(refusal.clone()),
            _ => Self::Stream(e.into()),
        }
    }
}
impl From<BodyError> for WireError {
    fn from(e: BodyError) -> Self {
        match e {
            BodyError::Io(e) => e.into(),
            BodyError::Wire(what) => Self::Peer(what),
            e => Self::Stream(e),
        }
    }
}

/// Marks a request (extension) as one for an upgrade: set by the hub's side from the client's headers, seen by the agent's upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WantsUpgrade;

/// Marks a request (extension) that may be given up and made again for as long as it has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MayRepeat;

/// The hub's half: writes `request`, returns the answer's head; its body streams from the stream.
///
/// A 101 carries [`crate::upgrade::UpgradedIo`] as an extension. Dropping the answer (or this future) resets the stream, and so
/// cancels the request at the API server.
///
/// # Errors
/// See [`WireError`].
pub async fn request<S: Io>(mut stream: S, request: Request<Body>) -> Result<Response<Body>, WireError> {
    let (parts, body) = request.into_parts();
    let upgrade = parts.extensions.get::<WantsUpgrade>().is_some();
    let repeats = parts.extensions.get::<MayRepeat>().is_some();
    let head_only = parts.method == http::Method::HEAD;
    let mut out = Outgoing::new(if upgrade { crate::body::empty() } else { body }, !upgrade);
    let head = RequestHead { method: parts.method, target: parts.uri, headers: parts.headers, upgrade };
    codec::encode_request(&head, &mut out.buffer).map_err(WireError::Head)?;
    let mut input = Incoming::new();
    let head = poll_fn(|cx| {
        // A failed upload is no reason to miss an answer that explains it: reading tells.
        let sent = out.poll_send(&mut stream, cx);
        if let Poll::Ready(Err(e @ (BodyError::Source(_) | BodyError::Wire(_)))) = sent {
            stream.reset(ResetCode::Cancelled);
            return Poll::Ready(Err(WireError::Stream(e)));
        }
        let head = input.poll_head(&mut stream, cx);
        if head.is_pending() && repeats && stream.poll_elsewhere(cx).is_ready() {
            stream.reset(ResetCode::Cancelled);
            return Poll::Ready(Err(WireError::Elsewhere));
        }
        head
    })
    .await;
    let head = match head {
        Ok(Head::Response(head)) => head,
        Ok(Head::Request(_)) => return Err(broken(&mut stream, "a request where an answer belongs")),
        Err(WireError::Peer(what)) => return Err(broken(&mut stream, what)),
        Err(e) => return Err(e),
    };
    let ResponseHead { status, headers } = head;
    if status == StatusCode::SWITCHING_PROTOCOLS {
        if !upgrade {
            return Err(broken(&mut stream, "101 to a request that asked for none"));
        }
        let mut response = Response::new(crate::body::empty());
        (*response.status_mut(), *response.headers_mut()) = (status, headers);
        response.extensions_mut().insert(UpgradedIo::new(Rewound::new(input.into_rest(), stream)));
        return Ok(response);
    }
    let bodiless = head_only || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let announced = if bodiless { None } else { codec::content_length(&headers) };
    let body = incoming::Download::new(stream, input, out, announced);
    let mut response = Response::new(Body::new(body));
    (*response.status_mut(), *response.headers_mut()) = (status, headers);
    Ok(response)
}

fn broken<S: Io>(stream: &mut S, what: &'static str) -> WireError {
    stream.reset(ResetCode::Protocol);
    WireError::Peer(what)
}

/// The agent's half: reads a request, hands it to `answer`, writes what it returns.
///
/// `answer` is dropped when the hub gives up. A 101 must carry [`crate::upgrade::UpgradedIo`].
///
/// # Errors
/// See [`WireError`]; the stream has been reset by then.
pub async fn serve<S, F, A>(mut stream: S, answer: F) -> Result<(), WireError>
where
    S: Io,
    F: FnOnce(Request<Body>) -> A,
    A: Future<Output = Response<Body>>,
{
    let result = serve_inner(&mut stream, answer).await;
    match &result {
        Ok(()) => {}
        Err(WireError::Peer(_)) => stream.reset(ResetCode::Protocol),
        Err(WireError::Stream(BodyError::Source(_))) => stream.reset(ResetCode::Broken),
        Err(WireError::Head(_)) => stream.reset(ResetCode::Internal),
        Err(_) => stream.reset(ResetCode::Cancelled),
    }
    result
}

async fn serve_inner<S, F, A>(stream: &mut S, answer: F) -> Result<(), WireError>
where
    S: Io,
    F: FnOnce(Request<Body>) -> A,
    A: Future<Output = Response<Body>>,
{
    let mut input = Incoming::new();
    let head = match poll_fn(|cx| input.poll_head(stream, cx)).await? {
        Head::Request(head) => head,
        Head::Response(_) => return Err(WireError::Peer("an answer where a request belongs")),
    };
    let upgrade = head.upgrade;
    let announced = codec::content_length(&head.headers);
    let (mut feed, body) =
        if upgrade { (Feed::none(), crate::body::empty()) } else { Feed::new(&mut input, announced)? };
    let mut request = Request::new(body);
    (*request.method_mut(), *request.uri_mut(), *request.headers_mut()) = (head.method, head.target, head.headers);
    if upgrade {
        request.extensions_mut().insert(WantsUpgrade);
    }

    let response = {
        let mut answer = pin!(answer(request));
        poll_fn(|cx| {
            // Reading goes on meanwhile: it feeds the body, and it hears the hub give up.
            if let Poll::Ready(e) = feed.poll(&mut input, stream, cx) {
                return Poll::Ready(Err(WireError::from(e)));
            }
            answer.as_mut().poll(cx).map(Ok)
        })
        .await?
    };
    let (mut parts, body) = response.into_parts();
    let upgraded = if parts.status == StatusCode::SWITCHING_PROTOCOLS {
        let io = parts.extensions.remove::<UpgradedIo>().and_then(|io| io.take());
        Some(io.filter(|_| upgrade).ok_or(WireError::Head("101 without a connection behind it"))?)
    } else {
        None
    };
    let mut out = Outgoing::new(body, upgraded.is_none());
    let head = ResponseHead { status: parts.status, headers: parts.headers };
    codec::encode_response(&head, &mut out.buffer).map_err(WireError::Head)?;
    if let Some(mut upstream) = upgraded {
        poll_fn(|cx| out.poll_send(stream, cx)).await?;
        let mut hub = Rewound::new(input.into_rest(), &mut *stream);
        let copied = crate::upgrade::copy_both(&mut hub, &mut upstream).await;
        return copied.map_err(|e| WireError::Stream(BodyError::Source(e.into())));
    }
    poll_fn(|cx| {
        if let Poll::Ready(e) = feed.poll(&mut input, stream, cx) {
            return Poll::Ready(Err(e));
        }
        out.poll_send(stream, cx)
    })
    .await?;
    drop(feed);
    let _ = tokio::time::timeout(LINGER, poll_fn(|cx| input.poll_drain(stream, cx))).await;
    Ok(())
}

/// Takes `n` bytes off the front, as they lie in memory.
fn take(input: &mut BytesMut, n: usize) -> Bytes {
    let piece = input.split_to(n).freeze();
    debug_assert_eq!(piece.remaining(), n);
    piece
}

#[cfg(test)]
mod tests;
