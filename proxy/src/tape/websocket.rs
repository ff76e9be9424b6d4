//! What passes over a WebSocket (RFC 6455) that speaks Kubernetes' channels: read beside the stream, never changed.
//!
//! API servers read with golang.org/x/net/websocket, which knows no messages in parts (each frame's first byte is a channel's
//! number there) and takes a length with its top bit set for none. Whatever it could take for something else than is read
//! here is unreadable, so that nobody can write past the record.

use super::{Unreadable, Way};
use base64::{Engine, engine::general_purpose::STANDARD};

/// The protocols whose messages begin with a channel's number, one byte; the empty one is what servers take for none.
const BINARY: [&str; 6] =
    ["v5.channel.k8s.io", "v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io", ""];
/// The same as text: a digit, and the rest in base64.
const TEXT: [&str; 2] = ["v4.base64.channel.k8s.io", "base64.channel.k8s.io"];

/// Longest payload of a control frame, in bytes (RFC 6455 §5.5).
const CONTROL: u64 = 125;

/// Reads both directions.
#[derive(Debug)]
pub(super) struct Channels {
    text: bool,
    up: Reader,
    down: Reader,
}

impl Channels {
    /// `None`: a protocol that nobody here reads.
    pub(super) fn of(protocol: &str) -> Option<Self> {
        let text = TEXT.contains(&protocol);
        (text || BINARY.contains(&protocol)).then(|| Self {
            text,
            up: Reader { whole: true, ..Reader::default() },
            down: Reader::default(),
        })
    }

    /// `piece` is told of channels and what is written to them.
    pub(super) fn feed(&mut self, way: Way, bytes: &[u8], piece: &mut dyn FnMut(u8, &[u8])) -> Result<(), Unreadable> {
        let reader = match way {
            Way::ToCluster => &mut self.up,
            Way::ToClient => &mut self.down,
        };
        reader.feed(bytes, self.text, piece)
    }
}

/// One direction.
#[derive(Debug, Default)]
struct Reader {
    /// Messages in parts cannot be read.
    whole: bool,
    /// Of a frame's head, as far as it has come: 14 bytes at most.
    head: Vec<u8>,
    /// Of the frame's payload, what is still to come.
    left: u64,
    mask: Option<[u8; 4]>,
    /// How far into the mask.
    at: usize,
    /// A ping, a pong, a close: nothing of it is a channel's.
    control: bool,
    /// Whether the frame ends its message.
    last: bool,
    inside: bool,
    /// Of the message.
    channel: Option<u8>,
    /// Letters of base64 that are no group of four yet.
    letters: Vec<u8>,
}

impl Reader {
    fn feed(&mut self, mut bytes: &[u8], text: bool, piece: &mut dyn FnMut(u8, &[u8])) -> Result<(), Unreadable> {
        while let Some((&next, rest)) = bytes.split_first() {
            if self.left == 0 {
                self.head.push(next);
                bytes = rest;
                self.begin()?;
                continue;
            }
            let take = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
            let (payload, rest) = bytes.split_at(take);
            bytes = rest;
            self.left -= take as u64;
            if !self.control {
                self.payload(payload, text, piece)?;
            }
            if self.left == 0 {
                self.frame_over();
            }
        }
        Ok(())
    }

