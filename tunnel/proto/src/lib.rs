//! The tunnel's wire: bytes, frames and state machines. No I/O, no clock, no dice, no async:
//! bytes and time come in as arguments, bytes and events go out. `tunnel/SPEC.md` is the wire byte by byte.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod code;
pub mod codec;
pub mod control;
pub mod datagram;
pub mod header;
pub mod id;
pub mod inside;
pub mod ladder;
pub mod mux;
pub mod tlv;
pub mod uplink;
