//! What passes over SPDY/3.1 as `kubectl exec` speaks it: one stream for each of stdin, stdout, stderr, which its first
//! frame names. Read beside the stream, never changed.
//!
//! API servers and container runtimes read with moby/spdystream, which is lenient: it goes by a frame's type where its length
//! says something else, leaves what headers have too much for the next ones, and passes over streams that it has already.
//! Whatever it could take for something else than is read here is unreadable, so that nobody can write past the record.

mod headers;

use super::{Unreadable, Way};
use headers::Headers;
use std::collections::HashMap;

/// Streams of one connection, at most: `exec` has five.
const STREAMS: usize = 64;
/// Longest frame with headers, in bytes, and longest headers.
const HEADERS: usize = 64 << 10;
/// The version that control frames name (SPDY/3.1 is one of connections, not of frames).
const VERSION: [u8; 2] = [0x80, 3];
const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const WITH_HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;

/// What a stream is for (k8s.io/api `core/v1.StreamType…`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StreamKind {
    Stdin,
    Output,
    Resize,
    /// How the command ended.
    Status,
}

/// Reads both directions of a connection.
#[derive(Debug)]
pub(super) struct Streams {
    kinds: HashMap<u32, StreamKind>,
    /// The newest of them: ids grow.
    newest: u32,
    up: Reader,
    down: Reader,
    headers: Headers,
}

impl Streams {
    pub(super) fn new() -> Self {
        Self {
            kinds: HashMap::new(),
            newest: 0,
            up: Reader::default(),
            down: Reader::default(),
            headers: Headers::new(),
        }
    }

    /// `piece` is told of streams and what is written to them.
    pub(super) fn feed(
        &mut self,
        way: Way,
        bytes: &[u8],
        piece: &mut dyn FnMut(StreamKind, &[u8]),
    ) -> Result<(), Unreadable> {
        let Self { kinds, newest, up, down, headers } = self;
        match way {
            Way::ToClient => down.feed(bytes, &mut |found| match found {
                Found::Data(stream, bytes) => told(kinds, stream, bytes, piece),
                Found::Control(..) => Ok(()),
            }),
            Way::ToCluster => up.feed(bytes, &mut |found| match found {
                Found::Data(stream, bytes) => told(kinds, stream, bytes, piece),
                // What is compressed refers to what was before: none may be passed over.
                Found::Control(kind @ (SYN_STREAM | SYN_REPLY | WITH_HEADERS), frame) => {
                    let before = if kind == SYN_STREAM { 10 } else { 4 };
                    let (head, block) = frame.split_at_checked(before).ok_or(Unreadable("a short SPDY frame"))?;
                    let all = headers.read(block)?;
                    let Some(id) = head.first_chunk::<4>().filter(|_| kind == SYN_STREAM) else { return Ok(()) };
                    let id = u32::from_be_bytes(*id);
                    // Clients have the odd ones. One that does not grow is refused there, and the stream that has it stays.
                    if id % 2 == 0 || id <= *newest || 0x7fff_ffff < id {
                        return Err(Unreadable("a SPDY stream with another's id"));
                    }
                    if STREAMS <= kinds.len() {
                        return Err(Unreadable("more SPDY streams than a terminal has"));
                    }
                    kinds.insert(id, kind_of(&all)?);
                    *newest = id;
                    Ok(())
                }
                Found::Control(..) => Ok(()),
            }),
        }
    }
}

/// Of streams that were opened, and of no others: nobody knows what else would be done with it.
fn told(
    kinds: &HashMap<u32, StreamKind>,
    stream: u32,
    bytes: &[u8],
    piece: &mut dyn FnMut(StreamKind, &[u8]),
) -> Result<(), Unreadable> {
    let kind = kinds.get(&stream).ok_or(Unreadable("data on a SPDY stream that nobody opened"))?;
    if !bytes.is_empty() {
        piece(*kind, bytes);
    }
    Ok(())
}

