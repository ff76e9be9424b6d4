//! The mux on a byte stream: a task that carries the bytes of [`moorline_proto::mux::Mux`].
//!
//! One task per session owns the carrier; nobody else touches it. Handles and streams share the machine behind a
//! lock that is never held across an await, a read or a write. Each wait costs one wake-up: an application that
//! finds what it wants sleeps never, and many small writes go out in one batch.

mod driver;
mod shared;
mod stream;

#[cfg(test)]
mod tests;

pub use stream::{MuxStream, StreamReset};

use crate::{CloseReason, Closed, Limits, OpenError};
use driver::Driver;
use moorline_proto::{
    code::CloseCode,
    header::Class,
    mux::{MuxLimits, Role},
};
use shared::Shared;
use std::{sync::Arc, time::Duration};
use tokio::io::{AsyncRead, AsyncWrite};

/// Which side of the session this is: it decides the parity of stream ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MuxRole {
    /// The side that dialled: the agent.
    Client,
    /// The side that accepted: the hub.
    Server,
}

/// What a session is doing now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MuxStats {
    /// Streams that are open, in either direction.
    pub open_streams: usize,
    /// Bytes taken from the carrier.
    pub bytes_in: u64,
    /// Bytes given to the carrier.
    pub bytes_out: u64,
    /// Bytes held: received and not read, or written and not sent.
    pub buffered: usize,
    /// Streams that were reset because nobody read them and others needed their room.
    pub relieved: u64,
    /// The newest measured round trip. Zero: none yet.
    pub rtt: Duration,
}

/// Handle of a session. Clones share it. Dropping the last one closes the session with `Normal`: what was written is
/// sent if the carrier takes it within [`CLOSING`], and streams that are still held end with `SessionLost`.
#[derive(Debug, Clone)]
pub struct MuxHandle {
    shared: Arc<Shared>,
    _owner: Arc<Owner>,
}

#[derive(Debug)]
struct Owner(Arc<Shared>);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.close(CloseCode::Normal, "no longer needed");
    }
}

/// How long an ended session may take to say its last words and to hear the peer hang up.
pub const CLOSING: Duration = Duration::from_secs(2);

/// Starts a session on `io`. Its task ends with the session, at most [`CLOSING`] later.
///
/// # Panics
/// Outside of a tokio runtime.
pub fn spawn<IO>(io: IO, role: MuxRole, limits: &Limits) -> MuxHandle
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (max_streams_in, max_streams_out) = match role {
        MuxRole::Client => (limits.streams_max, limits.streams_to_hub),
        MuxRole::Server => (limits.streams_to_hub, limits.streams_max),
    };
    let limits = MuxLimits {
        stream_window: limits.stream_window,
        session_buffer_budget: limits.session_window as usize,
        session_send_budget: limits.send_window as usize,
        max_streams_in: max_streams_in as usize,
        max_streams_out: max_streams_out as usize,
        silence: limits.noticed(),
        stall_grace: limits.stall_grace,
        ..MuxLimits::default()
    };
    spawn_with(io, role, limits)
}

/// [`spawn`] with every bound of the mux in the caller's hands.
///
/// # Panics
/// Outside of a tokio runtime.
pub fn spawn_with<IO>(io: IO, role: MuxRole, limits: MuxLimits) -> MuxHandle
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let role = match role {
        MuxRole::Client => Role::Client,
        MuxRole::Server => Role::Server,
    };
    let shared = Arc::new(Shared::new(role, limits));
    // The task has an owner in `Owner`: the last handle's drop ends the session, and with it the task.
    tokio::spawn(Driver::new(io, Arc::clone(&shared)));
    MuxHandle { _owner: Arc::new(Owner(Arc::clone(&shared))), shared }
}

impl MuxHandle {
    /// Opens a stream, without a round trip. The peer hears of it with the first write, or when the answer is waited
    /// for.
    ///
    /// # Errors
    /// [`OpenError::Closed`], [`OpenError::Draining`] or [`OpenError::TooMany`].
    pub fn open(&self, class: Class) -> Result<MuxStream, OpenError> {
        self.shared.open(class).map(|key| MuxStream::new(Arc::clone(&self.shared), key))
    }

    /// The next stream that the peer has opened. `None`: the session is over.
    ///
    /// # Cancel safety
    /// Safe: a stream is given out or stays where it is.
    pub async fn accept(&self) -> Option<MuxStream> {
        self.shared.accept().await.map(|key| MuxStream::new(Arc::clone(&self.shared), key))
    }

    /// Measures the round trip.
    ///
    /// # Errors
    /// The session ended first.
    ///
    /// # Cancel safety
    /// Safe: the answer is then ignored.
    pub async fn ping(&self) -> Result<Duration, Closed> {
        self.shared.ping().await
    }

    /// The newest measured round trip. Zero: none yet.
    #[must_use]
    pub fn rtt(&self) -> Duration {
        self.stats().rtt
    }

    /// No new streams either way from now on; open ones finish, then the session ends with `code`. `message` is what
    /// this side's [`MuxHandle::closed`] says; the format carries none.
    pub fn go_away(&self, code: CloseCode, message: &str) {
        self.shared.go_away(code, message);
    }

    /// Whether this side has said that it goes away.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.shared.is_draining()
    }

    /// Whether the peer has said that it goes away.
    #[must_use]
    pub fn peer_is_draining(&self) -> bool {
        self.shared.peer_is_draining()
    }

    /// Waits until the peer says that it goes away, or the session is over.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn peer_draining(&self) {
        self.shared.peer_draining().await;
    }

    /// Ends the session. What was written before is still sent if the carrier takes it within [`CLOSING`].
    pub fn close(&self, code: CloseCode, message: &str) {
        self.shared.close(code, message);
    }

    /// Waits for the end of the session, and says why it ended.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn closed(&self) -> CloseReason {
        self.shared.closed().await
    }

    /// Numbers for metrics.
    #[must_use]
    pub fn stats(&self) -> MuxStats {
        self.shared.stats()
    }
}
