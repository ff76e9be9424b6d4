//! WebSocket frames after the handshake, in both roles: bytes come out, or the connection ends; what is announced and
//! never comes costs nothing.

use crate::split;
use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

/// A peer that says what it has to say, in pieces, and hangs up; what it is told is thrown away.
struct Peer<'a> {
    says: &'a [u8],
    piece: usize,
}

impl AsyncRead for Peer<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let n = self.says.len().min(self.piece).min(buf.remaining());
        let (now, later) = self.says.split_at(n);
        buf.put_slice(now);
        self.says = later;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Peer<'_> {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The first byte: which side listens, and how the rest is cut.
pub fn run(data: &[u8]) {
    let (how, data) = split(data);
    let heard = |piece| {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let peer = Peer { says: data, piece };
            let mut bytes = moorline_link::testing::websocket(peer, how & 1 == 0).await;
            let mut all = Vec::new();
            let end = bytes.read_to_end(&mut all).await.map_err(|error| error.kind());
            (all, end)
        })
    };
    let whole = heard(usize::MAX);
    assert!(whole.0.len() <= data.len(), "more came out than went in");
    assert_eq!(whole, heard(usize::from(how >> 1) + 1));
}
