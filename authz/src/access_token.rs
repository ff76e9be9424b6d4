//! Access tokens: JSON Web Tokens (RFC 7519) that a hub signs with Ed25519 (RFC 8037) and that anybody with its public
//! keys verifies offline.
//!
//! One form and no other: three parts, the header exactly `alg: EdDSA`, `typ: at+jwt` (RFC 9068) and `kid`. No word in a
//! token chooses how it is verified. A token says who somebody is and whom it is for; what they may do is never read
//! from it, so a right that is taken away needs no new token.

mod keys;
mod verifier;

pub use keys::{BadKey, KeySet, PublicKey, Ring, SigningKey};
pub use verifier::Verifier;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Longest token that is looked at, in bytes. Ours have some 600; a header line of 8 KiB is what most servers take.
pub const MAX_LEN: usize = 8 << 10;
/// How far the clocks of the hub and of whoever verifies may be apart, either way.
pub const LEEWAY: Duration = Duration::from_secs(60);
/// Longest life of an access token. It bounds what a revocation that could not be told leaves open.
pub const MAX_LIFE: Duration = Duration::from_secs(3600);

/// Life of a token for a cluster's own endpoint, where other access tokens live for `access_life`: a sixth longer than that
/// remains. Whoever renews it when a sixth of it is over always has at least the life of an access token left, and so
/// gets through an outage of the hub as long as that.
pub const fn cluster_life(access_life: Duration) -> Duration {
    access_life.saturating_add(Duration::from_secs(access_life.as_secs().div_ceil(5)))
}
/// Most clusters that one token is for.
pub const MAX_AUDIENCES: usize = 32;

const ALG: &str = "EdDSA";
const TYP: &str = "at+jwt";
/// The hub, in `aud`.
const HUB: &str = "moorline:hub";
/// What stands before a cluster's name there.
const CLUSTER: &str = "moorline:cluster:";

/// Whom a token is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Audience {
    /// The hub: its own API, and every cluster through it.
    Hub,
    /// One cluster: its endpoint, and the hub's way to it.
    Cluster(String),
}

impl Audience {
    /// As it stands in `aud`.
    pub fn text(&self) -> String {
        match self {
            Self::Hub => HUB.to_owned(),
            Self::Cluster(name) => format!("{CLUSTER}{name}"),
        }
    }
}

/// What a token says. Claims that are not listed are ignored: a newer hub may write more.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Claims {
    /// Who signed: `spiffe://<trust domain>`.
    pub iss: String,
    /// Name of the user.
    pub sub: String,
    /// `metadata.uid` of the user: a namesake made later is somebody else.
    pub uid: String,
    /// Whom it is for, as [`Audience::text`] has it.
    pub aud: Vec<String>,
    /// When it was made, in seconds since 1970.
    pub iat: u64,
    /// From when on it is good.
    pub nbf: u64,
    /// From when on it is not.
    pub exp: u64,
    /// Its own id.
    pub jti: String,
    /// The login or API key behind it: the name of its `Token` object. With that one gone it is nothing.
    pub sid: String,
    /// When that login ends by itself: what is open then is cut.
    pub sid_exp: u64,
    /// The verbs that it is good for; absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verbs: Option<Vec<String>>,
}

impl Claims {
    /// Whether it is for `audience`.
    pub fn is_for(&self, audience: &Audience) -> bool {
        match audience {
            Audience::Hub => self.aud.iter().any(|aud| aud == HUB),
            Audience::Cluster(name) => self.clusters().any(|cluster| cluster == name),
        }
    }

    /// The clusters that it names.
    pub fn clusters(&self) -> impl Iterator<Item = &str> {
        self.aud.iter().filter_map(|aud| aud.strip_prefix(CLUSTER))
    }

    fn check_time(&self, now: u64) -> Result<(), TokenError> {
        let leeway = LEEWAY.as_secs();
        if now < self.nbf.saturating_sub(leeway) {
            return Err(TokenError::NotYet { seconds: self.nbf - now });
        }
        if self.exp.saturating_add(leeway) < now {
            return Err(TokenError::Expired { seconds: now - self.exp });
        }
        Ok(())
    }
}

