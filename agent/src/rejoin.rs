//! An identity whose time is over, as after a hub was away for longer than certificates live: no session comes up with it
//! any more, and certificates are renewed in sessions alone. Who has a proof that is good again and again joins anew by it,
//! as who it was.

use crate::{
    config::Config,
    identity::{AdoptError, Holder},
    join::{self, JoinError, Proof},
    metrics::Metrics,
    node::AccountJoin,
    renew,
    state::StateError,
    upstream::chain,
};
use futures_util::future::BoxFuture;
use moorline_link::HubAddress;
use std::{fmt, sync::Arc, time::SystemTime};
use tokio::task::spawn_blocking;

/// Where join tokens are made when they are needed: for agents that run beside their hub.
#[derive(Clone)]
pub struct TokenSource(Arc<dyn Fn() -> BoxFuture<'static, Result<String, String>> + Send + Sync>);

impl TokenSource {
    /// `make` makes a token, or says in words why there is none.
    pub fn new<F>(make: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<String, String>> + Send + 'static,
    {
        Self(Arc::new(move || Box::pin(make())))
    }
}

impl fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenSource")
    }
}

/// A proof that is good more than once.
#[derive(Debug, Clone)]
pub enum Renewable {
    /// The service account of the pod.
    Account(AccountJoin),
    /// Tokens that are made for it.
    Tokens(TokenSource),
}

impl Renewable {
    /// What the configuration has; an account goes first, for it is nobody else's.
    pub fn of(config: &Config) -> Option<Self> {
        let account = config.node.join.clone().map(Self::Account);
        account.or_else(|| config.tokens.clone().map(Self::Tokens))
    }

    /// A proof for one attempt.
    ///
    /// # Errors
    /// There is none now.
    pub async fn proof(&self) -> Result<Proof, JoinError> {
        match self {
            Self::Account(account) => {
                let read = tokio::fs::read_to_string(&account.token_file).await;
                let token = read.map_err(|e| JoinError::Account(format!("{}: {e}", account.token_file.display())))?;
                Ok(Proof::Account { token: token.trim().to_owned(), pin: account.hub_pin })
            }
            Self::Tokens(TokenSource(make)) => make().await.map(Proof::Token).map_err(JoinError::NoToken),
        }
    }
}

/// Why an identity is still an expired one.
#[derive(Debug, thiserror::Error)]
enum RejoinError {
    #[error(transparent)]
    Join(#[from] JoinError),
    #[error(transparent)]
    Adopt(#[from] AdoptError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error("the proof pins an authority that the hub has dropped: give this agent the hub's new pin")]
    Dropped,
    #[error("the task ended: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// Joins anew.
pub struct Rejoin {
    hub: HubAddress,
    proof: Renewable,
    metrics: Metrics,
}

impl Rejoin {
    /// `None`: what the configuration has is good once.
    pub fn of(config: &Config, metrics: &Metrics) -> Option<Self> {
        let proof = Renewable::of(config)?;
        Some(Self { hub: config.hub.clone(), proof, metrics: metrics.clone() })
    }

    /// Joins anew if the identity's time is over; or if it is shut out, and its proof pins an authority that it does not
    /// believe: the hub has replaced its own while this agent was away. What comes of it is told and counted; where it
    /// comes to nothing the old identity stays, for it may be this host's clock that is wrong.
    ///
    /// # Cancel safety
    /// Dropping the future may leave a certificate unused; the next attempt gets another.
    pub async fn heal(&self, holder: &Arc<Holder>, shut_out: bool) {
        let expired = holder.membership().has_expired(SystemTime::now());
        if !expired && !shut_out {
            return;
        }
        let why = if expired { "the certificate has expired" } else { "the hub has another authority" };
        let label = match self.join(holder, expired).await {
            Ok(false) => return,
            Ok(true) => {
                tracing::info!(hub = %self.hub, why, "joined anew");
                "rejoined"
            }
            Err(error) => {
                let advice = "if this host's clock is wrong, set it by NTP";
                tracing::warn!(hub = %self.hub, why, cause = %chain(&error), advice, "this agent could not join anew");
                "not_rejoined"
            }
        };
        self.metrics.renewals.with_label_values(&[label]).inc();
    }

    /// Whether there was a reason to.
    async fn join(&self, holder: &Arc<Holder>, expired: bool) -> Result<bool, RejoinError> {
        let old = holder.membership();
        // Tokens are made by the hub that this agent runs beside, and whom the last one was for is gone once one is made.
        if let Renewable::Account(account) = &self.proof {
            let trusted = old.trusts_pin(&account.hub_pin);
            if trusted && !expired {
                return Ok(false);
            }
            let (kept, pin) = (holder.clone(), account.hub_pin);
            // Whoever has the key of an authority that was dropped may stand in the way, and be told the pod's own token.
            if !trusted && spawn_blocking(move || kept.was_trusted(&pin)).await?? {
                return if expired { Err(RejoinError::Dropped) } else { Ok(false) };
            }
        }
        let proof = self.proof.proof().await?;
        let whom = (&old.name, old.role);
        let new = join::join(&self.hub, &proof, holder.key(), whom, Some(&old.cluster)).await?;
        // Under another name it would be somebody else than the plans, shells and streams of this process are for.
        renew::adopt(holder, new.chain, new.bundle, false).await??;
        Ok(true)
    }
}
