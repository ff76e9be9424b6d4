//! The keys that tokens are signed with, and how they follow one another.

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use rand::RngCore;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// Most public keys in a set: previous, current, next, and a few that were rotated in a hurry.
const MAX_KEYS: usize = 16;

/// What was read is no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an Ed25519 key")]
pub struct BadKey;

/// An Ed25519 public key. Its name is its thumbprint (RFC 7638), so nobody can give it another's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    kid: String,
    bytes: [u8; 32],
}

impl PublicKey {
    /// A key from its 32 bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        // RFC 8037, appendix A.3: the members in this order, without white space.
        let canonical = format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{}"}}"#, URL_SAFE_NO_PAD.encode(bytes));
        Self { kid: URL_SAFE_NO_PAD.encode(Sha256::digest(canonical)), bytes }
    }

    /// Its name.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// Whether `signature` is this key's over `message`.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.bytes).verify(message, signature).is_ok()
    }
}

/// A JSON Web Key (RFC 7517) of the one kind that there is here.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Jwk {
    kty: String,
    crv: String,
    x: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    kid: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    alg: String,
    #[serde(default, rename = "use", skip_serializing_if = "String::is_empty")]
    usage: String,
}

impl From<PublicKey> for Jwk {
    fn from(key: PublicKey) -> Self {
        let word = str::to_owned;
        let x = URL_SAFE_NO_PAD.encode(key.bytes);
        Self { kty: word("OKP"), crv: word("Ed25519"), x, kid: key.kid, alg: word("EdDSA"), usage: word("sig") }
    }
}

impl TryFrom<Jwk> for PublicKey {
    type Error = BadKey;
    fn try_from(jwk: Jwk) -> Result<Self, BadKey> {
        if jwk.kty != "OKP" || jwk.crv != "Ed25519" || !matches!(jwk.alg.as_str(), "" | "EdDSA" | "Ed25519") {
            return Err(BadKey);
        }
        let bytes = URL_SAFE_NO_PAD.decode(&jwk.x).ok().and_then(|bytes| bytes.try_into().ok()).ok_or(BadKey)?;
        Ok(Self::new(bytes))
    }
}

#[derive(Serialize, Deserialize)]
struct Jwks {
    keys: Vec<Jwk>,
}

/// The keys of which any may have signed a token. As JSON it is a JWKS.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "Jwks", into = "Jwks")]
pub struct KeySet(Vec<PublicKey>);

impl KeySet {
    /// These keys.
    pub fn new(keys: impl IntoIterator<Item = PublicKey>) -> Self {
        Self(keys.into_iter().take(MAX_KEYS).collect())
    }

    /// The key of that name.
    pub fn find(&self, kid: &str) -> Option<&PublicKey> {
        self.0.iter().find(|key| key.kid == kid)
    }

    /// Whether there is none: then nobody gets in.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<KeySet> for Jwks {
    fn from(set: KeySet) -> Self {
        Self { keys: set.0.into_iter().map(Jwk::from).collect() }
    }
}

impl TryFrom<Jwks> for KeySet {
    type Error = BadKey;
    /// One bad key is a bad set: half a set of keys is never trusted.
    fn try_from(jwks: Jwks) -> Result<Self, BadKey> {
        if MAX_KEYS < jwks.keys.len() {
            return Err(BadKey);
        }
        jwks.keys.into_iter().map(PublicKey::try_from).collect::<Result<_, _>>().map(Self)
    }
}

/// An Ed25519 key pair. Prints as its public half.
pub struct SigningKey {
    seed: Zeroizing<[u8; 32]>,
    pair: Ed25519KeyPair,
    public: PublicKey,
}

impl SigningKey {
    /// A new one from a cryptographic random source.
    ///
    /// # Errors
    /// The library takes no such seed: never seen.
    pub fn generate() -> Result<Self, BadKey> {
        let mut seed = Zeroizing::new([0; 32]);
        rand::rng().fill_bytes(&mut *seed);
        Self::from_seed(seed)
    }

