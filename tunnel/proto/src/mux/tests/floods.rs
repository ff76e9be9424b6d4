//! What costs more than it carries ends at a bound, and an honest pace never reaches it.

use super::*;
use crate::code::CloseCode;

/// How many times `frame` is taken, `pause` apart, before the session ends with a flood. At most 20 000.
fn taken(mut mux: Mux, pause: Duration, mut frame: impl FnMut(&mut Mux, u32) -> Vec<u8>) -> u32 {
    for n in 0..20_000 {
        let bytes = frame(&mut mux, n);
        hear(&mut mux, &bytes);
        if let Some(end) = mux.end() {
            assert_eq!(end.code, CloseCode::Flood, "{end:?}");
            return n;
        }
        events(&mut mux);
        mux.now += pause;
    }
    20_000
}

const AT_ONCE: Duration = Duration::ZERO;

#[test]
fn pings() {
    let answered = |mux: &mut Mux, n| {
        sent(mux);
        header(Kind::Ping, SYN, 0, n)
    };
    assert_eq!(taken(mux(Role::Server), AT_ONCE, answered), 64);
    assert_eq!(taken(mux(Role::Server), Duration::from_millis(125), answered), 20_000);
    // While nothing can be sent, answers do not pile up.
    let stuck = |_: &mut Mux, n| header(Kind::Ping, SYN, 0, n);
    assert_eq!(taken(mux(Role::Server), Duration::from_secs(1), stuck), 32);
}

#[test]
fn s65_opens_that_nobody_accepts() {
    let open = |mux: &mut Mux, n: u32| {
        sent(mux);
        data(SYN, 2 * n + 1, b"hello")
    };
    let n = taken(mux(Role::Server), AT_ONCE, open);
    assert_eq!(n, 1024 + 2048);
    // Held: what the limits say, and no more.
    let mut server = mux(Role::Server);
    for n in 0..3000 {
        let bytes = open(&mut server, n);
        hear(&mut server, &bytes);
    }
    assert_eq!((server.end(), server.open_streams()), (None, 1024));
    assert!(server.tombstones.len() <= server.limits.tombstones);
}

#[test]
fn refusals_reset_the_stream_and_not_the_session() {
    let limits = MuxLimits { max_streams_in: 1, ..MuxLimits::default() };
    let mut server = Mux::new(Role::Server, limits, START);
    sent(&mut server);
    hear(&mut server, &data(SYN, 1, b"first"));
    hear(&mut server, &data(SYN, 3, b"second"));
    hear(&mut server, &data(0, 3, b"still coming"));
    hear(&mut server, &data(FIN, 3, b""));
    assert_eq!(sent(&mut server), data(RST, 3, &8u32.to_be_bytes()));
    assert_eq!((server.end(), server.open_streams()), (None, 1));
}

#[test]
fn opened_and_reset_at_once() {
    let churn = |_: &mut Mux, n: u32| [data(SYN, 2 * n + 1, b"x"), data(RST, 2 * n + 1, b"")].concat();
    assert_eq!(taken(mux(Role::Server), AT_ONCE, churn), 2048);
    assert_eq!(taken(mux(Role::Server), Duration::from_millis(4), churn), 20_000);
}

#[test]
fn s21_frames_of_forgotten_streams() {
    let mut server = mux(Role::Server);
    hear(&mut server, &data(SYN | FIN, 1, b""));
    let key = server.accept().unwrap();
    server.finish(key);
    sent(&mut server);
    server.release(key);
    let credit = |_: &mut Mux, _| header(Kind::WindowUpdate, 0, 1, 1);
    assert_eq!(taken(server, AT_ONCE, credit), 8192);
}

#[test]
fn a_reset_stream_may_still_use_up_its_credit() {
    let mut server = mux(Role::Server);
    hear(&mut server, &data(SYN, 1, b"12345"));
    let key = server.accept().unwrap();
    server.release(key);
    sent(&mut server);
    for _ in 0..5 {
        hear(&mut server, &data(0, 1, &[0; 50_000]));
    }
    hear(&mut server, &data(0, 1, &[0; 262_144 - 5 - 250_000]));
    assert_eq!((server.end(), server.unread()), (None, 0));
    hear(&mut server, &data(0, 1, b"x"));
    assert_eq!(server.end().map(|end| end.code), Some(CloseCode::FlowControl));
}

#[test]
fn empty_frames_and_go_aways() {
    let mut server = mux(Role::Server);
    hear(&mut server, &data(SYN, 1, b""));
    assert_eq!(taken(server, AT_ONCE, |_, _| data(0, 1, b"")), 256);
    assert_eq!(taken(mux(Role::Server), AT_ONCE, |_, _| header(Kind::GoAway, 0, 0, 0)), 257);
}

#[test]
fn one_byte_frames_that_nobody_reads_cost_what_they_carry() {
    let mut server = mux(Role::Server);
    hear(&mut server, &data(SYN, 1, b""));
    let key = server.accept().unwrap();
    for n in 0..INITIAL_WINDOW {
        hear(&mut server, &data(0, 1, &[n as u8]));
    }
    assert_eq!((server.end(), server.unread()), (None, INITIAL_WINDOW as usize));
    let (bytes, _) = read_all(&mut server, key);
    assert!(bytes.iter().zip(0u32..).all(|(byte, n)| *byte == n as u8));
}
