//! Text that is believed for its signature: one line with the kind and the signature, then the very bytes that were signed.
//!
//! The kind is signed too, so that a signature is for one kind and nothing else. Nothing of the content is looked at before the
//! signature is, and nothing is copied or parsed for it: the bytes that are checked are the bytes that are read.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Serialize;

/// What kind of text it is.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// What the first line begins with.
    pub magic: &'static str,
    /// Largest text with its signature, in bytes.
    pub most: usize,
}

/// Why a text is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignedError {
    /// Over [`Kind::most`].
    #[error("it is too large")]
    TooLarge,
    /// Cut short, of another kind, or no such text at all.
    #[error("its first line has no kind and signature")]
    Malformed,
    /// Altered, or signed by somebody else.
    #[error("the signature is not that of the hub")]
    Signature,
}

fn message(kind: Kind, content: &[u8]) -> Vec<u8> {
    [kind.magic.as_bytes(), b"\n", content].concat()
}

/// Writes `content` as JSON, signed with `sign`.
///
/// # Errors
/// What `sign` says.
pub fn seal<E>(
    kind: Kind,
    content: &impl Serialize,
    sign: impl FnOnce(&[u8]) -> Result<Vec<u8>, E>,
) -> Result<Vec<u8>, E> {
    let content = serde_json::to_vec(content).unwrap_or_default();
    let signature = URL_SAFE_NO_PAD.encode(sign(&message(kind, &content))?);
    let mut out = format!("{} {signature}\n", kind.magic).into_bytes();
    out.extend_from_slice(&content);
    Ok(out)
}

/// The content, if `verify` says that a signature over a message is right.
///
/// # Errors
/// The first thing that is wrong.
pub fn open(kind: Kind, bytes: &[u8], verify: impl FnOnce(&[u8], &[u8]) -> bool) -> Result<&[u8], SignedError> {
    if kind.most < bytes.len() {
        return Err(SignedError::TooLarge);
    }
    let end = bytes.iter().position(|b| *b == b'\n').ok_or(SignedError::Malformed)?;
    let (line, content) = (bytes.get(..end).unwrap_or_default(), bytes.get(end + 1..).unwrap_or_default());
    let line = std::str::from_utf8(line).map_err(|_| SignedError::Malformed)?;
    let signature = line.strip_prefix(kind.magic).and_then(|rest| rest.strip_prefix(' '));
    let signature = signature.and_then(|text| URL_SAFE_NO_PAD.decode(text).ok()).ok_or(SignedError::Malformed)?;
    if verify(&message(kind, content), &signature) { Ok(content) } else { Err(SignedError::Signature) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sha2::{Digest, Sha256};

    const KIND: Kind = Kind { magic: "test/1", most: 200 };
    const OTHER: Kind = Kind { magic: "test/2", most: 200 };

    fn sign(message: &[u8]) -> Result<Vec<u8>, ()> {
        Ok(Sha256::digest(message).to_vec())
    }
    fn verify(message: &[u8], signature: &[u8]) -> bool {
        Sha256::digest(message).as_slice() == signature
    }

    #[test]
    fn a_text_is_whole_of_its_kind_and_not_too_large() {
        let text = seal(KIND, &"hello\nthere", sign).unwrap();
        assert_eq!(open(KIND, &text, verify), Ok(&b"\"hello\\nthere\""[..]));
        assert_eq!(open(OTHER, &text, verify), Err(SignedError::Malformed));
        // Another kind's signature under this one's name.
        let moved = [&b"test/2"[..], &text[6..]].concat();
        assert_eq!(open(OTHER, &moved, verify), Err(SignedError::Signature));
        assert_eq!(open(KIND, &[0; 201], |_, _| unreachable!()), Err(SignedError::TooLarge));
        for at in 0..text.len() {
            assert!(open(KIND, &text[..at], verify).is_err(), "cut at {at}");
        }
    }

    proptest! {
        #[test]
        fn a_bent_byte_is_seen(at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let mut text = seal(KIND, &vec![1, 2, 3], sign).unwrap();
            *at.get_mut(&mut text) ^= 1 << bit;
            prop_assert!(open(KIND, &text, verify).is_err());
        }
        #[test]
        fn nothing_panics_us(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = open(KIND, &bytes, verify);
        }
    }
}
