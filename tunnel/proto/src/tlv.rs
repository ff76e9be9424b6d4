//! The tag-length-value codec of headers and messages: fields that a version does not know are skipped, unless
//! their sender marked them as ones that must be understood.
//!
//! A field is `varint tag | varint length | bytes`, with `tag = number * 2 + critical`. Varints are those of
//! RFC 9000 §16 in their shortest form, so every value has exactly one spelling.

use alloc::{string::String, vec::Vec};
use core::fmt;

/// Largest header or control message, in bytes. Checked while only the length is in hand.
pub const MAX_MESSAGE: usize = 64 * 1024;

/// Longest text meant for people, in bytes; senders cut longer ones.
pub const MAX_TEXT: usize = 2048;

/// Why bytes are no message of ours, or a value may not become one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WireError {
    /// The bytes end inside a field.
    Truncated,
    /// A number that is not in its shortest form.
    NotShortest,
    /// A value longer than its limit.
    TooLong {
        /// Which value.
        what: &'static str,
    },
    /// A repeated value that is repeated too often.
    TooMany {
        /// Which value.
        what: &'static str,
    },
    /// A field that may stand once stands twice: which one counts would be a matter of taste.
    Duplicate {
        /// Its number.
        field: u64,
    },
    /// A field that must be understood and is not.
    UnknownCritical {
        /// Its number.
        field: u64,
    },
    /// A field that must be there and is not.
    Missing {
        /// Which one.
        what: &'static str,
    },
    /// A value outside of what its field allows.
    BadValue {
        /// Which one.
        what: &'static str,
    },
    /// A kind of stream target that this version does not know.
    UnknownTarget(u64),
    /// A kind of message that must be understood and is not.
    UnknownMessage(u64),
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated => f.write_str("message ends inside a field"),
            Self::NotShortest => f.write_str("number not in its shortest form"),
            Self::TooLong { what } => write!(f, "{what} over its length limit"),
            Self::TooMany { what } => write!(f, "too many of {what}"),
            Self::Duplicate { field } => write!(f, "field {field} stands twice"),
            Self::UnknownCritical { field } => write!(f, "field {field} must be understood and is not"),
            Self::Missing { what } => write!(f, "{what} is missing"),
            Self::BadValue { what } => write!(f, "{what} has a value that is not allowed"),
            Self::UnknownTarget(kind) => write!(f, "unknown kind of target {kind}"),
            Self::UnknownMessage(kind) => write!(f, "unknown kind of message {kind}"),
        }
    }
}
impl core::error::Error for WireError {}

/// Largest number that a varint holds.
pub const MAX_VARINT: u64 = (1 << 62) - 1;

/// Appends a varint. Numbers over [`MAX_VARINT`] do not occur: what is wider travels as 8 bytes.
pub(crate) fn put_varint(out: &mut Vec<u8>, n: u64) {
    match n {
        0..=0x3f => out.push(n as u8),
        0x40..=0x3fff => out.extend_from_slice(&(0x4000 | n as u16).to_be_bytes()),
        0x4000..=0x3fff_ffff => out.extend_from_slice(&(0x8000_0000 | n as u32).to_be_bytes()),
        _ => out.extend_from_slice(&(0xc000_0000_0000_0000 | n).to_be_bytes()),
    }
}

/// Takes a varint off the front of `input`.
pub(crate) fn take_varint(input: &mut &[u8]) -> Result<u64, WireError> {
    let first = *input.first().ok_or(WireError::Truncated)?;
    let len = 1usize << (first >> 6);
    let (bytes, rest) = input.split_at_checked(len).ok_or(WireError::Truncated)?;
    let mut n = u64::from(first & 0x3f);
    for &byte in bytes.iter().skip(1) {
        n = n << 8 | u64::from(byte);
    }
    let shortest = match n {
        0..=0x3f => 1,
        0x40..=0x3fff => 2,
        0x4000..=0x3fff_ffff => 4,
        _ => 8,
    };
    if len != shortest {
        return Err(WireError::NotShortest);
    }
    *input = rest;
    Ok(n)
}

/// One field as it stands in a message.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Field<'a> {
    pub number: u64,
    pub critical: bool,
    pub value: &'a [u8],
}

