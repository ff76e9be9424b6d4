//! Proofs in, logins out: which provider is asked, how often, and whose login comes of it.

mod admit;
mod configured;
mod kept;
mod local;
mod lockout;
mod recheck;
mod renewals;
mod rounds;
mod seen;

use crate::{
    config::Config,
    directory::Directory,
    issue::{IssueError, Issued, Issuer, Proven},
    kinds::{TokenSpec, UserSpec},
    metrics::Metrics,
    rate::RateLimit,
    records::{RecordError, Records},
    status::time,
};
pub(crate) use configured::Configured;
use kept::Kept;
use local::{Hashing, Local};
pub use lockout::Lockout;
use lockout::Lockouts;
use moorline_apiserver::Object;
use moorline_authz::password;
use moorline_logins::{LoginProvider, Principal, Proof, Providers, Secret};
use renewals::Renewals;
pub(crate) use rounds::{AtProvider, Redeemable, Rounds, Turn};
use serde::Deserialize;
use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};
use tokio_util::sync::CancellationToken;

/// Lengths of a password, in bytes.
pub const PASSWORD: std::ops::RangeInclusive<usize> = 8..=1024;

/// The provider of those who log in with a password that this hub keeps.
pub(crate) const LOCAL: &str = "local";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct LoginRequest {
    username: String,
    password: String,
    #[serde(default)]
    provider: Option<String>,
    #[serde(default)]
    ttl_seconds: Option<u64>,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoginError {
    /// One text, whichever of the two is wrong, and for users that are disabled.
    #[error("wrong user name or password")]
    Wrong,
    #[error("too many attempts; try again later")]
    Often(Duration),
    #[error("too many logins at this moment; try again")]
    Busy,
    /// They proved who they are, and are not let in.
    #[error("{0}")]
    Refused(String),
    /// A provider does not answer: nobody comes in through it.
    #[error("login provider {0:?} does not answer; try again, or log in through another: --provider")]
    Away(String),
    #[error("{0}")]
    Bad(&'static str),
    #[error("the store: {0}")]
    Store(#[from] RecordError),
}

impl LoginError {
    /// For metrics: one of a fixed set.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Wrong => "wrong",
            Self::Often(_) => "too_often",
            Self::Busy => "busy",
            Self::Refused(_) => "refused",
            Self::Away(_) => "provider_away",
            Self::Bad(_) => "bad_request",
            Self::Store(_) => "store",
        }
    }
}

/// All providers, and what keeps them from being asked too often.
pub(crate) struct Logins {
    records: Records,
    directory: Arc<Directory>,
    metrics: Metrics,
    issuer: Arc<Issuer>,
    hashing: Arc<Hashing>,
    providers: Providers,
    pub rounds: Rounds,
    /// What asks again about somebody.
    renewals: Renewals,
    /// Wrong passwords of local users.
    pub lockouts: Arc<Lockouts>,
    /// Who is locked out by them, in the store.
    kept: Kept,
    rate: RateLimit<(String, IpAddr)>,
    users: RateLimit<String>,
    addresses: RateLimit<IpAddr>,
}

impl Logins {
    pub fn new(
        records: Records,
        directory: Arc<Directory>,
        metrics: Metrics,
        issuer: Arc<Issuer>,
        others: Providers,
        config: &Config,
    ) -> std::io::Result<Self> {
        let limits = config.limits.clone();
        let hashing = Arc::new(Hashing::new(limits.clone()));
        let local: Arc<dyn LoginProvider> = Arc::new(Local { records: records.clone(), hashing: Arc::clone(&hashing) });
        let renewals = Renewals::open(records.clone(), &config.data_dir)?;
        let lockouts = Arc::new(Lockouts::new(&config.lockout, limits.remembered));
        let kept = Kept::open(Arc::clone(&lockouts), &records);
        Ok(Self {
            records,
            directory,
            metrics,
            issuer,
            hashing,
            providers: std::iter::once(local).chain(others).collect(),
            rounds: Rounds::new(limits.remembered),
            renewals,
            lockouts,
            kept,
            rate: RateLimit::new(limits.login_burst, Duration::from_secs(10), limits.remembered),
            users: RateLimit::new(limits.user_burst, Duration::from_secs(20), limits.remembered),
            addresses: RateLimit::new(limits.address_burst, Duration::from_secs(1), limits.remembered),
        })
    }

    /// Keeps in the store who is locked out, until `stop`.
    pub(crate) async fn keep_locks(self: Arc<Self>, stop: CancellationToken) {
        self.kept.run(&self.records, stop).await;
    }

    /// Keeps what of it is not kept yet.
    pub(crate) async fn keep_last_locks(&self) {
        if let Err(error) = self.kept.write(&self.records).await {
            tracing::warn!("who was locked out last is forgotten: {error}");
        }
    }

    /// All, the local one first.
    pub fn providers(&self) -> &Providers {
        &self.providers
    }

    /// The one of that name.
    pub fn provider(&self, name: &str) -> Result<&Arc<dyn LoginProvider>, LoginError> {
        let found = self.providers.iter().find(|provider| provider.name() == name);
        found.ok_or(LoginError::Bad("this hub has no such login provider; see: moorline login --list"))
    }

    /// Users and groups with `text` in their names; of a provider that cannot be searched those who came in through it.
    pub async fn search(
        &self,
        provider: &dyn LoginProvider,
        text: &str,
        most: usize,
    ) -> Result<Vec<Principal>, moorline_logins::LoginError> {
        use moorline_logins::LoginError::{Unavailable, Unsupported};
        match provider.search(text, most).await {
            Err(Unsupported) => seen::search(&self.records, provider.name(), text, most)
                .map_err(|e| Unavailable { why: format!("the store: {e}") }),
            found => found,
        }
    }

    /// One login with a password, counted. The name of the provider, where one was asked.
    pub async fn login(&self, body: &[u8], remote: IpAddr) -> Result<Issued, LoginError> {
        let result = self.by_password(body, remote).await;
        self.count(&result);
        result
    }

    /// Counts what came of a login.
    pub fn count<T>(&self, result: &Result<T, LoginError>) {
        let label = result.as_ref().map_or_else(LoginError::label, |_| "ok");
        self.metrics.logins.with_label_values(&[label]).inc();
    }

    /// One more attempt from an address.
    pub fn attempt_from(&self, remote: IpAddr) -> Result<(), LoginError> {
        self.addresses.take(&remote, Instant::now()).map_err(LoginError::Often)
    }

    /// That attempt was a lawful one.
    pub fn lawful(&self, remote: IpAddr) {
        self.addresses.give_back(&remote);
    }

    async fn by_password(&self, body: &[u8], remote: IpAddr) -> Result<Issued, LoginError> {
        let request: LoginRequest = serde_json::from_slice(body)
            .map_err(|_| LoginError::Bad("the body must be {\"username\", \"password\"}"))?;
        let provider = self.provider(request.provider.as_deref().unwrap_or(LOCAL))?;
        let (name, password) = (request.username, Secret::new(request.password));
        let local = provider.name() == LOCAL;
        // Nobody is called so, and nothing is hashed: it is no attempt at anybody.
        let longest = if local { local::NAME } else { 256 };
        if name.is_empty() || longest < name.len() || *PASSWORD.end() < password.reveal().len() {
            return Err(LoginError::Wrong);
        }
        // No password is looked at, so nothing is counted against anybody.
        if local && self.hashing.is_full() {
            return Err(LoginError::Busy);
        }
        // Guesses at many users from one address, and at one user from many, must not be for nothing.
        self.attempt_from(remote)?;
        let who = format!("{}/{}", provider.name(), name.to_lowercase());
        let key = (who.clone(), remote);
        self.rate.take(&key, Instant::now()).map_err(LoginError::Often)?;
        self.users.take(&who, Instant::now()).map_err(LoginError::Often)?;
        // Other providers lock accounts by their own rules.
        let attempt = local.then(|| self.lockouts.attempt(&name, remote)).transpose().map_err(LoginError::Often)?;
        let proof = provider.password(&name, &password).await;
        if let Some(attempt) = attempt {
            self.settle(attempt, &proof);
        }
        let proof = proof.map_err(|e| self.understood(provider.name(), e))?;
        let user = self.admit(provider.name(), &proof).await?;
        self.rate.give_back(&key);
        self.users.give_back(&who);
        self.lawful(remote);
        self.issue(&user, provider.name(), request.ttl_seconds).await
    }

    /// What a password that was tried says of who tried it.
    fn settle(&self, attempt: lockout::Attempt, proof: &Result<Proof, moorline_logins::LoginError>) {
        match proof {
            Ok(_) => attempt.right(),
            Err(moorline_logins::LoginError::Wrong { .. }) => {
                for (of, locks) in [("user", attempt.locks.0), ("address", attempt.locks.1)] {
                    if locks {
                        self.metrics.lockouts.with_label_values(&[of]).inc();
                        tracing::warn!(of, "locked out for wrong passwords in a row; see: moorline user locked");
                    }
                }
            }
            Err(_) => attempt.undecided(),
        }
    }

    /// A provider's refusal, in the words of this hub; the reason goes to the log.
    pub fn understood(&self, provider: &str, error: moorline_logins::LoginError) -> LoginError {
        use moorline_logins::LoginError as Theirs;
        // Of a flood there is a count, and no line each.
        if !matches!(error, Theirs::Busy) {
            tracing::info!(provider, reason = error.label(), "a login was refused: {}", error.why());
        }
        match error {
            Theirs::Wrong { .. } => LoginError::Wrong,
            Theirs::NotAllowed { why } => LoginError::Refused(why),
            Theirs::Unavailable { .. } => LoginError::Away(provider.to_owned()),
            Theirs::Busy => LoginError::Busy,
            Theirs::Unsupported => LoginError::Bad("this login provider takes no such login"),
        }
    }

    /// The user whom a proof stands for.
    pub async fn admit(&self, provider: &str, proof: &Proof) -> Result<Object<UserSpec>, LoginError> {
        let user = admit::admit(&self.records, &self.directory, provider, proof).await?;
        if let Some(renewal) = &proof.renewal {
            self.renewals.keep(&user.metadata.name, provider, &proof.subject, renewal).await?;
        }
        Ok(user)
    }

    /// A login for somebody who was admitted.
    pub async fn issue(
        &self,
        user: &Object<UserSpec>,
        provider: &str,
        ttl_seconds: Option<u64>,
    ) -> Result<Issued, LoginError> {
        let life = ttl_seconds.map(Duration::from_secs);
        self.issuer.issue(Proven { user, provider, life }).await.map_err(|error| match error {
            IssueError::TooLong => LoginError::Bad("ttlSeconds is over what this hub permits"),
            IssueError::Store(error) => LoginError::Store(error),
            IssueError::Over | IssueError::Reused => LoginError::Wrong,
        })
    }

    /// The user of a code that was redeemed: still there, still let in.
    pub fn user_of(&self, redeemed: &Redeemable) -> Result<Object<UserSpec>, LoginError> {
        let user = self.records.get::<UserSpec>(&redeemed.user)?;
        user.filter(|user| user.metadata.uid == redeemed.user_uid && !user.spec.disabled).ok_or(LoginError::Wrong)
    }

    /// A new API key.
    pub async fn key(
        &self,
        user: &Object<UserSpec>,
        description: &str,
        life: Duration,
    ) -> Result<(String, String), RecordError> {
        let expires = time(SystemTime::now() + life);
        let spec = TokenSpec {
            user: user.metadata.name.clone(),
            description: Some(description.to_owned()),
            expires: expires.clone(),
            ..TokenSpec::default()
        };
        let made = self.records.create(&Object::new("", spec)).await?;
        let token = made.status.and_then(|status| status.token);
        Ok((token.ok_or_else(|| RecordError::Failed("no token was made".to_owned()))?, expires))
    }

    /// Sets a password and ends what was logged in with the one before, for whoever knew it may be in; but not `except`.
    /// Tokens that were made as such stay. Returns the ids of those that are gone.
    pub async fn change_password(&self, user: &str, new: String, except: &str) -> Result<Vec<String>, LoginError> {
        self.set_password(user, new).await?;
        let mut ended = Vec::new();
        for token in self.records.list::<TokenSpec>()? {
            let (spec, id) = (token.spec, token.metadata.name);
            if spec.user != user || spec.provider.as_deref() != Some(LOCAL) || id == except {
                continue;
            }
            match self.records.delete_token(&id).await {
                Ok(()) | Err(RecordError::NotFound) => ended.push(id),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(ended)
    }

    /// Sets a password.
    pub async fn set_password(&self, user: &str, new: String) -> Result<(), LoginError> {
        if !PASSWORD.contains(&new.len()) {
            return Err(LoginError::Bad("a password has 8 to 1024 bytes"));
        }
        let hash = self.hashing.run(move || password::hash(&new)).await.ok_or(LoginError::Busy)?;
        let hash = hash.map_err(|_| LoginError::Bad("not a usable password"))?;
        self.records.set_password(user, &hash).await?;
        self.lockouts.unlock_user(user);
        Ok(())
    }
}
