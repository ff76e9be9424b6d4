//! Bytes both ways between a stream and another connection, at the cost of nothing while none pass.

use crate::upgrade::Io;
use std::{
    cell::Cell,
    future::poll_fn,
    io,
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering},
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

/// Bytes moved at once. One buffer of a worker thread serves all connections that it moves: an idle one holds none.
const CHUNK: usize = 64 << 10;
/// Chunks moved before others get their turn.
const ROUNDS: usize = 16;

thread_local! {
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Which side of a splice failed.
#[derive(Debug, thiserror::Error)]
pub enum SpliceError {
    /// No byte passed either way for as long as was allowed.
    #[error("idle for too long")]
    Idle,
    /// The first of the two.
    #[error("the stream broke")]
    First(#[source] io::Error),
    /// The second of the two.
    #[error("the connection broke")]
    Second(#[source] io::Error),
}

/// What passed, while it does: from the first to the second, and back.
#[derive(Debug, Default)]
pub struct Passed {
    /// From the first to the second, in bytes.
    pub there: AtomicU64,
    /// From the second to the first, in bytes.
    pub back: AtomicU64,
}

impl Passed {
    fn sum(&self) -> u64 {
        self.there.load(Ordering::Relaxed).wrapping_add(self.back.load(Ordering::Relaxed))
    }
}

#[derive(Default)]
struct Way {
    /// Read, and not yet taken by the writer.
    held: Vec<u8>,
    at: usize,
    unflushed: bool,
    read_end: bool,
    done: bool,
}

enum Failed {
    Reading(io::Error),
    Writing(io::Error),
}

impl Way {
    fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        count: &AtomicU64,
    ) -> Poll<Result<(), Failed>>
    where
        R: AsyncRead + Unpin + ?Sized,
        W: AsyncWrite + Unpin + ?Sized,
    {
        for _ in 0..ROUNDS {
            while let Some(rest @ [_, ..]) = self.held.get(self.at..) {
                match Pin::new(&mut *to).poll_write(cx, rest) {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Err(Failed::Writing(io::ErrorKind::WriteZero.into()))),
                    Poll::Ready(Ok(n)) => self.at += n,
                    Poll::Ready(Err(e)) => return Poll::Ready(Err(Failed::Writing(e))),
                    Poll::Pending => return Poll::Pending,
                }
            }
            (self.held, self.at) = (Vec::new(), 0);
            if self.read_end {
                return match Pin::new(&mut *to).poll_shutdown(cx) {
                    Poll::Ready(Ok(())) => {
                        self.done = true;
                        Poll::Ready(Ok(()))
                    }
                    Poll::Ready(Err(e)) => Poll::Ready(Err(Failed::Writing(e))),
                    Poll::Pending => Poll::Pending,
                };
            }
            match self.chunk(cx, from, to, count) {
                Ok(true) => {}
                Ok(false) => {
                    // Nothing more to read now: what was written must not wait for it.
                    if self.unflushed && self.held.is_empty() {
                        match Pin::new(&mut *to).poll_flush(cx) {
                            Poll::Ready(Ok(())) => self.unflushed = false,
                            Poll::Ready(Err(e)) => return Poll::Ready(Err(Failed::Writing(e))),
                            Poll::Pending => {}
                        }
                    }
                    return Poll::Pending;
                }
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Reads once and writes what is taken of it. `false`: there is nothing to read now.
    fn chunk<R, W>(&mut self, cx: &mut Context<'_>, from: &mut R, to: &mut W, count: &AtomicU64) -> Result<bool, Failed>
    where
        R: AsyncRead + Unpin + ?Sized,
        W: AsyncWrite + Unpin + ?Sized,
    {
        let mut scratch = SCRATCH.take();
        scratch.resize(CHUNK, 0);
        let mut space = ReadBuf::new(&mut scratch);
        let read = Pin::new(from).poll_read(cx, &mut space);
        let more = match read {
            Poll::Pending => Ok(false),
            Poll::Ready(Err(e)) => Err(Failed::Reading(e)),
            Poll::Ready(Ok(())) if space.filled().is_empty() => {
                self.read_end = true;
                Ok(true)
            }
            Poll::Ready(Ok(())) => {
                let mut data = space.filled();
                count.fetch_add(data.len() as u64, Ordering::Relaxed);
                self.unflushed = true;
                let mut failed = None;
                while !data.is_empty() {
                    match Pin::new(&mut *to).poll_write(cx, data) {
                        Poll::Ready(Ok(n @ 1..)) => data = data.get(n..).unwrap_or_default(),
                        Poll::Ready(Ok(0)) => failed = Some(io::ErrorKind::WriteZero.into()),
                        Poll::Ready(Err(e)) => failed = Some(e),
                        Poll::Pending => {
                            self.held = data.to_vec();
                            break;
                        }
                    }
                    if failed.is_some() {
                        break;
                    }
                }
                failed.map_or(Ok(true), |e| Err(Failed::Writing(e)))
            }
        };
        SCRATCH.set(scratch);
        more
    }
}

/// Moves bytes both ways until both directions have ended; the end of one is passed on as a half-close. `idle`: longest
/// time without a byte either way.
///
/// # Errors
/// See [`SpliceError`]. The caller cuts both short then.
///
/// # Cancel safety
/// None: dropping the future may lose bytes already read.
pub async fn splice<A, B>(a: &mut A, b: &mut B, idle: Duration, passed: &Passed) -> Result<(), SpliceError>
where
    A: Io,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let (mut there, mut back) = (Way::default(), Way::default());
    let mut seen = 0;
    // One timer that looks whether anything passed meanwhile costs less than one that is set anew by each byte.
    let timer = tokio::time::sleep(idle);
    tokio::pin!(timer);
    poll_fn(|cx| {
        while timer.as_mut().poll(cx).is_ready() {
            let now = passed.sum();
            if now == seen {
                return Poll::Ready(Err(SpliceError::Idle));
            }
            seen = now;
            timer.as_mut().reset(Instant::now() + idle);
        }
        if !there.done
            && let Poll::Ready(Err(failed)) = there.poll(cx, a, b, &passed.there)
        {
            return Poll::Ready(Err(match failed {
                Failed::Reading(e) => SpliceError::First(e),
                Failed::Writing(e) => SpliceError::Second(e),
            }));
        }
        if !back.done
            && let Poll::Ready(Err(failed)) = back.poll(cx, b, a, &passed.back)
        {
            return Poll::Ready(Err(match failed {
                Failed::Reading(e) => SpliceError::Second(e),
                Failed::Writing(e) => SpliceError::First(e),
            }));
        }
        if there.done && back.done {
            return Poll::Ready(Ok(()));
        }
        // Reads tell nothing more once they have ended.
        if there.read_end
            && let Poll::Ready(e) = a.poll_cut(cx)
        {
            return Poll::Ready(Err(SpliceError::First(e)));
        }
        Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    #[tokio::test]
    async fn bytes_pass_both_ways_and_ends_too() {
        let ((mut left, mut a), (mut b, mut right)) = (duplex(100), duplex(100));
        let passed = Passed::default();
        let data: Vec<u8> = (0..300_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let echo = async {
            let mut all = Vec::new();
            right.read_to_end(&mut all).await.unwrap();
            right.write_all(&all).await.unwrap();
            right.shutdown().await.unwrap();
        };
        let ask = async {
            let (mut read, mut write) = tokio::io::split(&mut left);
            write.write_all(&data).await.unwrap();
            write.shutdown().await.unwrap();
            let mut back = Vec::new();
            read.read_to_end(&mut back).await.unwrap();
            back
        };
        let moved = splice(&mut a, &mut b, Duration::from_secs(60), &passed);
        let (moved, back, ()) = tokio::join!(moved, ask, echo);
        assert!(moved.is_ok() && back == data);
        assert_eq!(passed.sum(), 600_000);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_it_and_a_byte_does_not() {
        let ((mut left, mut a), (mut b, _right)) = (duplex(100), duplex(100));
        let (passed, begin, idle) = (Passed::default(), Instant::now(), Duration::from_secs(10));
        let talk = async {
            tokio::time::sleep(Duration::from_secs(9)).await;
            left.write_all(b"x").await.unwrap();
            std::future::pending::<()>().await;
        };
        let ended = tokio::select! {
            ended = splice(&mut a, &mut b, idle, &passed) => ended,
            () = talk => unreachable!(),
        };
        assert!(matches!(ended, Err(SpliceError::Idle)));
        assert_eq!(begin.elapsed(), idle * 2);
    }
}