    /// The one with this seed (RFC 8032 §5.1.5).
    ///
    /// # Errors
    /// The library refuses it.
    pub fn from_seed(seed: Zeroizing<[u8; 32]>) -> Result<Self, BadKey> {
        let pair = Ed25519KeyPair::from_seed_unchecked(&*seed).map_err(|_| BadKey)?;
        let bytes = pair.public_key().as_ref().try_into().map_err(|_| BadKey)?;
        Ok(Self { seed, pair, public: PublicKey::new(bytes) })
    }

    /// Its public half.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// The signature over `message`.
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.pair.sign(message).as_ref().to_vec()
    }
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("SigningKey").field(&self.public.kid).finish()
    }
}

/// A hub's keys: the one that signs, the one that will, and those that did.
///
/// The next one is published as long as the current one signs, so everybody who verifies knows it before its first
/// token; those before are kept until the last token they signed is over. So a rotation ends nothing.
#[derive(Debug)]
pub struct Ring {
    current: SigningKey,
    next: SigningKey,
    /// Since when the current one signs, in seconds since 1970.
    since: u64,
    /// Public halves, and until when each is kept.
    before: Vec<(PublicKey, u64)>,
}

#[derive(Serialize, Deserialize)]
struct StoredRing {
    current: String,
    next: String,
    since: u64,
    before: Vec<(Jwk, u64)>,
}

impl Ring {
    /// Two new keys.
    ///
    /// # Errors
    /// See [`SigningKey::generate`].
    pub fn generate(now: u64) -> Result<Self, BadKey> {
        Ok(Self { current: SigningKey::generate()?, next: SigningKey::generate()?, since: now, before: Vec::new() })
    }

    /// The key that signs.
    pub fn current(&self) -> &SigningKey {
        &self.current
    }

    /// Since when it does, in seconds since 1970.
    pub fn since(&self) -> u64 {
        self.since
    }

    /// Every key of which a token may be good now.
    pub fn public(&self, now: u64) -> KeySet {
        let before = self.before.iter().filter(|(_, until)| now < *until).map(|(key, _)| key);
        KeySet::new([&self.current.public, &self.next.public].into_iter().chain(before).cloned())
    }

    /// The next key signs from now on; the one before is good for another `keep` seconds.
    ///
    /// # Errors
    /// See [`SigningKey::generate`]; nothing has changed then.
    pub fn rotate(&self, now: u64, keep: u64) -> Result<Self, BadKey> {
        let mut before: Vec<_> = self.before.iter().filter(|(_, until)| now < *until).cloned().collect();
        before.push((self.current.public.clone(), now.saturating_add(keep)));
        before.drain(..before.len().saturating_sub(MAX_KEYS - 2));
        let current = SigningKey::from_seed(self.next.seed.clone())?;
        Ok(Self { current, next: SigningKey::generate()?, since: now, before })
    }

    /// As it is kept: secret.
    pub fn store(&self) -> Zeroizing<Vec<u8>> {
        let seed = |key: &SigningKey| URL_SAFE_NO_PAD.encode(*key.seed);
        let before = self.before.iter().map(|(key, until)| (Jwk::from(key.clone()), *until)).collect();
        let stored = StoredRing { current: seed(&self.current), next: seed(&self.next), since: self.since, before };
        Zeroizing::new(serde_json::to_vec(&stored).unwrap_or_default())
    }

    /// Reads what was kept.
    ///
    /// # Errors
    /// It is not whole. A ring that cannot be read is never replaced by a new one unasked.
    pub fn read(bytes: &[u8]) -> Result<Self, BadKey> {
        let stored: StoredRing = serde_json::from_slice(bytes).map_err(|_| BadKey)?;
        let key = |text: &str| {
            let seed = Zeroizing::new(URL_SAFE_NO_PAD.decode(text).map_err(|_| BadKey)?);
            SigningKey::from_seed(Zeroizing::new(seed.as_slice().try_into().map_err(|_| BadKey)?))
        };
        let before: Result<_, _> = stored.before.into_iter().map(|(jwk, until)| Ok((jwk.try_into()?, until))).collect();
        Ok(Self { current: key(&stored.current)?, next: key(&stored.next)?, since: stored.since, before: before? })
    }
}
