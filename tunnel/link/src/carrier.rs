//! What a session asks of its carrier, and the two carriers that answer.

use crate::{
    CloseReason, Limits, OpenError, StreamError,
    mux::{MuxHandle, MuxStream, StreamReset},
};
use moorline_proto::{
    code::{CloseCode, ResetCode},
    header::Class,
};
use quinn::VarInt;
mod flow;

use flow::{Bulk, Flow, Receiver};
use std::{
    io,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::timeout,
};
use tokio_util::task::AbortOnDropHandle;

/// A connection to the peer, without any of the session's own rules.
#[derive(Debug)]
pub(crate) enum Conn {
    Quic(Quic),
    Mux(MuxHandle),
}

/// A QUIC connection. Dropping it closes the connection.
#[derive(Debug)]
pub(crate) struct Quic {
    conn: quinn::Connection,
    flow: Arc<Flow>,
    _relief: AbortOnDropHandle<()>,
    /// Why this side closed it: quinn does not keep that.
    ours: OnceLock<CloseReason>,
    /// Streams that the peer may have open now.
    permitted: AtomicU32,
    max: u32,
    open_wait: Duration,
}

impl Quic {
    /// `permitted`: streams that the peer may have open at first; raised up to `max`.
    pub fn new(conn: quinn::Connection, permitted: u32, max: u32, limits: &Limits) -> Self {
        let flow = Flow::new(conn.clone(), limits);
        let relief = AbortOnDropHandle::new(tokio::spawn({
            let flow = Arc::clone(&flow);
            async move { flow.relieve().await }
        }));
        Self {
            conn,
            flow,
            _relief: relief,
            ours: OnceLock::new(),
            permitted: AtomicU32::new(permitted.min(max)),
            max,
            open_wait: limits.open_wait,
        }
    }

    #[cfg(test)]
    pub fn bare(&self) -> &quinn::Connection {
        &self.conn
    }

    fn reason(&self, error: quinn::ConnectionError) -> CloseReason {
        use quinn::ConnectionError as E;
        let (code, by_peer) = match &error {
            E::ApplicationClosed(close) => {
                let code = u32::try_from(close.error_code.into_inner()).unwrap_or(u32::MAX);
                let message = String::from_utf8_lossy(&close.reason).into_owned();
                return CloseReason { code: CloseCode::from_number(code), by_peer: true, message };
            }
            E::LocallyClosed => {
                return self.ours.get().cloned().unwrap_or_else(|| CloseReason {
                    code: CloseCode::Normal,
                    by_peer: false,
                    message: "closed".into(),
                });
            }
            E::TimedOut => (CloseCode::Silent, false),
            E::ConnectionClosed(_) => (CloseCode::Protocol, true),
            E::TransportError(_) | E::VersionMismatch => (CloseCode::Protocol, false),
            E::Reset => {
                let message = "the peer has lost this session: it was started anew".into();
                return CloseReason { code: CloseCode::Forgotten, by_peer: true, message };
            }
            E::CidsExhausted => (CloseCode::Internal, false),
        };
        CloseReason { code, by_peer, message: error.to_string() }
    }

    fn close(&self, code: CloseCode, message: &str) {
        let reason = CloseReason { code, by_peer: false, message: message.into() };
        if self.conn.close_reason().is_none() && self.ours.set(reason).is_ok() {
            self.conn.close(VarInt::from_u32(code.number()), cut(message).as_bytes());
        }
    }
}
impl Drop for Quic {
    fn drop(&mut self) {
        self.close(CloseCode::Normal, "no longer needed");
    }
}

/// The reason phrase has to fit into one packet.
fn cut(message: &str) -> &str {
    let mut end = message.len().min(512);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    message.get(..end).unwrap_or_default()
}

impl Conn {
    /// Opens a stream. Bounded by `open_wait` where the peer's permission has to be waited for.
    pub async fn open(&self, class: Class) -> Result<Raw, OpenError> {
        match self {
            Self::Quic(quic) => match timeout(quic.open_wait, quic.conn.open_bi()).await {
                Err(_) => Err(OpenError::TooMany),
                Ok(Err(error)) => Err(OpenError::Closed(quic.reason(error))),
                Ok(Ok((send, recv))) => {
                    let mut raw = Raw::quic(&quic.flow, send, recv);
                    raw.set_class(class);
                    Ok(raw)
                }
            },
            Self::Mux(mux) => mux.open(class).map(Raw::Mux),
        }
    }

