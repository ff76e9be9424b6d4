extern crate std;
use super::*;
use crate::{
    code::{CloseCode, RefuseCode},
    control::{Control, Goodbye, Hello, Welcome},
    header::{ActAs, Class, Principal, Refusal, StreamHeader, Target, Verdict},
    id::InstanceId,
    inside::{Destination, Inside, Payload},
    tlv::{Need::Critical, Need::Optional, Writer, put_varint},
};
use alloc::{
    boxed::Box,
    format,
    string::{String, ToString},
    vec,
};
use proptest::{collection::vec as many, prelude::*, sample::Index};

fn name() -> impl Strategy<Value = String> {
    "[ -~äß]{1,40}"
}
fn extra() -> impl Strategy<Value = Vec<(String, Vec<String>)>> {
    many((name(), many(name(), 0..4)), 0..4)
}
fn act_as() -> impl Strategy<Value = ActAs> {
    (name(), "[a-z0-9]{0,8}", many(name(), 0..6), extra()).prop_map(|(user, uid, groups, extra)| ActAs {
        user,
        uid,
        groups,
        extra,
    })
}
fn principal() -> impl Strategy<Value = Principal> {
    (act_as(), proptest::option::of(act_as())).prop_map(|(a, act_as)| Principal {
        user: a.user,
        uid: a.uid,
        groups: a.groups,
        extra: a.extra,
        act_as,
    })
}
fn inside() -> impl Strategy<Value = Inside> {
    let to = prop_oneof![
        ("[a-z][a-z0-9]{0,20}", "[a-z][a-z0-9]{0,20}", "[a-z]{1,15}")
            .prop_map(|(n, s, p)| Destination::service(&n, &s, &p)),
        ("[a-z][a-z0-9]{0,20}", "[a-z][a-z0-9.]{0,20}[a-z]", 1u16..).prop_map(|(n, s, p)| Destination::pod(
            &n,
            &s.replace("..", "."),
            &p.to_string()
        )),
        ("[a-z]{1,20}", 1u16..).prop_map(|(host, port)| Destination::host(&host, port)),
        (any::<std::net::IpAddr>(), 1u16..).prop_map(|(host, port)| Destination::host(&host.to_string(), port)),
    ];
    let to = to.prop_filter_map("a valid one", Result::ok);
    let labels = many(many(("[a-z]{1,9}", "[a-z]{0,9}"), 0..3), 0..3);
    (to, 0u32..4, labels).prop_map(|(to, payload, labels)| Inside {
        to,
        payload: Payload::from_number(payload).unwrap(),
        labels,
    })
}
fn header() -> impl Strategy<Value = StreamHeader> {
    let target = prop_oneof![
        Just(Target::Kube),
        Just(Target::Echo),
        Just(Target::Endpoint),
        Just(Target::Node),
        inside().prop_map(Target::Inside),
    ];
    let class = prop_oneof![Just(Class::Interactive), Just(Class::Watch), Just(Class::Bulk)];
    let trace = proptest::option::of("00-[0-9a-f]{32}-[0-9a-f]{16}-01");
    (target, class, any::<u32>(), trace, proptest::option::of(principal())).prop_map(
        |(target, class, deadline_ms, traceparent, principal)| StreamHeader {
            target,
            class,
            deadline_ms,
            traceparent,
            principal,
        },
    )
}
fn facts() -> impl Strategy<Value = Vec<(String, String)>> {
    many(("[a-z]{1,9}", "[ -~]{0,30}"), 0..6)
}
fn control() -> impl Strategy<Value = Control> {
    let text = "[ -~äß]{0,60}";
    let der = || many(many(any::<u8>(), 0..300), 1..5);
    let hello = (0u16..9, 9u16.., any::<u64>(), "[ -~]{0,20}", many("[a-z]{1,9}", 0..5), facts(), any::<u64>())
        .prop_map(|(min_version, max_version, instance, software, capabilities, facts, now_ms)| {
            Control::Hello(Hello {
                min_version,
                max_version,
                instance: InstanceId(instance),
                software,
                capabilities,
                facts,
                now_ms,
            })
        });
    let welcome = (any::<u16>(), "[ -~]{0,20}", many("[a-z]{1,9}", 0..5), any::<u64>()).prop_map(
        |(version, software, capabilities, now_ms)| {
            Control::Welcome(Welcome { version, software, capabilities, now_ms })
        },
    );
    let goodbye = (any::<u32>(), text, any::<u32>()).prop_map(|(code, message, retry_after_ms)| {
        Control::Goodbye(Goodbye { code: CloseCode::from_number(code), message, retry_after_ms })
    });
    prop_oneof![
        hello,
        welcome,
        goodbye,
        any::<u64>().prop_map(Control::Ping),
        any::<u64>().prop_map(Control::Pong),
        any::<u32>().prop_map(|grace_ms| Control::Drain { grace_ms }),
        many(any::<u8>(), 0..500).prop_map(|csr| Control::Renew { csr }),
        (der(), der()).prop_map(|(chain, bundle)| Control::Renewed { chain, bundle }),
        text.prop_map(|message| Control::RenewRefused { message }),
        facts().prop_map(Control::Facts),
    ]
}
fn refusal() -> impl Strategy<Value = Refusal> {
    (any::<u32>(), "[ -~äß]{0,60}", any::<bool>()).prop_map(|(code, message, retry_elsewhere)| Refusal {
        code: RefuseCode::from_number(code),
        message,
        retry_elsewhere,
    })
}
/// Any message with what reads it.
type Reader = fn(&[u8]) -> bool;
fn any_message() -> impl Strategy<Value = (Vec<u8>, Reader)> {
    prop_oneof![
        header().prop_map(|h| (written(|o| h.encode(o)), (|b| StreamHeader::decode(b).is_ok()) as Reader)),
        control().prop_map(|c| (written(|o| c.encode(o)), (|b| Control::decode(b).is_ok()) as Reader)),
        refusal().prop_map(|r| {
            let mut out = Vec::new();
            r.encode(&mut out);
            (out, (|b| Refusal::decode(b).is_ok()) as Reader)
        }),
    ]
}
fn written(encode: impl FnOnce(&mut Vec<u8>) -> Result<(), WireError>) -> Vec<u8> {
    let mut out = Vec::new();
    encode(&mut out).unwrap();
    out
}

