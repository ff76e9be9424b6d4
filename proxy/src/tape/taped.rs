//! A connection that is recorded while it passes.

use super::{Decoder, Heard, NoTape, Tape, Way};
use crate::upgrade::Io;
use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Sleep,
};

/// Longest time that a session waits for its recording, where none goes on without.
const PATIENCE: Duration = Duration::from_secs(5);

/// The cluster's side of a session, and the tape on which it is.
pub struct Taped<T> {
    io: T,
    decoder: Decoder,
    tape: Arc<Tape>,
    waiting: Option<Pin<Box<Sleep>>>,
    /// Bytes that were read on their way to the cluster, and that it has not taken yet: they are given again.
    ahead: usize,
}

impl<T> Taped<T> {
    /// Records what passes `io`.
    pub fn new(io: T, decoder: Decoder, tape: Arc<Tape>) -> Self {
        Self { io, decoder, tape, waiting: None, ahead: 0 }
    }

    /// Room on the tape. A session whose recording does not keep up goes as fast as that; one whose recording has failed
    /// ends, where the policy says so.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.tape.poll_room(cx) {
            Poll::Ready(room) => {
                self.waiting = None;
                Poll::Ready(room.map_err(io::Error::other))
            }
            Poll::Pending => {
                let waiting = self.waiting.get_or_insert_with(|| Box::pin(tokio::time::sleep(PATIENCE)));
                std::task::ready!(waiting.as_mut().poll(cx));
                Poll::Ready(Err(io::Error::other(self.tape.fail(NoTape::Slow))))
            }
        }
    }

    fn heard(&mut self, way: Way, bytes: &[u8]) -> io::Result<()> {
        let tape = &self.tape;
        let read = self.decoder.feed(way, bytes, &mut |heard| match heard {
            Heard::Typed(bytes) => tape.typed(bytes),
            Heard::Shown(bytes) => tape.shown(bytes),
            Heard::Resized(columns, rows) => tape.resized(columns, rows),
        });
        // Whatever the policy for a store that fails: who could send what is not read would not be recorded.
        read.map_err(|unreadable| io::Error::other(tape.fail(NoTape::Unreadable(unreadable))))
    }
}

impl<T: Io> Taped<T> {
    /// Cuts the connection short.
    pub fn reset(&mut self, code: moorline_proto::code::ResetCode) {
        self.io.reset(code);
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Taped<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        std::task::ready!(self.poll_room(cx))?;
        let before = buf.filled().len();
        std::task::ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        let new = buf.filled().get(before..).unwrap_or_default();
        Poll::Ready(self.heard(Way::ToClient, new))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Taped<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        std::task::ready!(self.poll_room(cx))?;
        // Read first: what cannot be read never gets there.
        let new = buf.get(self.ahead..).unwrap_or_default();
        self.ahead += new.len();
        self.heard(Way::ToCluster, new)?;
        let n = std::task::ready!(Pin::new(&mut self.io).poll_write(cx, buf))?;
        self.ahead = self.ahead.saturating_sub(n);
        Poll::Ready(Ok(n))
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
    use crate::{
        audit::OnFailure,
        tape::{About, Over, Settings, Store},
    };
    use http::HeaderMap;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    #[tokio::test]
    async fn what_cannot_be_read_is_never_written() {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings {
            dir: dir.path().to_owned(),
            max_file: 1 << 20,
            max_total: 1 << 20,
            keep: Duration::from_secs(3600),
            policy: OnFailure::Continue,
            over: Over::Kept,
        };
        let tape = Store::open(settings, |_| {}).unwrap().begin(&About::default()).await.unwrap();
        let answer = HeaderMap::from_iter([(http::header::UPGRADE, "websocket".parse().unwrap())]);
        let (near, mut far) = duplex(100);
        let mut taped = Taped::new(near, Decoder::of(&answer).unwrap(), tape);
        taped.write_all(b"\x82\x02\x00a").await.unwrap();
        assert!(taped.write_all(b"\xc2\x04\x00rm\n").await.is_err());
        drop(taped);
        let mut heard = Vec::new();
        far.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"\x82\x02\x00a");
    }
}
