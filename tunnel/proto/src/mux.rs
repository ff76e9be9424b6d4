//! Many streams on one ordered byte stream: the yamux wire format, version 0, as a state machine without I/O.
//!
//! [`Mux`] takes the carrier's bytes and the time in, and gives frames ([`Outgoing`]) and [`Event`]s out. Both
//! directions of a stream are independent: each has its own credit and its own end.
//!
//! What differs from other implementations of that format, and stays compatible with them:
//! - A reset may carry a [`crate::code::ResetCode`]: a `Data` frame with `RST` and a payload of four bytes. Peers
//!   that know nothing of it read a payload of a stream that is gone.
//! - The length field of a go-away is a [`crate::code::CloseCode`], whose first three numbers are yamux's own.
//! - Every violation ends the session with a named code ([`Violation`]); nothing is reserved for announced bytes.
//!
//! The format: <https://github.com/hashicorp/yamux/blob/master/spec.md>.

mod app;
mod frame;
mod ids;
mod limits;
mod machine;
mod outgoing;
mod receive;
mod round_trip;
mod schedule;
mod slots;
mod stream;
mod transmit;
mod violation;

#[cfg(test)]
mod tests;

pub use app::{OpenError, Read, Reset};
pub use frame::{ACK, FIN, HEADER, Header, INITIAL_WINDOW, Kind, RST, SYN};
pub use limits::{MuxLimits, Rate};
pub use machine::{End, Event, Mux, Role};
pub use outgoing::Outgoing;
pub use slots::StreamKey;
pub use violation::Violation;
