//! Every bound of the mux.

use core::time::Duration;

/// What a session may hold, and how much of what costs us a peer may send.
#[derive(Debug, Clone)]
pub struct MuxLimits {
    /// Largest receive window that a stream grows to, in bytes. Only streams that are read as fast as they arrive
    /// grow; all begin with [`super::INITIAL_WINDOW`]. Throughput of a stream is window / round trip.
    pub stream_window: u32,
    /// Received bytes that nobody has read, all streams together. Above it nothing more is taken from the carrier.
    /// Windows grow over their initial size by at most half of it, all streams together.
    pub session_buffer_budget: usize,
    /// How long the carrier may stand still over [`MuxLimits::session_buffer_budget`] before streams that have not
    /// been read for as long are reset with `Idle`, fullest first, so that they cannot hold up the others. For twice as
    /// long after that, such streams are reset as soon as it would stand still again.
    pub stall_grace: Duration,
    /// Bytes written to one stream and not yet sent. All of them are within the peer's credit.
    pub stream_send_buffer: usize,
    /// Bytes written and not yet sent, all streams together. Bulk streams may use half of it, watches three quarters.
    pub session_send_budget: usize,
    /// Streams that the peer may have open.
    pub max_streams_in: usize,
    /// Streams that this side may have open.
    pub max_streams_out: usize,
    /// Streams that the opener has begun and the acceptor has not yet taken. Both sides hold to it, so that a peer
    /// with the same number is never refused for it.
    pub max_pending_opens: usize,
    /// Largest payload taken in one frame, in bytes. The yamux crate cuts at 1 MiB.
    pub max_frame: u32,
    /// Largest payload sent in one frame while other streams have something to send.
    pub frame_shared: usize,
    /// Largest payload sent in one frame while none has.
    pub frame_alone: usize,
    /// Bytes given to the carrier at once: what a control frame may have to wait for.
    pub batch: usize,
    /// How often a ping is sent, for the round trip and to keep middleboxes awake.
    pub ping_every: Duration,
    /// A session on which nothing was heard for this long is dead.
    pub silence: Duration,
    /// Pings of ours that wait for an answer.
    pub pings_waiting: usize,
    /// Pings of the peer that wait for our answer.
    pub pongs_waiting: usize,
    /// Pings of the peer.
    pub pings: Rate,
    /// Streams of the peer that are refused, or reset before anyone has taken them.
    pub refusals: Rate,
    /// Frames of streams that are gone: what was on its way when we forgot them.
    pub strays: Rate,
    /// Frames that carry neither data nor credit nor a flag, and go-aways.
    pub empties: Rate,
    /// Streams reset by us of which we remember how much the peer may still send.
    pub tombstones: usize,
    /// Ranges of ids that a peer has skipped and may still open, for implementations that open out of order.
    pub id_gaps: usize,
}

impl Default for MuxLimits {
    fn default() -> Self {
        Self {
            stream_window: 4 << 20,
            session_buffer_budget: 32 << 20,
            stall_grace: Duration::from_secs(5),
            stream_send_buffer: 128 << 10,
            session_send_budget: 8 << 20,
            max_streams_in: 4096,
            max_streams_out: 4096,
            max_pending_opens: 1024,
            max_frame: 1 << 20,
            frame_shared: 16 << 10,
            frame_alone: 64 << 10,
            batch: 64 << 10,
            ping_every: Duration::from_secs(15),
            silence: Duration::from_secs(20),
            pings_waiting: 8,
            pongs_waiting: 32,
            pings: Rate { burst: 64, per_second: 8 },
            refusals: Rate { burst: 2048, per_second: 256 },
            strays: Rate { burst: 8192, per_second: 8192 },
            empties: Rate { burst: 256, per_second: 64 },
            tombstones: 256,
            id_gaps: 1024,
        }
    }
}

/// How often something may happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// How many at once.
    pub burst: u32,
    /// How many more are earned each second.
    pub per_second: u32,
}

/// What is left of a [`Rate`].
#[derive(Debug)]
pub(super) struct Allowance {
    rate: Rate,
    left: u32,
    counted: Duration,
}

impl Allowance {
    pub(super) const fn new(rate: Rate, now: Duration) -> Self {
        Self { rate, left: rate.burst, counted: now }
    }

    /// Spends `cost`; `false`: there was not that much left.
    pub(super) fn spend(&mut self, cost: u32, now: Duration) -> bool {
        let earned = now.saturating_sub(self.counted).as_millis() * u128::from(self.rate.per_second) / 1000;
        if earned > 0 {
            let earned = u32::try_from(earned).unwrap_or(u32::MAX);
            self.left = self.left.saturating_add(earned).min(self.rate.burst);
            self.counted = now;
        }
        let enough = cost <= self.left;
        self.left = self.left.saturating_sub(cost);
        enough
    }
}
