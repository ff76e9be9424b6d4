//! The direction that reads: a head, then a body as it comes.

use super::{
    WireError,
    codec::{self, DATA, END, Head, REQUEST, RESPONSE, TRAILERS},
    outgoing::Outgoing,
    take,
};
use crate::{Body, BodyError, upgrade::Io};
use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use moorline_proto::code::ResetCode;
use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::sync::mpsc;
use tokio_util::sync::PollSender;

/// Least and most bytes asked of the stream at once. A stream on which little comes holds the least: a thousand idle
/// watches are a thousand of these.
const READ: (usize, usize) = (4 * 1024, 64 * 1024);
/// Pieces of a request body read ahead of the API server.
const AHEAD: usize = 2;

pub(super) struct Incoming {
    input: BytesMut,
    step: usize,
    /// Bytes of the current DATA frame that have not been seen yet.
    data: usize,
    /// A frame whose five bytes were taken and whose payload is not all there.
    pending: Option<(u8, usize)>,
    over: bool,
}

pub(super) enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
    End,
}

impl Incoming {
    pub(super) fn new() -> Self {
        Self { input: BytesMut::new(), step: READ.0, data: 0, pending: None, over: false }
    }

    pub(super) fn into_rest(self) -> Bytes {
        self.input.freeze()
    }

    /// Reads once. `Ok(0)`: the stream ended.
    fn poll_fill<S: Io + ?Sized>(&mut self, io: &mut S, cx: &mut Context<'_>) -> Poll<std::io::Result<usize>> {
        self.input.reserve(self.step);
        tokio_util::io::poll_read_buf(Pin::new(io), cx, &mut self.input)
    }

    pub(super) fn poll_head<S: Io + ?Sized>(
        &mut self,
        io: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Head, WireError>> {
        loop {
            if let Some((kind, payload)) = self.whole_frame().map_err(WireError::Peer)? {
                return Poll::Ready(match kind {
                    REQUEST | RESPONSE => codec::decode_head(kind, &payload).map_err(WireError::Peer),
                    _ => Err(WireError::Peer("a message without a head")),
                });
            }
            if ready!(self.poll_fill(io, cx))? == 0 {
                return Poll::Ready(Err(WireError::Stream(BodyError::Truncated)));
            }
        }
    }

    fn whole_frame(&mut self) -> Result<Option<(u8, Bytes)>, &'static str> {
        if self.pending.is_none() {
            self.pending = codec::take_frame(&mut self.input)?;
        }
        match self.pending {
            Some((kind, len)) if len <= self.input.len() => {
                self.pending = None;
                Ok(Some((kind, take(&mut self.input, len))))
            }
            _ => Ok(None),
        }
    }

    /// The next piece of the body, out of what has been read already.
    fn next_piece(&mut self) -> Result<Option<Piece>, BodyError> {
        loop {
            if 0 < self.data {
                let n = self.data.min(self.input.len());
                if n == 0 {
                    return Ok(None);
                }
                self.data -= n;
                return Ok(Some(Piece::Data(take(&mut self.input, n))));
            }
            if self.over {
                return Err(BodyError::Wire("bytes after the end of a message"));
            }
            if self.pending.is_none() {
                self.pending = codec::take_frame(&mut self.input).map_err(BodyError::Wire)?;
            }
            match self.pending {
                None => return Ok(None),
                Some((DATA, len)) => {
                    self.pending = None;
                    self.data = len;
                }
                Some((END, 0)) => {
                    self.pending = None;
                    self.over = true;
                    return Ok(Some(Piece::End));
                }
                Some((TRAILERS, len)) if self.input.len() < len => return Ok(None),
                Some((TRAILERS, len)) => {
                    self.pending = None;
                    self.over = true;
                    let payload = take(&mut self.input, len);
                    return codec::decode_trailers(&payload).map(|t| Some(Piece::Trailers(t))).map_err(BodyError::Wire);
                }
                Some(_) => return Err(BodyError::Wire("a frame out of place")),
            }
        }
    }

    fn poll_piece<S: Io + ?Sized>(&mut self, io: &mut S, cx: &mut Context<'_>) -> Poll<Result<Piece, BodyError>> {
        loop {
            if let Some(piece) = self.next_piece()? {
                return Poll::Ready(Ok(piece));
            }
            let read = ready!(self.poll_fill(io, cx))?;
            if read == 0 {
                return Poll::Ready(Err(BodyError::Truncated));
            }
            self.step = if self.step <= read {
                (self.step * 2).min(READ.1)
            } else if read < READ.0 {
                READ.0
            } else {
                self.step
            };
        }
    }

