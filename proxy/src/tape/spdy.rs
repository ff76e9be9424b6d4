//! What passes over SPDY/3.1 as `kubectl exec` speaks it: one stream for each of stdin, stdout, stderr, which its first
//! frame names. Read beside the stream, never changed.

use super::{Unreadable, Way};
use miniz_oxide::inflate::{
    TINFLStatus,
    core::{DecompressorOxide, decompress, inflate_flags::TINFL_FLAG_HAS_MORE_INPUT},
};
use std::collections::HashMap;

/// Streams of one connection, at most: `exec` has five.
const STREAMS: usize = 64;
/// Longest frame with headers, in bytes, and longest headers.
const HEADERS: usize = 64 << 10;
/// How far back compressed headers refer (RFC 1951 §2).
const WINDOW: usize = 32 << 10;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const WITH_HEADERS: u16 = 8;

/// What a stream is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StreamKind {
    Stdin,
    Output,
    Resize,
    Other,
}

/// Reads both directions of a connection.
#[derive(Debug)]
pub(super) struct Streams {
    kinds: HashMap<u32, StreamKind>,
    up: Reader,
    down: Reader,
    headers: Headers,
}

impl Streams {
    pub(super) fn new() -> Self {
        Self { kinds: HashMap::new(), up: Reader::default(), down: Reader::default(), headers: Headers::new() }
    }

    /// `piece` is told of streams and what is written to them.
    pub(super) fn feed(
        &mut self,
        way: Way,
        bytes: &[u8],
        piece: &mut dyn FnMut(StreamKind, &[u8]),
    ) -> Result<(), Unreadable> {
        let Self { kinds, up, down, headers } = self;
        match way {
            Way::ToClient => down.feed(bytes, &mut |found| {
                if let Found::Data(stream, bytes) = found {
                    piece(kinds.get(&stream).copied().unwrap_or(StreamKind::Other), bytes);
                }
                Ok(())
            }),
            Way::ToCluster => up.feed(bytes, &mut |found| {
                match found {
                    Found::Data(stream, bytes) => {
                        piece(kinds.get(&stream).copied().unwrap_or(StreamKind::Other), bytes);
                    }
                    // What is compressed refers to what was before: none may be passed over.
                    Found::Control(kind @ (SYN_STREAM | SYN_REPLY | WITH_HEADERS), frame) => {
                        let before = if kind == SYN_STREAM { 10 } else { 4 };
                        let (head, block) = frame.split_at_checked(before).ok_or(Unreadable("a short SPDY frame"))?;
                        let all = headers.read(block)?;
                        let Some(id) = head.first_chunk::<4>().filter(|_| kind == SYN_STREAM) else { return Ok(()) };
                        if STREAMS <= kinds.len() {
                            return Err(Unreadable("more SPDY streams than a terminal has"));
                        }
                        kinds.insert(u32::from_be_bytes(*id) & 0x7fff_ffff, kind_of(&all));
                    }
                    Found::Control(..) => {}
                }
                Ok(())
            }),
        }
    }
}

/// Names and values.
type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

fn kind_of(headers: &[(Vec<u8>, Vec<u8>)]) -> StreamKind {
    let named = headers.iter().find(|(name, _)| name.eq_ignore_ascii_case(b"streamtype"));
    match named.map(|(_, value)| &value[..]) {
        Some(b"stdin") => StreamKind::Stdin,
        Some(b"stdout" | b"stderr") => StreamKind::Output,
        Some(b"resize") => StreamKind::Resize,
        _ => StreamKind::Other,
    }
}

enum Found<'a> {
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
                if let [a, b, c, d, _flags, length @ ..] = &self.head[..]
                    && let [x, y, z] = length
                {
                    self.left = usize::from(*x) << 16 | usize::from(*y) << 8 | usize::from(*z);
                    let kind = if a & 0x80 == 0 {
                        Kind::Data(u32::from_be_bytes([*a, *b, *c, *d]))
                    } else {
                        Kind::Control(u16::from_be_bytes([*c, *d]))
                    };
                    if matches!(kind, Kind::Control(_)) && HEADERS < self.left {
                        return Err(Unreadable("a SPDY frame that is too long"));
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
            && let Some(Kind::Control(kind)) = self.kind.take_if(|_| true)
        {
            let held = std::mem::take(&mut self.held);
            return found(Found::Control(kind, &held));
        }
        Ok(())
    }
}

/// The headers of one direction: one zlib stream (RFC 1950) over all frames, with a dictionary that both know.
struct Headers {
    inflate: Box<DecompressorOxide>,
    window: Vec<u8>,
    at: usize,
    begun: bool,
}

impl std::fmt::Debug for Headers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Headers").finish_non_exhaustive()
    }
}

impl Headers {
    fn new() -> Self {
        Self { inflate: Box::default(), window: Vec::new(), at: 0, begun: false }
    }

