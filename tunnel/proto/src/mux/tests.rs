//! The machine under test, without a carrier: bytes go from one end to the other by hand.

mod floods;
mod model;
mod schedule;
mod table;
mod wire;

use super::*;
use crate::{code::ResetCode, header::Class};
use alloc::vec::Vec;
use bytes::BytesMut;
use core::time::Duration;

const START: Duration = Duration::from_secs(1000);

fn mux(role: Role) -> Mux {
    Mux::new(role, MuxLimits::default(), START)
}

fn header(kind: Kind, flags: u16, stream: u32, length: u32) -> Vec<u8> {
    Header { kind, flags, stream, length }.encode().to_vec()
}

fn data(flags: u16, stream: u32, payload: &[u8]) -> Vec<u8> {
    [header(Kind::Data, flags, stream, payload.len() as u32), payload.to_vec()].concat()
}

/// Everything that `mux` has to say now.
fn sent(mux: &mut Mux) -> Vec<u8> {
    let mut all = Vec::new();
    while mux.wants_transmit() {
        let mut out = Outgoing::new();
        mux.transmit(&mut out, mux.now);
        out.pieces().for_each(|piece| all.extend_from_slice(piece));
    }
    all
}

fn hear(mux: &mut Mux, bytes: &[u8]) {
    mux.receive(&mut BytesMut::from(bytes), mux.now);
}

/// Carries bytes both ways until neither side has more to say.
fn settle(a: &mut Mux, b: &mut Mux) {
    while a.wants_transmit() || b.wants_transmit() {
        let bytes = sent(a);
        hear(b, &bytes);
        let bytes = sent(b);
        hear(a, &bytes);
    }
}

fn events(mux: &mut Mux) -> Vec<Event> {
    core::iter::from_fn(|| mux.poll_event()).collect()
}

/// Reads all that has arrived, and how it went on.
fn read_all(mux: &mut Mux, key: StreamKey) -> (Vec<u8>, Result<Read, Reset>) {
    let mut all = Vec::new();
    loop {
        match mux.read(key, 1000) {
            Ok(Read::Data(bytes)) => all.extend_from_slice(&bytes),
            other => return (all, other),
        }
    }
}

/// What must hold whatever has happened.
fn check(mux: &Mux) {
    let (mut unread, mut queued, mut grown, mut unacked) = (0, 0, 0, 0);
    for (_, stream) in mux.slots.iter() {
        let recv = &stream.recv;
        if stream.cut.is_none() && mux.payload.is_none() {
            let accounted = recv.credit as usize + recv.unread + recv.consumed as usize;
            assert_eq!(accounted, recv.window as usize, "window of {}", stream.id);
        }
        assert!(stream.send.queued <= mux.limits.stream_send_buffer);
        unread += recv.unread;
        queued += stream.send.queued;
        grown += (recv.window - INITIAL_WINDOW) as usize;
        unacked += usize::from(stream.unacked);
    }
    assert_eq!((mux.unread, mux.queued, mux.grown, mux.unacked), (unread, queued, grown, unacked));
    assert_eq!(mux.streams_in + mux.streams_out, mux.slots.len());
    assert!(grown <= mux.limits.session_buffer_budget / 2);
}

/// A client and a server that know each other's stream 1, the server's end accepted.
fn pair() -> (Mux, StreamKey, Mux, StreamKey) {
    let (mut client, mut server) = (mux(Role::Client), mux(Role::Server));
    let ours = client.open(Class::Interactive).unwrap();
    client.read(ours, 1).unwrap();
    settle(&mut client, &mut server);
    let theirs = server.accept().unwrap();
    (client, ours, server, theirs)
}

#[test]
fn bytes_and_ends_go_both_ways() {
    let (mut client, ours, mut server, theirs) = pair();
    assert_eq!(client.write(ours, b"question").unwrap(), 8);
    client.finish(ours);
    settle(&mut client, &mut server);
    assert_eq!(read_all(&mut server, theirs), (b"question".to_vec(), Ok(Read::End)));
    assert_eq!(server.write(theirs, b"answer").unwrap(), 6);
    server.finish(theirs);
    server.release(theirs);
    settle(&mut client, &mut server);
    assert_eq!(read_all(&mut client, ours), (b"answer".to_vec(), Ok(Read::End)));
    client.release(ours);
    assert_eq!((client.open_streams(), server.open_streams()), (0, 0));
    check(&client);
    check(&server);
}

