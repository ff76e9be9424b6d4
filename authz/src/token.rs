//! Bearer and join tokens: `mlt_<id>.<secret>` and `mlj_<id>.<secret>.<ca pin>`.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use rand::RngCore;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// RFC 4648 §6, lower-case.
const BASE32: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
const ID_LEN: usize = 12;

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A caller of the hub (`mlt_`).
    Api,
    /// An agent that joins (`mlj_`).
    Join,
}

/// 256 bits that only the holder of a token knows. Prints as `***` and is wiped when dropped.
#[derive(Clone)]
pub struct Secret(Zeroizing<[u8; 32]>);

/// A token as its holder has it.
#[derive(Debug, Clone)]
pub struct TokenText {
    /// What it is for.
    pub kind: Kind,
    /// Name of the `Token` or `JoinToken` object: 12 characters of lower-case base32.
    pub id: String,
    /// What proves it.
    pub secret: Secret,
    /// Join tokens: SHA-256 of the hub authority's SubjectPublicKeyInfo.
    pub pin: Option<[u8; 32]>,
}

/// The text is no token. Says nothing about what it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a token")]
pub struct BadToken;

/// What the store keeps: SHA-256 of the secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenHash([u8; 32]);

impl TokenText {
    /// Reads a token.
    ///
    /// # Errors
    /// The text is not exactly what [`TokenText::reveal`] writes.
    pub fn parse(text: &str) -> Result<Self, BadToken> {
        let (kind, rest) = match text.split_at_checked(4).ok_or(BadToken)? {
            ("mlt_", rest) => (Kind::Api, rest),
            ("mlj_", rest) => (Kind::Join, rest),
            _ => return Err(BadToken),
        };
        let mut parts = rest.split('.');
        let (id, secret, pin) = match (kind, parts.next(), parts.next(), parts.next(), parts.next()) {
            (Kind::Api, Some(id), Some(secret), None, None) => (id, secret, None),
            (Kind::Join, Some(id), Some(secret), Some(pin), None) => (id, secret, Some(*bytes(pin)?)),
            _ => return Err(BadToken),
        };
        if id.len() != ID_LEN || !id.bytes().all(|b| BASE32.contains(&b)) {
            return Err(BadToken);
        }
        Ok(Self { kind, id: id.to_owned(), secret: Secret(bytes(secret)?), pin })
    }

    /// A new API token from a cryptographic random source.
    pub fn generate_api() -> Self {
        Self::generate(Kind::Api, None)
    }

    /// A new join token that pins the hub's authority.
    pub fn generate_join(pin: [u8; 32]) -> Self {
        Self::generate(Kind::Join, Some(pin))
    }

    fn generate(kind: Kind, pin: Option<[u8; 32]>) -> Self {
        let mut dice = rand::rng();
        let mut secret = Zeroizing::new([0; 32]);
        dice.fill_bytes(&mut *secret);
        let mut id = [0; ID_LEN];
        dice.fill_bytes(&mut id);
        let id = id.iter().map(|b| char::from(BASE32[usize::from(b % 32)])).collect();
        Self { kind, id, secret: Secret(secret), pin }
    }

    /// The text to give to its holder, once.
    pub fn reveal(&self) -> Zeroizing<String> {
        let secret = Zeroizing::new(URL_SAFE_NO_PAD.encode(*self.secret.0));
        let id = &self.id;
        Zeroizing::new(match (self.kind, self.pin) {
            (Kind::Join, Some(pin)) => format!("mlj_{id}.{}.{}", *secret, URL_SAFE_NO_PAD.encode(pin)),
            _ => format!("mlt_{id}.{}", *secret),
        })
    }

    /// What to store.
    pub fn hash(&self) -> TokenHash {
        TokenHash(Sha256::digest(*self.secret.0).into())
    }
}

/// 32 bytes as base64url without padding, in its one spelling.
fn bytes(text: &str) -> Result<Zeroizing<[u8; 32]>, BadToken> {
    let mut out = Zeroizing::new([0; 32]);
    if text.len() != 43 {
        return Err(BadToken);
    }
    match URL_SAFE_NO_PAD.decode_slice(text, &mut *out) {
        Ok(32) => Ok(out),
        _ => Err(BadToken),
    }
}

impl TokenHash {
    /// A hash as it was stored.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
    /// The bytes to store.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
    /// Whether `token` is the one, in constant time.
    pub fn verify(&self, token: &TokenText) -> bool {
        bool::from(self.0.ct_eq(&token.hash().0))
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    #[test]
    fn what_is_revealed_is_what_is_read() {
        let (api, join) = (TokenText::generate_api(), TokenText::generate_join([7; 32]));
        let read = TokenText::parse(&api.reveal()).unwrap();
        assert!(api.hash().verify(&read) && !api.hash().verify(&join));
        assert_eq!((read.kind, &read.id, read.pin), (Kind::Api, &api.id, None));
        let read = TokenText::parse(&join.reveal()).unwrap();
        assert!(join.hash().verify(&read));
        assert_eq!((read.kind, &read.id, read.pin), (Kind::Join, &join.id, Some([7; 32])));
    }

    #[test]
    fn s16_ten_thousand_tokens_are_all_different() {
        let tokens: HashSet<String> = (0..10_000).map(|_| TokenText::generate_api().reveal().to_string()).collect();
        assert_eq!(tokens.len(), 10_000);
        let secret = tokens.iter().next().and_then(|t| t.rsplit_once('.')).map(|(_, secret)| secret.len());
        assert_eq!(secret, Some(43), "256 bits as base64url");
    }

    #[test]
    fn s69_a_token_does_not_print_its_secret() {
        let token = TokenText::generate_api();
        let secret = token.reveal().rsplit_once('.').map(|(_, s)| s.to_owned()).unwrap();
        assert!(!format!("{token:?}").contains(&secret));
    }

    #[test]
    fn near_misses_are_no_tokens() {
        let good = TokenText::generate_api().reveal().to_string();
        for bad in [
            "",
            "mlt_",
            "mlt",
            &good.replace("mlt_", "mlj_"),
            &format!("{good}."),
            &format!("{good}="),
            &format!(" {good}"),
            &good.to_uppercase(),
            &good[..good.len() - 1],
            &format!("{good}.{}", "A".repeat(43)),
            "ml\u{20ac}_a.b",
        ] {
            assert!(TokenText::parse(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn z08_any_text_is_a_token_or_none(text in "(ml[tj]_)?[a-z2-7]{0,13}\\.?[A-Za-z0-9_=-]{0,44}\\.?.{0,44}") {
            if let Ok(token) = TokenText::parse(&text) { prop_assert_eq!(&*token.reveal(), &text); }
        }
    }
}
