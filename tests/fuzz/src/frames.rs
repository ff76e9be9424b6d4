//! A mux that hears anything: it takes it, or ends its session with a named code; how the bytes are cut changes nothing,
//! and nothing is set aside for what is only announced.

use crate::split;
use bytes::BytesMut;
use moorline_proto::{
    header::Class,
    mux::{HEADER, Mux, MuxLimits, Outgoing, Read, Role, StreamKey},
};
use std::time::Duration;

const NOW: Duration = Duration::from_secs(1000);
const BUDGET: usize = 1 << 20;
/// Bytes of a reset's code.
const RESET: usize = 4;

/// The first byte: which side listens, whether it has opened a stream, how the rest is cut.
pub fn run(data: &[u8]) {
    let (how, data) = split(data);
    let whole = hear(how, data, usize::MAX);
    let cut = hear(how, data, usize::from(how >> 2) + 1);
    assert_eq!(whole, cut);
}

/// What came of it: how the session ended, and what its streams brought.
fn hear(how: u8, data: &[u8], cut: usize) -> String {
    let role = if how & 1 == 0 { Role::Server } else { Role::Client };
    let limits = MuxLimits { session_buffer_budget: BUDGET, ..MuxLimits::default() };
    let (batch, mut mux) = (limits.batch, Mux::new(role, limits, NOW));
    let mut held: Vec<StreamKey> = Vec::new();
    if how & 2 != 0 {
        let key = mux.open(Class::Interactive).unwrap();
        mux.write(key, b"x").unwrap();
        mux.transmit(&mut Outgoing::new(), NOW); // the peer knows of it, however its bytes are cut
        held.push(key);
    }
    let mut input = BytesMut::new();
    let mut told = vec![Vec::new(); 64];
    for piece in data.chunks(cut) {
        input.extend_from_slice(piece);
        mux.receive(&mut input, NOW);
        assert!(mux.unread() <= BUDGET + piece.len());
        while mux.poll_event().is_some() {}
        while let Some(key) = mux.accept() {
            held.push(key);
        }
        for (key, told) in held.iter().zip(&mut told) {
            while let Ok(Read::Data(bytes)) = mux.read(*key, 1000) {
                told.extend_from_slice(&bytes);
            }
        }
        let mut out = Outgoing::new();
        mux.transmit(&mut out, NOW);
        assert!(out.len() <= 2 * batch + 1000);
    }
    assert_eq!(mux.unread(), 0, "everything was read");
    if mux.end().is_none() {
        assert!(input.len() < HEADER + RESET, "only the beginning of a header waits, or that of a reset");
        for key in held.iter().copied() {
            mux.release(key);
        }
    }
    match mux.end() {
        // What had not been read by then is gone: how much that is depends on the cut.
        Some(end) => format!("{end:?}"),
        None => format!("{:?} {told:?}", held.iter().map(|key| key.id()).collect::<Vec<_>>()),
    }
}
