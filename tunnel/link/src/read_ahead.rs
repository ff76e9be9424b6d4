//! Fewer, larger reads under TLS.
//!
//! rustls asks its carrier for 4 KiB at a time: a large download pays one system call for each. Behind [`ReadAhead`]
//! it gets its 4 KiB out of a larger piece, once reads have shown that more is waiting; a quiet connection holds no
//! buffer at all.

use bytes::{Buf, BytesMut};
use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Most bytes read ahead on one connection: four TLS records.
const AHEAD: usize = 64 * 1024;

/// A byte stream that reads ahead while there is much to read. Writes pass through.
#[derive(Debug)]
pub struct ReadAhead<IO> {
    io: IO,
    /// Read and not yet taken. Without memory while the connection is quiet.
    ahead: BytesMut,
    /// The last read got all that was asked for: there is more.
    busy: bool,
}

impl<IO> ReadAhead<IO> {
    /// Wraps a connection.
    pub fn new(io: IO) -> Self {
        Self { io, ahead: BytesMut::new(), busy: false }
    }

    /// The connection itself, to look at: what was read ahead is not seen there.
    pub const fn get_ref(&self) -> &IO {
        &self.io
    }

    fn take(&mut self, buf: &mut ReadBuf<'_>) {
        let n = self.ahead.len().min(buf.remaining());
        buf.put_slice(self.ahead.get(..n).unwrap_or_default());
        self.ahead.advance(n);
        if self.ahead.is_empty() && !self.busy {
            self.ahead = BytesMut::new();
        }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for ReadAhead<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.ahead.is_empty() {
            this.take(buf);
            return Poll::Ready(Ok(()));
        }
        let asked = buf.remaining();
        if !this.busy || AHEAD <= asked {
            ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
            this.busy = 0 < asked && buf.remaining() == 0;
            return Poll::Ready(Ok(()));
        }
        this.ahead.reserve(AHEAD);
        let read = tokio_util::io::poll_read_buf(Pin::new(&mut this.io), cx, &mut this.ahead);
        this.busy = matches!(read, Poll::Ready(Ok(n)) if asked < n);
        if !matches!(read, Poll::Ready(Ok(_))) {
            this.ahead = BytesMut::new(); // whoever waits does so without a buffer
        }
        ready!(read)?;
        this.take(buf);
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for ReadAhead<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
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
mod tests {
    use super::*;
    use std::{cell::RefCell, rc::Rc};
    use tokio::io::AsyncReadExt;

    /// Gives what is left of its bytes, then nothing for ever; notes how much was asked for.
    struct Source {
        left: usize,
        asked: Rc<RefCell<Vec<usize>>>,
    }
    impl AsyncRead for Source {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            self.asked.borrow_mut().push(buf.remaining());
            let n = buf.remaining().min(self.left);
            if n == 0 {
                return Poll::Pending;
            }
            buf.put_slice(&vec![b'x'; n]);
            self.left -= n;
            Poll::Ready(Ok(()))
        }
    }

    async fn read(io: &mut ReadAhead<Source>, n: usize) -> Option<usize> {
        let (mut space, mut one) = (vec![0; n], std::pin::pin!(std::future::poll_fn(|_| Poll::Ready(()))));
        tokio::select! {
            biased;
            got = io.read(&mut space) => Some(got.unwrap()),
            () = &mut one => None,
        }
    }

    #[tokio::test]
    async fn much_is_read_at_once_and_little_without_a_buffer() {
        let asked = Rc::default();
        let mut io = ReadAhead::new(Source { left: 100, asked: Rc::clone(&asked) });
        assert_eq!(read(&mut io, 4096).await, Some(100));
        assert_eq!((io.ahead.capacity(), asked.borrow().as_slice()), (0, [4096].as_slice()));
        io.io.left = 4096 * 10;
        for _ in 0..10 {
            assert_eq!(read(&mut io, 4096).await, Some(4096));
        }
        assert_eq!(asked.borrow()[1..], [4096, AHEAD], "one read of what was asked, then all that there is");
        assert_eq!(read(&mut io, 4096).await, None);
        assert_eq!(io.ahead.capacity(), 0, "whoever waits holds no buffer");
    }

    #[tokio::test]
    async fn an_end_is_an_end() {
        let mut io = ReadAhead::new(&b"four bytes and more"[..]);
        let mut all = Vec::new();
        for _ in 0..5 {
            let mut space = [0; 4];
            let n = io.read(&mut space).await.unwrap();
            all.extend_from_slice(&space[..n]);
        }
        assert_eq!((all.as_slice(), io.read(&mut [0; 4]).await.unwrap()), (&b"four bytes and more"[..], 0));
    }
}
