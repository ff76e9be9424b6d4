//! What released versions said, byte by byte. Each file of `transcripts/` was recorded once and stays for ever: a version
//! that reads it differently cannot talk to agents that are out there.
//!
//! A line is `name | hex`. A version that adds a wire version adds a file; `RECORD=1` prints what this one would record.
#![allow(missing_docs, clippy::unwrap_used)] // tests

use bytes::BytesMut;
use moorline_proto::{
    code::{CloseCode, RefuseCode, ResetCode},
    codec::VerdictReader,
    control::{Control, Goodbye, Hello, Welcome},
    header::{ActAs, Class, Principal, Refusal, StreamHeader, Target, Verdict},
    id::InstanceId,
    mux::{Mux, MuxLimits, Outgoing, Read, Role},
};
use std::{fmt::Write as _, time::Duration};

const VERSION_1: &str = include_str!("transcripts/v1");

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap()).collect()
}

/// Name and bytes of each line.
fn recorded(text: &str) -> Vec<(String, Vec<u8>)> {
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| line.split_once(" | ").map(|(name, hex)| (name.to_owned(), bytes(hex))).unwrap()).collect()
}

fn messages() -> Vec<Control> {
    vec![
        Control::Hello(Hello {
            min_version: 1,
            max_version: 1,
            instance: InstanceId(0x0102_0304_0506_0708),
            software: "moorline-agent/0.1.0".into(),
            capabilities: vec!["datagrams".into()],
            facts: vec![("kubernetesVersion".into(), "v1.35.1".into())],
            now_ms: 1_795_000_000_000,
        }),
        Control::Welcome(Welcome {
            version: 1,
            software: "moorline/0.1.0".into(),
            capabilities: vec!["datagrams".into()],
            now_ms: 1_795_000_000_001,
        }),
        Control::Goodbye(Goodbye { code: CloseCode::Busy, message: "later".into(), retry_after_ms: 5000 }),
        Control::Ping(7),
        Control::Pong(7),
        Control::Drain { grace_ms: 30_000 },
        Control::Renew { csr: vec![0x30, 0x00] },
        Control::Renewed { chain: vec![vec![0x30, 0x01], vec![0x30, 0x02]], bundle: vec![vec![0x30, 0x03]] },
        Control::RenewRefused { message: "no".into() },
        Control::Facts(vec![("nodes".into(), "3".into())]),
    ]
}

fn headers() -> Vec<StreamHeader> {
    let act_as = ActAs { user: "bo".into(), uid: String::new(), groups: vec!["b".into()], extra: Vec::new() };
    let principal = Principal {
        user: "ann".into(),
        uid: "u-1".into(),
        groups: vec!["dev".into(), "ops".into()],
        extra: vec![("scope".into(), vec!["a".into(), "b".into()])],
        act_as: Some(act_as),
    };
    let traceparent = Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".to_owned());
    vec![
        StreamHeader {
            target: Target::Kube,
            class: Class::Watch,
            deadline_ms: 0,
            traceparent,
            principal: Some(principal),
        },
        StreamHeader {
            target: Target::Echo,
            class: Class::Interactive,
            deadline_ms: 0,
            traceparent: None,
            principal: None,
        },
    ]
}

fn verdicts() -> [Verdict; 2] {
    let refusal = Refusal { code: RefuseCode::Policy, message: "not here".into(), retry_elsewhere: false };
    [Verdict::Accepted, Verdict::Refused(refusal)]
}

/// What a hub's mux sends: a stream with bytes and its end, one that is cut, and the end of the session.
fn mux_sends(role: Role) -> Vec<u8> {
    let (mut mux, mut out) = (Mux::new(role, MuxLimits::default(), Duration::ZERO), Outgoing::new());
    let first = mux.open(Class::Interactive).unwrap();
    mux.write(first, b"hello").unwrap();
    mux.finish(first);
    let second = mux.open(Class::Bulk).unwrap();
    mux.write(second, b"cut").unwrap();
    let mut sent = Vec::new();
    let mut take = |mux: &mut Mux| {
        while mux.wants_transmit() {
            mux.transmit(&mut out, Duration::ZERO);
            let now: Vec<u8> = out.pieces().flatten().copied().collect();
            out.advance(now.len());
            sent.extend(now);
        }
    };
    take(&mut mux);
    mux.reset(second, ResetCode::Revoked);
    take(&mut mux);
    mux.close(CloseCode::Shutdown);
    take(&mut mux);
    sent
}