    /// The peer's next stream; `None` when the connection is over. Cancel safe.
    pub async fn accept(&self) -> Option<Raw> {
        match self {
            Self::Quic(quic) => quic.conn.accept_bi().await.ok().map(|(send, recv)| Raw::quic(&quic.flow, send, recv)),
            Self::Mux(mux) => mux.accept().await.map(Raw::Mux),
        }
    }

    /// Lets the peer open more streams when it is near what it may.
    pub fn permit(&self, open: usize) {
        let Self::Quic(quic) = self else { return };
        let now = quic.permitted.load(Ordering::Relaxed);
        if now < quic.max && open >= now as usize / 4 * 3 {
            let more = now.saturating_mul(2).min(quic.max);
            quic.permitted.store(more, Ordering::Relaxed);
            quic.conn.set_max_concurrent_bi_streams(VarInt::from_u32(more));
        }
    }

    /// Ends the connection; the first call counts.
    pub fn close(&self, code: CloseCode, message: &str) {
        match self {
            Self::Quic(quic) => quic.close(code, message),
            Self::Mux(mux) => mux.close(code, message),
        }
    }

    /// Waits for the end. Cancel safe.
    pub async fn closed(&self) -> CloseReason {
        match self {
            Self::Quic(quic) => quic.reason(quic.conn.closed().await),
            Self::Mux(mux) => mux.closed().await,
        }
    }

    /// What arrived so far, in bytes: it tells whether anything does.
    pub fn received(&self) -> u64 {
        match self {
            Self::Quic(quic) => quic.conn.stats().udp_rx.bytes,
            Self::Mux(mux) => mux.stats().bytes_in,
        }
    }

    /// Packets sent and packets of them that were lost; `None` where the system keeps that for itself.
    pub fn losses(&self) -> Option<(u64, u64)> {
        let Self::Quic(quic) = self else { return None };
        let path = quic.conn.stats().path;
        Some((path.sent_packets, path.lost_packets))
    }

    /// Bytes held: received and not read, written and not sent; `None` where the library keeps that for itself.
    pub fn buffered(&self) -> Option<usize> {
        let Self::Mux(mux) = self else { return None };
        Some(mux.stats().buffered)
    }

    /// Streams that were reset because nobody read them and others needed their room.
    pub fn relieved(&self) -> u64 {
        match self {
            Self::Quic(quic) => quic.flow.relieved(),
            Self::Mux(mux) => mux.stats().relieved,
        }
    }

    pub fn rtt(&self) -> Duration {
        match self {
            Self::Quic(quic) => quic.conn.rtt(),
            Self::Mux(mux) => mux.rtt(),
        }
    }

    /// Why QUIC itself ended the connection, if it did: what a TLS alert shows up as.
    pub fn quic_error(&self) -> Option<quinn::ConnectionError> {
        match self {
            Self::Quic(quic) => quic.conn.close_reason(),
            Self::Mux(_) => None,
        }
    }
}

/// A stream of a carrier. Its errors hold a [`StreamError`]. Does nothing special when dropped: its owner does.
#[derive(Debug)]
pub(crate) enum Raw {
    Quic { send: quinn::SendStream, recv: Arc<Receiver>, flow: Arc<Flow>, bulk: Bulk },
    Mux(MuxStream),
}

impl Raw {
    fn quic(flow: &Arc<Flow>, send: quinn::SendStream, recv: quinn::RecvStream) -> Self {
        Self::Quic { send, recv: flow.reader(recv), flow: Arc::clone(flow), bulk: Bulk::default() }
    }

    /// How urgent the bytes written here are.
    pub fn set_class(&mut self, class: Class) {
        match self {
            Self::Quic { send, flow, bulk, .. } => {
                bulk.is = class == Class::Bulk;
                if !bulk.is {
                    flow.leave(send);
                }
                let priority = match class {
                    Class::Interactive => 2,
                    Class::Watch => 1,
                    Class::Bulk => 0,
                };
                let _ = send.set_priority(priority); // fails only on a stream that is closed already
            }
            Self::Mux(stream) => stream.set_class(class),
        }
    }

    /// Reads no more, where that leaves what is written alone: on QUIC.
    pub fn stop_reading(&self, code: ResetCode) -> bool {
        let Self::Quic { recv, .. } = self else { return false };
        recv.stop(code);
        true
    }

