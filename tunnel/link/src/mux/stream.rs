//! One stream, for the application.

use super::shared::{News, Shared};
use bytes::{Bytes, BytesMut};
use moorline_proto::{
    code::ResetCode,
    header::Class,
    mux::{Read, Reset, StreamKey},
};
use std::{
    future::poll_fn,
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The inner error of every `io::Error` with which a stream ends before its end of input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("stream reset: {0}")]
pub struct StreamReset(pub ResetCode);

impl From<StreamReset> for io::Error {
    fn from(reset: StreamReset) -> Self {
        Self::new(io::ErrorKind::ConnectionReset, reset)
    }
}

/// Writes up to this size are copied under the session's lock, longer ones before it is taken.
const SHORT: usize = 2 * 1024;
/// Most that one read takes.
const LONG: usize = 256 * 1024;

/// One stream. Both directions are independent: shutting down the writer leaves the reader as it is.
///
/// Dropping it is clean once its writer was shut down and all input was read; before that it resets the stream with
/// `Cancelled`. A reset by the peer ends both directions, save input that had already come to its end.
#[derive(Debug)]
pub struct MuxStream {
    shared: Arc<Shared>,
    key: StreamKey,
    finished: bool,
}

impl MuxStream {
    pub(super) const fn new(shared: Arc<Shared>, key: StreamKey) -> Self {
        Self { shared, key, finished: false }
    }

    /// The id on the wire.
    #[must_use]
    pub const fn id(&self) -> u32 {
        self.key.id()
    }

    /// Changes how urgent the bytes written here are.
    pub fn set_class(&mut self, class: Class) {
        self.shared.with(|access| access.mux().set_class(self.key, class));
    }

    /// Cuts both directions short. The peer sees `code`, never an end of input.
    pub fn reset(&mut self, code: ResetCode) {
        self.shared.with(|access| access.mux().reset(self.key, code));
    }

    /// Waits until the stream is cut short, by either side or by the end of the session. For those who have nothing
    /// to read or write and yet want to stop when nobody needs them any more.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn stopped(&mut self) -> StreamReset {
        poll_fn(|cx| self.poll_stopped(cx)).await
    }

    /// [`MuxStream::stopped`] for those who poll.
    pub fn poll_stopped(&mut self, cx: &mut Context<'_>) -> Poll<StreamReset> {
        self.shared.with(|access| match access.mux().watch(self.key) {
            Some(reset) => Poll::Ready(StreamReset(reset.code)),
            None => access.wait(self.key, News::Cut, cx),
        })
    }

    /// Takes up to `max` bytes without copying them. Empty: the end of input.
    ///
    /// # Errors
    /// [`StreamReset`].
    pub fn poll_read_bytes(&mut self, cx: &mut Context<'_>, max: usize) -> Poll<io::Result<Bytes>> {
        self.shared.with(|access| match access.mux().read(self.key, max) {
            Ok(Read::Data(bytes)) => Poll::Ready(Ok(bytes)),
            Ok(Read::End) => Poll::Ready(Ok(Bytes::new())),
            Ok(Read::Pending) => access.wait(self.key, News::Readable, cx),
            Err(reset) => Poll::Ready(Err(StreamReset(reset.code).into())),
        })
    }

    /// Takes the front of `bytes` without copying it; how much that was.
    ///
    /// # Errors
    /// [`StreamReset`], or `BrokenPipe` after a shutdown.
    pub fn poll_write_bytes(&mut self, cx: &mut Context<'_>, bytes: &mut Bytes) -> Poll<io::Result<usize>> {
        if self.finished {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.shared.with(|access| match access.mux().write_bytes(self.key, bytes) {
            Ok(0) => access.wait(self.key, News::Writable, cx),
            Ok(n) => Poll::Ready(Ok(n)),
            Err(reset) => Poll::Ready(Err(refused(reset))),
        })
    }

    /// How many of `want` bytes may be written now.
    fn poll_room(&self, cx: &Context<'_>, want: usize) -> Poll<io::Result<usize>> {
        self.shared.with(|access| match access.mux().writable(self.key, want) {
            Ok(0) => access.wait(self.key, News::Writable, cx),
            Ok(n) => Poll::Ready(Ok(n)),
            Err(reset) => Poll::Ready(Err(refused(reset))),
        })
    }
}

fn refused(reset: Reset) -> io::Error {
    StreamReset(reset.code).into()
}

impl AsyncRead for MuxStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let bytes = ready!(self.poll_read_bytes(cx, buf.remaining().min(LONG)))?;
        buf.put_slice(&bytes);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for MuxStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.finished {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if buf.len() <= SHORT {
            return self.shared.with(|access| match access.mux().write(self.key, buf) {
                Ok(0) => access.wait(self.key, News::Writable, cx),
                Ok(n) => Poll::Ready(Ok(n)),
                Err(reset) => Poll::Ready(Err(refused(reset))),
            });
        }
        let room = ready!(self.poll_room(cx, buf.len()))?;
        let mut bytes = Bytes::copy_from_slice(buf.get(..room).unwrap_or(buf));
        self.poll_write_bytes(cx, &mut bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let want = bufs.iter().map(|buf| buf.len()).sum();
        match bufs {
            [] => return Poll::Ready(Ok(0)),
            [one] => return self.poll_write(cx, one),
            _ if self.finished => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            _ if want == 0 => return Poll::Ready(Ok(0)),
            _ => {}
        }
        let room = ready!(self.poll_room(cx, want))?;
        let mut gathered = BytesMut::with_capacity(room);
        for buf in bufs {
            let fits = buf.len().min(room - gathered.len());
            gathered.extend_from_slice(buf.get(..fits).unwrap_or(buf));
        }
        self.poll_write_bytes(cx, &mut gathered.freeze())
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Always ready: what was written goes out as soon as the carrier takes it.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Ends this direction after what was written. Ready at once, as a socket's shutdown is.
    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.finished = true;
        self.shared.with(|access| access.mux().finish(self.key));
        Poll::Ready(Ok(()))
    }
}

impl Drop for MuxStream {
    fn drop(&mut self) {
        self.shared.with(|access| access.release(self.key));
    }
}
