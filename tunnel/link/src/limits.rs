//! Every bound of this crate, by name.

use std::time::Duration;

/// The bounds of a session and of what comes before it. The defaults are what hub and agent run with.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Longest wait for one address to take a TCP connection before the next one is tried.
    pub connect_each: Duration,
    /// Longest transport handshake: TCP connect and TLS, or QUIC.
    pub handshake: Duration,
    /// Longest greeting, from the end of the handshake to the hub's answer.
    pub hello: Duration,
    /// Longest wait for the header of a stream that the peer opened.
    pub header: Duration,
    /// Streams whose header is being waited for, per session.
    pub pending_headers: usize,
    /// Streams with a header that nobody has accepted yet, per session.
    pub accept_queue: usize,
    /// Streams that a hub may have open towards an agent, at first. Raised as they are used, for quinn sets
    /// 0.17 KiB aside for each permitted one.
    pub streams_start: u32,
    /// Streams that a hub may have open towards an agent, at most.
    pub streams_max: u32,
    /// Streams that an agent may have open towards a hub: its control stream, and room to see a wrong one.
    pub streams_to_hub: u32,
    /// Longest wait for the peer to permit one more stream.
    pub open_wait: Duration,
    /// Receive window of one stream, in bytes: what a stalled reader costs. Throughput is window / RTT.
    pub stream_window: u32,
    /// Receive window of one session, in bytes, all streams together.
    pub session_window: u32,
    /// Unacknowledged bytes in flight or waiting, per session.
    pub send_window: u32,
    /// How long readers may keep everybody else's bytes out before their streams are reset.
    pub stall_grace: Duration,
    /// How often an agent asks its hub for a sign of life.
    pub keep_alive: Duration,
    /// A session whose agent has waited for an answer for this long is dead; so is one whose hub has not been asked for
    /// this long and [`Limits::keep_alive`]. Longer than a cut that users need not notice, shorter together with
    /// [`Limits::keep_alive`] than the 20 s in which a dead path has to be noticed.
    pub silence: Duration,
    /// Control messages waiting to be sent, per session.
    pub control_queue: usize,
    /// Control messages that a peer may send at once; one more is earned each [`Limits::control_every`].
    pub control_burst: u32,
    /// See [`Limits::control_burst`].
    pub control_every: Duration,
    /// Handshakes under way at a [`crate::QuicListener`].
    pub quic_incoming: usize,
    /// Bytes kept for one handshake that nobody has looked at yet.
    pub quic_incoming_bytes: u64,
    /// The same, all handshakes together.
    pub quic_incoming_bytes_total: u64,
    /// QUIC handshakes under way from which on a client must first prove its address (Retry).
    pub quic_retry_from: usize,
    /// How long an address stays proved by the token of a Retry.
    pub quic_retry_life: Duration,
    /// Connections of one [`crate::QuicListener`].
    pub quic_connections: usize,
    /// Bytes of one TLS handshake message that QUIC reassembles.
    pub quic_crypto_bytes: usize,
}

impl Limits {
    /// Longest time from the moment at which a path dies to the end of its sessions.
    #[must_use]
    pub fn noticed(&self) -> Duration {
        self.keep_alive + Duration::from_secs(1) + self.silence
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect_each: Duration::from_secs(4),
            handshake: Duration::from_secs(10),
            hello: Duration::from_secs(10),
            header: Duration::from_secs(5),
            pending_headers: 64,
            accept_queue: 64,
            streams_start: 256,
            streams_max: 4096,
            streams_to_hub: 8,
            open_wait: Duration::from_secs(5),
            stream_window: 2 << 20,
            session_window: 32 << 20,
            send_window: 8 << 20,
            stall_grace: Duration::from_secs(5),
            keep_alive: Duration::from_secs(4),
            silence: Duration::from_secs(14),
            control_queue: 64,
            control_burst: 256,
            control_every: Duration::from_millis(100),
            quic_incoming: 1024,
            quic_incoming_bytes: 64 << 10,
            quic_incoming_bytes_total: 16 << 20,
            quic_retry_from: 64,
            quic_retry_life: Duration::from_secs(15),
            quic_connections: 20_000,
            quic_crypto_bytes: 16 << 10,
        }
    }
}
