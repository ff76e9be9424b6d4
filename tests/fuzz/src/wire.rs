//! Headers, verdicts, control messages, datagrams and identities: what was read can be written, and reads the same again.

use crate::split;
use bytes::BytesMut;
use moorline_proto::{
    codec::VerdictReader,
    control::Control,
    datagram,
    header::{Refusal, StreamHeader, Verdict},
    id::SpiffeId,
};

/// The first byte chooses what the others are.
pub fn run(data: &[u8]) {
    let (kind, data) = split(data);
    let mut again = Vec::new();
    match kind % 6 {
        0 => {
            let Ok(header) = StreamHeader::decode(data) else { return };
            header.encode(&mut again).unwrap();
            assert_eq!(StreamHeader::decode(&again), Ok(header));
        }
        1 => {
            let Ok(Some(control)) = Control::decode(data) else { return };
            control.encode(&mut again).unwrap();
            assert_eq!(Control::decode(&again), Ok(Some(control)));
        }
        2 => {
            let Ok(refusal) = Refusal::decode(data) else { return };
            refusal.encode(&mut again);
            assert_eq!(Refusal::decode(&again), Ok(refusal));
        }
        3 => verdict(data),
        4 => {
            let (mut input, before) = (BytesMut::from(data), data.len());
            while let Some((flow, payload)) = datagram::take(&mut input) {
                datagram::put(&mut again, flow, &payload);
            }
            assert_eq!(again, data[..before - input.len()], "one spelling");
        }
        _ => {
            let Ok(text) = std::str::from_utf8(data) else { return };
            let Ok(id) = text.parse::<SpiffeId>() else { return };
            assert_eq!(id.to_string(), text, "an identity has one spelling");
        }
    }
}

/// A verdict is found whole or byte by byte, and nothing behind it is taken.
fn verdict(data: &[u8]) {
    let read = |most: usize| {
        let (mut reader, mut at) = (VerdictReader::default(), 0);
        loop {
            let end = data.len().min(at + reader.wants().min(most));
            if at == end {
                return (at, None);
            }
            match reader.push(&data[at..end]) {
                Ok(None) => at = end,
                outcome => return (end, Some(outcome)),
            }
        }
    };
    let (whole, bytewise) = (read(usize::MAX), read(1));
    if let (end, Some(Ok(Some(found)))) = &whole {
        assert_eq!((whole.0, &whole.1), (bytewise.0, &bytewise.1));
        if matches!(found, Verdict::Accepted) {
            assert_eq!(*end, 1);
        }
    }
}