    fn read(&mut self, mut block: &[u8]) -> Result<Pairs, Unreadable> {
        if !self.begun && !block.is_empty() {
            // CMF, FLG and, where bit 5 says so, the dictionary's checksum. What follows is plain deflate, and a
            // dictionary is nothing but what was there before.
            let [_, flags, rest @ ..] = block else { return Err(Unreadable("compressed headers that are cut short")) };
            block = rest;
            self.window = vec![0; WINDOW];
            if flags & 0x20 != 0 {
                let dictionary = dictionary();
                let Some((id, rest)) = block.split_first_chunk::<4>() else {
                    return Err(Unreadable("compressed headers that are cut short"));
                };
                if *id != DICTIONARY_ID.to_be_bytes() {
                    return Err(Unreadable("headers with an unknown dictionary"));
                }
                block = rest;
                if let Some(place) = self.window.get_mut(..dictionary.len()) {
                    place.copy_from_slice(&dictionary);
                }
                self.at = dictionary.len();
            }
            self.begun = true;
        }
        let mut plain = Vec::new();
        loop {
            let (status, taken, made) =
                decompress(&mut self.inflate, block, &mut self.window, self.at, TINFL_FLAG_HAS_MORE_INPUT);
            block = block.get(taken..).unwrap_or_default();
            plain.extend_from_slice(self.window.get(self.at..self.at + made).unwrap_or_default());
            self.at = (self.at + made) % WINDOW;
            match status {
                _ if HEADERS < plain.len() => return Err(Unreadable("SPDY headers that are too long")),
                TINFLStatus::HasMoreOutput => {}
                TINFLStatus::NeedsMoreInput if block.is_empty() => return parse(&plain),
                _ => return Err(Unreadable("SPDY headers that cannot be decompressed")),
            }
        }
    }
}

/// A number of pairs, then each name and value with its length before it, all numbers of 32 bits.
fn parse(mut plain: &[u8]) -> Result<Pairs, Unreadable> {
    fn number(from: &mut &[u8]) -> Option<usize> {
        let (number, rest) = from.split_first_chunk::<4>()?;
        *from = rest;
        usize::try_from(u32::from_be_bytes(*number)).ok()
    }
    fn text(from: &mut &[u8]) -> Option<Vec<u8>> {
        let length = number(from)?;
        let (text, rest) = from.split_at_checked(length)?;
        *from = rest;
        Some(text.to_vec())
    }
    let short = Unreadable("SPDY headers that are cut short");
    let count = number(&mut plain).ok_or(short)?;
    let mut all = Vec::new();
    for _ in 0..count {
        match (text(&mut plain), text(&mut plain)) {
            (Some(name), Some(value)) => all.push((name, value)),
            _ => return Err(short),
        }
    }
    Ok(all)
}

/// Adler-32 of [`dictionary`].
const DICTIONARY_ID: u32 = 0xe3c6_a7c2;

/// The dictionary of SPDY/3 (its draft, §2.6.10.1): words with their lengths, then text.
fn dictionary() -> Vec<u8> {
    const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language \
        accept-ranges age allow authorization cache-control connection content-base content-encoding content-language \
        content-length content-location content-md5 content-range content-type date etag expect expires from host \
        if-match if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards \
        pragma proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding \
        upgrade user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url public \
        set-cookie keep-alive origin";
    const TEXT: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 \
        Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 \
        Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept \
        Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,\
        application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=\
        utf-8charset=iso-8859-1,utf-,*,enq=0.";
    let mut all = Vec::with_capacity(1423);
    for word in WORDS.split(' ') {
        let word = word.replace('_', " ");
        all.extend(u32::try_from(word.len()).unwrap_or_default().to_be_bytes());
        all.extend(word.as_bytes());
    }
    all.extend(TEXT.as_bytes());
    all
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

    fn adler(bytes: &[u8]) -> u32 {
        let (a, b) = bytes.iter().fold((1u32, 0u32), |(a, b), byte| {
            let a = (a + u32::from(*byte)) % 65521;
            (a, (b + a) % 65521)
        });
        b << 16 | a
    }

    #[test]
    fn the_dictionary_is_the_one_that_all_know() {
        assert_eq!((dictionary().len(), adler(&dictionary())), (1423, DICTIONARY_ID));
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
                (Way::ToClient, data(999, b"nobody's")),
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
        let control = |kind: u16, payload: &[u8]| {
            let length = (payload.len() as u32).to_be_bytes();
            [&[0x80, 3][..], &kind.to_be_bytes(), &[0], &length[1..], payload].concat()
        };
        for bad in [
            control(SYN_STREAM, b"short"),
            control(SYN_STREAM, &[0; 40]),
            control(SYN_STREAM, b"\0\0\0\x01\0\0\0\0\0\0\x78\xbb\0\0\0\0more"),
            [&[0x80, 3, 0, 1, 0][..], &[0xff; 3]].concat(),
        ] {
            assert!(Streams::new().feed(Way::ToCluster, &bad, &mut |_, _| {}).is_err(), "{bad:x?}");
        }
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
