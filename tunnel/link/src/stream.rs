//! One stream of a session.

use crate::{
    carrier::{Cut, Raw},
    urgency::Urgency,
};
use moorline_proto::{
    code::ResetCode,
    codec::VerdictReader,
    header::{Class, Refusal, StreamHeader, Verdict},
};
use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    sync::Notify,
    time::{Instant, timeout},
};

/// Why a stream ended before its end of input. Read and write errors of [`Stream`] are `io::Error`s that hold one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The acceptor refused it.
    #[error("stream refused ({}): {}", .0.code, .0.message)]
    Refused(Refusal),
    /// The peer cut it short.
    #[error("stream reset by the peer: {0}")]
    Reset(ResetCode),
    /// The session under it ended.
    #[error("the session under the stream ended")]
    Lost,
}
impl From<StreamError> for io::Error {
    fn from(error: StreamError) -> Self {
        let kind = match error {
            StreamError::Refused(_) => io::ErrorKind::ConnectionRefused,
            StreamError::Reset(_) => io::ErrorKind::ConnectionReset,
            StreamError::Lost => io::ErrorKind::ConnectionAborted,
        };
        Self::new(kind, error)
    }
}
impl StreamError {
    /// The cause that an error of a [`Stream`] holds.
    pub fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }
}

/// How many streams of a session are open; wakes whoever waits for the last one to end.
#[derive(Debug, Default)]
pub(crate) struct Count {
    open: AtomicUsize,
    pub changed: Notify,
}
impl Count {
    pub fn get(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }
    pub fn take(self: &Arc<Self>) -> Slot {
        self.open.fetch_add(1, Ordering::Relaxed);
        Slot(Arc::clone(self))
    }
}
/// One open stream's place in the count.
#[derive(Debug)]
pub(crate) struct Slot(Arc<Count>);
impl Drop for Slot {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
        self.0.changed.notify_waiters();
    }
}

/// When an acceptor says that it accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tell {
    /// With its first bytes, or before it waits for the opener's.
    BeforeReading,
    /// With its first bytes.
    WithBytes,
}

#[derive(Debug)]
enum Answer {
    /// The verdict has not come yet.
    Awaited(VerdictReader),
    Accepted,
    Failed(StreamError),
}

/// A stream of bytes both ways. Dropping one that has not ended both ways resets it with `Cancelled`.
#[derive(Debug)]
pub struct Stream {
    raw: Raw,
    urgency: Urgency,
    answer: Answer,
    /// This side accepted and has not said so yet.
    owes_verdict: Option<Tell>,
    read_end: bool,
    write_end: bool,
    /// Made when somebody first asks whether the stream was cut.
    cut: Option<Cut>,
    _slot: Slot,
}

impl Stream {
    /// A stream that this side opened; its header is written.
    pub(crate) fn opened(raw: Raw, class: Class, slot: Slot) -> Self {
        let answer = Answer::Awaited(VerdictReader::default());
        Self {
            raw,
            urgency: Urgency::new(class),
            answer,
            owes_verdict: None,
            read_end: false,
            write_end: false,
            cut: None,
            _slot: slot,
        }
    }

