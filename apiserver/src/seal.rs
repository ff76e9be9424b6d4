//! Values that only who has the key can read.
//!
//! A store that is sealed has a key of its own, made with it, which every value is encrypted with (AES-256-GCM). That key is
//! kept beside the values, encrypted with the key that the store is opened with: an envelope. What is encrypted is bound
//! to its place, so that a value that was put in another's place is seen. Names of objects and revisions stay readable.

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    rand,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use std::{borrow::Cow, fmt, sync::Arc};
use zeroize::Zeroizing;

/// Bytes of a key.
const KEY: usize = 32;
/// What the store's own key is bound to.
const WRAPPED: &str = "moorline store key 1";

/// Why a store's values cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The key's text.
    #[error("the key of a store is 32 bytes as base64, as made by: head -c 32 /dev/urandom | base64")]
    BadKey,
    /// It is sealed.
    #[error("the store is sealed: it is opened with its key only")]
    KeyNeeded,
    /// It is sealed with another one.
    #[error("this key does not open the store: it was sealed with another one")]
    WrongKey,
    /// It is not sealed, and holds objects.
    #[error("the store is not sealed, and a key was given: seal it first, or leave the key out")]
    NotSealed,
    /// A value is not what was written there.
    #[error("the value of {0} was changed, or is of another place")]
    Damaged(String),
    /// The library refused.
    #[error("a value could not be sealed")]
    Failed,
}

/// The key that a store is opened with.
#[derive(Clone)]
pub struct StoreKey(Arc<LessSafeKey>);

impl fmt::Debug for StoreKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StoreKey(***)")
    }
}

fn aead(key: &[u8]) -> Result<LessSafeKey, SealError> {
    UnboundKey::new(&AES_256_GCM, key).map(LessSafeKey::new).map_err(|_| SealError::BadKey)
}

impl StoreKey {
    /// Reads the text of a key.
    ///
    /// # Errors
    /// It is not 32 bytes as base64.
    pub fn read(text: &str) -> Result<Self, SealError> {
        let bytes = Zeroizing::new(STANDARD.decode(text.trim()).map_err(|_| SealError::BadKey)?);
        if bytes.len() != KEY {
            return Err(SealError::BadKey);
        }
        aead(&bytes).map(|key| Self(Arc::new(key)))
    }
}

/// Which values.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Part {
    Objects,
    Private,
}

impl Part {
    fn place(self, key: &str) -> String {
        match self {
            Self::Objects => format!("objects/{key}"),
            Self::Private => format!("private/{key}"),
        }
    }
}

/// What seals a store's values.
pub(crate) struct Seal {
    key: LessSafeKey,
    /// The key itself, encrypted: what is kept.
    wrapped: Vec<u8>,
}

fn close(key: &LessSafeKey, place: &str, value: &[u8]) -> Result<Vec<u8>, SealError> {
    let mut nonce = [0; NONCE_LEN];
    rand::fill(&mut nonce).map_err(|_| SealError::Failed)?;
    let mut sealed = value.to_vec();
    // A nonce by chance is good for 2^32 values with one key (NIST SP 800-38D, 8.3): more writes than a hub sees.
    key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(place), &mut sealed)
        .map_err(|_| SealError::Failed)?;
    Ok([&nonce[..], &sealed].concat())
}

fn open(key: &LessSafeKey, place: &str, sealed: &[u8]) -> Option<Vec<u8>> {
    let (nonce, sealed) = sealed.split_at_checked(NONCE_LEN)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
    let mut value = sealed.to_vec();
    let length = key.open_in_place(nonce, Aad::from(place), &mut value).ok()?.len();
    value.truncate(length);
    Some(value)
}

impl Seal {
    /// A new one.
    pub(crate) fn make(with: &StoreKey) -> Result<Arc<Self>, SealError> {
        let mut key = Zeroizing::new([0; KEY]);
        rand::fill(&mut key[..]).map_err(|_| SealError::Failed)?;
        Ok(Arc::new(Self { key: aead(&key[..])?, wrapped: close(&with.0, WRAPPED, &key[..])? }))
    }