#[test]
fn the_first_bytes_and_the_opening_are_one_frame() {
    let mut client = mux(Role::Client);
    sent(&mut client);
    let key = client.open(Class::Bulk).unwrap();
    assert!(!client.wants_transmit());
    client.write(key, b"he").unwrap();
    client.write(key, b"llo").unwrap();
    client.finish(key);
    assert_eq!(sent(&mut client), data(SYN | FIN, 1, b"hello"));
}

#[test]
fn a_reset_carries_its_code_and_is_no_end_of_input() {
    let (mut client, ours, mut server, theirs) = pair();
    client.write(ours, b"half").unwrap();
    settle(&mut client, &mut server);
    client.reset(ours, ResetCode::Revoked);
    assert!(events(&mut server).iter().all(|event| !matches!(event, Event::Cut(_))));
    assert_eq!(server.watch(theirs), None);
    settle(&mut client, &mut server);
    let cut = Reset { code: ResetCode::Revoked, by_peer: true };
    assert_eq!(server.read(theirs, 10), Err(cut));
    assert_eq!(server.write(theirs, b"x"), Err(cut));
    assert_eq!(server.watch(theirs), Some(cut));
    assert!(events(&mut server).contains(&Event::Cut(theirs)));
    assert_eq!(client.read(ours, 10), Err(Reset { code: ResetCode::Revoked, by_peer: false }));
    server.release(theirs);
    client.release(ours);
    assert_eq!((client.open_streams(), server.open_streams()), (0, 0));
}

#[test]
fn a_reset_takes_no_complete_input_back() {
    let (mut client, ours, mut server, theirs) = pair();
    client.write(ours, b"whole").unwrap();
    client.finish(ours);
    client.release(ours); // its answer is not wanted
    assert!(sent(&mut client).ends_with(&[0, 0, 0, 4, 0, 0, 0, 1]), "the reset leaves out what was not sent");

    let (mut client, ours, mut server2, theirs2) = pair();
    client.write(ours, b"whole").unwrap();
    client.finish(ours);
    settle(&mut client, &mut server2);
    client.release(ours);
    settle(&mut client, &mut server2);
    assert_eq!(read_all(&mut server2, theirs2), (b"whole".to_vec(), Ok(Read::End)));
    assert!(server2.write(theirs2, b"x").is_err());
    server.release(theirs);
}

#[test]
fn credit_is_granted_for_what_was_read_and_nothing_else() {
    let (mut client, ours, mut server, theirs) = pair();
    let mut wrote = 0;
    while let Ok(n @ 1..) = client.write(ours, &[7; 50_000]) {
        wrote += n;
        settle(&mut client, &mut server);
    }
    assert_eq!(wrote, INITIAL_WINDOW as usize);
    assert_eq!(server.unread(), wrote);
    let half = INITIAL_WINDOW / 2;
    let mut read = 0;
    while read < half {
        let Ok(Read::Data(bytes)) = server.read(theirs, (half - read) as usize) else { panic!() };
        read += bytes.len() as u32;
        assert_eq!(server.wants_transmit(), read == half);
    }
    assert_eq!(sent(&mut server), header(Kind::WindowUpdate, ACK, 1, half));
    check(&server);
}

/// Pushes `total` bytes through on a path of 20 ms, a window each `pause`, which is what a ping would take meanwhile; returns the
/// server's window after it.
fn window_after(total: usize, pause: Duration, limits: MuxLimits) -> u32 {
    let (mut client, mut server) =
        (Mux::new(Role::Client, MuxLimits::default(), START), Mux::new(Role::Server, limits, START));
    let rtt = Duration::from_millis(20);
    let ping = sent(&mut server);
    hear(&mut client, &ping);
    let pong = sent(&mut client);
    server.now += rtt;
    hear(&mut server, &pong);
    assert_eq!(server.rtt(), Some(rtt));
    let ours = client.open(Class::Bulk).unwrap();
    client.write(ours, b"x").unwrap();
    settle(&mut client, &mut server);
    let theirs = server.accept().unwrap();
    let mut moved = 1;
    while moved < total {
        while let Ok(n @ 1..) = client.write(ours, &[0; 60_000]) {
            moved += n;
            let bytes = sent(&mut client);
            hear(&mut server, &bytes);
        }
        server.now += pause;
        client.now += pause;
        server.rtt.measured(pause, server.now);
        let _ = read_all(&mut server, theirs);
        settle(&mut client, &mut server);
        check(&server);
    }
    server.slots.get(theirs).unwrap().recv.window
}

