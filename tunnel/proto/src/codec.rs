//! How headers, verdicts and control messages are written: every field number of the wire stands here, and in
//! `tunnel/SPEC.md`. A number is never used again for anything else.

mod control;
mod header;
mod inside;
mod verdict;

pub use verdict::VerdictReader;

use crate::tlv::{Fields, MAX_MESSAGE, WireError};
use alloc::vec::Vec;

/// Bounds on what a message may hold, checked by its writer and by its reader.
pub mod limits {
    /// Longest user name, uid, group, extra key or extra value, in bytes.
    pub const NAME: usize = 1024;
    /// Groups of one user.
    pub const GROUPS: usize = 1024;
    /// Extra attributes of one user.
    pub const EXTRAS: usize = 64;
    /// Values of one extra attribute.
    pub const EXTRA_VALUES: usize = 64;
    /// Longest `traceparent`, in bytes: version 00 has 55 (W3C Trace Context §3.2), later ones may be longer.
    pub const TRACEPARENT: usize = 128;
    /// Longest host name, pod name or namespace of a target, in bytes (RFC 1035 §2.3.4, as text).
    pub const HOST: usize = 253;
    /// Longest port of a target, in bytes: a name has 15 at most (RFC 6335 §5.1).
    pub const PORT: usize = 15;
    /// Sets of labels that a target may be asked for.
    pub const LABEL_SETS: usize = 32;
    /// Labels of one set.
    pub const LABELS: usize = 16;
    /// Longest key of a label, in bytes: a prefix of 253, a slash and a name of 63 (Kubernetes' label syntax).
    pub const LABEL_KEY: usize = 317;
    /// Longest value of a label, in bytes.
    pub const LABEL_VALUE: usize = 63;
    /// Longest software version, in bytes.
    pub const SOFTWARE: usize = 128;
    /// Capabilities in one greeting.
    pub const CAPABILITIES: usize = 64;
    /// Longest name of a capability or fact, in bytes.
    pub const KEY: usize = 64;
    /// Facts in one message.
    pub const FACTS: usize = 64;
    /// Longest value of a fact, in bytes.
    pub const FACT: usize = 1024;
    /// Longest certificate or signing request (DER), in bytes.
    pub const CERTIFICATE: usize = 16 * 1024;
    /// Certificates in one chain or bundle.
    pub const CERTIFICATES: usize = 16;
}

fn checked<'a>(message: &'a [u8], what: &'static str) -> Result<Fields<'a>, WireError> {
    if message.len() > MAX_MESSAGE { Err(WireError::TooLong { what }) } else { Ok(Fields::new(message)) }
}

fn within_message(out: &[u8], start: usize, what: &'static str) -> Result<(), WireError> {
    if out.len() - start > MAX_MESSAGE { Err(WireError::TooLong { what }) } else { Ok(()) }
}

/// The `u32` length in front of headers, refusals and control messages.
fn put_length(out: &mut Vec<u8>, len: usize) {
    out.extend_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes());
}

/// Appends `u32 length | message` as stands in front of a stream or on the control stream.
///
/// # Errors
/// What `encode` says.
pub fn put_framed(
    out: &mut Vec<u8>,
    encode: impl FnOnce(&mut Vec<u8>) -> Result<(), WireError>,
) -> Result<(), WireError> {
    let mut body = Vec::new();
    encode(&mut body)?;
    put_length(out, body.len());
    out.extend_from_slice(&body);
    Ok(())
}

/// The length that 4 bytes announce.
///
/// # Errors
/// Over [`MAX_MESSAGE`].
pub fn announced_length(bytes: [u8; 4]) -> Result<usize, WireError> {
    match usize::try_from(u32::from_be_bytes(bytes)) {
        Ok(len) if len <= MAX_MESSAGE => Ok(len),
        _ => Err(WireError::TooLong { what: "message" }),
    }
}

#[cfg(test)]
mod tests;
