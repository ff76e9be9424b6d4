//! Bundles: everything that a cluster must know to let its users in while the hub is away.
//!
//! A hub makes one for each cluster and signs it with its authority's key, which every agent of the cluster pins already.
//! A bundle is one line with the signature and then the very bytes that were signed, as JSON. Its serial only grows: an
//! older one could give back a right that was taken away.

pub mod delta;

use crate::{
    access::{Denial, Facts, Grant, Grants, Permit, Recording, authorize},
    access_token::{Audience, KeySet, TokenError, Verifier, looks_like_one},
    identity::{ActAs, Identity},
    signed::{self, SignedError},
    token::{Kind, TokenHash, TokenText},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{HashMap, HashSet};

/// Largest bundle, in bytes: 100,000 users with their groups have some 15 MiB.
pub const MAX_LEN: usize = 32 << 20;

const KIND: signed::Kind = signed::Kind { magic: "moorline-bundle/1", most: MAX_LEN };

/// A user who may use the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundleUser {
    /// Name.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// Groups, in the hub's order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
}

/// A grant, as far as it is about the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BundleGrant {
    /// User names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub users: Vec<String>,
    /// Group names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// Groups that its holders have here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub as_groups: Vec<String>,
    /// What is kept of its holders' sessions in terminals; absent: as the bundle says.
    #[serde(default, deserialize_with = "Recording::maybe_of_newer", skip_serializing_if = "Option::is_none")]
    pub record: Option<Recording>,
}

/// An API key that names this cluster: it works without the hub for as long as it lasts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundleKey {
    /// Name of its `Token` object.
    pub id: String,
    /// SHA-256 of its secret, base64url. The secret has 256 random bits.
    pub hash: String,
    /// Whose it is.
    pub user: String,
    /// When it ends, in seconds since 1970.
    pub expires: u64,
    /// The verbs that it is good for; absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verbs: Option<Vec<String>>,
}

/// A login or key that was ended while tokens made by it may still be out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revoked {
    /// Name of its `Token` object.
    pub id: String,
    /// When the last of these tokens is over, in seconds since 1970.
    pub until: u64,
}

/// A bundle's content. What is not listed is ignored: a newer hub may write more.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Bundle {
    /// The cluster that it is for.
    pub cluster: String,
    /// Grows with each bundle of the hub.
    pub serial: u64,
    /// When it was made, in seconds since 1970.
    pub issued: u64,
    /// From when on nobody gets in by it.
    pub expires: u64,
    /// `iss` of the access tokens.
    pub issuer: String,
    /// The keys that access tokens are signed with: a JWKS.
    pub keys: KeySet,
    /// Who may use the cluster, but for those that the hub has disabled.
    pub users: Vec<BundleUser>,
    /// By what.
    pub grants: Vec<BundleGrant>,
    /// API keys.
    #[serde(default)]
    pub api_keys: Vec<BundleKey>,
    /// What was ended.
    #[serde(default)]
    pub revoked: Vec<Revoked>,
    /// What is kept of sessions in terminals where no grant says more: as the cluster says, or else the hub. A hub that
    /// says nothing asks for nothing.
    #[serde(default, deserialize_with = "Recording::of_newer", skip_serializing_if = "Recording::is_never")]
    pub record: Recording,
}

/// Why a bundle is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// Over [`MAX_LEN`].
    #[error("the bundle is larger than {MAX_LEN} bytes")]
    TooLarge,
    /// Cut short, or no bundle at all.
    #[error("this is no bundle, or only part of one")]
    Malformed,
    /// Altered, or signed by an authority that is not trusted here.
    #[error("the bundle is not signed by this cluster's hub")]
    Signature,
    /// Another cluster's.
    #[error("the bundle is for cluster {found:?}, and this is {wanted:?}")]
    Cluster {
        /// In the bundle.
        found: String,
        /// Here.
        wanted: String,
    },
    /// One with a higher serial was accepted before.
    #[error("the bundle's serial is {found}, and {have} was accepted before: a newer one is needed")]
    Older {
        /// In the bundle.
        found: u64,
        /// Accepted before.
        have: u64,
    },
    /// Its time is over.
    #[error("the bundle's time was over {seconds} s ago: a newer one is needed")]
    Expired {
        /// Since when.
        seconds: u64,
    },
}

