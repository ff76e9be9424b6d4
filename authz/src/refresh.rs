//! Refresh tokens: `mlr_<id>.<secret>`. Each is good once; the answer to it is the next one.
//!
//! Half of the secret stays the same for the whole login and half changes with each use. Whoever shows the first half
//! with an old second half holds a copy of a token that was used: one of two holders is a thief, and nobody can tell
//! which, so the login ends. Whoever knows only the login's name, which stands in every access token, ends nothing.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use rand::RngCore;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// How long the token before is still taken, in seconds: the answer may have been lost on its way, or two programs of
/// one user may have asked at once. Links that come and go need minutes.
pub const GRACE: u64 = 300;

/// Lengths of the two halves, in bytes: 128 bits each.
const HALF: usize = 16;
/// Bytes of a [`RefreshRecord`] as it is stored.
const STORED: usize = 3 * 32 + 8;

/// A refresh token as its holder has it. Prints no secret.
#[derive(Clone)]
pub struct RefreshText {
    /// Name of the login's `Token` object.
    pub id: String,
    secret: Zeroizing<[u8; 2 * HALF]>,
}

/// The text is no refresh token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a refresh token")]
pub struct BadRefresh;

/// What is kept of a login: hashes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefreshRecord {
    lasting: [u8; 32],
    now: [u8; 32],
    before: [u8; 32],
    /// When `now` was given out, in seconds since 1970.
    turned: u64,
}

/// What a refresh token is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The one that is good now, or the one before within [`GRACE`].
    Good,
    /// One that was used: the login must end.
    Reused,
    /// Not of this login.
    Wrong,
}

impl RefreshText {
    /// The first token of the login `id`.
    pub fn generate(id: String) -> Self {
        let mut secret = Zeroizing::new([0; 2 * HALF]);
        rand::rng().fill_bytes(&mut *secret);
        Self { id, secret }
    }

    /// The next one of the same login.
    pub fn turn(&self) -> Self {
        let mut next = self.clone();
        rand::rng().fill_bytes(&mut next.secret[HALF..]);
        next
    }

    /// Reads a token.
    ///
    /// # Errors
    /// The text is not exactly what [`RefreshText::reveal`] writes.
    pub fn parse(text: &str) -> Result<Self, BadRefresh> {
        let (id, secret) = text.strip_prefix("mlr_").and_then(|rest| rest.split_once('.')).ok_or(BadRefresh)?;
        let id_ok = id.len() == 12 && id.bytes().all(|b| b.is_ascii_lowercase() || (b'2'..=b'7').contains(&b));
        let mut bytes = Zeroizing::new([0; 2 * HALF]);
        if !id_ok || secret.len() != 43 || URL_SAFE_NO_PAD.decode_slice(secret, &mut *bytes) != Ok(2 * HALF) {
            return Err(BadRefresh);
        }
        Ok(Self { id: id.to_owned(), secret: bytes })
    }

    /// The text to give to its holder.
    pub fn reveal(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("mlr_{}.{}", self.id, URL_SAFE_NO_PAD.encode(*self.secret)))
    }

    fn hashes(&self) -> ([u8; 32], [u8; 32]) {
        let (lasting, turning) = self.secret.split_at(HALF);
        (Sha256::digest(lasting).into(), Sha256::digest(turning).into())
    }

    /// What to keep of a login whose first token this is.
    pub fn record(&self, now: u64) -> RefreshRecord {
        let (lasting, turning) = self.hashes();
        RefreshRecord { lasting, now: turning, before: turning, turned: now }
    }
}

impl RefreshRecord {
    /// What `token` is worth, in constant time for each answer.
    pub fn judge(&self, token: &RefreshText, now: u64) -> Verdict {
        let (lasting, turning) = token.hashes();
        if !bool::from(self.lasting.ct_eq(&lasting)) {
            return Verdict::Wrong;
        }
        let in_grace = now.saturating_sub(self.turned) <= GRACE;
        if bool::from(self.now.ct_eq(&turning)) || (in_grace && bool::from(self.before.ct_eq(&turning))) {
            Verdict::Good
        } else {
            Verdict::Reused
        }
    }

    /// What to keep once `shown` was answered with `next`.
    pub fn turned(&self, shown: &RefreshText, next: &RefreshText, now: u64) -> Self {
        Self { lasting: self.lasting, now: next.hashes().1, before: shown.hashes().1, turned: now }
    }

    /// As it is kept.
    pub fn store(&self) -> Vec<u8> {
        [&self.lasting[..], &self.now, &self.before, &self.turned.to_be_bytes()].concat()
    }

    /// Reads what was kept; `None`: it is no such record.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != STORED {
            return None;
        }
        let hash = |at: usize| bytes.get(at..at + 32)?.try_into().ok();
        let turned = u64::from_be_bytes(bytes.get(96..)?.try_into().ok()?);
        Some(Self { lasting: hash(0)?, now: hash(32)?, before: hash(64)?, turned })
    }
}

impl std::fmt::Debug for RefreshText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RefreshText").field("id", &self.id).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn first() -> RefreshText {
        RefreshText::generate("abcdefghijkl".to_owned())
    }

    #[test]
    fn what_is_revealed_is_what_is_read() {
        let token = first();
        let text = token.reveal();
        assert_eq!(RefreshText::parse(&text).unwrap().hashes(), token.hashes());
        let record = token.record(NOW);
        assert_eq!(RefreshRecord::read(&record.store()), Some(record));
        assert!(!format!("{token:?}").contains(text.rsplit_once('.').unwrap().1));
        for bad in ["", "mlr_", &text.replace("mlr_", "mlt_"), &format!("{}=", *text), &text[..text.len() - 1]] {
            assert!(RefreshText::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn s51_a_token_that_was_used_ends_its_login() {
        let (one, record) = (first(), first().record(NOW));
        assert_eq!(record.judge(&one, NOW), Verdict::Wrong, "a stranger's, with the right name");
        let record = one.record(NOW);
        let two = one.turn();
        let record = record.turned(&one, &two, NOW + 10);
        assert_eq!(record.judge(&two, NOW + 10), Verdict::Good);
        assert_eq!(record.judge(&one, NOW + 310), Verdict::Good, "the answer may have been lost");
        assert_eq!(record.judge(&one, NOW + 311), Verdict::Reused);
        let three = two.turn();
        let record = record.turned(&two, &three, NOW + 20);
        assert_eq!(record.judge(&one, NOW + 20), Verdict::Reused, "two turns ago is long ago, however soon");
        assert_eq!(record.judge(&three, NOW + 90_000), Verdict::Good);
    }

    #[test]
    fn whose_answer_was_lost_may_ask_again_and_again() {
        let one = first();
        let lost = one.turn();
        let record = one.record(NOW).turned(&one, &lost, NOW + 1);
        let got = one.turn();
        let record = record.turned(&one, &got, NOW + 2);
        assert_eq!(record.judge(&got, NOW + 2), Verdict::Good);
        assert_eq!(record.judge(&one, NOW + 3), Verdict::Good);
        assert_eq!(record.judge(&lost, NOW + 3), Verdict::Reused, "nobody but a thief has that one");
    }
}
