//! What a peer did that ends the session.

use super::Kind;
use crate::code::CloseCode;
use core::fmt;

/// A breach of the format or of a limit. Each ends the session with [`Violation::close_code`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Violation {
    /// A version of the format that nobody has defined.
    Version(u8),
    /// A kind of frame that nobody has defined.
    Kind(u8),
    /// Flags that are unknown, or cannot stand together on this kind of frame.
    Flags {
        /// The frame.
        kind: Kind,
        /// Its flags.
        flags: u16,
    },
    /// A frame of the session on a stream, or the other way round.
    WrongStream {
        /// The frame.
        kind: Kind,
        /// Its stream.
        stream: u32,
    },
    /// A payload over [`super::MuxLimits::max_frame`].
    TooLong {
        /// The stream.
        stream: u32,
        /// The announced length.
        length: u32,
    },
    /// A reset with a payload that is not a code of four bytes.
    ResetPayload {
        /// The stream.
        stream: u32,
        /// The announced length.
        length: u32,
    },
    /// More data than credit was granted for.
    BeyondCredit {
        /// The stream.
        stream: u32,
        /// The announced length.
        length: u32,
    },
    /// Credit that adds up to more than the format can express.
    WindowOverflow {
        /// The stream.
        stream: u32,
    },
    /// A stream opened with an id of the other side's parity.
    WrongParity {
        /// The stream.
        stream: u32,
    },
    /// A stream opened with an id that was used or skipped long ago.
    IdReused {
        /// The stream.
        stream: u32,
    },
    /// A frame of a stream that nobody has opened.
    NotOpen {
        /// The stream.
        stream: u32,
    },
    /// Data, or another end, after the end of a direction.
    AfterFin {
        /// The stream.
        stream: u32,
    },
    /// A frame of a stream after its sender had reset it.
    AfterReset {
        /// The stream.
        stream: u32,
    },
    /// An acknowledgement of a stream that waits for none.
    UnsolicitedAck {
        /// The stream.
        stream: u32,
    },
    /// An answer to a ping that was not sent.
    UnsolicitedPong(u32),
    /// More pings than [`super::MuxLimits::pings`], or more than could be answered.
    PingFlood,
    /// More streams that had to be refused, or were reset before anyone looked at them, than
    /// [`super::MuxLimits::refusals`].
    OpenFlood,
    /// More frames of forgotten streams than [`super::MuxLimits::strays`].
    StrayFlood,
    /// More frames that say nothing, or go-aways, than [`super::MuxLimits::empties`].
    EmptyFlood,
}

impl Violation {
    /// The code with which the session ends.
    #[must_use]
    pub const fn close_code(self) -> CloseCode {
        match self {
            Self::Version(_) => CloseCode::Version,
            Self::TooLong { .. } => CloseCode::TooLarge,
            Self::BeyondCredit { .. } | Self::WindowOverflow { .. } => CloseCode::FlowControl,
            Self::PingFlood | Self::OpenFlood | Self::StrayFlood | Self::EmptyFlood => CloseCode::Flood,
            Self::Kind(_)
            | Self::Flags { .. }
            | Self::WrongStream { .. }
            | Self::ResetPayload { .. }
            | Self::WrongParity { .. }
            | Self::IdReused { .. }
            | Self::NotOpen { .. }
            | Self::AfterFin { .. }
            | Self::AfterReset { .. }
            | Self::UnsolicitedAck { .. }
            | Self::UnsolicitedPong(_) => CloseCode::Protocol,
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(v) => write!(f, "frame of unknown version {v}"),
            Self::Kind(k) => write!(f, "frame of unknown kind {k}"),
            Self::Flags { kind, flags } => write!(f, "{kind:?} frame with flags {flags:#06x}"),
            Self::WrongStream { kind, stream } => write!(f, "{kind:?} frame on stream {stream}"),
            Self::TooLong { stream, length } => write!(f, "frame of {length} bytes on stream {stream}"),
            Self::ResetPayload { stream, length } => write!(f, "reset with {length} bytes on stream {stream}"),
            Self::BeyondCredit { stream, length } => write!(f, "{length} bytes beyond credit on stream {stream}"),
            Self::WindowOverflow { stream } => write!(f, "credit of stream {stream} overflows"),
            Self::WrongParity { stream } => write!(f, "stream {stream} is not the peer's to open"),
            Self::IdReused { stream } => write!(f, "stream {stream} opened twice"),
            Self::NotOpen { stream } => write!(f, "frame of stream {stream}, which nobody opened"),
            Self::AfterFin { stream } => write!(f, "data after the end of stream {stream}"),
            Self::AfterReset { stream } => write!(f, "frame after the reset of stream {stream}"),
            Self::UnsolicitedAck { stream } => write!(f, "unsolicited acknowledgement of stream {stream}"),
            Self::UnsolicitedPong(value) => write!(f, "unsolicited pong {value:#x}"),
            Self::PingFlood => f.write_str("too many pings"),
            Self::OpenFlood => f.write_str("too many streams opened in vain"),
            Self::StrayFlood => f.write_str("too many frames of forgotten streams"),
            Self::EmptyFlood => f.write_str("too many empty frames"),
        }
    }
}

impl core::error::Error for Violation {}
