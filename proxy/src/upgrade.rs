//! Upgraded connections: raw bytes both ways after a 101.

use bytes::Bytes;
use moorline_proto::code::ResetCode;
use std::{
    io,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

/// A byte stream both ways whose owner can cut it short so that the peer sees that it was cut.
pub trait Io: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// Cuts both directions short. Dropping does the same with `Cancelled` where the transport can say so.
    fn reset(&mut self, code: ResetCode) {
        let _ = code;
    }

    /// Ready once the other side has cut the stream short. For a side that has read everything, and still wants to know when
    /// nobody waits for it any more. Pending for ever where the transport cannot tell.
    fn poll_cut(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let _ = cx;
        Poll::Pending
    }

    /// Ready once the other side has taken the stream, or refused it. At once where the transport asks nobody.
    ///
    /// # Errors
    /// The refusal, or the end of the transport.
    fn poll_accepted(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let _ = cx;
        Poll::Ready(Ok(()))
    }

    /// Ready once whoever carries the stream seems to be gone while somebody else could take it: what has no answer yet, and
    /// does no harm a second time, is better asked for there. Pending for ever where nobody else could.
    fn poll_elsewhere(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let _ = cx;
        Poll::Pending
    }

    /// `true` once whoever carries the stream has given a sign of life that was asked for after this was first called;
    /// `false` if it is gone, or goes, while somebody else could take the stream. At once `true` where nobody else could.
    fn poll_alive(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let _ = cx;
        Poll::Ready(true)
    }
}

impl Io for moorline_link::Stream {
    fn reset(&mut self, code: ResetCode) {
        moorline_link::Stream::reset(self, code);
    }
    fn poll_cut(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        moorline_link::Stream::poll_cut(self, cx).map(io::Error::from)
    }
    fn poll_accepted(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        moorline_link::Stream::poll_accepted(self, cx).map_err(io::Error::from)
    }
}
impl Io for DuplexStream {}
impl Io for Box<dyn Io> {
    fn reset(&mut self, code: ResetCode) {
        (**self).reset(code);
    }
    fn poll_cut(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        (**self).poll_cut(cx)
    }
    fn poll_accepted(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        (**self).poll_accepted(cx)
    }
    fn poll_elsewhere(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        (**self).poll_elsewhere(cx)
    }
    fn poll_alive(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        (**self).poll_alive(cx)
    }
}
impl<T: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static> Io for hyper_util::rt::TokioIo<T> {}

/// Extension of a 101 response: the connection behind it, to be taken once.
///
/// At the agent an upstream puts it there (a `TokioIo<hyper::upgrade::Upgraded>` will do); at the hub [`crate::wire::request`] does.
#[derive(Clone)]
pub struct UpgradedIo(Arc<Mutex<Option<Box<dyn Io>>>>);

impl UpgradedIo {
    /// Wraps a connection.
    pub fn new(io: impl Io) -> Self {
        Self(Arc::new(Mutex::new(Some(Box::new(io)))))
    }
    /// Takes it; `None` the second time.
    pub fn take(&self) -> Option<Box<dyn Io>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take()
    }
}

/// Size of each direction's buffer, in bytes.
const BUFFER: usize = 16 * 1024;

/// Moves bytes both ways until both directions ended; the end of one is passed on as a half-close. There is no idle limit: a
/// shell may be quiet for hours, and what carries it notices when its other end is gone.
///
/// # Errors
/// The first failure of either side. The caller cuts both short then.
///
/// # Cancel safety
/// None: dropping the future may lose bytes already read.
pub async fn copy_both<A, B>(a: &mut A, b: &mut B) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    tokio::io::copy_bidirectional_with_sizes(a, b, BUFFER, BUFFER).await.map(drop)
}

/// A TLS connection whose end is its own goodbye. One that ends without was cut, by whoever held it or on the way.
#[derive(Debug)]
pub struct Whole<T>(pub T);

impl<T: AsyncRead + Unpin> AsyncRead for Whole<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.0).poll_read(cx, buf) {
            Poll::Ready(Err(e)) if e.kind() == io::ErrorKind::UnexpectedEof => {
                Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionReset, e)))
            }
            other => other,
        }
    }
}
impl<T: AsyncWrite + Unpin> AsyncWrite for Whole<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Io for Whole<T> {}

/// A connection of which some bytes were read before it came here.
#[derive(Debug)]
pub struct Rewound<T> {
    first: Bytes,
    io: T,
}

impl<T> Rewound<T> {
    /// `first` is read before anything else.
    pub fn new(first: Bytes, io: T) -> Self {
        Self { first, io }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Rewound<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buf);
        }
        let n = self.first.len().min(buf.remaining());
        buf.put_slice(&self.first.split_to(n));
        Poll::Ready(Ok(()))
    }
}
impl<T: AsyncWrite + Unpin> AsyncWrite for Rewound<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
impl<T: Io> Io for Rewound<T> {
    fn reset(&mut self, code: ResetCode) {
        self.io.reset(code);
    }
    fn poll_cut(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        self.io.poll_cut(cx)
    }
}

/// Counts what passes.
#[derive(Debug)]
pub(crate) struct Counted<T> {
    pub(crate) io: T,
    pub(crate) read: Arc<AtomicU64>,
    pub(crate) written: Arc<AtomicU64>,
}
impl<T: AsyncRead + Unpin> AsyncRead for Counted<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.io).poll_read(cx, buf);
        self.read.fetch_add((buf.filled().len() - before) as u64, Ordering::Relaxed);
        result
    }
}
impl<T: AsyncWrite + Unpin> AsyncWrite for Counted<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.io).poll_write(cx, buf);
        if let Poll::Ready(Ok(n)) = result {
            self.written.fetch_add(n as u64, Ordering::Relaxed);
        }
        result
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
