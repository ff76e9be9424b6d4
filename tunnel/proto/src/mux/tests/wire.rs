//! The codec: whatever the cut, whatever the bytes.

use super::*;
use alloc::{format, vec};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Step {
    Open { id: u32, payload: Vec<u8>, fin: bool },
    Data { id: u32, payload: Vec<u8>, fin: bool },
    Credit { id: u32, n: u32 },
    Reset { id: u32, code: Option<u32> },
    Ping(u32),
    GoAway(u32),
}

fn any_step() -> impl Strategy<Value = Step> {
    let id = (0u32..4).prop_map(|n| 2 * n + 1);
    let payload = prop::collection::vec(any::<u8>(), 0..200);
    prop_oneof![
        4 => (id.clone(), payload.clone(), any::<bool>()).prop_map(|(id, payload, fin)| Step::Open { id, payload, fin }),
        6 => (id.clone(), payload, prop::bool::weighted(0.2)).prop_map(|(id, payload, fin)| Step::Data { id, payload, fin }),
        2 => (id.clone(), 0u32..1000).prop_map(|(id, n)| Step::Credit { id, n }),
        1 => (id, prop::option::of(0u32..20)).prop_map(|(id, code)| Step::Reset { id, code }),
        1 => any::<u32>().prop_map(Step::Ping),
        1 => (0u32..20).prop_map(Step::GoAway),
    ]
}

fn encode(steps: &[Step]) -> Vec<u8> {
    let fin = |fin: bool| if fin { FIN } else { 0 };
    let one = |step: &Step| match step {
        Step::Open { id, payload, fin: end } => data(SYN | fin(*end), *id, payload),
        Step::Data { id, payload, fin: end } => data(fin(*end), *id, payload),
        Step::Credit { id, n } => header(Kind::WindowUpdate, 0, *id, *n),
        Step::Reset { id, code: Some(code) } => data(RST, *id, &code.to_be_bytes()),
        Step::Reset { id, code: None } => header(Kind::WindowUpdate, RST, *id, 0),
        Step::Ping(value) => header(Kind::Ping, SYN, 0, *value),
        Step::GoAway(code) => header(Kind::GoAway, 0, 0, *code),
    };
    steps.iter().flat_map(one).collect()
}

/// All that a session shows of itself after it was fed `pieces`.
fn story(pieces: &mut dyn Iterator<Item = &[u8]>) -> alloc::string::String {
    let mut server = mux(Role::Server);
    sent(&mut server);
    let mut input = BytesMut::new();
    for piece in pieces {
        input.extend_from_slice(piece);
        server.receive(&mut input, START);
    }
    let mut story = format!("{:?} {:?} {:?}", server.end(), server.peer_going_away(), events(&mut server));
    while let Some(key) = server.accept() {
        story += &format!("{key:?} {:?} {:?}", server.writable(key, usize::MAX), read_all(&mut server, key));
    }
    check(&server);
    story + &format!("{:?}", sent(&mut server))
}

proptest! {
    /// What was written is what is read, however the bytes are cut on the way.
    #[test]
    fn survives_any_cut(steps in prop::collection::vec(any_step(), 0..30), cut in 1usize..64) {
        let bytes = encode(&steps);
        prop_assert_eq!(story(&mut bytes.chunks(cut)), story(&mut core::iter::once(&bytes[..])));
    }

    /// Frames with bytes bent end in a session or a named end; never in a panic, never in more than was sent.
    #[test]
    fn bent_frames_cannot_panic_us(
        steps in prop::collection::vec(any_step(), 1..30),
        bends in prop::collection::vec((any::<prop::sample::Index>(), 0u8..16), 1..4),
    ) {
        let mut bytes = encode(&steps);
        for (at, byte) in bends {
            *at.get_mut(&mut bytes) = byte; // small values hit the kinds, flags and lengths; pure noise rarely does
        }
        story(&mut core::iter::once(&bytes[..]));
    }

    /// A header that decodes is the header that was encoded.
    #[test]
    fn headers_round_trip(bytes in any::<[u8; HEADER]>(), small in any::<bool>()) {
        let mut bytes = bytes;
        if small {
            (bytes[0], bytes[1], bytes[2], bytes[3]) = (0, bytes[1] % 4, 0, bytes[3] % 16);
        }
        if let Ok(header) = Header::decode(&bytes) {
            prop_assert_eq!(header.encode(), bytes);
        }
    }

    /// What the carrier takes, in whatever portions, is what was given to it.
    #[test]
    fn outgoing_is_a_queue_of_bytes(sizes in prop::collection::vec(0usize..50, 0..20), steps in prop::collection::vec(1usize..40, 1..99)) {
        let (mut out, mut all) = (Outgoing::new(), Vec::new());
        for (size, n) in sizes.into_iter().zip(1u32..) {
            let head = Header { kind: Kind::Data, flags: 0, stream: n, length: size as u32 };
            let code = (size % 3 == 0).then_some(n);
            out.head(head, code);
            out.body(vec![n as u8; size].into());
            all.extend(head.encode());
            all.extend(code.iter().flat_map(|code| code.to_be_bytes()));
            all.extend(vec![n as u8; size]);
        }
        for step in steps {
            let rest: Vec<u8> = out.pieces().flatten().copied().collect();
            prop_assert_eq!((&rest[..], rest.len()), (&all[..], out.len()));
            out.advance(step);
            all.drain(..step.min(all.len()));
        }
    }
}