fn record() -> Vec<(String, Vec<u8>)> {
    let mut lines = Vec::new();
    for message in messages() {
        let mut out = Vec::new();
        message.encode(&mut out).unwrap();
        lines.push((format!("control {}", message.name()), out));
    }
    for (number, header) in headers().iter().enumerate() {
        let mut out = Vec::new();
        header.encode(&mut out).unwrap();
        lines.push((format!("header {number}"), out));
    }
    for (number, verdict) in verdicts().iter().enumerate() {
        let mut out = Vec::new();
        verdict.encode(&mut out);
        lines.push((format!("verdict {number}"), out));
    }
    lines.push(("mux agent".into(), mux_sends(Role::Client)));
    lines.push(("mux hub".into(), mux_sends(Role::Server)));
    lines
}

#[test]
fn u01_version_1_is_read_as_it_was_meant() {
    let all = recorded(VERSION_1);
    let of = |kind: &str| -> Vec<Vec<u8>> {
        all.iter().filter(|(name, _)| name.starts_with(kind)).map(|(_, bytes)| bytes.clone()).collect()
    };
    let heard: Vec<_> = of("control ").iter().map(|bytes| Control::decode(bytes).unwrap().unwrap()).collect();
    assert_eq!(heard, messages());
    let heard: Vec<_> = of("header ").iter().map(|bytes| StreamHeader::decode(bytes).unwrap()).collect();
    assert_eq!(heard, headers());
    for (bytes, verdict) in of("verdict ").iter().zip(verdicts()) {
        let mut reader = VerdictReader::default();
        let heard = bytes.iter().find_map(|byte| reader.push(&[*byte]).unwrap());
        assert_eq!(heard, Some(verdict));
    }
    for (name, role) in [("mux agent", Role::Server), ("mux hub", Role::Client)] {
        let mut mux = Mux::new(role, MuxLimits::default(), Duration::ZERO);
        mux.receive(&mut BytesMut::from(&of(name)[0][..]), Duration::ZERO);
        assert_eq!((mux.peer_going_away(), mux.end()), (Some(CloseCode::Shutdown), None), "{name}");
        let first = mux.accept().unwrap();
        let Ok(Read::Data(data)) = mux.read(first, 64) else { panic!("{name}: nothing to read") };
        assert_eq!(&data[..], b"hello", "{name}");
    }
}

#[test]
fn u02_this_version_says_what_version_1_said() {
    let now = record();
    if std::env::var_os("RECORD").is_some() {
        for (name, bytes) in &now {
            println!("{name} | {}", hex(bytes));
        }
    }
    assert_eq!(now, recorded(VERSION_1));
}

/// A newer peer adds fields and messages: what is not marked as critical is passed over, what is is refused by name.
#[test]
fn u03_what_a_newer_version_adds_is_skipped_or_refused() {
    for (name, bytes) in recorded(VERSION_1).into_iter().filter(|(name, _)| name.starts_with("control ")) {
        let known = Control::decode(&bytes).unwrap();
        // Field 60, not critical: tag 120 as two bytes (RFC 9000 §16), one byte of value.
        let mut newer = bytes.clone();
        newer.extend([0x40, 120, 1, 0xff]);
        if !name.contains("ping") && !name.contains("pong") {
            assert_eq!(Control::decode(&newer).unwrap(), known, "{name}");
        }
        let mut critical = bytes.clone();
        critical.extend([0x40, 121, 1, 0xff]);
        assert!(Control::decode(&critical).is_err(), "{name}");
    }
    assert_eq!(Control::decode(&[0x40, 120]), Ok(None), "a message of a kind that may be ignored");
    assert!(Control::decode(&[0x40, 121]).is_err(), "a message of a kind that may not");
}
