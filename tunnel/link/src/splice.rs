//! Moves bytes both ways between two byte streams.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, sleep_until},
};

/// Bytes held per direction.
const BUFFER: usize = 64 * 1024;

/// Bytes moved by [`splice`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Moved {
    /// Bytes read from `a` and written to `b`.
    pub a_to_b: u64,
    /// Bytes read from `b` and written to `a`.
    pub b_to_a: u64,
}

/// Why [`splice`] ended before both directions did.
#[derive(Debug, thiserror::Error)]
pub enum SpliceError {
    /// Nothing moved either way for the whole idle time.
    #[error("nothing moved in time")]
    Idle,
    /// The first side failed.
    #[error("the first side failed")]
    A(#[source] io::Error),
    /// The second side failed.
    #[error("the second side failed")]
    B(#[source] io::Error),
}

/// Which end of a direction failed.
enum Failed {
    Reader(io::Error),
    Writer(io::Error),
}

/// One direction: reads, writes, and at the end of input shuts the writer down.
struct Way {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    ended: bool,
    done: bool,
    dirty: bool,
    moved: u64,
}

impl Way {
    fn new() -> Self {
        let buffer = vec![0; BUFFER].into_boxed_slice();
        Self { buffer, start: 0, end: 0, ended: false, done: false, dirty: false, moved: 0 }
    }

    /// Moves until one side has to be waited for. `Ready`: input ended and the end was passed on.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
    ) -> Poll<Result<(), Failed>> {
        loop {
            if self.done {
                return Poll::Ready(Ok(()));
            }
            if self.start < self.end {
                let waiting = self.buffer.get(self.start..self.end).unwrap_or_default();
                match ready!(Pin::new(&mut *to).poll_write(cx, waiting)).map_err(Failed::Writer)? {
                    0 => return Poll::Ready(Err(Failed::Writer(io::ErrorKind::WriteZero.into()))),
                    n => {
                        self.start += n;
                        self.moved += n as u64;
                        self.dirty = true;
                    }
                }
                continue;
            }
            if self.ended {
                ready!(Pin::new(&mut *to).poll_shutdown(cx)).map_err(Failed::Writer)?;
                self.done = true;
                continue;
            }
            let mut buf = ReadBuf::new(&mut self.buffer);
            match Pin::new(&mut *from).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) => {
                    (self.start, self.end) = (0, buf.filled().len());
                    self.ended = self.end == 0;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Failed::Reader(error))),
                Poll::Pending => {
                    if self.dirty {
                        ready!(Pin::new(&mut *to).poll_flush(cx)).map_err(Failed::Writer)?;
                        self.dirty = false;
                    }
                    return Poll::Pending;
                }
            }
        }
    }
}

/// Moves bytes both ways between `a` and `b` until both directions have ended.
///
/// The end of one is passed on as a half-close. `idle`: longest time without a byte either way.
///
/// # Errors
/// [`SpliceError::Idle`]; or the side that failed, with its source.
///
/// # Cancel safety
/// None: dropping the future closes both sides and may lose bytes already read.
pub async fn splice<A, B>(mut a: A, mut b: B, idle: Duration) -> Result<Moved, SpliceError>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let (mut there, mut back) = (Way::new(), Way::new());
    let mut sleep = std::pin::pin!(sleep_until(Instant::now() + idle));
    let mut seen = 0;
    poll_fn(|cx| {
        let first = there.poll(cx, &mut a, &mut b).map_err(|failed| match failed {
            Failed::Reader(error) => SpliceError::A(error),
            Failed::Writer(error) => SpliceError::B(error),
        })?;
        let second = back.poll(cx, &mut b, &mut a).map_err(|failed| match failed {
            Failed::Reader(error) => SpliceError::B(error),
            Failed::Writer(error) => SpliceError::A(error),
        })?;
        let moved = Moved { a_to_b: there.moved, b_to_a: back.moved };
        if first.is_ready() && second.is_ready() {
            return Poll::Ready(Ok(moved));
        }
        let marks = moved.a_to_b + moved.b_to_a + u64::from(there.done) + u64::from(back.done);
        if marks != seen {
            seen = marks;
            sleep.as_mut().reset(Instant::now() + idle);
        }
        ready!(sleep.as_mut().poll(cx));
        Poll::Ready(Err(SpliceError::Idle))
    })
    .await
}
