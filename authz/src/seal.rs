//! Small secrets at rest: AES-256-GCM (NIST SP 800-38D), a random nonce each time, bound to what they are for.

use aws_lc_rs::aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey};

const NONCE: usize = 12;

/// Seals and opens.
pub struct SealKey(RandomizedNonceKey);

impl std::fmt::Debug for SealKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// The library failed: a defect, or no random source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a secret cannot be sealed")]
pub struct NotSealed;

impl SealKey {
    /// From 32 random bytes.
    ///
    /// # Errors
    /// See [`NotSealed`].
    pub fn new(bytes: &[u8; 32]) -> Result<Self, NotSealed> {
        RandomizedNonceKey::new(&AES_256_GCM, bytes).map(Self).map_err(|_| NotSealed)
    }

    /// Encrypts. `purpose` is authenticated with it, and wanted again.
    ///
    /// # Errors
    /// See [`NotSealed`].
    pub fn seal(&self, purpose: &str, secret: &[u8]) -> Result<Vec<u8>, NotSealed> {
        let mut sealed = secret.to_vec();
        let nonce =
            self.0.seal_in_place_append_tag(Aad::from(purpose.as_bytes()), &mut sealed).map_err(|_| NotSealed)?;
        Ok([&nonce.as_ref()[..], &sealed].concat())
    }

    /// What was sealed for `purpose` with this key; `None`: it was not, or was altered since.
    pub fn open(&self, purpose: &str, sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, rest) = sealed.split_first_chunk::<NONCE>()?;
        let mut rest = rest.to_vec();
        let plain =
            self.0.open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(purpose.as_bytes()), &mut rest);
        plain.ok().map(|plain| plain.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_is_opened_by_its_key_and_for_its_purpose_alone() {
        let (key, other) = (SealKey::new(&[7; 32]).unwrap(), SealKey::new(&[8; 32]).unwrap());
        let sealed = key.seal("ann", b"secret").unwrap();
        assert!(!sealed.windows(6).any(|part| part == b"secret"));
        assert_eq!(key.open("ann", &sealed).as_deref(), Some(&b"secret"[..]));
        assert_ne!(sealed, key.seal("ann", b"secret").unwrap(), "another nonce each time");
        let mut bent = sealed.clone();
        bent[15] ^= 1;
        for found in
            [key.open("bob", &sealed), other.open("ann", &sealed), key.open("ann", &bent), key.open("ann", b"x")]
        {
            assert_eq!(found, None);
        }
    }
}