/// Why a token is none. For logs and metrics; whoever presented it is told nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not three parts of base64url with the header and the claims that ours have.
    #[error("not an access token")]
    Malformed,
    /// Signed by some other means than Ed25519, or by none.
    #[error("not signed as access tokens are")]
    Algorithm,
    /// Its key is not known here (any more, or yet).
    #[error("signed by a key that is not known")]
    UnknownKey,
    /// Its signature is not its key's.
    #[error("the signature is wrong")]
    Signature,
    /// Another hub's.
    #[error("issued by another hub")]
    Issuer,
    /// For somebody else.
    #[error("meant for another audience")]
    Audience,
    /// Before its time: a clock is wrong.
    #[error("not valid for another {seconds} s; is a clock wrong?")]
    NotYet {
        /// Until it is.
        seconds: u64,
    },
    /// After its time.
    #[error("expired {seconds} s ago")]
    Expired {
        /// Since when.
        seconds: u64,
    },
}

impl TokenError {
    /// One word, from a fixed set.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Algorithm => "algorithm",
            Self::UnknownKey => "unknown_key",
            Self::Signature => "signature",
            Self::Issuer => "issuer",
            Self::Audience => "audience",
            Self::NotYet { .. } => "not_yet",
            Self::Expired { .. } => "expired",
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    alg: String,
    typ: String,
    kid: String,
}

/// What is looked at to see whether the header is of another kind of token, to say so.
#[derive(Deserialize)]
struct AnyHeader {
    alg: String,
}

/// Whether a text has the outer form of a JSON Web Token, so that it is worth verifying.
pub fn looks_like_one(text: &str) -> bool {
    text.len() <= MAX_LEN && text.starts_with("ey") && memchr::memchr_iter(b'.', text.as_bytes()).count() == 2
}

/// Verifies a token offline. A pure function of its arguments: `now` in seconds since 1970.
///
/// # Errors
/// The first thing that is wrong. Nothing of the token is believed before its signature is.
pub fn verify(text: &str, keys: &KeySet, issuer: &str, now: u64) -> Result<Claims, TokenError> {
    if MAX_LEN < text.len() {
        return Err(TokenError::Malformed);
    }
    let mut parts = text.split('.');
    let (Some(head), Some(body), Some(signature), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(TokenError::Malformed);
    };
    let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Malformed);
    let raw_head = decode(head)?;
    let header: Header = serde_json::from_slice(&raw_head).map_err(|_| {
        let other = serde_json::from_slice::<AnyHeader>(&raw_head).is_ok_and(|any| any.alg != ALG);
        if other { TokenError::Algorithm } else { TokenError::Malformed }
    })?;
    if header.alg != ALG {
        return Err(TokenError::Algorithm);
    }
    if header.typ != TYP {
        return Err(TokenError::Malformed);
    }
    let key = keys.find(&header.kid).ok_or(TokenError::UnknownKey)?;
    let signed = text.get(..head.len() + 1 + body.len()).ok_or(TokenError::Malformed)?;
    if !key.verifies(signed.as_bytes(), &decode(signature)?) {
        return Err(TokenError::Signature);
    }
    let claims: Claims = serde_json::from_slice(&decode(body)?).map_err(|_| TokenError::Malformed)?;
    if claims.sub.is_empty() || claims.sid.is_empty() || MAX_AUDIENCES < claims.aud.len() {
        return Err(TokenError::Malformed);
    }
    if claims.iss != issuer {
        return Err(TokenError::Issuer);
    }
    claims.check_time(now)?;
    Ok(claims)
}

/// Writes and signs a token.
pub fn sign(claims: &Claims, key: &SigningKey) -> String {
    let header = Header { alg: ALG.to_owned(), typ: TYP.to_owned(), kid: key.public().kid().to_owned() };
    let encode = |value: Result<Vec<u8>, _>| URL_SAFE_NO_PAD.encode(value.unwrap_or_default());
    let mut text = encode(serde_json::to_vec(&header));
    text.push('.');
    text.push_str(&encode(serde_json::to_vec(claims)));
    let signature = key.sign(text.as_bytes());
    text.push('.');
    text.push_str(&URL_SAFE_NO_PAD.encode(signature));
    text
}

#[cfg(test)]
mod tests;