proptest! {
    /// What was written is what is read.
    #[test]
    fn headers_come_back(header in header()) {
        prop_assert_eq!(StreamHeader::decode(&written(|o| header.encode(o))), Ok(header));
    }
    #[test]
    fn messages_come_back(message in control()) {
        prop_assert_eq!(Control::decode(&written(|o| message.encode(o))), Ok(Some(message)));
    }
    /// A verdict is read however the bytes are cut, and takes nothing of what follows.
    #[test]
    fn verdicts_come_back(refusal in proptest::option::of(refusal()), cut in 1usize..20) {
        let verdict = refusal.map_or(Verdict::Accepted, Verdict::Refused);
        let mut wire = Vec::new();
        verdict.encode(&mut wire);
        let end = wire.len();
        wire.extend_from_slice(b"payload");
        let (mut reader, mut at) = (VerdictReader::default(), 0);
        let seen = loop {
            let n = reader.wants().min(cut);
            prop_assert!(n > 0);
            let seen = reader.push(&wire[at..at + n]).unwrap();
            at += n;
            if let Some(seen) = seen { break seen }
        };
        prop_assert_eq!((seen, at), (verdict, end));
    }
    /// A field that a later version adds changes nothing, unless it is marked as one that must be understood.
    #[test]
    fn unknown_fields_are_skipped((message, reads) in any_message(), number in 40u64..5000, value in many(any::<u8>(), 0..80)) {
        let with = |need| {
            let mut bytes = message.clone();
            Writer::new(&mut bytes).bytes(number, need, &value);
            bytes
        };
        prop_assert!(reads(&message));
        prop_assert!(reads(&with(Optional)));
        prop_assert!(!reads(&with(Critical)));
    }
    /// A valid message with one byte bent, or cut short, ends in a message or a typed error; never in a panic.
    #[test]
    fn bent_messages_cannot_panic_us((mut message, reads) in any_message(), at in any::<Index>(), byte in 0u8..8, cut in any::<Index>()) {
        prop_assume!(!message.is_empty());
        *at.get_mut(&mut message) = byte;
        let _ = reads(&message);
        let _ = reads(&message[..cut.index(message.len())]);
    }
    /// A single field must not stand twice: one reader would take the first, another the last.
    #[test]
    fn a_second_principal_is_an_error(header in header(), other in principal()) {
        let with = StreamHeader { principal: Some(other), ..header.clone() };
        let mut bytes = written(|o| with.encode(o));
        let one = StreamHeader { target: Target::Kube, class: Class::Interactive, deadline_ms: 0, traceparent: None, ..with };
        let tail = written(|o| one.encode(o));
        bytes.extend_from_slice(&tail);
        prop_assert_eq!(StreamHeader::decode(&bytes), Err(WireError::Duplicate { field: 1 }));
    }
}

