//! The direction that writes: a head that waits in the buffer, then a body.

use super::codec::{self, DATA, END, MAX_FRAME};
use crate::{Body, BodyError, upgrade::Io};
use bytes::{Buf, Bytes, BytesMut};
use http_body::Body as _;
use std::{
    io::IoSlice,
    pin::Pin,
    task::{Context, Poll, ready},
};

/// Bytes gathered before a write, while the body has more at hand.
const GATHER: usize = 32 * 1024;
/// A chunk from this size on is written from where it lies; a smaller one is cheaper to copy.
const BORROW: usize = 8 * 1024;

pub(super) struct Outgoing {
    pub(super) buffer: BytesMut,
    /// Belongs after the buffer.
    tail: Bytes,
    /// What of a chunk did not fit into one frame.
    rest: Bytes,
    body: Option<Body>,
    /// The direction ends with the message.
    framed: bool,
    flushed: bool,
}

impl Outgoing {
    /// `framed`: whether a body and its end belong to the message, with which the direction ends; not so before raw
    /// bytes.
    pub(super) fn new(body: Body, framed: bool) -> Self {
        let body = framed.then_some(body);
        let (buffer, tail, rest) = (BytesMut::with_capacity(1024), Bytes::new(), Bytes::new());
        Self { buffer, tail, rest, body, framed, flushed: false }
    }

    /// Whether all of the message has been handed to the stream.
    pub(super) fn is_done(&self) -> bool {
        self.body.is_none() && self.rest.is_empty() && self.buffer.is_empty() && self.tail.is_empty() && self.flushed
    }

    /// Sends what there is; ready when all of the message has been handed to the stream and flushed, and its direction
    /// ended.
    pub(super) fn poll_send<S: Io + ?Sized>(
        &mut self,
        io: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), BodyError>> {
        loop {
            let waits = self.gather(cx)?;
            while !self.buffer.is_empty() || !self.tail.is_empty() {
                self.flushed = false;
                let mut io = Pin::new(&mut *io);
                let written = if self.tail.is_empty() {
                    ready!(io.as_mut().poll_write(cx, &self.buffer))?
                } else {
                    let both = [IoSlice::new(&self.buffer), IoSlice::new(&self.tail)];
                    let from = usize::from(self.buffer.is_empty());
                    ready!(io.as_mut().poll_write_vectored(cx, &both[from..]))?
                };
                if written == 0 {
                    return Poll::Ready(Err(BodyError::Io(std::io::ErrorKind::WriteZero.into())));
                }
                let head = written.min(self.buffer.len());
                self.buffer.advance(head);
                self.tail.advance(written - head);
            }
            let over = self.body.is_none() && self.rest.is_empty();
            if waits || over {
                if !self.flushed {
                    // No flush before the end: it travels with the last bytes, not after them.
                    if over && self.framed {
                        ready!(Pin::new(&mut *io).poll_shutdown(cx))?;
                    } else {
                        ready!(Pin::new(&mut *io).poll_flush(cx))?;
                    }
                    self.flushed = true;
                }
                return if over { Poll::Ready(Ok(())) } else { Poll::Pending };
            }
        }
    }

    /// Takes from the body what is at hand. `true`: the body will wake us.
    fn gather(&mut self, cx: &mut Context<'_>) -> Result<bool, BodyError> {
        while self.tail.is_empty() && self.buffer.len() < GATHER {
            if !self.rest.is_empty() {
                self.chunk();
                continue;
            }
            let Some(body) = &mut self.body else { return Ok(false) };
            if body.is_end_stream() {
                codec::frame(END, 0, &mut self.buffer);
                self.body = None;
                return Ok(false);
            }
            let frame = match Pin::new(body).poll_frame(cx) {
                Poll::Pending => return Ok(true),
                Poll::Ready(frame) => frame.transpose().map_err(|e| match e {
                    e @ BodyError::Source(_) => e,
                    e => BodyError::Source(e.into()),
                })?,
            };
            match frame.map(http_body::Frame::into_data) {
                None => {
                    codec::frame(END, 0, &mut self.buffer);
                    self.body = None;
                }
                Some(Ok(chunk)) => self.rest = chunk,
                Some(Err(frame)) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        codec::encode_trailers(&trailers, &mut self.buffer).map_err(BodyError::Wire)?;
                        self.body = None;
                    }
                }
            }
        }
        Ok(false)
    }

    fn chunk(&mut self) {
        let piece = self.rest.split_to(self.rest.len().min(MAX_FRAME));
        codec::frame(DATA, piece.len(), &mut self.buffer);
        if piece.len() < BORROW {
            self.buffer.extend_from_slice(&piece);
        } else {
            self.tail = piece;
        }
    }
}
