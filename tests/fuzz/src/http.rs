//! The guard in front of the HTTP library: what it lets through does not depend on how the bytes were cut, is what came
//! in, and is understood in one way.

use crate::split;
use bytes::BytesMut;
use moorline_proxy::guard::{Place, Reader, Refusal};

/// The first byte: how the rest is cut, and what becomes of a request to switch.
pub fn run(data: &[u8]) {
    let (how, data) = split(data);
    let whole = through(data, usize::MAX, how & 1 == 1);
    let cut = through(data, usize::from(how >> 1) + 1, how & 1 == 1);
    // A refusal of one kind may be seen before one of the other where everything comes at once.
    assert_eq!((&whole.0, whole.1.is_err()), (&cut.0, cut.1.is_err()));
    assert!(data.starts_with(&whole.0), "nothing is changed or left out");
}

fn through(data: &[u8], cut: usize, switched: bool) -> (Vec<u8>, Result<Place, Refusal>) {
    let (mut reader, mut input, mut out, mut all) = (Reader::default(), BytesMut::new(), BytesMut::new(), Vec::new());
    for piece in data.chunks(cut) {
        input.extend_from_slice(piece);
        loop {
            if let Err(refusal) = reader.step(&mut input, &mut out) {
                all.extend_from_slice(&out.split());
                return (all, Err(refusal));
            }
            all.extend_from_slice(&out.split());
            if reader.place() != Place::Held {
                break;
            }
            reader.decide(switched);
        }
        assert!(input.len() <= MOST_HELD, "{} bytes are held back", input.len());
        if reader.place() == Place::Over {
            break;
        }
    }
    let place = reader.place();
    (all, Ok(place))
}

/// Longest head, and a piece.
const MOST_HELD: usize = 1 << 20;