#[test]
fn windows_grow_for_fast_readers_within_the_budget() {
    let ms = Duration::from_millis;
    assert_eq!(window_after(30 << 20, ms(20), MuxLimits::default()), 4 << 20);
    assert_eq!(window_after(30 << 20, ms(500), MuxLimits::default()), INITIAL_WINDOW);
    let tight = MuxLimits { session_buffer_budget: 2 << 20, ..MuxLimits::default() };
    assert_eq!(window_after(30 << 20, ms(20), tight), 1 << 20);
}

#[test]
fn a_drain_lets_streams_finish_and_refuses_new_ones() {
    let (mut client, ours, mut server, theirs) = pair();
    server.go_away(crate::code::CloseCode::Shutdown);
    assert_eq!(server.open(Class::Interactive), Err(OpenError::GoingAway));
    let crossing = client.open(Class::Interactive).unwrap();
    client.write(crossing, b"too late").unwrap();
    settle(&mut client, &mut server);
    assert_eq!(client.open(Class::Interactive), Err(OpenError::GoingAway));
    assert_eq!(client.read(crossing, 1), Err(Reset { code: ResetCode::Refused, by_peer: true }));
    client.release(crossing);
    client.write(ours, b"going on").unwrap();
    client.finish(ours);
    settle(&mut client, &mut server);
    assert_eq!(read_all(&mut server, theirs), (b"going on".to_vec(), Ok(Read::End)));
    assert_eq!(server.end(), None);
    server.finish(theirs);
    server.release(theirs);
    settle(&mut client, &mut server);
    let end = End { code: crate::code::CloseCode::Shutdown, by_peer: false, violation: None };
    assert_eq!(server.end(), Some(end));
    assert!(server.is_finished());
    client.carrier_lost();
    assert_eq!(client.end(), Some(End { by_peer: true, ..end }));
    assert_eq!(client.read(ours, 1), Ok(Read::End));
}

#[test]
fn closing_sends_what_was_written_first() {
    let (mut client, ours, mut server, theirs) = pair();
    client.write(ours, b"last words").unwrap();
    client.close(crate::code::CloseCode::Replaced);
    assert!(client.write(ours, b"x").is_err());
    let bytes = sent(&mut client);
    assert!(client.is_finished());
    hear(&mut server, &bytes);
    server.carrier_lost();
    assert_eq!(server.end().map(|end| (end.code, end.by_peer)), Some((crate::code::CloseCode::Replaced, true)));
    let lost = Reset { code: ResetCode::SessionLost, by_peer: false };
    assert_eq!(read_all(&mut server, theirs), (b"last words".to_vec(), Err(lost)));
    server.release(theirs);
    client.release(ours);
    assert_eq!((client.open_streams(), server.open_streams()), (0, 0));
}

#[test]
fn silence_ends_the_session_and_traffic_keeps_it() {
    let mut client = mux(Role::Client);
    sent(&mut client);
    client.on_timer(START + Duration::from_secs(15));
    assert_eq!(sent(&mut client), header(Kind::Ping, SYN, 0, 2));
    client.now += Duration::from_secs(4);
    hear(&mut client, &header(Kind::Ping, ACK, 0, 2));
    client.on_timer(START + Duration::from_secs(38));
    assert_eq!(client.end(), None);
    assert_eq!(client.wake_at(), Some(START + Duration::from_secs(39)));
    client.on_timer(START + Duration::from_secs(39));
    assert_eq!(client.end().map(|end| end.code), Some(crate::code::CloseCode::Silent));
    assert!(client.is_finished());
}

