//! A provider's public keys, and whether a token is signed with one of them.

use super::address;
use crate::{LoginError, http_client::HttpClient, limits};
use jsonwebtoken::{
    Algorithm, AlgorithmFamily, DecodingKey, Validation, decode, decode_header,
    jwk::{Jwk, JwkSet, PublicKeyUse},
};
use serde_json::{Map, Value};
use std::{sync::Arc, time::Instant};
use tokio::sync::Mutex;

/// Longest token, in bytes.
const TOKEN: usize = 64 << 10;

#[derive(Default)]
pub(super) struct Keys(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    keys: Option<(Instant, Arc<JwkSet>)>,
    /// When keys were last fetched for a token whose key was not known.
    missed: Option<Instant>,
}

impl Keys {
    /// The keys; `missing`: one that is wanted is not among those that are kept, so new ones may be out.
    async fn get(&self, http: &HttpClient, at: &str, missing: bool) -> Result<Arc<JwkSet>, LoginError> {
        let mut kept = self.0.lock().await;
        let fresh = kept.keys.as_ref().filter(|(at, _)| at.elapsed() < limits::KEYS);
        let again = missing && kept.missed.is_none_or(|at| at.elapsed() >= limits::KEYS_PAUSE);
        if let Some((_, keys)) = fresh
            && !again
        {
            return Ok(Arc::clone(keys));
        }
        if missing {
            kept.missed = Some(Instant::now());
        }
        let (keys, _) = http.get::<JwkSet>(&address(at)?, None).await?;
        let keys = Arc::new(keys);
        kept.keys = Some((Instant::now(), Arc::clone(&keys)));
        Ok(keys)
    }

    /// The claims of an identity token that this provider made for this client and that is good now
    /// (OpenID Connect Core §3.1.3.7).
    pub async fn verify(
        &self,
        http: &HttpClient,
        at: &str,
        token: &str,
        issuer: &str,
        client: &str,
    ) -> Result<Map<String, Value>, LoginError> {
        if token.len() > TOKEN {
            return Err(LoginError::wrong("the identity token is too long"));
        }
        let header = decode_header(token).map_err(|e| LoginError::wrong(format!("the identity token: {e}")))?;
        // A secret of both sides would let whoever knows the client's secret make tokens.
        if header.alg.family() == AlgorithmFamily::Hmac {
            return Err(LoginError::wrong("the identity token is signed with a shared secret"));
        }
        let mut fits = fitting(&*self.get(http, at, false).await?, header.kid.as_deref(), header.alg);
        if fits.is_empty() {
            fits = fitting(&*self.get(http, at, true).await?, header.kid.as_deref(), header.alg);
        }
        let mut validation = Validation::new(header.alg);
        validation.leeway = limits::LEEWAY.as_secs();
        validation.validate_nbf = true;
        validation.set_audience(&[client]);
        validation.set_issuer(&[issuer]);
        validation.set_required_spec_claims(&["exp", "aud", "iss", "sub"]);
        let mut why = "no key of the provider's fits".to_owned();
        for key in fits {
            match decode::<Map<String, Value>>(token, &key, &validation) {
                Ok(data) => return azp(data.claims, client),
                Err(error) => why = error.to_string(),
            }
        }
        Err(LoginError::wrong(format!("the identity token: {why}")))
    }
}

/// The keys that a token with this header may be signed with.
fn fitting(keys: &JwkSet, kid: Option<&str>, alg: Algorithm) -> Vec<DecodingKey> {
    let fits = |key: &&Jwk| {
        let common = &key.common;
        let named = kid.is_none_or(|kid| common.key_id.as_deref() == Some(kid));
        named && common.public_key_use.as_ref().is_none_or(|purpose| *purpose == PublicKeyUse::Signature)
    };
    let all = keys.keys.iter().filter(fits).filter_map(|key| DecodingKey::from_jwk(key).ok());
    all.filter(|key| key.family() == alg.family()).collect()
}

/// A token for several must name this client as the one that it was made for.
fn azp(claims: Map<String, Value>, client: &str) -> Result<Map<String, Value>, LoginError> {
    let several = claims.get("aud").and_then(Value::as_array).is_some_and(|all| all.len() > 1);
    match claims.get("azp").and_then(Value::as_str) {
        Some(azp) if azp != client => Err(LoginError::wrong("the identity token was made for another client (azp)")),
        None if several => Err(LoginError::wrong("the identity token is for several clients and names none (azp)")),
        _ => Ok(claims),
    }
}

#[cfg(test)]
mod tests;