impl BundleError {
    /// One word, from a fixed set.
    pub fn label(&self) -> &'static str {
        match self {
            Self::TooLarge => "too_large",
            Self::Malformed => "malformed",
            Self::Signature => "signature",
            Self::Cluster { .. } => "cluster",
            Self::Older { .. } => "older",
            Self::Expired { .. } => "expired",
        }
    }
}

impl From<SignedError> for BundleError {
    fn from(error: SignedError) -> Self {
        match error {
            SignedError::TooLarge => Self::TooLarge,
            SignedError::Malformed => Self::Malformed,
            SignedError::Signature => Self::Signature,
        }
    }
}

/// Writes a bundle, signed with `sign`.
///
/// # Errors
/// What `sign` says.
pub fn seal<E>(bundle: &Bundle, sign: impl FnOnce(&[u8]) -> Result<Vec<u8>, E>) -> Result<Vec<u8>, E> {
    signed::seal(KIND, bundle, sign)
}

/// Reads a bundle for `cluster`. `verify` says whether a signature over a message is the hub's; `have` is the serial that
/// was accepted last. Nothing of it is believed before its signature is.
///
/// # Errors
/// The first thing that is wrong. Its time is not looked at: see [`Bundle::check_time`].
pub fn open(
    bytes: &[u8],
    verify: impl FnOnce(&[u8], &[u8]) -> bool,
    cluster: &str,
    have: Option<u64>,
) -> Result<Bundle, BundleError> {
    let content = signed::open(KIND, bytes, verify)?;
    let bundle: Bundle = serde_json::from_slice(content).map_err(|_| BundleError::Malformed)?;
    if bundle.cluster != cluster {
        return Err(BundleError::Cluster { found: bundle.cluster, wanted: cluster.to_owned() });
    }
    match have {
        Some(have) if bundle.serial < have => Err(BundleError::Older { found: bundle.serial, have }),
        _ => Ok(bundle),
    }
}

impl Bundle {
    /// Whether its time is not over.
    ///
    /// # Errors
    /// It is.
    pub fn check_time(&self, now: u64) -> Result<(), BundleError> {
        if self.expires <= now { Err(BundleError::Expired { seconds: now - self.expires }) } else { Ok(()) }
    }
}

/// Why somebody does not get in. For logs and metrics; whoever asked is told nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The token is none.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// Not a key that this cluster knows.
    #[error("an API key that is not known here")]
    Key,
    /// The login or key behind the token was ended.
    #[error("the login behind the token was ended")]
    Revoked,
    /// The user may not use the cluster, is disabled, or is another of the same name.
    #[error("the user is not known here")]
    User,
    /// The bundle's time is over.
    #[error("what is known here of users is too old")]
    Stale,
}

impl Refused {
    /// One word, from a fixed set.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Token(error) => error.label(),
            Self::Key => "unknown_key_id",
            Self::Revoked => "revoked",
            Self::User => "unknown_user",
            Self::Stale => "stale",
        }
    }
}

/// Somebody who proved who they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Who.
    pub identity: Identity,
    /// The login or key.
    pub session: String,
    /// When that ends, in seconds since 1970.
    pub ends: u64,
    /// The verbs that it is good for.
    pub verbs: Option<Vec<String>>,
}

/// A bundle, ready to be asked.
#[derive(Debug)]
pub struct Standing {
    cluster: [String; 1],
    audience: Audience,
    serial: u64,
    issued: u64,
    expires: u64,
    users: HashMap<String, BundleUser>,
    grants: Grants,
    keys: HashMap<String, BundleKey>,
    revoked: HashSet<String>,
    verifier: Verifier,
}

impl Standing {
    /// Makes a bundle ready.
    pub fn new(bundle: Bundle) -> Self {
        let clusters = vec![bundle.cluster.clone()];
        let grant = |grant: BundleGrant| Grant {
            name: String::new(),
            users: grant.users,
            groups: grant.groups,
            clusters: clusters.clone(),
            as_groups: grant.as_groups,
            record: grant.record,
        };
        Self {
            audience: Audience::Cluster(bundle.cluster.clone()),
            serial: bundle.serial,
            issued: bundle.issued,
            expires: bundle.expires,
            users: bundle.users.into_iter().map(|user| (user.name.clone(), user)).collect(),
            grants: Grants::new(bundle.grants.into_iter().map(grant)).with_recording(bundle.record, []),
            keys: bundle.api_keys.into_iter().map(|key| (key.id.clone(), key)).collect(),
            revoked: bundle.revoked.into_iter().map(|revoked| revoked.id).collect(),
            verifier: Verifier::new(bundle.issuer, bundle.keys),
            cluster: [bundle.cluster],
        }
    }

