//! Verification with a memory: most tokens come many times.

use super::{Claims, KeySet, TokenError, verify};
use sha2::{Digest, Sha256};
use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

/// Tokens remembered, in each of two generations: the older one is forgotten when the younger is full.
const REMEMBERED: usize = 20_000;

/// Verifies tokens of one hub. What was verified once is known again by its SHA-256 alone, until a key goes; its times
/// are looked at each time. Whether its login still lives is not this one's business, and must be asked each time.
#[derive(Debug)]
pub struct Verifier {
    issuer: String,
    state: RwLock<State>,
}

#[derive(Debug, Default)]
struct State {
    keys: Arc<KeySet>,
    young: HashMap<[u8; 32], Arc<Claims>>,
    old: HashMap<[u8; 32], Arc<Claims>>,
}

impl Verifier {
    /// Knows the tokens of `issuer`, signed by one of `keys`.
    pub fn new(issuer: impl Into<String>, keys: KeySet) -> Self {
        Self { issuer: issuer.into(), state: RwLock::new(State { keys: Arc::new(keys), ..State::default() }) }
    }

    /// Other keys. Everything is verified anew.
    pub fn set_keys(&self, keys: KeySet) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if *state.keys != keys {
            *state = State { keys: Arc::new(keys), ..State::default() };
        }
    }

    /// The keys.
    pub fn keys(&self) -> Arc<KeySet> {
        Arc::clone(&self.state.read().unwrap_or_else(PoisonError::into_inner).keys)
    }

    /// See [`verify`].
    ///
    /// # Errors
    /// As there.
    pub fn verify(&self, text: &str, now: u64) -> Result<Arc<Claims>, TokenError> {
        if super::MAX_LEN < text.len() {
            return Err(TokenError::Malformed);
        }
        let print: [u8; 32] = Sha256::digest(text).into();
        let keys = {
            let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(claims) = state.young.get(&print).or_else(|| state.old.get(&print)) {
                return claims.check_time(now).map(|()| Arc::clone(claims));
            }
            Arc::clone(&state.keys)
        };
        let claims = Arc::new(verify(text, &keys, &self.issuer, now)?);
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        // Keys that went meanwhile vouch for nothing any more.
        if Arc::ptr_eq(&state.keys, &keys) {
            if REMEMBERED <= state.young.len() {
                state.old = std::mem::take(&mut state.young);
            }
            state.young.insert(print, Arc::clone(&claims));
        }
        Ok(claims)
    }
}