impl<'a> Field<'a> {
    /// For a number that this version does not know.
    pub fn skip(&self) -> Result<(), WireError> {
        if self.critical { Err(WireError::UnknownCritical { field: self.number }) } else { Ok(()) }
    }
    /// The value as bytes, at most `max` of them.
    pub fn bytes(&self, what: &'static str, max: usize) -> Result<&'a [u8], WireError> {
        if self.value.len() > max { Err(WireError::TooLong { what }) } else { Ok(self.value) }
    }
    /// The value as a name: UTF-8 without control characters, so that it can become a header or a log field.
    pub fn name(&self, what: &'static str, max: usize) -> Result<String, WireError> {
        let text = core::str::from_utf8(self.bytes(what, max)?).map_err(|_| WireError::BadValue { what })?;
        check_name(what, text, max)?;
        Ok(text.into())
    }
    /// The value as text for people: what is not printable is replaced, what is too long is cut.
    pub fn text(&self) -> String {
        let kept = self.value.get(..MAX_TEXT).unwrap_or(self.value);
        String::from_utf8_lossy(kept).chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
    }
    /// The value as a number that fits `T`.
    pub fn number<T: TryFrom<u64>>(&self, what: &'static str) -> Result<T, WireError> {
        let mut rest = self.value;
        let n = take_varint(&mut rest)?;
        if !rest.is_empty() {
            return Err(WireError::BadValue { what });
        }
        T::try_from(n).map_err(|_| WireError::BadValue { what })
    }
    /// The value as 8 bytes, big endian.
    pub fn fixed64(&self, what: &'static str) -> Result<u64, WireError> {
        self.value.try_into().map(u64::from_be_bytes).map_err(|_| WireError::BadValue { what })
    }
}

/// The rule of [`Field::name`].
pub(crate) fn check_name(what: &'static str, text: &str, max: usize) -> Result<(), WireError> {
    if text.len() > max {
        Err(WireError::TooLong { what })
    } else if text.chars().any(char::is_control) {
        Err(WireError::BadValue { what })
    } else {
        Ok(())
    }
}

/// The fields of a message, in order.
#[derive(Debug)]
pub(crate) struct Fields<'a> {
    rest: &'a [u8],
    seen: u64,
}
impl<'a> Fields<'a> {
    pub fn new(message: &'a [u8]) -> Self {
        Self { rest: message, seen: 0 }
    }
    /// The next field, whichever it is.
    pub fn next(&mut self) -> Result<Option<Field<'a>>, WireError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let tag = take_varint(&mut self.rest)?;
        let len = usize::try_from(take_varint(&mut self.rest)?).map_err(|_| WireError::Truncated)?;
        let (value, rest) = self.rest.split_at_checked(len).ok_or(WireError::Truncated)?;
        self.rest = rest;
        Ok(Some(Field { number: tag >> 1, critical: tag & 1 == 1, value }))
    }
    /// Notes a field that may stand once.
    pub fn once(&mut self, field: &Field<'_>) -> Result<(), WireError> {
        let bit = 1u64.checked_shl(u32::try_from(field.number).unwrap_or(u32::MAX)).unwrap_or(0);
        if bit == 0 || self.seen & bit != 0 {
            return Err(WireError::Duplicate { field: field.number });
        }
        self.seen |= bit;
        Ok(())
    }
}

/// Whether a reader that does not know a field may skip it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// It may: the message means the same without it.
    Optional,
    /// It must refuse the message.
    Critical,
}

/// Appends fields to a message and checks them on the way, so that what is sent can be read.
#[derive(Debug)]
pub(crate) struct Writer<'a> {
    out: &'a mut Vec<u8>,
}
impl<'a> Writer<'a> {
    pub fn new(out: &'a mut Vec<u8>) -> Self {
        Self { out }
    }
    pub fn bytes(&mut self, number: u64, need: Need, value: &[u8]) {
        put_varint(self.out, number << 1 | u64::from(need == Need::Critical));
        put_varint(self.out, value.len() as u64);
        self.out.extend_from_slice(value);
    }
    pub fn name(
        &mut self,
        number: u64,
        need: Need,
        what: &'static str,
        text: &str,
        max: usize,
    ) -> Result<(), WireError> {
        check_name(what, text, max)?;
        self.bytes(number, need, text.as_bytes());
        Ok(())
    }
    /// Text for people, cut at a character's end when it is too long.
    pub fn text(&mut self, number: u64, text: &str) {
        let mut end = text.len().min(MAX_TEXT);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        self.bytes(number, Need::Optional, text.get(..end).unwrap_or_default().as_bytes());
    }
    pub fn number(&mut self, number: u64, need: Need, value: u32) {
        let mut bytes = Vec::with_capacity(8);
        put_varint(&mut bytes, value.into());
        self.bytes(number, need, &bytes);
    }
    pub fn fixed64(&mut self, number: u64, need: Need, value: u64) {
        self.bytes(number, need, &value.to_be_bytes());
    }
    /// A field whose value is fields.
    pub fn nested(
        &mut self,
        number: u64,
        need: Need,
        fill: impl FnOnce(&mut Writer<'_>) -> Result<(), WireError>,
    ) -> Result<(), WireError> {
        let mut inner = Vec::new();
        fill(&mut Writer::new(&mut inner))?;
        self.bytes(number, need, &inner);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn varints_have_one_spelling(n in prop_oneof![0u64..0x100, 0u64..0x10000, 0u64..=MAX_VARINT]) {
            let mut out = Vec::new();
            put_varint(&mut out, n);
            let mut rest = &out[..];
            prop_assert_eq!(take_varint(&mut rest), Ok(n));
            prop_assert!(rest.is_empty());
        }
    }

    #[test]
    fn refuses_a_longer_spelling() {
        for bytes in [&[0x40, 0x3f][..], &[0x80, 0, 0x3f, 0xff], &[0xc0, 0, 0, 0, 0x3f, 0xff, 0xff, 0xff]] {
            let mut rest = bytes;
            assert_eq!(take_varint(&mut rest), Err(WireError::NotShortest));
        }
    }

    #[test]
    fn a_long_announcement_is_only_truncated() {
        let mut message = Vec::new();
        put_varint(&mut message, 2);
        put_varint(&mut message, MAX_VARINT);
        assert_eq!(Fields::new(&message).next().unwrap_err(), WireError::Truncated);
    }
}