    /// The cluster.
    pub fn cluster(&self) -> &str {
        &self.cluster[0]
    }
    /// The bundle's serial.
    pub fn serial(&self) -> u64 {
        self.serial
    }
    /// When it was made, in seconds since 1970.
    pub fn issued(&self) -> u64 {
        self.issued
    }
    /// When its time is over.
    pub fn expires(&self) -> u64 {
        self.expires
    }

    /// Who presents this token. `glass`: users whom the cluster's owner lets in also with a bundle whose time is over.
    ///
    /// # Errors
    /// Why nobody gets in with it.
    pub fn who(&self, text: &str, now: u64, glass: &[String]) -> Result<Known, Refused> {
        let (user, uid, session, ends, verbs) = if looks_like_one(text) {
            let claims = self.verifier.verify(text, now)?;
            if !claims.is_for(&self.audience) {
                return Err(TokenError::Audience.into());
            }
            let claims = (*claims).clone();
            (claims.sub, Some(claims.uid), claims.sid, claims.sid_exp, claims.verbs)
        } else {
            let token = TokenText::parse(text).ok().filter(|token| token.kind == Kind::Api).ok_or(Refused::Key)?;
            let key = self.keys.get(&token.id).ok_or(Refused::Key)?;
            let hash: Option<[u8; 32]> = URL_SAFE_NO_PAD.decode(&key.hash).ok().and_then(|hash| hash.try_into().ok());
            if !hash.is_some_and(|hash| TokenHash::from_bytes(hash).verify(&token)) {
                return Err(Refused::Key);
            }
            (key.user.clone(), None, token.id, key.expires, key.verbs.clone())
        };
        let found = self.users.get(&user).filter(|found| uid.as_ref().is_none_or(|uid| *uid == found.uid));
        let found = found.ok_or(Refused::User)?;
        let mut identity = Identity::new(user, found.groups.iter().cloned());
        identity.uid.clone_from(&found.uid);
        let known = Known { identity, session, ends, verbs };
        self.still(&known, now, glass).map(|()| known)
    }

    /// Whether somebody who got in, by this bundle or by one before it, would get in now as the same: for what is open.
    ///
    /// # Errors
    /// Why not.
    pub fn still(&self, known: &Known, now: u64, glass: &[String]) -> Result<(), Refused> {
        if self.expires <= now && !glass.contains(&known.identity.user) {
            return Err(Refused::Stale);
        }
        if self.revoked.contains(&known.session) || known.ends <= now {
            return Err(Refused::Revoked);
        }
        let same = |user: &BundleUser| {
            user.uid == known.identity.uid && known.identity.groups.iter().all(|group| user.groups.contains(group))
        };
        if self.users.get(&known.identity.user).is_some_and(same) { Ok(()) } else { Err(Refused::User) }
    }

    /// May they use the cluster? The same decision as the hub's.
    ///
    /// # Errors
    /// See [`authorize`].
    pub fn permit(&self, known: &Known, act_as: Option<ActAs>) -> Result<Permit, Denial> {
        authorize(&self.facts(&known.identity), self.cluster(), act_as)
    }

    /// What decisions are taken from.
    pub fn facts<'a>(&'a self, identity: &'a Identity) -> Facts<'a> {
        Facts { identity, token_clusters: Some(&self.cluster), grants: &self.grants }
    }
}

/// Tells two bundles with the same content apart from others, whatever their serial and times.
pub fn fingerprint(bundle: &Bundle) -> [u8; 32] {
    let bare = Bundle { serial: 0, issued: 0, expires: 0, ..bundle.clone() };
    Sha256::digest(serde_json::to_vec(&bare).unwrap_or_default()).into()
}

#[cfg(test)]
mod tests;
