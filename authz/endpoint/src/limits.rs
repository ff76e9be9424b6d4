//! Bounds of an endpoint. Those of the hub's front door apply where both have the same.

use std::time::Duration;

/// How often the bundle is looked at.
pub const LOOK: Duration = Duration::from_secs(1);
/// How often an endpoint says that it is there.
pub const BEAT: Duration = Duration::from_secs(10);
/// An endpoint that has said nothing for this long is not there: two beats were missed.
pub const SILENT: Duration = Duration::from_secs(30);
/// How often it is told that a clock is wrong.
pub const TELL: Duration = Duration::from_secs(60);
/// Largest bundle, in bytes.
pub const BUNDLE: usize = moorline_authz::bundle::MAX_LEN;
/// Largest TokenReview, in bytes: a token of 8 KiB and what is around it.
pub const REVIEW: usize = 64 << 10;
/// Longest wait for its body.
pub const REVIEW_WAIT: Duration = Duration::from_secs(5);
/// TCP connections.
pub const CONNECTIONS: usize = 4096;
/// TLS handshakes under way.
pub const HANDSHAKES: usize = 256;
/// Longest TLS handshake.
pub const HANDSHAKE: Duration = Duration::from_secs(10);
/// Longest wait for the head of a request.
pub const HEAD: Duration = Duration::from_secs(10);
/// Requests open at a time on one HTTP/2 connection.
pub const H2_STREAMS: u32 = 250;
/// Window of one HTTP/2 stream, in bytes.
pub const H2_STREAM_WINDOW: u32 = 1 << 20;
/// Window of one HTTP/2 connection, in bytes.
pub const H2_CONNECTION_WINDOW: u32 = 8 << 20;
/// Bytes that wait to be written, per HTTP/2 stream.
pub const H2_SEND_BUFFER: usize = 256 << 10;
/// Bytes of all headers of one request.
pub const HEADER_LIST: u32 = 32 << 10;
/// Resets of a peer that waits for nobody before the connection ends (CVE-2023-44487).
pub const H2_RESETS: usize = 20;
/// Calls under way.
pub const CALLS: usize = 4096;
/// Bytes on their way between the two halves of one call.
pub const PIPE: usize = 64 << 10;
/// Pause of an accept loop that found no free file descriptor.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// How long open work may end at shutdown.
pub const GRACE: Duration = Duration::from_secs(30);
/// Audit records kept for the hub, in bytes. More calls are refused until the hub has taken some.
pub const QUEUE: u64 = 64 << 20;
/// One file of them, in bytes.
pub const SEGMENT: u64 = 4 << 20;
/// Audit records given to the hub at once, in bytes.
pub const DELIVERY: usize = 1 << 20;
/// Longest recording of a session in a terminal where nothing is said, in bytes.
pub const RECORDING: u64 = 32 << 20;
/// The most that may be said: a hub takes no longer ones.
pub const RECORDING_MOST: u64 = 60 << 20;
/// Recordings kept for the hub where nothing is said, in bytes. No session that has to be recorded goes on above it.
pub const RECORDINGS: u64 = 256 << 20;
/// Recordings named to the hub at once.
pub const RECORDINGS_LISTED: usize = 64;
/// Bytes of one given to the hub at once: a slow way has half a minute for them.
pub const RECORDING_PIECE: u64 = 256 << 10;
/// Life of the certificate that an endpoint makes for itself; it is made anew at each start.
pub const CERTIFICATE_LIFE: Duration = Duration::from_secs(90 * 24 * 3600);