#[test]
fn unread_streams_cannot_hold_up_the_others_for_ever() {
    let limits = MuxLimits { session_buffer_budget: 300_000, ..MuxLimits::default() };
    let mut server = Mux::new(Role::Server, limits, START);
    for id in [1, 3] {
        hear(&mut server, &data(SYN, id, &[1; 200_000]));
    }
    let (dead, alive) = (server.accept().unwrap(), server.accept().unwrap());
    assert!(!server.can_receive());
    server.now += Duration::from_secs(4);
    assert!(matches!(server.read(alive, 10), Ok(Read::Data(_))));
    assert_eq!(server.wake_at(), Some(START + Duration::from_secs(5)));
    server.on_timer(START + Duration::from_secs(5));
    assert!(server.can_receive());
    assert_eq!(server.read(dead, 10), Err(Reset { code: ResetCode::Idle, by_peer: false }));
    assert_eq!(server.unread(), 199_990);
    check(&server);
}

#[test]
fn once_it_is_known_that_nobody_reads_nobody_waits_again() {
    let limits = MuxLimits { session_buffer_budget: 1_000_000, ..MuxLimits::default() };
    let grace = limits.stall_grace;
    let mut server = Mux::new(Role::Server, limits, START);
    for id in 0..5 {
        hear(&mut server, &data(SYN, 2 * id + 1, &[1; 200_000]));
    }
    assert!(!server.can_receive());
    assert_eq!(server.wake_at(), Some(START + grace), "the first time it may be a moment");
    server.on_timer(START + grace);
    assert_eq!((server.can_receive(), server.relieved()), (true, 1));
    // What comes next fills it again: of those that stood for all the time one goes at once.
    hear(&mut server, &data(SYN, 11, &[1; 200_000]));
    assert_eq!((server.can_receive(), server.relieved()), (true, 2));
    // Who has come lately has its time.
    for id in 6..9 {
        hear(&mut server, &data(SYN, 2 * id + 1, &[1; 200_000]));
    }
    assert_eq!((server.can_receive(), server.relieved()), (true, 5));
    hear(&mut server, &data(SYN, 19, &[1; 200_000]));
    assert_eq!((server.can_receive(), server.relieved()), (false, 5));
    assert_eq!(server.wake_at(), Some(START + grace * 2));
    check(&server);
}

#[test]
fn a_stream_nobody_heard_of_ends_without_a_word() {
    let mut client = mux(Role::Client);
    sent(&mut client);
    for _ in 0..10_000 {
        let key = client.open(Class::Interactive).unwrap();
        client.write(key, b"x").unwrap();
        client.release(key);
        let _ = sent(&mut client);
    }
    assert_eq!(client.open_streams(), 0);
}

#[test]
fn complete_input_that_nobody_reads_is_dropped_too() {
    let limits = MuxLimits { session_buffer_budget: 100_000, ..MuxLimits::default() };
    let mut server = Mux::new(Role::Server, limits, START);
    sent(&mut server);
    hear(&mut server, &data(SYN | FIN, 1, &[1; 200_000]));
    let key = server.accept().unwrap();
    hear(&mut server, &data(RST, 1, b""));
    assert!(!server.can_receive());
    server.on_timer(START + Duration::from_secs(5));
    assert!(server.can_receive());
    assert_eq!(server.read(key, 10), Err(Reset { code: ResetCode::Idle, by_peer: false }));
    assert!(sent(&mut server).is_empty(), "the peer has already left");
    server.release(key);
    assert_eq!(server.open_streams(), 0);
    check(&server);
}

#[test]
fn a_writer_hears_of_room_once_half_of_its_buffer_is_free() {
    let (mut client, ours, ..) = pair();
    assert_eq!(client.write(ours, &[0; 200_000]), Ok(128 << 10));
    assert_eq!(client.write(ours, b"x"), Ok(0));
    assert!(!events(&mut client).contains(&Event::Writable(ours)));
    let mut out = Outgoing::new();
    client.transmit(&mut out, START);
    assert_eq!(events(&mut client), [Event::Writable(ours)]);
    assert_eq!(client.write(ours, &[0; 200_000]), Ok(64 << 10));
}