    /// Reads to the stream's end and keeps nothing.
    pub(super) fn poll_drain<S: Io + ?Sized>(&mut self, io: &mut S, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            self.input.clear();
            match ready!(self.poll_fill(io, cx)) {
                Ok(0) | Err(_) => return Poll::Ready(()),
                Ok(_) => {}
            }
        }
    }
}

/// Holds a body to the length that was announced.
#[derive(Clone, Copy)]
struct Length {
    announced: Option<u64>,
    seen: u64,
}
impl Length {
    fn add(&mut self, n: usize) -> Result<(), BodyError> {
        self.seen += n as u64;
        if self.announced.is_some_and(|most| most < self.seen) {
            Err(BodyError::Wire("more bytes than announced"))
        } else {
            Ok(())
        }
    }
    fn is_full(&self) -> bool {
        self.announced == Some(self.seen)
    }
    fn end(&self) -> Result<(), BodyError> {
        if self.announced.is_none_or(|all| all == self.seen) { Ok(()) } else { Err(BodyError::Truncated) }
    }
}

/// An answer's body at the hub: reads it, and sends what is left of the request meanwhile.
pub(super) struct Download<S> {
    /// Gone once the answer is over.
    io: Option<S>,
    input: Incoming,
    out: Option<Outgoing>,
    length: Length,
    /// The last bytes of an announced length, held until the message's end confirms them.
    held: Option<Bytes>,
    trailers: Option<HeaderMap>,
}

impl<S: Io> Download<S> {
    pub(super) fn new(io: S, input: Incoming, out: Outgoing, announced: Option<u64>) -> Self {
        let length = Length { announced, seen: 0 };
        let out = (!out.is_done()).then_some(out);
        let mut this = Self { io: Some(io), input, out, length, held: None, trailers: None };
        // The end often came with the head: then the caller knows at once that there is no body.
        if let Some((END, 0)) = peek(&this.input.input)
            && this.length.end().is_ok()
        {
            let _ = this.input.next_piece();
            this.finish();
        }
        this
    }

    /// The answer is whole. Its direction's end came with it: once seen, there is nothing to be said before the stream
    /// is dropped, and otherwise the reset says that a rest of the request is no longer wanted.
    fn finish(&mut self) {
        if let Some(mut io) = self.io.take()
            && self.out.is_none()
        {
            let mut context = Context::from_waker(std::task::Waker::noop());
            let _ = self.input.poll_fill(&mut io, &mut context);
        }
    }
}

fn peek(input: &BytesMut) -> Option<(u8, usize)> {
    let header = input.get(..codec::FRAME)?;
    Some((header[0], u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize))
}

impl<S: Io> http_body::Body for Download<S> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        loop {
            let Some(io) = &mut this.io else {
                return Poll::Ready(this.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))));
            };
            if let Some(out) = &mut this.out {
                match out.poll_send(io, cx) {
                    Poll::Pending => {}
                    Poll::Ready(Err(e @ (BodyError::Source(_) | BodyError::Wire(_)))) => {
                        io.reset(ResetCode::Cancelled);
                        this.io = None;
                        return Poll::Ready(Some(Err(e)));
                    }
                    // If the peer takes no more, what it answers says why.
                    Poll::Ready(_) => this.out = None,
                }
            }
            match ready!(this.input.poll_piece(io, cx)).and_then(|piece| this.accept(piece)) {
                Ok(Some(frame)) => return Poll::Ready(Some(Ok(frame))),
                Ok(None) => {}
                Err(e) => {
                    this.io = None;
                    return Poll::Ready(Some(Err(e)));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.io.is_none() && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match self.length.announced {
            Some(all) => {
                SizeHint::with_exact(all - self.length.seen.min(all) + self.held.as_ref().map_or(0, |b| b.len() as u64))
            }
            None if self.is_end_stream() => SizeHint::with_exact(0),
            None => SizeHint::default(),
        }
    }
}

impl<S: Io> Download<S> {
    fn accept(&mut self, piece: Piece) -> Result<Option<Frame<Bytes>>, BodyError> {
        match piece {
            Piece::Data(bytes) => {
                self.length.add(bytes.len())?;
                if self.length.is_full() {
                    self.held = Some(bytes);
                    return Ok(None);
                }
                Ok(Some(Frame::data(bytes)))
            }
            Piece::End => {
                self.length.end()?;
                self.finish();
                Ok(self.held.take().map(Frame::data))
            }
            Piece::Trailers(trailers) => {
                self.length.end()?;
                self.finish();
                self.trailers = Some(trailers);
                Ok(self.held.take().map(Frame::data))
            }
        }
    }
}

