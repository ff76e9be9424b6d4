//! Sessions and streams over real carriers.
//!
//! An agent [`dial`]s its hub over QUIC, TLS or WebSocket; the hub takes the connection with [`accept_tls`],
//! [`accept_websocket`] or a [`QuicListener`], hears who it is ([`Greeting`]) and welcomes or refuses it. What both sides then hold is a
//! [`Session`]: named streams both ways, a control stream, an end with a cause. `tunnel/SPEC.md` is the wire.

pub mod address;
pub mod limits;
pub mod mux;
pub mod splice;
pub mod tls;
pub mod websocket;

mod carrier;
mod congestion;
mod control;
mod dial;
mod greeting;
mod proxy;
mod quic;
mod read_ahead;
mod session;
mod stream;
mod tcp;
mod urgency;

#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use address::{HubAddress, InvalidAddress};
pub use dial::{Connection, DialError, connect, dial, dial_through};
pub use greeting::{AcceptError, Greeting, accept_tls, accept_websocket};
pub use limits::Limits;
pub use proxy::{BadProxy, HttpProxy};
pub use quic::{QuicIncoming, QuicKeys, QuicListener};
pub use read_ahead::ReadAhead;
pub use session::{CloseReason, Closed, OpenError, Session};
pub use stream::{IncomingStream, Stream, StreamError};
pub use tcp::{tcp_connect, tries_again_soon};
pub use tls::{Identity, Trust};

/// What carries a session's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Carrier {
    /// QUIC over UDP: streams do not wait for each other's losses.
    Quic,
    /// TLS 1.3 over TCP with the mux of [`mux`] inside: where UDP is blocked.
    Tls,
    /// The same in a WebSocket over HTTPS: where a proxy ends the TLS on the way, and sees ciphertext.
    WebSocket,
}
impl std::fmt::Display for Carrier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Quic => "quic",
            Self::Tls => "tls",
            Self::WebSocket => "websocket",
        })
    }
}

#[cfg(test)]
mod tests;