    /// The one of a store that is there, from what is kept with it; `None`: it is not sealed. `empty` says that nothing is
    /// in it yet, so that it can begin sealed.
    pub(crate) fn of(
        wrapped: Option<&[u8]>,
        with: Option<&StoreKey>,
        empty: bool,
    ) -> Result<Option<Arc<Self>>, SealError> {
        match (wrapped, with) {
            (None, None) => Ok(None),
            (None, Some(with)) if empty => Self::make(with).map(Some),
            (None, Some(_)) => Err(SealError::NotSealed),
            (Some(_), None) => Err(SealError::KeyNeeded),
            (Some(wrapped), Some(with)) => {
                let key = Zeroizing::new(open(&with.0, WRAPPED, wrapped).ok_or(SealError::WrongKey)?);
                Ok(Some(Arc::new(Self { key: aead(&key)?, wrapped: wrapped.to_vec() })))
            }
        }
    }

    /// What is to be kept with the values.
    pub(crate) fn wrapped(&self) -> &[u8] {
        &self.wrapped
    }
}

/// A value as it is kept.
pub(crate) fn kept<'a>(
    seal: Option<&Seal>,
    part: Part,
    key: &str,
    value: &'a [u8],
) -> Result<Cow<'a, [u8]>, SealError> {
    match seal {
        None => Ok(Cow::Borrowed(value)),
        Some(seal) => close(&seal.key, &part.place(key), value).map(Cow::Owned),
    }
}

/// The same, back.
pub(crate) fn read<'a>(
    seal: Option<&Seal>,
    part: Part,
    key: &str,
    value: &'a [u8],
) -> Result<Cow<'a, [u8]>, SealError> {
    match seal {
        None => Ok(Cow::Borrowed(value)),
        Some(seal) => {
            let place = part.place(key);
            open(&seal.key, &place, value).map(Cow::Owned).ok_or(SealError::Damaged(place))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> StoreKey {
        StoreKey::read(&STANDARD.encode([byte; KEY])).unwrap()
    }

    #[test]
    fn what_is_sealed_is_read_in_its_place_with_its_key_alone() {
        let seal = Seal::make(&key(1)).unwrap();
        let sealed = kept(Some(&seal), Part::Objects, "a", b"value").unwrap().into_owned();
        assert!(!sealed.windows(5).any(|w| w == b"value"));
        let again = Seal::of(Some(seal.wrapped()), Some(&key(1)), false).unwrap().unwrap();
        assert_eq!(&*read(Some(&again), Part::Objects, "a", &sealed).unwrap(), b"value");
        for (part, place) in [(Part::Objects, "b"), (Part::Private, "a")] {
            assert!(matches!(read(Some(&again), part, place, &sealed), Err(SealError::Damaged(_))));
        }
        for at in 0..sealed.len() {
            let mut bent = sealed.clone();
            bent[at] ^= 1;
            assert!(read(Some(&again), Part::Objects, "a", &bent).is_err(), "byte {at}");
        }
        assert!(read(Some(&again), Part::Objects, "a", &sealed[..5]).is_err());
        assert!(matches!(Seal::of(Some(seal.wrapped()), Some(&key(2)), false), Err(SealError::WrongKey)));
        assert!(matches!(Seal::of(Some(seal.wrapped()), None, true), Err(SealError::KeyNeeded)));
        assert!(matches!(Seal::of(None, Some(&key(1)), false), Err(SealError::NotSealed)));
        assert!(Seal::of(None, Some(&key(1)), true).unwrap().is_some());
    }

    #[test]
    fn keys_are_read_strictly_and_never_shown() {
        for bad in ["", "secret", &STANDARD.encode([1; 31]), &STANDARD.encode([1; 33])] {
            assert_eq!(StoreKey::read(bad).unwrap_err(), SealError::BadKey);
        }
        let text = format!("{}\n", STANDARD.encode([1; KEY]));
        assert_eq!(format!("{:?}", StoreKey::read(&text).unwrap()), "StoreKey(***)");
    }
}
