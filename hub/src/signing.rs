//! The keys that access tokens are signed with: kept in the store, rotated by the clock or by hand.

use crate::records::{RecordError, Records};
use moorline_authz::access_token::{Claims, KeySet, Ring, Verifier, cluster_life, sign};
use std::{
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio_util::sync::CancellationToken;

/// Where the ring is kept, in the keyspace that no API serves.
const RECORD: &str = "moorline.dev/signing-keys";
/// How often it is looked at whether a key has signed long enough.
const LOOK: Duration = Duration::from_secs(60);
/// How much longer than an access token lives a key is kept after it signed its last.
const SLACK: u64 = 2 * moorline_authz::access_token::LEEWAY.as_secs();

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Signs access tokens, and tells with which keys that is done.
#[derive(Debug)]
pub(crate) struct Signing {
    records: Records,
    ring: RwLock<Arc<Ring>>,
    /// One rotation at a time.
    turning: tokio::sync::Mutex<()>,
    verifier: Arc<Verifier>,
    issuer: String,
    access_life: Duration,
    key_life: Duration,
}

impl Signing {
    /// Reads the keys, or makes the first ones.
    ///
    /// # Errors
    /// What is kept cannot be read: it is never replaced unasked, for every token that is out would be worth nothing.
    pub async fn open(records: Records, config: &crate::Config) -> Result<Self, String> {
        let ring = match records.secret(RECORD) {
            Some(bytes) => Ring::read(&bytes)
                .map_err(|_| "the signing keys in the store cannot be read: restore the store from a backup")?,
            None => {
                let ring = Ring::generate(now()).map_err(|e| e.to_string())?;
                let kept = records.set_secret(RECORD.to_owned(), ring.store().to_vec().into()).await;
                kept.map_err(|e| format!("the signing keys cannot be kept: {e}"))?;
                ring
            }
        };
        let issuer = format!("spiffe://{}", config.trust_domain);
        let verifier = Arc::new(Verifier::new(issuer.clone(), ring.public(now())));
        Ok(Self {
            records,
            ring: RwLock::new(Arc::new(ring)),
            turning: tokio::sync::Mutex::default(),
            verifier,
            issuer,
            access_life: config.access_life,
            key_life: config.signing_key_life,
        })
    }

    fn ring(&self) -> Arc<Ring> {
        Arc::clone(&self.ring.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Verifies what this signs.
    pub fn verifier(&self) -> Arc<Verifier> {
        Arc::clone(&self.verifier)
    }

    /// The public keys.
    pub fn keys(&self) -> KeySet {
        self.ring().public(now())
    }

    /// The id of the key that signs now.
    pub fn key(&self) -> String {
        self.ring().current().public().kid().to_owned()
    }

    /// `iss` of every token.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Life of an access token.
    pub fn access_life(&self) -> Duration {
        self.access_life
    }

    /// A token with these claims.
    pub fn sign(&self, claims: &Claims) -> String {
        sign(claims, self.ring().current())
    }

    /// The next key signs from now on. `lost`: what the keys before signed is worth nothing any more, because somebody
    /// else may have them; whoever is logged in gets a new access token by their refresh token.
    pub async fn rotate(&self, lost: bool) -> Result<(), RecordError> {
        let _one = self.turning.lock().await;
        let failed = |e: moorline_authz::access_token::BadKey| RecordError::Failed(e.to_string());
        let at = now();
        let ring = if lost {
            Ring::generate(at).map_err(failed)?
        } else {
            self.ring().rotate(at, cluster_life(self.access_life).as_secs() + SLACK).map_err(failed)?
        };
        self.records.set_secret(RECORD.to_owned(), ring.store().to_vec().into()).await?;
        self.verifier.set_keys(ring.public(at));
        tracing::info!(kid = ring.current().public().kid(), lost, "access tokens are signed with another key");
        *self.ring.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(ring);
        Ok(())
    }

    /// Rotates when it is time, and forgets keys that are over.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let pause = LOOK.min(self.key_life / 2).max(Duration::from_millis(100));
        while stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
            if self.ring().since().saturating_add(self.key_life.as_secs()) <= now() {
                if let Err(error) = self.rotate(false).await {
                    tracing::error!("the signing keys were not rotated: {error}");
                }
            } else {
                self.verifier.set_keys(self.keys());
            }
        }
    }
}