/// Exactly one of the five names: a value with a NUL in it is several values to others, and the first one counts.
fn kind_of(headers: &[(Vec<u8>, Vec<u8>)]) -> Result<StreamKind, Unreadable> {
    let mut named = headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case(b"streamtype"));
    match (named.next().map(|(_, value)| &value[..]), named.next()) {
        (Some(b"stdin"), None) => Ok(StreamKind::Stdin),
        (Some(b"stdout" | b"stderr"), None) => Ok(StreamKind::Output),
        (Some(b"resize"), None) => Ok(StreamKind::Resize),
        (Some(b"error"), None) => Ok(StreamKind::Status),
        _ => Err(Unreadable("a SPDY stream that no terminal has")),
    }
}

enum Found<'a> {
    /// Of this stream; nothing where a frame begins.
    Data(u32, &'a [u8]),
    /// Its type, and all of it.
    Control(u16, &'a [u8]),
}

/// One direction.
#[derive(Debug, Default)]
struct Reader {
    head: Vec<u8>,
    left: usize,
    /// Of a frame whose payload is being read.
    kind: Option<Kind>,
    /// Of a control frame.
    held: Vec<u8>,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Data(u32),
    Control(u16),
}

impl Reader {
    fn feed(
        &mut self,
        mut bytes: &[u8],
        found: &mut dyn FnMut(Found<'_>) -> Result<(), Unreadable>,
    ) -> Result<(), Unreadable> {
        while !bytes.is_empty() {
            let Some(kind) = self.kind else {
                let (head, rest) = bytes.split_at((8 - self.head.len()).min(bytes.len()));
                self.head.extend_from_slice(head);
                bytes = rest;
                if let [a, b, c, d, _flags, x, y, z] = self.head[..] {
                    self.left = usize::from(x) << 16 | usize::from(y) << 8 | usize::from(z);
                    let kind = if a & 0x80 == 0 {
                        Kind::Data(u32::from_be_bytes([a, b, c, d]))
                    } else {
                        Kind::Control(u16::from_be_bytes([c, d]))
                    };
                    match kind {
                        Kind::Data(stream) => found(Found::Data(stream, &[]))?,
                        Kind::Control(_) if HEADERS < self.left => {
                            return Err(Unreadable("a SPDY frame that is too long"));
                        }
                        Kind::Control(kind) if [a, b] != VERSION || !has_length(kind, self.left) => {
                            return Err(Unreadable("a SPDY frame that is not what it says"));
                        }
                        Kind::Control(_) => {}
                    }
                    self.kind = Some(kind);
                    self.head.clear();
                    self.whole(found)?;
                }
                continue;
            };
            let (payload, rest) = bytes.split_at(self.left.min(bytes.len()));
            (bytes, self.left) = (rest, self.left - payload.len());
            match kind {
                Kind::Data(stream) => found(Found::Data(stream, payload))?,
                Kind::Control(_) => self.held.extend_from_slice(payload),
            }
            self.whole(found)?;
        }
        Ok(())
    }

    /// Once nothing of the frame is left to come.
    fn whole(&mut self, found: &mut dyn FnMut(Found<'_>) -> Result<(), Unreadable>) -> Result<(), Unreadable> {
        if self.left == 0
            && let Some(Kind::Control(kind)) = self.kind.take()
        {
            let held = std::mem::take(&mut self.held);
            if kind == SETTINGS && !counts_right(&held) {
                return Err(Unreadable("SPDY settings that are not as many as they say"));
            }
            return found(Found::Control(kind, &held));
        }
        Ok(())
    }
}

/// Whether a control frame's length is the one that goes with its type (SPDY/3.1, §2.6). Others read so many bytes of it
/// whatever it says.
fn has_length(kind: u16, length: usize) -> bool {
    match kind {
        SYN_STREAM | SYN_REPLY | WITH_HEADERS => true, // the rest is headers
        SETTINGS => length % 8 == 4,
        PING => length == 4,
        RST_STREAM | GOAWAY | WINDOW_UPDATE => length == 8,
        _ => false,
    }
}

/// A number, and so many settings of eight bytes.
fn counts_right(settings: &[u8]) -> bool {
    settings.split_first_chunk::<4>().is_some_and(|(number, rest)| {
        usize::try_from(u32::from_be_bytes(*number)).is_ok_and(|number| number == rest.len() / 8)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The client's half of a connection as kubectl 1.32 wrote it (`kubectl exec -it`), up to its first key.
    const KUBECTL: &str = include_str!("spdy.hex");

    fn recorded() -> Vec<u8> {
        let digits: Vec<u8> = KUBECTL.bytes().filter(u8::is_ascii_hexdigit).collect();
        digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
    }

    fn data(stream: u32, bytes: &[u8]) -> Vec<u8> {
        [&stream.to_be_bytes()[..], &(bytes.len() as u32).to_be_bytes(), bytes].concat()
    }

    fn control(kind: u16, payload: &[u8]) -> Vec<u8> {
        let length = (payload.len() as u32).to_be_bytes();
        [&VERSION[..], &kind.to_be_bytes(), &[0], &length[1..], payload].concat()
    }

    /// Deflated without being made smaller, and flushed, as `exec`'s clients flush after each frame.
    fn deflated(plain: &[u8]) -> Vec<u8> {
        let length = plain.len() as u16;
        [&[0][..], &length.to_le_bytes(), &(!length).to_le_bytes(), plain, &[0, 0, 0, 0xff, 0xff]].concat()
    }

    fn pairs(all: &[(&str, &str)]) -> Vec<u8> {
        let text = |text: &str| [&(text.len() as u32).to_be_bytes(), text.as_bytes()].concat();
        let each = all.iter().flat_map(|(name, value)| [text(name), text(value)].concat());
        (all.len() as u32).to_be_bytes().into_iter().chain(each).collect()
    }

    /// A stream is opened; `block` are its headers as they travel.
    fn opened(id: u32, block: &[u8]) -> Vec<u8> {
        control(SYN_STREAM, &[&id.to_be_bytes()[..], &[0; 6], block].concat())
    }

    #[test]
    fn streams_are_known_by_what_kubectl_calls_them() {
        for cut in [1, 3, 10, 4096] {
            let mut streams = Streams::new();
            for part in recorded().chunks(cut) {
                streams.feed(Way::ToCluster, part, &mut |_, _| {}).unwrap();
            }
            let of = |kind| streams.kinds.iter().find(|(_, found)| **found == kind).map(|(id, _)| *id);
            let (stdin, output, resize) = (of(StreamKind::Stdin), of(StreamKind::Output), of(StreamKind::Resize));
            let [Some(stdin), Some(output), Some(resize)] = [stdin, output, resize] else {
                panic!("{:?}", streams.kinds)
            };
            let mut got = Vec::new();
            for (way, bytes) in [
                (Way::ToClient, data(output, b"$ ")),
                (Way::ToCluster, data(stdin, b"ls\r")),
                (Way::ToCluster, data(resize, b"{\"Width\":80,\"Height\":24}")),
                // What else clients and servers send, while it goes on and at its end.
                (Way::ToCluster, control(PING, &1u32.to_be_bytes())),
                (Way::ToClient, control(PING, &1u32.to_be_bytes())),
                (Way::ToClient, control(SETTINGS, &[0, 0, 0, 1, 0, 0, 0, 4, 0, 0, 0, 100])),
                (Way::ToCluster, data(stdin, b"")),
                (Way::ToCluster, control(RST_STREAM, &[0, 0, 0, 3, 0, 0, 0, 5])),
                (Way::ToCluster, control(GOAWAY, &[0; 8])),
            ] {
                for part in bytes.chunks(cut) {
                    streams.feed(way, part, &mut |kind, bytes| got.push((kind, bytes.to_vec()))).unwrap();
                }
            }
            let all = |wanted| got.iter().filter(|(kind, _)| *kind == wanted).flat_map(|(_, b)| b.clone()).collect();
            let texts: [Vec<u8>; 2] = [all(StreamKind::Output), all(StreamKind::Stdin)];
            assert_eq!(texts, [b"$ ".to_vec(), b"ls\r".to_vec()]);
        }
    }

    #[test]
    fn z13_frames_that_cannot_be_read_are_told() {
        for bad in [
            control(SYN_STREAM, b"short"),
            control(SYN_STREAM, &[0; 40]),
            control(SYN_STREAM, b"\0\0\0\x01\0\0\0\0\0\0\x78\xbb\0\0\0\0more"),
            [&[0x80, 3, 0, 1, 0][..], &[0xff; 3]].concat(),
        ] {
            assert!(Streams::new().feed(Way::ToCluster, &bad, &mut |_, _| {}).is_err(), "{bad:x?}");
        }
    }

    /// After what kubectl sent (streams 1 to 7, the headers' compressed stream begun), what spdystream takes otherwise than
    /// somebody who goes by the book.
    #[test]
    fn s70_nobody_writes_past_the_record() {
        let of = |kind| deflated(&pairs(&[("streamtype", kind)]));
        let (stdin, resize) = (3, 7);
        let hidden = [&200u32.to_be_bytes()[..], &data(stdin, b"rm -r /\n"), &[0; 180]].concat();
        for (what, bad) in [
            ("stdin again, as what nobody keeps: there it stays stdin", opened(stdin, &of("error"))),
            ("the same by its other name", opened(0x8000_0000 | stdin, &of("error"))),
            ("an id that was left out", opened(2, &of("stdin"))),
            ("two values, of which the first counts there", opened(9, &of("stdout\0x"))),
            ("the name in other letters", opened(9, &of("Stdout"))),
            ("no name that a terminal has", opened(9, &of("data"))),
            ("no name", opened(9, &deflated(&pairs(&[("port", "80")])))),
            ("two names", opened(9, &deflated(&pairs(&[("streamtype", "error"), ("streamtype", "stdin")])))),
            (
                "headers of the next stream",
                opened(9, &deflated(&[pairs(&[("streamtype", "error")]), pairs(&[])].concat())),
            ),
            ("the same, compressed apart", opened(9, &[of("error"), of("stdin")].concat())),
            ("after headers of none", control(WITH_HEADERS, &[&[0, 0, 0, 3][..], &of("error"), &of("stdin")].concat())),
            ("frames within a ping", control(PING, &hidden)),
            ("within a reset", control(RST_STREAM, &hidden)),
            ("within a farewell", control(GOAWAY, &hidden)),
            ("within a window", control(WINDOW_UPDATE, &hidden)),
            ("within settings", control(SETTINGS, &[&[0; 4][..], &data(stdin, b"rm -r /\n")[..16]].concat())),
            ("of no type", control(5, &[])),
            ("of a newer type", control(10, &hidden)),
            ("of another version", [&[0x80, 2, 0, 6, 0, 0, 0, 4][..], &[0; 4]].concat()),
            ("to nobody", data(resize + 2, b"rm -r /\n")),
            ("nothing, to nobody", data(resize + 2, b"")),
            ("to all", data(0, b"rm -r /\n")),
        ] {
            for cut in [1, 4096] {
                let mut streams = Streams::new();
                streams.feed(Way::ToCluster, &recorded(), &mut |_, _| {}).unwrap();
                let mut parts = bad.chunks(cut);
                assert!(parts.any(|part| streams.feed(Way::ToCluster, part, &mut |_, _| {}).is_err()), "{what}");
            }
        }
        let mut streams = Streams::new();
        streams.feed(Way::ToCluster, &recorded(), &mut |_, _| {}).unwrap();
        assert!(streams.feed(Way::ToClient, &data(999, b"nobody's"), &mut |_, _| {}).is_err());
        // What is sound goes on as it was.
        let mut got = Vec::new();
        let sound = [opened(9, &of("stderr")), opened(13, &of("stdin")), data(13, b"ls")].concat();
        streams.feed(Way::ToCluster, &sound, &mut |kind, bytes| got.push((kind, bytes.to_vec()))).unwrap();
        assert_eq!(got, [(StreamKind::Stdin, b"ls".to_vec())]);
    }

    proptest! {
        #[test]
        fn z13_no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), at in any::<prop::sample::Index>()) {
            let mut streams = Streams::new();
            let _ = streams.feed(Way::ToCluster, &bytes, &mut |_, _| {});
            let _ = streams.feed(Way::ToClient, &bytes, &mut |_, _| {});
            // One bent byte of what is sound hits more.
            let mut bent = recorded();
            *at.get_mut(&mut bent) ^= 0x41;
            let _ = Streams::new().feed(Way::ToCluster, &bent, &mut |_, _| {});
        }
    }
}
