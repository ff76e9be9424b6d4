//! The task that owns the carrier.

use super::{
    CLOSING,
    shared::{Shared, Turn, Visit},
};
use bytes::BytesMut;
use moorline_proto::mux::Outgoing;
use std::{
    future::Future,
    io::{self, IoSlice},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite},
    time::{Instant, Sleep, sleep_until},
};

/// Read buffer of an idle session, in bytes.
const READ_IDLE: usize = 4 * 1024;
/// Read buffer of a busy one: at most twice what the machine keeps without copying.
const READ_BUSY: usize = 64 * 1024;
/// Pieces given to the carrier in one call.
const SLICES: usize = 64;
/// Bytes gathered for a carrier that takes one slice at a time.
const GATHER: usize = 16 * 1024;
/// Turns before other tasks get theirs, on carriers that are not bound by tokio's budget.
const TURNS: usize = 32;

/// Moves bytes between the carrier and the machine. A stuck write never stops reading: both are tried at each turn.
pub(super) struct Driver<IO> {
    io: IO,
    shared: Arc<Shared>,
    input: BytesMut,
    /// Size of the read buffer, which follows how much arrives.
    read_size: usize,
    /// A read has filled its buffer since the last trim.
    busy: bool,
    out: Outgoing,
    gather: Vec<u8>,
    /// Bytes that the carrier took and the statistics do not know of.
    written: usize,
    unflushed: bool,
    may_read: bool,
    read_ended: bool,
    sleep: Pin<Box<Sleep>>,
    phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The session lives.
    Live,
    /// The session has ended: its last words go out until the sleep fires.
    Closing,
    /// They are out; the carrier is being shut down.
    Shutdown,
    /// Waits for the peer to hang up, so that an early reset of the carrier takes nothing back.
    Lingering,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Driver<IO> {
    pub(super) fn new(io: IO, shared: Arc<Shared>) -> Self {
        Self {
            io,
            shared,
            input: BytesMut::new(),
            read_size: READ_IDLE,
            busy: false,
            out: Outgoing::new(),
            gather: Vec::new(),
            written: 0,
            unflushed: false,
            may_read: true,
            read_ended: false,
            sleep: Box::pin(sleep_until(Instant::now())),
            phase: Phase::Live,
        }
    }

    /// Reads until the carrier has no more or the buffer is full. `Ready`: how much came; an error: the end.
    fn read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let before = self.input.len();
        loop {
            if READ_BUSY <= self.input.len() {
                break;
            }
            let room = self.input.capacity() - self.input.len();
            if room < READ_IDLE / 4 || (self.input.is_empty() && room < self.read_size) {
                self.input.reserve(self.read_size);
            }
            let len = self.input.len();
            match pin!(self.io.read_buf(&mut self.input)).poll(cx) {
                Poll::Ready(Ok(0)) => {
                    self.read_ended = true;
                    break;
                }
                Poll::Ready(Ok(_)) if self.input.len() == self.input.capacity() => {
                    self.busy = true;
                    self.read_size = (self.read_size * 4).min(READ_BUSY);
                }
                // More than the idle buffer at once is a sign of more to come as well.
                Poll::Ready(Ok(n)) => self.busy |= READ_IDLE <= n,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending if len == before => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        Poll::Ready(Ok(self.input.len() - before))
    }

    /// Writes until everything is out or the carrier takes no more.
    fn write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.out.is_empty() {
            let n = ready!(self.write_some(cx))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.out.advance(n);
            self.written += n;
            self.unflushed = true;
        }
        Poll::Ready(Ok(()))
    }

    fn write_some(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.io.is_write_vectored() {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let mut used = 0;
            for (slice, piece) in slices.iter_mut().zip(self.out.pieces()) {
                *slice = IoSlice::new(piece);
                used += 1;
            }
            return Pin::new(&mut self.io).poll_write_vectored(cx, slices.get(..used).unwrap_or_default());
        }
        self.gather.clear();
        for piece in self.out.pieces() {
            if GATHER <= self.gather.len() {
                break;
            }
            self.gather.extend_from_slice(piece.get(..GATHER).unwrap_or(piece));
            if GATHER < piece.len() {
                break; // the rest of it comes first next time
            }
        }
        Pin::new(&mut self.io).poll_write(cx, &self.gather)
    }

    /// What comes after the session's end. `Ready`: the task is done.
    fn poll_goodbye(&mut self, cx: &mut Context<'_>, finished: bool, lost: bool) -> Poll<()> {
        if lost || (self.phase != Phase::Live && self.sleep.as_mut().poll(cx).is_ready()) {
            return Poll::Ready(());
        }
        if self.phase == Phase::Live {
            self.phase = Phase::Closing;
            self.sleep.as_mut().reset(Instant::now() + CLOSING);
            if self.sleep.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
        }
        if self.phase == Phase::Closing && finished && self.out.is_empty() && !self.unflushed {
            self.phase = Phase::Shutdown;
        }
        if self.phase == Phase::Shutdown {
            if ready!(Pin::new(&mut self.io).poll_shutdown(cx)).is_err() {
                return Poll::Ready(());
            }
            self.phase = Phase::Lingering;
        }
        if self.phase == Phase::Lingering && self.read_ended { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Sets the alarm if it would ring too late. One that rings too early costs less than setting it each time.
    fn set_alarm(&mut self, turn: &Turn, fired: bool) {
        if let Some(wake_at) = turn.wake_at {
            let at = self.shared.instant(wake_at);
            if fired || at < self.sleep.deadline() {
                self.sleep.as_mut().reset(at);
            }
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Future for Driver<IO> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        for _ in 0..TURNS {
            let mut lost = None;
            let mut read = 0;
            // Something is left to do without waiting for anyone.
            let mut again = false;
            if !this.read_ended && (this.may_read || this.phase != Phase::Live) {
                match this.read(cx) {
                    Poll::Ready(Ok(n)) => (read, again) = (n, READ_BUSY <= this.input.len()),
                    Poll::Ready(Err(error)) => {
                        this.read_ended = true;
                        lost = Some(error.to_string());
                    }
                    Poll::Pending => {}
                }
                if this.read_ended && lost.is_none() {
                    lost = Some("the carrier ended without a goodbye".to_owned());
                }
            }
            let timer = this.phase == Phase::Live && this.sleep.as_mut().poll(cx).is_ready();
            let trim = timer && !std::mem::take(&mut this.busy);
            if trim && this.input.is_empty() {
                (this.input, this.read_size, this.gather) = (BytesMut::new(), READ_IDLE, Vec::new());
            }

            let is_lost = lost.is_some();
            let visit = Visit {
                input: &mut this.input,
                out: &mut this.out,
                read,
                written: std::mem::take(&mut this.written),
                lost,
                timer,
                trim,
            };
            let turn = this.shared.turn(visit, cx);
            again |= turn.may_read && !this.may_read;
            this.may_read = turn.may_read;
            if this.phase == Phase::Live {
                this.set_alarm(&turn, timer);
                again |= timer;
            }

            match this.write(cx) {
                Poll::Ready(Ok(())) => {
                    again |= turn.more;
                    // Flushing waits until nothing more is queued. An error comes again with the next write or read.
                    if this.unflushed && !again && Pin::new(&mut this.io).poll_flush(cx).is_ready() {
                        this.unflushed = false;
                    }
                }
                Poll::Ready(Err(error)) if !this.read_ended => {
                    // The peer may have said why before it hung up: one more read, then it is over.
                    while matches!(this.read(cx), Poll::Ready(Ok(1..))) && this.input.len() < READ_BUSY {}
                    this.read_ended = true;
                    let lost = Some(error.to_string());
                    let (read, written) = (0, std::mem::take(&mut this.written));
                    let (input, out) = (&mut this.input, &mut this.out);
                    this.shared.turn(Visit { input, out, read, written, lost, timer: false, trim: false }, cx);
                    return Poll::Ready(());
                }
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Pending => {}
            }

            if turn.wake_at.is_none() && this.poll_goodbye(cx, turn.finished, is_lost).is_ready() {
                return Poll::Ready(());
            }
            if !again {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<IO> Drop for Driver<IO> {
    /// Whatever ends the task, a runtime that goes down for one: nobody waits for it for ever.
    fn drop(&mut self) {
        self.shared.with(|access| access.mux().carrier_lost());
    }
}