    /// Once the head is whole.
    fn begin(&mut self) -> Result<(), Unreadable> {
        let [first, second, rest @ ..] = &self.head[..] else { return Ok(()) };
        let (masked, short) = (second & 0x80 != 0, second & 0x7f);
        let wide = match short {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        if rest.len() < wide + if masked { 4 } else { 0 } {
            return Ok(());
        }
        if first & 0x70 != 0 {
            return Err(Unreadable("a WebSocket extension that was not agreed on"));
        }
        let (length, mask) = rest.split_at(wide);
        let length = length.iter().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
        self.left = if wide == 0 { u64::from(short) } else { length };
        self.mask = mask.try_into().ok();
        let (opcode, last) = (first & 0x0f, first & 0x80 != 0);
        (self.at, self.last, self.control) = (0, last, 8 <= opcode);
        if self.left >> 63 != 0 {
            return Err(Unreadable("a WebSocket frame that is too long"));
        }
        if self.control && (!last || CONTROL < self.left) {
            return Err(Unreadable("a WebSocket control frame that is none"));
        }
        if self.whole && !self.control && (!last || opcode == 0) {
            return Err(Unreadable("a WebSocket message in parts, which API servers do not put together"));
        }
        match opcode {
            0 if !self.inside => return Err(Unreadable("a WebSocket message without a beginning")),
            1 | 2 if self.inside => return Err(Unreadable("a WebSocket message within another")),
            0 | 8..=10 => {}
            1 | 2 => (self.inside, self.channel) = (true, None),
            _ => return Err(Unreadable("an unknown WebSocket frame")),
        }
        self.head.clear();
        if self.left == 0 {
            self.frame_over();
        }
        Ok(())
    }

    fn frame_over(&mut self) {
        if self.last && !self.control {
            (self.inside, self.channel) = (false, None);
            self.letters.clear();
        }
    }

    fn payload(&mut self, payload: &[u8], text: bool, piece: &mut dyn FnMut(u8, &[u8])) -> Result<(), Unreadable> {
        let plain: Vec<u8>;
        let mut payload = match self.mask {
            None => payload,
            Some(mask) => {
                let mask = mask.iter().cycle().skip(self.at % 4);
                plain = payload.iter().zip(mask).map(|(byte, mask)| byte ^ mask).collect();
                self.at += payload.len();
                &plain
            }
        };
        let channel = match self.channel {
            Some(channel) => channel,
            None => {
                let Some((&first, rest)) = payload.split_first() else { return Ok(()) };
                let channel = if text { first.wrapping_sub(b'0') } else { first };
                self.channel = Some(channel);
                payload = rest;
                channel
            }
        };
        if !text {
            if !payload.is_empty() {
                piece(channel, payload);
            }
            return Ok(());
        }
        self.letters.extend_from_slice(payload);
        let whole = self.letters.len() / 4 * 4;
        if let Some(groups) = self.letters.get(..whole).filter(|groups| !groups.is_empty()) {
            let decoded = STANDARD.decode(groups).map_err(|_| Unreadable("a message that is not base64"))?;
            piece(channel, &decoded);
            self.letters.drain(..whole);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(opcode: u8, last: bool, mask: Option<[u8; 4]>, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![opcode | if last { 0x80 } else { 0 }];
        let bit = if mask.is_some() { 0x80 } else { 0 };
        match payload.len() {
            n @ 0..126 => out.push(bit | n as u8),
            n @ 126..65536 => {
                out.push(bit | 126);
                out.extend((n as u16).to_be_bytes());
            }
            n => {
                out.push(bit | 127);
                out.extend((n as u64).to_be_bytes());
            }
        }
        let mask = mask.inspect(|mask| out.extend(mask)).unwrap_or_default();
        out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        out
    }

    fn read(protocol: &str, way: Way, bytes: &[u8], cut: usize) -> Result<Vec<(u8, Vec<u8>)>, Unreadable> {
        let (mut channels, mut got) = (Channels::of(protocol).unwrap(), Vec::<(u8, Vec<u8>)>::new());
        for part in bytes.chunks(cut) {
            channels.feed(way, part, &mut |channel, bytes| match got.last_mut() {
                Some((last, all)) if *last == channel => all.extend(bytes),
                _ => got.push((channel, bytes.to_vec())),
            })?;
        }
        Ok(got)
    }

    #[test]
    fn channels_are_read_however_frames_are_cut_and_masked() {
        let long = vec![b'x'; 70_000];
        let mask = Some([1, 2, 3, 4]);
        let mut bytes = frame(2, false, mask, b"\x01hel");
        bytes.extend(frame(9, true, mask, b"ping between")); // a control frame may come within a message
        bytes.extend(frame(0, true, mask, b"lo"));
        bytes.extend(frame(2, true, None, &[&b"\x00"[..], &long].concat()));
        bytes.extend(frame(2, true, None, b"\x03"));
        bytes.extend(frame(8, true, None, b"\x03\xe8bye"));
        for cut in [1, 2, 3, 7, 1000, 1 << 20] {
            let got = read("v5.channel.k8s.io", Way::ToClient, &bytes, cut).unwrap();
            assert_eq!(got, [(1, b"hello".to_vec()), (0, long.clone())], "{cut}");
        }
        let text = [frame(1, true, None, b"1aGVsbG8g"), frame(1, true, None, b"1d29ybGQ=")].concat();
        for cut in [1, 5, 100] {
            assert_eq!(
                read("base64.channel.k8s.io", Way::ToClient, &text, cut).unwrap(),
                [(1, b"hello world".to_vec())]
            );
        }
        assert!(Channels::of("plain.kubevirt.io").is_none());
    }

    #[test]
    fn z13_what_cannot_be_read_is_told_and_not_passed_over() {
        for bad in [
            [frame(2, false, None, b"\x01a"), frame(2, true, None, b"\x01b")].concat(),
            frame(0, true, None, b"\x01a"),
            frame(2 | 0x40, true, None, b"\x01a"), // compressed
            frame(3, true, None, b"\x01a"),
        ] {
            for way in [Way::ToCluster, Way::ToClient] {
                assert!(read("", way, &bad, 3).is_err(), "{bad:?}");
            }
        }
        assert!(read("base64.channel.k8s.io", Way::ToCluster, &frame(1, true, None, b"0!!!!"), 9).is_err());
    }

    /// What x/net takes otherwise than somebody who goes by the book.
    #[test]
    fn s70_nobody_writes_past_the_record() {
        let mask = Some([7, 0, 1, 255]);
        let hidden = frame(2, true, mask, b"\x00rm -r /\n");
        let endless = |opcode: u8| [&[0x80 | opcode, 0xff][..], &[0xff; 8], &[0; 4], &hidden].concat();
        for (what, bad) in [
            (
                "a continuation whose first byte is a channel's number there",
                [frame(2, false, mask, b"\x02x"), frame(0, true, mask, b"\x00rm -r /\n")].concat(),
            ),
            ("a message that does not end", frame(2, false, mask, b"\x02x")),
            ("a continuation of nothing", frame(0, true, mask, b"\x00x")),
            ("a length that is none there", endless(2)),
            ("the same of a ping", endless(9)),
            ("a ping as long as others are", frame(9, true, mask, &hidden.repeat(9))),
            ("a ping in parts", frame(9, false, mask, b"x")),
            ("a frame of no type, which is data there", frame(11, true, mask, b"\x00rm -r /\n")),
        ] {
            for cut in [1, 4096] {
                assert!(read("v5.channel.k8s.io", Way::ToCluster, &bad, cut).is_err(), "{what}");
            }
        }
    }

    proptest! {
        #[test]
        fn z13_no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), cut in 1usize..40) {
            let _ = (read("", Way::ToCluster, &bytes, cut), read("base64.channel.k8s.io", Way::ToClient, &bytes, cut));
        }
    }
}
