//! Sessions in memory, for tests.

use crate::{
    Carrier, Limits, Session,
    carrier::{Conn, Raw},
    mux::{self, MuxHandle, MuxRole},
    session::{Parts, Side},
    websocket,
};
use moorline_proto::{
    control::{Hello, VERSION},
    header::Class,
    id::{InstanceId, SessionId},
};
use std::{
    net::{Ipv4Addr, SocketAddr},
    pin::Pin,
    task::{Context, Poll, Waker},
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::tungstenite::protocol::Role;

/// The agent's identity in [`session_pair`].
pub const AGENT: &str = "spiffe://test/cluster/test/agent/a1";
/// The hub's identity in [`session_pair`].
pub const HUB: &str = "spiffe://test/hub/h1";

/// A control message of a kind that nobody knows and everybody may ignore: it makes the control stream exist.
const NOTHING: [u8; 6] = [0, 0, 0, 2, 0x7f, 0xfe];

/// The byte stream of a WebSocket after its handshake, over `io`; `hub`: the hub's side of it, or the agent's. For tests.
pub async fn websocket<IO: AsyncRead + AsyncWrite + Unpin>(io: IO, hub: bool) -> impl AsyncRead + AsyncWrite + Unpin {
    websocket::after_handshake(io, if hub { Role::Server } else { Role::Client }).await
}

/// A hub's session and an agent's, joined in memory without TLS and with the greeting skipped. For tests.
///
/// # Panics
/// Outside of a tokio runtime.
#[must_use]
pub fn session_pair() -> (Session, Session) {
    session_pair_with(&Limits::default())
}

/// [`session_pair`] with limits.
///
/// # Panics
/// Outside of a tokio runtime.
#[must_use]
pub fn session_pair_with(limits: &Limits) -> (Session, Session) {
    session_pair_over(tokio::io::duplex(256 * 1024), limits)
}

/// [`session_pair`] over what carries bytes between the hub and the agent.
///
/// # Panics
/// Outside of a tokio runtime.
#[must_use]
#[expect(clippy::expect_used, reason = "for tests")]
pub fn session_pair_over<IO>((at_hub, at_agent): (IO, IO), limits: &Limits) -> (Session, Session)
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let hub = mux::spawn(at_hub, MuxRole::Server, limits);
    let agent = mux::spawn(at_agent, MuxRole::Client, limits);
    let mut control = agent.open(Class::Interactive).expect("a new mux opens a stream");
    let sent = Pin::new(&mut control).poll_write(&mut Context::from_waker(Waker::noop()), &NOTHING);
    assert!(matches!(sent, Poll::Ready(Ok(6))), "a new stream takes 6 bytes");
    let hello = Hello {
        min_version: VERSION,
        max_version: VERSION,
        instance: InstanceId(1),
        software: "test".into(),
        capabilities: Vec::new(),
        facts: Vec::new(),
        now_ms: 0,
    };
    let hub = Session::start(parts(1, Side::Hub, AGENT, Some(hello), hub, limits), None);
    let agent = Session::start(parts(2, Side::Agent, HUB, None, agent, limits), Some(Raw::Mux(control)));
    (hub, agent)
}

#[expect(clippy::expect_used, reason = "for tests")]
fn parts(id: u64, side: Side, peer: &str, hello: Option<Hello>, mux: MuxHandle, limits: &Limits) -> Parts {
    Parts {
        id: SessionId(id),
        side,
        peer: peer.parse().expect("a valid identity"),
        carrier: Carrier::Tls,
        remote: SocketAddr::from((Ipv4Addr::LOCALHOST, 1)),
        hello,
        conn: Conn::Mux(mux),
        limits: limits.clone(),
    }
}

/// An agent's session with a peer that takes what it is sent and says nothing; the peer has to be held.
#[cfg(test)]
pub(crate) fn silent_session(limits: &Limits) -> (Session, tokio::io::DuplexStream) {
    let (peer, at_agent) = tokio::io::duplex(256 * 1024);
    let agent = mux::spawn(at_agent, MuxRole::Client, limits);
    let control = agent.open(Class::Interactive).unwrap();
    (Session::start(parts(2, Side::Agent, HUB, None, agent, limits), Some(Raw::Mux(control))), peer)
}
