//! A connection's place at the port. Its socket holds it: an upgraded connection leaves the HTTP that it came by, and counts on.

use crate::{crowd::Place, metrics::Metrics};
use prometheus::IntGauge;
use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// One connection's place. Clones are of the same, which is free again with the last of them, or once somebody has left it.
#[derive(Debug, Clone)]
pub(crate) struct Seat(Arc<Mutex<Option<Taken>>>);

#[derive(Debug)]
struct Taken {
    _place: Place,
    _open: Shown,
    upgraded: Option<Shown>,
}

/// One of what a gauge shows, for as long as it lives.
#[derive(Debug)]
struct Shown(IntGauge);

impl Shown {
    fn by(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Seat {
    pub fn new(place: Place, metrics: &Metrics) -> Self {
        let open = Shown::by(&metrics.connections);
        Self(Arc::new(Mutex::new(Some(Taken { _place: place, _open: open, upgraded: None }))))
    }

    /// What served the connection is gone: if somebody has it still, it was upgraded.
    pub fn served(self, metrics: &Metrics) {
        if 1 < Arc::strong_count(&self.0)
            && let Some(taken) = self.taken().as_mut()
        {
            taken.upgraded.get_or_insert_with(|| Shown::by(&metrics.connections_upgraded));
        }
    }

    /// The connection has become something that is counted elsewhere.
    pub fn leave(&self) {
        let left = self.taken().take();
        drop(left);
    }

    fn taken(&self) -> MutexGuard<'_, Option<Taken>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection and its seat.
#[derive(Debug)]
pub(crate) struct Seated<IO> {
    io: IO,
    _seat: Seat,
}

impl<IO> Seated<IO> {
    pub fn new(io: IO, seat: &Seat) -> Self {
        Self { io, _seat: seat.clone() }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Seated<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Seated<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
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