    /// Cuts both directions short.
    pub fn reset(&mut self, code: ResetCode) {
        match self {
            // Errors say that a direction has ended already.
            Self::Quic { send, recv, .. } => {
                let _ = send.reset(VarInt::from_u32(code.number()));
                recv.stop(code);
            }
            Self::Mux(stream) => stream.reset(code),
        }
    }

    /// What to wait with for the peer to cut the stream short.
    pub fn cut(&self) -> Cut {
        let Self::Quic { send, .. } = self else { return Cut::Mux };
        let stopped = send.stopped();
        Cut::Quic(Box::pin(async move {
            match stopped.await {
                Ok(Some(code)) => reset_code(code),
                Ok(None) => std::future::pending().await, // all was sent, and nothing can be cut any more
                Err(_) => StreamError::Lost,
            }
        }))
    }

    /// Cuts what has not ended yet. What was written before a shutdown still arrives.
    pub fn abandon(&mut self, read_end: bool, write_end: bool, code: ResetCode) {
        match self {
            Self::Quic { send, recv, .. } => {
                if !write_end {
                    let _ = send.reset(VarInt::from_u32(code.number()));
                }
                if !read_end {
                    recv.stop(code);
                }
            }
            Self::Mux(stream) if !(read_end && write_end) => stream.reset(code),
            Self::Mux(_) => {}
        }
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Self::Quic { send, flow, .. } = self {
            flow.leave(send);
        }
    }
}

/// What waits for a stream to be cut short.
pub(crate) enum Cut {
    /// The peer reads no more.
    Quic(Pin<Box<dyn Future<Output = StreamError> + Send + Sync>>),
    /// The stream knows itself.
    Mux,
}

impl std::fmt::Debug for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if matches!(self, Self::Mux) { "Mux" } else { "Quic" })
    }
}

impl Cut {
    pub fn poll(&mut self, raw: &mut Raw, cx: &mut Context<'_>) -> Poll<StreamError> {
        match (self, raw) {
            (Self::Quic(stopped), _) => stopped.as_mut().poll(cx),
            (Self::Mux, Raw::Mux(stream)) => stream.poll_stopped(cx).map(from_reset),
            (Self::Mux, Raw::Quic { .. }) => Poll::Pending, // made by another stream: never
        }
    }
}

fn reset_code(code: VarInt) -> StreamError {
    StreamError::Reset(ResetCode::from_number(u32::try_from(code.into_inner()).unwrap_or(u32::MAX)))
}

fn from_reset(StreamReset(code): StreamReset) -> StreamError {
    if code == ResetCode::SessionLost { StreamError::Lost } else { StreamError::Reset(code) }
}

fn from_mux(error: io::Error) -> io::Error {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<StreamReset>()) {
        Some(reset) => from_reset(*reset).into(),
        None => error,
    }
}

impl AsyncRead for Raw {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Quic { recv, .. } => Poll::Ready(match ready!(recv.poll_read(cx, buf)) {
                Ok(()) => Ok(()),
                Err(quinn::ReadError::Reset(code)) => Err(reset_code(code).into()),
                Err(quinn::ReadError::ConnectionLost(_)) => Err(StreamError::Lost.into()),
                Err(error) => Err(io::Error::other(error)),
            }),
            Self::Mux(stream) => Pin::new(stream).poll_read(cx, buf).map_err(from_mux),
        }
    }
}

impl AsyncWrite for Raw {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Quic { send, flow, bulk, .. } => flow.poll_write(cx, send, bulk, buf).map_err(|error| match error {
                quinn::WriteError::Stopped(code) => reset_code(code).into(),
                quinn::WriteError::ConnectionLost(_) => StreamError::Lost.into(),
                error @ quinn::WriteError::ClosedStream => io::Error::new(io::ErrorKind::BrokenPipe, error),
                error => io::Error::other(error),
            }),
            Self::Mux(stream) => Pin::new(stream).poll_write(cx, buf).map_err(from_mux),
        }
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Quic { .. } => Poll::Ready(Ok(())), // quinn sends what it has without being told
            Self::Mux(stream) => Pin::new(stream).poll_flush(cx).map_err(from_mux),
        }
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Quic { send, .. } => {
                let _ = send.finish(); // fails only on a direction that has ended already
                Poll::Ready(Ok(()))
            }
            Self::Mux(stream) => Pin::new(stream).poll_shutdown(cx).map_err(from_mux),
        }
    }
}
