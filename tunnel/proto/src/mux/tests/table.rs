//! Every kind of frame in every state, against rules written down a second time.

use super::*;
use crate::code::CloseCode;
use alloc::format;

/// What the server under test has lived through, as seen by its one interesting stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Past {
    /// Nothing: stream 1 was never opened.
    Fresh,
    /// The peer opened stream 1.
    Open,
    /// The same, and all but ten bytes of credit are used up.
    NearlyFull,
    /// The peer opened stream 1 and ended its direction.
    HalfClosed,
    /// The peer opened stream 1 and reset it; the application still holds it.
    PeerReset,
    /// The peer opened stream 1; this side reset and forgot it.
    WeReset,
    /// Stream 1 ended both ways and is forgotten.
    Gone,
    /// This side opened stream 2; the peer has not acknowledged it.
    Ours,
    /// This side opened stream 2; the peer has acknowledged it.
    OursAcked,
    /// This side opened stream 2, and has not told the peer.
    OursUntold,
}

impl Past {
    const ALL: [Self; 10] = [
        Self::Fresh,
        Self::Open,
        Self::NearlyFull,
        Self::HalfClosed,
        Self::PeerReset,
        Self::WeReset,
        Self::Gone,
        Self::Ours,
        Self::OursAcked,
        Self::OursUntold,
    ];

    fn live(self) -> Mux {
        let mut mux = mux(Role::Server);
        sent(&mut mux);
        match self {
            Self::Fresh => {}
            Self::Ours | Self::OursAcked => {
                let key = mux.open(Class::Interactive).unwrap();
                mux.write(key, b"x").unwrap();
                sent(&mut mux);
                if self == Self::OursAcked {
                    hear(&mut mux, &header(Kind::WindowUpdate, ACK, 2, 0));
                }
            }
            Self::OursUntold => {
                mux.open(Class::Interactive).unwrap();
            }
            _ => {
                hear(&mut mux, &header(Kind::WindowUpdate, SYN, 1, 0));
                let key = mux.accept().unwrap();
                match self {
                    Self::NearlyFull => hear(&mut mux, &data(0, 1, &[0; INITIAL_WINDOW as usize - 10])),
                    Self::HalfClosed => hear(&mut mux, &data(FIN, 1, b"")),
                    Self::PeerReset => hear(&mut mux, &data(RST, 1, b"")),
                    Self::WeReset => mux.release(key),
                    Self::Gone => {
                        hear(&mut mux, &data(FIN, 1, b""));
                        mux.finish(key);
                        mux.release(key);
                    }
                    _ => {}
                }
                sent(&mut mux);
            }
        }
        assert_eq!(mux.end(), None);
        mux
    }

    /// What becomes of the session when the peer sends this header.
    fn verdict(self, version: u8, kind: u8, flags: u16, stream: u32, length: u32) -> Option<CloseCode> {
        let (syn, ack, fin, rst) = (flags & SYN != 0, flags & ACK != 0, flags & FIN != 0, flags & RST != 0);
        let is_data = kind == 0;
        let protocol = Some(CloseCode::Protocol);
        match (version, kind) {
            (1.., _) => return Some(CloseCode::Version),
            (_, 4..) => return protocol,
            (_, 2) if stream != 0 || (flags != SYN && flags != ACK) => return protocol,
            (_, 2) if flags == ACK => return if length == 1 { None } else { protocol },
            (_, 2) => return None,
            (_, 3) => return if flags == 0 && stream == 0 { None } else { protocol },
            _ if flags > 15 || (syn && ack) || (syn && rst) || (fin && rst) || stream == 0 => return protocol,
            _ if is_data && rst && length != 0 && length != 4 => return protocol,
            _ if is_data && length > 1 << 20 => return Some(CloseCode::TooLarge),
            _ => {}
        }
        let is_the_one = match self {
            Self::Fresh => false,
            Self::Ours | Self::OursAcked => stream == 2,
            Self::OursUntold => false,
            _ => stream == 1,
        };
        if syn {
            return match length {
                _ if stream.is_multiple_of(2) || is_the_one => protocol,
                _ if is_data && length > INITIAL_WINDOW => Some(CloseCode::FlowControl),
                _ if !is_data && length > u32::MAX - INITIAL_WINDOW => Some(CloseCode::FlowControl),
                _ => None,
            };
        }
        if !is_the_one {
            return protocol;
        }
        let bytes = if is_data && !rst { length } else { 0 };
        let credit = if self == Self::NearlyFull { 10 } else { INITIAL_WINDOW };
        match self {
            Self::PeerReset => protocol,
            Self::WeReset => (bytes > credit).then_some(CloseCode::FlowControl),
            Self::Gone => None,
            Self::Ours => self.of_open(false, bytes, credit, kind, rst, length),
            _ if ack => protocol,
            Self::HalfClosed if !rst && (fin || bytes > 0) => protocol,
            _ => self.of_open(false, bytes, credit, kind, rst, length),
        }
    }

