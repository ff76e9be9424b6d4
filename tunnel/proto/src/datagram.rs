//! Datagrams on a stream: `u16 flow | u16 length | payload`, one after the other.

use alloc::vec::Vec;
use bytes::{Buf, Bytes, BytesMut};

/// Bytes in front of each payload.
pub const HEAD: usize = 4;

/// Appends a datagram of `flow`. A payload over 65,535 bytes is no datagram of UDP and is left out.
pub fn put(out: &mut Vec<u8>, flow: u16, payload: &[u8]) {
    let Ok(length) = u16::try_from(payload.len()) else { return };
    out.extend_from_slice(&flow.to_be_bytes());
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(payload);
}

/// Takes one datagram off the front. `None`: incomplete, nothing was taken.
pub fn take(input: &mut BytesMut) -> Option<(u16, Bytes)> {
    let mut head = input.get(..HEAD)?;
    let (flow, length) = (head.get_u16(), usize::from(head.get_u16()));
    if input.len() < HEAD + length {
        return None;
    }
    input.advance(HEAD);
    Some((flow, input.split_to(length).freeze()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams_survive_any_cut() {
        let mut wire = Vec::new();
        let sent: [(u16, &[u8]); 4] = [(1, b"a"), (2, b""), (1, b"bcd"), (u16::MAX, &[7; 1400])];
        sent.iter().for_each(|(flow, payload)| put(&mut wire, *flow, payload));
        put(&mut wire, 3, &[0; 70_000]);
        for cut in 1..40 {
            let (mut input, mut seen) = (BytesMut::new(), Vec::new());
            for piece in wire.chunks(cut) {
                input.extend_from_slice(piece);
                while let Some((flow, payload)) = take(&mut input) {
                    seen.push((flow, payload.to_vec()));
                }
            }
            assert!(input.is_empty());
            assert!(seen.iter().map(|(f, p)| (*f, &p[..])).eq(sent));
        }
    }
}