fn kube(principal: Principal) -> StreamHeader {
    StreamHeader {
        target: Target::Kube,
        class: Class::Interactive,
        deadline_ms: 0,
        traceparent: None,
        principal: Some(principal),
    }
}

#[test]
fn what_cannot_be_read_is_not_written() {
    let ana = || Principal { user: "ana".into(), ..Principal::default() };
    let refused = |principal| kube(principal).encode(&mut Vec::new()).unwrap_err();
    assert_eq!(refused(Principal::default()), WireError::Missing { what: "user" });
    assert_eq!(refused(Principal { user: "a\r\nb".into(), ..ana() }), WireError::BadValue { what: "user" });
    assert_eq!(refused(Principal { user: "a".repeat(1025), ..ana() }), WireError::TooLong { what: "user" });
    let groups = vec!["g".to_string(); limits::GROUPS + 1];
    assert_eq!(refused(Principal { groups, ..ana() }), WireError::TooMany { what: "groups" });
    let groups = (0..100).map(|n| format!("{n}").repeat(400)).collect();
    assert_eq!(refused(Principal { groups, ..ana() }), WireError::TooLong { what: "stream header" });
}

#[test]
fn names_with_line_breaks_are_not_read() {
    let mut header = Vec::new();
    let mut w = Writer::new(&mut header);
    w.nested(1, Critical, |w| {
        w.number(1, Critical, 1);
        Ok(())
    })
    .unwrap();
    w.nested(5, Critical, |w| {
        w.bytes(1, Critical, b"ana\r\nImpersonate-Group: system:masters");
        Ok(())
    })
    .unwrap();
    assert_eq!(StreamHeader::decode(&header), Err(WireError::BadValue { what: "user" }));
}

#[test]
fn a_target_of_a_later_version_is_named_as_such() {
    let mut header = Vec::new();
    Writer::new(&mut header)
        .nested(1, Critical, |w| {
            w.number(1, Critical, 77);
            w.bytes(9, Critical, b"what this one needs");
            Ok(())
        })
        .unwrap();
    assert_eq!(StreamHeader::decode(&header), Err(WireError::UnknownTarget(77)));
}

#[test]
fn unknown_messages_are_ignored_only_when_their_sender_says_so() {
    let mut bytes = Vec::new();
    put_varint(&mut bytes, 77 << 1);
    assert_eq!(Control::decode(&bytes), Ok(None));
    let mut bytes = Vec::new();
    put_varint(&mut bytes, 77 << 1 | 1);
    assert_eq!(Control::decode(&bytes), Err(WireError::UnknownMessage(77)));
    assert_eq!(Control::decode(&[]), Err(WireError::Truncated));
}

#[test]
fn a_refusal_over_its_limit_is_refused_from_its_length() {
    let mut reader = VerdictReader::default();
    assert_eq!(reader.push(&[1]), Ok(None));
    assert_eq!(reader.push(&[0, 1, 0, 1]), Err(WireError::TooLong { what: "refusal" }));
    assert!(VerdictReader::default().push(&[2]).is_err());
    assert_eq!(announced_length([0, 1, 0, 0]), Ok(MAX_MESSAGE));
    assert!(announced_length([0, 1, 0, 1]).is_err());
}

#[test]
fn text_for_people_is_cut_and_cleaned() {
    let refusal =
        Refusal { code: RefuseCode::Policy, message: format!("no\n{}", "ä".repeat(5000)), retry_elsewhere: false };
    let mut out = Vec::new();
    refusal.encode(&mut out);
    let seen = Refusal::decode(&out).unwrap();
    assert!(seen.message.starts_with("no ä"));
    assert!(seen.message.len() <= crate::tlv::MAX_TEXT);
    let _: Box<dyn core::error::Error> = Box::new(WireError::Truncated);
}
