//! A strict reader between a TLS stream and hyper's HTTP/1.
//!
//! hyper is lenient where RFC 9112 lets it be: it drops `Content-Length` beside `Transfer-Encoding`, takes equal
//! lengths twice and bare line feeds. Somebody before or behind us may read the same bytes otherwise. Here only what has
//! one meaning goes on. For anything else hyper is given bytes that it refuses itself: so the 400 (or 431) comes after the
//! answers to requests before it, never among them, and the connection ends.
//!
//! After a request for an upgrade nothing goes on until the 101 does; without one the connection carries no other request.

mod head;
mod reader;

pub use head::Refusal;
pub use reader::{MAX_HEAD, MAX_HEADERS, Place, Reader};

use bytes::{Buf, BytesMut};
use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes asked of the connection at once while they must be looked at.
const READ: usize = 8 * 1024;
/// Bytes that a client may send ahead while its upgrade is not decided.
const MAX_HELD: usize = 64 * 1024;
/// No method begins so, and no chunk size.
const POISON: &[u8] = b"\0\r\n\r\n";

/// An HTTP/1 connection of which hyper only sees what has one meaning.
#[derive(Debug)]
pub struct Guarded<IO> {
    io: IO,
    reader: Reader,
    /// Not looked at to its end.
    input: BytesMut,
    /// Looked at, not yet read by hyper.
    out: BytesMut,
    ended: bool,
}

impl<IO> Guarded<IO> {
    /// Guards a fresh connection. Set hyper's `max_headers` to [`MAX_HEADERS`], or a 431 becomes another answer.
    pub fn new(io: IO) -> Self {
        Self { io, reader: Reader::default(), input: BytesMut::new(), out: BytesMut::new(), ended: false }
    }

    fn refuse(&mut self, refusal: Refusal) {
        tracing::debug!("HTTP/1 connection refused: {refusal}");
        match refusal {
            Refusal::Bad(_) => self.out.extend_from_slice(POISON),
            Refusal::TooLarge => {
                self.out.extend_from_slice(b"GET / HTTP/1.1\r\n");
                for _ in 0..=MAX_HEADERS {
                    self.out.extend_from_slice(b"a:b\r\n");
                }
                self.out.extend_from_slice(b"\r\n");
            }
        }
    }

    /// What hyper answers to a request for an upgrade decides what becomes of the bytes behind it.
    fn hear(&mut self, written: &[u8]) {
        if self.reader.place() == Place::Held && !written.is_empty() {
            self.reader.decide(written.starts_with(b"HTTP/1.1 101 "));
            // In neither case can there be a refusal: the rest is raw, or dropped.
            let _ = self.reader.step(&mut self.input, &mut self.out);
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for Guarded<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if !this.out.is_empty() {
                let n = this.out.len().min(buf.remaining());
                buf.put_slice(&this.out[..n]);
                this.out.advance(n);
                return Poll::Ready(Ok(()));
            }
            if this.ended || buf.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            let unseen = this.reader.unseen();
            if 0 < unseen && this.input.is_empty() {
                if this.reader.place() == Place::Raw {
                    return Pin::new(&mut this.io).poll_read(cx, buf);
                }
                let room = usize::try_from(unseen).unwrap_or(usize::MAX).min(buf.remaining());
                let mut part = ReadBuf::new(buf.initialize_unfilled_to(room));
                ready!(Pin::new(&mut this.io).poll_read(cx, &mut part))?;
                let n = part.filled().len();
                buf.advance(n);
                this.reader.pass(n as u64);
                return Poll::Ready(Ok(()));
            }
            if this.reader.place() == Place::Held && MAX_HELD <= this.input.len() {
                // Writing the answer wakes this: hyper polls both in one task.
                return Poll::Pending;
            }
            this.input.reserve(READ);
            if ready!(tokio_util::io::poll_read_buf(Pin::new(&mut this.io), cx, &mut this.input))? == 0 {
                this.ended = true;
                continue;
            }
            if let Err(refusal) = this.reader.step(&mut this.input, &mut this.out) {
                this.refuse(refusal);
            }
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Guarded<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.hear(buf);
        Pin::new(&mut self.io).poll_write(cx, buf)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Some(first) = bufs.iter().find(|buf| !buf.is_empty()) {
            self.hear(first);
        }
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
