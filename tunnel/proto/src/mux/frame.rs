//! The twelve bytes before every frame.

use super::Violation;

/// Bytes of a frame's header: version `u8`, kind `u8`, flags `u16`, stream `u32`, length `u32`, network byte order.
pub const HEADER: usize = 12;

/// Credit that both directions of every stream begin with, in bytes. Fixed by the format.
pub const INITIAL_WINDOW: u32 = 256 * 1024;

/// Opens a stream; on a ping: asks.
pub const SYN: u16 = 0x1;
/// Acknowledges a stream; on a ping: answers.
pub const ACK: u16 = 0x2;
/// No more data in this direction.
pub const FIN: u16 = 0x4;
/// Cuts both directions short.
pub const RST: u16 = 0x8;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Payload of a stream; the length field counts its bytes.
    Data,
    /// Credit for the receiver; the length field is the number of bytes.
    WindowUpdate,
    /// A question or its answer; the length field is an opaque value.
    Ping,
    /// The sender takes no new streams; the length field is the reason.
    GoAway,
}

/// A frame's header, valid in itself: whether its stream may have it is for the state to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Header {
    /// What follows.
    pub kind: Kind,
    /// [`SYN`], [`ACK`], [`FIN`], [`RST`].
    pub flags: u16,
    /// The stream; 0 is the session itself.
    pub stream: u32,
    /// Its meaning depends on the kind.
    pub length: u32,
}

impl Header {
    /// Reads and checks a header.
    ///
    /// # Errors
    /// The first thing found that no state could make right.
    pub const fn decode(bytes: &[u8; HEADER]) -> Result<Self, Violation> {
        let [version, kind, f0, f1, s0, s1, s2, s3, l0, l1, l2, l3] = *bytes;
        if version != 0 {
            return Err(Violation::Version(version));
        }
        let kind = match kind {
            0 => Kind::Data,
            1 => Kind::WindowUpdate,
            2 => Kind::Ping,
            3 => Kind::GoAway,
            other => return Err(Violation::Kind(other)),
        };
        let header = Self {
            kind,
            flags: u16::from_be_bytes([f0, f1]),
            stream: u32::from_be_bytes([s0, s1, s2, s3]),
            length: u32::from_be_bytes([l0, l1, l2, l3]),
        };
        let of_session = matches!(kind, Kind::Ping | Kind::GoAway);
        if !header.flags_are_valid() {
            Err(Violation::Flags { kind, flags: header.flags })
        } else if of_session != (header.stream == 0) {
            Err(Violation::WrongStream { kind, stream: header.stream })
        } else {
            Ok(header)
        }
    }

    /// The bytes on the wire.
    #[must_use]
    pub const fn encode(self) -> [u8; HEADER] {
        let ([f0, f1], [s0, s1, s2, s3], [l0, l1, l2, l3]) =
            (self.flags.to_be_bytes(), self.stream.to_be_bytes(), self.length.to_be_bytes());
        [0, self.kind as u8, f0, f1, s0, s1, s2, s3, l0, l1, l2, l3]
    }

    /// Whether every bit of `flags` is set.
    #[must_use]
    pub const fn has(self, flags: u16) -> bool {
        self.flags & flags == flags
    }

    const fn flags_are_valid(self) -> bool {
        match self.kind {
            Kind::GoAway => self.flags == 0,
            Kind::Ping => self.flags == SYN || self.flags == ACK,
            // A stream cannot be opened and acknowledged by one side, nor be cut by the frame that opens or ends it.
            Kind::Data | Kind::WindowUpdate => {
                self.flags & !(SYN | ACK | FIN | RST) == 0
                    && !self.has(SYN | ACK)
                    && !self.has(SYN | RST)
                    && !self.has(FIN | RST)
            }
        }
    }
}