    fn of_open(self, _: bool, bytes: u32, credit: u32, kind: u8, rst: bool, length: u32) -> Option<CloseCode> {
        let spent = u32::from(matches!(self, Self::Ours | Self::OursAcked));
        let overflows = kind == 1 && !rst && length > u32::MAX - INITIAL_WINDOW + spent;
        (bytes > credit || overflows).then_some(CloseCode::FlowControl)
    }
}

#[test]
fn z15_every_frame_in_every_state_has_one_outcome() {
    let lengths = [
        0,
        1,
        3,
        4,
        5,
        9,
        10,
        11,
        INITIAL_WINDOW - 1,
        INITIAL_WINDOW,
        INITIAL_WINDOW + 1,
        (1 << 20) - 1,
        1 << 20,
        (1 << 20) + 1,
        u32::MAX - INITIAL_WINDOW - 1,
        u32::MAX - INITIAL_WINDOW,
        u32::MAX - INITIAL_WINDOW + 1,
        u32::MAX - INITIAL_WINDOW + 2,
        u32::MAX,
    ];
    let flags = (0u16..=16).chain([0x8000, 0xffff]);
    let mut rows = 0;
    for past in Past::ALL {
        for (version, kind) in (0..=5).chain([255]).map(|kind| (0, kind)).chain([(1, 0), (255, 2)]) {
            for flags in flags.clone() {
                for stream in [0, 1, 2, 3, 4, u32::MAX - 1, u32::MAX] {
                    for length in lengths.into_iter().take(if version == 0 && kind < 4 { lengths.len() } else { 2 }) {
                        let mut mux = past.live();
                        let ([f0, f1], [s0, s1, s2, s3]) = (flags.to_be_bytes(), stream.to_be_bytes());
                        let mut bytes = [&[version, kind, f0, f1, s0, s1, s2, s3][..], &length.to_be_bytes()].concat();
                        if kind == 0 && flags & RST != 0 && length == 4 {
                            bytes.extend([0; 4]);
                        }
                        hear(&mut mux, &bytes);
                        let row = format!(
                            "{past:?}: version {version} kind {kind} flags {flags:#x} stream {stream} length {length}"
                        );
                        let expected = past.verdict(version, kind, flags, stream, length);
                        assert_eq!(mux.end().map(|end| end.code), expected, "{row}: {:?}", mux.end());
                        // The peer is told why, in one last frame, and nothing is held of what was announced.
                        if let Some(code) = expected {
                            assert_eq!(sent(&mut mux), header(Kind::GoAway, 0, 0, code.number()), "{row}");
                            assert!(mux.is_finished());
                        } else {
                            check(&mux);
                        }
                        rows += 1;
                    }
                }
            }
        }
    }
    assert!(rows > 100_000, "{rows}");
}

#[test]
fn s65_violations_are_named() {
    let cases: &[(Past, Vec<u8>, Violation)] = &[
        (Past::Fresh, data(SYN, 2, b""), Violation::WrongParity { stream: 2 }),
        (Past::Open, data(SYN, 1, b""), Violation::IdReused { stream: 1 }),
        (Past::Gone, data(SYN, 1, b""), Violation::IdReused { stream: 1 }),
        (Past::Fresh, data(0, 1, b""), Violation::NotOpen { stream: 1 }),
        (
            Past::Open,
            header(Kind::Data, 0, 1, INITIAL_WINDOW + 1),
            Violation::BeyondCredit { stream: 1, length: 262_145 },
        ),
        (Past::HalfClosed, data(0, 1, b"x"), Violation::AfterFin { stream: 1 }),
        (Past::HalfClosed, data(FIN, 1, b""), Violation::AfterFin { stream: 1 }),
        (Past::PeerReset, data(0, 1, b"x"), Violation::AfterReset { stream: 1 }),
        (Past::Open, data(ACK, 1, b""), Violation::UnsolicitedAck { stream: 1 }),
        (Past::OursAcked, data(ACK, 2, b""), Violation::UnsolicitedAck { stream: 2 }),
        (Past::Fresh, header(Kind::Ping, ACK, 0, 77), Violation::UnsolicitedPong(77)),
        (Past::Open, header(Kind::WindowUpdate, 0, 1, u32::MAX), Violation::WindowOverflow { stream: 1 }),
        (Past::Open, data(RST, 1, b"12345"), Violation::ResetPayload { stream: 1, length: 5 }),
    ];
    for (past, bytes, violation) in cases {
        let mut mux = past.live();
        hear(&mut mux, bytes);
        assert_eq!(mux.end().and_then(|end| end.violation), Some(*violation), "{past:?} {bytes:?}");
    }
}