type Fragment = Result<Frame<Bytes>, BodyError>;

/// A request's body at the agent: pieces go from the task that owns the stream to whoever sends them on.
pub(super) struct Feed {
    /// Gone when the body is whole, or when nobody wants the rest.
    sender: Option<PollSender<Fragment>>,
    /// A piece for which there was no room yet.
    held: Option<Frame<Bytes>>,
    length: Length,
    /// The message is whole.
    ended: bool,
    /// And so is the direction.
    heard_end: bool,
}

impl Feed {
    /// For a request without a body.
    pub(super) fn none() -> Self {
        Self { sender: None, held: None, length: Length { announced: None, seen: 0 }, ended: true, heard_end: false }
    }

    /// A body for the request, and what feeds it. A body that has no bytes, and whose end came with the head, needs no feeding.
    pub(super) fn new(input: &mut Incoming, announced: Option<u64>) -> Result<(Self, Body), BodyError> {
        let length = Length { announced, seen: 0 };
        if let Some((END, 0)) = peek(&input.input)
            && length.end().is_ok()
        {
            input.next_piece()?;
            return Ok((Self::none(), crate::body::empty()));
        }
        let (sender, receiver) = mpsc::channel(AHEAD);
        let body = Body::new(Fed { receiver, left: announced, over: false });
        Ok((Self { sender: Some(PollSender::new(sender)), held: None, length, ended: false, heard_end: false }, body))
    }

    /// Reads and feeds. Ready only with an error: it is there to be polled beside something else.
    pub(super) fn poll<S: Io + ?Sized>(
        &mut self,
        input: &mut Incoming,
        io: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<BodyError> {
        loop {
            if let Some(sender) = self.sender.as_mut().filter(|_| self.held.is_some()) {
                match sender.poll_reserve(cx) {
                    Poll::Pending if self.ended => {} // all is read: what is left is to hear a reset
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(())) => {
                        let sent = self.held.take().map(|piece| sender.send_item(Ok(piece)));
                        if self.ended || sent.is_some_and(|sent| sent.is_err()) {
                            self.sender = None;
                        }
                        continue;
                    }
                    // Nobody wants the rest. It is still read, so that the hub's writes do not block.
                    Poll::Ready(Err(_)) => self.sender = None,
                }
            }
            if self.ended {
                if self.heard_end {
                    return io.poll_cut(cx).map(BodyError::from);
                }
                return match ready!(input.poll_fill(io, cx)) {
                    // The hub still reads. It says so by a reset if it gives up.
                    Ok(0) => {
                        self.heard_end = true;
                        continue;
                    }
                    Ok(_) => Poll::Ready(BodyError::Wire("bytes after the end of a message")),
                    Err(e) => Poll::Ready(e.into()),
                };
            }
            // When this fails the feed is dropped without an end, which is what tells the body.
            match ready!(input.poll_piece(io, cx)).and_then(|piece| self.accept(piece)) {
                Ok(piece) => self.held = Some(piece),
                Err(e) => return Poll::Ready(e),
            }
        }
    }

    /// An empty piece stands for the end.
    fn accept(&mut self, piece: Piece) -> Result<Frame<Bytes>, BodyError> {
        if let Piece::Data(bytes) = piece {
            self.length.add(bytes.len())?;
            return Ok(Frame::data(bytes));
        }
        self.length.end()?;
        self.ended = true;
        Ok(match piece {
            Piece::Trailers(trailers) => Frame::trailers(trailers),
            _ => Frame::data(Bytes::new()),
        })
    }
}

struct Fed {
    receiver: mpsc::Receiver<Fragment>,
    left: Option<u64>,
    over: bool,
}

impl http_body::Body for Fed {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.over {
            return Poll::Ready(None);
        }
        let frame = ready!(self.receiver.poll_recv(cx));
        match frame {
            None => {
                self.over = true;
                Poll::Ready(Some(Err(BodyError::Truncated)))
            }
            Some(Ok(frame)) => match frame.data_ref() {
                Some(bytes) if bytes.is_empty() => {
                    self.over = true;
                    Poll::Ready(None)
                }
                Some(bytes) => {
                    let n = bytes.len() as u64;
                    self.left = self.left.map(|left| left.saturating_sub(n));
                    Poll::Ready(Some(Ok(frame)))
                }
                None => {
                    self.over = true;
                    Poll::Ready(Some(Ok(frame)))
                }
            },
            Some(Err(e)) => {
                self.over = true;
                Poll::Ready(Some(Err(e)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.over
    }
    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