    /// Waits for the acceptor's verdict. Reading does the same; this is for those who write first.
    ///
    /// # Errors
    /// The refusal, the reset, or the loss of the session.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn accepted(&mut self) -> Result<(), StreamError> {
        poll_fn(|cx| self.poll_verdict(cx)).await
    }

    /// The same, polled.
    ///
    /// # Errors
    /// As for [`Stream::accepted`].
    pub fn poll_accepted(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        self.poll_verdict(cx)
    }

    /// Cuts both directions short. The peer sees `code`, never an end of input.
    pub fn reset(&mut self, code: ResetCode) {
        self.raw.reset(code);
        (self.read_end, self.write_end) = (true, true);
    }

    /// Ready once the peer, or the end of the session, has cut the stream short. For a side that has read to the end and
    /// has nothing to write yet: reads tell it nothing more.
    pub fn poll_cut(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        self.cut.get_or_insert_with(|| self.raw.cut()).poll(&mut self.raw, cx)
    }

    fn poll_verdict(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        loop {
            let reader = match &mut self.answer {
                Answer::Accepted => return Poll::Ready(Ok(())),
                Answer::Failed(error) => return Poll::Ready(Err(error.clone())),
                Answer::Awaited(reader) => reader,
            };
            let mut space = [0; 1024];
            let (wants, _) = space.split_at_mut(reader.wants().clamp(1, 1024));
            let mut buf = ReadBuf::new(wants);
            let outcome = match ready!(Pin::new(&mut self.raw).poll_read(cx, &mut buf)) {
                Ok(()) if buf.filled().is_empty() => Err(StreamError::Reset(ResetCode::Protocol)),
                Ok(()) => reader.push(buf.filled()).map_err(|_| StreamError::Reset(ResetCode::Protocol)),
                Err(error) => Err(StreamError::of(&error).cloned().unwrap_or(StreamError::Lost)),
            };
            match outcome {
                Ok(None) => {}
                Ok(Some(Verdict::Accepted)) => self.answer = Answer::Accepted,
                Ok(Some(Verdict::Refused(refusal))) => {
                    self.reset(ResetCode::Cancelled); // the acceptor waits for it
                    self.answer = Answer::Failed(StreamError::Refused(refusal));
                }
                Err(error) => {
                    let code = if error == StreamError::Reset(ResetCode::Protocol) {
                        ResetCode::Protocol
                    } else {
                        ResetCode::Cancelled
                    };
                    self.reset(code);
                    self.answer = Answer::Failed(error);
                }
            }
        }
    }

    fn poll_pay_verdict(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.owes_verdict.is_some() {
            ready!(Pin::new(&mut self.raw).poll_write(cx, &Verdict::ACCEPTED))?;
            self.owes_verdict = None;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        ready!(this.poll_verdict(cx))?;
        let before = buf.filled().len();
        match Pin::new(&mut this.raw).poll_read(cx, buf) {
            // Only now must the peer hear the verdict: it may wait for it before it writes.
            Poll::Pending => {
                if this.owes_verdict == Some(Tell::BeforeReading)
                    && let Poll::Ready(Err(error)) = this.poll_pay_verdict(cx)
                {
                    return Poll::Ready(Err(error));
                }
                Poll::Pending
            }
            Poll::Ready(Ok(())) => {
                this.read_end |= buf.filled().len() == before && buf.remaining() > 0;
                Poll::Ready(Ok(()))
            }
            failed => failed,
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if let Answer::Failed(error) = &this.answer {
            return Poll::Ready(Err(error.clone().into()));
        }
        ready!(this.poll_pay_verdict(cx))?;
        match ready!(Pin::new(&mut this.raw).poll_write(cx, buf)) {
            Err(error) if matches!(this.answer, Answer::Awaited(_)) => {
                // An acceptor that refuses stops the writer first: the verdict says why.
                ready!(this.poll_verdict(cx))?;
                Poll::Ready(Err(error))
            }
            Ok(written) => {
                if let Some(class) = this.urgency.wrote(written, Instant::now()) {
                    this.raw.set_class(class);
                }
                Poll::Ready(Ok(written))
            }
            failed => Poll::Ready(failed),
        }
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_pay_verdict(cx))?;
        Pin::new(&mut self.raw).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_pay_verdict(cx))?;
        ready!(Pin::new(&mut self.raw).poll_shutdown(cx))?;
        self.write_end = true;
        Poll::Ready(Ok(()))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if !(self.read_end && self.write_end) {
            // Dropped by a panic, the peer must not take it for a choice of this side.
            self.raw.reset(if std::thread::panicking() { ResetCode::Internal } else { ResetCode::Cancelled });
        }
    }
}

/// How long a refusal waits until its opener has heard it.
const REFUSING: Duration = Duration::from_secs(5);
/// Payload that is thrown away meanwhile, in bytes.
const REFUSING_BYTES: usize = 4 << 20;

/// A stream that the peer opened and this side has not answered yet. Dropping it resets it with `Cancelled`.
#[derive(Debug)]
pub struct IncomingStream {
    /// What it is for.
    pub header: StreamHeader,
    stream: Stream,
}

impl IncomingStream {
    pub(crate) fn new(header: StreamHeader, mut raw: Raw, slot: Slot) -> Self {
        raw.set_class(header.class);
        let stream = Stream {
            raw,
            urgency: Urgency::new(header.class),
            answer: Answer::Accepted,
            owes_verdict: Some(Tell::BeforeReading),
            read_end: false,
            write_end: false,
            cut: None,
            _slot: slot,
        };
        Self { header, stream }
    }

    /// Accepts it. The verdict goes out with the first bytes written, or before this side waits for bytes to read.
    pub fn accept(self) -> Stream {
        self.stream
    }

    /// Accepts it. The verdict goes out with the first bytes written, and not before: for what needs no word from this
    /// side to go on, such as a request and its answer.
    pub fn accept_quietly(mut self) -> Stream {
        self.stream.owes_verdict = Some(Tell::WithBytes);
        self.stream
    }

    /// Refuses it. The session lives on. Waits, for a bounded time, until the peer has heard it.
    pub async fn refuse(mut self, refusal: Refusal) {
        let told = refuse(&mut self.stream.raw, refusal).await;
        (self.stream.read_end, self.stream.write_end) = (told, told);
    }
}

/// Says a refusal on a stream whose verdict is still owed. Whether that ended the stream.
pub(crate) async fn refuse(raw: &mut Raw, refusal: Refusal) -> bool {
    let mut record = Vec::new();
    Verdict::Refused(refusal).encode(&mut record);
    let told = async {
        raw.write_all(&record).await?;
        raw.shutdown().await?;
        // The answer's direction is its own on QUIC: nothing there can overtake the verdict.
        if raw.stop_reading(ResetCode::Refused) {
            return Ok(());
        }
        // A reset would overtake the verdict: wait until the opener has read it and hung up.
        let (mut space, mut left) = (vec![0; 4096], REFUSING_BYTES);
        while left > 0 {
            match raw.read(&mut space).await {
                Ok(0) | Err(_) => break,
                Ok(n) => left = left.saturating_sub(n),
            }
        }
        io::Result::Ok(())
    };
    // Whoever cannot be told sees a reset instead.
    matches!(timeout(REFUSING, told).await, Ok(Ok(())))
}
